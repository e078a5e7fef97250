"""A block's two halves for a CPU, forward and gradient written by hand: x + attention(norm(x)) and x + MLP(norm(x)).

On a CPU a training step of a small GPT is matrix products and, if nothing is done about it, a third as much again of everything else. What
is done about it here: weights of attention are kept, not recomputed; the GELU's derivative is made beside the GELU, in tiles that
stay in cache, from a fast sigmoid; biases and residuals ride on passes that are made anyway; gradients are written where they
belong instead of being copied together. Equal to the plain operators to rounding (tests hold that). The plain operators are in
`gpt_model.transformer`, for other devices, reduced precision and dropout. Nothing here is differentiable twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

QUERIES = 64  # queries attended at once: what lies beyond the diagonal block is never computed
LONGEST = 512  # tokens; beyond it the kept attention weights take more memory than they save time
TILE_ELEMENTS = 1 << 17  # elements of an elementwise tile: with its temporaries it stays in a core's cache of 2 MB

PAD = 16  # floats, one cache line: rows of a power of two (or thrice one) apart would compete for the same few cache sets

SCALE = 2 * math.sqrt(2 / math.pi)  # gelu_tanh(x) = x · sigmoid(SCALE · (x + CUBIC · x³)), since (1 + tanh(u)) / 2 = sigmoid(2u)
CUBIC = 0.044715


def usable(x: Tensor, dropout: float) -> bool:
    """Whether the halves below compute what the plain operators would, for x [batch, time, width]."""
    plain = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    return plain and dropout == 0.0 and x.shape[1] <= LONGEST


class Affine(Protocol):
    """A module with a weight and a bias. They are read one by one, by name: that is when DeepSpeed's ZeRO 3 gathers them."""

    weight: torch.nn.Parameter
    bias: torch.nn.Parameter


def attention_half(x: Tensor, norm: torch.nn.LayerNorm, into: Affine, out: Affine, heads: int) -> Tensor:
    """x + attention(norm(x)) for x [batch, time, width]; `into` makes fused query, key and value, `out` the result."""
    return _AttentionHalf.apply(
        x, norm.weight, norm.bias, into.weight, into.bias, out.weight, out.bias, norm.eps, heads, torch.is_grad_enabled()
    )


def mlp_half(x: Tensor, norm: torch.nn.LayerNorm, into: Affine, out: Affine) -> Tensor:
    """x + MLP(norm(x)) for x [batch, time, width]; `into` makes it wide, `out` narrow again."""
    return _MLPHalf.apply(x, norm.weight, norm.bias, into.weight, into.bias, out.weight, out.bias, norm.eps, torch.is_grad_enabled())


class _AttentionHalf(torch.autograd.Function):
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
        heads: int,
        keep: bool,
    ) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(x, [x.shape[-1]], gain, shift, eps)
        qkv = _product(normed.flatten(0, 1), w_in).add_(b_in).unflatten(0, x.shape[:2])
        mixed, kept = _attend(qkv, heads, keep)
        ctx.save_for_backward(x, gain, shift, w_in, w_out, normed, mean, rstd, qkv, mixed, kept)
        ctx.heads = heads
        return (x + b_out).flatten(0, 1).addmm_(mixed.flatten(0, 1), w_out).view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, w_in, w_out, normed, mean, rstd, qkv, mixed, kept = ctx.saved_tensors
        slope = upstream.flatten(0, 1)
        d_mixed = torch.mm(slope, w_out.t()).view_as(x)
        d_w_out, d_b_out = torch.mm(mixed.flatten(0, 1).t(), slope), slope.sum(0)
        d_qkv = _attend_backward(d_mixed, qkv, kept, ctx.heads).flatten(0, 1)
        d_w_in, d_b_in = torch.mm(normed.flatten(0, 1).t(), d_qkv), d_qkv.sum(0)
        d_normed = torch.mm(d_qkv, w_in.t()).view_as(x)
        d_x, d_gain, d_shift = torch.ops.aten.native_layer_norm_backward(
            d_normed, x, [x.shape[-1]], mean, rstd, gain, shift, [True, True, True]
        )
        return d_x.add_(upstream), d_gain, d_shift, d_w_in, d_b_in, d_w_out, d_b_out, None, None, None


class _MLPHalf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor, eps: float, keep: bool
    ) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(x, [x.shape[-1]], gain, shift, eps)
        before = _product(normed.flatten(0, 1), w_in)  # [rows, 4 · width], its bias still to come
        wide = _gelu_(before, b_in, keep)
        ctx.save_for_backward(x, gain, shift, w_in, w_out, normed, mean, rstd, before, wide)
        return (x + b_out).flatten(0, 1).addmm_(wide, w_out).view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, w_in, w_out, normed, mean, rstd, derivative, wide = ctx.saved_tensors
        slope = upstream.flatten(0, 1)
        d_wide = _product(slope, w_out.t())
        d_w_out, d_b_out = torch.mm(wide.t(), slope), slope.sum(0)
        d_wide.mul_(derivative)
        d_w_in, d_b_in = torch.mm(normed.flatten(0, 1).t(), d_wide), d_wide.sum(0)
        d_normed = torch.mm(d_wide, w_in.t()).view_as(x)
        d_x, d_gain, d_shift = torch.ops.aten.native_layer_norm_backward(
            d_normed, x, [x.shape[-1]], mean, rstd, gain, shift, [True, True, True]
        )
        return d_x.add_(upstream), d_gain, d_shift, d_w_in, d_b_in, d_w_out, d_b_out, None, None


