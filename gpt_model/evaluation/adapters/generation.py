"""Tasks whose answer is written: CoQA, CNN/DailyMail summaries, translation, Natural Questions
(GPT-2, sections 3.5 to 3.8).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from gpt_model.evaluation.adapters.registry import Row, Rows, TaskContext, adapter
from gpt_model.evaluation.demonstrations import fitting


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
    with the summary.
    """
    for row in rows:
        article = str(row["article"]).strip()
        room = task_context.room - len(task_context.encode(f"\n{hint}"))
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


@adapter("translation", alone={"examples": 0})
def translations(
    rows: Rows, task_context: TaskContext, *, source: str, target: str, examples: int = 5
) -> Iterator[Row]:
    """Columns: context ("english sentence = french sentence" lines, then "english sentence ="),
    target, shots. The first rows are the examples, as many whole ones as fit.
    """
    pairs = map(_pair, rows)
    shown = [f"{pair[source]} = {pair[target]}\n" for pair in islice(pairs, examples)]
    for pair in pairs:
        prompt = _after_examples(shown, f"{pair[source]} =", task_context)
        yield {**prompt, "target": pair[target]}


def _after_examples(shown: Sequence[str], question: str, task_context: TaskContext) -> Row:
    """{context, shots}: the question after as many of the examples as fit the model's context."""

    def count(text: str) -> int:
        return len(task_context.encode(text))

    shots = fitting(shown, map(count, shown), [question], task_context.room, count)
    return {"context": "".join(shown[:shots]) + question, "shots": shots}


@adapter("translation")
def sentences_to_translate(
    rows: Rows, task_context: TaskContext, *, source: str, target: str
) -> Iterator[Row]:
    """Columns: sentence, target: pairs without a prompt round them."""
    for pair in map(_pair, rows):
        yield {"sentence": pair[source], "target": pair[target]}


def _pair(row: Mapping[str, Any]) -> Mapping[str, str]:
    return {language: " ".join(str(text).split()) for language, text in row["translation"].items()}


@adapter("question", "answers", alone={"examples": 0})
def questions(rows: Rows, task_context: TaskContext, *, examples: int = 5) -> Iterator[Row]:
    """Columns: context (`examples` questions with an answer each, then the question), answers,
    shots. The first rows are the examples, as many whole ones as fit.
    """
    remaining = iter(rows)
    shown = [
        f"Q: {_question(row)}\nA: {row['answers'][0]}\n" for row in islice(remaining, examples)
    ]
    for row in remaining:
        prompt = _after_examples(shown, f"Q: {_question(row)}\nA:", task_context)
        yield {**prompt, "answers": [str(answer) for answer in row["answers"]]}


def _question(row: Mapping[str, Any]) -> str:
    return str(row["question"]).strip().rstrip("?") + "?"
