"""The DeepSpeed engine, at every world size and ZeRO stage 0-3: start-up, one optimizer step, and
where its state lies in memory.

- ZeRO: Rajbhandari et al. 2020. Stage 0 keeps everything on every rank, 1 shares out the
  optimizer's state, 2 also the gradients, 3 also the weights. The optimizer is torch's fused AdamW,
  or `muon.py`'s, so nothing is compiled on the user's machine, but for offload to NVMe (`swap.py`).
- bfloat16 is torch's autocast round the loss: weights, gradients and moments stay float32. That is
  16 bytes a parameter, as many as DeepSpeed's own bf16 mode with its float32 master copy takes, and
  the weights that are saved are the weights that were trained.
- What survives a kill is written by `checkpoint.py` out of `Engine.fragments`; when to do what is
  the loop's (`loop.py`).
"""

from __future__ import annotations

import functools
import logging
import math
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, Protocol, TypeVar

import torch
import torch.distributed
from pydantic import ValidationError
from torch import Tensor, nn

from gpt_model.errors import UserError
from gpt_model.ops.cross_entropy import compiled_passes
from gpt_model.ops.weight_copies import forget_copies, shared_copies
from gpt_model.training import gpu
from gpt_model.training.allocator import SMALL, freed_memory_returned, return_freed_memory
from gpt_model.training.batching import Idle
from gpt_model.training.blocks import prepare_blocks
from gpt_model.training.failures import host_of
from gpt_model.training.memory import bucket_elements
from gpt_model.training.muon import Muon
from gpt_model.training.optimizer import FusedAdamW, ParameterSlice, TrainingSettings
from gpt_model.training.sharded import (
    Fragment,
    ShardedModel,
    cut,
    gather,
    is_sharded,
    whole_shape,
    without_memory,
)
from gpt_model.training.shared_memory import share_memory, share_state
from gpt_model.training.swap import prepare_swapping, swap_out

T = TypeVar("T")
RENDEZVOUS = "lineage"  # a scheme of torch's `init_method`
# Modules whose weights and gradients travel in bfloat16 where that is asked for
BFLOAT16_MODULES = ("gpt_model.ops.conv1d.Conv1D", "torch.nn.Embedding")
EVALUATED_IN_BFLOAT16 = {"cuda"}  # devices on which a model trained in bfloat16 is
NORM_TILE = 1 << 15  # elements, which stay in cache in double precision
STATE_BYTES = 16  # of a parameter: weight, gradient and two moments in float32
PREPARATION = timedelta(days=7)  # that ranks may wait while rank 0 downloads and prepares
MEETING = timedelta(minutes=10)  # that ranks wait for each other when they start
StepMetrics = Mapping[str, tuple[Any, Any]]  # name -> (sum, count)


@dataclass(frozen=True)
class Execution:
    """On what to train: the profile's. Nothing here changes the result beyond the order of
    additions and which dropout mask falls on which row.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    zero_stage: Literal[0, 1, 2, 3] = 1
    rank: int = 0
    world_size: int = 1
    checkpoint_seconds: float = 30.0
    compile: bool = False
    compiler: str = "inductor"  # torch.compile's backend; tests take one that needs no C compiler
    activation_checkpointing: bool = False
    tf32: bool = False  # of a GPU's float32 products, factors are rounded to 10 bits of fraction
    # In which a bfloat16 training's gradients, and at stage 3 its weights, go from rank to rank
    communication: Literal["float32", "bfloat16"] = "float32"
    # DeepSpeed's own settings, over ours: a profile's, which lets none through that changes results
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    micro_batch_by_trial: bool = False  # as large as memory allows, instead of the objective's
    memory_bytes: float | None = None  # that a rank may fill, of its GPU's where it has one
    # FLOP/s of all ranks together (`measure.py`); None: utilisation is not reported
    peak_flops: float | None = None
    data_sheet_flops: float | None = None  # the same by the GPU's data sheet, where it is known


ALONE = Execution()


class Loss(Protocol):
    def loss(self, model: nn.Module, micro_batch: Any) -> tuple[Tensor, StepMetrics]:
        """The micro-batch's mean loss [] and metrics (`loop.Objective.loss`)."""


