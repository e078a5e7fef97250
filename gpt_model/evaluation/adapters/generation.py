"""Tasks whose answer is written: CoQA, CNN/DailyMail summaries, translation, Natural Questions
(GPT-2, sections 3.5 to 3.8).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from gpt_model.evaluation.adapters.registry import Row, Rows, TaskContext, adapter


@adapter("story", "questions", "answers", "additional_answers")
def conversation(rows: Rows, task_context: TaskContext, *, separator: str = "\n") -> Iterator[Row]:
    """Columns: context, answers. A row a turn: the document, the conversation so far with its human
    answers, the question, "A:".
    """
    for row in rows:
        context = str(row["story"])
        first = list(row["answers"]["input_text"])
        others = [more["input_text"] for more in (row["additional_answers"] or {}).values() if more]
        for turn, (question, answer) in enumerate(
            zip(row["questions"]["input_text"], first, strict=True)
        ):
            context += f"{separator}Q: {question}{separator}A:"
            yield {"context": context, "answers": [answer, *(other[turn] for other in others)]}
            context += f" {answer}"


@adapter("article", "highlights")
def summaries(rows: Rows, task_context: TaskContext, *, hint: str = "TL;DR:") -> Iterator[Row]:
    """Columns: context (the article and the hint), summary. The article loses its end until it fits
    with 100 tokens of summary.
    """
    for row in rows:
        article = str(row["article"]).strip()
        room = task_context.context_length - 100 - len(task_context.encode(f"\n{hint}"))
        yield {
            "context": f"{_beginning(article, room, task_context)}\n{hint}",
            "summary": str(row["highlights"]),
        }


def _beginning(text: str, tokens: int, task_context: TaskContext) -> str:
    """The longest run of whole words from the start that has at most `tokens` tokens, found by
    halving.
    """
    words = text.split(" ")
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if len(task_context.encode(" ".join(words[:middle]))) <= tokens:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low])


@adapter("translation")
def translations(
    rows: Rows, task_context: TaskContext, *, source: str, target: str, examples: int = 5
) -> Iterator[Row]:
    """Columns: context ("english sentence = french sentence" lines, then "english sentence ="),
    target. The first rows are the examples.
    """
    remaining = iter(rows)
    shown = "".join(
        f"{pair[source]} = {pair[target]}\n"
        for pair in (_pair(row) for row in islice(remaining, examples))
    )
    for row in remaining:
        pair = _pair(row)
        yield {"context": f"{shown}{pair[source]} =", "target": pair[target]}


@adapter("translation")
def sentences_to_translate(
    rows: Rows, task_context: TaskContext, *, source: str, target: str
) -> Iterator[Row]:
    """Columns: sentence, target: pairs without a prompt round them."""
    for pair in map(_pair, rows):
        yield {"sentence": pair[source], "target": pair[target]}


def _pair(row: Mapping[str, Any]) -> Mapping[str, str]:
    return {language: " ".join(str(text).split()) for language, text in row["translation"].items()}


@adapter("question", "answers")
def questions(rows: Rows, task_context: TaskContext, *, examples: int = 5) -> Iterator[Row]:
    """Columns: context (`examples` questions with an answer each, then the question), answers. The
    first rows are the examples.
    """
    remaining = iter(rows)
    shown = "".join(
        f"Q: {_question(row)}\nA: {row['answers'][0]}\n" for row in islice(remaining, examples)
    )
    for row in remaining:
        yield {
            "context": f"{shown}Q: {_question(row)}\nA:",
            "answers": [str(answer) for answer in row["answers"]],
        }


def _question(row: Mapping[str, Any]) -> str:
    return str(row["question"]).strip().rstrip("?") + "?"
