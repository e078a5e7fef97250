"""Demonstrations, comparisons and prompts as the artifacts keep them: a JSON object a line,
dialogues as the field writes them.

    demonstrations   {"source", "id", "messages"}                           the last message is the assistant's
    comparisons      {"source", "id", "messages", "responses": [{"text", "rank", "rating"?}], "further"?}
    prompts          {"source", "id", "messages", "rest"?}                  the last message is the user's, or the answer's opening words

Rank 0 is the best, and equal ones are tied. A source's rows of one prompt are one line, each
response there once: `further` has a list of ranks for each row after the first. A rank is null
where the row does not have the response.

How rows of the world become these is `forms.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from gpt_model.data.splits import normalised
from gpt_model.rlhf.dialogue import Dialogue, Role, dialogue, messages

T = TypeVar("T")

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
    rank: int | None  # 0 is the best; None where the first row does not have it
    rating: float | None = None


Order = tuple[int | None, ...]  # a rank for each response; None where the row does not have it


@dataclass(frozen=True)
class Ranking:
    """A prompt and answers to it, ranked: by one row of the source, or by all that have the prompt."""

    source: str
    id: str
    prompt: Dialogue
    responses: tuple[Response, ...]
    further: tuple[Order, ...] = ()  # of the rows after the first

    def orders(self) -> tuple[Order, ...]:
        """Of every row."""
        return tuple(response.rank for response in self.responses), *self.further

    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse), as places in `responses`: of each row, every two that are not tied. Rows
        may say the same, or contradict.
        """
        return [
            (a, b) if order[a] < order[b] else (b, a)
            for order, a, b in self._judged()
            if order[a] != order[b]
        ]

    def ties(self) -> int:
        return sum(order[a] == order[b] for order, a, b in self._judged())

    def _judged(self) -> Iterator[tuple[Mapping[int, int], int, int]]:
        """Every two places that a row has both of, and the row's ranks by place."""
        for order in self.orders():
            ranks = {place: rank for place, rank in enumerate(order) if rank is not None}
            for a, b in combinations(ranks, 2):
                yield ranks, a, b

    def only(self, places: Sequence[int]) -> Ranking:
        """Of these responses alone."""
        responses = tuple(self.responses[place] for place in places)
        return replace(
            self,
            responses=responses,
            further=tuple(tuple(order[place] for place in places) for order in self.further),
        )


def together(rankings: Sequence[Ranking]) -> Ranking:
    """Rows of one source and prompt as one ranking, which has each response once. Of equal texts
    the first one's words and rating stay.
    """
    first, *others = rankings
    places: dict[str, int] = {}
    for ranking in rankings:
        for response in ranking.responses:
            places.setdefault(normalised(response.text), len(places))
    orders: list[Order] = []
    found: dict[int, Response] = {}
    for ranking in rankings:
        own = [places[normalised(response.text)] for response in ranking.responses]
        for place, response in zip(own, ranking.responses, strict=True):
            found.setdefault(place, response)
        for order in ranking.orders():
            ranks = dict(zip(own, order, strict=True))
            orders.append(tuple(ranks.get(place) for place in range(len(places))))
    responses = tuple(replace(found[place], rank=orders[0][place]) for place in range(len(places)))
    told = f"{first.id} and {len(others)} others" if others else first.id
    return Ranking(first.source, told, first.prompt, responses, tuple(orders[1:]))


@dataclass(frozen=True)
class Prompt:
    """What is to be answered."""

    source: str
    id: str
    turns: Dialogue
    rest: str | None = None  # how the text went on that opening words were taken from


def read_demonstrations(artifact: Path, split: str) -> list[Demonstration]:
    """`split`: training or held_out."""
    return [
        Demonstration(row["source"], row["id"], dialogue(row["messages"]))
        for row in _rows(artifact, split)
    ]


def read_comparisons(artifact: Path, split: str) -> list[Ranking]:
    """`split`: training, held_out or judge."""
    return [
        Ranking(
            row["source"],
            row["id"],
            dialogue(row["messages"], ends_with=PROMPT_ENDS),
            tuple(
                Response(one["text"], one["rank"], one.get("rating")) for one in row["responses"]
            ),
            tuple(map(tuple, row.get("further", ()))),
        )
        for row in _rows(artifact, split)
    ]


def read_prompts(artifact: Path, split: str) -> list[Prompt]:
    """`split`: training or held_out."""
    return [
        Prompt(
            row["source"],
            row["id"],
            dialogue(row["messages"], ends_with=PROMPT_ENDS),
            row.get("rest"),
        )
        for row in _rows(artifact, split)
    ]


def evenly(rows: Sequence[T], most: int) -> list[T]:
    """At most so many of them, at even distances, as sources stand one after another."""
    return (
        [rows[len(rows) * number // most] for number in range(most)]
        if len(rows) > most
        else list(rows)
    )


def _rows(artifact: Path, split: str) -> Iterator[dict[str, Any]]:
    with (artifact / f"{split}.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def as_row(one: Demonstration | Ranking | Prompt) -> dict[str, Any]:
    """As it stands in an artifact."""
    row: dict[str, Any] = {"source": one.source, "id": one.id}
    if isinstance(one, Ranking):
        rated = [
            {"text": r.text, "rank": r.rank, **({} if r.rating is None else {"rating": r.rating})}
            for r in one.responses
        ]
        return {
            **row,
            "messages": messages(one.prompt),
            "responses": rated,
            **({"further": one.further} if one.further else {}),
        }
    return {
        **row,
        "messages": messages(one.turns),
        **({"rest": one.rest} if isinstance(one, Prompt) and one.rest else {}),
    }


def write(rows: Iterable[Demonstration | Ranking | Prompt], path: Path) -> None:
    path.write_text(
        "".join(json.dumps(as_row(row), ensure_ascii=False) + "\n" for row in rows),
        encoding="utf-8",
    )


def by_source(rows: Sequence[Demonstration | Ranking | Prompt]) -> dict[str, int]:
    """How many each source has."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.source] = counts.get(row.source, 0) + 1
    return counts
