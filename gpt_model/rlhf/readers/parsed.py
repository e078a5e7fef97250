"""A row of human data in one shape, whatever form it had, and the account of the rows that cannot
be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gpt_model.data.skipped_rows import LeftOut
from gpt_model.rlhf.dialogue import Dialogue, Turn


class Answer(NamedTuple):
    """One of a row's ranked answers."""

    text: str
    rank: int  # 0 is the best
    rating: float | None = None


@dataclass(frozen=True)
class ParsedRow:
    """A dialogue with its answer, or a prompt with ranked answers, or a single rated text."""

    id: str  # file and row number; empty until the reader of the file fills it in
    turns: Dialogue  # of demonstrations: ends with the answer; else the prompt
    key: str  # decides which part and which split the row is in
    answers: tuple[Answer, ...] = ()
    rest: str | None = None  # of a prompt that is a text's opening words: how the text goes on
    shortened: bool = False  # a last turn that nobody answered was removed
    # answers of the row that cannot be used: (reason, detail)
    dropped: tuple[tuple[str, str], ...] = ()

    def texts(self) -> tuple[str, ...]:
        return (
            *(turn.text for turn in self.turns),
            *(answer.text for answer in self.answers),
            self.rest or "",
        )


class UnusableRow(Exception):
    """Why a row is left out. `reason`: a few words to count by, the same for all of its kind;
    `detail`: what the row holds.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason, self.detail = reason, detail


def split_key(turns: Sequence[Turn]) -> str:
    """The user's first turn: dialogues that begin alike stay together, however they go on and
    wherever they are cut.
    """
    return next(turn.text for turn in turns if turn.role == "user")


@dataclass
class RowReport:
    """What became of a source's rows: each is used, or left out for a reason; and of the answers
    that are dropped from rows that are used. Its fields are keys of the artifact's report.json.
    """

    rows: int = 0
    kept: int = 0
    shortened: int = 0  # of those kept
    left_out: LeftOut = field(default_factory=LeftOut)
    dropped: LeftOut = field(default_factory=LeftOut)  # answers of rows
