"""Runs of words that a data set shares with the training text: GPT-2's 8-grams in a Bloom filter (Radford et al. 2019, section 4).

The filter is built from the training documents as a stream; its size follows from their number of 8-grams, and nothing else is kept.
GPT-3's exact analysis by example is `contamination.py`'s.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

WORDS = 8
FALSE_POSITIVES = 1e-8  # at most, section 4
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, and so a word's place in its run counts
BATCH = 1 << 18  # hashes put into a filter at once
_ALPHANUMERIC = re.compile(r"[^\W_]+")


def alphanumeric_words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits: GPT-2's normalised text, divided at its spaces."""
    return _ALPHANUMERIC.findall(text.lower())


def runs(words: Sequence[str], length: int) -> Hashes:
    """A 64-bit hash of every run of `length` words, in their order; none where there are fewer words. The same on every machine."""
    hashes = np.fromiter(map(_word_hash, words), dtype=np.uint64, count=len(words))
    count = max(0, len(words) - length + 1)
    found = np.zeros(count, dtype=np.uint64)
    for place in range(length):
        found = found * MULTIPLIER + hashes[place : place + count]
    return found


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class BloomFilter:
    """A set of hashes that may be larger than it should be by `false_positives`, but never smaller (Bloom 1970)."""

    def __init__(self, expected: int, false_positives: float = FALSE_POSITIVES) -> None:
        """Sized for `expected` different hashes: a power of two of bits, of which at most half come to be set."""
        self.probes = math.ceil(-math.log2(false_positives))  # each finds a bit set in at most every second case
        self._exponent = max(10, math.ceil(math.log2(max(1, expected) * self.probes / math.log(2))))
        self._bits = np.zeros(1 << (self._exponent - 3), dtype=np.uint8)
        self._odd = [np.uint64(_word_hash(f"probe {number}") | 1) for number in range(self.probes)]

    @property
    def bytes(self) -> int:
        return self._bits.nbytes

    def add(self, hashes: Hashes) -> None:
        for odd in self._odd:
            places, bits = self._place(hashes, odd)
            np.bitwise_or.at(self._bits, places, bits)

    def holds(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Which of `hashes` are in it."""
        left = np.arange(len(hashes))
        for odd in self._odd:
            places, bits = self._place(hashes[left], odd)
            left = left[(self._bits[places] & bits) != 0]
        held = np.zeros(len(hashes), dtype=np.bool_)
        held[left] = True
        return held

    def _place(self, hashes: Hashes, odd: np.uint64) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
        """Byte and bit of one probe: the highest bits of a product (multiply-shift hashing, Dietzfelbinger et al. 1997)."""
        bits = (hashes * odd) >> np.uint64(64 - self._exponent)
        return (bits >> np.uint64(3)).astype(np.intp), np.left_shift(np.uint8(1), (bits & np.uint64(7)).astype(np.uint8))


def filter_of(texts: Callable[[], Iterable[str]]) -> BloomFilter:
    """The 8-grams of `texts()`, which is read twice: to count them, then to put them in."""
    made = BloomFilter(sum(max(0, len(alphanumeric_words(text)) - WORDS + 1) for text in texts()))
    waiting: list[Hashes] = []  # a few documents' at a time, as many short additions take longer than one
    for text in texts():
        waiting.append(runs(alphanumeric_words(text), WORDS))
        if sum(map(len, waiting)) >= BATCH or len(waiting) >= BATCH // 1024:
            made.add(np.concatenate(waiting))
            waiting = []
    if waiting:
        made.add(np.concatenate(waiting))
    return made


@dataclass(frozen=True)
class Overlap:
    """How many of a data set's 8-grams stand in the training text too."""

    found: int
    ngrams: int

    @property
    def percent(self) -> float | None:
        """None where no text has eight words."""
        return 100 * self.found / self.ngrams if self.ngrams else None


def overlap(training: BloomFilter, texts: Iterable[str]) -> Overlap:
    """Of the 8-grams of `texts`, each counted as often as it stands there."""
    found = total = 0
    for text in texts:
        hashes = runs(alphanumeric_words(text), WORDS)
        found, total = found + int(training.holds(hashes).sum()), total + len(hashes)
    return Overlap(found, total)
