"""Which of two models answers better, and how far the best of several answers moves the policy.

Intervals are by bootstrap over prompts (`statistics.py`), all answers to a prompt drawn together.
Judges are the caller's; `drift.py` measures the texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from gpt_model.statistics import ConfidenceInterval, Floats, bootstrap_share


def wins(ours: ArrayLike, theirs: ArrayLike) -> Floats:
    """Of scores [prompts]: 1 where ours is higher, 0 where theirs is, ½ of a tie, NaN where a score
    is not a number. Returns [prompts].
    """
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    outcome = 0.5 + 0.5 * np.sign(ours - theirs)
    return np.where(np.isfinite(ours) & np.isfinite(theirs), outcome, np.nan)


def win_rate(wins: Floats, groups: Sequence[str]) -> ConfidenceInterval | None:
    """The mean of `wins` [prompts]; None where no prompt has a number."""
    finite = np.isfinite(wins)
    if not finite.any():
        return None
    counted = [group for group, number in zip(groups, finite, strict=True) if number]
    return bootstrap_share(wins[finite], counted)


def best(scores: ArrayLike, n: int) -> list[int]:
    """The index of the highest of each prompt's `n` scores; `scores` [prompts * n], those of a
    prompt side by side. NaN is never the highest beside a number.
    """
    by_prompt = np.nan_to_num(np.asarray(scores, dtype=float).reshape(-1, n), nan=-np.inf)
    return [int(prompt * n + index) for prompt, index in enumerate(by_prompt.argmax(1))]


def best_of_kl(n: int) -> float:
    """The most nats an answer that the best of `n` may lie from the policy it is sampled from:
    log n - (n - 1)/n (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n
