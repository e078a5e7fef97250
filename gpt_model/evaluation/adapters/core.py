"""CORE's three kinds of question (Li et al. 2024, DataComp-LM), with demonstrations put before them
as karpathy/nanochat does.

The rows are those of DCLM's evaluation bundle (MosaicML's gauntlet), whose columns these are.
nanochat shuffles a task's rows by seed 1337 and draws the demonstrations of row i, itself left out,
by seed 1234 + i; DCLM's own code draws otherwise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from typing import Any

from gpt_model.errors import UserError
from gpt_model.evaluation.adapters.registry import Row, Rows, TaskContext, adapter

Item = Mapping[str, Any]


@adapter("query", "choices", "gold")
def core_choice(
    rows: Rows, task_context: TaskContext, *, shots: int, delimiter: str = " "
) -> Iterator[Row]:
    """Columns: context, choices, label, lengths: the choice whose tokens are likeliest on average
    is the answer.

    What all the choices begin with is part of the context, as only the tokens that differ count.
    """

    def with_answer(item: Item) -> str:
        return f"{item['query']}{delimiter}{item['choices'][item['gold']]}"

    for item, shown in _with_demonstrations(rows, shots, with_answer):
        wholes = [f"{shown}{item['query']}{delimiter}{choice}" for choice in item["choices"]]
        context = _context(wholes)
        choices = [whole[len(context) :] for whole in wholes]
        begins = len(task_context.encode(context))
        lengths = [len(task_context.encode(whole)) - begins for whole in wholes]
        yield {
            "context": context,
            "choices": choices,
            "label": int(item["gold"]),
            "lengths": lengths,
        }


@adapter("context_options", "continuation", "gold")
def core_schema(
    rows: Rows, task_context: TaskContext, *, shots: int = 0, delimiter: str = " "
) -> Iterator[Row]:
    """Columns: beginnings, rest, label: the beginning after which the same rest is likelier is the
    answer.
    """

    def with_answer(item: Item) -> str:
        return f"{item['context_options'][item['gold']]}{delimiter}{item['continuation']}"

    for item, shown in _with_demonstrations(rows, shots, with_answer):
        beginnings = [f"{shown}{beginning}" for beginning in item["context_options"]]
        yield {
            "beginnings": beginnings,
            "rest": f"{delimiter}{item['continuation']}",
            "label": int(item["gold"]),
        }


@adapter("context", "continuation")
def core_text(
    rows: Rows, task_context: TaskContext, *, shots: int, delimiter: str = " "
) -> Iterator[Row]:
    """Columns: context, target: whether greedy decoding gives the whole continuation."""

    def with_answer(item: Item) -> str:
        return f"{str(item['context']).strip()}{delimiter}{item['continuation']}"

    for item, shown in _with_demonstrations(rows, shots, with_answer):
        context = f"{shown}{str(item['context']).strip()}{delimiter}".strip()
        yield {"context": context, "target": f"{shown}{with_answer(item)}".lstrip()[len(context) :]}


def _with_demonstrations(
    rows: Rows, shots: int, with_answer: Callable[[Item], str]
) -> Iterator[tuple[Item, str]]:
    """Each row with `shots` others before it, an empty line after each."""
    items = list(rows)
    if len(items) <= shots:
        raise UserError(
            f"A file of CORE's has {len(items)} rows, and {shots} demonstrations and a question "
            f"need {shots + 1} at least."
        )
    random.Random(1337).shuffle(items)
    for number, item in enumerate(items):
        others = [index for index in range(len(items)) if index != number]
        chosen = random.Random(1234 + number).sample(others, shots) if shots else []
        yield item, "".join(f"{with_answer(items[index])}\n\n" for index in chosen)


def _context(wholes: list[str]) -> str:
    """The words that all the texts begin with; each keeps one of its own at least, with the space
    before it.
    """
    words = [text.split(" ") for text in wholes]
    most = min(map(len, words)) - 1
    shared = takewhile(lambda index: len({text[index] for text in words}) == 1, range(most))
    return " ".join(words[0][: len(list(shared))]).rstrip(" ")
