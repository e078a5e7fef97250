"""Causal attention on a CPU, forward and backward by hand, in blocks of queries.

`attend` takes sequences of one length. `attend_packed` takes texts of different lengths one after
another in one row (`gpt_model.ops.varlen`), none of which sees another: a long text is attended as
any sequence is, shorter ones are copied into padded groups of similar length, since
starting a product for each would take longer than the product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from gpt_model.ops.sizes import BANDED_QUERIES, QUERIES

HEADS_AT_ONCE = 16  # of one product: rows of few heads are attended together
SHORT = 64  # tokens of a packed text that is attended in a group
# of a group: its queries, keys, values and their products stay in a core's cache
GROUP_TOKENS = 512


def _blocks(time: int, heads: int, band: int | None) -> list[tuple[slice, slice, slice]]:
    """Blocks of queries: the queries, the keys that any of them sees, and where the block's weights
    lie in a sequence's store.
    """
    blocks, used, most = [], 0, QUERIES if band is None else BANDED_QUERIES
    for start in range(0, time, most):
        end, first = min(start + most, time), 0 if band is None else max(0, start - band + 1)
        size = heads * (end - start) * (end - first)
        blocks.append((slice(start, end), slice(first, end), slice(used, used + size)))
        used += size
    return blocks


def _largest_block(blocks: list[tuple[slice, slice, slice]]) -> int:
    return max(stored_at.stop - stored_at.start for *_, stored_at in blocks)


def split_heads(fused: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of [batch, time, 3 · width] as query, key and value, each [batch, heads, time, width /
    heads].
    """
    query, key, value = fused.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return query, key, value


