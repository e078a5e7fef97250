"""Weights and moments that lie on a disk between the optimizer's steps (offload to NVMe at ZeRO 3,
Rajbhandari et al. 2021): what DeepSpeed needs for that, and the folder that they lie in.
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

from gpt_model.errors import UserError

FIELD = "deepspeed.zero_optimization.offload_optimizer"
PREFIX = "lineage-swap-"
BUFFERS = 4  # DeepSpeed's default: a weight, its gradient and two moments
COMPILED = ("pin_memory", "async_io")  # each in a folder of torch's
SUB_GROUP = 1_000_000_000  # DeepSpeed's default, in elements


class SwapFolder:
    """A folder of this process's own below a profile's `nvme_path`. It is locked while it is in
    use: what a killed process has left there is not, and is removed.
    """

    def __init__(self, parent: Path) -> None:
        """Raises UserError where the folder cannot be made."""
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
                f"{parent} is where the profile has moments lie, and no folder can be made there "
                f"({error.strerror}). Name another `nvme_path`.",
                field=f"{FIELD}.nvme_path",
            ) from error

    def remove(self) -> None:
        """Remove all that was swapped out."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)


def swap_folder(configuration: Mapping[str, Any], parameters: int, ranks: int) -> SwapFolder | None:
    """Where DeepSpeed is to swap so many trained parameters, as its configuration says; None where
    it is to swap nothing. Raises UserError where this machine cannot.
    """
    zero = configuration["zero_optimization"]
    offload = zero.get("offload_optimizer") or {}
    if offload.get("device") != "nvme":
        return None
    elements = min(int(zero.get("sub_group_size", SUB_GROUP)), math.ceil(parameters / ranks))
    _require_locked_memory(4 * elements * int(offload.get("buffer_count", BUFFERS)))
    _require_async_io()
    return SwapFolder(Path(offload["nvme_path"]))


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
        field=f"{FIELD}.device",
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
        field=f"{FIELD}.device",
    )


def _may_lock(size: int) -> bool:
    """Whether this process may lock so many bytes, which is beyond the limit, by privilege."""
    with mmap.mmap(-1, size) as memory:
        library = ctypes.CDLL(None)
        address = ctypes.byref(ctypes.c_char.from_buffer(memory))
        locked: bool = library.mlock(address, ctypes.c_size_t(size)) == 0
        del address
        return locked  # unmapping unlocks
