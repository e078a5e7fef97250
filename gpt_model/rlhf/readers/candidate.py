"""A row that can be used, whatever form it had, and the account of those that cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gpt_model.rlhf.dialogue import Dialogue, Turn

TOLD = 200  # characters of what is told of a row that is left out


class Answer(NamedTuple):
    """One of a candidate's ranked answers."""

    text: str
    rank: int  # 0 is the best
    rating: float | None = None


@dataclass(frozen=True)
class Candidate:
    """A dialogue with its answer, or a prompt with ranked answers, or a single rated text."""

    id: str  # which row it is; empty until whoever knows that puts it in
    turns: Dialogue  # of demonstrations: ends with the answer; else the prompt
    key: str  # what says which part and which split it is in
    answers: tuple[Answer, ...] = ()
    rest: str | None = None  # how the text goes on that opening words were taken from
    shortened: bool = False  # its last turn was one that nobody answered, and is gone
    dropped: tuple[
        tuple[str, str], ...
    ] = ()  # answers of the row that cannot be used: (reason, what is told of it)

    def texts(self) -> tuple[str, ...]:
        return (
            *(turn.text for turn in self.turns),
            *(answer.text for answer in self.answers),
            self.rest or "",
        )


def key_of(turns: Sequence[Turn]) -> str:
    """What the user says first: dialogues that begin alike stay together, however they go on and
    wherever they are cut.
    """
    return next(turn.text for turn in turns if turn.role == "user")


@dataclass
class Report:
    """What became of a source's rows: each is kept, or left out for a reason. And of answers, where
    a row is kept without them.
    """

    rows: int = 0
    kept: int = 0
    shortened: int = 0  # of those kept
    left_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    dropped: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # answers of rows that are kept without them

    def leave_out(self, reason: str, where: str, told: str = "", count: int = 1) -> None:
        """`where`: which row; the first of each reason is kept, and no more of what it holds than a
        person reads.
        """
        _count(self.left_out, reason, where, told, count)

    def drop(self, reason: str, where: str, told: str) -> None:
        """An answer of a row."""
        _count(self.dropped, reason, where, told, 1)

    def total(self) -> int:
        return sum(one["count"] for one in self.left_out.values())

    def reasons(self) -> str:
        return "; ".join(
            f"{reason}: {one['count']}, the first {one['first']}"
            for reason, one in self.left_out.items()
        )


def _count(
    reasons: dict[str, dict[str, Any]], reason: str, where: str, told: str, count: int
) -> None:
    told = told.encode(errors="backslashreplace").decode()
    told = told if len(told) <= TOLD else f"{told[: TOLD - 1]}…"
    known = reasons.setdefault(reason, {"count": 0, "first": f"{where}: {told}" if told else where})
    known["count"] += count
