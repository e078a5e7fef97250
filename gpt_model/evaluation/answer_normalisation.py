"""Accuracies of a choice by normalised log-probabilities (GPT-3, section 2.4): by tokens, or by the
probability of the answer after "Answer: " alone, which `FewShot.unconditional_answers` asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def per_token(samples: Sequence[Mapping[str, Any]]) -> list[float]:
    """Whether the right answer has the highest log-probability a token, of each of lm_eval's
    samples (section 2.4).
    """
    return [
        _right(sample, np.array(_logprobs(sample)) / np.array(sample["doc"]["tokens"]))
        for sample in samples
    ]


def answer_normalised(
    samples: Sequence[Mapping[str, Any]], unconditional: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Whether the right answer has the highest P(answer | context) / P(answer | answer context)
    (section 2.4). `unconditional`: samples of `unconditional_answers`, in order.
    """
    return [
        _right(sample, np.array(_logprobs(sample)) - np.array(_logprobs(other)))
        for sample, other in zip(samples, unconditional, strict=True)
    ]


def _logprobs(sample: Mapping[str, Any]) -> list[float]:
    return [float(response[0]) for response in sample["filtered_resps"]]


def _right(sample: Mapping[str, Any], scores: np.ndarray) -> float:
    label, best = sample["doc"]["label"], int(np.argmax(scores))
    return float(best in label if isinstance(label, list) else best == label)
