"""Locks on files, held by an open file description: whoever inherits the descriptor holds the lock
too (flock(2)). And a lock on this process's use of Alembic.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLL_SECONDS = 0.05
WORD_SECONDS = 1.0

# Alembic holds the migration that runs in globals of its modules. MLflow's first delivery migrates
# in a thread, and may meet the next run of a ladder, for which Dagster makes a database: unless one
# waits, both fail, or one's tables land in the other's file.
migrating = threading.Lock()


@contextmanager
def locked(
    path: Path, *, waiting: Callable[[str], None] | None = None, patience: float = float("inf")
) -> Iterator[int]:
    """Holds `path` alone; yields its file descriptor. Waits for another holder, calling
    `waiting(who)` once a second.

    A process that inherits the descriptor holds the lock until it too is gone. Raises TimeoutError
    after `patience` seconds.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        began = time.monotonic()
        next_word = began + WORD_SECONDS
        while not _try(handle):
            now = time.monotonic()
            if now - began > patience:
                raise TimeoutError(f"{path} has been held for {patience:g} s by {_holder(handle)}")
            if waiting and now >= next_word:
                waiting(_holder(handle))
                next_word = now + WORD_SECONDS
            time.sleep(POLL_SECONDS)
        with suppress(OSError):  # a full disk: only the others' message is the poorer
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield handle
    finally:
        os.close(handle)  # not LOCK_UN, which would take it from whoever inherited it


@functools.cache
def process_lock(folder: Path) -> str:
    """The name of a lock in `folder` that this process holds until it ends, however it ends. Hosts
    that share the folder see by `is_held` whether it runs: a process's number is one host's.
    """
    path = folder / f"process.{secrets.token_hex(8)}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    fcntl.flock(handle, fcntl.LOCK_EX)
    atexit.register(path.unlink, missing_ok=True)
    return path.name


def is_held(path: Path) -> bool:
    """Whether the process still runs that made `path` by `process_lock`. Removes what a killed one
    left.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    with suppress(OSError):  # who may only read the store leaves it
        path.unlink(missing_ok=True)
    return False


def _try(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(handle: int) -> str:
    return os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
