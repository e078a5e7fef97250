"""The only intervals: of a share (Wilson), of a ratio of sums (the delta method), and a cluster
bootstrap for every other score. All are of 95 % where nothing else is said.

A bootstrap draws whole groups of examples, because questions about one passage, or answers to one
prompt, are not independent. A score that is a function of sums over examples is a `Statistic`, so a
resample is a weighted sum of the groups' sums. Where all examples came out alike, a resample cannot
differ from another: the interval is then what a share of unlike examples not met yet may do.

Every generator has a fixed seed, and artifacts are compared by digest: the order of draws and of
additions stays. Which score has which interval is decided where the score is defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

Z = 1.959964  # of a two-sided 95 % interval
TAIL = 0.025  # of samples, beyond either end of a 95 % interval
ALIKE = 1e-12  # a standard error, or a width, below which examples came out alike
RESAMPLES, SCORE_RESAMPLES = 2000, 10_000
BATCH = 500  # resamples in memory at a time


@dataclass(frozen=True)
class ConfidenceInterval:
    """A value and the ends of its interval; its standard error where a formula gives one.

    `alike`: every resample has the same value, so the ends are no bootstrap's.
    """

    value: float
    low: float
    high: float
    stderr: float | None = None
    alike: bool = False

    def __str__(self) -> str:
        value, low, high = (
            round(number, 3) + 0.0 for number in (self.value, self.low, self.high)
        )  # + 0.0: no "-0.000"
        return f"{value:.3f} ({low:.3f} to {high:.3f})"

    def __format__(self, spec: str) -> str:
        """`spec` is of each of the three numbers: f"{interval:+.4f}"."""
        if not spec:
            return str(self)
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"

    def as_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def as_metrics(self, name: str) -> dict[str, float]:
        """NAME, NAME_low and NAME_high; NAME_alike, 1, where the interval is no bootstrap's."""
        metrics = {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}
        return metrics | ({f"{name}_alike": 1.0} if self.alike else {})


@dataclass(frozen=True)
class Statistic:
    """A score that is a function of sums over examples.

    `value` takes sums [..., parts] to scores [...]. `possible` has every row [rows, parts] that one
    example may contribute; None where there are infinitely many.
    """

    value: Callable[[Floats], Floats]
    possible: Floats | None = None


def normal_interval(value: float, stderr: float) -> ConfidenceInterval:
    return ConfidenceInterval(value, value - Z * stderr, value + Z * stderr, stderr)


def wilson(successes: float, n: int) -> ConfidenceInterval:
    """Of the share `successes` of `n`. Wilson's interval holds for few examples, near 0 and 1."""
    share = successes / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return ConfidenceInterval(
        share,
        0.0 if successes == 0 else max(0.0, centre - half),  # at the ends it is exact
        1.0 if successes == n else min(1.0, centre + half),
    )


def ratio_interval(totals: ArrayLike, weights: ArrayLike) -> ConfidenceInterval:
    """Sum of `totals` over sum of `weights`, by linearisation (the delta method); examples are
    independent, and two or more.
    """
    above, below = np.asarray(totals, dtype=float), np.asarray(weights, dtype=float)
    n, value = len(above), above.sum() / below.sum()
    residuals = above - value * below
    stderr = math.sqrt(n / (n - 1) * (residuals**2).sum()) / below.sum()
    return normal_interval(float(value), float(stderr))


def mean_interval(values: Sequence[float] | Floats) -> ConfidenceInterval:
    """A mean with s/√n; of two values or more."""
    return ratio_interval(values, np.ones(len(values)))


def bits_per_byte_interval(nats: ArrayLike, sizes: ArrayLike) -> ConfidenceInterval:
    """Of texts with these nats [n] and bytes [n]."""
    interval, bits = ratio_interval(nats, sizes), 1 / math.log(2)
    assert interval.stderr is not None
    return ConfidenceInterval(
        interval.value * bits, interval.low * bits, interval.high * bits, interval.stderr * bits
    )


def unseen_share(n: int) -> float:
    """The largest share of others where `n` were met and all alike, at 97.5 %: 1 - 0.025^(1/n)
    (Clopper and Pearson 1934).
    """
    return float(1 - TAIL ** (1 / n))


