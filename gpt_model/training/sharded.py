"""Weights that are shared out among the ranks (ZeRO 3): each rank has a share of the elements of
every parameter, as DeepSpeed cuts them, and no rank ever has the whole model.

- `cut`: a model that is built so from the start, one parameter after the other.
- `shares`, `filling`: what a rank has of a model, to be filled: with fresh weights, from a file,
  from a checkpoint.
- `ShardedModel`: the same model for evaluation, samples and saving. A block's parameters are
  gathered when it is called and freed when it returns; the others (embeddings, the last norm) stay
  while the model, or the part of it that they are of, is in use (`reading`).

Gathered are the shares themselves, in float32: DeepSpeed's own gathering may round to bfloat16 on
the way, and follows the order of the training passes.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

from gpt_model.transformer import Decoder

M = TypeVar("M", bound=nn.Module)
END = -1  # what a rank that has read what it wanted says, in place of a group's number


@dataclass(frozen=True)
class Fragment:
    """A run of one parameter's elements that this rank keeps, flat: `name[start : start + len]`,
    and its moments, as live views.
    """

    name: str
    start: int
    # "weight", and "exp_avg" and "exp_avg_sq" or "momentum_buffer": [length] each
    values: Mapping[str, Tensor]
    # by this rank: of all ranks' owned fragments, each element is in exactly one (stage 0 keeps
    # everything everywhere)
    owned: bool

    def moments(self) -> dict[str, Tensor]:
        """The values that the optimizer has beside the weight."""
        return {kind: values for kind, values in self.values.items() if kind != "weight"}


def is_sharded(model: nn.Module) -> bool:
    """Whether the model was built by `cut`, an engine has cut it, or a `ShardedModel` shows it."""
    return hasattr(model, "part_of") or any(hasattr(p, "ds_tensor") for p in model.parameters())


def whole_shape(parameter: Tensor) -> torch.Size:
    """The shape of the whole parameter, whatever of it this rank has."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def cut(model: nn.Module, configuration: Mapping[str, Any], device: str) -> None:
    """Leave each parameter of `model` this rank's share of its elements; of one that has a shape
    and no memory, a share that is not filled. `configuration`: the engine's.
    """
    import deepspeed  # at first by `engine.start`, which keeps MLflow and inductor out

    # As `zero.Init(module=model)` does, but for its broadcast of each whole parameter from rank 0:
    # whoever fills the shares gives every rank the same.
    sharing = deepspeed.zero.Init(
        module=nn.Module(),
        config_dict_or_path=dict(configuration),
        # hpZ's, which can be made once: of a model before this one
        zero_param_parallel_group=deepspeed.utils.groups._get_zero_param_intra_parallel_group(),
    )
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if hasattr(parameter, "ds_tensor"):
                continue
            whole = parameter.data
            whole = torch.empty_like(whole, device=device) if whole.is_meta else whole.to(device)
            shared: Any = nn.Parameter(whole, parameter.requires_grad)
            setattr(module, name, shared)
            sharing._convert_to_deepspeed_param(shared)
            shared.partition()
            shared.ds_secondary_tensor = None  # hpZ's copy, of memory that is not filled yet


def shares(model: nn.Module) -> Iterator[Fragment]:
    """What this rank has of each parameter's elements: of a plain model all of them. `model` is one
    that no engine has taken hold of, or what a `ShardedModel` shows, or a part of that. Of what
    lies on a disk, copies: `filling` writes there.
    """
    parameter: Any
    for name, shown in model.named_parameters():
        parameter = getattr(shown, "shared_out", shown)
        start, weight = 0, parameter.data.view(-1)
        if hasattr(parameter, "ds_tensor"):
            weight = _share(parameter)
            start = parameter.ds_zero_partition_rank * len(weight)
            weight = weight[: max(0, parameter.ds_numel - start)]  # padded to equal lengths
        if len(weight):
            yield Fragment(name, start, {"weight": weight}, owned=True)


