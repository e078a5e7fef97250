"""How well scores of responses agree with people's rankings: accuracy over pairs, log loss,
calibration. No torch.

The bootstrap draws rankings, because the pairs of a prompt share responses and are not independent.
All rows of a source about one prompt are one ranking. Where a ranking is K single texts under one
instruction, no text is in two rankings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt_model.statistics import ConfidenceInterval, Floats, Statistic, cluster_bootstrap

Scores = Sequence[Sequence[float]]  # [rankings][responses]
Pairs = Sequence[Sequence[tuple[int, int]]]  # [rankings][pairs], (better, worse) response indices
BINS = 10


def gaps(scores: Scores, pairs: Pairs) -> list[Floats]:
    """The better response's score minus the worse one's: of each ranking [pairs]."""
    return [
        np.array([responses[better] - responses[worse] for better, worse in ranking], dtype=float)
        for responses, ranking in zip(scores, pairs, strict=True)
    ]


def accuracies(
    models: Sequence[Scores], pairs: Pairs
) -> tuple[list[ConfidenceInterval], ConfidenceInterval | None]:
    """Each model's share of pairs whose better response has the higher score; ties count half.

    And, of two models, how much higher the first one's is, pair by pair.
    """
    parts = [[np.array([_right(gap) for gap in gaps(scores, pairs)])] for scores in models]
    mean_pairs = float(np.mean([len(ranking) for ranking in pairs]))
    possible = np.array([[0.0, mean_pairs], [mean_pairs, mean_pairs]])
    accuracy = Statistic(lambda sums: sums[..., 0] / sums[..., 1], possible)
    bootstrap = cluster_bootstrap(parts, accuracy, [str(number) for number in range(len(pairs))])
    gained = bootstrap.interval([1.0, -1.0]) if len(models) == 2 else None
    return bootstrap.intervals(), gained


def _right(gap: Floats) -> list[float]:
    """[right pairs, pairs] of a ranking's gaps [pairs]."""
    return [float(np.mean(gap > 0) + np.mean(gap == 0) / 2) * len(gap), len(gap)]


def log_loss(scores: Scores, pairs: Pairs) -> float:
    """Mean nats of a pair, −log σ(gap); 0.693 = ln 2 of scores that say nothing."""
    return float(np.mean(np.logaddexp(0.0, -np.concatenate(gaps(scores, pairs)))))


@dataclass(frozen=True)
class Bin:
    """Pairs of similar predicted probability; each pair counts in both orders."""

    predicted: float  # mean
    preferred: float  # share that people prefer
    count: int


def calibration(scores: Scores, pairs: Pairs) -> tuple[list[Bin], float]:
    """Predicted probability σ(gap) against the share that people prefer, in ten bins; and the
    expected calibration error.

    Each pair counts in both orders, as the order of its responses means nothing: the curve is
    symmetric about a half.
    """
    better = 1 / (1 + np.exp(-np.clip(np.concatenate(gaps(scores, pairs)), -700, 700)))
    predicted = np.concatenate([better, 1 - better])
    preferred = np.concatenate([np.ones_like(better), np.zeros_like(better)])
    bin_of = np.minimum((predicted * BINS).astype(int), BINS - 1)
    bins = [
        Bin(
            float(predicted[bin_of == number].mean()),
            float(preferred[bin_of == number].mean()),
            int((bin_of == number).sum()),
        )
        for number in range(BINS)
        if (bin_of == number).any()
    ]
    error = sum(bin_.count * abs(bin_.predicted - bin_.preferred) for bin_ in bins)
    return bins, error / len(predicted)
