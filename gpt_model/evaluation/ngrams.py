"""Runs of words that a data set shares with the training text: GPT-2's overlap by 8-grams (Radford
et al. 2019, section 4).

The paper puts the training text's 8-grams into a Bloom filter, which takes 39 bits each for its
false positives of 1e-8: 49 GB for 10 billion of them. Here it is the other way round: the evaluated
text's runs are kept, and the training text is looked up in them as a stream. What is found is the
same, less the false positives. GPT-3's analysis by example is `contamination.py`'s.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

WORDS = 8
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, and so a word's place in its run counts
_ALPHANUMERIC = re.compile(r"[^\W_]+")


def alphanumeric_words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits: GPT-2's normalised text, divided at its spaces."""
    return _ALPHANUMERIC.findall(text.lower())


def runs(words: Sequence[str], length: int) -> Hashes:
    """A 64-bit hash of every run of `length` words, in their order; none where there are fewer
    words. The same on every machine.
    """
    hashes = np.fromiter(map(_word_hash, words), dtype=np.uint64, count=len(words))
    count = max(0, len(words) - length + 1)
    found = np.zeros(count, dtype=np.uint64)
    for place in range(length):
        found = found * MULTIPLIER + hashes[place : place + count]
    return found


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def shared(wanted: Mapping[int, Hashes], training: Iterable[str]) -> dict[int, Hashes]:
    """By their length in words, those of the runs `wanted` that stand in a document of `training`,
    which is read once; each once, sorted.

    Memory follows from `wanted` and the longest document, however long `training` is.
    """
    sought = {length: np.unique(hashes) for length, hashes in wanted.items()}
    seen = {length: np.zeros(len(hashes), dtype=np.bool_) for length, hashes in sought.items()}
    for text in training:
        words = alphanumeric_words(text)
        for length, hashes in sought.items():
            seen[length][_places(hashes, runs(words, length))] = True
    return {length: hashes[seen[length]] for length, hashes in sought.items()}


def _places(hashes: Hashes, found: Hashes) -> NDArray[np.intp]:
    """Where in `hashes`, sorted, those of `found` stand that are in it."""
    if not len(hashes):
        return np.zeros(0, dtype=np.intp)
    places = np.minimum(np.searchsorted(hashes, found), len(hashes) - 1)
    return places[hashes[places] == found]


@dataclass(frozen=True)
class Overlap:
    """How many of a data set's 8-grams stand in the training text too."""

    found: int
    ngrams: int

    @property
    def percent(self) -> float | None:
        """None where no text has eight words."""
        return 100 * self.found / self.ngrams if self.ngrams else None


def overlap(found: Hashes, texts: Iterable[str]) -> Overlap:
    """Of the 8-grams of `texts`, each counted as often as it stands there; `found` are those that
    `shared` has found.
    """
    there = total = 0
    for text in texts:
        hashes = runs(alphanumeric_words(text), WORDS)
        there, total = there + int(np.isin(hashes, found).sum()), total + len(hashes)
    return Overlap(there, total)