def start(execution: Execution, timeout: timedelta = timedelta(hours=2)) -> None:
    """Import DeepSpeed and join the other ranks, from RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT. Again: does nothing. `timeout`: of an operation: one rank may evaluate while others
    wait.

    Every rank's threads must be set up before (OMP_NUM_THREADS), as gloo and torch start theirs
    here.
    """
    if torch.distributed.is_initialized():
        return
    os.environ["DS_ACCELERATOR"] = execution.device
    choose_gpu(execution)
    deepspeed = _import_deepspeed(execution.compile)
    backend = "nccl" if execution.device == "cuda" else "gloo"
    deepspeed.init_distributed(
        backend,
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timeout,
        init_method=f"{RENDEZVOUS}://",
    )
    # At ZeRO 3 memory is what is short
    if execution.device == "cpu" and execution.world_size > 1 and execution.zero_stage < 3:
        share_memory(deepspeed.comm.comm.cdb, timeout)


def sum_over_ranks(values: Tensor) -> None:
    """Replace values [...] by their sum over ranks, as gradients are exchanged. Collective, after
    `start`.
    """
    import deepspeed  # as in `Engine`

    deepspeed.comm.all_reduce(values)


def of_rank_0(value: T) -> T:
    """Rank 0's value on every rank: what it reads of a file that another host may not see yet.
    Collective where the ranks have joined.
    """
    values = [value]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def join_without_training(execution: Execution) -> None:
    """Take this rank's GPU, where there are any, and join the other ranks, if there are any, over
    gloo, on any device, to share out work that trains nothing: without DeepSpeed.
    """
    choose_gpu(execution)
    if execution.world_size == 1:
        return
    torch.distributed.init_process_group(
        "gloo", init_method=f"{RENDEZVOUS}://", timeout=PREPARATION
    )


def choose_gpu(execution: Execution) -> None:
    """Take this rank's GPU, where the profile has any. Raises UserError where it cannot be used or
    is not as the profile says.
    """
    if execution.device == "cuda":
        gpu.choose(execution.memory_bytes, execution.tf32)


def _rendezvous(
    url: str, timeout: timedelta, **_: Any
) -> Iterator[tuple[torch.distributed.Store, int, int]]:
    """torch's `env://`, whose store listens on every interface and has no password. One rank needs
    none; several get one that listens on MASTER_ADDR alone: of one host the loopback interface's.

    Raises UserError naming the hosts whose ranks did not come within `MEETING`.
    """
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if ranks == 1:
        yield torch.distributed.HashStore(), rank, ranks
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listening = None
    if rank == 0:
        server = socket.create_server((address, port), backlog=ranks)
        listening = server.detach()  # the store closes it
    store = torch.distributed.TCPStore(
        address, port, ranks, rank == 0, MEETING, wait_for_workers=False, master_listen_fd=listening
    )
    store.set(f"here/{rank}", "")
    if rank == 0:
        _require_all_here(store, ranks)
    store.set_timeout(timeout)
    yield store, rank, ranks


def _require_all_here(store: torch.distributed.TCPStore, ranks: int) -> None:
    deadline = time.monotonic() + MEETING.total_seconds()
    while missing := [rank for rank in range(ranks) if not store.check([f"here/{rank}"])]:
        if time.monotonic() > deadline:
            absent = dict.fromkeys(host_of(rank, ranks) for rank in missing)
            raise UserError(
                f"Ranks {', '.join(map(str, missing))} of {ranks} did not come within "
                f"{MEETING.total_seconds() / 60:g} minutes. They are on {', '.join(absent)}: see "
                "whether it reaches "
                f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (a firewall?).",
                field="hosts",
            )
        time.sleep(0.05)


torch.distributed.register_rendezvous_handler(RENDEZVOUS, _rendezvous)


def evaluation_precision(execution: Execution, precision: str) -> torch.autocast:
    """Within, a model on a GPU is evaluated in the precision that it was trained in. On a CPU
    always in float32. Raises UserError where the GPU lacks that precision.

    One model each: copies of its weights in bfloat16 last to the end.
    """
    if execution.device == "cuda":
        gpu.require_precision(precision, execution.tf32)
    reduced = execution.device in EVALUATED_IN_BFLOAT16 and precision == "bfloat16"
    return torch.autocast(execution.device, torch.bfloat16, enabled=reduced)


