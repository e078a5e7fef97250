"""What each task of a suite is evaluated on: its rows, the seeded subset of them, and the same rows
after no, one and K demonstrations.

Rows come from held-out documents, a supervised task's file, a public data set, or a generator. They
are a function of the corpus, the suite and the seed; only how many of a cloze's first sentences are
dropped, and how many demonstrations fit, depends on the model, through its tokenizer and context.
What a suite may say is `suites.py`'s, how demonstrations are drawn `few_shot.py`'s.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from gpt_model.data import documents
from gpt_model.data.formats import MissingColumn, Reject, UnreadableRow
from gpt_model.data.skipped_rows import LeftOut
from gpt_model.data.splits import identity
from gpt_model.errors import Unavailable
from gpt_model.evaluation import held_out_text, public_data_sets, synthetic
from gpt_model.evaluation.adapters.registry import ADAPTERS, Row, TaskContext
from gpt_model.evaluation.contamination import Examples
from gpt_model.evaluation.few_shot import (
    LIMIT_NAMES,
    FewShot,
    Rendered,
    Renderer,
    generation_limit,
    new_tokens,
)
from gpt_model.evaluation.lambada_stop_words import stop_word_tokens
from gpt_model.evaluation.results import Demonstrations
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

# Rows of a task, where the recipe sets no limit. A public set is evaluated whole: the largest, One
# Billion Word's test set, has 306,688. As lm_eval has some 5 KB a row in memory beside its prompt,
# the bound comes to 2 GB, which a file without end does not pass either.
PUBLIC_ROWS_LIMIT = 400_000
MADE_ROWS_LIMIT = 10_000  # of what the recipe's own text gives without end
DEMONSTRATIONS_LIMIT = 2_000  # rows that a task's demonstrations are drawn from
CHARACTERS_LIMIT = 4_000_000  # of a source's held-out text that questions are made from


@dataclass(frozen=True)
class TaskRows:
    """One task and the rows it is evaluated on."""

    task: SuiteTask
    name: str  # the task's, or for a task by source the source's
    rows: list[Row]
    available: int  # rows there were before the subset
    # Rows left out before it: an answer of theirs alone is longer than the model's context, or is
    # empty.
    too_long: int
    empty: int = 0
    unreadable: LeftOut = field(default_factory=LeftOut)  # rows that no question can be made of
    # What stands beside the score where the suite's generation limit is larger than the context.
    lowered_limit: str = ""
    # Likewise where demonstrations of the adapter's were left out to fit the context.
    fewer_demonstrations: str = ""
    demonstrations: Demonstrations | None = None  # where the task has `shots`
    # Then: each example's text without demonstrations.
    texts: list[str] = field(default_factory=list)
    # Full name of the task with the same answers after the answer context only.
    unconditional: str | None = None
    scored: bool = True  # False for such a task
    why_empty: str = ""  # a clause, where there are no rows

    @property
    def full_name(self) -> str:
        """Unique over suites, and a file name."""
        return f"{self.task.suite}.{self.name}"


def rows_of(task: SuiteTask, task_context: TaskContext, limit: int | None) -> list[TaskRows]:
    """The rows of a suite's task: at most `limit` of each, the same for the same seed; else a
    public set's every row.

    Where there are none, `why_empty` of them says why. Raises Unavailable where a public data set
    cannot be had here.
    """
    data, task = task.metadata.data, _without_stop_words(task, task_context)
    task, lowered_limit = _with_room_to_generate(task, task_context.context_length)
    task_context = replace(
        task_context, new_tokens=new_tokens(task.keys, task_context.context_length)
    )
    unreadable = _Unreadable()
    if isinstance(data, Passages):
        sources = documents.index(task_context.held_out_corpus())
        rows_by_name = [(source, _passages(task_context, source, data)) for source in sources]
    else:
        rows_by_name = [(task.name, _task_rows(task_context, task, data, unreadable.reject))]
    limit = limit or (
        PUBLIC_ROWS_LIMIT if isinstance(data, (Dataset, Labelled)) else MADE_ROWS_LIMIT
    )
    tasks = []
    for name, rows in rows_by_name:
        chosen, available, too_long, empty = _subset(
            rows, limit, f"{task.suite} {name}", task_context, task, unreadable.reject
        )
        if isinstance(data, Cloze):
            chosen = [_fitted(row, task_context) for row in chosen]
        tasks.append(
            TaskRows(
                task,
                name,
                chosen,
                available,
                too_long,
                empty,
                unreadable=unreadable.left_out,
                why_empty="" if chosen else unreadable.first or _why_empty(data),
                lowered_limit=lowered_limit,
                fewer_demonstrations=_fewer_demonstrations(data, chosen),
            )
        )
    if left_out := unreadable.left_out:
        task_context.progress.log(
            f"{task.suite}/{task.name}: left out of its questions: {left_out.reasons()}"
        )
    return tasks


class _Unreadable:
    """The rows of a task that no question can be made of."""

    def __init__(self) -> None:
        self.left_out = LeftOut()
        self.first = ""  # what was wrong with the first of them

    def reject(self, row: UnreadableRow) -> None:
        self.first = self.first or str(row).rstrip(".")
        self.left_out.add(row.reason, row.where, row.problem, row.rows)


def _fewer_demonstrations(data: Data, rows: Sequence[Row]) -> str:
    """What stands beside the score where an adapter's demonstrations did not all fit."""
    if not (isinstance(data, Dataset) and rows and "shots" in rows[0]):
        return ""
    adapter = ADAPTERS[data.make]
    option = next(iter(adapter.alone or ()))
    requested = data.options.get(option, adapter.options[option])
    counts = [row["shots"] for row in rows]
    if min(counts) == requested:
        return ""
    return (
        f"{sum(counts) / len(counts):.1f} of {requested} demonstrations on average, "
        f"{min(counts)} at least, as fits the context"
    )


