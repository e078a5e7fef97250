"""TaskEntry: one supervised task as data, so that adding a task needs a YAML file and no code. Not
how its rows are read.

The entries that come with the project are `catalogue/*.yaml` beside this file. The four forms are
those of GPT-1 (Radford et al. 2018, section 3.3 and figure 1); what each reads from a row is
`SEGMENTS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from gpt_model.finetuning.source import SPLITS, SplitName, Splits, TaskSource, pinned, seen_from
from gpt_model.strict import Strict

__all__ = [
    "CATALOGUE",
    "SEGMENTS",
    "SPLITS",
    "Form",
    "Metric",
    "Rule",
    "SplitName",
    "Splits",
    "TaskEntry",
    "TaskSource",
    "pinned",
    "seen_from",
]

CATALOGUE = Path(__file__).resolve().parent / "catalogue"

Form = Literal["classification", "entailment", "similarity", "multiple_choice"]
Metric = Literal["accuracy", "f1", "matthews", "pearson"]
SEGMENTS: dict[str, tuple[str, ...]] = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("first", "second"),
    "multiple_choice": ("question",),
}


class Rule(Strict):
    """Which values of the label column mean a label: exactly one of the three."""

    equals: bool | int | float | str | None = None
    above: float | None = None
    below: float | None = None

    @field_validator("above", "below", mode="before")
    @classmethod
    def _whole_numbers_too(cls, value: object) -> object:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_of_three(self) -> Rule:
        if sum(value is not None for value in (self.equals, self.above, self.below)) != 1:
            raise ValueError("give exactly one of `equals`, `above` and `below`")
        return self


class TaskSplit(Strict):
    """Shares held back. A row's split follows from its group's text and the corpus seed alone, so
    no group crosses.
    """

    group: str | None = Field(
        default=None,
        description="column whose equal texts stay in one split; default: the example's own text",
    )
    together: str | None = Field(
        default=None,
        min_length=1,
        description="groups alike up to this mark are one, as in a source",
    )
    validation: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def _something_is_left(self) -> TaskSplit:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation} + test {self.test} leave nothing to train on: make them smaller"
            )
        return self


class Published(Strict):
    """Where a paper reports the task: the name its tables have for it, and what of it they give."""

    task: str
    metric: Metric = "accuracy"
    parts: dict[str, str] = Field(
        default_factory=dict, description="part of the test split -> its own name in the tables"
    )
    differs: str | None = Field(
        default=None,
        description="what of data or protocol is known to differ from the paper's; stands beside ours",
    )

    def place(self, task: str) -> dict[str, str]:
        """The row of gpt_model/published that has `task`, which is the whole task's name or a
        part's.
        """
        return {
            "task": task,
            "metric": self.metric,
            **({"differs": self.differs} if self.differs else {}),
        }


class TaskEntry(Strict):
    """A task, whose name is its file's. `columns` names, for each segment of the form, the column
    its text is in, or the columns.
    """

    description: str = ""
    licence: str = Field(
        min_length=1, description="of the text, as a person would state it; stands in the scorecard"
    )
    source: TaskSource
    format: Literal["jsonl", "csv", "tsv"] | None = Field(
        default=None, description="where the file's name does not end in it (or in parquet)"
    )
    header: list[str] | None = Field(
        default=None, description="column names, for a csv or tsv file whose first line is a row"
    )
    form: Form
    columns: dict[str, str | list[str]]
    versions: dict[str, str] = Field(
        default_factory=dict,
        description="label -> column: a row holds one text a label (the form's last segment), and gives one example for each",
    )
    labels: list[str] | dict[str, Rule] = Field(
        default_factory=list,
        description="names in class order; as a list, the column holds the name",
    )
    scale: list[int] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="the label column holds ratings from the first to the second, in place of `labels`: a class for each whole one",
    )
    first_option: int = Field(
        default=0,
        description="the number that the label column has for the first option, where it has numbers",
    )
    no_label: str | int | None = Field(
        default=None,
        description="what stands for no label in the label column; as if it were empty",
    )
    unlabelled: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="what a row without a label is: a mistake, or left out and counted",
    )
    malformed: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="what a row that does not fit the form is: a mistake, or left out and counted",
    )
    metric: Metric = Field(
        default="accuracy",
        description="what an epoch's weights are chosen by, and the score that stands for the task",
    )
    published: Published | None = Field(
        default=None, description="the paper's row that stands beside it"
    )
    scores: list[Metric] = Field(
        default_factory=list,
        description="what the field reports of such a task beside its metric; stands with it in the scorecard",
    )
    split: TaskSplit = TaskSplit()
    show_text: bool = Field(
        default=True,
        description="false where the licence does not cover the text: at most three short samples are shown",
    )

    @model_validator(mode="after")
    def _format_is_known(self) -> TaskEntry:
        self.refuse_unknown_formats()
        return self

    def refuse_unknown_formats(self) -> None:
        """Raises ValueError where the name of a file and `format` do not say how its rows are
        written.
        """
        for file in self.source.files():
            if self.format_of(file) not in ("jsonl", "csv", "tsv", "parquet"):
                raise ValueError(
                    f"the name {Path(file).name} does not say how its rows are written: add `format: jsonl`, csv or tsv"
                )

    @model_validator(mode="after")
    def _columns_fit_the_form(self) -> TaskEntry:
        needed, optional = self._segments_wanted()
        if missing := [name for name in needed if name not in self.columns]:
            raise ValueError(
                f"`columns` of a {self.form} task lacks {missing[0]!r}: it needs {', '.join(needed)}"
            )
        if unknown := [name for name in self.columns if name not in (*needed, *optional)]:
            raise ValueError(
                f"`columns` has {unknown[0]!r}, which a {self.form} task does not read: it needs {', '.join(needed)}"
            )
        if lists := [
            name
            for name, column in self.columns.items()
            if isinstance(column, list) and name == "label"
        ]:
            raise ValueError(
                f"`columns.{lists[0]}` is a list: `options` may be one, and a text, whose columns are then joined"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit_the_form(self) -> TaskEntry:
        if self.form == "multiple_choice":
            if self.labels or self.versions or self.scale:
                raise ValueError(
                    "a multiple_choice task has no `labels`, `versions` or `scale`: its label is the right option"
                )
            return self
        if self.scale and (self.labels or self.versions or self.scale[0] >= self.scale[1]):
            raise ValueError(
                "`scale` takes the place of `labels` and `versions`, and runs from a lower number to a higher one"
            )
        if self.versions and self.form not in ("entailment", "similarity"):
            raise ValueError(f"`versions` needs a form of two segments, and {self.form} has one")
        if len(self.label_names()) < 2 or len(set(self.label_names())) != len(self.label_names()):
            raise ValueError("`labels` needs at least two different names")
        if self.versions and (
            not isinstance(self.labels, list) or set(self.versions) != set(self.labels)
        ):
            raise ValueError(
                "`versions` needs one column for each name in `labels`, which is then a plain list"
            )
        return self

    @model_validator(mode="after")
    def _scores_fit_the_labels(self) -> TaskEntry:
        for score in (self.metric, *self.scores):
            if score in ("f1", "matthews") and not self.labels:
                raise ValueError(
                    f"{score} is of labels, and this task has {'ratings' if self.scale else 'options'}: leave it out"
                )
            if score == "accuracy" and self.scale:
                raise ValueError(
                    "accuracy is of labels, and this task has ratings: give `metric: pearson`"
                )
            if score == "pearson" and not self.rated():
                raise ValueError(
                    "pearson is of ratings, so it needs a `scale`, or two `labels`, one with `above` and one with `below`"
                )
        return self

    def high_end(self) -> int | None:
        """The class at the high end, where the label column holds a rating that two labels are the
        ends of.
        """
        rules = list(self.labels.values()) if isinstance(self.labels, dict) else []
        above, below = (
            [i for i, rule in enumerate(rules) if getattr(rule, end) is not None]
            for end in ("above", "below")
        )
        return above[0] if len(above) == len(below) == 1 and len(rules) == 2 else None

    def rated(self) -> bool:
        """Whether every example has a rating, a number."""
        return self.scale is not None or self.high_end() is not None

    def reported(self) -> list[Metric]:
        """The task's metric, accuracy where its answers have one, and its further scores; each
        once.
        """
        return list(
            dict.fromkeys([self.metric, *(() if self.scale else ("accuracy",)), *self.scores])
        )

    def _segments_wanted(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(needed, optional) keys of `columns`."""
        if self.form == "multiple_choice":
            return ("question", "options", "label"), ("context",)
        segments = SEGMENTS[self.form]
        return (segments[:-1], ()) if self.versions else ((*segments, "label"), ())

    def format_of(self, file: str) -> str:
        """jsonl, csv, tsv or parquet."""
        return self.format or Path(
            file.removesuffix(".gz").removesuffix(".zst")
        ).suffix.removeprefix(".")

    def label_names(self) -> list[str]:
        """Labels in class order, of a scale its whole numbers; empty for multiple choice, whose
        classes are the options.
        """
        return (
            [str(number) for number in range(self.scale[0], self.scale[1] + 1)]
            if self.scale
            else list(self.labels)
        )

    def columns_read(self) -> list[str]:
        """Every column of the file that is read, each once."""
        named: list[str] = []
        for column in self.columns.values():
            named += column if isinstance(column, list) else [column]
        named += [*self.versions.values(), *([self.split.group] if self.split.group else [])]
        return list(dict.fromkeys(named))
