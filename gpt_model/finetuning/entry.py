"""TaskEntry: one supervised task as data (where its rows lie, which form and labels they have), so
that adding a task needs a YAML file and no code. How rows become examples is `examples.py`'s.

The entries that come with the project are `catalogue/*.yaml` beside this file. The four forms are
those of GPT-1 (Radford et al. 2018, section 3.3 and figure 1); what each reads from a row is
`SEGMENTS`.
"""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from gpt_model.data.formats import format_from_ending
from gpt_model.data.local_files import PinnedFile, seen_from
from gpt_model.data.location import Located, Location, resolve
from gpt_model.strict import Bounds, Share, Strict

CATALOGUE = Path(__file__).resolve().parent / "catalogue"

SplitName = Literal["training", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("training", "validation", "test")

PairOf = Literal["one_group", "two_groups"]
Form = Literal["classification", "entailment", "similarity", "multiple_choice"]
Metric = Literal["accuracy", "f1", "matthews", "pearson"]
SCORE_NAMES: dict[str, str] = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson with the ratings",
}
SEGMENTS: dict[str, tuple[str, ...]] = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("first", "second"),
    "multiple_choice": ("question",),
}


class Splits(Strict):
    """What whoever made the task split it into: a file each, or a split each on the hub
    ("SUBSET/SPLIT" where subsets differ).

    Without a validation split its share is taken from training. Several tests, by name, are one
    test split, and each is also scored on its own.
    """

    training: str = Field(description="file or split")
    validation: str | None = Field(
        default=None, description="file or split; default: a share of training"
    )
    test: str | dict[str, str] = Field(description="file or split, or several by name")

    def tests(self) -> dict[str, str]:
        """Part of the test split → its file or split; a single test has the part ""."""
        return self.test if isinstance(self.test, dict) else {"": self.test}

    def all(self) -> list[str]:
        """Every one named, training first."""
        return [
            name
            for name in (self.training, self.validation, *self.tests().values())
            if name is not None
        ]

    def renamed(self, name: Callable[[str], str]) -> Splits:
        """With `name(…)` for each name."""
        test = (
            {part: name(test) for part, test in self.test.items()}
            if isinstance(self.test, dict)
            else name(self.test)
        )
        return Splits(
            training=name(self.training),
            validation=None if self.validation is None else name(self.validation),
            test=test,
        )


class TaskSource(Located):
    """A member of a pinned package archive, local files (relative to the entry's own folder), or a
    hub data set's splits.
    """

    LOCATIONS: ClassVar = ("file", "hub", "on_request")
    GOES_WITH: ClassVar = {
        "package": ("file",),
        **dict.fromkeys(("kind", "sha256"), ("package",)),
        **dict.fromkeys(("revision", "subset", "splits"), ("hub",)),
    }
    NEEDS: ClassVar = {"package": ("kind", "sha256"), "hub": ("revision", "splits")}

    package: str | None = Field(
        default=None, description="name==version; opened as an archive, never installed"
    )
    kind: Literal["wheel", "sdist"] | None = Field(
        default=None, description="which of the package's files"
    )
    sha256: str | None = Field(
        default=None, description="64 hexadecimal digits; of the package's archive"
    )
    file: str | Splits | None = Field(
        default=None,
        description="member of the archive (outer.tar.gz!inner for a nested one), or path",
    )
    hub: str | None = Field(
        default=None,
        description="a data set's id on the Hugging Face hub, or ./folder with a copy of one",
    )
    revision: str | None = Field(
        default=None,
        description="its commit, or a branch, which is tied to a commit when a build is planned",
    )
    subset: str | None = Field(default=None, description="its configuration")
    splits: Splits | None = Field(default=None, description="its splits")
    on_request: str | None = Field(
        default=None,
        description="where its authors are asked for it: it can be had as local files only",
    )
    pinned: list[PinnedFile] | None = Field(
        default=None, description="filled in when a build is planned, not by a hand"
    )

    @property
    def local(self) -> bool:
        """Whether it is files on this machine."""
        return self.file is not None and self.package is None

    def names(self) -> list[str]:
        """Every file, or every split on the hub, training first."""
        given = self.splits or self.file
        return [given] if isinstance(given, str) else given.all() if given else []

    def tests(self) -> dict[str, str]:
        """Part of the test split → its file or split on the hub, as `Splits.tests`."""
        given = self.splits or self.file
        return given.tests() if isinstance(given, Splits) else {"": given} if given else {}

    def location(self, name: str | None = None) -> Location:
        """Where one of `names()` lies; default: the first."""
        names = self.names()
        name = names[0] if name is None else name
        if self.hub is not None:
            subset, _, split = name.rpartition("/")
            return Location(
                hub=self.hub,
                revision=self.revision or "main",
                config=subset or self.subset,
                split=split,
                pinned=self.pinned,
            )
        if self.package is not None:
            assert self.kind and self.sha256  # a package needs them
            return Location(package=self.package, kind=self.kind, sha256=self.sha256, files=name)
        # by position: the entry may write a path that `pin` writes otherwise
        pinned = [self.pinned[names.index(name)]] if self.pinned else None
        return Location(path=glob.escape(name), pinned=pinned)

    def resolved(self, base: Path, downloads: Path) -> TaskSource:
        """With its local files, relative to `base`, tied to their bytes, in the order of `names()`,
        and a branch tied to its commit. Raises Unreachable where the hub is asked and silent.
        """
        if self.hub is not None or self.package is not None:
            return self.with_resolved(resolve(self.location(), base, downloads))
        locations = [resolve(self.location(name), base, downloads) for name in self.names()]
        pinned = [file for location in locations for file in location.pinned or []]
        return self.model_copy(update={"pinned": pinned})

    def seen_from(self, base: Path, folder: Path) -> TaskSource:
        """With its local files, relative to `folder`, named as seen from `base`."""

        def renamed(file: str) -> str:
            return seen_from(file, base, folder)

        if self.hub is not None and self.location_is_folder():
            return self.model_copy(update={"hub": f"./{renamed(self.hub)}"})
        if self.package is not None or self.file is None:
            return self
        file = renamed(self.file) if isinstance(self.file, str) else self.file.renamed(renamed)
        return self.model_copy(update={"file": file})


