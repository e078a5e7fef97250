"""Rows of our own for GPT-1's twelve sets, with columns and values as the data sets have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def pair(first: str, second: str, labels: Sequence[Any]) -> Any:
    """Rows of two texts and a label that goes round."""
    return lambda n: {
        first: f"The fox crossed bridge {n}.",
        second: f"Bridge {n} was crossed.",
        "label": labels[n % len(labels)],
    }


def story(n: int) -> dict[str, Any]:
    sentences = {f"InputSentence{i}": f"Story {n} goes on to {i}." for i in range(1, 5)}
    endings = {
        "RandomFifthSentenceQuiz1": f"It ends well {n}.",
        "RandomFifthSentenceQuiz2": f"It ends badly {n}.",
    }
    return {"InputStoryid": str(n), **sentences, **endings, "AnswerRightEnding": 1 + n % 2}


def examination(n: int) -> dict[str, Any]:
    options = [f"{word} {n}" for word in ("a fox", "a crow", "a stork", "a wolf")]
    text = {
        "article": f"Fable {n // 2} tells of a {n // 2}.",
        "question": f"Who is it in {n}? It is _ .",
        "options": options,
    }
    return {"example_id": f"high{n}.txt", **text, "answer": "ABCD"[n % 4]}


# set -> its row of a number; -1 is SNLI's for no label
SETS: dict[str, Any] = {
    "sst2": lambda n: {"idx": n, "sentence": f"film {n} was fine", "label": n % 2},
    "cola": lambda n: {"idx": n, "sentence": f"The fox {n} runned .", "label": n % 2},
    "mrpc": pair("sentence1", "sentence2", [0, 1]),
    "qqp": pair("question1", "question2", [0, 1]),
    "stsb": pair("sentence1", "sentence2", [0.0, 5.0, 3.8, 2.25]),
    "mnli": pair("premise", "hypothesis", [0, 1, 2]),
    "snli": pair("premise", "hypothesis", [0, 1, 2, -1]),
    "qnli": pair("question", "sentence", [0, 1]),
    "rte": pair("sentence1", "sentence2", [0, 1]),
    "scitail": pair("premise", "hypothesis", ["entails", "neutral"]),
    "race": examination,
    "storycloze": story,
}