def in_each_setting(rows: TaskRows, task_context: TaskContext) -> Iterator[TaskRows]:
    """`rows` as they are where their task has no `shots`; else a task for each number of
    demonstrations, the smallest first.

    Raises Unavailable, after the tasks that need none, where the demonstrations cannot be had here.
    """
    task, shots = rows.task, rows.task.metadata.shots
    if shots is None:
        yield rows
        return
    few_shot = FewShot(
        f"{task.suite} {rows.name}",
        task.keys,
        shots,
        task_context.encode,
        task_context.context_length,
        task_context.seed,
    )
    texts = texts_of(rows)
    unconditional = None
    if "acc_answer_norm" in task.metadata.metrics:
        companion = _rendered_as(
            rows, few_shot.unconditional_answers(rows.rows), f"{rows.name}_answers_alone"
        )
        unconditional = companion.full_name
        yield replace(companion, scored=False)
    pool: list[Row] = []
    for number in sorted(shots.numbers):
        if number and not pool:
            pool = demonstrations_of(task, task_context)
        rendered = few_shot.rendered(number, rows.rows, pool)
        demonstrations = rendered.demonstrations(number)
        yield replace(
            _rendered_as(rows, rendered, f"{rows.name}_{demonstrations.shots}"),
            demonstrations=demonstrations,
            texts=texts,
            unconditional=unconditional,
        )


def _rendered_as(rows: TaskRows, rendered: Rendered, name: str) -> TaskRows:
    task = rows.task.model_copy(update={"keys": rendered.keys})
    return replace(rows, task=task, name=name, rows=rendered.rows)


