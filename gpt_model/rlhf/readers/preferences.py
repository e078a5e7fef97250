"""Rows that people judged, as rankings: pairs, lists of answers with ranks, scores or a choice, and
single rated texts.

Which singles are set against each other is `splitting.py`'s: it is done within a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpt_model.data.formats import Row
from gpt_model.data.splits import normalised
from gpt_model.rlhf.dialogue import Dialogue, Turn, dialogue
from gpt_model.rlhf.readers.candidate import Answer, Candidate, key_of
from gpt_model.rlhf.readers.fields import (
    Messages,
    Unusable,
    asked_in,
    at,
    broken,
    figure,
    messages_in,
    numbers_in,
    same,
    spoken,
    text_of,
    truth_in,
    value_of,
)
from gpt_model.rlhf.readers.source import HumanSource
from gpt_model.rlhf.records import PROMPT_ENDS


def ranked(prompt: Dialogue, answers: Sequence[tuple[Any, float, float | None]]) -> Candidate:
    """A ranking of answers (text, rank, rating). Those that cannot be used are dropped, each with
    its reason, while two are left; else raises Unusable with the first reason.

    Of equal answers one is kept where their ranks are equal, and none where these contradict. Ranks
    become 0, 1, …, equal ones staying equal: a tie is kept here, and dropped where pairs are made
    of a ranking.
    """
    kept: dict[str, tuple[str, float, float | None]] = {}
    contradicted: set[str] = set()
    dropped: list[tuple[str, str]] = []
    for place, (text, rank, rating) in enumerate(answers, start=1):
        if not isinstance(text, str) or not text.strip():
            dropped.append(
                ("a missing answer", f"answer {place} of {len(answers)} is empty, or no text")
            )
        elif told := broken(text):
            dropped.append(("half a character", told))
        elif (own := normalised(text)) in kept:
            dropped.append(("equal answers", f"two answers are {own[:40]!r}"))
            contradicted |= {own} if rank != kept[own][1] else set()
        else:
            kept[own] = (text.strip(), rank, rating)
    for own in contradicted:
        dropped.append(("equal answers", f"two answers are {own[:40]!r}, with different ranks"))
        del kept[own]
    if len(kept) < 2:
        raise Unusable(
            *(dropped[0] if dropped else ("fewer than two answers", f"there is {len(kept)}"))
        )
    order = sorted({rank for _, rank, _ in kept.values()})
    found = tuple(Answer(text, order.index(rank), rating) for text, rank, rating in kept.values())
    return Candidate("", prompt, key_of(prompt), found, dropped=tuple(dropped))


# --- pairs ---


def of_pair(source: HumanSource, row: Row) -> Candidate:
    said, chosen, rejected = _pair(source, row)
    tied = truth_in(value_of(source, row, "tie"), "tie")
    return ranked(
        dialogue(said, ends_with=PROMPT_ENDS),
        [(chosen, 0, None), (rejected, 0 if tied else 1, None)],
    )


def prompt_of_pair(source: HumanSource, row: Row) -> Messages:
    return _pair(source, row)[0]


def _pair(source: HumanSource, row: Row) -> tuple[Messages, Any, Any]:
    """(the prompt's messages, the chosen answer, the rejected one)"""
    chosen, rejected = value_of(source, row, "chosen"), value_of(source, row, "rejected")
    if source.column("prompt"):
        return asked_in(value_of(source, row, "prompt")), _last_of(chosen), _last_of(rejected)
    both = [_whole(chosen), _whole(rejected)]
    if not same(both[0][:-1], both[1][:-1]):
        raise Unusable("dialogues that part before the last answer")
    return both[0][:-1], both[0][-1]["content"], both[1][-1]["content"]


def _last_of(answer: Any) -> Any:
    """An answer as text, or what the last of its messages says."""
    return messages_in(answer)[-1]["content"] if isinstance(answer, list) and answer else answer


def _whole(found: Any) -> Messages:
    """A dialogue that ends with the answer."""
    if found is None or found == "":
        raise Unusable("a missing answer", "chosen or rejected is not there, or is empty")
    said = messages_in(found) if isinstance(found, list) else spoken(str(found))
    if not said or said[-1]["role"] != "assistant":
        raise Unusable("a missing answer", "a dialogue does not end with the assistant")
    return said


# --- several answers ---


def of_ranking(source: HumanSource, row: Row) -> Candidate:
    prompt = dialogue(prompt_of_ranking(source, row), ends_with=PROMPT_ENDS)
    found = value_of(source, row, "responses")
    if not isinstance(found, list):
        raise Unusable("no list of answers", f"found {type(found).__name__}")
    inner = source.column("text")
    texts = [at(one, inner[0]) if inner and isinstance(one, Mapping) else one for one in found]
    return ranked(
        prompt,
        [(text, *placed) for text, placed in zip(texts, _ranks(source, row, found), strict=True)],
    )


def prompt_of_ranking(source: HumanSource, row: Row) -> Messages:
    value = value_of(source, row, "prompt")
    said = (
        messages_in(value) if isinstance(value, list) else asked_in(text_of(source, row, "prompt"))
    )
    if source.instruction and said and said[-1]["role"] == "user":
        said[-1] = {**said[-1], "content": f"{source.instruction}\n\n{said[-1]['content']}"}
    return said


def _ranks(
    source: HumanSource, row: Row, answers: Sequence[Any]
) -> list[tuple[float, float | None]]:
    """(rank, rating) of each answer: by `ranks` (low is good), `scores` (high is good) or `choice`
    (which one was chosen).
    """
    if source.column("ranks"):
        return [(one, None) for one in _numbers(source, row, "ranks", answers)]
    if source.column("scores"):
        return [(-one, float(one)) for one in _numbers(source, row, "scores", answers)]
    count, chosen = len(answers), value_of(source, row, "choice")
    if not isinstance(chosen, int) or isinstance(chosen, bool) or not 0 <= chosen < count:
        raise Unusable("no such choice", f"{chosen!r} is none of {count} answers")
    return [(0 if place == chosen else 1, None) for place in range(count)]


def _numbers(source: HumanSource, row: Row, part: str, answers: Sequence[Any]) -> list[float]:
    """One of each answer: a list of the row's, or where the row has none of that name, what stands
    in each answer.
    """
    listed, (column,) = value_of(source, row, part), source.column(part)
    if listed is None and all(isinstance(one, Mapping) for one in answers):
        listed = [at(one, column) for one in answers]
    return numbers_in(listed, len(answers), part)


def of_rated(source: HumanSource, row: Row) -> Candidate:
    """A single, to be set against others: `splitting.rankings`."""
    text, value = text_of(source, row, "text"), text_of(source, row, "rating")
    if (rating := figure(value)) is None:
        raise Unusable("no number for a rating", f"found {value!r}")
    return Candidate(
        "", (Turn("user", source.instruction or ""),), text, (Answer(text, 0, rating),)
    )
