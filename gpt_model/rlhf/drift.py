"""What a policy that chases a reward does to its texts: fewer different words, the same again,
longer or shorter, all answers alike.

Words are runs of letters or digits, and each other sign; in small letters. Models that are set
beside each other answer the same prompts in the same order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpt_model.statistics import (
    ConfidenceInterval,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_share,
)

WORD = re.compile(r"\w+|[^\w\s]")
POOL = 10  # answers whose n-grams are counted together; fewer where there are not 8 pools of them
POOLS = 8
REPEATED = 3  # words of a run that is looked for again
WATCHED = (
    "distinct_2",
    "repetition",
    "length",
)  # which may not drift beyond the reference's interval
NAMES = {
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "repetition": "repeated 3-grams",
    "length": "length, tokens",
    "ended": "ended of itself",
    "copies": "copies of another answer",
}


@dataclass(frozen=True)
class Written:
    """An answer: its text, its tokens without the end, and whether the model ended it."""

    text: str
    tokens: int
    ended: bool


def drift(answers: Sequence[Written], groups: Sequence[str]) -> dict[str, ConfidenceInterval]:
    """Each of NAMES with its 95 % interval, by bootstrap over prompts (`groups`); of distinct-n
    over pools of answers.
    """
    words = [WORD.findall(answer.text.lower()) for answer in answers]
    return {
        "distinct_1": distinct(words, 1),
        "distinct_2": distinct(words, 2),
        "repetition": bootstrap_share([repetition(one) for one in words], groups),
        "length": bootstrap_mean([answer.tokens for answer in answers], groups),
        "ended": bootstrap_share([answer.ended for answer in answers], groups),
        "copies": bootstrap_share(copies([answer.text for answer in answers], groups), groups),
    }


def distinct(texts: Sequence[Sequence[str]], n: int) -> ConfidenceInterval:
    """Different n-grams by n-grams (Li et al. 2016), in pools of a fixed number of answers one
    after another.

    Of all answers at once it falls with their number, and in a resample, where some stand twice, by
    itself: so pools are drawn instead.
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
    """Share of a text's 3-grams that it has had before."""
    grams = _grams(words, REPEATED)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def copies(texts: Sequence[str], groups: Sequence[str]) -> list[bool]:
    """Whether the same text answers another prompt, too."""
    prompts: dict[str, set[str]] = {}
    for text, group in zip(texts, groups, strict=True):
        prompts.setdefault(text.strip(), set()).add(group)
    return [len(prompts[text.strip()]) > 1 for text in texts]


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


@dataclass(frozen=True)
class Held:
    """A model's figure beside the reference's interval."""

    measure: str
    value: float
    reference: ConfidenceInterval

    @property
    def inside(self) -> bool:
        return self.reference.low <= self.value <= self.reference.high

    def __str__(self) -> str:
        side = "inside" if self.inside else "above" if self.value > self.reference.high else "below"
        return f"{NAMES[self.measure]} {self.value:.3f} {side} {self.reference.low:.3f} to {self.reference.high:.3f}"


def beside_reference(
    ours: Mapping[str, ConfidenceInterval], reference: Mapping[str, ConfidenceInterval]
) -> list[Held]:
    """What is watched: the mean of ours beside the reference's interval, which is of as many
    answers.

    Strict: of two samples of one model, one mean lies outside the other's interval about one time
    in six.
    """
    return [Held(measure, ours[measure].value, reference[measure]) for measure in WATCHED]
