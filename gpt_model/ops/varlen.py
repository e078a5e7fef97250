"""Texts of different lengths one after another in one long row, nothing between them: no padding to
compute, and none sees another.

What the field calls packing without cross-contamination, or variable-length attention. Everything
but attention is done token by token and does not care where a text ends; attention is done text by
text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_model.ops.sliding_window import banded_attention


@dataclass(frozen=True)
class Ragged:
    """`tokens` [all texts' tokens], and how many of them each text has, none of them 0."""

    tokens: Tensor
    lengths: tuple[int, ...]

    @staticmethod
    def of(texts: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Ragged:
        tokens = torch.tensor(
            [token for text in texts for token in text], dtype=torch.long, device=device
        )
        return Ragged(tokens, tuple(len(text) for text in texts))

    def to(self, device: torch.device | str) -> Ragged:
        return Ragged(self.tokens.to(device), self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def starts(self) -> Tensor:
        """Where each text begins: [texts]."""
        sizes = torch.tensor(self.lengths, device=self.tokens.device)
        return sizes.cumsum(0) - sizes

    @cached_property
    def last(self) -> Tensor:
        """Where the last token of each text is: [texts]."""
        return self.starts + torch.tensor(self.lengths, device=self.tokens.device) - 1

    @cached_property
    def positions(self) -> Tensor:
        """Each token's place in its own text: [tokens]."""
        sizes = torch.tensor(self.lengths, device=self.tokens.device)
        return torch.arange(
            len(self.tokens), device=self.tokens.device
        ) - self.starts.repeat_interleave(sizes)

    @cached_property
    def spread(self) -> tuple[Tensor, Tensor]:
        """Of a [texts · longest] padded layout: the token that stands at each place (any, where
        nothing does), and each token's place.
        """
        own = (
            self.positions
            + torch.arange(len(self.lengths), device=self.tokens.device).repeat_interleave(
                torch.tensor(self.lengths, device=self.tokens.device)
            )
            * self.longest
        )
        index = torch.zeros(
            len(self.lengths) * self.longest, dtype=torch.long, device=self.tokens.device
        )
        index[own] = torch.arange(len(self.tokens), device=self.tokens.device)
        return index, own


def attention(fused: Tensor, rows: Ragged, heads: int, band: int | None, dropout: float) -> Tensor:
    """Causal self-attention text by text, of queries, keys and values [tokens, 3 · width]: [tokens,
    width].
    """
    index, own = rows.spread
    padded = fused.index_select(0, index).view(len(rows.lengths), rows.longest, -1)
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in padded.chunk(3, dim=-1)
    )
    if band is None:  # what is padded lies after all that is real, where nothing real looks
        y = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    else:
        y = banded_attention(query, key, value, band, dropout)
    return y.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, own)