def percentile_ends(samples: Floats, tail: float = TAIL) -> tuple[float, float]:
    """The values that a share `tail` of the samples lies below, and above."""
    low, high = np.quantile(samples, (tail, 1 - tail))
    return float(low), float(high)


def resamples(n: int, number: int, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Indices of `n` things drawn with replacement, `number` times: batches [≤ BATCH, n]."""
    for first in range(0, number, BATCH):
        yield generator.integers(n, size=(min(BATCH, number - first), n))


def group_sums(parts: Floats, groups: Sequence[str]) -> Floats:
    """[examples, parts] added up by group: [groups, parts], in the order of the groups' names."""
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), parts.shape[1]))
    np.add.at(sums, members, parts)
    return sums


def _resampled_sums(sums: Floats, number: int, generator: np.random.Generator) -> Iterator[Floats]:
    """Sums over groups drawn with replacement: `sums` [groups, …] -> batches [≤ BATCH, …]."""
    n = len(sums)
    for indices in resamples(n, number, generator):
        rows = len(indices)
        shifted = indices + n * np.arange(rows)[:, None]
        times = np.bincount(shifted.ravel(), minlength=rows * n).reshape(rows, n)
        yield np.tensordot(times.astype(float), sums, 1)


def _with_others(sums: Floats, count: int, others: Floats, share: float | Floats) -> Floats:
    """`sums` [parts] of `count` examples of which a `share` came out as `others` [rows, parts]
    instead: [rows, parts].
    """
    share = np.reshape(np.asarray(share), (-1, 1))
    return np.asarray((1 - share) * sums + share * count * others)


# One score of one model, or of two models on the same examples.


def score_interval(
    parts: Floats, groups: Sequence[str], statistic: Statistic, limits: tuple[float, float]
) -> ConfidenceInterval:
    """The statistic of `parts` [examples, parts], groups drawn 10,000 times. `limits` of the score
    are its interval where there is a single group, or nothing says how unlike others may be.
    """
    sums = group_sums(parts, groups)
    value = float(statistic.value(sums.sum(0)))
    if len(sums) < 2:
        return ConfidenceInterval(value, *limits, alike=True)
    batches = _resampled_sums(sums, SCORE_RESAMPLES, np.random.default_rng(0))
    low, high = percentile_ends(np.concatenate([statistic.value(batch) for batch in batches]))
    if high - low >= ALIKE:
        return ConfidenceInterval(value, low, high)
    if statistic.possible is None:
        return ConfidenceInterval(value, *limits, alike=True)
    share = unseen_share(len(sums))
    others = statistic.value(_with_others(sums.sum(0), len(parts), statistic.possible, share))
    low, high = float(min(value, *others)), float(max(value, *others))
    return ConfidenceInterval(value, low, high, alike=True)


def paired_difference(
    first: Floats,
    second: Floats,
    groups: Sequence[str],
    value: Callable[[Floats], Floats],
    possible_pairs: Floats | None,
) -> ConfidenceInterval:
    """The score of `first` minus that of `second`, two models' parts [examples, parts] of the same
    examples. `possible_pairs` [rows, 2 × parts]: what the two may contribute of one example.
    """
    count = first.shape[1]

    def difference(sums: Floats) -> Floats:
        return value(sums[..., :count]) - value(sums[..., count:])

    statistic = Statistic(difference, possible_pairs)
    return score_interval(np.concatenate([first, second], 1), groups, statistic, (-1.0, 1.0))


# A mean or a ratio over prompts, which are drawn 2,000 times.


def bootstrap_ratio(
    totals: ArrayLike, weights: ArrayLike, groups: Sequence[str] | None = None
) -> ConfidenceInterval:
    """Sum of `totals` over sum of `weights`. Without `groups` each row is drawn alone."""
    rows = np.stack([np.asarray(totals, dtype=float), np.asarray(weights, dtype=float)], 1)
    above, below = np.ascontiguousarray((rows if groups is None else group_sums(rows, groups)).T)
    batches = resamples(len(above), RESAMPLES, np.random.default_rng(0))
    samples = [above[indices].sum(1) / below[indices].sum(1) for indices in batches]
    value = float(above.sum() / below.sum())
    low, high = percentile_ends(np.concatenate(samples))
    return ConfidenceInterval(value, min(low, value), max(high, value))


