"""Weights and moments that lie on a disk while they are not in use (offload to NVMe at ZeRO 3,
Rajbhandari et al. 2021): what DeepSpeed needs for that, and the folders that they lie in.
"""

from __future__ import annotations

import ctypes
import fcntl
import math
import mmap
import os
import resource
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpt_model.errors import UserError
from gpt_model.training.sharded import whole_shape

OFFLOADS = ("offload_optimizer", "offload_param")
FIELD = "deepspeed.zero_optimization"
PREFIX = "lineage-swap-"
BUFFERS = 4  # DeepSpeed's default: a weight, its gradient and two moments
COMPILED = ("pin_memory", "async_io")  # each in a folder of torch's
SUB_GROUP = MAX_IN_MEMORY = 1_000_000_000  # DeepSpeed's defaults, in elements
SMALLEST = 1 << 18  # elements of a share that is swapped: 1 MiB; profiles are checked by the same


class SwapFolder:
    """A folder of this process's own below a profile's `nvme_path`. It is locked while it is in
    use: what a killed process has left there is not, and is removed.
    """

    def __init__(self, parent: Path, offload: str) -> None:
        """`offload`: of OFFLOADS, whose it is. Raises UserError where it cannot be made."""
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for other in parent.glob(f"{PREFIX}*"):
                if (lock := _lock(other)) is not None:
                    shutil.rmtree(other, ignore_errors=True)
                    os.close(lock)
            unlocked = Path(tempfile.mkdtemp(prefix="unfinished-", dir=parent))
            self._lock = _lock(unlocked)
            name = unlocked.name.replace("unfinished-", PREFIX)
            self.path = unlocked.rename(parent / name)
        except OSError as error:
            raise UserError(
                f"{parent} is the `nvme_path` of `{offload}`, and no folder can be made there "
                f"({error.strerror}). Name another `nvme_path`.",
                field=f"{FIELD}.{offload}.nvme_path",
            ) from error

    def remove(self) -> None:
        """Remove all that was swapped out."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)


def prepare_swapping(
    configuration: Mapping[str, Any], model: nn.Module, ranks: int
) -> tuple[dict[str, Any], list[SwapFolder]]:
    """DeepSpeed's configuration of a training of `model`, with folders of this process's own for
    what is to lie on a disk and the buffers that it needs; and these folders. Raises UserError
    where this machine cannot.
    """
    zero = dict(configuration["zero_optimization"])
    swapped = [key for key in OFFLOADS if (zero.get(key) or {}).get("device") == "nvme"]
    if not swapped:
        return dict(configuration), []
    trained = sum(whole_shape(p).numel() for p in model.parameters() if p.requires_grad)
    sub_group = min(int(zero.get("sub_group_size", SUB_GROUP)), math.ceil(trained / ranks))
    locked = 0
    if "offload_param" in swapped:
        # DeepSpeed reads ahead into whatever buffer is free, retains what is used again soon, and
        # fails where none is left for what it needs
        zero |= {"stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 0}
        buffers = _parameter_buffers(model, ranks)
        zero["offload_param"] = {**zero["offload_param"], **buffers}
        locked += math.prod(buffers.values())
        if trained > ranks * int(zero["offload_param"].get("max_in_cpu", MAX_IN_MEMORY)):
            locked += sub_group
    if "offload_optimizer" in swapped:
        locked += sub_group * int(zero["offload_optimizer"].get("buffer_count", BUFFERS))
    _require_locked_memory(4 * locked)
    _require_async_io()
    folders = []
    for key in swapped:
        folders.append(SwapFolder(Path(zero[key]["nvme_path"]), key))
        zero[key] = {**zero[key], "nvme_path": str(folders[-1].path)}
    return {**configuration, "zero_optimization": zero}, folders


def _parameter_buffers(model: nn.Module, ranks: int) -> dict[str, int]:
    """One for each share that is in memory at a time: of a block, and of what is in no block."""
    elements = {name: whole_shape(p).numel() for name, p in model.named_parameters()}
    shares = {name: math.ceil(count / ranks) for name, count in elements.items()}
    swapped = {name: share for name, share in shares.items() if share >= SMALLEST}
    blocks = [
        {name for name in swapped if name.startswith(f"{path}.{number}.")}
        for path, module in model.named_modules()
        for number, _ in enumerate(module if isinstance(module, nn.ModuleList) else ())
    ]
    outside = swapped.keys() - set().union(*blocks)
    return {
        "buffer_count": max(1, len(outside) + max(map(len, blocks), default=0)),
        "buffer_size": max(swapped.values(), default=1),
    }


def swap_out(model: nn.Module, configuration: Mapping[str, Any]) -> None:
    """Have the shares of a model that is shared out, and in memory, lie on the disk: of each
    parameter that is large enough, trained or not. `configuration`: `prepare_swapping`'s.
    """
    # As in `engine.Engine`
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.swap_tensor import partitioned_param_swapper as swapping

    swapper = swapping.AsyncPartitionedParameterSwapper(
        DeepSpeedConfig(dict(configuration)), torch.float32
    )
    parameter: Any
    for parameter in model.parameters():
        share, parameter.nvme_swapper = parameter.ds_tensor, swapper
        if swapper.swappable_tensor(numel=share.ds_numel):
            buffer = swapper.get_buffer(parameter, share.ds_numel)
            share.data = buffer.copy_(share)
            share.final_location = "nvme"
            swapper.swap_out_and_release([parameter])


def _lock(folder: Path) -> int | None:
    """The open, locked folder; None where another process has the lock, or has removed it."""
    try:
        opened = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        return None
    return opened


def _require_async_io() -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder  # at first by `engine.start`

    builder, reason = AsyncIOBuilder(), "no compiler, or no libaio"
    try:
        if builder.is_compatible(verbose=False):
            _load(builder)
            return
    except Exception as error:  # of a compiler or a linker, whatever it is
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    raise UserError(
        "Offload to NVMe needs DeepSpeed's async_io, which is compiled on a machine at its first "
        f"use, and here it cannot be ({reason}). Install a C++ compiler and libaio with its "
        "headers (`apt-get install g++ libaio-dev`), or offload to `cpu`.",
        field=FIELD,
    )


def _load(builder: Any) -> None:
    """Compile async_io, or load what is compiled: one process after the other."""
    from torch.utils.cpp_extension import _get_build_directory  # slow, and of compilers alone

    folders = [Path(_get_build_directory(name, verbose=False)) for name in COMPILED]
    locked = os.open(folders[0], os.O_RDONLY)
    try:
        fcntl.flock(locked, fcntl.LOCK_EX)
        for folder in folders:  # torch would wait for ever for a process killed while it compiled
            (folder / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)
    finally:
        os.close(locked)


def _require_locked_memory(size: int) -> None:
    """DeepSpeed ends the process where its buffers, of so many bytes, cannot be locked."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY or size <= limit or _may_lock(limit + mmap.PAGESIZE):
        return
    raise UserError(
        f"Offload to NVMe locks {size / 1e6:,.0f} MB of a rank's memory for its buffers, and this "
        f"system lets a process lock {limit / 1e6:,.0f} MB. Raise that (`ulimit -l unlimited`), or "
        "set a smaller `sub_group_size` in the profile's `deepspeed.zero_optimization`.",
        field=FIELD,
    )


def _may_lock(size: int) -> bool:
    """Whether this process may lock so many bytes, which is beyond the limit, by privilege."""
    with mmap.mmap(-1, size) as memory:
        library = ctypes.CDLL(None)
        address = ctypes.byref(ctypes.c_char.from_buffer(memory))
        locked: bool = library.mlock(address, ctypes.c_size_t(size)) == 0
        del address
        return locked  # unmapping unlocks