def choose_product_library() -> None:
    """Have oneDNN make float32 products on CPUs with AVX-512 that are not Intel's: there MKL's take
    up to twice as long. In a bfloat16 training these are attention's.

    torch asks oneDNN only where bfloat16 factors are allowed, which oneDNN makes use of on CPUs
    with AMX alone. Those are Intel's, so what it gives here is float32's (a test holds that).
    """
    cpu = torch.cpu.get_capabilities()
    unaccelerated = (
        cpu.get("avx512_f")
        and not cpu.get("amx_tile")
        and "intel" not in str(cpu.get("cpu_name", "intel")).lower()
    )
    factors = "bf16" if unaccelerated else "none"
    torch.backends.mkldnn.matmul.fp32_precision = factors  # type: ignore[attr-defined]


def _import_deepspeed(compiling: bool) -> Any:
    """DeepSpeed 0.19, without what it would drag in or compile: 1.6 s to the first step instead of
    11 s, and no compiler needed.
    """
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    # Its autotuner imports MLflow where it is installed (1.1 s, 100 MB), only to log to it. `None`
    # makes that one import fail, which it catches. Without this everything still works, slower.
    absent = "mlflow" not in sys.modules
    if absent:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        import deepspeed
        import deepspeed.runtime.compiler
        from deepspeed.utils import logger
    finally:
        if absent:
            del sys.modules["mlflow"]
    logger.setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning
    )  # DeepSpeed's use of it, every step
    # On CPU it would compile a shared-memory all-reduce with g++ (46 s; an error where there is no
    # compiler). Setting the table of what can be compiled, which it otherwise fills on first access
    # by running compilers, says that nothing can.
    deepspeed.ops.__dict__.setdefault("__compatible_ops__", {})
    if not compiling:
        # It looks whether the optimizer is its Muon, whose module compiles kernels as it is
        # imported, and with them imports inductor (1 s). Imported here once with its own stand-in
        # for torch.compile. Without this everything still works, slower.
        original = deepspeed.runtime.compiler.compile
        deepspeed.runtime.compiler.compile = lambda: deepspeed.runtime.compiler.dummy_decorator
        import deepspeed.runtime.zero.muon.original_muon

        deepspeed.runtime.compiler.compile = original
    return deepspeed


class _Forward(nn.Module):
    """What the engine calls: the objective's loss over the model, so that ZeRO-3 gathers whatever
    weights the loss touches.
    """

    def __init__(
        self, model: nn.Module, objective: Loss, settings: TrainingSettings, execution: Execution
    ) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.metrics: StepMetrics = {}
        self.autocast = functools.partial(
            torch.autocast,
            execution.device,
            torch.bfloat16,
            enabled=settings.precision == "bfloat16",
            # Its copies of the weights last to the end of a forward pass: at ZeRO 3 that would be
            # the whole model on each rank
            cache_enabled=execution.zero_stage != 3,
        )
        self.passes = (
            functools.partial(compiled_passes, execution.compiler)
            if execution.compile
            else nullcontext
        )

    def forward(self, micro_batch: Any) -> Tensor:
        """The micro-batch's loss [], in the training precision; of an idle one zero."""
        idle = isinstance(micro_batch, Idle)
        computed = micro_batch.stand_in if idle else micro_batch
        with self.autocast(), self.passes():
            loss, self.metrics = self.objective.loss(self.model, computed)
        if idle:
            loss, self.metrics = loss * 0, dict.fromkeys(self.metrics, (0.0, 0))
        return loss


# Which ranks call something with the model, and how: "by part", each whatever it wants, at stage 3
# within `sharded.reading`; "together", each the same forward passes in the same order; "first",
# rank 0 alone.
Ranks = Literal["by part", "together", "first"]