def gather(parameter: Any, device: torch.device | str, onto: int | None = None) -> Tensor:
    """The whole parameter [...] on every rank, or on rank `onto` alone; nothing [0] on the others.
    Collective. One that is not shared out, such as a head's, every rank has.
    """
    if not hasattr(parameter, "ds_tensor"):
        held: Tensor = parameter.detach().to(device)
        return held
    share = _share(parameter).to(device)
    ranks, rank = parameter.ds_zero_partition_world_size, parameter.ds_zero_partition_rank
    receives = onto is None or rank == onto
    whole = share.new_empty(ranks * len(share) if receives else 0)
    if onto is None:
        torch.distributed.all_gather_single(whole, share)
    else:
        torch.distributed.gather(share, list(whole.chunk(ranks)) if receives else None, dst=onto)
    return whole[: parameter.ds_numel].view(parameter.ds_shape) if receives else whole


def _share(parameter: Any) -> Tensor:
    """This rank's elements [n] of a shared-out parameter: of one that lies on a disk a copy."""
    if not _on_disk(parameter):
        held: Tensor = parameter.ds_tensor.data.view(-1)
        return held
    swapper = parameter.nvme_swapper
    swapper.swap_in([parameter], async_op=False)
    copied: Tensor = parameter.ds_tensor.data.clone()
    swapper.remove_partition_and_release_buffers([parameter])
    return copied


def _on_disk(parameter: Any) -> bool:
    swapped = getattr(parameter, "nvme_swapper", None) is not None
    return swapped and parameter.ds_tensor.status.name == "NOT_AVAILABLE"


@contextmanager
def filling(model: nn.Module) -> Iterator[dict[str, tuple[int, Tensor]]]:
    """What this rank has of `shares`' model, to be filled within: by parameter, the first of its
    elements, elements [n]. What lies on a disk is written there as it leaves.
    """
    targets = {share.name: (share.start, share.values["weight"]) for share in shares(model)}
    yield targets
    for name, shown in model.named_parameters():
        parameter: Any = getattr(shown, "shared_out", shown)
        if name in targets and _on_disk(parameter):
            filled = targets[name][1]
            parameter.nvme_swapper.swap_in([parameter], async_op=False)
            parameter.ds_tensor.data[: len(filled)] = filled
            parameter.nvme_swapper.swap_out_and_release([parameter])


def without_memory(model: nn.Module) -> nn.Module:
    """A copy of the model whose parameters have their whole shapes and no memory."""
    return copy.deepcopy(
        model,
        {
            id(p): nn.Parameter(torch.empty(whole_shape(p), device="meta"), p.requires_grad)
            for p in model.parameters()
        },
    )


def reading(model: nn.Module) -> AbstractContextManager[None]:
    """Within, this rank makes whatever forward passes it wants with `model`, which is what a
    `ShardedModel` shows or a part of that. As it leaves it gives the other ranks its shares until
    they leave too. Ranks exchange nothing else within, unless all make the same passes. Collective;
    a plain model needs nothing of it, nor does one that is being read so.
    """
    sharded, path = getattr(model, "part_of", (None, ""))
    return sharded.reading(path, apart=True) if sharded else nullcontext()


def weight_of(model: nn.Module, name: str) -> Tensor:
    """The parameter `name` of `model`, whole [...]: of a plain model, or, within `reading`, of what
    a `ShardedModel` shows.
    """
    sharded, path = getattr(model, "part_of", (None, ""))
    return sharded.weight(path, name) if sharded else model.get_parameter(name).detach()


def for_evaluation(model: M, device: str) -> M:
    """A model that no engine has taken hold of, on the device in evaluation mode: itself, or where
    it was built sharded what a `ShardedModel` shows of it.
    """
    if not is_sharded(model):
        return model.to(device).eval()
    shown = ShardedModel(without_memory(model), dict(model.named_parameters()), device).model
    assert isinstance(shown, type(model))
    return shown


