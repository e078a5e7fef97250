"""Which dialogues are met when, in every step that tunes on a fixed set of them. A batch is a pure
function of (seed, step). No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from gpt_model.training.settings import Settings


def cosine(peak: float, *, steps: int, warmup: float, final: float) -> Callable[[int], float]:
    """A straight line from 0 over the share `warmup` of the steps, then a cosine down to `final` ·
    peak at the last one.
    """
    before = warmup * steps

    def rate(step: int) -> float:
        if step + 1 <= before:
            return peak * (step + 1) / before
        progress = (step - before) / max(1.0, steps - 1 - before)
        return peak * (
            final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
        )

    return rate


def settings_of(section: Mapping[str, Any], steps: int) -> Settings:
    """A section of the recipe's `alignment` as the loop takes it."""
    return Settings(
        steps=steps,
        learning_rate=cosine(
            section["learning_rate"],
            steps=steps,
            warmup=section["warmup"],
            final=section["final_learning_rate"],
        ),
        betas=tuple(section["betas"]),
        weight_decay=section["weight_decay"],
        gradient_clip=section["gradient_clip"],
        precision=section["precision"],
        seed=section["seed"],
    )