def demonstrations_of(task: SuiteTask, task_context: TaskContext) -> list[Row]:
    """What few-shot demonstrations of a task are drawn from: rows of the split its data names for
    it, else of the evaluated one.

    Raises Unavailable where that cannot be had here.
    """
    data = task.metadata.data

    def skip(row: UnreadableRow) -> None:
        """It demonstrates nothing."""

    if isinstance(data, Arithmetic):
        rows: Iterator[Row] = iter(synthetic.arithmetic(data.problems, task_context.seed)[1])
    elif isinstance(data, Dataset) and data.demonstrations:
        changes = {
            "source": data.demonstrations,
            "options": {**data.options, **data.demonstration_options},
        }
        rows = _public_rows(
            task_context, task, data.model_copy(update=changes), skip, "/demonstrations"
        )
    elif isinstance(data, Labelled) and data.demonstrations:
        rows = _labelled_rows(task_context, task, data, [data.demonstrations])
    else:
        rows = _task_rows(task_context, task, data, skip)
    name = f"{task.suite} {task.name} demonstrations"
    return _subset(rows, DEMONSTRATIONS_LIMIT, name, task_context, task, skip)[0]


def texts_of(rows: TaskRows) -> list[str]:
    """Each example's text with its right answer, without demonstrations: what may stand in the
    training text too.
    """
    if rows.texts or not rows.rows:
        return rows.texts
    renderer = Renderer(rows.task.keys, list(rows.rows[0]))
    if renderer.kind == "loglikelihood_rolling":
        return [renderer.prompt(row).answers[0] for row in rows.rows]
    return [renderer.prompt(row).right for row in rows.rows]


def examples_of(tasks: Sequence[TaskRows]) -> dict[str, Examples]:
    """By the full name of each scored task, its examples as they may stand in the training text."""
    return {
        task.full_name: Examples(
            texts_of(task), isinstance(task.task.metadata.data, (Arithmetic, Scramble))
        )
        for task in tasks
        if task.scored
    }


def _without_stop_words(task: SuiteTask, task_context: TaskContext) -> SuiteTask:
    """Where a task's answer may not begin with a stop word, `begin_suppress_tokens` as
    `transformers` takes it: the tokens themselves.
    """
    settings = task.keys.get("generation_kwargs") or {}
    if settings.get("begin_suppress_tokens") != "stop_words":
        return task
    settings = {**settings, "begin_suppress_tokens": stop_word_tokens(task_context.encode)}
    return task.model_copy(update={"keys": {**task.keys, "generation_kwargs": settings}})


def _with_room_to_generate(task: SuiteTask, context_length: int) -> tuple[SuiteTask, str]:
    """The task with a limit of new tokens that leaves its question room in the context; and what
    was lowered, as a phrase.
    """
    if task.keys["output_type"] != "generate_until":
        return task, ""
    settings = task.keys.get("generation_kwargs") or {}
    stated, limit = generation_limit(settings, context_length)
    if limit == stated:
        return task, ""
    others = {key: value for key, value in settings.items() if key not in LIMIT_NAMES}
    keys = {**task.keys, "generation_kwargs": {**others, "max_gen_toks": limit}}
    phrase = (
        f"answers of at most {limit:,} tokens, not {stated:,}: the context is {context_length:,}"
    )
    return task.model_copy(update={"keys": keys}), phrase


def _task_rows(
    task_context: TaskContext, task: SuiteTask, data: Data, reject: Reject
) -> Iterator[Row]:
    """Every row of a task's data. Passages are by source instead."""
    if isinstance(data, LastWord):
        return _last_words(task_context, data)
    if isinstance(data, Cloze):
        return _clozes(task_context, data)
    if isinstance(data, Dataset):
        return _public_rows(task_context, task, data, reject)
    if isinstance(data, Arithmetic):
        return iter(synthetic.arithmetic(data.problems, task_context.seed)[0])
    if isinstance(data, Scramble):
        texts = (text for _, text in _held_out_documents(task_context))
        common = synthetic.common_words(texts)
        return synthetic.scrambled(data.scramble, common, task_context.seed)
    assert isinstance(data, Labelled)
    return _unseen_labelled_rows(task_context, task, data)


