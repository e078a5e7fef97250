"""A block's two halves for a CPU, forward and gradient written by hand: x + attention(norm(x)) and
x + MLP(norm(x)).

On a CPU a training step of a small GPT is matrix products and, if nothing is done about it, a third
as much again of everything else. What is done about it here: weights of attention are kept, not
recomputed; the GELU's derivative is made beside the GELU, in tiles that stay in cache, from a fast
sigmoid; biases and residuals ride on passes that are made anyway; gradients are written where they
belong instead of being copied together. Under bfloat16 autocast the products with weights take and
give bfloat16, twice as many a second where the CPU has instructions for them; attention, norms and
the residual stream stay float32. Equal to the plain operators to rounding (tests hold that). The
plain operators are in `gpt_model.transformer`, for other devices and dropout. Nothing here is
differentiable twice.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

QUERIES = 64  # queries attended at once: what lies beyond the diagonal block is never computed
# tokens that a query sees; beyond it the kept attention weights take more memory than they save
# time
LONGEST = 512
TILE_ELEMENTS = (
    1 << 17
)  # elements of an elementwise tile: with its temporaries it stays in a core's cache of 2 MB

# floats, one cache line: rows of a power of two (or thrice one) apart would compete for the same
# few cache sets
PAD = 16

# Without AVX-512 or its like, torch's bfloat16 products are several times slower than float32's:
# there the factors are rounded to bfloat16 and multiplied as float32, which gives the same numbers
# but for the order of summation.
FAST_BFLOAT16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

SCALE = 2 * math.sqrt(
    2 / math.pi
)  # gelu_tanh(x) = x · sigmoid(SCALE · (x + CUBIC · x³)), since (1 + tanh(u)) / 2 = sigmoid(2u)
CUBIC = 0.044715


def usable(x: Tensor, dropout: float, band: int | None = None, longest: int | None = None) -> bool:
    """Whether the halves below compute what the plain operators would, for x [batch, time, width];
    `longest`: text of those in a row.
    """
    if (
        x.device.type != "cpu"
        or dropout != 0.0
        or min(longest or x.shape[1], band or LONGEST + 1) > LONGEST
    ):
        return False
    if torch.is_autocast_enabled("cpu"):
        return x.dtype == torch.float32 and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype in (torch.float32, torch.float64)


class Affine(Protocol):
    """A module with a weight and a bias. They are read one by one, by name: that is when
    DeepSpeed's ZeRO 3 gathers them.

    Only what makes queries, keys and values may have no bias.
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
    """x + attention(norm(x)) for x [batch, time, width]; `into` makes fused query, key and value,
    `out` the result.

    `band`: how many tokens each sees, itself among them; all before it by default. `lengths`: of
    the texts that lie one after another in x [1, all their tokens, width], none of which sees
    another (`gpt_model.ops.varlen`).
    """
    kind = _kind_of_products(x)
    with torch.autocast("cpu", enabled=False):  # what is cast to what is said below
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
    kind = _kind_of_products(x)
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


