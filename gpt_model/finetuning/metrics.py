"""What a model's answers are worth: scores with 95 % intervals, and a paired difference of two
models.

An accuracy's interval is Wilson's, which holds for small test sets and near 0 and 1. Every other
one is a bootstrap with a fixed seed that draws whole groups, because questions about one passage
are not independent. Each of those scores is a function of sums over examples, so a sample is a
weighted sum of the groups' own sums. Where no sample differs from another, as with a model that
always gives the same answer, the interval is what a share of unlike groups not met yet may do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_model.evaluation.metrics import ALIKE, unseen, wilson
from gpt_model.finetuning.entry import Metric, TaskEntry
from gpt_model.finetuning.input_forms import Laid
from gpt_model.finetuning.ratings import expected

RESAMPLES, BATCH = 10_000, 500

Floats = NDArray[np.float64]


def scores(
    labels: Sequence[int], predicted: Sequence[int], named_classes: int, groups: Sequence[str]
) -> dict[str, float]:
    """accuracy; f1 and matthews where classes are labels and not options (`named_classes` > 0).
    Each with its _low and _high.

    F1 is of the last class where there are two ("positive", "yes", "same"), as the field has it,
    and the classes' mean otherwise.
    """
    correct = int(np.sum(np.asarray(labels) == np.asarray(predicted)))
    found = _named("accuracy", correct / len(labels), wilson(correct, len(labels)))
    if named_classes:
        pairs = _pairs(np.asarray(labels), np.asarray(predicted), named_classes)
        possible = np.eye(named_classes**2)
        found |= _named("f1", *_bootstrapped(pairs, groups, _f1, (0.0, 1.0), possible))
        found |= _named("matthews", *_bootstrapped(pairs, groups, _matthews, (-1.0, 1.0), possible))
    return found


def correlation(
    predicted: Sequence[float], ratings: Sequence[float], groups: Sequence[str]
) -> dict[str, float]:
    """pearson, pearson_low, pearson_high: of what the model gives with what people gave."""
    return _named(
        "pearson", *_bootstrapped(_moments(predicted, ratings), groups, _pearson, (-1.0, 1.0))
    )


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

    def parts(self, examples: Sequence[Laid], logits: Sequence[Sequence[float]]) -> Floats:
        """[examples, parts]: what `value` makes the metric of, added up over examples."""
        if self.metric == "pearson":
            return _moments(
                self.ratings(logits),
                [0.0 if one.rating is None else one.rating for one in examples],
            )
        labels, predicted = (
            np.asarray([one.label for one in examples]),
            np.asarray(logits).argmax(1),
        )
        if self.metric == "accuracy":
            return np.stack([labels == predicted, np.ones_like(labels)], 1).astype(float)
        return _pairs(labels, predicted, self.named_classes)

    def possible(self) -> Floats | None:
        """Every row that `parts` may have: [rows, parts]. None of ratings, which are without
        number.
        """
        if self.metric == "pearson":
            return None
        return (
            np.array([[0.0, 1.0], [1.0, 1.0]])
            if self.metric == "accuracy"
            else np.eye(self.named_classes**2)
        )

    def value(self, sums: Floats) -> Floats:
        """The metric: [..., parts] -> [...]."""
        return VALUES[self.metric](sums)

    def of(self, examples: Sequence[Laid], logits: Sequence[Sequence[float]]) -> float:
        return float(self.value(self.parts(examples, logits).sum(0)))

    def ratings(self, logits: Sequence[Sequence[float]]) -> list[float]:
        """What the model gives: on a scale the rating it expects, between two ends the probability
        of the high one.
        """
        shares = np.exp(np.asarray(logits) - np.max(logits, 1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        if self.high_end is not None:
            return [float(share) for share in shares[:, self.high_end]]
        assert self.lowest is not None
        return [expected(row, self.lowest) for row in shares.tolist()]


def paired_difference(
    scoring: Scoring, first: Floats, second: Floats, groups: Sequence[str]
) -> tuple[float, float, float]:
    """(metric of `first` minus that of `second`, 2.5 %, 97.5 %), two models' parts of the same
    examples.
    """
    count = first.shape[1]

    def gained(sums: Floats) -> Floats:
        return scoring.value(sums[..., :count]) - scoring.value(sums[..., count:])

    possible = (
        None if (rows := scoring.possible()) is None else _side_by_side(rows, scoring.named_classes)
    )
    value, (low, high) = _bootstrapped(
        np.concatenate([first, second], 1), groups, gained, (-1.0, 1.0), possible
    )
    return value, low, high


def _side_by_side(rows: Floats, classes: int) -> Floats:
    """What two models may answer to one example: [pairs, 2 × parts]. Its label, which a row of
    labelled classes has, is the same.
    """
    label = np.arange(len(rows)) // classes if len(rows) == classes**2 else np.zeros(len(rows))
    first, second = np.nonzero(label[:, None] == label)
    return np.concatenate([rows[first], rows[second]], 1)


def _named(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    return {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}


def _bootstrapped(
    parts: Floats,
    groups: Sequence[str],
    of: Callable[[Floats], Floats],
    limits: tuple[float, float],
    possible: Floats | None = None,
) -> tuple[float, tuple[float, float]]:
    """`of` the sum of `parts` [examples, parts], and its percentile interval; `limits` where
    nothing says what the spread is.

    `possible`: every row that `parts` may have.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), parts.shape[1]))
    np.add.at(sums, member, parts)
    value = float(of(sums.sum(0)))
    if len(names) < 2:
        return value, limits
    draw = np.random.default_rng(0)
    values = []
    for _ in range(RESAMPLES // BATCH):
        drawn = (
            draw.integers(len(names), size=(BATCH, len(names)))
            + len(names) * np.arange(BATCH)[:, None]
        )
        times = np.bincount(drawn.ravel(), minlength=BATCH * len(names)).reshape(
            BATCH, len(names)
        )  # each group is in each sample
        values.append(of(times @ sums))
    low, high = np.percentile(np.concatenate(values), (2.5, 97.5))
    if high - low < ALIKE:
        if possible is None:
            return value, limits
        others = of(with_others(sums.sum(0), len(parts), possible, unseen(len(names))))
        low, high = min(value, *others), max(value, *others)
    return value, (float(low), float(high))


def with_others(sums: Floats, count: int, others: Floats, share: float | Floats) -> Floats:
    """`sums` of `count` examples of which a `share` came out as `others` [rows, parts]: [rows,
    parts].
    """
    share = np.reshape(np.asarray(share), (-1, 1))
    return np.asarray((1 - share) * sums + share * count * others)


def _pairs(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> Floats:
    """[examples, label × predicted], 1 where an example is."""
    return np.eye(classes**2)[labels * classes + predicted]


def _moments(given: Sequence[float], ratings: Sequence[float]) -> Floats:
    """[examples, 6], about the means, which keeps the differences of `_pearson` from losing digits."""
    x, y = (np.asarray(values, dtype=float) - np.mean(values) for values in (given, ratings))
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)


def _f1(pairs: Floats) -> Floats:
    """[..., label × predicted] counts -> [...]. 0 for a class that is neither there nor predicted."""
    counts = _square(pairs)
    found = _ratio(
        2 * np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1) + counts.sum(-2)
    )  # [..., classes]
    return found[..., -1] if found.shape[-1] == 2 else np.asarray(found.mean(-1))


def _matthews(pairs: Floats) -> Floats:
    """Gorodkin 2004's for any number of classes; 0 where every answer, or every label, is the same."""
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
