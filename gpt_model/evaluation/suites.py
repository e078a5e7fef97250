"""Suites: lm_eval task YAML whose data a builder makes. This module is what a suite file may say;
`tasks.py` makes the rows.

A suite is one file in suites/, its name the file's. It is an lm_eval task, or a group with its
tasks inline, and every key is lm_eval's, with lm_eval's meaning (`doc_to_text`, `doc_to_choice`,
`metric_list`, …; a group's other keys are its tasks' defaults). Only the data's source is stated
differently: instead of `dataset_path` and `test_split`, a task has

    metadata:
      version: 1.0      # bumped by hand when a score would change
      description: …    # what the score means; stands beside it
      baseline: chance  # what accuracy stands against: chance (1/options), majority (the
                        # commonest answer), or none
      data: {builder: …}            # one of those below; its rows become <task>.jsonl
      shots: {numbers: [0, 1, 50]}  # GPT-3's protocol: a task for each number of demonstrations
      metrics: [acc_per_token]      # computed from lm_eval's log-probabilities (`few_shot.py`),
                                    # beside those of metric_list
      published: {acc: {task: …, metric: …, differs: …}}  # of a metric: its row of
                        # gpt_model/published, and what of data or protocol is known to differ; a
                        # score of another kind has none

So adding a suite is adding a file here, and naming it in a recipe. The orchestrator reads suites:
no torch and no lm_eval in this module.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from gpt_model.errors import UserError
from gpt_model.evaluation import scoring, synthetic
from gpt_model.evaluation.adapters.registry import ADAPTERS
from gpt_model.evaluation.public_data_sets import DataSource
from gpt_model.evaluation.toxicity import Classifier
from gpt_model.finetuning.entry import SplitName, TaskEntry
from gpt_model.strict import Bounds, Each, Strict, dotted_location, location_of, sentence, shown

# Of suites and their tasks: a part of the names of files and of MLflow's metrics.
NAME = re.compile(r"[A-Za-z0-9_-]+")
_UNFIT = "{} names files and metrics, so it has letters, digits, _ and - only."
SUITES = Path(__file__).resolve().parent / "suites"
ON_ANOTHER_SCALE = ("byte_perplexity", "word_perplexity")  # the same measure as bits per byte
ROLLING = ("bits_per_byte", *ON_ANOTHER_SCALE)  # metrics of whole texts

# lm_eval's task keys, less those of the data's source; its TaskConfig has the same names.
TASK_KEYS = (
    "task",
    "task_alias",
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "description",
    "target_delimiter",
    "gen_prefix",
    "metric_list",
    "output_type",
    "generation_kwargs",
    "repeats",
    "filter_list",
    "metadata",
    # the name of a function of scoring.py, where lm_eval has a Python function; so may a metric's
    # `aggregation` be
    "process_results",
)
NEEDED_KEYS = ("task", "output_type", "doc_to_text", "doc_to_target", "metric_list", "metadata")


class Passages(Strict):
    """Held-out documents in passages of whole words; one task a source, named by it.

    Column: text.
    """

    builder: Literal["passages"]
    characters: Annotated[int, Bounds(64, 10**9, "a shorter one has no words to go on")] = Field(
        default=4096, description="longest passage; a shorter document is one passage"
    )


class LastWord(Strict):
    """Runs of held-out sentences, the last word apart. Columns: context, target, source."""

    builder: Literal["last_word"]
    sentences: Annotated[int, Bounds(2, 1_000, "it ends in the target")] = Field(
        default=5, description="in a passage, the one that ends in the target included"
    )


class Cloze(Strict):
    """A held-out sentence with a word taken out, after the sentences before it. Columns: context,
    choices, label, kind, source.
    """

    builder: Literal["cloze"]
    sentences: Annotated[int, Bounds(1, 1_000, "the choices are from them")] = Field(
        default=20, description="of context, from which the choices are drawn"
    )
    choices: Annotated[int, Bounds(2, 1_000, "a question has at least two")] = Field(
        default=10, description="of a question, the right one among them"
    )


class Labelled(Strict):
    """A supervised task's examples. Columns: its form's segments (question, or premise and
    hypothesis, …), options, label.
    """

    builder: Literal["labelled"]
    task: str | None = Field(
        default=None, description="an entry of gpt_model/finetuning/catalogue, by name"
    )
    entry: TaskEntry | None = Field(default=None, description="or the entry itself")
    splits: list[SplitName] = Field(
        default=["test"], min_length=1, description="of the task, whose rows are evaluated"
    )
    demonstrations: SplitName | None = Field(
        default=None,
        description="the split of few-shot demonstrations; default: the evaluated rows",
    )
    not_run: str | None = Field(
        default=None,
        description="why it cannot be had here; filled in when a build is planned, not by a hand",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Labelled:
        if self.task is None and self.entry is None:
            raise ValueError("name a `task` of the catalogue, or write the `entry` itself")
        return self


class Dataset(Strict):
    """A public data set's rows, with the columns that an adapter (`adapters/`) makes of them."""

    builder: Literal["dataset"]
    source: DataSource
    columns: dict[str, str] = Field(description="the adapter's name of a column -> the data set's")
    make: str = Field(description="an adapter, by name")
    without: dict[str, str] = Field(
        default_factory=dict,
        description="column -> why the task is not run on a file that lacks it",
    )
    options: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="the adapter's"
    )
    demonstrations: DataSource | None = Field(
        default=None, description="of few-shot demonstrations; default: the evaluated rows"
    )
    demonstration_options: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="the adapter's, for them only"
    )

    @model_validator(mode="after")
    def _fits_the_adapter(self) -> Dataset:
        if self.make not in ADAPTERS:
            near = difflib.get_close_matches(self.make, ADAPTERS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"there is no adapter {self.make!r}{hint}. There are {', '.join(sorted(ADAPTERS))}"
            )
        options = {**self.options, **self.demonstration_options}
        if problem := ADAPTERS[self.make].problem(self.columns, options):
            raise ValueError(problem)
        return self


