"""Votes: which of two answers a person in the chat preferred, a line each in votes/votes.jsonl of
the store.

What they become where a recipe's source is `votes: true` is `readers/record_readers.py`'s.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from gpt_model.data.local_files import PinnedFile
from gpt_model.errors import CorruptFile, UserError
from gpt_model.io import fsync
from gpt_model.rlhf.dialogue import Dialogue, messages

FILE = Path("votes") / "votes.jsonl"  # below the store's home


@dataclass(frozen=True)
class Answered:
    """An answer, and the artifact that gave it: its fingerprint, and the name it had then."""

    text: str
    fingerprint: str
    ref: str


@dataclass(frozen=True)
class Vote:
    """A line of the file. Of a tie, `chosen` is the answer that stood left."""

    time: str
    messages: list[dict[str, str]]
    chosen: str
    rejected: str
    tie: bool
    artifacts: dict[str, str]
    refs: dict[str, str]
    sampling: dict[str, Any]


def vote(
    prompt: Dialogue,
    chosen: Answered,
    rejected: Answered,
    sampling: Mapping[str, Any],
    *,
    tie: bool = False,
) -> Vote:
    """A vote of this moment."""
    return Vote(
        datetime.now(UTC).isoformat(timespec="seconds"),
        messages(prompt),
        chosen.text,
        rejected.text,
        tie,
        {"chosen": chosen.fingerprint, "rejected": rejected.fingerprint},
        {"chosen": chosen.ref, "rejected": rejected.ref},
        dict(sampling),
    )


def append(home: Path, vote: Vote) -> Path:
    """Adds a line, on disk when this returns. Any number of processes may. Returns the file. Raises
    UserError where it cannot be written.
    """
    path = home / FILE
    line = json.dumps(asdict(vote), ensure_ascii=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as handle:
            _add(handle, line)
        fsync(path.parent)
    except OSError as error:
        raise UserError(
            f"The vote is not kept: {path} could not be written ({error.strerror}). "
            "Make room there, and vote again."
        ) from None
    return path


def _add(handle: int, line: bytes) -> None:
    """All of `line` after the last whole line, or nothing."""
    end = _end_of_whole_lines(handle)
    # half a line is a vote whose writer was killed before it could report success
    os.ftruncate(handle, end)
    try:
        written = 0
        while written < len(line):
            written += os.pwrite(handle, line[written:], end + written)
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, end)
        raise


def read(home: Path) -> list[Vote]:
    """Every vote, oldest first. Raises CorruptFile naming the line that is none."""
    votes = []
    for number, line in enumerate(whole_lines(home).splitlines(), start=1):
        try:
            votes.append(Vote(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise CorruptFile(
                f"{home / FILE}, line {number} is no vote ({error}). "
                "Take that line out of the file."
            ) from None
    return votes


def whole_lines(home: Path) -> bytes:
    """The file as far as its last whole line, at one moment: what stands after it is being written,
    or its writer was killed.
    """
    path = home / FILE
    if not path.is_file():
        return b""
    with _locked(path, os.O_RDONLY, fcntl.LOCK_SH), path.open("rb") as file:
        return file.read(_end_of_whole_lines(file.fileno()))


def pin(home: Path) -> list[PinnedFile]:
    """The votes as they are now, tied to their bytes; none where nobody voted."""
    lines = whole_lines(home)
    digest = hashlib.sha256(lines).hexdigest()
    return [PinnedFile(path=FILE.as_posix(), sha256=digest, bytes=len(lines))] if lines else []


def open_pinned(file: PinnedFile, home: Path) -> BinaryIO:
    """The votes that there were when they were pinned: the file grows while people vote."""
    path = home / file.path
    content = path.read_bytes()[: file.bytes] if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise UserError(
            f"{path} no longer holds the votes that were pinned (sha256 {file.sha256}). "
            "Run again to use it as it is now."
        )
    return io.BytesIO(content)


@contextmanager
def _locked(path: Path, flags: int, lock: int) -> Iterator[int]:
    handle = os.open(path, flags, 0o644)
    try:
        fcntl.flock(handle, lock)
        yield handle
    finally:
        os.close(handle)


def _end_of_whole_lines(handle: int) -> int:
    """Bytes up to the end of the last whole line."""
    end = os.fstat(handle).st_size
    while end > 0:
        begin = max(0, end - 65536)
        if (newline := os.pread(handle, end - begin, begin).rfind(b"\n")) >= 0:
            return begin + newline + 1
        end = begin
    return 0
