"""A suite's data: each task's rows, from held-out documents, a supervised task's file or a public
data set; the seeded subset used.

The rows a task is evaluated on are a function of the corpus, the suite and the seed; only how many
of a cloze's first sentences are dropped depends on the model, through its tokenizer and context.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpt_model.data import documents
from gpt_model.data.formats import MissingColumn
from gpt_model.data.splits import identity
from gpt_model.errors import UserError
from gpt_model.evaluation import held_out_text, public, synthetic
from gpt_model.evaluation.adapters import MAKERS
from gpt_model.evaluation.results import Demonstrations
from gpt_model.evaluation.stop_words import suppressed
from gpt_model.evaluation.suites import (
    Arithmetic,
    Cloze,
    Data,
    Dataset,
    Labelled,
    LastWord,
    Passages,
    Scramble,
    SuiteTask,
)
from gpt_model.finetuning.entry import SEGMENTS, SplitName
from gpt_model.finetuning.examples import read_examples
from gpt_model.progress import Progress

Row = dict[str, Any]

# Rows of a task, where the recipe sets no limit. A public set is evaluated whole: the largest, One
# Billion Word's test set, has 306,688. As lm_eval has some 5 KB a row in memory beside its prompt,
# the bound comes to 2 GB, which a file without end does not pass either.
MOST_OF_A_SET = 400_000
MOST_MADE = 10_000  # of what the recipe's own text gives without end
MOST_DEMONSTRATIONS = 2_000  # that a task's are drawn from
MOST_CHARACTERS = 4_000_000  # of a source's held-out text that questions are made from


@dataclass(frozen=True)
class TaskRows:
    """One task and the rows it is evaluated on."""

    task: SuiteTask
    name: str  # the task's, or for a task by source the source's
    rows: list[Row]
    available: int  # rows there were before the subset
    too_long: (
        int  # rows left out before it: an answer of theirs alone is longer than the model's context
    )
    demonstrations: Demonstrations | None = None  # where the task has `shots`
    texts: list[str] = field(
        default_factory=list
    )  # then: each example's own text, without demonstrations
    alone: str | None = (
        None  # full name of the task with the same answers after the answer context only
    )
    scored: bool = True  # False for such a task

    @property
    def full_name(self) -> str:
        """Unique over suites, and a file name."""
        return f"{self.task.suite}.{self.name}"


@dataclass(frozen=True)
class Material:
    """Where rows may come from: a corpus artifact's folder, the seed of every split, the downloads
    folder; and what must fit.
    """

    corpus: Path | None  # none of a model that was imported, without text of one's own
    seed: int
    downloads: Path
    encode: Callable[[str], list[int]]
    context: int  # the model's, tokens
    progress: Progress

    @property
    def text(self) -> Path:
        """The corpus. Raises UserError where there is none."""
        if self.corpus is None:
            raise UserError(
                "It is made of held-out text, and this recipe has no corpus: add one, or leave the suite out."
            )
        return self.corpus


def rows_of(task: SuiteTask, material: Material, limit: int | None) -> list[TaskRows]:
    """The rows of a suite's task: at most `limit` of each, the same for the same seed; else a
    public set's every row.

    Raises UserError for a task without any, NotRun for one whose public data set cannot be had
    here.
    """
    data, task = task.metadata.data, _without_stop_words(task, material)
    if isinstance(data, Passages):
        made = [
            (source, _passages(material, source, data)) for source in documents.index(material.text)
        ]
    else:
        made = [(task.name, _made(material, task, data))]
    most = limit or (MOST_OF_A_SET if isinstance(data, (Dataset, Labelled)) else MOST_MADE)
    found = [
        TaskRows(task, name, *_subset(rows, most, f"{task.suite} {name}", material))
        for name, rows in made
    ]
    if empty := [rows for rows in found if not rows.rows]:
        raise UserError(
            f"suites/{task.suite}.yaml, task {empty[0].name!r} has no examples: {_why_empty(data)} "
            f"Take {task.suite!r} out of the recipe's evaluation.suites, or give it more text."
        )
    if isinstance(data, Cloze):
        return [replace(rows, rows=[_fitted(row, material) for row in rows.rows]) for rows in found]
    return found


def demonstrations_of(task: SuiteTask, material: Material) -> list[Row]:
    """What few-shot demonstrations of a task are drawn from: rows of the split its data names for
    it, else of the evaluated one.

    Raises NotRun where that cannot be had here.
    """
    data = task.metadata.data
    if isinstance(data, Arithmetic):
        rows: Iterator[Row] = iter(synthetic.arithmetic(data.problems, material.seed)[1])
    elif isinstance(data, Dataset) and data.demonstrations:
        changes = {
            "source": data.demonstrations,
            "options": {**data.options, **data.demonstration_options},
        }
        rows = _public(material, task, data.model_copy(update=changes), "/demonstrations")
    elif isinstance(data, Labelled) and data.demonstrations:
        rows = _labelled_rows(material, task, data, [data.demonstrations])
    else:
        rows = _made(material, task, data)
    return _subset(rows, MOST_DEMONSTRATIONS, f"{task.suite} {task.name} demonstrations", material)[
        0
    ]


def _without_stop_words(task: SuiteTask, material: Material) -> SuiteTask:
    """Where a task's answer may not begin with a stop word, `begin_suppress_tokens` as
    `transformers` takes it: the tokens themselves.
    """
    settings = task.keys.get("generation_kwargs") or {}
    if settings.get("begin_suppress_tokens") != "stop_words":
        return task
    settings = {**settings, "begin_suppress_tokens": suppressed(material.encode)}
    return task.model_copy(update={"keys": {**task.keys, "generation_kwargs": settings}})


def _made(material: Material, task: SuiteTask, data: Data) -> Iterator[Row]:
    """Every row of a task's data. Passages are by source instead."""
    if isinstance(data, LastWord):
        return _last_words(material, data)
    if isinstance(data, Cloze):
        return _clozes(material, data)
    if isinstance(data, Dataset):
        return _public(material, task, data)
    if isinstance(data, Arithmetic):
        return iter(synthetic.arithmetic(data.problems, material.seed)[0])
    if isinstance(data, Scramble):
        texts = (
            text
            for source in documents.index(material.text)
            for text in _held_out(material, source)
        )
        return synthetic.scrambled(data.scramble, synthetic.common_words(texts), material.seed)
    assert isinstance(data, Labelled)
    return _labelled(material, task, data)