def padded(like: Tensor, rows: int, columns: int) -> Tensor:
    """An empty [rows, columns] whose rows begin an odd number of cache lines apart."""
    return like.new_empty(rows, columns + PAD)[:, :columns]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, padded."""
    return torch.mm(a, b, out=padded(a, a.shape[0], b.shape[1]))


def _gelu_(x: Tensor, bias: Tensor, keep: bool) -> Tensor:
    """gelu(x + bias) of x [rows, wide]; where `keep`, x is overwritten with the derivative there.

    torch's own kernel takes 1.7 ns an element for its tanh, forward and again backward; its sigmoid takes 0.35 ns. With z = SCALE · (x +
    CUBIC · x³) and s = sigmoid(z):  gelu = x · s,  gelu' = s + s · (1 - s) · (3z - 2 · SCALE · x).
    """
    y = padded(x, *x.shape)
    rows = max(1, TILE_ELEMENTS // x.shape[1])
    z_tile, s_tile = x.new_empty(2, min(rows, x.shape[0]), x.shape[1])
    for x_part, y_part in zip(x.split(rows), y.split(rows), strict=True):
        z, s = z_tile[: len(x_part)], s_tile[: len(x_part)]
        x_part.add_(bias)
        torch.mul(x_part, x_part, out=z)
        torch.addcmul(x_part, x_part, z, value=CUBIC, out=z).mul_(SCALE)
        torch.sigmoid(z, out=s)
        torch.mul(x_part, s, out=y_part)
        if keep:
            z.add_(x_part, alpha=-2 * SCALE / 3)
            torch.ops.aten.sigmoid_backward.grad_input(z, s, grad_input=z)
            torch.add(s, z, alpha=3, out=x_part)
    return y


def _blocks(time: int, heads: int) -> Iterator[tuple[int, int, slice]]:
    """Blocks of queries: first, last + 1, and where the weights [heads, queries, last + 1] of the block lie in a sequence's store."""
    used = 0
    for start in range(0, time, QUERIES):
        end = min(start + QUERIES, time)
        size = heads * (end - start) * end
        yield start, end, slice(used, used + size)
        used += size


def _by_head(fused: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of [batch, time, 3 · width] as query, key and value, each [batch, heads, time, width / heads]."""
    query, key, value = fused.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return query, key, value


def _attend(qkv: Tensor, heads: int, keep: bool) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / sqrt(d), causal) v: [batch, time, width], and the weights, which `_attend_backward` takes if they were to be kept.

    One sequence at a time, so that its queries, keys and values stay in cache for all its blocks.
    """
    batch, time, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    blocks = list(_blocks(time, heads))
    query, key, value = _by_head(qkv, heads)
    mixed = padded(qkv, batch * time, width).unflatten(0, (batch, time))
    out = mixed.unflatten(-1, (heads, -1)).transpose(1, 2)
    kept = qkv.new_empty(batch if keep else 1, blocks[-1][2].stop)
    future = qkv.new_full((QUERIES, QUERIES), -math.inf).triu_(1)
    masks = [torch.nn.functional.pad(future[: end - start, : end - start], (start, 0)) for start, end, _ in blocks]
    scale = (width // heads) ** -0.5
    for row in range(batch):
        q, k, v, y = query[row], key[row], value[row], out[row]
        for (start, end, place), mask in zip(blocks, masks, strict=True):
            weights = kept[row if keep else 0, place].view(heads, end - start, end)
            torch.baddbmm(mask, q[:, start:end], k[:, :end].transpose(1, 2), alpha=scale, out=weights)
            torch.softmax(weights, -1, out=weights)
            torch.bmm(weights, v[:, :end], out=y[:, start:end])
    return mixed, kept


def _attend_backward(d_mixed: Tensor, qkv: Tensor, kept: Tensor, heads: int) -> Tensor:
    """The gradient of the fused queries, keys and values [batch, time, 3 · width], from that of `_attend`'s result."""
    batch, time, width = d_mixed.shape
    blocks = list(_blocks(time, heads))
    gradient = padded(qkv, batch * time, 3 * width).unflatten(0, (batch, time))
    scale = (width // heads) ** -0.5
    scratch = qkv.new_empty(heads * QUERIES * time)
    for row in range(batch):
        q, k, v = (part[0] for part in _by_head(qkv[row : row + 1], heads))
        d_q, d_k, d_v = (part[0] for part in _by_head(gradient[row : row + 1], heads))
        d_out = d_mixed[row].unflatten(-1, (heads, -1)).transpose(0, 1)
        for start, end, place in reversed(blocks):  # the last block sees every key, so it writes where the others add
            weights = kept[row, place].view(heads, end - start, end)
            d_y = d_out[:, start:end]
            d_scores = scratch[: weights.numel()].view_as(weights)
            torch.bmm(d_y, v[:, :end].transpose(1, 2), out=d_scores)
            torch._softmax_backward_data(d_scores, weights, -1, qkv.dtype, grad_input=d_scores)
            others = 0 if end == time else 1
            d_q[:, start:end].baddbmm_(d_scores, k[:, :end], beta=0, alpha=scale)
            d_k[:, :end].baddbmm_(d_scores.transpose(1, 2), q[:, start:end], beta=others, alpha=scale)
            d_v[:, :end].baddbmm_(weights.transpose(1, 2), d_y, beta=others)
    return gradient