class Rule(Strict):
    """Which values of the label column mean a label: exactly one of the three."""

    equals: bool | int | float | str | None = Field(default=None, description="this value")
    above: float | None = Field(default=None, description="numbers greater than this one")
    below: float | None = Field(default=None, description="numbers less than this one")

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
    validation: Share = Field(default=0.1, description="of the rows: the epoch is chosen on it")
    test: Share = Field(default=0.2, description="of the rows: the score is of it")

    @model_validator(mode="after")
    def _something_is_left(self) -> TaskSplit:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation} + test {self.test} leave nothing to train on: make "
                "them smaller"
            )
        return self


class NextSentence(Strict):
    """Questions made of running text: its first sentence, and which sentence follows. The wrong
    options are second sentences of other groups' texts, as in Devlin et al. 2019 (BERT, section
    3.1), whose pairs are here options.
    """

    options: Annotated[int, Bounds(2, 26, "they are lettered A to Z")] = Field(
        default=2, description="sentences to choose from, one of which is right"
    )
    words: Annotated[int, Bounds(4, 1_000, "no sentence is longer")] = Field(
        default=24, description="of a sentence, at most; the rest of it is cut off"
    )


class Published(Strict):
    """Where a paper reports the task: the name its tables have for it, and what of it they give."""

    task: str = Field(description="its name in the paper's tables")
    metric: Metric = Field(default="accuracy", description="what the paper gives")
    parts: dict[str, str] = Field(
        default_factory=dict, description="part of the test split -> its own name in the tables"
    )
    differs: str | None = Field(
        default=None,
        description="what of data or protocol is known to differ from the paper's; stands beside "
        "ours",
    )

    def reference(self, task: str) -> dict[str, str]:
        """The row of gpt_model/published that has `task`, which is the whole task's name or a
        part's.
        """
        return {
            "task": task,
            "metric": self.metric,
            **({"differs": self.differs} if self.differs else {}),
        }


Rating = Annotated[int, Bounds(-1_000, 1_000, "each whole one is a class")]


