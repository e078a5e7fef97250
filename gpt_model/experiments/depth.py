"""GPT-1, figure 2 (left), extended from layers transferred to layers trained: held-out bits per
byte of whole models of fewer and more layers, on the same windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gpt_model.experiments.document import series
from gpt_model.statistics import Bootstrap, ConfidenceInterval, Floats, Statistic, cluster_bootstrap
from gpt_model.training.measure import HeldOut

# Groups of neighbouring windows that are drawn together, at most: the columns of a table of
# resamples.
GROUPS = 1000
BITS_PER_BYTE = Statistic(lambda sums: sums[..., 0] / math.log(2) / sums[..., 1])  # nats, bytes


def bootstrap_windows(windows: Sequence[Sequence[Floats]], seed: int) -> Bootstrap:
    """Bits per byte of each depth. `windows[depth][seed]` are a model's [windows, 3] of nats,
    tokens and bytes (`HeldOut.windows`); `seed` is of the resamples.
    """
    count = len(windows[0][0])
    groups = [str(number * min(count, GROUPS) // count) for number in range(count)]
    parts = [[model[:, [0, 2]] for model in models] for models in windows]
    return cluster_bootstrap(parts, BITS_PER_BYTE, groups, seed)


@dataclass(frozen=True)
class Depths:
    """Models of several depths, each of several seeds, on the same held-out text."""

    held_out: Mapping[int, Sequence[Mapping[str, HeldOut]]]  # by layers: of each seed, by source
    parameters: Mapping[int, int]  # by layers
    tokens: int  # each model is trained on

    @property
    def layers(self) -> list[int]:
        return list(self.held_out)

    @property
    def text(self) -> dict[str, HeldOut]:
        """The sources with more than one window, as one of the models predicts them."""
        first = next(iter(self.held_out.values()))[0]
        return {source: text for source, text in first.items() if len(text.windows) > 1}

    @cached_property
    def bootstraps(self) -> dict[str, Bootstrap]:
        """Of each source, a point a depth."""
        return {
            source: bootstrap_windows(
                [[model[source].windows for model in seeds] for seeds in self.held_out.values()],
                number,
            )
            for number, source in enumerate(self.text)
        }

    @cached_property
    def saved(self) -> dict[str, ConfidenceInterval]:
        """Bits per byte of each source that the deepest model saves over the shallowest."""
        weights = [1.0, *[0.0] * (len(self.layers) - 2), -1.0]
        return {
            source: bootstrap.interval(weights) for source, bootstrap in self.bootstraps.items()
        }

    def metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for source, bootstrap in self.bootstraps.items():
            for layers, point in zip(self.layers, bootstrap.intervals(), strict=True):
                metrics |= point.as_metrics(f"{source}/{layers}/bpb")
            metrics |= self.saved[source].as_metrics(f"{source}/saved")
        return metrics

    def document(self) -> dict[str, Any]:
        layers = self.layers
        curves = {source: bootstrap.intervals() for source, bootstrap in self.bootstraps.items()}
        columns = ["layers", "parameters", *(f"{source}, bits per byte" for source in curves)]
        rows = [
            [
                number,
                f"{self.parameters[number]:,}",
                *(str(curve[row]) for curve in curves.values()),
            ]
            for row, number in enumerate(layers)
        ]
        plot = {
            "title": "held-out bits per byte",
            "x": "layers",
            "y": "bits per byte",
            "log_x": True,
            "series": [series(source, layers, curve) for source, curve in curves.items()],
        }
        return {
            "title": "Bits per byte against depth",
            "source": "GPT-1, section 5, extended from layers transferred to layers trained",
            "summary": [
                f"{source}: {layers[-1]} layers instead of {layers[0]} save {saved} bits per byte "
                "of held-out text; all else is the same."
                for source, saved in self.saved.items()
            ]
            or ["No source has held-out text enough."],
            "tables": [{"caption": self._caption(), "columns": columns, "rows": rows}],
            "plots": [plot] if curves else [],
        }

    def _caption(self) -> str:
        """What was trained on and measured, and what the intervals are over."""
        seeds = len(next(iter(self.held_out.values())))
        size = "; ".join(
            f"{source} {text.tokens:,} tokens in {len(text.windows):,} windows"
            for source, text in self.text.items()
        )
        over = (
            f"Means of {seeds} seeds a depth. Intervals: 95 %, a bootstrap over windows and seeds; "
            "of what is saved, on the same windows."
            if seeds > 1
            else "One seed a depth. Intervals: 95 %, a bootstrap over windows; what another seed "
            "would give is not in them."
        )
        return f"Each model trained on {self.tokens:,} tokens. Held out: {size}. {over}"
