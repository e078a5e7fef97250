"""Demonstrations, comparisons and prompts as the artifacts keep them: a JSON object a line, dialogues as the field writes them.

    demonstrations   {"source", "id", "messages"}                           the last message is the assistant's
    comparisons      {"source", "id", "messages", "responses": [{"text", "rank", "rating"?}]}     rank 0 is the best; equal ones are tied
    prompts          {"source", "id", "messages", "rest"?}                  the last message is the user's, or the answer's opening words

How rows of the world become these is `forms.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from gpt_model.alignment.dialogue import Dialogue, Role, dialogue, messages

PROMPT_ENDS: tuple[Role, ...] = ("user", "assistant")


@dataclass(frozen=True)
class Demonstration:
    """A dialogue whose answers are as they should be."""

    source: str
    id: str  # which row of the source
    turns: Dialogue


@dataclass(frozen=True)
class Response:
    """One of several answers to a prompt."""

    text: str
    rank: int  # 0 is the best
    rating: float | None = None


@dataclass(frozen=True)
class Ranking:
    """A prompt and answers to it, ranked."""

    source: str
    id: str
    prompt: Dialogue
    responses: tuple[Response, ...]

    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse), as places in `responses`: every two that are not tied."""
        every = combinations(range(len(self.responses)), 2)
        ranked = ((a, b) if self.responses[a].rank < self.responses[b].rank else (b, a) for a, b in every)
        return [(a, b) for a, b in ranked if self.responses[a].rank != self.responses[b].rank]


@dataclass(frozen=True)
class Prompt:
    """What is to be answered."""

    source: str
    id: str
    turns: Dialogue
    rest: str | None = None  # how the text went on that opening words were taken from


def read_demonstrations(artifact: Path, split: str) -> list[Demonstration]:
    """`split`: training or held_out."""
    return [Demonstration(row["source"], row["id"], dialogue(row["messages"])) for row in _rows(artifact, split)]


def read_comparisons(artifact: Path, split: str) -> list[Ranking]:
    """`split`: training, held_out or judge."""
    return [
        Ranking(
            row["source"], row["id"], dialogue(row["messages"], ends_with=PROMPT_ENDS),
            tuple(Response(one["text"], one["rank"], one.get("rating")) for one in row["responses"]),
        )
        for row in _rows(artifact, split)
    ]  # fmt: skip


def read_prompts(artifact: Path, split: str) -> list[Prompt]:
    """`split`: training or held_out."""
    return [
        Prompt(row["source"], row["id"], dialogue(row["messages"], ends_with=PROMPT_ENDS), row.get("rest"))
        for row in _rows(artifact, split)
    ]


def _rows(artifact: Path, split: str) -> Iterator[dict[str, Any]]:
    with (artifact / f"{split}.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def as_row(one: Demonstration | Ranking | Prompt) -> dict[str, Any]:
    """As it stands in an artifact."""
    row: dict[str, Any] = {"source": one.source, "id": one.id}
    if isinstance(one, Ranking):
        rated = [{"text": r.text, "rank": r.rank, **({} if r.rating is None else {"rating": r.rating})} for r in one.responses]
        return {**row, "messages": messages(one.prompt), "responses": rated}
    return {**row, "messages": messages(one.turns), **({"rest": one.rest} if isinstance(one, Prompt) and one.rest else {})}


def write(rows: Iterable[Demonstration | Ranking | Prompt], path: Path) -> None:
    path.write_text("".join(json.dumps(as_row(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def by_source(rows: Sequence[Demonstration | Ranking | Prompt]) -> dict[str, int]:
    """How many each source has."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.source] = counts.get(row.source, 0) + 1
    return counts
