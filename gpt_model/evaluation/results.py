"""What a zero-shot evaluation comes to: a row a score, and a row a task that could not be run.

The rows are `results.json` of an evaluation's folder, which later stages and the scorecard read.
How a score is computed is not here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from gpt_model.statistics import Z

RESULTS = "results.json"
PREDICTIONS_FILE = "predictions.jsonl"


@dataclass(frozen=True)
class Demonstrations:
    """How many demonstrations stood before a task's examples: GPT-3's zero-, one- and few-shot."""

    requested: int
    fewest: int  # before any one example, as fits the context
    mean: float

    @property
    def shots(self) -> str:
        """zero, one or few, as the paper calls it."""
        return {0: "zero", 1: "one"}.get(self.requested, "few")

    def __str__(self) -> str:
        if self.requested < 2 and self.fewest == self.requested:
            return f"{self.shots}-shot"
        return (
            f"{self.shots}-shot, K = {self.mean:.1f} of {self.requested} on average, "
            f"{self.fewest} at least, as fits the context"
        )

    def to_json(self) -> dict[str, Any]:
        return {"asked": self.requested, "fewest": self.fewest, "mean": self.mean}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        return cls(document["asked"], document["fewest"], document["mean"])


@dataclass(frozen=True)
class SubsetScore:
    """A metric on a part of a task's examples, with its 95 % interval."""

    value: float
    low: float | None
    high: float | None
    examples: int


@dataclass(frozen=True)
class TrainingOverlap:
    """What of a task's examples stands in the training text, and a metric without those examples.

    GPT-2's overlap is of a whole data set (`percent`, `ngrams`); GPT-3's contamination parts its
    examples into clean and dirty ones.
    """

    percent: float | None  # of the examples' 8-grams; None where no example has eight words
    ngrams: int  # 8-grams in the examples
    run: int  # words of a run that makes an example dirty
    clean: SubsetScore | None
    dirty: SubsetScore | None
    clean_percent: float  # of the examples
    too_short: int  # examples that have no run; they are among the clean ones

    def __str__(self) -> str:
        parts = (
            []
            if self.percent is None
            else [f"{self.percent:.3g} % of its 8-grams stand in the training text"]
        )
        if self.dirty and self.clean:
            score = f"{self.clean.value:.4g} on the {self.clean_percent:.3g} % of examples"
            parts.append(f"{score} that share no {self.run} words in a row with it")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "overlap_percent": self.percent,
            "ngrams": self.ngrams,
            "contamination": {
                "run": self.run,
                "clean": asdict(self.clean) if self.clean else None,
                "dirty": asdict(self.dirty) if self.dirty else None,
                "clean_percent": self.clean_percent,
                "too_short": self.too_short,
            },
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        document = row["contamination"]
        clean, dirty = (
            SubsetScore(**document[part]) if document[part] else None for part in ("clean", "dirty")
        )
        return cls(
            row["overlap_percent"],
            row["ngrams"],
            document["run"],
            clean,
            dirty,
            document["clean_percent"],
            document["too_short"],
        )


