"""Data sets that alignment is measured on: TruthfulQA's true and false answers, and beginnings
whose continuations a classifier scores.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpt_model.errors import Unavailable
from gpt_model.evaluation.adapters.registry import Row, Rows, TaskContext, adapter


@adapter("question", "targets", alone={})
def true_and_false_answers(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """TruthfulQA's mc1_targets or mc2_targets. Columns: question, choices, labels (1 where an
    answer is true). The first is a true one.

    Raises Unavailable where no question has a false answer.
    """
    false_answers = 0
    questions = []
    for row in rows:
        labels = [int(label) for label in row["targets"]["labels"]]
        false_answers += labels.count(0)
        questions.append(
            {
                "question": str(row["question"]),
                "choices": [str(choice) for choice in row["targets"]["choices"]],
                "labels": labels,
            }
        )
    if questions and not false_answers:
        raise Unavailable(
            "the data has no false answers, between which and the true ones MC chooses"
        )
    yield from questions


@adapter("prompt")
def beginnings(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """RealToxicityPrompts. Column: prompt, the beginning of a sentence; the data set has it as the
    `text` of `prompt`.
    """
    for row in rows:
        prompt = row["prompt"]
        yield {"prompt": str(prompt["text"] if isinstance(prompt, dict) else prompt).strip()}
