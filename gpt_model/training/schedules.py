"""Learning rates: pure functions of the step, as the papers have them."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def warmup_cosine(peak: float, *, warmup: int, steps: int, final: float) -> Schedule:
    """Linear from 0 over `warmup` steps, then a cosine down to `final` · peak at `steps` (GPT-3, appendix B: final 0.1).

    Step s, counted from 0, takes the rate at its middle, s + 1/2, so that the first and the last step both learn something.
    """

    def rate(step: int) -> float:
        at = step + 0.5
        if at < warmup:
            return peak * at / warmup
        progress = min(1.0, (at - warmup) / max(1, steps - warmup))
        return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))

    return rate


def warmup_linear(peak: float, *, warmup: float, steps: int) -> Schedule:
    """GPT-1's fine-tuning (section 4.1, released opt.py): x/warmup · (1 - x) up to the share `warmup` of the steps, 1 - x after it."""

    def rate(step: int) -> float:
        x = (step + 0.5) / steps
        return peak * (min(1.0, x / warmup) if warmup else 1.0) * (1 - x)

    return rate
