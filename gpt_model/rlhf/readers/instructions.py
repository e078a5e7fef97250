"""Labelled examples as instructions: a person's request, and the label's name as the answer (Wei et
al. 2021, FLAN, in small).

Of a task's training split alone, so that what it is evaluated on stays unseen. Each form has three
templates; an example's own text chooses one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from gpt_model.finetuning.entry import TaskEntry
from gpt_model.finetuning.examples import Example, read_examples
from gpt_model.progress import Progress
from gpt_model.rlhf.dialogue import Turn
from gpt_model.rlhf.readers.parsed import ParsedRow
from gpt_model.rlhf.readers.source import HumanSource

# {labels}: the task's labels, "positive or negative"; {a}, {b}: the segments; {options}: one a line
TEMPLATES: dict[str, tuple[str, ...]] = {
    "classification": (
        "Is this {labels}?\n\n{a}",
        "{a}\n\nSay whether this is {labels}.",
        "Which is it, {labels}?\n\n{a}",
    ),
    "entailment": (
        "{a}\n\nQuestion: {b}\nAnswer {labels}.",
        "Read this and answer {labels}.\n\n{a}\n\n{b}",
        "{b} Answer {labels} from what follows.\n\n{a}",
    ),
    "similarity": (
        "First: {a}\nSecond: {b}\n\nDo they say the same? Answer {labels}.",
        "Are these two {labels}?\n\n{a}\n{b}",
        "{a}\n{b}\n\n{labels}?",
    ),
    "multiple_choice": (
        "{a}\n\n{options}\n\nWhich is right?",
        "{a}\nChoose one:\n{options}",
        "Which of these goes with it?\n\n{a}\n\n{options}",
    ),
}


def demonstrations_of_task(
    source: HumanSource, downloads: Path, progress: Progress, seed: int
) -> Iterator[tuple[str, ParsedRow]]:
    """(which row, the row) of its training examples. `seed`: of the splits, the same as where the
    task is evaluated.
    """
    assert source.task and source.entry, "the entry is written out when a build is planned"
    examples = read_examples(source.task, source.entry, seed, downloads, progress)
    for example in examples.splits["training"]:
        request, answer = instruction_of(source.entry, example)
        turns = (Turn("user", request), Turn("assistant", answer))
        yield f"{source.task}, row {example.id}", ParsedRow("", turns, example.segments[0])


def instruction_of(entry: TaskEntry, example: Example) -> tuple[str, str]:
    """(request, answer)"""
    templates = TEMPLATES[entry.form]
    digest = hashlib.sha256("\n".join(example.segments).encode()).digest()
    labels = entry.label_names()
    request = templates[digest[0] % len(templates)].format(
        labels=" or ".join(labels),
        options="\n".join(f"- {option}" for option in example.options),
        **dict(zip("ab", example.segments, strict=False)),
    )
    return request, example.options[example.label] if example.options else labels[example.label]