class Arithmetic(Strict):
    """GPT-3's synthetic problems. Columns: context, completion."""

    builder: Literal["arithmetic"]
    problems: str = Field(description=f"one of {', '.join(synthetic.ARITHMETIC)}")

    @field_validator("problems")
    @classmethod
    def _known(cls, name: str) -> str:
        return _known_name(name, synthetic.ARITHMETIC)


class Scramble(Strict):
    """The held-out text's commonest words, scrambled as GPT-3's. Columns: context, completion."""

    builder: Literal["scramble"]
    scramble: str = Field(description=f"one of {', '.join(synthetic.SCRAMBLES)}")

    @field_validator("scramble")
    @classmethod
    def _known(cls, name: str) -> str:
        return _known_name(name, synthetic.SCRAMBLES)


def _known_name(name: str, known: Iterable[str]) -> str:
    if name not in known:
        raise ValueError(f"it is one of {', '.join(known)}")
    return name


OF_TEXT = (Passages, LastWord, Cloze, Scramble)  # builders that read the corpus's held-out text
Data = Annotated[
    Passages | LastWord | Cloze | Labelled | Dataset | Arithmetic | Scramble,
    Field(discriminator="builder"),
]


AddedMetric = Literal["acc_per_token", "acc_answer_norm"]


Shot = Annotated[int, Bounds(0, 1_000, "GPT-3 has at most 100")]


class Shots(Strict):
    """`metadata.shots` of a suite's task: how many demonstrations stand before a question, and how.
    Its data says where they come from.
    """

    numbers: Annotated[list[Shot], Each] = Field(
        min_length=1, description="demonstrations, one task each: 0, 1 and the paper's K"
    )
    separator: str = Field(default="\n\n", description="after each demonstration")
    header: str = Field(default="", description="before everything, whatever the number")
    doc_to_text: str | None = Field(
        default=None,
        description="the question where there are demonstrations, if it is put otherwise then",
    )
    answer_context: str | None = Field(
        default=None, description='"Answer:" or "A:", of acc_answer_norm'
    )


class PublishedRow(Strict):
    """Where a paper's number of the same kind stands: a row of gpt_model/published."""

    task: str = Field(description="its name in the paper's tables")
    metric: str = Field(description="the paper's")
    differs: str = Field(
        default="",
        description="what of data or protocol is known to differ from the paper's; stands beside "
        "our score",
    )


class TaskMetadata(Strict):
    """Our part of a task's keys: lm_eval leaves `metadata` to its users."""

    version: Annotated[float, Bounds(0, 10**6, "it is counted up by hand")] = Field(
        description="lm_eval's; raise it when the task changes"
    )
    description: str = Field(default="", description="shown on the scorecard")
    baseline: Literal["chance", "majority", "none"] = Field(
        default="none", description="what stands beside the score"
    )
    data: Data = Field(description="where the rows come from; `builder` says which of these it is")
    confident: Annotated[float, Bounds(0, 1, "a share", above=True)] | None = Field(
        default=None,
        description="of generated answers: also score this share, those the model gives the "
        "highest probability",
    )
    centred: dict[str, Annotated[float, Bounds(0, 100, "per cent")]] = Field(
        default_factory=dict,
        description="what guessing gives, in per cent, by version: the accuracy goes into the "
        "suite's centred mean",
    )
    average: list[str] = Field(
        default_factory=list, description="metrics whose mean goes into the suite's SuperGLUE score"
    )
    published: dict[str, PublishedRow] = Field(
        default_factory=dict, description="metric -> the paper's row"
    )
    classifier: Classifier | None = Field(
        default=None, description="of generated answers: also score each by it"
    )
    shots: Shots | None = None
    metrics: list[AddedMetric] = Field(
        default_factory=list, description="beside metric_list's; they need `shots`"
    )

    @model_validator(mode="after")
    def _added_metrics_have_what_they_need(self) -> TaskMetadata:
        if self.metrics and self.shots is None:
            raise ValueError("`metrics` are of a task with `shots`: add {numbers: [0]}")
        if "acc_answer_norm" in self.metrics and self.shots and not self.shots.answer_context:
            raise ValueError('acc_answer_norm needs `shots.answer_context`, "Answer:" or "A:"')
        if self.shots and isinstance(self.data, Passages):
            raise ValueError("`shots` are of questions, and the rows of `passages` are none")
        return self