@dataclass(frozen=True)
class ScoreRow:
    """One metric of one task, with its error, what it stands against and what it was measured on.

    Numbers are in the metric's own unit, an accuracy from 0 to 1. `low` and `high` are the 95 %
    interval, and None with `stderr` where the examples say nothing of it.
    """

    suite: str
    task: str
    metric: str
    value: float
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    baseline: str = ""  # "chance 0.250"; "" where there is none
    baseline_value: float | None = None
    lower_is_better: bool = False
    examples: int = 0
    available: int = 0  # examples there were before a subset was taken
    too_long: int = 0  # examples left out: an answer alone is longer than the model's context
    empty: int = 0  # examples left out: an answer is empty
    unreadable: int = 0  # examples left out: no question can be made of their row
    cut: int | None = None  # examples whose context was cut to fit; None where it was not counted
    cut_tokens: int = 0  # the most that one of them lost
    lowered_limit: str = ""  # where a generation limit was larger than the context, as a phrase
    fewer_demonstrations: str = ""  # where an adapter's did not all fit the context, as a phrase
    description: str = ""
    note: str = ""  # all that should stand beside the number, in a phrase
    version: float | None = None  # the task's; None of a mean over tasks
    split: str | None = None  # where the suite's data does not say it
    published: Mapping[str, str] | None = None  # the paper's {task, metric} and what `differs`
    demonstrations: Demonstrations | None = None  # of a task with `shots`
    overlap: TrainingOverlap | None = None  # where the training text is known

    # Fields and keys that are another's `to_json`.
    _NESTED: ClassVar = frozenset(
        ("demonstrations", "overlap", "shots", "overlap_percent", "ngrams", "contamination")
    )

    @property
    def name(self) -> str:
        """suite/task/metric"""
        return f"{self.suite}/{self.task}/{self.metric}"

    @property
    def error(self) -> float:
        """The standard error; of examples that came out alike, about a quarter of the interval."""
        width = 0.0 if self.low is None or self.high is None else self.high - self.low
        return float(self.stderr or width / (2 * Z))

    @property
    def left_out(self) -> str:
        """Why examples were left out, as a phrase."""
        reasons = [
            f"{self.too_long:,} more have an answer longer than the context" * bool(self.too_long),
            f"{self.empty:,} more have an empty answer" * bool(self.empty),
            f"{self.unreadable:,} more cannot be read" * bool(self.unreadable),
        ]
        return "; ".join(filter(None, reasons))

    @property
    def cut_text(self) -> str:
        """ "12 of 300 cut, by 41 tokens at most"; nothing where nothing was cut."""
        return cut_text(self.cut or 0, self.examples, self.cut_tokens)

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.value)

    def to_json(self) -> dict[str, Any]:
        """The row as `results.json` has it: a field's name is its key there, and what is not known
        has no key.
        """
        row = {name: value for name, value in vars(self).items() if name not in self._NESTED}
        for name in ("version", "split", "published", "cut"):
            if row[name] is None:
                del row[name]
        if self.demonstrations:
            row["shots"] = self.demonstrations.shots
            row["demonstrations"] = self.demonstrations.to_json()
        return row | (self.overlap.to_json() if self.overlap else {})

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        demonstrations = row.get("demonstrations")
        return cls(
            **{key: value for key, value in row.items() if key not in cls._NESTED},
            demonstrations=Demonstrations.from_json(demonstrations) if demonstrations else None,
            overlap=TrainingOverlap.from_json(row) if "contamination" in row else None,
        )


def cut_text(cut: int, examples: int, tokens: int) -> str:
    """ "12 of 300 cut, by 41 tokens at most"; nothing where nothing was cut."""
    plural = "" if tokens == 1 else "s"
    return f"{cut:,} of {examples:,} cut, by {tokens:,} token{plural} at most" if cut else ""


def interval_text(score: ScoreRow | SubsetScore) -> str:
    """ "0.31 to 0.36", or a dash where the examples say nothing of it."""
    if score.low is None or score.high is None:
        return "–"
    return f"{score.low:.4g} to {score.high:.4g}"


@dataclass(frozen=True)
class UnavailableRow:
    """A task that was not run, and why: a clause, to stand after "not run here: "."""

    suite: str
    task: str
    reason: str
    published: Mapping[str, str] | None = None  # where the suite's task does not say it

    def to_json(self) -> dict[str, Any]:
        published = {} if self.published is None else {"published": dict(self.published)}
        return {"suite": self.suite, "task": self.task, "not_run": self.reason, **published}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        return cls(row["suite"], row["task"], row["not_run"], row.get("published"))


@dataclass(frozen=True)
class Results:
    """Every row of an evaluation."""

    scores: Sequence[ScoreRow]
    unavailable: Sequence[UnavailableRow]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From `folder`/results.json."""
        rows = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["rows"]
        return cls(
            [ScoreRow.from_json(row) for row in rows if "not_run" not in row],
            [UnavailableRow.from_json(row) for row in rows if "not_run" in row],
        )

    def to_json(self, suites: Sequence[str]) -> list[dict[str, Any]]:
        """All rows in the order of `suites`; within one, the scores first."""
        order = {name: index for index, name in enumerate(suites)}
        rows: list[ScoreRow | UnavailableRow] = [*self.scores, *self.unavailable]
        return [row.to_json() for row in sorted(rows, key=lambda row: order[row.suite])]