class Engine:
    """One model under training. `close` gives the model back as a plain one, its weights whole on
    every rank; one that was built sharded (`shard`) is never whole.
    """

    def __init__(
        self, model: nn.Module, objective: Loss, settings: TrainingSettings, execution: Execution
    ) -> None:
        start(execution)
        import deepspeed  # at first by `start`, which keeps MLflow and inductor out

        if execution.device == "cpu":
            choose_product_library()
            if STATE_BYTES * _trained(model) > SMALL * (execution.memory_bytes or math.inf):
                return_freed_memory()
        else:
            gpu.require_precision(settings.precision, execution.tf32)
        self.model, self.settings, self.execution = model, settings, execution
        # On CPUs alone, torch.manual_seed would look for every other device, in each micro-batch
        gpu_too = execution.device != "cpu"
        self._seed = torch.manual_seed if gpu_too else torch.default_generator.manual_seed
        self._built_sharded = is_sharded(model)
        self._skeleton = without_memory(model) if execution.zero_stage == 3 else None
        configuration = _deepspeed_settings(settings, execution, _trained(model))
        swaps_weights = _weights_on_disk(configuration)
        if swaps_weights:
            shard(model, settings, execution)  # a head too
        self._prepared_blocks = prepare_blocks(
            model,
            compiler=execution.compiler if execution.compile else None,
            checkpointing=execution.activation_checkpointing,
            zero_stage=execution.zero_stage,
        )
        model.to(execution.device).train()
        self._forward = _Forward(model, objective, settings, execution)
        self._base = (Muon if settings.muon else FusedAdamW)(model, settings)
        deepspeed.utils.logger.setLevel(
            logging.ERROR
        )  # it warns that AdamW is "untested"; it is elementwise, so it can be shared out
        configuration, self._swap_folders = prepare_swapping(
            configuration, model, execution.world_size
        )
        if swaps_weights:
            swap_out(model, configuration)
        with freed_memory_returned(wanted=self._built_sharded):
            self._deepspeed, *_ = deepspeed.initialize(
                model=self._forward,
                optimizer=self._base,
                dist_init_required=False,
                config=configuration,
            )
        deepspeed.utils.logger.setLevel(logging.WARNING)
        backend = deepspeed.comm.comm.cdb
        if execution.zero_stage in (1, 2) and execution.device == "cpu":
            share_state(backend, self._deepspeed.optimizer)
            self._deepspeed.optimizer.get_grad_norm_direct = _norm_of_shares
        shapes = {name: whole_shape(p) for name, p in model.named_parameters()}
        self._base.connect(list(self._layout()), shapes, execution.device, backend)
        self._sharded = (
            ShardedModel(self._skeleton, dict(model.named_parameters()), execution.device)
            if self._skeleton is not None
            else None
        )

    def step(
        self, micro_batches: Sequence[Any], learning_rate: float, seeds: Sequence[int]
    ) -> tuple[Tensor, list[StepMetrics], float]:
        """One optimizer step. Returns this rank's mean loss [], each micro-batch's metrics, and the
        global gradient norm before clipping.

        `seeds`: torch's random state for each micro-batch, so that dropout is a function of the
        step.
        """
        engine, metrics = self._deepspeed, []
        for group in self._base.param_groups:
            group["lr"] = learning_rate * group["rate_multiplier"]
        total = torch.zeros((), device=self.execution.device)
        # Where memory is what is short, copies of weights are made anew in each pass
        sparing = self.execution.activation_checkpointing or self.execution.zero_stage == 3
        with nullcontext() if sparing else shared_copies():
            for index, (micro_batch, seed) in enumerate(zip(micro_batches, seeds, strict=True)):
                self._seed(seed)
                is_last = index == len(micro_batches) - 1
                engine.set_gradient_accumulation_boundary(is_last)
                loss = engine(micro_batch)
                if is_last:
                    forget_copies()
                total += loss.detach()
                engine.backward(loss / len(micro_batches))
                metrics.append(self._forward.metrics)
        if self.execution.zero_stage == 0:
            norm = nn.utils.clip_grad_norm_(self._forward.parameters(), self.settings.gradient_clip)
            engine.step()
        else:
            engine.step()
            norm = engine.get_global_grad_norm()
        return total / len(micro_batches), metrics, float(norm)

    def fragments(self) -> Iterator[list[Fragment]]:
        """The weights and moments that this rank keeps, in lists: all that is in memory, then each
        part that lies on a disk, which is in memory until the next list is asked for. What a caller
        changes is kept.
        """
        optimizer, swapped = self._deepspeed.optimizer, {}
        if self._swap_folders:
            for group, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
                if optimizer._swappable_optimizer_subgroup(group):
                    swapped[id(flat)] = group
        slices = list(enumerate(filter(lambda part: part.length, self._layout())))
        yield [self._fragment(*each) for each in slices if id(each[1].flat) not in swapped]
        for flat_id, group in swapped.items():
            optimizer._optimizer_states_and_gradient_swap_in(group)
            yield [self._fragment(*each) for each in slices if id(each[1].flat) == flat_id]
            optimizer._writeback_swap_state(group, write_opt_state=True, write_gradients=False)

    def _fragment(self, index: int, part: ParameterSlice) -> Fragment:
        values = {"weight": part.of(part.flat.data)}
        for key, moment in self._base.moments(part.flat).items():
            if key != "step":
                values[key] = part.of(moment)
        owned = (
            self.execution.zero_stage > 0
            or index % self.execution.world_size == self.execution.rank
        )
        return Fragment(part.name, part.start, values, owned)

    def set_steps_taken(self, steps: int) -> None:
        """Tell AdamW how many steps its moments have seen (for the bias correction)."""
        for part in self._layout():
            if "step" in (state := self._base.moments(part.flat)):
                state["step"].fill_(steps)

    def forget_steps(self) -> None:
        """Give the optimizer the moments that it has before its first step."""
        for fragments in self.fragments():
            for fragment in fragments:
                for values in fragment.moments().values():
                    values.zero_()
        self.set_steps_taken(0)

    def _layout(self) -> Iterator[ParameterSlice]:
        """The slices of parameters that this rank steps.

        Stages 1 and 2 cut one flat tensor a group of parameters into world-size parts; stage 3 cuts
        every parameter. Their own tables say where: `_hp_mapping` (also behind
        deepspeed.utils.safe_get_full_fp32_param) and `grad_position`.
        """
        optimizer, stage = self._deepspeed.optimizer, self.execution.zero_stage
        trainable: list[tuple[str, Any]] = [
            (name, p) for name, p in self.model.named_parameters() if p.requires_grad
        ]
        for name, parameter in trainable:
            if stage == 0:
                yield ParameterSlice(name, 0, parameter, 0, parameter.numel())
            elif stage < 3:
                if (mapping := parameter._hp_mapping) is not None:
                    flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
                    high = mapping.hp_fragment_address
                    first = mapping.lp_fragment_address.start
                    yield ParameterSlice(name, first, flat, high.start, high.numel)
            else:
                group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
                first, size = self.execution.rank * length, parameter.ds_numel
                length = max(0, min(length, size - first))
                flat = optimizer.fp32_partitioned_groups_flat[group]
                yield ParameterSlice(name, min(first, size), flat, offset, length)

    def _weights(self) -> dict[str, Tensor]:
        """A copy of every parameter on every rank, each in its whole shape [...]."""
        sharded = self._sharded is not None
        return {
            name: gather(p, self.execution.device) if sharded else p.detach().clone()
            for name, p in self.model.named_parameters()
        }

    @contextmanager
    def evaluating(self, ranks: Ranks) -> Iterator[nn.Module | None]:
        """The model in evaluation mode, without gradients, in the training precision; None on a
        rank that has nothing to do with it. Collective.

        At stage 3 a rank has a block of it at a time.
        """
        with torch.no_grad(), self._forward.autocast():
            if self._sharded is None or self._skeleton is None:
                idle = ranks == "first" and self.execution.rank
                yield None if idle else self.model.eval()
                self.model.train()
            elif ranks == "by part":
                yield self._sharded.model
            elif ranks == "first" and self.execution.rank:
                self._sharded.follow()
                yield None
            else:
                with (
                    freed_memory_returned(wanted=self._built_sharded),
                    self._sharded.reading(apart=ranks == "first"),
                ):
                    yield self._sharded.model

    def close(self) -> None:
        """Free gradients, moments and DeepSpeed's hooks; leave the model whole and plain on every
        rank, or with shapes alone where it was built sharded.

        Its parameters are new ones: DeepSpeed's hooks and flat buffers hang on the old ones and, at
        stage 3, on the modules' dictionaries.
        """
        if self._built_sharded and self._skeleton is not None:
            weights = {name: p.data for name, p in self._skeleton.named_parameters()}
        else:
            weights = self._weights()
        new = {
            id(p): nn.Parameter(weights[name], p.requires_grad)
            for name, p in self.model.named_parameters()
        }
        self._deepspeed.destroy()
        for folder in self._swap_folders:
            folder.remove()
        for module in self.model.modules():
            module._parameters = {
                name: p if p is None else new[id(p)] for name, p in module._parameters.items()
            }
        for block in self._prepared_blocks:
            del block.forward
        del self._deepspeed, self._base, self._forward, self._sharded


