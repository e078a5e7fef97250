"""From lm_eval's per-example results to scores: value, standard error, 95 % interval, and what a
score stands against.

lm_eval's aggregated values are taken as they are. Its standard errors of perplexities are
bootstraps over processes, slow, and it has none of bits per byte, so errors are in closed form
(`statistics.py`). Intervals are Wilson's for shares of right answers, and normal on the
log-probability's scale for the rest. Where every example came out alike there is nothing to
estimate an error from: the interval is then what a share of unlike ones not met yet may do.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gpt_model.evaluation import scoring
from gpt_model.statistics import (
    ALIKE,
    ConfidenceInterval,
    Z,
    bits_per_byte_interval,
    mean_interval,
    normal_interval,
    ratio_interval,
    resamples,
    unseen_share,
    wilson,
)

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


def confidence_interval(
    metric: str, aggregation: str, values: Sequence[Any]
) -> ConfidenceInterval | None:
    """Of a metric over per-example `values`: numbers for "mean" and "perplexity", (log-probability,
    weight) for the weighted ones.

    None where one example, or an aggregation not known here, says nothing of it.
    """
    if len(values) < 2:
        return None
    if aggregation == "mean" and metric.partition("_top_")[0] in (
        *ACCURACIES,
        "toxic_share",
    ):  # "…_top_1_percent": of the surest answers
        return _share(values)
    if aggregation == "mean":
        plain = mean_interval(values)
        if metric not in BOUNDS:
            return plain
        assert plain.stderr is not None
        best, other = BOUNDS[metric], unseen_share(len(values))
        if plain.stderr < ALIKE:
            low = (1 - other) * plain.value
            return replace(plain, low=low, high=low + other * best)
        return replace(plain, low=max(0.0, plain.low), high=min(best, plain.high))
    if aggregation == "perplexity":
        return _exponential(mean_interval(-np.asarray(values, dtype=float)))
    if aggregation in ("weighted_perplexity", "bits_per_byte"):
        logprobs, weights = np.asarray(values, dtype=float).T
        if aggregation == "weighted_perplexity":
            return _exponential(ratio_interval(-logprobs, weights))
        return bits_per_byte_interval(-logprobs, weights)
    if aggregation == "share_of_questions":
        return _share(scoring.by_question(values))
    if aggregation in ("f1_of_answers", "macro_f1"):
        seen = {answer for judgement in values for answer in judgement}
        return _bootstrap(
            values, getattr(scoring, aggregation), list(itertools.product(seen | {0, 1}, repeat=2))
        )
    return _bootstrap_bleu(values) if aggregation == "bleu" else None


def aggregated(aggregation: str, values: Sequence[Any]) -> float:
    """`values` as lm_eval makes a task's score of them: by an aggregation of its own, or one of
    scoring.py.
    """
    # The corpus stage reads `contamination.py` and so this module, and needs no lm_eval.
    from lm_eval.api.registry import get_aggregation

    return float((getattr(scoring, aggregation, None) or get_aggregation(aggregation))(values))


def _bootstrap(
    values: Sequence[Any], aggregate: Callable[[Sequence[Any]], float], possible: Sequence[Any]
) -> ConfidenceInterval:
    """Of a share that is no mean of its examples: they are drawn again 200 times. `possible`: what
    one may be.
    """
    value, generator = aggregate(values), np.random.default_rng(0)
    scores = [
        aggregate([values[index] for index in row])
        for batch in resamples(len(values), 200, generator)
        for row in batch
    ]
    stderr = float(np.std(scores, ddof=1))
    if stderr < ALIKE:
        return ConfidenceInterval(value, *_with_others(values, aggregate, possible), stderr)
    plain = normal_interval(value, stderr)
    return replace(plain, low=max(0.0, plain.low), high=min(1.0, plain.high))


def _bootstrap_bleu(pairs: Sequence[tuple[str, str]]) -> ConfidenceInterval:
    """Of BLEU over (reference, translation) pairs. It is no mean of theirs: sacrebleu draws them
    again 1,000 times, from a fixed seed.
    """
    # An lm_eval dependency that only translation needs.
    from sacrebleu.metrics.bleu import BLEU

    references, translations = zip(*pairs, strict=True)
    score: Any = BLEU().corpus_score(list(translations), [list(references)], n_bootstrap=1000)
    if score._ci < ALIKE:
        longest = max(references, key=len)
        possible = [(longest, longest), (longest, "")]
        ends = _with_others(pairs, partial(aggregated, "bleu"), possible)
        return ConfidenceInterval(score._mean, *ends, 0.0)
    low, high = max(0.0, score._mean - score._ci), min(100.0, score._mean + score._ci)
    return ConfidenceInterval(score._mean, low, high, score._ci / Z)


def _with_others(
    values: Sequence[Any], aggregate: Callable[[Sequence[Any]], float], possible: Sequence[Any]
) -> tuple[float, float]:
    """The least and the most that the score is where examples all came out alike, and as many of
    another sort as `unseen_share` are added.
    """
    share = unseen_share(len(values))
    others = math.ceil(len(values) * share / (1 - share))
    scores = [aggregate(values), *(aggregate([*values, *[row] * others]) for row in possible)]
    return min(scores), max(scores)


def _exponential(nats: ConfidenceInterval) -> ConfidenceInterval:
    assert nats.stderr is not None
    value = math.exp(nats.value)
    return ConfidenceInterval(value, math.exp(nats.low), math.exp(nats.high), value * nats.stderr)


def _share(right: Sequence[float]) -> ConfidenceInterval:
    """Wilson's ends, with the standard error of a mean as lm_eval has it."""
    return replace(wilson(float(np.sum(right)), len(right)), stderr=mean_interval(right).stderr)


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
