"""TaskEntry: one supervised task as data, so that adding a task needs a YAML file and no code. Not how its rows are read.

The entries that come with the project are `catalogue/*.yaml` beside this file. The four forms are those of GPT-1 (Radford et al.
2018, section 3.3 and figure 1); what each reads from a row is `SEGMENTS`.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gpt_model.data.files import PinnedFile, pin

CATALOGUE = Path(__file__).resolve().parent / "catalogue"

Form = Literal["classification", "entailment", "similarity", "multiple_choice"]
SplitName = Literal["training", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("training", "validation", "test")
Score = Literal["f1", "matthews", "pearson"]
SEGMENTS: dict[str, tuple[str, ...]] = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("first", "second"),
    "multiple_choice": ("question",),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SplitFiles(_Strict):
    """One file a split, where whoever made the task split it. Without a validation file its share is taken from training."""

    training: str
    validation: str | None = None
    test: str


class TaskSource(_Strict):
    """The file the rows are in: a member of a pinned package archive, or a local file (relative to the entry's own folder)."""

    package: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9._-]+==[^=]+$", description="name==version; opened as an archive, never installed"
    )
    kind: Literal["wheel", "sdist"] | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="of the package's archive")
    file: str | SplitFiles = Field(description="member of the archive (outer.tar.gz!inner for a nested one), or path")
    pinned: list[PinnedFile] | None = Field(default=None, description="what `pinned` fills in when a build is planned, not a hand")

    @model_validator(mode="after")
    def _package_is_pinned(self) -> TaskSource:
        if self.package and not (self.kind and self.sha256):
            raise ValueError(f"package {self.package} needs `kind` (wheel or sdist) and `sha256`, so that it is always the same bytes")
        if not self.package and (self.kind or self.sha256):
            raise ValueError("`kind` and `sha256` describe a package: name one with `package: name==version`, or leave them out")
        return self

    def files(self) -> list[str]:
        """Every file named, training first."""
        if isinstance(self.file, str):
            return [self.file]
        return [name for name in (self.file.training, self.file.validation, self.file.test) if name is not None]


def seen_from(source: TaskSource, folder: Path, base: Path) -> TaskSource:
    """`source` with its local files, relative to `folder`, named as seen from `base`; as it stands where it is a package's."""
    if source.package is not None:
        return source

    def name(file: str) -> str:
        return Path(os.path.relpath(folder / Path(file).expanduser(), base)).as_posix()

    if isinstance(source.file, str):
        return source.model_copy(update={"file": name(source.file)})
    given = source.file.model_dump(exclude_none=True)
    return source.model_copy(update={"file": SplitFiles(**{split: name(file) for split, file in given.items()})})


def pinned(source: TaskSource, base: Path, downloads: Path) -> TaskSource:
    """`source` with its local files, relative to `base`, tied to their bytes, in the order of `files()`."""
    if source.package is not None:
        return source
    return source.model_copy(update={"pinned": [one for file in source.files() for one in pin(glob.escape(file), base, downloads)]})


class Rule(_Strict):
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


class TaskSplit(_Strict):
    """Shares held back. A row's split follows from its group's text and the corpus seed alone, so no group crosses."""

    group: str | None = Field(default=None, description="column whose equal texts stay in one split; default: the example's own text")
    together: str | None = Field(default=None, min_length=1, description="groups alike up to this mark are one, as in a source")
    validation: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def _something_is_left(self) -> TaskSplit:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} + test {self.test} leave nothing to train on: make them smaller")
        return self