def _why_empty(data: Data) -> str:
    if isinstance(data, Passages):
        return "the source has no held-out document"
    if isinstance(data, LastWord):
        return (
            f"no {data.sentences} held-out sentences in a row end in a word that stands earlier "
            "in them and is not among the commonest"
        )
    if isinstance(data, Cloze):
        return (
            f"no held-out document has {data.sentences + 1} sentences with {data.choices} words "
            "of a kind in them"
        )
    if isinstance(data, Dataset):
        return f"{data.source.name} has no row of which {data.make!r} makes one"
    if isinstance(data, Labelled):
        return f"its {' and '.join(data.splits)} split is empty"
    return "no held-out document has a word that can be scrambled"


def _subset(
    rows: Iterator[Row],
    limit: int,
    name: str,
    task_context: TaskContext,
    task: SuiteTask,
    reject: Reject,
) -> tuple[list[Row], int, int, int]:
    """At most `limit` rows in their order, how many there were, and how many more have an answer
    that is too long for the context, or an empty one.

    They are chosen by hash, so that a larger limit contains a smaller one. A row that the suite's
    templates make no question of is given to `reject`, and the next one chosen.
    """
    context_length = task_context.context_length
    counts: Counter[str] = Counter()
    renderer: Renderer | None = None

    def kind_of(row: Row, renderer: Renderer) -> str:
        answers = renderer.answers(row)
        if not all(answer.strip() for answer in answers):
            return "empty"
        if any(
            len(answer) > context_length and len(task_context.encode(f" {answer}")) > context_length
            for answer in answers
        ):
            return "too long"
        return "available"

    chosen: list[tuple[int, int, Row]] = []  # a heap, the last by hash first
    for index, row in enumerate(rows):
        text = f"{task_context.seed} {name}\0{json.dumps(row, sort_keys=True)}"
        order = -int.from_bytes(hashlib.sha256(text.encode()).digest()), -index
        try:
            renderer = renderer or Renderer(task.keys, list(row))
            kind = kind_of(row, renderer)
            is_chosen = kind == "available" and (len(chosen) < limit or order > chosen[0][:2])
            if is_chosen:
                renderer.check(row)
        except Exception as error:  # jinja's, or of whatever a template makes of the row
            problem = f"{type(error).__name__}: {error}"
            reject(UnreadableRow(f"row {index + 1}", problem, "no question can be made of it"))
            continue
        counts[kind] += 1
        if is_chosen:
            add = heapq.heappush if len(chosen) < limit else heapq.heappushpop
            add(chosen, (*order, row))
    subset = [row for _, _, row in sorted(chosen, key=lambda entry: -entry[1])]
    return subset, counts["available"], counts["too long"], counts["empty"]


def _held_out_documents(task_context: TaskContext) -> Iterator[tuple[str, str]]:
    """(source, document) of every source's held-out text."""
    for source in documents.index(task_context.held_out_corpus()):
        for text in _held_out(task_context, source):
            yield source, text


def _held_out(task_context: TaskContext, source: str) -> Iterator[str]:
    """A source's held-out documents, from the first, until CHARACTERS_LIMIT of them are read."""
    characters = 0
    for text in documents.read(task_context.held_out_corpus(), source, "held_out"):
        if characters >= CHARACTERS_LIMIT:
            return
        characters += len(text)
        yield text


def _commonest_words(task_context: TaskContext) -> frozenset[str]:
    return held_out_text.commonest_words(text for _, text in _held_out_documents(task_context))


def _passages(task_context: TaskContext, source: str, data: Passages) -> Iterator[Row]:
    for text in _held_out(task_context, source):
        for passage in held_out_text.passages(text, data.characters):
            yield {"text": passage}


def _last_words(task_context: TaskContext, data: LastWord) -> Iterator[Row]:
    common = _commonest_words(task_context)
    for source, text in _held_out_documents(task_context):
        for row in held_out_text.last_words(text, data.sentences, common):
            yield {**row, "source": source}


def _clozes(task_context: TaskContext, data: Cloze) -> Iterator[Row]:
    common = _commonest_words(task_context)
    for source, text in _held_out_documents(task_context):
        for row in held_out_text.clozes(
            text, data.sentences, data.choices, common, task_context.seed
        ):
            yield {**row, "source": source}


