"""Which evaluated examples share a run of words with the training text, and the scores without them: GPT-3's analysis (Brown et al.
2020, appendix C, table C.1). Collisions are exact, of 64-bit hashes; GPT-2's share of a whole data set is `ngrams.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# GPT-3's words too: its released 13-grams (overlap_frequency.md) have "i m" for "I'm" and "36 30" for "36°30'".
from gpt_model.evaluation.ngrams import Hashes, alphanumeric_words, runs
from gpt_model.evaluation.scores import aggregated, rounded, spread

SHORTEST, LONGEST = 8, 13  # words of a run
PERCENTILE = 5


@dataclass(frozen=True)
class Examples:
    """A task's examples as they are compared: each one's text, without demonstrations. Made-up tasks may have runs below SHORTEST words."""

    texts: Sequence[str]
    synthetic: bool = False

    @property
    def length(self) -> int:
        """Words of a run, N: the 5th percentile of the examples' lengths, within bounds."""
        words = [len(alphanumeric_words(text)) for text in self.texts]
        percentile = int(np.percentile(words, PERCENTILE)) if words else 0
        return min(LONGEST, max(1 if self.synthetic else SHORTEST, percentile))


def marked(tasks: Mapping[str, Examples], training: Iterable[str]) -> dict[str, list[bool | None]]:
    """By task, whether each example is dirty: has a run in common with any document of `training`, which is read once.

    None for an example too short to have a run. Memory follows from the examples and the longest document.
    """
    lengths = {name: examples.length for name, examples in tasks.items()}
    own = {name: [runs(alphanumeric_words(text), lengths[name]) for text in examples.texts] for name, examples in tasks.items()}
    wanted = {
        length: np.unique(np.concatenate([hashes for name in tasks if lengths[name] == length for hashes in own[name]]))
        for length in sorted(set(lengths.values()))
    }
    seen = {length: np.zeros(len(hashes), dtype=np.bool_) for length, hashes in wanted.items()}
    for text in training:
        words = alphanumeric_words(text)
        for length, hashes in wanted.items():
            seen[length][_places(hashes, runs(words, length))] = True
    dirty = {length: hashes[seen[length]] for length, hashes in wanted.items()}
    return {name: [bool(np.isin(h, dirty[lengths[name]]).any()) if len(h) else None for h in hashes] for name, hashes in own.items()}


def _places(hashes: Hashes, found: Hashes) -> NDArray[np.intp]:
    """Where in `hashes`, sorted, those of `found` stand that are in it."""
    if not len(hashes):
        return np.zeros(0, dtype=np.intp)
    places = np.minimum(np.searchsorted(hashes, found), len(hashes) - 1)
    return places[hashes[places] == found]


def split_score(metric: str, aggregation: str, values: Sequence[Any], dirty: Sequence[bool | None]) -> dict[str, Any]:
    """A metric's value, 95 % interval and number of examples on the clean ones and on the dirty ones; None where there are none.

    An example too short to say is among the clean ones, as in table C.1, and counted in `too_short` too.
    """
    parts = {
        "clean": [value for value, known in zip(values, dirty, strict=True) if not known],
        "dirty": [value for value, known in zip(values, dirty, strict=True) if known],
    }
    return {
        **{name: _score(metric, aggregation, part) if part else None for name, part in parts.items()},
        "clean_percent": rounded(100 * len(parts["clean"]) / len(values)),
        "too_short": sum(known is None for known in dirty),
    }


def _score(metric: str, aggregation: str, values: Sequence[Any]) -> dict[str, Any]:
    sure = spread(metric, aggregation, values)
    value = aggregated(aggregation, values)
    return {"value": rounded(value), "low": rounded(sure.low), "high": rounded(sure.high), "examples": len(values)}
