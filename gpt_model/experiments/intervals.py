"""Intervals of an experiment whose points are several trained models each: a bootstrap over test
examples and over seeds.

A point is one way to train, each of its seeds a model that answered the same test examples.
Examples are drawn by group, the same ones for all models, so that differences are paired. Of a
point's n seeds n - 1 are drawn, which makes the spread of their mean right and not too small (Rao
and Wu 1988); points draw on their own, as their models have nothing in common but the data. One
seed says nothing of its own spread: the interval is then over examples alone. Where all resamples
of a point are one number, as of models that always give the same answer, each is what a random
share of unlike groups not met yet may do, as likely as none of them having been met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpt_model.evaluation.metrics import ALIKE
from gpt_model.finetuning.metrics import with_others

RESAMPLES = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value, low, high = (
            round(number, 3) + 0.0 for number in (self.value, self.low, self.high)
        )  # + 0.0: no "-0.000"
        return f"{value:.3f} ({low:.3f} to {high:.3f})"


class Metric(Protocol):
    """What is made of sums over examples: a task's `Scoring`, bits per byte."""

    def value(self, sums: Floats) -> Floats:
        """[..., parts] -> [...]."""

    def possible(self) -> Floats | None:
        """Every row that an example's parts may be: [rows, parts]. None where they are without
        number.
        """


@dataclass(frozen=True)
class Points:
    """The metric of each point, a mean over its seeds: as it is, and in every resample."""

    values: Floats  # [points]
    samples: Floats  # [resamples, points]

    def estimate(self, weights: Sequence[float] | Floats) -> Estimate:
        """Of a weighted sum of the points: one of them, a difference, a slope."""
        low, high = np.percentile(self.samples @ np.asarray(weights), (2.5, 97.5))
        value = float(self.values @ np.asarray(weights))
        return Estimate(value, min(float(low), value), max(float(high), value))

    def each(self) -> list[Estimate]:
        return [self.estimate(row) for row in np.eye(len(self.values))]


def resampled(
    parts: Sequence[Sequence[Floats]], scoring: Metric, groups: Sequence[str], seed: int = 0
) -> Points:
    """`parts[point][seed]`: what one model's answers are worth, [examples, parts]
    (`Scoring.parts`); `groups`: of the examples.

    `seed`: of the resamples; another for what is to be independent.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    by_group = np.zeros((len(parts), len(parts[0]), len(names), parts[0][0].shape[1]))
    for point, models in enumerate(parts):
        for number, one in enumerate(models):
            np.add.at(by_group[point, number], member, one)
    draw = np.random.default_rng(seed)
    times = np.stack(
        [
            np.bincount(draw.integers(len(names), size=len(names)), minlength=len(names))
            for _ in range(RESAMPLES)
        ]
    )
    scores = scoring.value(
        np.einsum("rg,psgk->rpsk", times.astype(float), by_group, optimize=True)
    )  # [resamples, points, seeds]
    seeds = scores.shape[2]
    drawn = draw.integers(seeds, size=(RESAMPLES, len(parts), max(1, seeds - 1)))
    samples = np.take_along_axis(scores, drawn, axis=2).mean(2)
    if (possible := scoring.possible()) is not None:
        for alike in np.flatnonzero(np.ptp(samples, axis=0) < ALIKE):
            others = possible[draw.integers(len(possible), size=RESAMPLES)]
            shares = draw.beta(1, len(names), size=RESAMPLES)  # of which 97.5 % are below `unseen`
            samples[:, alike] = scoring.value(
                with_others(by_group[alike].sum(1).mean(0), len(groups), others, shares)
            )
    return Points(scoring.value(by_group.sum(2)).mean(1), samples)


def slope_weights(x: Sequence[float]) -> list[float]:
    """Weights that make a least-squares slope over `x` of the points at it."""
    centred = np.asarray(x, dtype=float) - np.mean(x)
    return [float(weight) for weight in centred / (centred**2).sum()]