def _norm_of_shares(gradients: Sequence[Tensor], *_: Any) -> Tensor:
    """The norm [] of what all ranks have of a group's gradients; -1 where it is not a number.

    In double precision, as DeepSpeed computes it, but without a copy of each gradient in that.
    """
    squares = torch.zeros((), dtype=torch.float64)
    for gradient in gradients:
        for part in gradient.view(-1).split(NORM_TILE):
            wide = part.double()
            squares += wide.dot(wide)
    total = squares.float()
    sum_over_ranks(total)
    return total.sqrt().nan_to_num(-1.0, -1.0)


def shard(model: nn.Module, settings: TrainingSettings, execution: Execution) -> None:
    """Leave each parameter of a model this rank's share of its elements, for an engine at stage 3.
    Those of a parameter that has a shape and no memory are to be filled: `sharded.shares`.
    Collective.
    """
    start(execution)
    configuration = _deepspeed_settings(settings, execution, _trained(model))
    if _weights_on_disk(configuration):  # once an engine has them: until then they are filled
        zero = configuration["zero_optimization"]
        configuration["zero_optimization"] = {**zero, "offload_param": {"device": "cpu"}}
    cut(model, configuration, execution.device)


def _weights_on_disk(configuration: Mapping[str, Any]) -> bool:
    offload = configuration["zero_optimization"].get("offload_param") or {}
    return bool(offload.get("device") == "nvme")


