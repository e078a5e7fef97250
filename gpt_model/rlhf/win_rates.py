"""Which of two models answers better, and what the best of several answers costs.

Intervals are by bootstrap over prompts (`statistics.py`): what answers the same prompt, or stands
under it, is drawn together. Who judges is not known here, and how texts drift is `drift.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from gpt_model.statistics import ConfidenceInterval, Floats, bootstrap_share


def wins(ours: ArrayLike, theirs: ArrayLike) -> Floats:
    """Prompt by prompt: 1 where ours is scored higher, 0 where theirs is, ½ of a tie, no number
    where one of the two has none.
    """
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    found = 0.5 + 0.5 * np.sign(ours - theirs)
    return np.where(np.isfinite(ours) & np.isfinite(theirs), found, np.nan)


def win_rate(won: Floats, groups: Sequence[str]) -> ConfidenceInterval | None:
    """Of `wins`; None where no prompt has a number."""
    counted = np.isfinite(won)
    return (
        bootstrap_share(
            won[counted], [group for group, one in zip(groups, counted, strict=True) if one]
        )
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
