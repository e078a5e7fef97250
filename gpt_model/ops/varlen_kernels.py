"""The attention of `gpt_model.ops.cpu_kernels` for texts of different lengths one after another in
one row (`gpt_model.ops.varlen`), none of which sees another.

A text longer than a block of queries is attended as any sequence is. Shorter ones are copied
together into padded groups of like length and attended group by group: one by one, starting a
product would take longer than the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from gpt_model.ops.cpu_kernels import QUERIES, attend, attend_backward, by_head, unseen

# of a group: its queries, keys and values and all that is made of them stay in a core's cache
GROUP_TOKENS = 512


@dataclass(frozen=True)
class _Group:
    """Short texts of like length, to be attended at once, each padded to the longest of them.
    Places are of [texts · longest].
    """

    texts: int
    longest: int
    source: Tensor  # the token at each place; any, where none is
    empty: Tensor  # [places, 1], where none is
    own: Tensor  # the places where one is
    tokens: Tensor  # and which

    def laid_out(self, rows: Tensor, parts: int, heads: int, *, blank: bool = False) -> Tensor:
        """Of rows [tokens, parts · width] those of the group: [parts, texts · heads, longest, d];
        `blank`: 0 where there is none.
        """
        found = rows.index_select(0, self.source)
        found = found.masked_fill_(self.empty, 0.0) if blank else found
        parted = found.view(self.texts, self.longest, parts, heads, -1).permute(2, 0, 3, 1, 4)
        return parted.reshape(parts, self.texts * heads, self.longest, -1)

    def put_back(self, found: Tensor, rows: Tensor) -> None:
        """The reverse, into the rows."""
        parts, width = len(found), rows.shape[1] // len(found)
        by_token = found.view(parts, self.texts, -1, self.longest, found.shape[-1]).permute(
            1, 3, 0, 2, 4
        )
        rows.index_copy_(
            0, self.tokens, by_token.reshape(-1, parts * width).index_select(0, self.own)
        )


@lru_cache(maxsize=8)  # the same for all layers, forward and back
def _groups(lengths: tuple[int, ...]) -> tuple[list[_Group], list[slice]]:
    """The short texts in groups, and where each longer one lies."""
    starts = list(accumulate(lengths, initial=0))
    groups: list[list[int]] = [[]]
    for text in sorted(
        (text for text, length in enumerate(lengths) if length <= QUERIES), key=lengths.__getitem__
    ):
        if groups[-1] and (len(groups[-1]) + 1) * lengths[text] > GROUP_TOKENS:
            groups.append([])
        groups[-1].append(text)
    longer = [
        slice(start, start + length)
        for start, length in zip(starts, lengths, strict=False)
        if length > QUERIES
    ]
    return [
        _group([(starts[text], lengths[text]) for text in group]) for group in groups if group
    ], longer


def _group(texts: list[tuple[int, int]]) -> _Group:
    """Of texts (where it starts, how long it is)."""
    longest = max(length for _, length in texts)
    start, length = torch.tensor(texts).t()[:, :, None]
    place = torch.arange(longest)
    real = (place < length).flatten()
    source = torch.where(place < length, start + place, 0).flatten()
    own = real.nonzero()[:, 0]
    return _Group(len(texts), longest, source, ~real[:, None], own, source[own])


def attend_texts(
    qkv: Tensor, out: Tensor, heads: int, band: int | None, keep: bool, lengths: tuple[int, ...]
) -> list[Tensor]:
    """`attend` for the texts in qkv [tokens, 3 · width], into out [tokens, width]; the weights of
    each group, then of each longer text.
    """
    kept = []
    groups, longer = _groups(lengths)
    for group in groups:
        query, key, value = group.laid_out(qkv, 3, heads)
        weights = torch.baddbmm(
            _unseen_in(group, band, qkv), query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5
        )
        torch.softmax(weights, -1, out=weights)
        group.put_back(torch.bmm(weights, value)[None], out)
        kept.append(weights)
    for place in longer:
        y = out[None, place].unflatten(-1, (heads, -1)).transpose(1, 2)
        kept.append(attend(*by_head(qkv[None, place], heads), y, band, keep))
    return kept if keep else []


def _unseen_in(group: _Group, band: int | None, like: Tensor) -> Tensor:
    whole = slice(0, group.longest)
    return unseen([(whole, whole, whole)], band, like)[0]


def attend_texts_backward(
    d_out: Tensor,
    qkv: Tensor,
    kept: Sequence[Tensor],
    band: int | None,
    d_qkv: Tensor,
    heads: int,
    lengths: tuple[int, ...],
) -> None:
    """The gradient of `attend_texts`'s qkv, into d_qkv [tokens, 3 · width], from that of its result
    [tokens, width].
    """
    groups, longer = _groups(lengths)
    for group, weights in zip(groups, kept, strict=False):
        query, key, value = group.laid_out(qkv, 3, heads)
        [d_y] = group.laid_out(
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
        group.put_back(torch.stack(products), d_qkv)
    for place, weights in zip(longer, kept[len(groups) :], strict=True):
        d_y = d_out[None, place].unflatten(-1, (heads, -1)).transpose(1, 2)
        attend_backward(
            d_y,
            *by_head(qkv[None, place], heads),
            weights,
            band,
            *by_head(d_qkv[None, place], heads),
        )
