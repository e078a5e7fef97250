"""The two halves of a block on a CPU, forward and gradient by hand: x + attention(norm(x)) and
x + MLP(norm(x)).

On a CPU a training step of a small GPT is matrix products and a third as much again of everything
else. These kernels cut the rest: attention weights are saved, not recomputed; the GELU's derivative
is made beside the GELU, in tiles that stay in cache, from a fast sigmoid; biases and residuals ride
on passes that are made anyway; gradients are written where they belong.

Under bfloat16 autocast the products with weights take and give bfloat16, twice as fast where the
CPU has instructions for it; attention, norms and the residual stream stay float32. Results equal
the plain operators' to rounding, which tests hold. The plain operators are in
`gpt_model.transformer`, for other devices and for dropout. Differentiable once.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt_model.ops import sizes
from gpt_model.ops.cpu_attention import (
    attend,
    attend_backward,
    attend_packed,
    attend_packed_backward,
    rows_at_once,
)
from gpt_model.ops.weight_copies import copy_of

# Of an elementwise tile: with its temporaries it stays in a core's cache of 2 MB.
TILE_ELEMENTS = 1 << 17

# Floats in a cache line. Rows a power of two (or three times one) apart would compete for the same
# few cache sets.
PAD = 16

# Without AVX-512 or its like, torch's bfloat16 products are several times slower than float32's:
# there the factors are rounded to bfloat16 and multiplied as float32, which gives the same numbers
# but for the order of summation.
FAST_BFLOAT16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

# gelu_tanh(x) = x * sigmoid(SCALE * (x + CUBIC * x³)), since (1 + tanh(u)) / 2 = sigmoid(2u).
SCALE = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715


def usable(x: Tensor, dropout: float, band: int | None = None, longest: int | None = None) -> bool:
    """Whether the halves below compute what the plain operators would, for x [batch, time, width].

    `longest`: tokens of the longest packed sequence, where x holds several.
    """
    if (
        x.device.type != "cpu"
        or torch.compiler.is_compiling()  # a compiler fuses the plain operators
        or dropout != 0.0
        or min(longest or x.shape[1], band or sizes.MAX_KEYS + 1) > sizes.MAX_KEYS
    ):
        return False
    if torch.is_autocast_enabled("cpu"):
        return x.dtype == torch.float32 and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype in (torch.float32, torch.float64)


class Affine(Protocol):
    """A module with a weight [in, out] and a bias [out]. The halves read each by its name, which is
    when DeepSpeed's ZeRO 3 gathers it.

    Only the projection to queries, keys and values may have no bias.
    """

    weight: torch.nn.Parameter
    bias: torch.nn.Parameter | None


def attention_half(
    x: Tensor,
    norm: torch.nn.LayerNorm,
    into: Affine,
    out: Affine,
    heads: int,
    band: int | None = None,
    lengths: tuple[int, ...] | None = None,
) -> Tensor:
    """x + attention(norm(x)) for x [batch, time, width]. `into` projects to fused queries, keys and
    values, `out` back to the width.

    `band`: tokens that each attends to, itself among them; by default all before it. `lengths`: of
    the packed sequences in x [1, tokens, width] (`gpt_model.ops.varlen`).
    """
    kind = _product_dtype(x)
    with torch.autocast("cpu", enabled=False):  # the casts are explicit below
        return _AttentionHalf.apply(
            x,
            norm.weight,
            norm.bias,
            into.weight,
            into.bias,
            out.weight,
            out.bias,
            norm.eps,
            heads,
            band,
            lengths,
            kind,
            torch.is_grad_enabled(),
        )


def mlp_half(x: Tensor, norm: torch.nn.LayerNorm, into: Affine, out: Affine) -> Tensor:
    """x + MLP(norm(x)) for x [batch, time, width]; `into` makes it wide, `out` narrow again."""
    kind = _product_dtype(x)
    with torch.autocast("cpu", enabled=False):
        return _MLPHalf.apply(
            x,
            norm.weight,
            norm.bias,
            into.weight,
            into.bias,
            out.weight,
            out.bias,
            norm.eps,
            kind,
            torch.is_grad_enabled(),
        )


def _product_dtype(x: Tensor) -> torch.dtype:
    """The precision of products with weights, for x [batch, time, width]."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


