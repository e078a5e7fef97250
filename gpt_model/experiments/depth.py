"""Held-out bits per byte of models of several depths, on the same windows: intervals over windows
and over seeds of training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpt_model.statistics import Bootstrap, Floats, Statistic, cluster_bootstrap

# groups of neighbouring windows that are drawn together, at most: a table of resamples has so many
# columns
RUNS = 1000


BITS_PER_BYTE = Statistic(lambda sums: sums[..., 0] / math.log(2) / sums[..., 1])  # nats, bytes


def compared(windows: Sequence[Sequence[Floats]], seed: int) -> Bootstrap:
    """`windows[depth][seed]`: a model's rows of nats, tokens and bytes, one a window
    (`HeldOut.windows`). `seed`: of the resamples.
    """
    count = len(windows[0][0])
    runs = min(count, RUNS)
    groups = [str(number * runs // count) for number in range(count)]
    return cluster_bootstrap(
        [[one[:, [0, 2]] for one in models] for models in windows], BITS_PER_BYTE, groups, seed
    )
