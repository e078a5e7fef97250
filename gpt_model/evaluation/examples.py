"""A suite's data: each task's rows, from held-out documents or from a supervised task's file, and the seeded subset that is used.

The rows a task is evaluated on are a function of the corpus, the suite and the seed; only how many of a cloze's first sentences are
dropped depends on the model, through its tokenizer and context.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt_model.data import documents
from gpt_model.data.splits import identity
from gpt_model.errors import UserError
from gpt_model.evaluation import held_out_text
from gpt_model.evaluation.suites import Cloze, Labelled, LastWord, Passages, SuiteTask
from gpt_model.progress import Progress
from gpt_model.tasks.entry import SEGMENTS
from gpt_model.tasks.examples import read_examples

Row = dict[str, Any]

MOST_ROWS = 10_000  # of a task, where the recipe sets no limit: LAMBADA has 5,153, CBT 2,500 a kind
MOST_CHARACTERS = 4_000_000  # of a source's held-out text that questions are made from


@dataclass(frozen=True)
class TaskRows:
    """One task and the rows it is evaluated on."""

    task: SuiteTask
    name: str  # the task's, or for a task by source the source's
    rows: list[Row]
    available: int  # rows there were before the subset
    too_long: int  # rows left out before it: an answer of theirs alone is longer than the model's context

    @property
    def full_name(self) -> str:
        """Unique over suites, and a file name."""
        return f"{self.task.suite}.{self.name}"


@dataclass(frozen=True)
class Material:
    """Where rows may come from: a corpus artifact's folder, the seed of every split, the downloads folder; and what must fit."""

    corpus: Path
    seed: int
    downloads: Path
    encode: Callable[[str], list[int]]
    context: int  # the model's, tokens
    progress: Progress


def rows_of(task: SuiteTask, material: Material, limit: int | None) -> list[TaskRows]:
    """The rows of a suite's task: at most `limit` of each, the same for the same seed. Raises UserError for a task without any."""
    data = task.metadata.data
    if isinstance(data, Passages):
        made = [(source, _passages(material, source, data)) for source in documents.index(material.corpus)]
    elif isinstance(data, LastWord):
        made = [(task.name, _last_words(material, data))]
    elif isinstance(data, Cloze):
        made = [(task.name, _clozes(material, data))]
    else:
        made = [(task.name, _labelled(material, task, data))]
    found = [TaskRows(task, name, *_subset(rows, limit or MOST_ROWS, f"{task.suite} {name}", material)) for name, rows in made]
    if empty := [rows for rows in found if not rows.rows]:
        raise UserError(
            f"suites/{task.suite}.yaml, task {empty[0].name!r} has no examples: {_why_empty(data)} "
            f"Take {task.suite!r} out of the recipe's evaluation.suites, or give it more text."
        )
    if isinstance(data, Cloze):
        return [replace(rows, rows=[_fitted(row, material) for row in rows.rows]) for rows in found]
    return found


def _why_empty(data: Passages | LastWord | Cloze | Labelled) -> str:
    if isinstance(data, Passages):
        return "the source has no held-out document."
    if isinstance(data, LastWord):
        return f"no {data.sentences} held-out sentences in a row end in a word that stands earlier in them and is not among the commonest."
    if isinstance(data, Cloze):
        return f"no held-out document has {data.sentences + 1} sentences with {data.choices} words of a kind in them."
    return f"its {' and '.join(data.splits)} split is empty."


def _subset(rows: Iterator[Row], limit: int, name: str, material: Material) -> tuple[list[Row], int, int]:
    """At most `limit` rows in their order, how many there were, and how many more were too long.

    They are chosen by hash, so that a larger limit contains a smaller one.
    """
    available = too_long = 0

    def ranked() -> Iterator[tuple[bytes, int, Row]]:
        nonlocal available, too_long
        for place, row in enumerate(rows):
            if any(len(answer) > material.context and len(material.encode(f" {answer}")) > material.context for answer in _answers(row)):
                too_long += 1
                continue
            available += 1
            yield hashlib.sha256(f"{material.seed} {name}\0{json.dumps(row, sort_keys=True)}".encode()).digest(), place, row

    chosen = heapq.nsmallest(limit, ranked(), key=lambda item: item[:2])
    return [row for _, _, row in sorted(chosen, key=lambda item: item[1])], available, too_long


def _answers(row: Row) -> list[str]:
    answers: list[str] = row.get("options") or row.get("choices") or []
    return answers


def _held_out(material: Material, source: str) -> Iterator[str]:
    """A source's held-out documents, from the first, until MOST_CHARACTERS of them are read."""
    read = 0
    for text in documents.read(material.corpus, source, "held_out"):
        if read >= MOST_CHARACTERS:
            return
        read += len(text)
        yield text


def _common(material: Material) -> frozenset[str]:
    return held_out_text.commonest_words(text for source in documents.index(material.corpus) for text in _held_out(material, source))


def _passages(material: Material, source: str, data: Passages) -> Iterator[Row]:
    for text in _held_out(material, source):
        for passage in held_out_text.passages(text, data.characters):
            yield {"text": passage}


def _last_words(material: Material, data: LastWord) -> Iterator[Row]:
    common = _common(material)
    for source in documents.index(material.corpus):
        for text in _held_out(material, source):
            for row in held_out_text.last_words(text, data.sentences, common):
                yield {**row, "source": source}


def _clozes(material: Material, data: Cloze) -> Iterator[Row]:
    common = _common(material)
    for source in documents.index(material.corpus):
        for text in _held_out(material, source):
            for row in held_out_text.clozes(text, data.sentences, data.choices, common, material.seed):
                yield {**row, "source": source}


def _fitted(row: Row, material: Material) -> Row:
    """A cloze whose context begins at the first sentence from which it fits the model's context with every choice."""
    context: str = row["context"]
    room = material.context - max(len(material.encode(f" {choice}")) for choice in row["choices"])
    for start, _ in held_out_text.sentences(context):
        if len(material.encode(context[start:])) <= room:
            break
    return {**row, "context": context[start:]}  # at worst the question's own beginning, which lm_eval cuts from the left


def _labelled(material: Material, task: SuiteTask, data: Labelled) -> Iterator[Row]:
    if data.entry is None:
        raise ValueError(f"task {data.task!r} of suite {task.suite!r} was not filled in from the catalogue")
    name = data.task or task.name
    splits = read_examples(name, data.entry, material.seed, material.downloads, material.progress).splits
    examples = [example for split in data.splits for example in splits[split]]
    passages = {identity(text) for example in examples for text in example.segments} if data.entry.split.group else set()
    trained_on = _trained_on(passages, data, material)
    for example in examples:
        if trained_on.isdisjoint(identity(text) for text in example.segments):
            row: Row = dict(zip(SEGMENTS[data.entry.form], example.segments, strict=True))
            yield {**row, **({"options": list(example.options)} if example.options else {}), "label": example.label}


def _trained_on(texts: set[bytes], data: Labelled, material: Material) -> set[bytes]:
    """Which of a task's texts are training documents. A source that holds out at least the task's share has none, and is not read."""
    assert data.entry
    if data.entry.split.group is None:  # its texts are no documents
        return set()
    shares = {"test": data.entry.split.test, "validation": data.entry.split.test + data.entry.split.validation, "training": 1.0}
    share = max(shares[split] for split in data.splits)
    index = documents.index(material.corpus)
    risky = [source for source in index if index[source]["held_out_share"] < share]
    return {known for source in risky for text in documents.read(material.corpus, source, "training") if (known := identity(text)) in texts}