class SuiteTask(Strict):
    """One task of a suite: lm_eval's keys as they stand in the file, and our `metadata`."""

    suite: str
    name: str
    keys: dict[str, Any]
    metadata: TaskMetadata


def suite_tasks(
    suite: str, contents: Mapping[str, Any], file: Path | None = None
) -> list[SuiteTask]:
    """The tasks of a parsed suite file. Raises UserError naming the file (default: that of the
    suite's name in suites/), task and key of what is wrong.
    """
    where = str(file or f"suites/{suite}.yaml")
    if not NAME.fullmatch(suite):
        raise UserError(f"{where}: {_UNFIT.format(repr(suite))} Rename the file.")
    seen: set[str] = set()
    tasks = []
    for keys in _expanded(where, contents):
        task = _checked(suite, keys, where)
        if task.name in seen:
            raise UserError(
                f"{where}: two of its tasks are named {task.name!r}. Give each its own name."
            )
        seen.add(task.name)
        tasks.append(task)
    return tasks


def _expanded(where: str, contents: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each task's keys, a group's defaults filled in as lm_eval does."""
    if "group" not in contents:
        yield dict(contents)
        return
    members = contents.get("task")
    if (
        not isinstance(members, list)
        or not members
        or not all(isinstance(member, dict) for member in members)
    ):
        raise UserError(
            f"{where}: a group's `task` is a list with a mapping for each of its tasks; found "
            f"{members!r}."
        )
    defaults = {
        key: value for key, value in contents.items() if key not in ("group", "task", "metadata")
    }
    for member in members:
        yield {**defaults, **member}


def _checked(suite: str, keys: dict[str, Any], where: str) -> SuiteTask:
    if "task" in keys:
        where += f", task {keys['task']!r}"
    for key in keys:
        if key not in TASK_KEYS:
            near = difflib.get_close_matches(key, TASK_KEYS, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise UserError(
                f"{where}: `{key}` is not a key of a suite's task.{hint} "
                f"Keys: {', '.join(TASK_KEYS)}."
            )
    if missing := [key for key in NEEDED_KEYS if key not in keys]:
        raise UserError(f"{where}: `{missing[0]}` is missing.")
    if not (isinstance(keys["metric_list"], list) and keys["metric_list"]):
        raise UserError(
            f"{where}: `metric_list` is {shown(keys['metric_list'])}: it should be a list of one "
            "metric or more, as lm_eval has it: [{metric: acc, aggregation: mean}]."
        )
    if keys["output_type"] == "multiple_choice" and keys.get("doc_to_choice") is None:
        raise UserError(
            f"{where}: `doc_to_choice` is missing, and `output_type: multiple_choice` needs it."
        )
    if (scored := keys.get("process_results")) is not None and not callable(
        getattr(scoring, str(scored), None)
    ):
        raise UserError(
            f"{where}: `process_results` is {scored!r}, and gpt_model/evaluation/scoring.py has no "
            "such function."
        )
    if not isinstance(keys["task"], str) or not isinstance(keys["metadata"], dict):
        raise UserError(f"{where}: expected a name as `task` and a mapping as `metadata`.")
    if not NAME.fullmatch(keys["task"]):
        raise UserError(f"{where}: {_UNFIT.format('`task`')} Give it such a name.")
    try:
        metadata = TaskMetadata.model_validate(keys["metadata"])
    except ValidationError as error:
        sentences = [
            sentence(
                {**problem, "loc": (location := location_of(keys["metadata"], problem))},
                dotted_location(("metadata", *location)),
            )
            for problem in error.errors()
        ]
        lines = [f"{where}: {text}" for text in dict.fromkeys(sentences)]
        raise UserError("\n".join(lines)) from None
    return SuiteTask(
        suite=suite,
        name=keys["task"],
        keys={k: v for k, v in keys.items() if k != "metadata"},
        metadata=metadata,
    )
