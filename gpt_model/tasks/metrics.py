"""What predictions are worth: scores with 95 % intervals, the majority class, and a paired difference of two models.

An accuracy's interval is Wilson's, which holds for small test sets and near 0 and 1. A difference of two models on the same
examples is bootstrapped, pairs kept together and whole groups drawn, because questions about one passage are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sklearn_metrics

from gpt_model.evaluation.scores import wilson

RESAMPLES = 10_000


def majority(labels: Sequence[int]) -> float:
    """Accuracy of always answering with the commonest class of `labels`."""
    return float(np.bincount(labels).max() / len(labels))


def scores(labels: Sequence[int], predicted: Sequence[int], named_classes: int) -> dict[str, float]:
    """accuracy with its interval; F1 and Matthews' correlation where classes are labels and not options (`named_classes` > 0).

    F1 is of the last class where there are two ("positive", "yes", "same"), as the field has it, and the classes' mean otherwise.
    """
    correct = int(np.sum(np.asarray(labels) == np.asarray(predicted)))
    low, high = wilson(correct, len(labels))
    found = {"accuracy": correct / len(labels), "accuracy_low": low, "accuracy_high": high}
    if named_classes:
        average = "binary" if named_classes == 2 else "macro"
        names = list(range(named_classes))
        found["f1"] = float(sklearn_metrics.f1_score(labels, predicted, labels=names, average=average, zero_division=0.0))
        found["matthews"] = float(sklearn_metrics.matthews_corrcoef(labels, predicted))
    return found


def paired_difference(first: Sequence[bool], second: Sequence[bool], groups: Sequence[str]) -> tuple[float, float, float]:
    """(accuracy of `first` minus that of `second`, 2.5 %, 97.5 %): the same examples, whole groups resampled with a fixed seed."""
    names, of = np.unique(np.asarray(groups), return_inverse=True)
    difference = np.bincount(of, weights=np.asarray(first, dtype=float) - np.asarray(second, dtype=float), minlength=len(names))
    sizes = np.bincount(of, minlength=len(names)).astype(float)
    value = float(difference.sum() / sizes.sum())
    if len(names) < 2:
        return value, -1.0, 1.0  # one group says nothing of the spread between groups

    def of_sample(part: NDArray[np.float64], size: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(part.sum(axis) / size.sum(axis))

    found = stats.bootstrap(
        (difference, sizes), of_sample, paired=True, vectorized=True, n_resamples=RESAMPLES, batch=1000, method="percentile",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return value, float(found.confidence_interval.low), float(found.confidence_interval.high)
