"""Votes: which of two answers a person in the chat held the better, a line each in $LINEAGE_HOME/votes/votes.jsonl.

What they become when a recipe's source is `votes: true` is `places.py`'s and `forms.py`'s.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpt_model.alignment.dialogue import Dialogue, messages
from gpt_model.disk import fsync
from gpt_model.errors import CorruptFile

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


def vote(prompt: Dialogue, chosen: Answered, rejected: Answered, sampling: Mapping[str, Any], *, tie: bool = False) -> Vote:
    """A vote cast now."""
    return Vote(
        datetime.now(UTC).isoformat(timespec="seconds"), messages(prompt), chosen.text, rejected.text, tie,
        {"chosen": chosen.fingerprint, "rejected": rejected.fingerprint}, {"chosen": chosen.ref, "rejected": rejected.ref}, dict(sampling),
    )  # fmt: skip


def append(home: Path, cast: Vote) -> Path:
    """Adds a line, on disk when this returns. Any number of processes may. Returns the file."""
    path = home / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(asdict(cast), ensure_ascii=False).encode() + b"\n"
    with _alone(path) as handle:
        os.ftruncate(handle, _whole(handle))  # half a line is a vote whose writer was killed, and that nobody was told is kept
        os.lseek(handle, 0, os.SEEK_END)
        written = 0
        while written < len(line):
            written += os.write(handle, line[written:])
        os.fsync(handle)
    fsync(path.parent)
    return path


def read(home: Path) -> list[Vote]:
    """Every vote, oldest first. Raises CorruptFile naming the line that is none."""
    path = home / FILE
    if not path.is_file():
        return []
    votes = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            votes.append(Vote(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise CorruptFile(f"{path}, line {number} is no vote ({error}). Take that line out of the file.") from None
    return votes


@contextmanager
def _alone(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _whole(handle: int) -> int:
    """The bytes up to the end of the last whole line."""
    end = os.fstat(handle).st_size
    while end > 0:
        begin = max(0, end - 65536)
        if (found := os.pread(handle, end - begin, begin).rfind(b"\n")) >= 0:
            return begin + found + 1
        end = begin
    return 0