def _fitted(row: Row, task_context: TaskContext) -> Row:
    """A cloze whose context begins at the first sentence from which it fits the model's context
    with every choice.

    At worst it is the question's own beginning, which lm_eval cuts from the left.
    """
    context: str = row["context"]
    longest = max(len(task_context.encode(f" {choice}")) for choice in row["choices"])
    for start, _ in held_out_text.sentences(context):
        if len(task_context.encode(context[start:])) <= task_context.context_length - longest:
            break
    return {**row, "context": context[start:]}


def _public_rows(
    task_context: TaskContext, task: SuiteTask, data: Dataset, reject: Reject, part: str = ""
) -> Iterator[Row]:
    """A public data set's rows as the adapter makes them. `part`: of the task's name in a recipe's
    `evaluation.files`.
    """
    columns = list(dict.fromkeys(data.columns.values()))

    def reject_unless_known(row: UnreadableRow) -> None:
        if isinstance(row, MissingColumn) and row.column in data.without:
            raise row
        reject(row)

    try:
        rows = public_data_sets.rows(
            data.source, columns, task_context.downloads, task_context.progress, reject_unless_known
        )
        named = ({name: row[column] for name, column in data.columns.items()} for row in rows)
        yield from ADAPTERS[data.make](named, task_context, reject, **data.options)
    except MissingColumn as error:
        if reason := data.without.get(error.column):
            raise Unavailable(
                public_data_sets.what_to_do(reason, task.suite, task.name + part, columns)
            ) from None
        raise
    except Unavailable as error:
        raise Unavailable(
            public_data_sets.what_to_do(str(error), task.suite, task.name + part, columns)
        ) from None


def _unseen_labelled_rows(
    task_context: TaskContext, task: SuiteTask, data: Labelled
) -> Iterator[Row]:
    """A supervised task's examples, but for those about a document that was trained on."""
    rows = list(_labelled_rows(task_context, task, data, data.splits))
    assert data.entry
    segments = SEGMENTS[data.entry.form]
    passages = (
        {identity(row[name]) for row in rows for name in segments}
        if data.entry.split.group
        else set()
    )
    trained_on = _trained_on(passages, data, task_context)
    yield from (
        row for row in rows if trained_on.isdisjoint(identity(row[name]) for name in segments)
    )


def _labelled_rows(
    task_context: TaskContext, task: SuiteTask, data: Labelled, names: Sequence[SplitName]
) -> Iterator[Row]:
    if data.entry is None:
        raise ValueError(
            f"task {data.task!r} of suite {task.suite!r} was not filled in from the catalogue"
        )
    if data.not_run:
        raise Unavailable(data.not_run)
    splits = read_examples(
        data.task or task.name,
        data.entry,
        task_context.seed,
        task_context.downloads,
        task_context.progress,
    ).splits
    for example in (example for name in names for example in splits[name]):
        row: Row = dict(zip(SEGMENTS[data.entry.form], example.segments, strict=True))
        if example.options:
            row["options"] = list(example.options)
        yield {**row, "label": example.label}


def _trained_on(texts: set[bytes], data: Labelled, task_context: TaskContext) -> set[bytes]:
    """Which of a task's texts are training documents. A source that holds out at least the task's
    share has none, and is not read.
    """
    assert data.entry
    # Without groups its texts are no documents; without a corpus the training text is not known.
    if data.entry.split.group is None or task_context.corpus is None:
        return set()
    shares = {
        "test": data.entry.split.test,
        "validation": data.entry.split.test + data.entry.split.validation,
        "training": 1.0,
    }
    share = max(shares[split] for split in data.splits)
    index = documents.index(task_context.corpus)
    shared_sources = [source for source in index if index[source]["held_out_share"] < share]
    return {
        document
        for source in shared_sources
        for text in documents.read(task_context.corpus, source, "training")
        if (document := identity(text)) in texts
    }