class ShardedModel:
    """A model in evaluation mode over shared-out weights, `model`. It can be used within `reading`:
    by all ranks together, each making the same forward passes in the same order; or apart, each
    making its own, where the others give it their shares.
    """

    def __init__(
        self, skeleton: nn.Module, parameters: Mapping[str, Any], device: torch.device | str
    ) -> None:
        """`skeleton`: the model `without_memory`. `parameters`: the shared-out ones."""
        self.model = copy.deepcopy(skeleton).eval().requires_grad_(False)
        self.parameters, self.device = parameters, device
        self._apart = False
        self._shapes: dict[str, Any] = dict(self.model.named_parameters())
        self._held: dict[str, Tensor] = {}
        blocks = self._prepare_blocks()
        self._in_blocks = {name for block in blocks for name in block}
        # What is gathered at a time: ranks that read apart say its number
        self._groups = [*blocks, *([name] for name in parameters)]
        self._numbers = {name: len(blocks) + number for number, name in enumerate(parameters)}
        for name, shape in self._shapes.items():
            shape.shared_out = parameters[name]  # for `shares`
        module: Any
        for path, module in self.model.named_modules():
            module.part_of = self, path
            if isinstance(module, Decoder):
                module.weight = functools.partial(self.weight, path)  # type: ignore[method-assign]

    def _prepare_blocks(self) -> list[list[str]]:
        """Have each block (each member of a ModuleList) gather its parameters as it is called.
        Returns their names.
        """
        groups: list[list[str]] = []
        for path, module in self.model.named_modules():
            for number, block in enumerate(module if isinstance(module, nn.ModuleList) else ()):
                prefix = f"{path}.{number}."
                names = [name for name in self.parameters if name.startswith(prefix)]
                group = len(groups)
                groups.append(names)

                def fill(block: nn.Module, inputs: Any, group: int = group) -> None:
                    self._fill(group)

                def empty(
                    block: nn.Module, inputs: Any, states: Any, names: list[str] = names
                ) -> None:
                    self._empty(names)

                block.register_forward_pre_hook(fill)
                block.register_forward_hook(empty)
        return groups

    @contextmanager
    def reading(self, path: str = "", *, apart: bool) -> Iterator[None]:
        """Within, the model, or the part of it at `path`, has what is in no block. Collective."""
        prefix = f"{path}." if path else ""
        names = [
            name
            for name in self.parameters
            if name.startswith(prefix) and name not in self._in_blocks
        ]
        if apart and self._apart and self._held.keys() >= set(names):
            yield  # a rank within, alone, reads it again
            return
        before, self._apart = self._apart, apart
        try:
            for name in names:
                self._fill(self._numbers[name])
            yield
        finally:
            self._empty(names)
        if apart:
            self.follow()
        self._apart = before

    def follow(self) -> None:
        """Give the other ranks this rank's shares of what they gather, until all have read what
        they wanted. Collective.
        """
        while self._round(END) is not None:
            pass

    def weight(self, path: str, name: str) -> Tensor:
        """The whole parameter [...] `name` of the part at `path`, gathered for the caller."""
        name = f"{path}.{name}" if path else name
        if (held := self._held.get(name)) is not None:
            return held
        [weight] = self._gathered(self._numbers[name])
        return weight

    def _fill(self, group: int) -> None:
        for name, weight in zip(self._groups[group], self._gathered(group), strict=True):
            self._held[name] = weight
            self._put(name, nn.Parameter(weight, requires_grad=False))

    def _empty(self, names: Sequence[str]) -> None:
        for name in names:
            self._held.pop(name, None)
            self._put(name, self._shapes[name])

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        path, _, leaf = name.rpartition(".")
        setattr(self.model.get_submodule(path), leaf, parameter)

    def _gathered(self, group: int) -> list[Tensor]:
        if not self._apart:
            return self._exchanged(group)
        weights = self._round(group)
        assert weights is not None
        return weights

    def _round(self, wanted: int) -> list[Tensor] | None:
        """Every rank says the number of the group it wants, or END, and gets that group. None once
        all have said END. Collective.
        """
        posted = torch.tensor([wanted], device=self.device)
        by_rank = posted.new_empty(torch.distributed.get_world_size())
        torch.distributed.all_gather_single(by_rank, posted)
        numbers: list[int] = by_rank.tolist()
        weights: list[Tensor] | None = None
        for group in sorted({*numbers} - {END}):
            readers = [rank for rank, number in enumerate(numbers) if number == group]
            exchanged = self._exchanged(group, readers[0] if len(readers) == 1 else None)
            # Of the others' a rank keeps nothing, but it goes on
            weights = exchanged if group == wanted else weights or []
        return weights

    def _exchanged(self, group: int, onto: int | None = None) -> list[Tensor]:
        return [gather(self.parameters[name], self.device, onto) for name in self._groups[group]]
