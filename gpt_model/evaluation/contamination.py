"""What of evaluated text stands in the training text, as runs of words that the two share.

Three analyses of the papers, each a measurement that removes nothing:

* GPT-2 (Radford et al. 2019, section 4): the share of a data set's 8-grams, `ngram_overlap`.
* GPT-3 (Brown et al. 2020, appendix C): clean and dirty examples, the score without the dirty ones,
  `dirty_examples` and `split_score`.
* GPT-3's 13 words again, for the documents that a corpus holds out: `count_mostly_seen`.

GPT-2's paper puts the training text's 8-grams into a Bloom filter, which takes 39 bits each for its
false positives of 1e-8: 49 GB for 10 billion of them. Here the evaluated text's runs are held in
memory, 9 bytes each, and the training text is looked up in them as a stream. The result is the
same, less the false positives.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_model.data import documents
from gpt_model.evaluation.metrics import aggregated, confidence_interval
from gpt_model.evaluation.results import SubsetScore, TrainingOverlap
from gpt_model.io import rounded

Hashes = NDArray[np.uint64]  # [runs]

NGRAM = 8  # words of GPT-2's overlap
SHORTEST_RUN, LONGEST_RUN = 8, 13  # words of GPT-3's runs
PERCENTILE = 5  # of the examples' lengths, which GPT-3's run length is
HELD_OUT_RUN = 13  # words of a run of a held-out document
# Letters: a held-out document is compared by the runs that open with a word this long, about one
# in eight. Any text has such words alike.
ANCHOR_LETTERS = 8
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, and so a word's position in its run counts
_ALPHANUMERIC = re.compile(r"[^\W_]+")


def alphanumeric_words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits: GPT-2's normalised text, divided at its spaces.

    GPT-3's words too: its released 13-grams (overlap_frequency.md) have "i m" for "I'm" and "36 30"
    for "36°30'".
    """
    return _ALPHANUMERIC.findall(text.lower())


def run_hashes(words: Sequence[str], length: int) -> Hashes:
    """A 64-bit hash of every run of `length` words, in order, the same on every machine.

    None where there are fewer words: the result is [max(0, len(words) - length + 1)].
    """
    hashes = np.fromiter(map(_word_hash, words), dtype=np.uint64, count=len(words))
    count = max(0, len(words) - length + 1)
    runs = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        runs = runs * MULTIPLIER + hashes[offset : offset + count]
    return runs


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def runs_in(training: Iterable[str], runs: Mapping[int, Hashes]) -> dict[int, Hashes]:
    """By their length in words, those of `runs` that stand in a document of `training`; each once,
    sorted.

    `training` is read once. Memory follows from `runs` and the longest document, however long
    `training` is.
    """
    wanted = {length: np.unique(hashes) for length, hashes in runs.items()}
    seen = {length: np.zeros(len(hashes), dtype=np.bool_) for length, hashes in wanted.items()}
    for text in training:
        words = alphanumeric_words(text)
        for length, hashes in wanted.items():
            seen[length][_positions(hashes, run_hashes(words, length))] = True
    return {length: hashes[seen[length]] for length, hashes in wanted.items()}


def _positions(hashes: Hashes, of: Hashes) -> NDArray[np.intp]:
    """Where in `hashes`, sorted, those of `of` stand that are in it."""
    if not len(hashes):
        return np.zeros(0, dtype=np.intp)
    positions = np.minimum(np.searchsorted(hashes, of), len(hashes) - 1)
    return positions[hashes[positions] == of]


@dataclass(frozen=True)
class NgramOverlap:
    """How many of a data set's 8-grams stand in the training text too."""

    shared: int
    ngrams: int

    @property
    def percent(self) -> float | None:
        """None where no text has eight words."""
        return 100 * self.shared / self.ngrams if self.ngrams else None


def ngram_overlap(seen: Hashes, texts: Iterable[str]) -> NgramOverlap:
    """Of the 8-grams of `texts`, each counted as often as it stands there. `seen`: `runs_in`'s."""
    shared = total = 0
    for text in texts:
        hashes = run_hashes(alphanumeric_words(text), NGRAM)
        shared, total = shared + int(np.isin(hashes, seen).sum()), total + len(hashes)
    return NgramOverlap(shared, total)


@dataclass(frozen=True)
class Examples:
    """A task's examples as they are compared: each one's text, without demonstrations.

    Synthetic tasks may have runs below SHORTEST_RUN words.
    """

    texts: Sequence[str]
    synthetic: bool = False

    @property
    def run(self) -> int:
        """Words of a run, N: the 5th percentile of the examples' lengths, within bounds."""
        lengths = [len(alphanumeric_words(text)) for text in self.texts]
        percentile = int(np.percentile(lengths, PERCENTILE)) if lengths else 0
        return min(LONGEST_RUN, max(1 if self.synthetic else SHORTEST_RUN, percentile))


