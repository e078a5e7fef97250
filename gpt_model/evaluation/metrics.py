"""From lm_eval's per-example results to scores: value, standard error, 95 % interval, and what a
score stands against.

lm_eval's aggregated values are taken as they are. Its standard errors of perplexities are
bootstraps over processes, slow, and it has none of bits per byte, so errors are made here in closed
form: of a mean, and of a ratio of sums by linearisation (the delta method). Intervals are Wilson's
for shares of right answers, and normal on the log-probability's own scale for the rest. Where every
example came out alike there is nothing to estimate an error from: the interval is then what a share
of unlike ones not met yet may do.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpt_model.evaluation import scoring

Z = 1.959964  # of a two-sided 95 % interval
ALIKE = 1e-12  # a standard error below which examples came out alike
BOUNDS = {  # the best there is, or where less is better the worst; the other end is 0
    **dict.fromkeys(("f1", "em", "mc2", "empty", "toxicity"), 1.0),
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "rouge_mean"), 100.0),
}
ACCURACIES = (
    "acc",
    "acc_norm",
    "acc_bytes",
    "exact_match",
    "acc_mutual_info",
    "acc_per_token",
    "acc_answer_norm",
)


@dataclass(frozen=True)
class Spread:
    """How sure a score is. None where one example, or an aggregation not known here, says nothing
    about it.
    """

    stderr: float | None = None
    low: float | None = None
    high: float | None = None


def spread(metric: str, aggregation: str, values: Sequence[Any]) -> Spread:
    """Of a metric over per-example `values`: numbers for "mean" and "perplexity", (log-probability,
    weight) for the weighted ones.
    """
    if len(values) < 2:
        return Spread()
    if aggregation == "mean" and metric.partition("_top_")[0] in (
        *ACCURACIES,
        "toxic_share",
    ):  # "…_top_1_percent": of the surest answers
        return _share(np.asarray(values, dtype=float))
    if aggregation == "mean":
        centre, error = _ratio(np.asarray(values, dtype=float), np.ones(len(values)))
        if metric not in BOUNDS:
            return Spread(error, centre - Z * error, centre + Z * error)
        best, other = BOUNDS[metric], unseen(len(values))
        if error < ALIKE:
            return Spread(error, (1 - other) * centre, (1 - other) * centre + other * best)
        return Spread(error, max(0.0, centre - Z * error), min(best, centre + Z * error))
    if aggregation == "perplexity":
        return _exponential(*_ratio(-np.asarray(values, dtype=float), np.ones(len(values))))
    if aggregation in ("weighted_perplexity", "bits_per_byte"):
        logprobs, weights = np.asarray(values, dtype=float).T
        nats, error = _ratio(-logprobs, weights)
        if aggregation == "weighted_perplexity":
            return _exponential(nats, error)
        bits = 1 / math.log(2)
        return Spread(error * bits, (nats - Z * error) * bits, (nats + Z * error) * bits)
    if aggregation == "share_of_questions":
        return _share(np.asarray(scoring.by_question(values)))
    if aggregation in ("f1_of_answers", "macro_f1"):
        seen = {answer for judgement in values for answer in judgement}
        return _resampled(
            values, getattr(scoring, aggregation), list(itertools.product(seen | {0, 1}, repeat=2))
        )
    return _resampled_bleu(values) if aggregation == "bleu" else Spread()


def aggregated(aggregation: str, values: Sequence[Any]) -> float:
    """`values` as lm_eval makes a task's score of them: by an aggregation of its own, or one of
    scoring.py.
    """
    from lm_eval.api.registry import get_aggregation

    return float((getattr(scoring, aggregation, None) or get_aggregation(aggregation))(values))


def _resampled(
    values: Sequence[Any], aggregate: Callable[[Sequence[Any]], float], possible: Sequence[Any]
) -> Spread:
    """Of a share that is no mean of its examples: they are drawn again 200 times, from a fixed
    seed. `possible`: what one may be.
    """
    draw, value = np.random.default_rng(0), aggregate(values)
    again = [
        aggregate([values[place] for place in draw.integers(0, len(values), len(values))])
        for _ in range(200)
    ]
    error = float(np.std(again, ddof=1))
    if error < ALIKE:
        return Spread(error, *_with_others(values, aggregate, possible))
    return Spread(error, max(0.0, value - Z * error), min(1.0, value + Z * error))


def _resampled_bleu(pairs: Sequence[tuple[str, str]]) -> Spread:
    """Of BLEU over (reference, translation) pairs. It is no mean of theirs: sacrebleu draws them
    again 1,000 times, from a fixed seed.
    """
    from sacrebleu.metrics.bleu import BLEU

    references, translations = zip(*pairs, strict=True)
    score: Any = BLEU().corpus_score(list(translations), [list(references)], n_bootstrap=1000)
    if score._ci < ALIKE:
        reference = max(references, key=len)
        return Spread(
            0.0,
            *_with_others(
                pairs, partial(aggregated, "bleu"), [(reference, reference), (reference, "")]
            ),
        )
    return Spread(
        score._ci / Z, max(0.0, score._mean - score._ci), min(100.0, score._mean + score._ci)
    )


def unseen(number: int) -> float:
    """The largest share of others where `number` were met and all alike, at 97.5 %: 1 - 0.025^(1/n)
    (Clopper and Pearson 1934).
    """
    return float(1 - 0.025 ** (1 / number))


def _with_others(
    values: Sequence[Any], aggregate: Callable[[Sequence[Any]], float], possible: Sequence[Any]
) -> tuple[float, float]:
    """The least and the most that the score is where examples all came out alike, and as many of
    another sort as `unseen` are added.
    """
    share = unseen(len(values))
    others = math.ceil(len(values) * share / (1 - share))
    found = [aggregate(values), *(aggregate([*values, *[one] * others]) for one in possible)]
    return min(found), max(found)


def _ratio(totals: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Sum of `totals` over sum of `weights`, and its standard error. With weights of 1: a mean, and
    s/√n.
    """
    n, ratio = len(totals), totals.sum() / weights.sum()
    residuals = totals - ratio * weights
    return float(ratio), float(math.sqrt(n / (n - 1) * (residuals**2).sum()) / weights.sum())


def _exponential(nats: float, error: float) -> Spread:
    return Spread(math.exp(nats) * error, math.exp(nats - Z * error), math.exp(nats + Z * error))


def _share(right: np.ndarray) -> Spread:
    return Spread(_ratio(right, np.ones(len(right)))[1], *wilson(float(right.sum()), len(right)))


def wilson(right: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, `right` of `n`, which holds for few examples and near 0
    and 1.
    """
    share = right / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return 0.0 if right == 0 else max(0.0, centre - half), 1.0 if right == n else min(
        1.0, centre + half
    )  # at the ends it is exact


def baseline(kind: str, samples: Sequence[dict[str, Any]]) -> float | None:
    """What accuracy stands against: "chance", the mean of 1/choices, or "majority", the share of
    the commonest right answer.
    """
    if kind == "chance":
        choices = [
            sum(context != "" for context, _ in sample["arguments"]) for sample in samples
        ]  # "": acc_mutual_info's extra requests
        return float(np.mean([1 / max(1, number) for number in choices]))
    if kind == "majority":
        return Counter(str(sample["target"]) for sample in samples).most_common(1)[0][1] / len(
            samples
        )
    return None
