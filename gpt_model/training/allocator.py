"""glibc's allocator, for work that needs little memory more than speed.

The launcher has workers keep what they free (`assets.launch.launcher.MALLOC`), which saves a
training step its page faults, and leaves holes: up to as much again as is in use. So a model that
is large for the memory there is gives back what it frees; beside its products the page faults are
few. What is built and measured in shares (ZeRO 3) frees whole parameters and blocks of other sizes
than a step's: kept, they would be half as much again as the shares.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # malloc.h
MAPPED_BY_DEFAULT = 65_536  # blocks
MAPPED_BYTES, TRIMMED_BYTES = 1 << 16, 1 << 17  # of a block; of what the heap has free at its end
# Of a rank's memory: below it, twice a training's state and as much in activations are a quarter
SMALL = 1 / 8


def return_freed_memory() -> None:
    """From now on what is freed goes back to the system. Without glibc nothing happens."""
    if (libc := _glibc()) is not None:
        # which `freed_memory_returned` goes back to
        os.environ["MALLOC_MMAP_MAX_"] = str(MAPPED_BY_DEFAULT)
        libc.mallopt(M_MMAP_MAX, MAPPED_BY_DEFAULT)
        libc.mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIMMED_BYTES)
        libc.mallopt(M_TOP_PAD, 0)
        libc.malloc_trim(0)


@contextmanager
def freed_memory_returned(*, wanted: bool = True) -> Iterator[None]:
    """Within, large blocks are mapped one by one, and go back to the system as they are freed; what
    the heap has free goes back before and after. Without glibc, or not `wanted`, nothing happens.
    """
    libc = _glibc() if wanted else None
    if libc is None:
        yield
        return
    libc.malloc_trim(0)
    libc.mallopt(M_MMAP_MAX, MAPPED_BY_DEFAULT)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, int(os.environ.get("MALLOC_MMAP_MAX_", MAPPED_BY_DEFAULT)))
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "gnu_get_libc_version") else None
