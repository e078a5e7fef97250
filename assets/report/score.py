"""What a score is. No pandas: the terminal reads scorecard.json with it, and waits for no table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpt_model.evaluation.suites import ON_ANOTHER_SCALE


def number(value: float) -> str:
    """Three decimals, thousands by a comma, and powers of ten from a million on."""
    if abs(value) < 1000:
        return f"{value:.3f}"
    return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.3g}"


@dataclass(frozen=True)
class Score:
    """One number with its interval, its baseline, its sample and the artifact it comes from.

    The fields are keys of scorecard.json.
    """

    asset: str
    fingerprint: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    baseline: str = ""  # "majority 0.504"
    against: float | None = None  # the best of the baselines
    examples: int | None = None
    unit: str = "examples"
    split: str = ""
    lower_is_better: bool = False
    note: str = ""
    scale: str = ""  # "%": the value is in hundredths; "": a share, or what the metric is in
    # {"task", "metric"} of the published numbers beside it, and what "differs", where that is known
    published: Mapping[str, str] | None = None
    paper: str | None = None  # whose protocol it is, where the published name alone does not say
    shots: str | None = None  # zero, one or few
    k: str = ""  # demonstrations that fitted, on average, of those requested
    available: int | None = None  # examples that the split has
    overlap: float | None = None  # % of the task's 8-grams that stand in the training text
    cut: str = ""  # "12 of 300 cut, by 41 tokens at most": contexts that were longer than ours

    @property
    def complete(self) -> bool:
        """Whether it may be shown: with interval, split and sample size."""
        return None not in (self.low, self.high) and bool(self.split) and bool(self.examples)

    @property
    def verdict(self) -> str:
        """better, worse or undecided: whether the best baseline lies outside the interval."""
        if self.against is None or self.low is None or self.high is None:
            return ""
        if self.low <= self.against <= self.high:
            return "undecided"
        return "better" if (self.value < self.against) == self.lower_is_better else "worse"

    @property
    def on_another_scale(self) -> bool:
        """Whether it says what bits per byte says, which stands beside it."""
        return self.name.endswith(ON_ANOTHER_SCALE)

    @property
    def of_any_shots(self) -> str:
        """Its name without the number of demonstrations: "piqa acc" of "piqa_few acc"."""
        task, _, metric = self.name.rpartition(" ")
        return f"{task.removesuffix(f'_{self.shots}')} {metric}"

    @property
    def best_baseline(self) -> str:
        """The one of the baselines that the verdict is against: "random 0.568"."""
        parts = self.baseline.split(", ")
        value = "" if self.against is None else number(self.against)
        return next((part for part in parts if part.endswith(f" {value}")), self.baseline)

    def interval(self, factor: float = 1.0) -> str:
        """ "0.321 – 0.402"; with a factor of 100, "32.10 – 40.20" """
        if self.low is None or self.high is None or not self.complete:
            return ""
        return f"{scaled(self.low, factor)} – {scaled(self.high, factor)}"

    def sample(self) -> str:
        """ "500 of 1,300 examples, validation" """
        if not self.complete:
            return ""
        subset = self.available and self.examples and self.available > self.examples
        of = f" of {self.available:,}" if subset else ""
        cut = f"; {self.cut}" if self.cut else ""
        return f"{self.examples:,}{of} {self.unit}, {self.split}{cut}"


@dataclass(frozen=True)
class NotRun:
    """A score of the recipe whose data is unavailable here. The fields are keys of
    scorecard.json.
    """

    asset: str
    fingerprint: str
    name: str
    reason: str
    published: tuple[Mapping[str, str], ...] = ()
    paper: str | None = None

    @property
    def short_reason(self) -> str:
        """Without what to do about it, which stands under the artifact."""
        return self.reason.partition(";")[0]


def scaled(value: float, factor: float) -> str:
    return number(value) if factor == 1 else f"{value * factor:.2f}"
