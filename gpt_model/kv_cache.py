"""The KV cache: keys and values of the tokens that a decoder has read, so that the next token costs
one token and not the whole text again.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_model.config import ModelConfig


class Cache:
    """Rows of different lengths side by side. Memory is allocated once, and what lies in it carries
    no gradient.

    `keys_and_values`: [layers, 2 · heads, rows,
    capacity, head width], keys and then values: each of the two is a plain stack of matrices, as
    torch's batched products take it without a copy.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (config.layers, 2 * config.heads, rows, capacity, config.width // config.heads)
        self.keys_and_values = torch.zeros(shape, device=device, dtype=dtype)
        self._lengths = torch.zeros(rows, dtype=torch.long, device=device)
        # tokens of the shortest and of the longest row, where they are known without asking a GPU
        self.extent: tuple[int, int] | None = (0, 0)
        self.context = config.context

    @property
    def lengths(self) -> Tensor:
        """Tokens read so far by each row: [rows]."""
        return self._lengths

    @lengths.setter
    def lengths(self, lengths: Tensor) -> None:
        self._lengths, self.extent = lengths, None

    @property
    def capacity(self) -> int:
        return self.keys_and_values.shape[3]

    def rows(self, index: Tensor, capacity: int | None = None) -> Cache:
        """A copy that holds the rows of `index` ([n], repeats allowed): one context shared out to
        all its continuations. `capacity`: of the copy, where it is less.
        """
        chosen = object.__new__(Cache)
        wanted = self.keys_and_values[..., :capacity, :]
        chosen.keys_and_values = wanted.new_empty(*wanted.shape[:2], len(index), *wanted.shape[3:])
        for mine, others in zip(
            chosen.keys_and_values, wanted, strict=True
        ):  # one by one they take a third of the time
            torch.index_select(others, 1, index, out=mine)
        chosen.lengths, chosen.context = self.lengths[index], self.context
        return chosen

    def replace(self, index: Tensor, other: Cache) -> None:
        """The rows of `index` [n] become those of `other`, which has the same capacity."""
        self.keys_and_values[:, :, index], self.lengths[index] = (
            other.keys_and_values,
            other.lengths,
        )
        self.extent = None

    def begin(self, time: int) -> Tensor:
        """The positions in the context [rows, time] of the next tokens, which `write` and `attend`
        are then about.
        """
        if self.extent is None:
            shortest, longest = torch.stack(self.lengths.aminmax()).tolist()
            self.extent = int(shortest), int(longest)
        self.least, self.most = self.extent
        positions = self.lengths[:, None] + torch.arange(time, device=self.lengths.device)
        self.positions = positions.clamp_(max=self.capacity - 1)  # only padding lies beyond
        heads, rows = self.keys_and_values.shape[1:3]
        first = torch.arange(
            0, heads * rows * self.capacity, self.capacity, device=positions.device
        ).view(heads, rows, 1)
        self.flat_positions = (first + self.positions).flatten()
        self.masks: dict[int | None, tuple[slice, Tensor | None]] = {}
        return (
            self.positions
            if self.capacity <= self.context
            else self.positions.clamp(max=self.context - 1)
        )

    @property
    def fresh(self) -> bool:
        """Whether every row was empty before `begin`: the tokens attend to each other alone."""
        return self.most == 0

    def write(self, layer: int, fused: Tensor) -> None:
        """Store the keys and values of fused queries, keys and values [rows, time, 3 * width]."""
        heads, width = self.keys_and_values.shape[1], self.keys_and_values.shape[-1]
        new = (
            fused.detach()[..., fused.shape[-1] // 3 :]
            .unflatten(-1, (heads, width))
            .permute(2, 0, 1, 3)
        )  # as `keys_and_values` has it
        stored = self.keys_and_values[layer].flatten(0, 2)
        stored.index_copy_(0, self.flat_positions, new.flatten(0, 2).to(stored.dtype))

    def attend(self, layer: int, query: Tensor, band: int | None) -> Tensor:
        """Attention of queries [rows, heads, time, head width] over all tokens written, or over the
        last `band` of them: as query.
        """
        seen, mask = self.masks.get(band) or self._visible(band)
        key, value = self.keys_and_values[layer][:, :, seen].chunk(
            2
        )  # [heads, rows, part, head width]
        if query.shape[2] == 1 and query.device.type == "cpu":
            return _attend_once(query, key, value, mask)
        return F.scaled_dot_product_attention(
            query, key.transpose(0, 1), value.transpose(0, 1), attn_mask=mask
        )

    def _visible(self, band: int | None) -> tuple[slice, Tensor | None]:
        """Which part of the capacity any row sees, and which of it each does [rows, 1, time, part];
        None: all of it.
        """
        time = self.positions.shape[1]
        first = 0 if band is None else max(0, self.least - band + 1)
        seen, mask = slice(first, min(self.most + time, self.capacity)), None
        if time > 1 or self.least < self.most:
            position, query_position = (
                torch.arange(seen.start, seen.stop, device=self.positions.device),
                self.positions[:, None, :, None],
            )
            mask = (
                position <= query_position
                if band is None
                else (position <= query_position) & (position > query_position - band)
            )
        self.masks[band] = seen, mask
        return self.masks[band]

    def end(self, lengths: Tensor | int) -> None:
        """How many of the tokens count, of all rows or of each ([rows]); the rest was padding on
        the right.
        """
        self._lengths += lengths
        self.extent = None
        if isinstance(lengths, int):
            self.extent = self.least + lengths, self.most + lengths


def _attend_once(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one query a row, [rows, heads, 1, head width], for a CPU, where torch's own is
    made for many queries.
    """
    heads, rows, part, width = key.shape
    scaled = (query * width**-0.5).transpose(0, 1).reshape(heads * rows, 1, width)
    scores = torch.bmm(scaled, key.flatten(0, 1).transpose(1, 2))  # [heads · rows, 1, part]
    if mask is not None:
        scores.view(heads, rows, part).masked_fill_(~mask[:, 0, 0], -math.inf)
    return (
        torch.bmm(scores.softmax(-1), value.flatten(0, 1))
        .view(heads, rows, 1, width)
        .transpose(0, 1)
    )