def _why_empty(data: Data) -> str:
    if isinstance(data, Passages):
        return "the source has no held-out document."
    if isinstance(data, LastWord):
        return f"no {data.sentences} held-out sentences in a row end in a word that stands earlier in them and is not among the commonest."
    if isinstance(data, Cloze):
        return f"no held-out document has {data.sentences + 1} sentences with {data.choices} words of a kind in them."
    if isinstance(data, Dataset):
        return f"{data.source.name} has no row of which {data.make!r} makes one."
    if isinstance(data, Labelled):
        return f"its {' and '.join(data.splits)} split is empty."
    return "no held-out document has a word that can be scrambled."


def _subset(
    rows: Iterator[Row], limit: int, name: str, material: Material
) -> tuple[list[Row], int, int]:
    """At most `limit` rows in their order, how many there were, and how many more were too long.

    They are chosen by hash, so that a larger limit contains a smaller one.
    """
    available = too_long = 0

    def ranked() -> Iterator[tuple[bytes, int, Row]]:
        nonlocal available, too_long
        for place, row in enumerate(rows):
            if any(
                len(answer) > material.context
                and len(material.encode(f" {answer}")) > material.context
                for answer in _answers(row)
            ):
                too_long += 1
                continue
            available += 1
            yield (
                hashlib.sha256(
                    f"{material.seed} {name}\0{json.dumps(row, sort_keys=True)}".encode()
                ).digest(),
                place,
                row,
            )

    chosen = heapq.nsmallest(limit, ranked(), key=lambda item: item[:2])
    return [row for _, _, row in sorted(chosen, key=lambda item: item[1])], available, too_long


def _answers(row: Row) -> list[str]:
    answers: list[str] = row.get("options") or row.get("choices") or []
    return answers


def _held_out(material: Material, source: str) -> Iterator[str]:
    """A source's held-out documents, from the first, until MOST_CHARACTERS of them are read."""
    read = 0
    for text in documents.read(material.text, source, "held_out"):
        if read >= MOST_CHARACTERS:
            return
        read += len(text)
        yield text


