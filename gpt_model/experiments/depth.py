"""Held-out bits per byte of models of several depths, on the same windows: intervals over windows
and over seeds of training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpt_model.experiments.intervals import Points, resampled

# groups of neighbouring windows that are drawn together, at most: a table of resamples has so many
# columns
RUNS = 1000
Floats = NDArray[np.float64]


class BitsPerByte:
    """Of sums of nats and bytes."""

    def value(self, sums: Floats) -> Floats:
        bits: Floats = sums[..., 0] / math.log(2) / sums[..., 1]
        return bits

    def possible(self) -> None:
        """Nats may be any."""


def compared(windows: Sequence[Sequence[Floats]], seed: int) -> Points:
    """`windows[depth][seed]`: a model's rows of nats, tokens and bytes, one a window
    (`HeldOut.windows`). `seed`: of the resamples.
    """
    count = len(windows[0][0])
    runs = min(count, RUNS)
    groups = [str(number * runs // count) for number in range(count)]
    return resampled(
        [[one[:, [0, 2]] for one in models] for models in windows], BitsPerByte(), groups, seed
    )
