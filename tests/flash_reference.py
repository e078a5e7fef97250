"""What torch's documentation says of `varlen_attn`, in plain operators: for tests of the calls that
a GPU alone can make.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt_model.ops import flash


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
    parts = []
    for first, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (part[first:end].transpose(0, 1) for part in (query, key, value))
        back = torch.arange(end - first)[:, None] - torch.arange(end - first)
        hidden = (back < 0) | ((back > window_size[0]) & (window_size[0] != -1))
        scores = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).masked_fill(hidden, -math.inf)
        parts.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(parts)


def use(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Have attention without dropout call it, as on a GPU; returns the list of calls."""
    calls: list[Any] = []

    def counted(*args: Any, **keywords: Any) -> Tensor:
        calls.append(keywords)
        return varlen_attn(*args, **keywords)

    monkeypatch.setattr(flash, "usable", lambda _, dropout: not dropout)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", counted)
    return calls