def _common(material: Material) -> frozenset[str]:
    return held_out_text.commonest_words(
        text for source in documents.index(material.text) for text in _held_out(material, source)
    )


def _passages(material: Material, source: str, data: Passages) -> Iterator[Row]:
    for text in _held_out(material, source):
        for passage in held_out_text.passages(text, data.characters):
            yield {"text": passage}


def _last_words(material: Material, data: LastWord) -> Iterator[Row]:
    common = _common(material)
    for source in documents.index(material.text):
        for text in _held_out(material, source):
            for row in held_out_text.last_words(text, data.sentences, common):
                yield {**row, "source": source}


def _clozes(material: Material, data: Cloze) -> Iterator[Row]:
    common = _common(material)
    for source in documents.index(material.text):
        for text in _held_out(material, source):
            for row in held_out_text.clozes(
                text, data.sentences, data.choices, common, material.seed
            ):
                yield {**row, "source": source}


def _fitted(row: Row, material: Material) -> Row:
    """A cloze whose context begins at the first sentence from which it fits the model's context
    with every choice.
    """
    context: str = row["context"]
    room = material.context - max(len(material.encode(f" {choice}")) for choice in row["choices"])
    for start, _ in held_out_text.sentences(context):
        if len(material.encode(context[start:])) <= room:
            break
    return {
        **row,
        "context": context[start:],
    }  # at worst the question's own beginning, which lm_eval cuts from the left


def _public(material: Material, task: SuiteTask, data: Dataset, part: str = "") -> Iterator[Row]:
    """A public data set's rows under the maker's names of their columns, as the maker makes them."""
    columns = list(dict.fromkeys(data.columns.values()))
    try:
        found = public.rows(data.source, columns, material.downloads, material.progress)
        named = ({name: row[column] for name, column in data.columns.items()} for row in found)
        yield from MAKERS[data.make](named, material, **data.options)
    except MissingColumn as error:
        if reason := data.without.get(error.column):
            raise public.NotRun(
                public.what_to_do(reason, task.suite, task.name + part, columns)
            ) from None
        raise
    except public.NotRun as reason:
        raise public.NotRun(
            public.what_to_do(str(reason), task.suite, task.name + part, columns)
        ) from None


def _labelled(material: Material, task: SuiteTask, data: Labelled) -> Iterator[Row]:
    """A supervised task's examples, but for those about a document that was trained on."""
    rows = list(_labelled_rows(material, task, data, data.splits))
    assert data.entry
    segments = SEGMENTS[data.entry.form]
    passages = (
        {identity(row[name]) for row in rows for name in segments}
        if data.entry.split.group
        else set()
    )
    trained_on = _trained_on(passages, data, material)
    yield from (
        row for row in rows if trained_on.isdisjoint(identity(row[name]) for name in segments)
    )


def _labelled_rows(
    material: Material, task: SuiteTask, data: Labelled, names: Sequence[SplitName]
) -> Iterator[Row]:
    if data.entry is None:
        raise ValueError(
            f"task {data.task!r} of suite {task.suite!r} was not filled in from the catalogue"
        )
    if data.not_run:
        raise public.NotRun(data.not_run)
    splits = read_examples(
        data.task or task.name, data.entry, material.seed, material.downloads, material.progress
    ).splits
    for example in (example for name in names for example in splits[name]):
        row: Row = dict(zip(SEGMENTS[data.entry.form], example.segments, strict=True))
        yield {
            **row,
            **({"options": list(example.options)} if example.options else {}),
            "label": example.label,
        }


def _trained_on(texts: set[bytes], data: Labelled, material: Material) -> set[bytes]:
    """Which of a task's texts are training documents. A source that holds out at least the task's
    share has none, and is not read.
    """
    assert data.entry
    if (
        data.entry.split.group is None or material.corpus is None
    ):  # its texts are no documents; or what was trained on is not known
        return set()
    shares = {
        "test": data.entry.split.test,
        "validation": data.entry.split.test + data.entry.split.validation,
        "training": 1.0,
    }
    share = max(shares[split] for split in data.splits)
    index = documents.index(material.text)
    risky = [source for source in index if index[source]["held_out_share"] < share]
    return {
        known
        for source in risky
        for text in documents.read(material.text, source, "training")
        if (known := identity(text)) in texts
    }
