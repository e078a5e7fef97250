"""What a policy that exploits a reward model does to its texts: fewer different words, repetition,
other lengths, equal answers.

A word is a run of letters or digits, or any other sign, in lower case. Models that are compared
answer the same prompts in the same order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt_model.statistics import (
    ConfidenceInterval,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_share,
)

if TYPE_CHECKING:
    from gpt_model.rlhf.answers import Answer

WORD = re.compile(r"\w+|[^\w\s]")
POOL = 10  # answers whose n-grams are counted together; fewer where that gives fewer than POOLS
POOLS = 8
REPEATED = 3  # words of a repeated n-gram
# Measures that should stay within the reference's interval.
WATCHED = ("distinct_2", "repetition", "length")
NAMES = {
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "repetition": "repeated 3-grams",
    "length": "length, tokens",
    "ended": "ended of itself",
    "copies": "copies of another answer",
}


def drift(answers: Sequence[Answer], groups: Sequence[str]) -> dict[str, ConfidenceInterval]:
    """Each of NAMES with its 95 % interval, by bootstrap over prompts (`groups`); distinct-n by
    bootstrap over pools of answers.
    """
    words = [WORD.findall(answer.text.lower()) for answer in answers]
    return {
        "distinct_1": distinct(words, 1),
        "distinct_2": distinct(words, 2),
        "repetition": bootstrap_share([repetition(text) for text in words], groups),
        "length": bootstrap_mean([answer.length for answer in answers], groups),
        "ended": bootstrap_share([answer.ended for answer in answers], groups),
        "copies": bootstrap_share(copies([answer.text for answer in answers], groups), groups),
    }


def distinct(texts: Sequence[Sequence[str]], n: int) -> ConfidenceInterval:
    """Different n-grams over all n-grams (Li et al. 2016), in pools of consecutive answers.

    Over all answers at once it falls with their number, and in a resample, which repeats some, by
    itself. So the bootstrap draws pools.
    """
    size = max(1, min(POOL, len(texts) // POOLS))
    pools = [texts[first : first + size] for first in range(0, len(texts) - size + 1, size)]
    counts = [Counter(gram for text in pool for gram in _grams(text, n)) for pool in pools]
    if not any(counts):
        return ConfidenceInterval(0.0, 0.0, 0.0)
    return bootstrap_ratio(
        [len(count) for count in counts if count], [count.total() for count in counts if count]
    )


def repetition(words: Sequence[str]) -> float:
    """Share of a text's 3-grams that occur earlier in it."""
    grams = _grams(words, REPEATED)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def copies(texts: Sequence[str], groups: Sequence[str]) -> list[bool]:
    """Of each text, whether it answers another prompt too."""
    prompts: dict[str, set[str]] = {}
    for text, group in zip(texts, groups, strict=True):
        prompts.setdefault(text.strip(), set()).add(group)
    return [len(prompts[text.strip()]) > 1 for text in texts]


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


@dataclass(frozen=True)
class BesideReference:
    """A model's mean beside the reference's interval."""

    measure: str
    value: float
    reference: ConfidenceInterval

    @property
    def inside(self) -> bool:
        return self.reference.low <= self.value <= self.reference.high

    def __str__(self) -> str:
        side = "inside" if self.inside else "above" if self.value > self.reference.high else "below"
        interval = f"{self.reference.low:.3f} to {self.reference.high:.3f}"
        return f"{NAMES[self.measure]} {self.value:.3f} {side} {interval}"


def beside_reference(
    model: Mapping[str, ConfidenceInterval], reference: Mapping[str, ConfidenceInterval]
) -> list[BesideReference]:
    """The watched measures of both, of equally many answers.

    Strict: of two samples of one model, one mean lies outside the other's interval about one time
    in six.
    """
    return [
        BesideReference(measure, model[measure].value, reference[measure]) for measure in WATCHED
    ]
