"""Rows of human preferences as rankings: pairs, lists of answers with ranks, scores or a choice,
and single rated texts.

Which single texts are ranked together is `rlhf/splits.py`'s: it is done within a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpt_model.data.formats import Row
from gpt_model.data.splits import normalised
from gpt_model.rlhf.dialogue import Dialogue, Turn, dialogue
from gpt_model.rlhf.readers.fields import (
    Messages,
    lone_surrogate,
    parse_bool,
    parse_messages,
    parse_number,
    parse_numbers,
    parse_prompt,
    parse_transcript,
    same_turns,
    text_of,
    value_at,
    value_of,
)
from gpt_model.rlhf.readers.parsed import Answer, ParsedRow, UnusableRow, split_key
from gpt_model.rlhf.readers.source import HumanSource
from gpt_model.rlhf.records import PROMPT_ENDS


def ranked_row(prompt: Dialogue, answers: Sequence[tuple[Any, float, float | None]]) -> ParsedRow:
    """A ranking of answers (text, rank, rating). Those that cannot be used are dropped, each with
    its reason, while two are left; else raises UnusableRow with the first reason.

    Of equal answers one is used where their ranks are equal, and none where these contradict. Ranks
    become 0, 1, …, equal ones staying equal: a tie stays here, and is dropped where pairs are made
    of a ranking.
    """
    usable: dict[str, tuple[str, float, float | None]] = {}
    contradicted: set[str] = set()
    dropped: list[tuple[str, str]] = []
    for number, (text, rank, rating) in enumerate(answers, start=1):
        if not isinstance(text, str) or not text.strip():
            dropped.append(
                ("a missing answer", f"answer {number} of {len(answers)} is empty, or no text")
            )
        elif surrogate := lone_surrogate(text):
            dropped.append(("half a character", surrogate))
        elif (identity := normalised(text)) in usable:
            dropped.append(("equal answers", f"two answers are {identity[:40]!r}"))
            contradicted |= {identity} if rank != usable[identity][1] else set()
        else:
            usable[identity] = (text.strip(), rank, rating)
    for identity in contradicted:
        detail = f"two answers are {identity[:40]!r}, with different ranks"
        dropped.append(("equal answers", detail))
        del usable[identity]
    if len(usable) < 2:
        raise UnusableRow(
            *(dropped[0] if dropped else ("fewer than two answers", f"there is {len(usable)}"))
        )
    order = sorted({rank for _, rank, _ in usable.values()})
    ranked = tuple(
        Answer(text, order.index(rank), rating) for text, rank, rating in usable.values()
    )
    return ParsedRow("", prompt, split_key(prompt), ranked, dropped=tuple(dropped))


def parse_pair(source: HumanSource, row: Row) -> ParsedRow:
    """Form `pairs`: a chosen answer and a rejected one."""
    prompt, chosen, rejected = _prompt_and_answers(source, row)
    tie = parse_bool(value_of(source, row, "tie"), "tie")
    return ranked_row(
        dialogue(prompt, ends_with=PROMPT_ENDS),
        [(chosen, 0, None), (rejected, 0 if tie else 1, None)],
    )


def prompt_of_pair(source: HumanSource, row: Row) -> Messages:
    return _prompt_and_answers(source, row)[0]


def _prompt_and_answers(source: HumanSource, row: Row) -> tuple[Messages, Any, Any]:
    """(the prompt's messages, the chosen answer, the rejected one)"""
    chosen, rejected = value_of(source, row, "chosen"), value_of(source, row, "rejected")
    if source.column("prompt"):
        prompt = parse_prompt(value_of(source, row, "prompt"))
        return prompt, _last_content(chosen), _last_content(rejected)
    a, b = _answered_dialogue(chosen), _answered_dialogue(rejected)
    if not same_turns(a[:-1], b[:-1]):
        raise UnusableRow("dialogues that part before the last answer")
    return a[:-1], a[-1]["content"], b[-1]["content"]


def _last_content(answer: Any) -> Any:
    """An answer as text, or the content of the last of its messages."""
    return parse_messages(answer)[-1]["content"] if isinstance(answer, list) and answer else answer


def _answered_dialogue(value: Any) -> Messages:
    """A dialogue that ends with the answer."""
    if value is None or value == "":
        raise UnusableRow("a missing answer", "chosen or rejected is not there, or is empty")
    messages = parse_messages(value) if isinstance(value, list) else parse_transcript(str(value))
    if not messages or messages[-1]["role"] != "assistant":
        raise UnusableRow("a missing answer", "a dialogue does not end with the assistant")
    return messages


def parse_ranking(source: HumanSource, row: Row) -> ParsedRow:
    """Form `rankings`: several answers, with ranks, scores, or the index of the chosen one."""
    prompt = dialogue(prompt_of_ranking(source, row), ends_with=PROMPT_ENDS)
    answers = value_of(source, row, "responses")
    if not isinstance(answers, list):
        raise UnusableRow("no list of answers", f"found {type(answers).__name__}")
    text_column = source.column("text")
    texts = [
        value_at(answer, text_column[0]) if text_column and isinstance(answer, Mapping) else answer
        for answer in answers
    ]
    ranks = _ranks(source, row, answers)
    return ranked_row(prompt, [(text, *rank) for text, rank in zip(texts, ranks, strict=True)])


def prompt_of_ranking(source: HumanSource, row: Row) -> Messages:
    value = value_of(source, row, "prompt")
    if isinstance(value, list):
        messages = parse_messages(value)
    else:
        messages = parse_prompt(text_of(source, row, "prompt"))
    if source.instruction and messages and messages[-1]["role"] == "user":
        content = f"{source.instruction}\n\n{messages[-1]['content']}"
        messages[-1] = {**messages[-1], "content": content}
    return messages


def _ranks(
    source: HumanSource, row: Row, answers: Sequence[Any]
) -> list[tuple[float, float | None]]:
    """(rank, rating) of each answer: by `ranks` (low is good), `scores` (high is good) or `choice`
    (the index of the chosen one).
    """
    if source.column("ranks"):
        return [(rank, None) for rank in _numbers(source, row, "ranks", answers)]
    if source.column("scores"):
        return [(-score, float(score)) for score in _numbers(source, row, "scores", answers)]
    count, choice = len(answers), value_of(source, row, "choice")
    if not isinstance(choice, int) or isinstance(choice, bool) or not 0 <= choice < count:
        raise UnusableRow("no such choice", f"{choice!r} is none of {count} answers")
    return [(0 if index == choice else 1, None) for index in range(count)]


def _numbers(source: HumanSource, row: Row, part: str, answers: Sequence[Any]) -> list[float]:
    """A number for each answer: the row's list of that name, else a value in each answer."""
    values, (column,) = value_of(source, row, part), source.column(part)
    if values is None and all(isinstance(answer, Mapping) for answer in answers):
        values = [value_at(answer, column) for answer in answers]
    return parse_numbers(values, len(answers), part)


def parse_rated(source: HumanSource, row: Row) -> ParsedRow:
    """Form `rated`: a single text, to be ranked among others (`rlhf.splits.rankings`)."""
    text, value = text_of(source, row, "text"), text_of(source, row, "rating")
    if (rating := parse_number(value)) is None:
        raise UnusableRow("no number for a rating", f"found {value!r}")
    prompt = (Turn("user", source.instruction or ""),)
    return ParsedRow("", prompt, text, (Answer(text, 0, rating),))
