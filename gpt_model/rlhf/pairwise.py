"""How well numbers given to responses agree with how people ranked them: accuracy over pairs, log
loss, calibration. No torch.

Rankings are what is drawn again for the intervals, a source's rows of one prompt being one of them:
pairs of one prompt share its responses and are not independent. Where a ranking is K single texts
under one instruction, no text is in two rankings, so to draw rankings is to draw groups of texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt_model.statistics import ConfidenceInterval, Floats, Statistic, cluster_bootstrap

Scores = Sequence[Sequence[float]]  # of each ranking, of each of its responses
Pairs = Sequence[
    Sequence[tuple[int, int]]
]  # of each ranking: (better, worse) places among its responses
BINS = 10


def gaps(scores: Scores, pairs: Pairs) -> list[Floats]:
    """Better minus worse, of each pair of each ranking."""
    return [
        np.array([own[better] - own[worse] for better, worse in among], dtype=float)
        for own, among in zip(scores, pairs, strict=True)
    ]


def accuracies(
    models: Sequence[Scores], pairs: Pairs
) -> tuple[list[ConfidenceInterval], ConfidenceInterval | None]:
    """Each model's share of pairs in which the better response has more, with its 95 % interval;
    equal numbers count half.

    And, where there are two, what the first has over the second, pair by pair.
    """
    parts = [
        [
            np.array(
                [
                    [float(np.mean(gap > 0) + np.mean(gap == 0) / 2) * len(gap), len(gap)]
                    for gap in gaps(one, pairs)
                ]
            )
        ]
        for one in models
    ]
    each = float(np.mean([len(ranking) for ranking in pairs]))  # pairs of a ranking
    possible = np.array([[0.0, each], [each, each]])
    accuracy = Statistic(lambda sums: sums[..., 0] / sums[..., 1], possible)
    bootstrap = cluster_bootstrap(parts, accuracy, [str(number) for number in range(len(pairs))])
    gained = bootstrap.interval([1.0, -1.0]) if len(models) == 2 else None
    return bootstrap.intervals(), gained


def log_loss(scores: Scores, pairs: Pairs) -> float:
    """Mean nats of a pair: −log σ(gap). ln 2 = 0.693 where nothing is known."""
    return float(np.mean(np.logaddexp(0.0, -np.concatenate(gaps(scores, pairs)))))


@dataclass(frozen=True)
class Bin:
    """Pairs whose predicted probability is alike: mean prediction, the share that people prefer,
    how many (each pair in both orders).
    """

    predicted: float
    preferred: float
    count: int


def calibration(scores: Scores, pairs: Pairs) -> tuple[list[Bin], float]:
    """Predicted probability σ(gap) against the share that people prefer, in ten bins, and the
    expected calibration error.

    A pair is met in both orders, since which of the two is named first is nobody's judgement: the
    curve is symmetric about a half.
    """
    certain = 1 / (1 + np.exp(-np.clip(np.concatenate(gaps(scores, pairs)), -700, 700)))
    predicted = np.concatenate([certain, 1 - certain])
    preferred = np.concatenate([np.ones_like(certain), np.zeros_like(certain)])
    of = np.minimum((predicted * BINS).astype(int), BINS - 1)
    bins = [
        Bin(
            float(predicted[of == number].mean()),
            float(preferred[of == number].mean()),
            int((of == number).sum()),
        )
        for number in range(BINS)
        if (of == number).any()
    ]
    return bins, sum(one.count * abs(one.predicted - one.preferred) for one in bins) / len(
        predicted
    )