class TaskEntry(Strict):
    """A task, whose name is its file's. `columns` names, for each segment of the form, the column
    its text is in, or the columns.
    """

    description: str = Field(default="", description="shown in Dagster and on the scorecard")
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
    form: Form = Field(description="which of GPT-1's four input forms its rows take")
    columns: dict[str, str | list[str]] = Field(
        description="segment of the form, and `label` -> column, or columns that are joined"
    )
    versions: dict[str, str] = Field(
        default_factory=dict,
        description="label -> column: a row holds one text a label (the form's last segment), "
        "and gives one example for each",
    )
    pairs: dict[str, PairOf] = Field(
        default_factory=dict,
        description="label -> which two rows a pair is made of: two of one `split.group`, or one "
        "each of two groups. The first segment is read from one row, the second from the other",
        exclude_if=lambda pairs: not pairs,  # else every older task would have another fingerprint
    )
    next_sentence: NextSentence | None = Field(
        default=None,
        description="multiple choice made of the text in the column `text`: which sentence follows "
        "its first? One text of each group; what stands before `split.together` is its heading, "
        "and left out",
        exclude_if=lambda made: made is None,
    )
    labels: list[str] | dict[str, Rule] = Field(
        default_factory=list,
        description="names in class order; as a list, the column holds the name; default, of "
        "local files: the few different values of the column",
    )
    scale: list[Rating] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="the label column holds ratings from the first to the second, in place of "
        "`labels`: a class for each whole one",
    )
    first_option: Rating = Field(
        default=0,
        description="the number that the label column has for the first option, where it has "
        "numbers",
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
        description="what the field reports of such a task beside its metric; stands with it in "
        "the scorecard",
    )
    split: TaskSplit = TaskSplit()
    show_text: bool = Field(
        default=True,
        description="false where the licence does not cover the text: at most three short "
        "samples are shown",
    )

    @model_validator(mode="after")
    def _format_is_known(self) -> TaskEntry:
        self.refuse_unknown_formats()
        return self

    def refuse_unknown_formats(self) -> None:
        """Raises ValueError where the name of a file and `format` do not say how its rows are
        written.
        """
        for file in [] if self.source.hub else self.source.names():
            if self.format is None and format_from_ending(file) in (None, "text"):
                raise ValueError(
                    f"the name {Path(file).name} does not say how its rows are written: "
                    "add `format: jsonl`, csv or tsv"
                )

    @model_validator(mode="after")
    def _columns_fit_the_form(self) -> TaskEntry:
        needed, optional = self._segments_wanted()
        if missing := [name for name in needed if name not in self.columns]:
            raise ValueError(
                f"`columns` of a {self.form} task lacks {missing[0]!r}: it needs "
                f"{', '.join(needed)}"
            )
        if unknown := [name for name in self.columns if name not in (*needed, *optional)]:
            raise ValueError(
                f"`columns` has {unknown[0]!r}, which a {self.form} task does not read: it needs "
                f"{', '.join(needed)}"
            )
        if lists := [
            name
            for name, column in self.columns.items()
            if isinstance(column, list) and name == "label"
        ]:
            raise ValueError(
                f"`columns.{lists[0]}` is a list: `options` may be one, and a text, whose columns "
                "are then joined"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit_the_form(self) -> TaskEntry:
        if self.form == "multiple_choice":
            if self.labels or self.versions or self.pairs or self.scale:
                raise ValueError(
                    "a multiple_choice task has no `labels`, `versions`, `pairs` or `scale`: its "
                    "label is the right option"
                )
            return self
        if self.next_sentence:
            raise ValueError(f"`next_sentence` needs the form multiple_choice, not {self.form}")
        if self.pairs:
            self._refuse_unfit_pairs()
        if self.scale and (self.labels or self.versions or self.scale[0] >= self.scale[1]):
            raise ValueError(
                "`scale` takes the place of `labels` and `versions`, and runs from a lower number "
                "to a higher one"
            )
        if self.versions and self.form not in ("entailment", "similarity"):
            raise ValueError(f"`versions` needs a form of two segments, and {self.form} has one")
        made = self.versions or self.pairs
        if not self.labels and not self.scale and not made and self.source.local:
            return self  # inferred from its rows
        if len(self.label_names()) < 2 or len(set(self.label_names())) != len(self.label_names()):
            raise ValueError("`labels` needs at least two different names")
        if self.versions and (
            not isinstance(self.labels, list) or set(self.versions) != set(self.labels)
        ):
            raise ValueError(
                "`versions` needs one column for each name in `labels`, which is then a plain list"
            )
        return self

    def _refuse_unfit_pairs(self) -> None:
        if len(SEGMENTS[self.form]) != 2:
            raise ValueError(f"`pairs` needs a form of two segments, and {self.form} has one")
        if self.versions or self.scale or not self.split.group:
            raise ValueError(
                "`pairs` takes the place of `versions` and `scale`, and needs `split.group`: the "
                "column whose equal texts are a group"
            )
        if sorted(self.pairs.values()) != sorted(get_args(PairOf)) or (
            not isinstance(self.labels, list) or set(self.pairs) != set(self.labels)
        ):
            raise ValueError(
                "`pairs` needs the two names in `labels`, a plain list: one for one_group, the "
                "other for two_groups"
            )

    @model_validator(mode="after")
    def _scores_fit_the_labels(self) -> TaskEntry:
        for score in (self.metric, *self.scores):
            if score in ("f1", "matthews") and (self.scale or self.form == "multiple_choice"):
                raise ValueError(
                    f"{score} is of labels, and this task has "
                    f"{'ratings' if self.scale else 'options'}: leave it out"
                )
            if score == "accuracy" and self.scale:
                raise ValueError(
                    "accuracy is of labels, and this task has ratings: give `metric: pearson`"
                )
            if score == "pearson" and not self.rated():
                raise ValueError(
                    "pearson is of ratings, so it needs a `scale`, or two `labels`, one with "
                    "`above` and one with `below`"
                )
        return self

    def pair_label(self, kind: PairOf) -> str:
        """The label of pairs of that kind."""
        return next(label for label, of in self.pairs.items() if of == kind)

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
        if self.next_sentence:
            return ("text",), ()
        if self.form == "multiple_choice":
            return ("question", "options", "label"), ("context",)
        segments = SEGMENTS[self.form]
        if self.pairs:
            return segments, ()
        return (segments[:-1], ()) if self.versions else ((*segments, "label"), ())

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
