"""How much of what stands before a token a decoder makes use of: bits per byte against the visible
context of k tokens.

The same held-out tokens are predicted for every k, each from exactly the k tokens before it, so
that the curve's points differ in nothing else, and the gain from one k to the next is a paired
difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gpt_model.data.shards import TokenData
from gpt_model.statistics import ConfidenceInterval, ratio_interval
from gpt_model.training.batching import EVALUATION_TOKENS
from gpt_model.transformer import Decoder


def positions(
    data: TokenData, source: str, longest: int, count: int, seed: int
) -> NDArray[np.int64]:
    """`count` places in a source's held-out tokens, drawn without repeats, in order: tokens with
    text, and `longest` tokens before each.
    """
    tokens = data.tokens(source, "held_out")
    there = np.arange(longest, len(tokens))
    there = there[
        data.byte_lengths[np.asarray(tokens)[longest:]] > 0
    ]  # an end-of-text has no bytes
    chosen = np.random.default_rng(seed).permutation(len(there))[:count]
    return np.sort(there[chosen])


@torch.no_grad()
def nats_by_context(
    model: Decoder, data: TokenData, source: str, at: NDArray[np.int64], contexts: Sequence[int]
) -> NDArray[np.float64]:
    """Nats of each token `at` given exactly the last k tokens: [len(at), len(contexts)]."""
    tokens = np.asarray(data.tokens(source, "held_out"), dtype=np.int64)
    device = model.wte.weight.device
    nats = np.zeros((len(at), len(contexts)))
    for column, k in enumerate(contexts):
        each = max(1, EVALUATION_TOKENS // k)
        for start in range(0, len(at), each):
            part = at[start : start + each]
            rows = torch.from_numpy(tokens[part[:, None] + np.arange(-k, 0)]).to(device)
            targets = torch.from_numpy(tokens[part])[:, None].to(device)
            nats[start : start + each, column] = (
                model.losses_of(model.hidden(rows)[:, -1:], targets)[:, 0].double().cpu().numpy()
            )
    return nats


def gain(
    fewer: NDArray[np.float64], more: NDArray[np.float64], sizes: NDArray[np.integer]
) -> ConfidenceInterval:
    """Bits per byte that more context saves on the same tokens, paired."""
    return ratio_interval((fewer - more) / math.log(2), sizes)
