"""Sliding-window causal attention: every token attends to the last `band` tokens, itself among
them. No [time, time] buffer is ever made.

These are GPT-3's "locally banded" layers (Brown et al. 2020, section 2.1, after Child et al. 2019);
the band is GPT-Neo's `window_size`, and `ModelConfig.band_of` says which layers have one. Queries
are taken in blocks, and a block is multiplied with only the keys that its queries attend to, so
time and memory grow linearly with the context. On a CPU `cpu_attention` computes the blocks and
their gradient, on a GPU in half precision `flash`; otherwise (on a CPU with dropout, on a GPU in
float32) they are one call of torch's attention. A decoding step with a cache is one query:
`gpt_model.kv_cache`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt_model.ops import cpu_attention, flash, sizes

# a block, where torch's attention does it: copies of keys are (band + QUERIES) / QUERIES as large
# as the keys
QUERIES = 128


def sliding_window_attention(
    query: Tensor, key: Tensor, value: Tensor, band: int, dropout: float = 0.0
) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v where token i attends to (i - band, i]; each tensor is [batch,
    heads, time, d]. `dropout`: of the attention weights.
    """
    if band < 1:
        raise ValueError(
            f"a band of {band} tokens leaves nothing to attend to: it is at least 1, the token "
            "itself"
        )
    if band >= query.shape[2]:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    if flash.usable(query):
        return _flash(query, key, value, band, dropout)
    by_hand = query.device.type == "cpu" and not torch.compiler.is_compiling()
    if not by_hand or dropout or band > sizes.MAX_KEYS:
        return _in_windows(query, key, value, band, dropout)
    kind = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        return _Banded.apply(
            query.to(kind), key.to(kind), value.to(kind), band, torch.is_grad_enabled()
        ).to(query.dtype)


def _flash(query: Tensor, key: Tensor, value: Tensor, band: int, dropout: float) -> Tensor:
    """`sliding_window_attention` of [batch, heads, time, d] each, its rows as packed sequences."""
    batch, _, time, _ = query.shape
    bounds = torch.arange(0, batch * time + 1, time, dtype=torch.int32, device=query.device)
    rows = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]
    out = flash.attention(rows[0], rows[1], rows[2], bounds, time, band, dropout)
    return out.unflatten(0, (batch, time)).transpose(1, 2)


class _Banded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, band: int, keep: bool
    ) -> Tensor:
        """query, key, value [batch, heads, time, d] -> as query."""
        out = _beside(query)
        weights = cpu_attention.attend(query, key, value, out, band, keep)
        ctx.save_for_backward(query, key, value, weights)
        ctx.band = band
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """upstream [batch, heads, time, d] -> gradients of query, key and value, as they are."""
        query, key, value, weights = ctx.saved_tensors
        gradients = _beside(query), _beside(key), _beside(value)
        cpu_attention.attend_backward(upstream, query, key, value, weights, ctx.band, *gradients)
        return *gradients, None, None


def _beside(like: Tensor) -> Tensor:
    """An empty [batch, heads, time, d] whose heads lie side by side in memory, as the projections
    before and after have them.
    """
    return torch.empty_like(like.transpose(1, 2), memory_format=torch.contiguous_format).transpose(
        1, 2
    )


def _in_windows(query: Tensor, key: Tensor, value: Tensor, band: int, dropout: float) -> Tensor:
    """`sliding_window_attention` by torch's own attention, of [batch, heads, time, d] each: every
    block of queries is a row of its batch, beside a copy of the keys that it attends to.
    """
    batch, heads, time, width = query.shape
    size = min(QUERIES, time)
    blocks = -(-time // size)
    beyond = blocks * size - time
    if beyond:  # torch.compile with symbolic shapes mistakes the strides of what is not padded
        query = F.pad(query, (0, 0, 0, beyond))
    queries = query.reshape(batch * heads, blocks, size, width).transpose(0, 1)
    # from `band` tokens before the block's first to its last: [blocks, batch · heads, band + size,
    # d]
    windows = [
        F.pad(part, (0, 0, band, beyond))
        .unfold(2, band + size, size)
        .transpose(-1, -2)
        .flatten(0, 1)
        .transpose(0, 1)
        for part in (key, value)
    ]
    at = torch.arange(size, device=query.device)[:, None]
    key_offset = torch.arange(-band, size, device=query.device)
    first = torch.arange(0, blocks * size, size, device=query.device)[:, None, None]
    visible = (
        (key_offset <= at) & (key_offset > at - band) & (first + key_offset >= 0)
    )  # [blocks, size, band + size]
    out = F.scaled_dot_product_attention(
        queries, windows[0], windows[1], attn_mask=visible[:, None], dropout_p=dropout
    )
    return out.transpose(0, 1).reshape(batch, heads, blocks * size, -1)[:, :, :time]