def runs_of(tasks: Iterable[Examples]) -> dict[int, Hashes]:
    """By their length in words, the runs to look up in the training text: of each task's own length
    N, and GPT-2's 8-grams.
    """
    runs: dict[int, list[Hashes]] = {NGRAM: [np.zeros(0, dtype=np.uint64)]}
    for examples in tasks:
        for length in {NGRAM, examples.run}:
            runs.setdefault(length, []).extend(
                run_hashes(alphanumeric_words(text), length) for text in examples.texts
            )
    return {length: np.unique(np.concatenate(hashes)) for length, hashes in runs.items()}


def dirty_examples(examples: Examples, seen: Mapping[int, Hashes]) -> list[bool | None]:
    """Whether each example has a run that was seen in the training text; None: it has no run."""
    run = examples.run
    hashes = [run_hashes(alphanumeric_words(text), run) for text in examples.texts]
    return [bool(np.isin(runs, seen[run]).any()) if len(runs) else None for runs in hashes]


@dataclass(frozen=True)
class TaskOverlap:
    """What of one task's examples stands in the training text."""

    ngrams: NgramOverlap
    run: int  # words of a run that makes an example dirty
    dirty: list[bool | None]  # each example, in order; None: too short to say

    def split_score(self, metric: str, aggregation: str, values: Sequence[Any]) -> TrainingOverlap:
        """A metric's value, 95 % interval and number of examples on the clean ones and on the dirty
        ones; None where there are none.

        An example too short to say is among the clean ones, as in GPT-3's table C.1, and counted in
        `too_short` too. `values`: one of each example.
        """
        pairs = list(zip(values, self.dirty, strict=True))
        clean = [value for value, is_dirty in pairs if not is_dirty]
        dirty = [value for value, is_dirty in pairs if is_dirty]
        return TrainingOverlap(
            rounded(self.ngrams.percent),
            self.ngrams.ngrams,
            self.run,
            _score(metric, aggregation, clean),
            _score(metric, aggregation, dirty),
            rounded(100 * len(clean) / len(values)),
            self.dirty.count(None),
        )


def _score(metric: str, aggregation: str, values: Sequence[Any]) -> SubsetScore | None:
    if not values:
        return None
    interval = confidence_interval(metric, aggregation, values)
    value = aggregated(aggregation, values)
    low, high = (interval.low, interval.high) if interval else (None, None)
    return SubsetScore(rounded(value), rounded(low), rounded(high), len(values))


# A look into a part of the training text: the runs that stand there, by their length.
Look = Callable[[], dict[int, Hashes]]


def _in_turn(looks: Sequence[Look]) -> list[dict[int, Hashes]]:
    return [look() for look in looks]


def overlap_with_training(
    tasks: Mapping[str, Examples],
    corpus: Path,
    call_all: Callable[[Sequence[Look]], list[dict[int, Hashes]]] = _in_turn,
    parts: int = 1,
) -> dict[str, TaskOverlap]:
    """By a task's name, what of its examples stands in the corpus's training documents.

    The documents of sources that are trained on are read as a stream, once by each of `parts`,
    which look at every `parts`-th document; `call_all` may call them on several ranks. Tasks with
    the same examples are looked up once.
    """
    different = {
        (examples.synthetic, tuple(examples.texts)): examples for examples in tasks.values()
    }
    runs = runs_of(different.values())
    by_part = call_all([partial(_runs_in_part, corpus, runs, part, parts) for part in range(parts)])
    seen = {
        length: np.unique(np.concatenate([part[length] for part in by_part])) for length in runs
    }
    overlaps = {
        key: TaskOverlap(
            ngram_overlap(seen[NGRAM], examples.texts), examples.run, dirty_examples(examples, seen)
        )
        for key, examples in different.items()
    }
    return {
        name: overlaps[examples.synthetic, tuple(examples.texts)]
        for name, examples in tasks.items()
    }


def _runs_in_part(
    corpus: Path, runs: Mapping[int, Hashes], part: int, parts: int
) -> dict[int, Hashes]:
    return runs_in(itertools.islice(_training_documents(corpus), part, None, parts), runs)


def _training_documents(corpus: Path) -> Iterator[str]:
    for source, entry in documents.index(corpus).items():
        if entry.get("weight", 1.0) > 0:
            yield from documents.read(corpus, source, "training")


def count_mostly_seen(held_out: Sequence[str], training: Iterable[str]) -> int:
    """How many of `held_out` have more than half of their compared runs of 13 words in `training`,
    which is read once.
    """
    runs = [list(_anchored_runs(text)) for text in held_out]
    unseen = {run for document in runs for run in document}
    seen: set[int] = set()
    for text in training:
        seen.update(unseen.intersection(_anchored_runs(text)))
    return sum(sum(run in seen for run in document) * 2 > len(document) for document in runs)


def _anchored_runs(text: str) -> Iterator[int]:
    words = text.lower().split()
    for start, word in enumerate(words[: 1 - HELD_OUT_RUN]):
        if len(word) >= ANCHOR_LETTERS:
            yield hash(tuple(words[start : start + HELD_OUT_RUN]))