class TaskEntry(_Strict):
    """A task, whose name is its file's. `columns` names, for each segment of the form, the column its text is in."""

    description: str = ""
    licence: str = Field(min_length=1, description="of the text, as a person would state it; stands in the scorecard")
    source: TaskSource
    format: Literal["jsonl", "csv", "tsv"] | None = Field(
        default=None, description="where the file's name does not end in it (or in parquet)"
    )
    header: list[str] | None = Field(default=None, description="column names, for a csv or tsv file whose first line is a row")
    form: Form
    columns: dict[str, str | list[str]]
    versions: dict[str, str] = Field(
        default_factory=dict,
        description="label -> column: a row holds one text a label (the form's last segment), and gives one example for each",
    )
    labels: list[str] | dict[str, Rule] = Field(
        default_factory=list, description="names in class order; as a list, the column holds the name"
    )
    unlabelled: Literal["refuse", "drop"] = Field(
        default="refuse", description="what a row without a label is: a mistake, or left out and counted"
    )
    malformed: Literal["refuse", "drop"] = Field(
        default="refuse", description="what a row that does not fit the form is: a mistake, or left out and counted"
    )
    scores: list[Score] = Field(
        default_factory=list, description="what the field reports of such a task beside accuracy; stands with it in the scorecard"
    )
    split: TaskSplit = TaskSplit()
    show_text: bool = Field(
        default=True, description="false where the licence does not cover the text: at most three short samples are shown"
    )

    @model_validator(mode="after")
    def _format_is_known(self) -> TaskEntry:
        for file in self.source.files():
            if self.format_of(file) not in ("jsonl", "csv", "tsv", "parquet"):
                raise ValueError(f"the name {Path(file).name} does not say how its rows are written: add `format: jsonl`, csv or tsv")
        return self

    @model_validator(mode="after")
    def _columns_fit_the_form(self) -> TaskEntry:
        needed, optional = self._segments_wanted()
        if missing := [name for name in needed if name not in self.columns]:
            raise ValueError(f"`columns` of a {self.form} task lacks {missing[0]!r}: it needs {', '.join(needed)}")
        if unknown := [name for name in self.columns if name not in (*needed, *optional)]:
            raise ValueError(f"`columns` has {unknown[0]!r}, which a {self.form} task does not read: it needs {', '.join(needed)}")
        if lists := [name for name, column in self.columns.items() if isinstance(column, list) and name != "options"]:
            raise ValueError(f"`columns.{lists[0]}` is a list: only `options` may be one")
        return self

    @model_validator(mode="after")
    def _labels_fit_the_form(self) -> TaskEntry:
        if self.form == "multiple_choice":
            if self.labels or self.versions:
                raise ValueError("a multiple_choice task has no `labels` and no `versions`: its label is the right option")
            return self
        if self.versions and self.form not in ("entailment", "similarity"):
            raise ValueError(f"`versions` needs a form of two segments, and {self.form} has one")
        if len(self.label_names()) < 2 or len(set(self.label_names())) != len(self.label_names()):
            raise ValueError("`labels` needs at least two different names")
        if self.versions and (not isinstance(self.labels, list) or set(self.versions) != set(self.labels)):
            raise ValueError("`versions` needs one column for each name in `labels`, which is then a plain list")
        return self

    @model_validator(mode="after")
    def _scores_fit_the_labels(self) -> TaskEntry:
        if self.scores and self.form == "multiple_choice":
            raise ValueError(f"`scores`: {self.scores[0]} is of labels, and a multiple_choice task has options: leave it out")
        if "pearson" in self.scores and self.high_end() is None:
            raise ValueError("`scores`: pearson is of ratings, so it needs two `labels`, one with `above` and one with `below`")
        return self

    def high_end(self) -> int | None:
        """The class at the high end, where the label column holds a rating that two labels are the ends of."""
        rules = list(self.labels.values()) if isinstance(self.labels, dict) else []
        above, below = ([i for i, rule in enumerate(rules) if getattr(rule, end) is not None] for end in ("above", "below"))
        return above[0] if len(above) == len(below) == 1 and len(rules) == 2 else None

    def _segments_wanted(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(needed, optional) keys of `columns`."""
        if self.form == "multiple_choice":
            return ("question", "options", "label"), ("context",)
        segments = SEGMENTS[self.form]
        return (segments[:-1], ()) if self.versions else ((*segments, "label"), ())

    def format_of(self, file: str) -> str:
        """jsonl, csv, tsv or parquet."""
        return self.format or Path(file.removesuffix(".gz").removesuffix(".zst")).suffix.removeprefix(".")

    def label_names(self) -> list[str]:
        """Labels in class order; empty for multiple choice, whose classes are the options."""
        return list(self.labels)

    def columns_read(self) -> list[str]:
        """Every column of the file that is read, each once."""
        named: list[str] = []
        for column in self.columns.values():
            named += column if isinstance(column, list) else [column]
        named += [*self.versions.values(), *([self.split.group] if self.split.group else [])]
        return list(dict.fromkeys(named))
