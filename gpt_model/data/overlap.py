"""How much of held-out text stands in training text too, word for word: GPT-2's and GPT-3's n-gram
overlap (Brown et al. 2020, appendix C, 13 words), as a measurement. It removes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

WORDS = 13
# letters: only runs that open with a word this long are compared, about one in eight, which any
# text has alike
ANCHOR = 8


def mostly_seen(held_out: Sequence[str], training: Iterable[str]) -> int:
    """How many of `held_out` have more than half of their compared runs in `training`, which is
    read once.
    """
    wanted = [list(_runs(text)) for text in held_out]
    unseen = {run for runs in wanted for run in runs}
    seen: set[int] = set()
    for text in training:
        seen.update(unseen.intersection(_runs(text)))
    return sum(sum(run in seen for run in runs) * 2 > len(runs) for runs in wanted)


def _runs(text: str) -> Iterator[int]:
    words = text.lower().split()
    for start, word in enumerate(words[: 1 - WORDS]):
        if len(word) >= ANCHOR:
            yield hash(tuple(words[start : start + WORDS]))
