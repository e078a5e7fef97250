"""Ratings on a scale as classes, and back: STS-B's encoding in GPT-1's released code (utils.py,
after Tai et al. 2015, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def spread(rating: float, lowest: int, highest: int) -> tuple[float, ...]:
    """How much of each class is right, a class for each whole number: `spread(3.8, 0, 5)` is 0.2 of
    the 3's and 0.8 of the 4's.
    """
    floor = math.floor(rating)
    return tuple(
        {floor: floor + 1 - rating, floor + 1: rating - floor}.get(number, 0.0)
        for number in range(lowest, highest + 1)
    )


def expected(probabilities: Sequence[float], lowest: int) -> float:
    """The rating that class probabilities mean: `spread`'s inverse."""
    return lowest + sum(number * share for number, share in enumerate(probabilities))
