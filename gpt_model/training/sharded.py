"""Weights that are shared out among the ranks (ZeRO 3): each rank has a share of the elements of
every parameter, as DeepSpeed cuts them, and no rank ever has the whole model.

- `cut`: a model that is built so from the start, one parameter after the other.
- `shares`: what a rank has of a model, to be filled: with fresh weights, from a file, from a
  checkpoint.
- `ShardedModel`: the same model for evaluation, samples and saving. A block's parameters are
  gathered when it is called and freed when it returns; the others (embeddings, the last norm) stay
  while the model is in use.

Gathered are the shares themselves, in float32: DeepSpeed's own gathering may round to bfloat16 on
the way, and follows the order of the training passes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

END = -1  # what rank 0 sends to those that follow it, in place of a group's number


@dataclass(frozen=True)
class Fragment:
    """A run of one parameter's elements that this rank keeps, flat: `name[start : start + len]`,
    and its moments, as live views.
    """

    name: str
    start: int
    values: Mapping[str, Tensor]  # "weight", "exp_avg", "exp_avg_sq": [length] each
    # by this rank: of all ranks' owned fragments, each element is in exactly one (stage 0 keeps
    # everything everywhere)
    owned: bool


def is_sharded(model: nn.Module) -> bool:
    """Whether the model was built by `cut`, or an engine has cut it."""
    return any(hasattr(parameter, "ds_tensor") for parameter in model.parameters())


def whole_shape(parameter: Tensor) -> torch.Size:
    """The shape of the whole parameter, whatever of it this rank has."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def cut(model: nn.Module, configuration: Mapping[str, Any], device: str) -> None:
    """Give each parameter of `model`, which has shapes and no memory, this rank's share of its
    elements, not filled. `configuration`: the engine's.
    """
    import deepspeed  # at first by `engine.start`, which keeps MLflow and inductor out

    # As `zero.Init(module=model)` does, but for its broadcast of each whole parameter from rank 0:
    # whoever fills the shares gives every rank the same.
    sharing = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=dict(configuration))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            memory = torch.empty_like(parameter, device=device)
            shared: Any = nn.Parameter(memory, parameter.requires_grad)
            setattr(module, name, shared)
            sharing._convert_to_deepspeed_param(shared)
            shared.partition()


def shares(model: nn.Module) -> Iterator[Fragment]:
    """What this rank has of each parameter's elements, before an engine takes hold of the model: of
    a plain model all of them.
    """
    parameter: Any
    for name, parameter in model.named_parameters():
        start, weight = 0, parameter.data.view(-1)
        if hasattr(parameter, "ds_tensor"):
            weight = parameter.ds_tensor.data.view(-1)
            start = parameter.ds_zero_partition_rank * len(weight)
            weight = weight[: max(0, parameter.ds_numel - start)]  # padded to equal lengths
        if len(weight):
            yield Fragment(name, start, {"weight": weight}, owned=True)


def gather(parameter: Any, device: torch.device | str, *, onto_rank_0: bool = False) -> Tensor:
    """The whole parameter [...] on every rank, or on rank 0 alone; nothing [0] on the others.
    Collective.
    """
    share = parameter.ds_tensor.detach().to(device).view(-1)
    ranks, rank = parameter.ds_zero_partition_world_size, parameter.ds_zero_partition_rank
    receives = not onto_rank_0 or rank == 0
    whole = share.new_empty(ranks * len(share) if receives else 0)
    if onto_rank_0:
        torch.distributed.gather(share, list(whole.chunk(ranks)) if receives else None, dst=0)
    else:
        torch.distributed.all_gather_into_tensor(whole, share)
    return whole[: parameter.ds_numel].view(parameter.ds_shape) if receives else whole


def without_memory(model: nn.Module) -> nn.Module:
    """A copy of the model whose parameters have their whole shapes and no memory."""
    return copy.deepcopy(
        model,
        {
            id(p): nn.Parameter(torch.empty(whole_shape(p), device="meta"), p.requires_grad)
            for p in model.parameters()
        },
    )


class ShardedModel:
    """A model in evaluation mode over shared-out weights. Either every rank makes the same forward
    passes in the same order, or rank 0 alone does, and the others give it their shares.
    """

    def __init__(
        self, skeleton: nn.Module, parameters: Mapping[str, Any], device: torch.device | str
    ) -> None:
        """`skeleton`: the model `without_memory`. `parameters`: the shared-out ones."""
        self.model = copy.deepcopy(skeleton).eval().requires_grad_(False)
        self.parameters, self.device = parameters, device
        self._leading = False
        self._shapes = dict(self.model.named_parameters())
        self._held: dict[str, Tensor] = {}
        blocks = self._prepare_blocks()
        in_blocks = {name for block in blocks for name in block}
        self._others = [name for name in parameters if name not in in_blocks]
        # What is gathered at a time: rank 0 sends the number of one to those that follow it
        self._groups = [*blocks, self._others, *([name] for name in parameters)]
        model: Any = self.model
        model.weight = self.weight  # `Decoder.weight`

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
    def reading(self, *, leading: bool) -> Iterator[nn.Module | None]:
        """The model within. With `leading` for rank 0 alone: on the others nothing, once they have
        given what rank 0 wanted. Collective.
        """
        if leading and torch.distributed.get_rank():
            self._follow()
            yield None
            return
        self._leading = leading
        try:
            self._fill(self._groups.index(self._others))
            yield self.model
        finally:
            self._empty(self._others)
            if leading:
                self._sent(END)

    def weight(self, name: str) -> Tensor:
        """The whole parameter [...] `name`, gathered for the caller."""
        if (held := self._held.get(name)) is not None:
            return held
        [weight] = self._gathered(self._groups.index([name]))
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
        if self._leading:
            self._sent(group)
        return self._exchanged(group, onto_rank_0=self._leading)

    def _follow(self) -> None:
        """Give rank 0 this rank's shares of what it gathers, until it has no more to read."""
        while (group := self._sent(END)) != END:
            self._exchanged(group, onto_rank_0=True)

    def _exchanged(self, group: int, *, onto_rank_0: bool) -> list[Tensor]:
        return [
            gather(self.parameters[name], self.device, onto_rank_0=onto_rank_0)
            for name in self._groups[group]
        ]

    def _sent(self, group: int) -> int:
        """On every rank, the number that rank 0 sends."""
        number = torch.tensor([group], device=self.device)
        torch.distributed.broadcast(number, src=0)
        return int(number.item())