def bootstrap_mean(values: ArrayLike, groups: Sequence[str] | None = None) -> ConfidenceInterval:
    return bootstrap_ratio(values, np.ones(len(np.asarray(values))), groups)


def bootstrap_share(values: ArrayLike, groups: Sequence[str] | None = None) -> ConfidenceInterval:
    """The mean of what lies from 0 to 1. The interval reaches at least as far as a share of others,
    not met yet, may move it: where all prompts came out alike, or all but one, no resample can say
    so.
    """
    interval = bootstrap_mean(values, groups)
    n = len(np.asarray(values)) if groups is None else len(set(groups))
    share = unseen_share(n)
    rest = (1 - share) * interval.value
    low, high = min(interval.low, rest), max(interval.high, rest + share)
    return ConfidenceInterval(interval.value, low, high)


# The points of an experiment, each several trained models.


@dataclass(frozen=True)
class Bootstrap:
    """The score of each point of an experiment: as it is, and in every resample."""

    values: Floats  # [points]
    samples: Floats  # [resamples, points]
    alike: frozenset[int] = frozenset()  # points whose samples are of examples not met yet

    def interval(self, weights: Sequence[float] | Floats) -> ConfidenceInterval:
        """Of a weighted sum of the points: one of them, a difference, a slope."""
        low, high = percentile_ends(self.samples @ np.asarray(weights))
        value = float(self.values @ np.asarray(weights))
        return ConfidenceInterval(value, min(low, value), max(high, value))

    def intervals(self) -> list[ConfidenceInterval]:
        """Of each point."""
        return [
            replace(self.interval(row), alike=point in self.alike)
            for point, row in enumerate(np.eye(len(self.values)))
        ]


def cluster_bootstrap(
    parts: Sequence[Sequence[Floats]], statistic: Statistic, groups: Sequence[str], seed: int = 0
) -> Bootstrap:
    """Points of several trained models each, resampled over test examples and over seeds.

    `parts[point][seed]` are one model's [examples, parts]; `groups` are of the examples, which are
    the same for all models, so differences are paired. Of a point's n seeds n - 1 are drawn, which
    gives their mean the right variance (Rao and Wu 1988); points draw apart, as their models have
    nothing in common but the data. One seed says nothing of the variance over seeds: the interval
    is then over examples alone. `seed` is of the resamples: another for what is to be independent.
    """
    sums = np.stack(
        [np.stack([group_sums(model, groups) for model in models], 1) for models in parts], 1
    )  # [groups, points, seeds, parts]
    generator = np.random.default_rng(seed)
    scores = np.concatenate(
        [statistic.value(batch) for batch in _resampled_sums(sums, RESAMPLES, generator)]
    )  # [resamples, points, seeds]
    seeds = scores.shape[2]
    drawn = generator.integers(seeds, size=(RESAMPLES, len(parts), max(1, seeds - 1)))
    samples = np.take_along_axis(scores, drawn, axis=2).mean(2)
    alike = np.flatnonzero(np.ptp(samples, axis=0) < ALIKE)
    if (possible := statistic.possible) is not None:
        for point in alike:
            others = possible[generator.integers(len(possible), size=RESAMPLES)]
            # A random share of unlike groups, of which 97.5 % are below `unseen_share`.
            shares = generator.beta(1, len(sums), size=RESAMPLES)
            mean_sums = sums[:, point].sum(0).mean(0)
            mixed = _with_others(mean_sums, len(groups), others, shares)
            samples[:, point] = statistic.value(mixed)
    values = statistic.value(sums.sum(0)).mean(1)
    return Bootstrap(values, samples, frozenset(alike.tolist()))


def slope_weights(x: Sequence[float]) -> list[float]:
    """Weights of the points at `x` [points] whose sum is their least-squares slope."""
    centred = np.asarray(x, dtype=float) - np.mean(x)
    return [float(weight) for weight in centred / (centred**2).sum()]
