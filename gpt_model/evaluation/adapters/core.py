"""CORE's three kinds of question (Li et al. 2024, DataComp-LM), with demonstrations put before them
as karpathy/nanochat does: but whole ones, where it cuts a long prompt from the left.

The rows are those of DCLM's evaluation bundle (MosaicML's gauntlet), whose columns these are.
nanochat shuffles a task's rows by seed 1337 and draws the demonstrations of row i, itself left out,
by seed 1234 + i; DCLM's own code draws otherwise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any

from gpt_model.errors import Unavailable
from gpt_model.evaluation.adapters.registry import Row, Rows, TaskContext, adapter
from gpt_model.evaluation.demonstrations import fitting

Item = Mapping[str, Any]


@adapter("query", "choices", "gold", alone={"shots": 0})
def core_choice(
    rows: Rows, task_context: TaskContext, *, shots: int, delimiter: str = " "
) -> Iterator[Row]:
    """Columns: context, choices, label, lengths, shots: the choice whose tokens are likeliest on
    average is the answer.

    What all the choices begin with is part of the context, as only the tokens that differ count.
    """

    def question(item: Item) -> list[str]:
        return [f"{item['query']}{delimiter}{choice}" for choice in item["choices"]]

    def with_answer(item: Item) -> str:
        return question(item)[item["gold"]]

    for item, shown in _with_demonstrations(rows, shots, with_answer, question, task_context):
        wholes = [shown.text + ending for ending in question(item)]
        context = _context(wholes)
        choices = [whole[len(context) :] for whole in wholes]
        begins = len(task_context.encode(context))
        lengths = [len(task_context.encode(whole)) - begins for whole in wholes]
        yield {
            "context": context,
            "choices": choices,
            "label": int(item["gold"]),
            "lengths": lengths,
            "shots": shown.number,
        }


@adapter("context_options", "continuation", "gold", alone={"shots": 0})
def core_schema(
    rows: Rows, task_context: TaskContext, *, shots: int = 0, delimiter: str = " "
) -> Iterator[Row]:
    """Columns: beginnings, rest, label, shots: the beginning after which the same rest is likelier
    is the answer.
    """

    def question(item: Item) -> list[str]:
        return [f"{begun}{delimiter}{item['continuation']}" for begun in item["context_options"]]

    def with_answer(item: Item) -> str:
        return question(item)[item["gold"]]

    for item, shown in _with_demonstrations(rows, shots, with_answer, question, task_context):
        yield {
            "beginnings": [f"{shown.text}{beginning}" for beginning in item["context_options"]],
            "rest": f"{delimiter}{item['continuation']}",
            "label": int(item["gold"]),
            "shots": shown.number,
        }


@adapter("context", "continuation", alone={"shots": 0})
def core_text(
    rows: Rows, task_context: TaskContext, *, shots: int, delimiter: str = " "
) -> Iterator[Row]:
    """Columns: context, target, shots: whether greedy decoding gives the whole continuation."""

    def with_answer(item: Item) -> str:
        return f"{str(item['context']).strip()}{delimiter}{item['continuation']}"

    def question(item: Item) -> list[str]:
        return [with_answer(item)]

    for item, shown in _with_demonstrations(rows, shots, with_answer, question, task_context):
        whole = f"{shown.text}{with_answer(item)}".lstrip()
        context = f"{shown.text}{str(item['context']).strip()}{delimiter}".strip()
        yield {"context": context, "target": whole[len(context) :], "shots": shown.number}


@dataclass(frozen=True)
class _Shown:
    """The demonstrations before a question."""

    text: str
    number: int


def _with_demonstrations(
    rows: Rows,
    shots: int,
    with_answer: Callable[[Item], str],
    question: Callable[[Item], list[str]],
    task_context: TaskContext,
) -> Iterator[tuple[Item, _Shown]]:
    """Each row with `shots` others before it, an empty line after each, or as many whole ones as
    fit the model's context with the longest ending of its `question`.

    Raises Unavailable where there are too few rows.
    """
    items = list(rows)
    if len(items) <= shots:
        raise Unavailable(
            f"its file has {len(items)} rows, and {shots} demonstrations and a question need "
            f"{shots + 1} at least"
        )
    random.Random(1337).shuffle(items)

    def count(text: str) -> int:
        return len(task_context.encode(text))

    @cache
    def demonstration(index: int) -> tuple[str, int]:
        text = f"{with_answer(items[index])}\n\n"
        return text, count(text)

    for number, item in enumerate(items):
        others = [index for index in range(len(items)) if index != number]
        chosen = random.Random(1234 + number).sample(others, shots) if shots else []
        texts, sizes = [], []
        for index in chosen:
            text, size = demonstration(index)
            texts.append(text)
            sizes.append(size)
        fit = fitting(texts, sizes, question(item), task_context.room, count) if shots else 0
        yield item, _Shown("".join(texts[:fit]), fit)


def _context(wholes: list[str]) -> str:
    """The words that all the texts begin with; each keeps one of its own at least, with the space
    before it.
    """
    words = [text.split(" ") for text in wholes]
    most = min(map(len, words)) - 1
    shared = takewhile(lambda index: len({text[index] for text in words}) == 1, range(most))
    return " ".join(words[0][: len(list(shared))]).rstrip(" ")
