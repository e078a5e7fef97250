"""Sampler: which tokens each training step sees, as a pure function of (seed, step, rank, world
size). Nothing to store, nothing to resume.

Sequences are numbered from the start of training: row r of step s is the r-th after those of all
steps before (on a batch ramp, see `training/schedules.py`, too), whatever number of ranks shares
the rows. Sequence i is the n-th draw of some source, and that source's n-th draw is a window of its
tokens:

* **Mixture.** A pattern of 65,536 places repeats for ever. Each source has its share of the places
  (largest remainder), spread evenly, so any stretch of training keeps the weights to within a few
  draws, and n is a look-up.
* **Windows.** In each epoch of a source its tokens are cut into ⌈tokens / context⌉ windows, and a
  seeded permutation orders them: none comes twice in an epoch (GPT-3, appendix B: sampled without
  replacement in an epoch). The tokens are a ring, joined at an end-of-text: the cut begins
  somewhere else in each epoch, and the last, partial window is filled up from the ring's next
  tokens. So all windows are full, every token is predicted in every epoch, and fewer than `context`
  of them twice. Documents are packed: a window is contiguous text, where one document ends an
  end-of-text stands and the next begins, and attention is not masked between them (GPT-1, section
  4.1: contiguous sequences; GPT-3, appendix B: always full windows, several documents in one).
* **Permutation.** A Feistel network on the window's number (format-preserving encryption: Black and
  Rogaway 2002, "Ciphers with arbitrary finite domains", method 2 with cycle walking): no table,
  however many windows there are.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpt_model.data.shards import Shards, TokenData
from gpt_model.errors import UserError

PATTERN = 1 << 16  # length of the mixture's pattern: weights are exact to 1/65,536
ROUNDS = 6

UInt64s = NDArray[np.uint64]


class BatchSizes(Protocol):
    """How many tokens each step takes (`training.optimizer.BatchSchedule`)."""

    def tokens_of(self, step: int) -> int: ...

    def tokens_before(self, step: int) -> int: ...


class Sampler:
    """Batches of training windows from a mixture of sources."""

    def __init__(self, data: TokenData, context: int, batches: BatchSizes, seed: int) -> None:
        """`batches`: of whole sequences, all ranks together. Sources of weight 0 are never drawn.

        Raises UserError where a source has fewer than context + 1 training tokens.
        """
        self.sources = data.sources  # `batch` gives sources as numbers into this list
        self.context, self.batches = context, batches
        self._tokens = [data.tokens(name, "training") for name in self.sources]
        weights = [data.weights[name] for name in self.sources]
        for name, tokens, weight in zip(self.sources, self._tokens, weights, strict=True):
            if weight > 0 and len(tokens) <= context:
                raise UserError(
                    f"Source {name!r} has {len(tokens)} training tokens, and the model's "
                    f"`context` is {context}: a sequence needs "
                    f"{context + 1}. Make `context` smaller, or give the source more text or "
                    "weight 0.",
                    field="context",
                )
        self.windows = [
            -(-len(tokens) // context) for tokens in self._tokens
        ]  # an epoch of each source
        self._seed = seed
        self._pattern, self._positions = _pattern(
            dict(zip(self.sources, weights, strict=True)), seed
        )

    def batch(
        self, step: int, rank: int = 0, world_size: int = 1
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rank `rank`'s rows of step `step`: (inputs [rows, context], targets [rows, context],
        sources [rows], numbers into `.sources`).

        All ranks' rows in order are the same batch at any world size.
        """
        first, count = (
            self.batches.tokens_before(step) // self.context,
            self.batches.tokens_of(step) // self.context,
        )
        rows = np.arange(
            first + rank * count // world_size, first + (rank + 1) * count // world_size
        )
        sources = self._pattern[rows % PATTERN]
        windows = np.empty((len(rows), self.context + 1), dtype=np.int64)
        for source in np.unique(sources):
            mine = np.flatnonzero(sources == source)
            for row, start in zip(
                mine, self._starts(source, self._draws(source, rows[mine])), strict=True
            ):
                windows[row] = _ring(self._tokens[source], int(start), self.context + 1)
        return windows[:, :-1].copy(), windows[:, 1:].copy(), sources.astype(np.int64)

    def epochs(self, step: int) -> dict[str, float]:
        """How often each source was gone through in the steps before `step`."""
        seen = np.array([self.batches.tokens_before(step) // self.context])
        return {
            name: int(self._draws(n, seen)[0]) / self.windows[n]
            for n, name in enumerate(self.sources)
            if self.windows[n]
        }

    def _draws(self, source: int, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many sequences before each of `sequences` were drawn from `source`."""
        positions = self._positions[source]
        return sequences // PATTERN * len(positions) + np.searchsorted(
            positions, sequences % PATTERN
        )

    def _starts(self, source: int, draws: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the window of each draw starts, in tokens of the ring."""
        epochs, windows = np.divmod(draws, self.windows[source])
        starts = np.empty_like(draws)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            offset, keys = _epoch(
                self._seed, self.sources[source], int(epoch), len(self._tokens[source])
            )
            starts[now] = (
                offset + _permuted(windows[now], self.windows[source], keys) * self.context
            )
        return starts % len(self._tokens[source])


def _ring(tokens: Shards, start: int, count: int) -> NDArray[np.int64]:
    """`count` tokens from `start`, going on at the beginning after the end. `count` is at most the
    ring's length.
    """
    over = start + count - len(tokens)
    if over <= 0:
        return tokens.read(start, count)
    return np.concatenate([tokens.read(start, count - over), tokens.read(0, over)])


def _epoch(seed: int, source: str, epoch: int, tokens: int) -> tuple[int, UInt64s]:
    """A source's random numbers for an epoch: where its cut begins, in [0, tokens), and the keys of
    its permutation, [ROUNDS].
    """
    numbers = _random_numbers(f"{seed}\0{source}\0{epoch}")
    return int(numbers[0]) % tokens, numbers[1 : 1 + ROUNDS]


def _random_numbers(text: str) -> UInt64s:
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=64).digest(), dtype="<u8")


def _pattern(
    weights: dict[str, float], seed: int
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """The mixture: the source at each position, [PATTERN], and the sorted positions of each source.

    A source with c positions takes the ideal positions (k + u)·PATTERN/c, u its own random number;
    sorting all ideal positions gives the real ones.
    """
    shares = np.array(list(weights.values())) / sum(weights.values()) * PATTERN
    counts = np.maximum(np.floor(shares), shares > 0).astype(
        np.int64
    )  # no source of a tiny weight is forgotten
    while left := PATTERN - int(counts.sum()):
        counts[np.argmax(shares - counts if left > 0 else counts)] += np.sign(left)
    ideal = []
    for name, count in zip(weights, counts, strict=True):
        phase = int(_random_numbers(f"{seed}\0mixture\0{name}")[0]) / 2**64
        ideal.append((np.arange(count) + phase) / max(count, 1))
    owners = np.repeat(np.arange(len(weights)), counts)
    pattern = owners[np.argsort(np.concatenate(ideal), kind="stable")]
    return pattern, [np.flatnonzero(pattern == number) for number in range(len(weights))]


def _permuted(values: NDArray[np.int64], size: int, keys: UInt64s) -> NDArray[np.int64]:
    """Each of `values` in [0, size) under a permutation of that range.

    The network permutes [0, 4^bits), the smallest such range that holds `size`; what leaves [0,
    size) goes through again until it is back.
    """
    bits = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    permuted = _feistel(values.astype(np.uint64), bits, keys)
    while len(outside := np.flatnonzero(permuted >= size)):
        permuted[outside] = _feistel(permuted[outside], bits, keys)
    return permuted.astype(np.int64)


def _feistel(values: UInt64s, bits: np.uint64, keys: UInt64s) -> UInt64s:
    """A permutation of [0, 4^bits): halves of `bits` bits, each round mixing one into the other."""
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << bits) | right


def _mixed(numbers: UInt64s) -> UInt64s:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit in depends on every bit
    out.
    """
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