def causal_masks(
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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    band: int | None,
    keep: bool,
    rows: int = 1,
) -> Tensor:
    """softmax(q kᵀ / sqrt(d), causal, banded) v into `out`, each [batch, heads, time, d]; and the
    weights, if they are to be kept.

    `rows` of the batch at a time, so that their queries, keys and values stay in cache for all
    blocks; more than one where every tensor is contiguous.
    """
    batch, heads, time, width = query.shape
    blocks = _blocks(time, heads, band)
    elements = batch * blocks[-1][2].stop if keep else min(rows, batch) * _largest_block(blocks)
    store = query.new_empty(elements)
    masks = causal_masks(blocks, band, query)
    for first in range(0, batch, rows):
        q, k, v, y = _some_rows(first, rows, query, key, value, out)
        for (queries, keys, stored_at), mask in zip(blocks, masks, strict=True):
            stored = _stored(store, blocks, stored_at, first if keep else None, len(q) // heads)
            weights = stored.view(len(q), *mask.shape)
            torch.baddbmm(
                mask, q[:, queries], k[:, keys].transpose(1, 2), alpha=width**-0.5, out=weights
            )
            torch.softmax(weights, -1, out=weights)
            torch.bmm(weights, v[:, keys], out=y[:, queries])
    return store


def rows_at_once(heads: int) -> int:
    """Rows that `attend` takes together, if they are contiguous."""
    return max(1, HEADS_AT_ONCE // heads)


def _some_rows(first: int, rows: int, *parts: Tensor) -> list[Tensor]:
    """Views of some rows of each part [batch, heads, time, d]: [rows * heads, time, d]."""
    return [part[first : first + rows].view(-1, *part.shape[2:]) for part in parts]


def _stored(
    store: Tensor,
    blocks: list[tuple[slice, slice, slice]],
    stored_at: slice,
    first: int | None,
    rows: int,
) -> Tensor:
    """Where the weights of a block of some rows lie, flat. `first`: of these rows, where the
    weights of all are kept.
    """
    size = rows * (stored_at.stop - stored_at.start)
    if first is None:
        return store[:size]
    return store[first * blocks[-1][2].stop + rows * stored_at.start :][:size]


def attend_backward(
    d_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    saved_weights: Tensor,
    band: int | None,
    d_query: Tensor,
    d_key: Tensor,
    d_value: Tensor,
    rows: int = 1,
) -> None:
    """Writes the gradients of `attend`'s query, key and value into d_query, d_key and d_value, from
    d_out; each is [batch, heads, time, d]. `rows`: as `attend` had it.
    """
    batch, heads, time, width = query.shape
    blocks = _blocks(time, heads, band)
    scratch = query.new_empty(min(rows, batch) * _largest_block(blocks))
    # With every key visible, the last block writes where the others add.
    whole = blocks[-1][1].start == 0
    if not whole:
        d_key.zero_(), d_value.zero_()
    for first in range(0, batch, rows):
        q, k, v, d_q, d_k, d_v, d_y = _some_rows(
            first, rows, query, key, value, d_query, d_key, d_value, d_out
        )
        for queries, keys, stored_at in reversed(blocks):
            weights = _stored(saved_weights, blocks, stored_at, first, len(q) // heads).view(
                len(q), queries.stop - queries.start, keys.stop - keys.start
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


@dataclass(frozen=True)
class _Group:
    """Short texts of like length, to be attended at once, each padded to the longest of them.
    Slots are [texts · longest].
    """

    texts: int
    longest: int
    source: Tensor  # the token in each slot; any token in an empty one
    empty: Tensor  # [slots, 1], whether the slot is padding
    padded_index: Tensor  # the slots that hold a token
    tokens: Tensor  # and which token each holds

    def gather_padded(self, rows: Tensor, parts: int, heads: int, *, blank: bool = False) -> Tensor:
        """Of rows [tokens, parts · width] those of the group: [parts, texts · heads, longest, d];
        `blank`: 0 where there is none.
        """
        gathered = rows.index_select(0, self.source)
        gathered = gathered.masked_fill_(self.empty, 0.0) if blank else gathered
        parted = gathered.view(self.texts, self.longest, parts, heads, -1).permute(2, 0, 3, 1, 4)
        return parted.reshape(parts, self.texts * heads, self.longest, -1)

    def scatter(self, values: Tensor, rows: Tensor) -> None:
        """The reverse of `gather_padded`: values [parts, texts * heads, longest, d] into rows
        [tokens, parts * width].
        """
        parts, width = len(values), rows.shape[1] // len(values)
        by_token = values.view(parts, self.texts, -1, self.longest, values.shape[-1]).permute(
            1, 3, 0, 2, 4
        )
        rows.index_copy_(
            0, self.tokens, by_token.reshape(-1, parts * width).index_select(0, self.padded_index)
        )


@lru_cache(maxsize=8)  # the same for all layers, forward and back
def _groups(lengths: tuple[int, ...]) -> tuple[list[_Group], list[slice]]:
    """The short texts in groups, and where each longer one lies."""
    starts = list(accumulate(lengths, initial=0))
    groups: list[list[int]] = [[]]
    for text in sorted(
        (text for text, length in enumerate(lengths) if length <= SHORT), key=lengths.__getitem__
    ):
        if groups[-1] and (len(groups[-1]) + 1) * lengths[text] > GROUP_TOKENS:
            groups.append([])
        groups[-1].append(text)
    longer = [
        slice(start, start + length)
        for start, length in zip(starts, lengths, strict=False)
        if length > SHORT
    ]
    return [
        _group([(starts[text], lengths[text]) for text in group]) for group in groups if group
    ], longer


def _group(texts: list[tuple[int, int]]) -> _Group:
    """Of texts (where it starts, how long it is)."""
    longest = max(length for _, length in texts)
    start, length = torch.tensor(texts).t()[:, :, None]
    offset = torch.arange(longest)
    real = (offset < length).flatten()
    source = torch.where(offset < length, start + offset, 0).flatten()
    padded_index = real.nonzero()[:, 0]
    return _Group(len(texts), longest, source, ~real[:, None], padded_index, source[padded_index])


def attend_packed(
    qkv: Tensor, out: Tensor, heads: int, band: int | None, keep: bool, lengths: tuple[int, ...]
) -> list[Tensor]:
    """`attend` for the texts in qkv [tokens, 3 · width], into out [tokens, width]; the weights of
    each group, then of each longer text.
    """
    saved_weights = []
    groups, longer = _groups(lengths)
    for group in groups:
        query, key, value = group.gather_padded(qkv, 3, heads)
        weights = torch.baddbmm(
            _group_mask(group, band, qkv), query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5
        )
        torch.softmax(weights, -1, out=weights)
        group.scatter(torch.bmm(weights, value)[None], out)
        saved_weights.append(weights)
    for span in longer:
        y = out[None, span].unflatten(-1, (heads, -1)).transpose(1, 2)
        saved_weights.append(attend(*split_heads(qkv[None, span], heads), y, band, keep))
    return saved_weights if keep else []


def _group_mask(group: _Group, band: int | None, like: Tensor) -> Tensor:
    """The causal mask of a group [longest, longest], in the precision of `like`."""
    whole = slice(0, group.longest)
    return causal_masks([(whole, whole, whole)], band, like)[0]


def attend_packed_backward(
    d_out: Tensor,
    qkv: Tensor,
    saved_weights: Sequence[Tensor],
    band: int | None,
    d_qkv: Tensor,
    heads: int,
    lengths: tuple[int, ...],
) -> None:
    """Writes the gradient of `attend_packed`'s qkv into d_qkv [tokens, 3 * width], from d_out
    [tokens, width].
    """
    groups, longer = _groups(lengths)
    for group, weights in zip(groups, saved_weights, strict=False):
        query, key, value = group.gather_padded(qkv, 3, heads)
        [d_y] = group.gather_padded(
            d_out, 1, heads, blank=True
        )  # so that what pads a text adds nothing to its keys and values
        d_scores = torch.bmm(d_y, value.transpose(1, 2))
        torch._softmax_backward_data(d_scores, weights, -1, qkv.dtype, grad_input=d_scores)
        d_scores.mul_(query.shape[-1] ** -0.5)
        products = (
            torch.bmm(d_scores, key),
            torch.bmm(d_scores.transpose(1, 2), query),
            torch.bmm(weights.transpose(1, 2), d_y),
        )
        group.scatter(torch.stack(products), d_qkv)
    for span, weights in zip(longer, saved_weights[len(groups) :], strict=True):
        d_y = d_out[None, span].unflatten(-1, (heads, -1)).transpose(1, 2)
        attend_backward(
            d_y,
            *split_heads(qkv[None, span], heads),
            weights,
            band,
            *split_heads(d_qkv[None, span], heads),
        )
