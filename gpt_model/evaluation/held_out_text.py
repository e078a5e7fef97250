"""Questions from held-out documents: passages, last words, cloze. Pure functions of the text;
nothing is tokenized here.

White space stays as it is, as GPT-2 read LAMBADA's raw text (Radford et al. 2019, section 3.3).
LAMBADA's authors had people, and CBT's a tagger, choose the words; here the "kind" of a cloze word
follows from its letters.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

Row = dict[str, Any]
Span = tuple[int, int]

# The commonest words are left out as targets (function words, whatever the language): so many, but
# no more than so large a share of the different words.
COMMONEST, COMMONEST_SHARE = 100, 0.05
LONGEST_SENTENCE = 400  # characters; longer ones are lists and tables
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s+[\"'“‘(\[]*[^\W\d_a-z])|\n\s*\n")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_ENDINGS = ("ing", "ed", "eth", "est", "ly", "er", "s")


def passages(text: str, characters: int) -> Iterator[str]:
    """`text` in pieces of at most `characters`, cut at a line end in the last half if there is one,
    else at a space.
    """
    start = 0
    while start < len(text):
        end = min(len(text), start + characters)
        if end < len(text):
            half = start + characters // 2
            end = next(
                (cut + 1 for mark in ("\n", " ") if (cut := text.rfind(mark, half, end)) > 0), end
            )
        if text[start:end].strip():
            yield text[start:end]
        start = end


def sentences(text: str) -> list[Span]:
    """(start, end) of each sentence: it ends at . ! or ? before a capital, or at an empty line."""
    spans, start = [], 0
    for match in [*_SENTENCE_END.finditer(text), None]:
        end = match.end() if match else len(text)
        piece = text[start:end]
        if stripped := piece.strip():
            begin = start + piece.index(stripped)
            spans.append((begin, begin + len(stripped)))
        start = end
    return spans


def commonest_words(texts: Iterable[str]) -> frozenset[str]:
    """The commonest lower-cased words of `texts`; ties by the alphabet."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word.lower() for word in _WORD.findall(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return frozenset(ranked[: min(COMMONEST, int(COMMONEST_SHARE * len(ranked)))])


def last_words(text: str, count: int, common: frozenset[str]) -> Iterator[Row]:
    """{context, target}: `count` sentences without their last word, and a space and that word,
    which stands in the context too.
    """
    spans = sentences(text)
    for first, last in zip(spans, spans[count - 1 :], strict=False):
        *_, word = [None, *_WORD.finditer(text, last[0], last[1])]
        if (
            word is None
            or re.search(r"\w", text[word.end() : last[1]])
            or text[word.start() - 1 : word.start()] != " "
        ):
            continue
        context = text[first[0] : word.start() - 1]
        target = word.group()
        if (
            target.lower() not in common
            and context == context.rstrip()
            and target in _WORD.findall(context)
        ):
            yield {"context": context, "target": f" {target}"}


def clozes(text: str, count: int, choices: int, common: frozenset[str], seed: int) -> Iterator[Row]:
    """{context, choices, label, kind}: `count` sentences and the beginning of the next; each choice
    is a word and the rest of that sentence.

    All the words, the right one included, stand in those sentences and are of one kind. `seed` and
    the sentence decide which word is taken out, and which others stand beside it.
    """
    spans = sentences(text)
    words = [_WORD.findall(text, start, end) for start, end in spans]
    for index in range(count, len(spans)):
        start, end = spans[index]
        if end - start > LONGEST_SENTENCE:
            continue
        by_kind = _by_kind(
            {word for sentence in words[index - count : index] for word in sentence} - common
        )
        of_word = {
            word: kind
            for kind, members in by_kind.items()
            if len(members) >= choices
            for word in members
        }
        candidates = [
            match
            for match in _WORD.finditer(text, start + 1, end)
            if match.group() in of_word and text[match.start() - 1] == " "
        ]
        if not candidates:
            continue
        draw = random.Random(f"{seed} {text[start:end]}")
        match = draw.choice(candidates)
        kind = of_word[match.group()]
        offered = [
            match.group(),
            *draw.sample(sorted(by_kind[kind] - {match.group()}), choices - 1),
        ]
        draw.shuffle(offered)
        yield {
            "context": text[spans[index - count][0] : match.start()].rstrip(),
            "choices": [word + text[match.end() : end] for word in offered],
            "label": offered.index(match.group()),
            "kind": kind,
        }


def _by_kind(words: set[str]) -> dict[str, set[str]]:
    """The words that a question may ask for, by kind: names, and other words by their ending."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for word in words:
        kind = _kind(word)
        if kind and not (kind == "name" and word.lower() in words):
            kinds[kind].add(word)
    return kinds


@lru_cache(maxsize=1 << 16)
def _kind(word: str) -> str | None:
    if len(word) < 4:
        return None
    if word.islower():
        return next((f"…{ending}" for ending in _ENDINGS if word.endswith(ending)), "other")
    return "name" if word.istitle() else None  # in capitals throughout: a heading, or who speaks