class _AttentionHalf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        shift: Tensor,
        w_in: Tensor,
        b_in: Tensor | None,
        w_out: Tensor,
        b_out: Tensor,
        eps: float,
        heads: int,
        band: int | None,
        lengths: tuple[int, ...] | None,
        kind: torch.dtype,
        keep: bool,
    ) -> Tensor:
        """x [batch, time, width], w_in [width, 3 * width], w_out [width, width] -> as x."""
        w_in, w_out = (copy_of(weight, Tensor.to, kind) for weight in (w_in, w_out))
        normed, mean, rstd = torch.native_layer_norm(x, [x.shape[-1]], gain, shift, eps)
        normed = normed.flatten(0, 1).to(kind)
        qkv = product(normed, w_in)
        if lengths is None:
            qkv = _to_heads(qkv, x, 3, heads, b_in)
            out = x.new_empty(qkv.shape[1:])
            query, key, value = qkv
            weights = [attend(query, key, value, out, band, keep, rows_at_once(heads))]
            mixed = _to_rows(out[None], normed)
        else:
            qkv = qkv.to(x.dtype) if b_in is None else _biased(qkv, b_in)
            mixed = padded(qkv, len(normed), x.shape[-1])
            weights = attend_packed(qkv, mixed, heads, band, keep, lengths)
            mixed = mixed.to(kind)
        ctx.save_for_backward(x, gain, shift, w_in, w_out, normed, mean, rstd, qkv, mixed, *weights)
        ctx.heads, ctx.band, ctx.lengths, ctx.biased = heads, band, lengths, b_in is not None
        return _plus_product(x + b_out, mixed, w_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """upstream [batch, time, width] -> the gradient of each argument of `forward`."""
        x, gain, shift, w_in, w_out, normed, mean, rstd, qkv, mixed, *weights = ctx.saved_tensors
        slope = upstream.flatten(0, 1).to(w_out.dtype)
        d_w_out, d_b_out = _whole(mixed.t(), slope, x.dtype), upstream.sum((0, 1))
        if ctx.lengths is None:
            [d_out] = _to_heads(product(slope, w_out.t()), x, 1, ctx.heads)
            d_heads, (query, key, value) = torch.empty_like(qkv), qkv
            d_query, d_key, d_value = d_heads
            attend_backward(
                d_out,
                query,
                key,
                value,
                weights[0],
                ctx.band,
                d_query,
                d_key,
                d_value,
                rows_at_once(ctx.heads),
            )
            # One after the other: torch's sum over both takes ten times as long
            d_b_in = d_heads.sum(3).sum(1).flatten() if ctx.biased else None
            d_qkv = _to_rows(d_heads, slope)
        else:
            d_mixed, d_qkv = _whole(slope, w_out.t(), x.dtype), padded(qkv, *qkv.shape)
            attend_packed_backward(d_mixed, qkv, weights, ctx.band, d_qkv, ctx.heads, ctx.lengths)
            d_b_in, d_qkv = d_qkv.sum(0) if ctx.biased else None, d_qkv.to(w_in.dtype)
        d_w_in = _whole(normed.t(), d_qkv, x.dtype)
        d_normed = _whole(d_qkv, w_in.t(), x.dtype).view_as(x)
        d_x, d_gain, d_shift = torch.ops.aten.native_layer_norm_backward(
            d_normed, x, [x.shape[-1]], mean, rstd, gain, shift, [True, True, True]
        )
        return (
            d_x.add_(upstream),
            d_gain,
            d_shift,
            d_w_in,
            d_b_in,
            d_w_out,
            d_b_out,
            None,
            None,
            None,
            None,
            None,
            None,
        )


class _MLPHalf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        shift: Tensor,
        w_in: Tensor,
        b_in: Tensor,
        w_out: Tensor,
        b_out: Tensor,
        eps: float,
        kind: torch.dtype,
        keep: bool,
    ) -> Tensor:
        """x [batch, time, width], w_in [width, 4 * width], w_out [4 * width, width] -> as x."""
        w_in, w_out = (copy_of(weight, Tensor.to, kind) for weight in (w_in, w_out))
        normed, mean, rstd = torch.native_layer_norm(x, [x.shape[-1]], gain, shift, eps)
        normed = normed.flatten(0, 1).to(kind)
        before = product(normed, w_in)  # [rows, 4 · width], its bias still to come
        wide = _gelu_(before, b_in, keep)
        ctx.save_for_backward(x, gain, shift, w_in, w_out, normed, mean, rstd, before, wide)
        return _plus_product(x + b_out, wide, w_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """upstream [batch, time, width] -> the gradient of each argument of `forward`."""
        x, gain, shift, w_in, w_out, normed, mean, rstd, derivative, wide = ctx.saved_tensors
        slope = upstream.flatten(0, 1).to(w_out.dtype)
        d_wide = product(slope, w_out.t())
        d_w_out, d_b_out = _whole(wide.t(), slope, x.dtype), upstream.sum((0, 1))
        d_b_in = _times_(d_wide, derivative, x.dtype)
        d_w_in = _whole(normed.t(), d_wide, x.dtype)
        d_normed = _whole(d_wide, w_in.t(), x.dtype).view_as(x)
        d_x, d_gain, d_shift = torch.ops.aten.native_layer_norm_backward(
            d_normed, x, [x.shape[-1]], mean, rstd, gain, shift, [True, True, True]
        )
        return (
            d_x.add_(upstream),
            d_gain,
            d_shift,
            d_w_in,
            d_b_in,
            d_w_out,
            d_b_out,
            None,
            None,
            None,
        )


def padded(like: Tensor, rows: int, columns: int) -> Tensor:
    """An empty [rows, columns] whose rows begin an odd number of cache lines apart."""
    return like.new_empty(rows, columns + PAD)[:, :columns]


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a [rows, inner] @ b [inner, columns] in their precision, into `out`, else padded."""
    out = padded(a, a.shape[0], b.shape[1]) if out is None else out
    if a.dtype == torch.bfloat16 and a.device.type == "cpu" and not FAST_BFLOAT16:
        return out.copy_(torch.mm(a.float(), b.float()))
    return torch.mm(a, b, out=out)


def _whole(a: Tensor, b: Tensor, kind: torch.dtype) -> Tensor:
    """a [rows, inner] @ b [inner, columns] as `kind`, not padded."""
    return product(a, b, a.new_empty(a.shape[0], b.shape[1])).to(kind)


def _plus_product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x += a @ b for x [batch, time, b's columns], in x's precision."""
    rows = x.flatten(0, 1)
    return (rows.addmm_(a, b) if a.dtype == x.dtype else rows.add_(product(a, b))).view_as(x)


def _to_heads(
    rows: Tensor, like: Tensor, parts: int, heads: int, bias: Tensor | None = None
) -> Tensor:
    """rows [batch · time, parts · width] + bias as [parts, batch, heads, time, width / heads], in
    the precision of `like` [batch, time, width]: a head's queries, keys and values lie together.
    """
    batch, time, width = like.shape
    result = like.new_empty(parts, batch, heads, time, width // heads)
    source = rows.view(batch, time, parts, heads, -1).permute(2, 0, 3, 1, 4)
    if bias is None:
        return result.copy_(source)
    return torch.add(source, bias.view(parts, 1, heads, 1, -1), out=result)


def _to_rows(by_head: Tensor, like: Tensor) -> Tensor:
    """The reverse of `_to_heads`, padded, in the precision of `like`."""
    parts, batch, heads, time, each = by_head.shape
    rows = padded(like, batch * time, parts * heads * each)
    rows.view(batch, time, parts, heads, each).copy_(by_head.permute(1, 3, 0, 2, 4))
    return rows


def _biased(x: Tensor, bias: Tensor) -> Tensor:
    """x + bias for x [rows, columns], in the bias's precision; x's memory where it can be."""
    return x.add_(bias) if x.dtype == bias.dtype else torch.add(x, bias, out=padded(bias, *x.shape))


def _gelu_(x: Tensor, bias: Tensor, keep: bool) -> Tensor:
    """gelu(x + bias) of x [rows, wide]. With `keep`, x is overwritten with the derivative.

    torch's kernel takes 1.7 ns an element for its tanh, forward and again backward; its sigmoid
    takes 0.35 ns. With z = SCALE * (x + CUBIC * x³) and s = sigmoid(z): gelu = x * s and
    gelu' = s + s * (1 - s) * (3z - 2 * SCALE * x).
    """
    y, rows = padded(x, *x.shape), rows_of_tile(x)
    x_tile, z_tile, s_tile = bias.new_empty(3, rows, x.shape[1])
    scale = bias.new_tensor(SCALE)
    for x_part, y_part in zip(x.split(rows), y.split(rows), strict=True):
        t, z, s = x_tile[: len(x_part)], z_tile[: len(x_part)], s_tile[: len(x_part)]
        torch.add(x_part, bias, out=t)
        torch.addcmul(scale, t, t, value=SCALE * CUBIC, out=z).mul_(t)
        torch.sigmoid(z, out=s)
        if keep:
            torch.mul(t, s, out=y_part) if y_part.dtype == t.dtype else y_part.copy_(t * s)
            z.add_(t, alpha=-2 * SCALE / 3)
            torch.ops.aten.sigmoid_backward.grad_input(z, s, grad_input=z)
            x_part.copy_(s.add_(z, alpha=3))
        else:
            y_part.copy_(t.mul_(s))
    return y


def _times_(slope: Tensor, derivative: Tensor, kind: torch.dtype) -> Tensor:
    """slope *= derivative, each [rows, wide]; returns the sum of the products over rows [wide], in
    precision `kind`. In tiles, which are still in cache when they are summed.
    """
    rows = rows_of_tile(slope)
    total = slope.new_zeros(slope.shape[1], dtype=kind)
    wide = slope.new_empty(rows, slope.shape[1], dtype=kind)
    for part, factor in zip(slope.split(rows), derivative.split(rows), strict=True):
        part.mul_(factor)
        total += (part if part.dtype == kind else wide[: len(part)].copy_(part)).sum(0)
    return total


def rows_of_tile(x: Tensor) -> int:
    """Rows of a tile of x [rows, columns], such that all tiles are about as large."""
    tiles = max(1, round(x.numel() / TILE_ELEMENTS))
    return max(1, -(-len(x) // tiles))
