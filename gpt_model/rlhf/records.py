"""Demonstrations, comparisons and prompts as artifacts store them: a JSON object a line, dialogues
as lists of {"role", "content"}.

    demonstrations   {"source", "id", "messages"}
                     the last message is the assistant's
    comparisons      {"source", "id", "messages", "responses": [{"text", "rank", "rating"?}],
                      "further"?}
    prompts          {"source", "id", "messages", "rest"?}
                     the last message is the user's, or the answer's opening words

Rank 0 is the best, and equal ones are tied. A source's rows of one prompt are one line, each
response there once: `further` has a list of ranks for each row after the first. A rank is null
where the row does not have the response.

How rows of other people's files become these is `readers/`'.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from gpt_model.data.splits import normalised
from gpt_model.io import write_json_lines
from gpt_model.rlhf.dialogue import Dialogue, Role, dialogue, messages

T = TypeVar("T")

PROMPT_ENDS: tuple[Role, ...] = ("user", "assistant")
EXCERPT = 60  # characters of a sample whose text the licence does not cover


@dataclass(frozen=True)
class Demonstration:
    """A dialogue whose answers a model is to imitate."""

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
    """A prompt and its answers, ranked by one row of the source or by all that have the prompt."""

    source: str
    id: str
    prompt: Dialogue
    responses: tuple[Response, ...]
    further: tuple[Order, ...] = ()  # of the rows after the first

    def orders(self) -> tuple[Order, ...]:
        """Of every row."""
        return tuple(response.rank for response in self.responses), *self.further

    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse), as indices of `responses`: of each row, every two that are not tied.
        Rows may agree or contradict.
        """
        return [
            (a, b) if ranks[a] < ranks[b] else (b, a)
            for ranks, a, b in self._compared()
            if ranks[a] != ranks[b]
        ]

    def ties(self) -> int:
        return sum(ranks[a] == ranks[b] for ranks, a, b in self._compared())

    def _compared(self) -> Iterator[tuple[Mapping[int, int], int, int]]:
        """Every two indices that a row has both of, and the row's ranks by index."""
        for order in self.orders():
            ranks = {index: rank for index, rank in enumerate(order) if rank is not None}
            for a, b in combinations(ranks, 2):
                yield ranks, a, b

    def only(self, indices: Sequence[int]) -> Ranking:
        """Of these responses alone."""
        responses = tuple(self.responses[index] for index in indices)
        further = tuple(tuple(order[index] for index in indices) for order in self.further)
        return replace(self, responses=responses, further=further)


def merge_rankings(rankings: Sequence[Ranking]) -> Ranking:
    """Rows of one source and prompt as one ranking, which has each response once. Of equal texts
    the first spelling and rating stay.
    """
    first, *others = rankings
    distinct: dict[str, Response] = {}
    for ranking in rankings:
        for response in ranking.responses:
            distinct.setdefault(normalised(response.text), response)
    orders: list[Order] = []
    for ranking in rankings:
        texts = [normalised(response.text) for response in ranking.responses]
        for order in ranking.orders():
            ranks = dict(zip(texts, order, strict=True))
            orders.append(tuple(ranks.get(text) for text in distinct))
    responses = tuple(
        replace(response, rank=rank)
        for response, rank in zip(distinct.values(), orders[0], strict=True)
    )
    id_ = f"{first.id} and {len(others)} others" if others else first.id
    return Ranking(first.source, id_, first.prompt, responses, tuple(orders[1:]))


@dataclass(frozen=True)
class Prompt:
    """A dialogue that a model is to answer."""

    source: str
    id: str
    turns: Dialogue
    rest: str | None = None  # where it ends with a text's opening words: how the text goes on


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
                Response(response["text"], response["rank"], response.get("rating"))
                for response in row["responses"]
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


def evenly(rows: Sequence[T], limit: int) -> list[T]:
    """At most `limit` of them, at even distances, as sources stand one after another."""
    if len(rows) <= limit:
        return list(rows)
    return [rows[len(rows) * number // limit] for number in range(limit)]


def _rows(artifact: Path, split: str) -> Iterator[dict[str, Any]]:
    with (artifact / f"{split}.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def as_row(record: Demonstration | Ranking | Prompt) -> dict[str, Any]:
    """A line of an artifact's file."""
    turns = record.prompt if isinstance(record, Ranking) else record.turns
    row: dict[str, Any] = {"source": record.source, "id": record.id, "messages": messages(turns)}
    if isinstance(record, Prompt) and record.rest:
        row["rest"] = record.rest
    if isinstance(record, Ranking):
        row["responses"] = [
            {"text": r.text, "rank": r.rank, **({} if r.rating is None else {"rating": r.rating})}
            for r in record.responses
        ]
        if record.further:
            row["further"] = record.further
    return row


def write(records: Iterable[Demonstration | Ranking | Prompt], path: Path) -> None:
    write_json_lines(path, map(as_row, records))


def unlicensed_sources(folder: Path) -> set[str]:
    """Sources of demonstrations, comparisons or prompts, read from their artifact, whose licence
    does not cover their text.
    """
    if not (path := folder / "report.json").is_file():
        return set()
    sources = json.loads(path.read_text(encoding="utf-8"))["sources"]
    return {name for name, report in sources.items() if not report.get("show_text", True)}


def excerpt(text: str) -> str:
    """As much of an unlicensed text as a page may show."""
    return text[:EXCERPT] + ("…" if len(text) > EXCERPT else "")
