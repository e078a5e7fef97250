"""Files that are on the disk whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"  # what a file that is being written ends in


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` in one step, on disk before it returns: a reader sees the old or the new,
    whatever dies.

    A reader may take the new file, and rename or remove its folder, before this returns: a
    checkpoint's rank 0 does.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{TEMPORARY}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
    folder = os.open(
        path.parent, os.O_RDONLY
    )  # under this name no longer, perhaps, once the file is there
    try:
        temporary.replace(path)
        os.fsync(folder)
    finally:
        os.close(folder)


def fsync(path: Path) -> None:
    """Puts a file's bytes, or a folder's names, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
