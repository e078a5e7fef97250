"""Questions on a passage whose answers are written: QuAC, SQuAD 2, DROP, as GPT-3 was asked them
(Brown et al. 2020, section 3.6; figures G.20, G.25, G.28). CoQA's conversations are
`generation.py`'s.

A row is a passage, what was asked of it before with its answers, a question and every answer that
is right: how it is put is the suite's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from gpt_model.evaluation.adapters.registry import Row, Rows, TaskContext, adapter
from gpt_model.evaluation.scoring import UNANSWERABLE, word_f1

CANNOT_ANSWER = "CANNOTANSWER"  # QuAC's own word; it also stands at the end of each passage
LEAST_AGREEMENT = (
    0.4  # QuAC leaves questions out whose people's answers have less F1 with one another
)


@adapter("title", "section", "passage", "questions", "answers", "first_answers")
def section_dialogue(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """QuAC. Columns: title, section, passage, before, question, answers: by its own evaluation's
    rules, a row a question that it counts.
    """
    for row in rows:
        before = ""
        given = zip(
            row["questions"], row["answers"]["texts"], row["first_answers"]["texts"], strict=True
        )
        for question, texts, first in given:
            answers = _majority([str(text) for text in texts])
            if _agreement(answers) >= LEAST_AGREEMENT:
                yield {
                    **{name: str(row[name]) for name in ("title", "section")},
                    "passage": str(row["passage"]).removesuffix(CANNOT_ANSWER).rstrip(),
                    "before": before,
                    "question": str(question),
                    "answers": answers,
                }
            before += f"Q: {question}\n\nA: {first}\n\n"


def _majority(answers: list[str]) -> list[str]:
    """Of several people's: those with an answer, unless at least half say that there is none."""
    answered = [answer for answer in answers if answer != CANNOT_ANSWER]
    return answered if 2 * len(answered) > len(answers) else [CANNOT_ANSWER]


def _agreement(answers: Sequence[str]) -> float:
    """Mean F1 of each person's answer with that of the others that is nearest to it; 1 where there
    is one.
    """
    if len(answers) == 1:
        return 1.0
    others = [[*answers[:index], *answers[index + 1 :]] for index in range(len(answers))]
    return sum(
        max(word_f1(other, answer) for other in rest)
        for answer, rest in zip(answers, others, strict=True)
    ) / len(answers)


@adapter("title", "passage", "question", "answers", alone={})
def passage_questions(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """SQuAD 2. Columns: title, passage, before (the passage's earlier questions, answered),
    question, answers (or that there is none).
    """
    for passage, questions in groupby(rows, key=lambda row: str(row["passage"])):
        before = ""
        for row in questions:
            answers = [str(text) for text in row["answers"]["text"]] or [UNANSWERABLE]
            title, question = str(row["title"]).replace("_", " "), str(row["question"]).strip()
            yield {
                "title": title,
                "passage": passage,
                "before": before,
                "question": question,
                "answers": answers,
            }
            before += f"Q: {question}\n\nA: {answers[0]}\n\n"


@adapter("passage", "question", "answer", "validated_answers")
def discrete_reasoning(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """DROP. Columns: passage, question, answers (each a list of one or several spans), target (the
    first of them, in a line).
    """
    # The orchestrator imports the adapters to check a suite, and never lm_eval.
    from lm_eval.tasks.drop.utils import get_answers

    for row in rows:
        answers = [[str(span) for span in answer] for answer in get_answers(row)]
        yield {
            "passage": str(row["passage"]),
            "question": str(row["question"]),
            "answers": answers,
            "target": ", ".join(answers[0]),
        }
