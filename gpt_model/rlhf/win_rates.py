"""Which of two models answers better, and what the best of several answers costs.

Figures with 95 % intervals by bootstrap over prompts: what answers the same prompt, or stands under
it, is drawn together. Who judges is not known here, and how texts drift is `drift.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt_model.evaluation.metrics import unseen
from gpt_model.experiments.intervals import RESAMPLES, Estimate

Floats = NDArray[np.float64]
CENTRAL = (2.5, 97.5)


# --- intervals ---


def ratio(
    above: ArrayLike, below: ArrayLike, groups: Sequence[str] | None = None, seed: int = 0
) -> Estimate:
    """Sum of `above` over sum of `below`. `groups`: which rows are drawn together; each alone where
    nothing is said.
    """
    value, samples = _resampled(above, below, groups, seed)
    low, high = np.percentile(samples, CENTRAL)
    return Estimate(value, min(float(low), value), max(float(high), value))


def mean(values: ArrayLike, groups: Sequence[str] | None = None, seed: int = 0) -> Estimate:
    return ratio(values, np.ones(len(np.asarray(values))), groups, seed)


def share(values: ArrayLike, groups: Sequence[str] | None = None, seed: int = 0) -> Estimate:
    """The mean of what lies from 0 to 1. The interval reaches at least as far as a share of others,
    not met yet, may move it: where all prompts came out alike, or all but one, there is nothing in
    the resamples that could say so.
    """
    values = np.asarray(values, dtype=float)
    found = mean(values, groups, seed)
    other = unseen(len(set(groups)) if groups is not None else len(values))
    kept = (1 - other) * found.value
    return Estimate(found.value, min(found.low, kept), max(found.high, kept + other))


def _resampled(
    above: ArrayLike, below: ArrayLike, groups: Sequence[str] | None, seed: int
) -> tuple[float, Floats]:
    """The ratio, and what it is in each resample: [resamples]."""
    above, below = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    if groups is not None:
        names, member = np.unique(np.asarray(groups), return_inverse=True)
        above, below = (np.bincount(member, part, minlength=len(names)) for part in (above, below))
    draw = np.random.default_rng(seed)
    samples = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        chosen = draw.integers(len(above), size=len(above))
        samples[number] = above[chosen].sum() / below[chosen].sum()
    return float(above.sum() / below.sum()), samples


# --- who answers better ---


def wins(ours: ArrayLike, theirs: ArrayLike) -> Floats:
    """Prompt by prompt: 1 where ours is scored higher, 0 where theirs is, ½ of a tie, no number
    where one of the two has none.
    """
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    found = 0.5 + 0.5 * np.sign(ours - theirs)
    return np.where(np.isfinite(ours) & np.isfinite(theirs), found, np.nan)


def win_rate(won: Floats, groups: Sequence[str]) -> Estimate | None:
    """Of `wins`; None where no prompt has a number."""
    counted = np.isfinite(won)
    return (
        share(won[counted], [group for group, one in zip(groups, counted, strict=True) if one])
        if counted.any()
        else None
    )


def best(scores: ArrayLike, n: int) -> list[int]:
    """Of `n` answers to each prompt, one after another, which is scored highest: its place among
    all. NaN is never the best of numbers.
    """
    by_prompt = np.nan_to_num(np.asarray(scores, dtype=float).reshape(-1, n), nan=-np.inf)
    return [int(prompt * n + place) for prompt, place in enumerate(by_prompt.argmax(1))]


def best_of_kl(n: int) -> float:
    """Nats an answer that the best of `n` may be from what it is chosen among: log n - (n - 1)/n, a
    bound (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n
