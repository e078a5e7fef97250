"""glibc's allocator, for work that needs little memory more than speed.

The launcher has workers keep what they free (`assets.launch.launcher.MALLOC`), which saves a
training step its page faults. What is built and measured in shares (ZeRO 3) frees whole parameters
and blocks of other sizes than a step's: kept, they would be half as much again as the shares.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

M_MMAP_MAX = -4  # malloc.h
MAPPED_BY_DEFAULT = 65_536  # blocks


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