def _trained(model: nn.Module) -> int:
    """How many parameters are trained."""
    return sum(whole_shape(p).numel() for p in model.parameters() if p.requires_grad)


def _deepspeed_settings(
    settings: TrainingSettings, execution: Execution, parameters: int
) -> dict[str, Any]:
    """DeepSpeed's configuration of a training of so many parameters. Raises UserError where a
    profile's `deepspeed` is none to DeepSpeed's schema.
    """
    cuda, stage = execution.device == "cuda", execution.zero_stage
    bucket = bucket_elements(parameters, cuda)
    profiles = execution.deepspeed.get("zero_optimization", {})
    # On CPUs gradients are summed where they are, not first copied together by the rank they go to
    in_place = not cuda and stage == 1 and "reduce_scatter" not in profiles
    zero = {
        "stage": stage,
        "overlap_comm": cuda,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        **({"reduce_scatter": False} if in_place else {}),
        **profiles,
    }
    _check_zero_settings(zero)
    configuration: dict[str, Any] = {
        # counted nowhere: the objective's micro-batches are handed in as they are
        "train_micro_batch_size_per_gpu": 1,
        # accumulation is driven by hand in `step`, so that its count may differ by step
        "gradient_accumulation_steps": 1,
        # stage 0 in float32 is clipped in `step`
        "gradient_clipping": settings.gradient_clip if stage else 0.0,
        "prescale_gradients": in_place,  # divided before they are summed, as otherwise
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # with offload too the optimizer is torch's
        "steps_per_print": None,
        **execution.deepspeed,
        "zero_optimization": zero,
    }
    if settings.precision == execution.communication == "bfloat16":
        configuration["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": list(BFLOAT16_MODULES),
        }
        if stage == 0:  # whose exchange does not look at that
            configuration["communication_data_type"] = "bf16"
    return configuration


def _check_zero_settings(zero: Mapping[str, Any]) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # as in `Engine`

    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"DeepSpeed does not take deepspeed.zero_optimization.{key} "
            f"{first.get('input')!r}: {first['msg']}. Mend the profile.",
            field=f"deepspeed.zero_optimization.{key}",
        ) from None
