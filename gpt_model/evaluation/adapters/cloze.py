"""Which of several texts is the likeliest: the Children's Book Test (Hill et al. 2015), Winograd
schemas (Levesque et al. 2012), HellaSwag (Zellers et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpt_model.errors import UserError
from gpt_model.evaluation.adapters.registry import Row, Rows, TaskContext, adapter
from gpt_model.evaluation.detokenizers import DETOKENIZERS

GAP = "XXXXX"
_BRACKETS = {
    "-LRB-": "(",
    "-RRB-": ")",
    "-LSB-": "[",
    "-RSB-": "]",
    "-LCB-": "{",
    "-RCB-": "}",
    "``": '"',
    "''": '"',
}
_DETERMINERS = ("a", "an", "the", "she", "he", "it", "they", "my", "his", "her", "their")


@adapter("sentences", "question", "answer", "options")
def childrens_books(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """Columns: context, choices, label. A choice is the word and the rest of the sentence (GPT-2,
    section 3.2), de-tokenized.
    """
    for row in rows:
        question, options = str(row["question"]), [str(option) for option in row["options"]]
        if question.count(GAP) < 1 or row["answer"] not in options:
            raise UserError(
                f"expected a question with {GAP} and its answer among the options, "
                f"found {dict(row)!r:.200}."
            )
        before = " ".join(map(str, row["sentences"]))
        filled = [_plain(f"{before} {question.replace(GAP, option, 1)}") for option in options]
        context = _shared(filled, _plain(f"{before} {question.partition(GAP)[0].rstrip()}"))
        choices = [text[len(context) :].removeprefix(" ") for text in filled]
        yield {"context": context, "choices": choices, "label": options.index(str(row["answer"]))}


def _plain(text: str) -> str:
    return DETOKENIZERS["treebank"].plain(
        " ".join(_BRACKETS.get(token, token) for token in text.split())
    )


def _shared(texts: list[str], context: str) -> str:
    """What every text begins with of the words before the gap: all of them, unless a quotation mark
    opens right before it.
    """
    while not all(text.startswith(f"{context} ") for text in texts):
        context = context.rpartition(" ")[0]
    return context


@adapter("text", "pronoun", "pronoun_loc", "options", "label")
def winograd(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """Columns: beginnings (up to the pronoun, each referent in its place), rest, wholes, label: for
    partial and full scoring.

    Trinh & Le (2018): partial scoring is the probability of the rest given a beginning, full that
    of the whole.
    """
    for row in rows:
        text, start, pronoun = str(row["text"]), int(row["pronoun_loc"]), str(row["pronoun"])
        before, rest = text[:start], text[start + len(pronoun) :]
        beginnings = [before + _referent(str(option), pronoun, before) for option in row["options"]]
        yield {
            "beginnings": [_one_space(beginning) for beginning in beginnings],
            "rest": _one_space(rest),
            "wholes": [_one_space(beginning + rest) for beginning in beginnings],
            "label": int(row["label"]),
        }


def _referent(option: str, pronoun: str, before: str) -> str:
    """The referent as it stands where the pronoun stood: possessive for one, and small unless it
    begins a sentence.
    """
    words: list[Any] = option.split(" ")
    starts = not before.strip() or before.rstrip().endswith((".", "!", "?", '"'))
    if words[0].lower() in _DETERMINERS:
        words[0] = words[0].capitalize() if starts else words[0].lower()
    possessive = pronoun.lower() in ("my", "his", "her", "our", "their")
    return " ".join(words) + ("'s" if possessive else "")


def _one_space(text: str) -> str:
    while "  " in text:
        text = text.replace("  ", " ")
    return text


@adapter("activity", "first", "second", "endings", "label")
def hellaswag(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """Columns: query, choices, label, by lm_eval's own clean-up of WikiHow's brackets."""
    # The orchestrator imports the adapters to check a suite, and never lm_eval.
    from lm_eval.tasks.hellaswag.utils import preprocess

    for row in rows:
        context = f"{row['activity']}: {row['first']} {str(row['second']).capitalize()}"
        endings = [preprocess(str(ending)) for ending in row["endings"]]
        yield {"query": preprocess(context), "choices": endings, "label": int(row["label"])}
