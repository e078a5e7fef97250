"""Sequences of different lengths one after another in one row, without padding: packing without
cross-contamination, the field's variable-length attention.

Everything but attention works token by token and ignores where a sequence ends; attention is
computed sequence by sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_model.ops import flash
from gpt_model.ops.sliding_window import sliding_window_attention


@dataclass(frozen=True)
class PackedSequences:
    """`tokens` [tokens of all sequences], and the length of each sequence, at least 1."""

    tokens: Tensor
    lengths: tuple[int, ...]

    @staticmethod
    def of(
        sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu"
    ) -> PackedSequences:
        tokens = [token for sequence in sequences for token in sequence]
        lengths = tuple(len(sequence) for sequence in sequences)
        return PackedSequences(torch.tensor(tokens, dtype=torch.long, device=device), lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def sizes(self) -> Tensor:
        """`lengths` as a tensor: [sequences]."""
        return torch.tensor(self.lengths, device=self.tokens.device)

    @cached_property
    def starts(self) -> Tensor:
        """The index of each sequence's first token: [sequences]."""
        return self.sizes.cumsum(0) - self.sizes

    @cached_property
    def bounds(self) -> Tensor:
        """Where each sequence begins and the last ends: int32 [sequences + 1]."""
        return F.pad(self.sizes.cumsum(0), (1, 0)).int()

    @cached_property
    def last(self) -> Tensor:
        """The index of each sequence's last token: [sequences]."""
        return self.starts + self.sizes - 1

    @cached_property
    def positions(self) -> Tensor:
        """Each token's position in its sequence: [tokens]."""
        index = torch.arange(len(self.tokens), device=self.tokens.device)
        return index - self._by_token(self.starts)

    def _by_token(self, values: Tensor) -> Tensor:
        """Values [sequences] of each token's sequence: [tokens], without waiting for the GPU."""
        return values.repeat_interleave(self.sizes, output_size=len(self.tokens))

    @cached_property
    def padding_indices(self) -> tuple[Tensor, Tensor]:
        """Between the packed row and a padded layout of [sequences * longest] slots: the token of
        each slot (any token, where the slot is padding), and the slot of each token [tokens].
        """
        number = torch.arange(len(self.lengths), device=self.tokens.device)
        slots = self.positions + self._by_token(number) * self.longest
        token_of_slot = torch.zeros(
            len(self.lengths) * self.longest, dtype=torch.long, device=self.tokens.device
        )
        token_of_slot[slots] = torch.arange(len(self.tokens), device=self.tokens.device)
        return token_of_slot, slots


def attention(
    fused: Tensor, packed: PackedSequences, heads: int, band: int | None, dropout: float
) -> Tensor:
    """Causal self-attention within each sequence, of fused queries, keys and values [tokens,
    3 * width]: [tokens, width].
    """
    query, key, value = (part.unflatten(-1, (heads, -1)) for part in fused.chunk(3, dim=-1))
    if flash.usable(query):
        out = flash.attention(query, key, value, packed.bounds, packed.longest, band, dropout)
        return out.flatten(1)
    token_of_slot, slots = packed.padding_indices
    padded = fused.index_select(0, token_of_slot).view(len(packed.lengths), packed.longest, -1)
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in padded.chunk(3, dim=-1)
    )
    if band is None:  # padding lies behind every real token, where causal attention never looks
        y = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    else:
        y = sliding_window_attention(query, key, value, band, dropout)
    return y.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, slots)