def _kind_of_products(x: Tensor) -> torch.dtype:
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
        w_in, w_out = w_in.to(kind), w_out.to(kind)
        normed, mean, rstd = torch.native_layer_norm(x, [x.shape[-1]], gain, shift, eps)
        normed = normed.flatten(0, 1).to(kind)
        qkv = product(normed, w_in)
        qkv = (qkv.to(x.dtype) if b_in is None else _biased(qkv, b_in)).unflatten(0, x.shape[:2])
        mixed = padded(qkv, len(normed), x.shape[-1])
        if lengths is None:
            out = mixed.unflatten(0, x.shape[:2]).unflatten(-1, (heads, -1)).transpose(1, 2)
            kept = [attend(*by_head(qkv, heads), out, band, keep)]
        else:
            from gpt_model.ops.varlen_kernels import attend_texts  # which is made of what is below

            kept = attend_texts(qkv[0], mixed, heads, band, keep, lengths)
        mixed = mixed.to(kind)
        ctx.save_for_backward(x, gain, shift, w_in, w_out, normed, mean, rstd, qkv, mixed, *kept)
        ctx.heads, ctx.band, ctx.lengths, ctx.biased = heads, band, lengths, b_in is not None
        return _plus_product(x + b_out, mixed, w_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, w_in, w_out, normed, mean, rstd, qkv, mixed, *kept = ctx.saved_tensors
        slope = upstream.flatten(0, 1).to(w_out.dtype)
        d_mixed = _whole(slope, w_out.t(), x.dtype)
        d_w_out, d_b_out = _whole(mixed.t(), slope, x.dtype), upstream.sum((0, 1))
        d_qkv = padded(qkv, len(slope), qkv.shape[-1])
        if ctx.lengths is None:
            d_heads = d_mixed.view_as(x).unflatten(-1, (ctx.heads, -1)).transpose(1, 2)
            attend_backward(
                d_heads,
                *by_head(qkv, ctx.heads),
                kept[0],
                ctx.band,
                *by_head(d_qkv.view_as(qkv), ctx.heads),
            )
        else:
            from gpt_model.ops.varlen_kernels import attend_texts_backward

            attend_texts_backward(d_mixed, qkv[0], kept, ctx.band, d_qkv, ctx.heads, ctx.lengths)
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
        w_in, w_out = w_in.to(kind), w_out.to(kind)
        normed, mean, rstd = torch.native_layer_norm(x, [x.shape[-1]], gain, shift, eps)
        normed = normed.flatten(0, 1).to(kind)
        before = product(normed, w_in)  # [rows, 4 · width], its bias still to come
        wide = _gelu_(before, b_in, keep)
        ctx.save_for_backward(x, gain, shift, w_in, w_out, normed, mean, rstd, before, wide)
        return _plus_product(x + b_out, wide, w_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, w_in, w_out, normed, mean, rstd, derivative, wide = ctx.saved_tensors
        slope = upstream.flatten(0, 1).to(w_out.dtype)
        d_wide = product(slope, w_out.t())
        d_w_out, d_b_out = _whole(wide.t(), slope, x.dtype), upstream.sum((0, 1))
        d_wide.mul_(derivative)
        d_w_in, d_b_in = _whole(normed.t(), d_wide, x.dtype), d_wide.sum(0, dtype=x.dtype)
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
    """a @ b in their own precision, into `out`, else padded."""
    out = padded(a, a.shape[0], b.shape[1]) if out is None else out
    if a.dtype == torch.bfloat16 and a.device.type == "cpu" and not FAST_BFLOAT16:
        return out.copy_(torch.mm(a.float(), b.float()))
    return torch.mm(a, b, out=out)


def _whole(a: Tensor, b: Tensor, kind: torch.dtype) -> Tensor:
    """a @ b as `kind`, not padded."""
    return product(a, b, a.new_empty(a.shape[0], b.shape[1])).to(kind)


def _plus_product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x += a @ b for x [batch, time, b's columns], in x's precision."""
    rows = x.flatten(0, 1)
    return (rows.addmm_(a, b) if a.dtype == x.dtype else rows.add_(product(a, b))).view_as(x)


def _biased(x: Tensor, bias: Tensor) -> Tensor:
    """x + bias for x [rows, columns], in the bias's precision; x's memory where it can be."""
    return x.add_(bias) if x.dtype == bias.dtype else torch.add(x, bias, out=padded(bias, *x.shape))


def _gelu_(x: Tensor, bias: Tensor, keep: bool) -> Tensor:
    """gelu(x + bias) of x [rows, wide]; where `keep`, x is overwritten with the derivative there.

    torch's own kernel takes 1.7 ns an element for its tanh, forward and again backward; its sigmoid
    takes 0.35 ns. With z = SCALE · (x + CUBIC · x³) and s = sigmoid(z):  gelu = x · s,  gelu' = s +
    s · (1 - s) · (3z - 2 · SCALE · x).
    """
    y = padded(x, *x.shape)
    rows = max(1, TILE_ELEMENTS // x.shape[1])
    x_tile, z_tile, s_tile = bias.new_empty(3, min(rows, x.shape[0]), x.shape[1])
    for x_part, y_part in zip(x.split(rows), y.split(rows), strict=True):
        t, z, s = x_tile[: len(x_part)], z_tile[: len(x_part)], s_tile[: len(x_part)]
        torch.add(x_part, bias, out=t)
        torch.mul(t, t, out=z)
        torch.addcmul(t, t, z, value=CUBIC, out=z).mul_(SCALE)
        torch.sigmoid(z, out=s)
        if keep:
            torch.mul(t, s, out=y_part) if y_part.dtype == t.dtype else y_part.copy_(t * s)
            z.add_(t, alpha=-2 * SCALE / 3)
            torch.ops.aten.sigmoid_backward.grad_input(z, s, grad_input=z)
            x_part.copy_(s.add_(z, alpha=3))
        else:
            y_part.copy_(t.mul_(s))
    return y


def _blocks(time: int, heads: int, band: int | None) -> list[tuple[slice, slice, slice]]:
    """Blocks of queries: the queries, the keys that any of them sees, and where the block's weights
    lie in a sequence's store.
    """
    blocks, used = [], 0
    for start in range(0, time, QUERIES):
        end, first = min(start + QUERIES, time), 0 if band is None else max(0, start - band + 1)
        size = heads * (end - start) * (end - first)
        blocks.append((slice(start, end), slice(first, end), slice(used, used + size)))
        used += size
    return blocks


def _largest(blocks: list[tuple[slice, slice, slice]]) -> int:
    return max(place.stop - place.start for *_, place in blocks)


def by_head(fused: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of [batch, time, 3 · width] as query, key and value, each [batch, heads, time, width /
    heads].
    """
    query, key, value = fused.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return query, key, value


def unseen(
    blocks: list[tuple[slice, slice, slice]], band: int | None, like: Tensor
) -> list[Tensor]:
    """What is added to each block's scores [queries, keys]: -inf where the key is later, or `band`
    or more tokens back; else 0.
    """
    back = [queries.start - keys.start for queries, keys, _ in blocks]
    ahead = torch.arange(-max(back), QUERIES) - torch.arange(QUERIES)[:, None]
    hidden = ahead > 0 if band is None else (ahead > 0) | (ahead <= -band)
    mask = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, -math.inf)
    sizes = [queries.stop - queries.start for queries, *_ in blocks]
    return [
        mask[:size, max(back) - before : max(back) + size]
        for size, before in zip(sizes, back, strict=True)
    ]


def attend(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, band: int | None, keep: bool
) -> Tensor:
    """softmax(q kᵀ / sqrt(d), causal, banded) v into `out`, each [batch, heads, time, d]; and the
    weights, if they are to be kept.

    One sequence at a time, so that its queries, keys and values stay in cache for all its blocks.
    """
    batch, heads, time, width = query.shape
    blocks = _blocks(time, heads, band)
    store = query.new_empty((batch, blocks[-1][2].stop) if keep else (1, _largest(blocks)))
    masks = unseen(blocks, band, query)
    for row in range(batch):
        q, k, v, y = query[row], key[row], value[row], out[row]
        for (queries, keys, place), mask in zip(blocks, masks, strict=True):
            weights = (store[row, place] if keep else store[0, : place.stop - place.start]).view(
                heads, *mask.shape
            )
            torch.baddbmm(
                mask, q[:, queries], k[:, keys].transpose(1, 2), alpha=width**-0.5, out=weights
            )
            torch.softmax(weights, -1, out=weights)
            torch.bmm(weights, v[:, keys], out=y[:, queries])
    return store


def attend_backward(
    d_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kept: Tensor,
    band: int | None,
    d_query: Tensor,
    d_key: Tensor,
    d_value: Tensor,
) -> None:
    """Gradients of `attend`'s query, key and value, into the last three, from that of its result."""
    batch, heads, time, width = query.shape
    blocks = _blocks(time, heads, band)
    scratch = query.new_empty(_largest(blocks))
    whole = (
        blocks[-1][1].start == 0
    )  # then the last block sees every key, and writes where the others add
    if not whole:
        d_key.zero_(), d_value.zero_()
    for row in range(batch):
        q, k, v, d_q, d_k, d_v, d_y = (
            part[row] for part in (query, key, value, d_query, d_key, d_value, d_out)
        )
        for queries, keys, place in reversed(blocks):
            weights = kept[row, place].view(
                heads, queries.stop - queries.start, keys.stop - keys.start
            )
            d_scores = scratch[: weights.numel()].view_as(weights)
            torch.bmm(d_y[:, queries], v[:, keys].transpose(1, 2), out=d_scores)
            torch._softmax_backward_data(d_scores, weights, -1, query.dtype, grad_input=d_scores)
            others = 0 if whole and queries.stop == time else 1
            d_q[:, queries].baddbmm_(d_scores, k[:, keys], beta=0, alpha=width**-0.5)
            d_k[:, keys].baddbmm_(
                d_scores.transpose(1, 2), q[:, queries], beta=others, alpha=width**-0.5
            )
            d_v[:, keys].baddbmm_(weights.transpose(1, 2), d_y[:, queries], beta=others)
