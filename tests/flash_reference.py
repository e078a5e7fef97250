"""What torch's documentation says of `varlen_attn`, in plain operators; and the kernel below it, for
which a CPU has none. For tests of the calls that a GPU alone can make.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt_model.ops import flash

dropouts: list[float] = []  # that the kernel was called with


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
) -> Tensor:
    """Each [tokens, heads, d]: a token attends to those of its sequence from window_size[0] before
    it (-1: from the first) to window_size[1] behind it.
    """
    assert cu_seq_q.dtype == torch.int32 and torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k == int(cu_seq_q.diff().max()) and window_size[1] == 0
    return torch.cat(
        [
            (_weights(q, k, window_size[0]) @ v).transpose(0, 1)
            for q, k, v in _sequences(cu_seq_q, query, key, value)
        ]
    )


def _sequences(bounds: Tensor, *rows: Tensor) -> Iterator[list[Tensor]]:
    """[tokens, heads, d] each -> of one sequence after the other, [heads, time, d] each."""
    for first, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        yield [part[first:end].transpose(0, 1) for part in rows]


def _weights(query: Tensor, key: Tensor, before: int) -> Tensor:
    """[heads, time, time]"""
    time = query.shape[1]
    back = torch.arange(time)[:, None] - torch.arange(time)
    hidden = (back < 0) | ((back > before) & (before != -1))
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    return scores.masked_fill(hidden, -math.inf).softmax(-1)


def _forward(
    query: Tensor, key: Tensor, value: Tensor, *given: Any, window_size_left: int, **options: Any
) -> tuple[Tensor, ...]:
    """`aten._flash_attention_forward`, with a dropout that happens to drop nothing."""
    (*lengths, dropout, is_causal, debug), window = given, (window_size_left, 0)
    dropouts.append(dropout)
    assert is_causal and not debug and options["window_size_right"] == 0
    out = varlen_attn(query, key, value, *lengths, window_size=window)
    nothing = torch.zeros(0)
    return out, nothing, torch.zeros(2, dtype=torch.uint64), nothing, nothing


def _backward(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, *given: Any, **options: Any
) -> tuple[Tensor, ...]:
    """`aten._flash_attention_backward`. Gradients of query, key and value."""
    slopes: list[tuple[Tensor, ...]] = []
    for up, q, k, v in _sequences(given[2], upstream, query, key, value):
        weights = _weights(q, k, options["window_size_left"])
        by_weight = up @ v.transpose(1, 2)
        by_score = weights * (by_weight - (by_weight * weights).sum(-1, keepdim=True))
        by_score = by_score / math.sqrt(q.shape[-1])
        parts = by_score @ k, by_score.transpose(1, 2) @ q, weights.transpose(1, 2) @ up
        slopes.append(tuple(part.transpose(0, 1) for part in parts))
    return tuple(torch.cat(part) for part in zip(*slopes, strict=True))


def use(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Have attention call these, as on a GPU; returns the list of calls without dropout."""
    calls: list[Any] = []

    def counted(*args: Any, **keywords: Any) -> Tensor:
        calls.append(keywords)
        return varlen_attn(*args, **keywords)

    dropouts.clear()
    monkeypatch.setattr(flash, "usable", lambda _: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", counted)
    return calls


# For as long as the process lives: a CPU had none
_library = torch.library.Library("aten", "IMPL")
_library.impl("_flash_attention_forward", _forward, "CPU")
_library.impl("_flash_attention_backward", _backward, "CPU")
