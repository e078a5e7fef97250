"""Which evaluated examples share a run of words with the training text, and the scores without
them: GPT-3's analysis (Brown et al. 2020, appendix C, table C.1). Collisions are exact, of 64-bit
hashes; GPT-2's share of a whole data set is `ngrams.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_model.evaluation.metrics import aggregated, spread

# GPT-3's words too: its released 13-grams (overlap_frequency.md) have "i m" for "I'm" and "36 30"
# for "36°30'".
from gpt_model.evaluation.ngrams import WORDS, Hashes, alphanumeric_words, runs
from gpt_model.rounding import rounded

SHORTEST, LONGEST = 8, 13  # words of a run
PERCENTILE = 5


@dataclass(frozen=True)
class Examples:
    """A task's examples as they are compared: each one's text, without demonstrations. Made-up
    tasks may have runs below SHORTEST words.
    """

    texts: Sequence[str]
    synthetic: bool = False

    @property
    def length(self) -> int:
        """Words of a run, N: the 5th percentile of the examples' lengths, within bounds."""
        words = [len(alphanumeric_words(text)) for text in self.texts]
        percentile = int(np.percentile(words, PERCENTILE)) if words else 0
        return min(LONGEST, max(1 if self.synthetic else SHORTEST, percentile))


def wanted(tasks: Iterable[Examples]) -> dict[int, Hashes]:
    """By their length in words, the runs to be looked for in the training text: each task's own,
    and those of GPT-2's overlap.
    """
    sought: dict[int, list[Hashes]] = {WORDS: [np.zeros(0, dtype=np.uint64)]}
    for examples in tasks:
        for length in {WORDS, examples.length}:
            sought.setdefault(length, []).extend(
                runs(alphanumeric_words(text), length) for text in examples.texts
            )
    return {length: np.unique(np.concatenate(hashes)) for length, hashes in sought.items()}


def marked(examples: Examples, found: Mapping[int, Hashes]) -> list[bool | None]:
    """Whether each example is dirty: has one of the runs that were `found` in the training text.
    None: too short to have a run.
    """
    own = [runs(alphanumeric_words(text), examples.length) for text in examples.texts]
    return [
        bool(np.isin(hashes, found[examples.length]).any()) if len(hashes) else None
        for hashes in own
    ]


def split_score(
    metric: str, aggregation: str, values: Sequence[Any], dirty: Sequence[bool | None]
) -> dict[str, Any]:
    """A metric's value, 95 % interval and number of examples on the clean ones and on the dirty
    ones; None where there are none.

    An example too short to say is among the clean ones, as in table C.1, and counted in `too_short`
    too.
    """
    parts = {
        "clean": [value for value, known in zip(values, dirty, strict=True) if not known],
        "dirty": [value for value, known in zip(values, dirty, strict=True) if known],
    }
    return {
        **{
            name: _score(metric, aggregation, part) if part else None
            for name, part in parts.items()
        },
        "clean_percent": rounded(100 * len(parts["clean"]) / len(values)),
        "too_short": sum(known is None for known in dirty),
    }


def _score(metric: str, aggregation: str, values: Sequence[Any]) -> dict[str, Any]:
    sure = spread(metric, aggregation, values)
    value = aggregated(aggregation, values)
    return {
        "value": rounded(value),
        "low": rounded(sure.low),
        "high": rounded(sure.high),
        "examples": len(values),
    }
