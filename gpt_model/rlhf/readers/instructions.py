"""Labelled examples as instructions: what a person would ask, and the label in words for an answer
(Wei et al. 2021, FLAN, in small).

Of a task's training split alone, so that what it is evaluated on stays unseen. Three ways to ask
each form, of which an example's own text chooses one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from gpt_model.finetuning.entry import TaskEntry
from gpt_model.finetuning.examples import Example, read_examples
from gpt_model.progress import Progress
from gpt_model.rlhf.dialogue import Turn
from gpt_model.rlhf.readers.candidate import Candidate
from gpt_model.rlhf.readers.source import HumanSource

# {labels}: the task's labels, "positive or negative"; {about}: its description; {a}, {b}: the
# segments; {options}: one a line.
WAYS: dict[str, tuple[str, ...]] = {
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


def of_task(
    source: HumanSource, downloads: Path, progress: Progress, seed: int
) -> Iterator[tuple[str, Candidate]]:
    """Its training examples, split by that seed, as the task's own evaluation splits them."""
    assert source.task and source.entry, "the entry is written out when a build is planned"
    examples = read_examples(source.task, source.entry, seed, downloads, progress)
    for example in examples.splits["training"]:
        asked, answer = asked_of(source.entry, example)
        yield (
            f"{source.task}, row {example.id}",
            Candidate("", (Turn("user", asked), Turn("assistant", answer)), example.segments[0]),
        )


def asked_of(entry: TaskEntry, example: Example) -> tuple[str, str]:
    """(what is asked, the answer)"""
    ways = WAYS[entry.form]
    way = ways[hashlib.sha256("\n".join(example.segments).encode()).digest()[0] % len(ways)]
    labels = entry.label_names()
    segments = dict(zip("ab", example.segments, strict=False))
    options = "\n".join(f"- {option}" for option in example.options)
    asked = way.format(labels=" or ".join(labels), options=options, **segments)
    return asked, example.options[example.label] if example.options else labels[example.label]
