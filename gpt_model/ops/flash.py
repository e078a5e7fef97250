"""Causal attention over packed sequences by torch's flash kernels, which skip what lies beyond a
window and between sequences: on a GPU, in half precision, without dropout.
"""

from __future__ import annotations

import torch
from torch import Tensor


def usable(query: Tensor, dropout: float) -> bool:
    """Whether the kernels take query [..., d]."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and not dropout
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
    )


def attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, band: int | None
) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v within each sequence, over all earlier tokens or the last `band`;
    each tensor is [tokens, heads, d].

    `bounds`: where each sequence begins and the last ends, int32 [sequences + 1]. `longest`: tokens
    of the longest.
    """
    # Here, since it takes seconds to import
    from torch.nn.attention.varlen import varlen_attn

    # the window's size leaves out the query's own token
    window = (-1 if band is None else band - 1, 0)
    out = varlen_attn(query, key, value, bounds, bounds, longest, longest, window_size=window)
    assert isinstance(out, Tensor)
    return out
