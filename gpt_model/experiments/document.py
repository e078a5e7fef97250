"""What the documents of several experiments have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt_model.statistics import ConfidenceInterval

# Stands in every document that compares an LSTM with the Transformer.
ONE_RUN = (
    "One pre-training run of each network: what another seed of pre-training would give is not in "
    "the intervals."
)


def series(label: str, x: Sequence[float], points: Sequence[ConfidenceInterval]) -> dict[str, Any]:
    """A curve of a plot, with its intervals."""
    return {
        "label": label,
        "x": list(x),
        "y": [point.value for point in points],
        "low": [point.low for point in points],
        "high": [point.high for point in points],
    }
