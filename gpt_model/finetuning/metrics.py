"""Scores of a fine-tuned model's answers, each with its 95 % interval (`statistics.py`), and the
paired difference of two models.

Every score but accuracy is a function of sums over examples: of counts of label by answer, or of
moments of ratings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_model.finetuning.entry import Metric, TaskEntry
from gpt_model.finetuning.input_forms import EncodedExample
from gpt_model.statistics import (
    ConfidenceInterval,
    Floats,
    Statistic,
    paired_difference,
    score_interval,
    wilson,
)

LIMITS: dict[Metric, tuple[float, float]] = {
    "accuracy": (0.0, 1.0),
    "f1": (0.0, 1.0),
    "matthews": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
}


def scores(
    labels: Sequence[int], predicted: Sequence[int], named_classes: int, groups: Sequence[str]
) -> dict[str, float]:
    """accuracy; f1 and matthews where classes are labels and not options (`named_classes` > 0).
    Each with its _low and _high.

    F1 is of the last class where there are two ("positive", "yes", "same"), as the field has it,
    and the classes' mean otherwise.
    """
    correct = int(np.sum(np.asarray(labels) == np.asarray(predicted)))
    metrics = wilson(correct, len(labels)).as_metrics("accuracy")
    if named_classes:
        pairs = _pairs(np.asarray(labels), np.asarray(predicted), named_classes)
        names: tuple[Metric, ...] = ("f1", "matthews")
        for name in names:
            statistic = Scoring(name, named_classes).statistic
            metrics |= score_interval(pairs, groups, statistic, LIMITS[name]).as_metrics(name)
    return metrics


def correlation(
    predicted: Sequence[float], ratings: Sequence[float], groups: Sequence[str]
) -> dict[str, float]:
    """pearson, pearson_low, pearson_high: of what the model gives with what people gave."""
    parts, statistic = _moments(predicted, ratings), Scoring("pearson").statistic
    return score_interval(parts, groups, statistic, LIMITS["pearson"]).as_metrics("pearson")


@dataclass(frozen=True)
class Scoring:
    """How a task's answers are scored: its metric, and what its classes mean."""

    metric: Metric
    named_classes: int = 0  # none where the classes are options
    lowest: int | None = None  # of a scale of ratings
    high_end: int | None = (
        None  # the class at the high end of ratings that two labels are the ends of
    )

    @classmethod
    def of_task(cls, entry: TaskEntry) -> Scoring:
        return cls(
            entry.metric,
            len(entry.labels),
            entry.scale[0] if entry.scale else None,
            entry.high_end(),
        )

    def parts(
        self, examples: Sequence[EncodedExample], logits: Sequence[Sequence[float]]
    ) -> Floats:
        """[examples, parts], over which `statistic` is a function of the sums."""
        if self.metric == "pearson":
            return _moments(
                self.ratings(logits),
                [0.0 if example.rating is None else example.rating for example in examples],
            )
        labels, predicted = (
            np.asarray([example.label for example in examples]),
            np.asarray(logits).argmax(1),
        )
        if self.metric == "accuracy":
            return np.stack([labels == predicted, np.ones_like(labels)], 1).astype(float)
        return _pairs(labels, predicted, self.named_classes)

    @property
    def statistic(self) -> Statistic:
        """The metric as a function of sums of `parts`."""
        if self.metric == "pearson":
            return Statistic(VALUES[self.metric])
        accuracy = np.array([[0.0, 1.0], [1.0, 1.0]])
        possible = accuracy if self.metric == "accuracy" else np.eye(self.named_classes**2)
        return Statistic(VALUES[self.metric], possible)

    def of(self, examples: Sequence[EncodedExample], logits: Sequence[Sequence[float]]) -> float:
        return self.of_parts(self.parts(examples, logits))

    def of_parts(self, parts: Floats) -> float:
        """The metric of [examples, parts]."""
        return float(VALUES[self.metric](parts.sum(0)))

    def difference(
        self, first: Floats, second: Floats, groups: Sequence[str]
    ) -> ConfidenceInterval:
        """The metric of `first` minus that of `second`: two models' parts of the same examples."""
        possible = self.statistic.possible
        pairs = None if possible is None else _side_by_side(possible, self.named_classes)
        return paired_difference(first, second, groups, VALUES[self.metric], pairs)

    def ratings(self, logits: Sequence[Sequence[float]]) -> list[float]:
        """What the model gives: on a scale the rating it expects, between two ends the probability
        of the high one.
        """
        shares = np.exp(np.asarray(logits) - np.max(logits, 1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        if self.high_end is not None:
            return [float(share) for share in shares[:, self.high_end]]
        assert self.lowest is not None
        # The inverse of `examples.rating_target`
        return [
            self.lowest + sum(number * share for number, share in enumerate(row))
            for row in shares.tolist()
        ]


def _side_by_side(rows: Floats, classes: int) -> Floats:
    """What two models may answer to one example: [pairs, 2 × parts]. Its label, which a row of
    labelled classes has, is the same.
    """
    label = np.arange(len(rows)) // classes if len(rows) == classes**2 else np.zeros(len(rows))
    first, second = np.nonzero(label[:, None] == label)
    return np.concatenate([rows[first], rows[second]], 1)


def _pairs(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> Floats:
    """[examples, label × predicted], 1 where an example is."""
    return np.eye(classes**2)[labels * classes + predicted]


def _moments(given: Sequence[float], ratings: Sequence[float]) -> Floats:
    """[examples, 6], about the means, so that the differences in `_pearson` lose no digits."""
    x, y = (np.asarray(values, dtype=float) - np.mean(values) for values in (given, ratings))
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)


def _f1(pairs: Floats) -> Floats:
    """[..., label × predicted] counts -> [...]. 0 for a class that is no label and no answer."""
    counts = _square(pairs)
    f1 = _ratio(
        2 * np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1) + counts.sum(-2)
    )  # [..., classes]
    return f1[..., -1] if f1.shape[-1] == 2 else np.asarray(f1.mean(-1))


def _matthews(pairs: Floats) -> Floats:
    """Gorodkin's (2004) for any number of classes; 0 where every answer, or label, is the same."""
    counts = _square(pairs)
    total, right = counts.sum((-2, -1)), np.trace(counts, axis1=-2, axis2=-1)
    labels, predicted = counts.sum(-1), counts.sum(-2)
    spread = (total**2 - (labels**2).sum(-1)) * (total**2 - (predicted**2).sum(-1))
    return _ratio(right * total - (labels * predicted).sum(-1), np.sqrt(spread))


def _pearson(sums: Floats) -> Floats:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    return _ratio(
        n * xy - x * y, np.sqrt(np.maximum(0.0, n * xx - x * x) * np.maximum(0.0, n * yy - y * y))
    )


VALUES: dict[Metric, Callable[[Floats], Floats]] = {
    "accuracy": lambda sums: _ratio(sums[..., 0], sums[..., 1]),
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
}


def _square(pairs: Floats) -> Floats:
    classes = round(pairs.shape[-1] ** 0.5)
    return pairs.reshape(*pairs.shape[:-1], classes, classes)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(below, dtype=float), where=below > 0)
