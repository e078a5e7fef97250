"""Causal attention over packed sequences by torch's flash kernels, which skip what lies beyond a
window and between sequences: on a GPU, in half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor


def usable(query: Tensor) -> bool:
    """Whether the kernels take query [..., d]."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
    )


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    longest: int,
    band: int | None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v within each sequence, over all earlier tokens or the last `band`;
    each tensor is [tokens, heads, d].

    `bounds`: where each sequence begins and the last ends, int32 [sequences + 1]. `longest`: tokens
    of the longest. `dropout`: of the attention weights.
    """
    # the window's size leaves out the query's own token
    window = (-1 if band is None else band - 1, 0)
    if dropout:  # the kernel takes it, but `varlen_attn` does not hand it on
        dropped, *_ = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            bounds,
            bounds,
            longest,
            longest,
            dropout,
            is_causal=True,
            return_debug_mask=False,
            window_size_left=window[0],
            window_size_right=window[1],
        )
        return dropped
    # Here, since it takes seconds to import
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(query, key, value, bounds, bounds, longest, longest, window_size=window)
    assert isinstance(out, Tensor)
    return out
