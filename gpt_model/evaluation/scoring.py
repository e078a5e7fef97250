"""Scores of an answer for which lm_eval has no metric: functions that a suite names as
`process_results`, and last those that a metric names as its `aggregation`.

A copy of this file is written beside the task files that name one of its functions (`!function
scoring.NAME`), so that lm_eval reproduces the scores without anything else of ours. So this file
imports nothing of this project.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

Doc = dict[str, Any]
Scores = dict[str, Any]

UNANSWERABLE = "unanswerable"  # as an answer to a question of SQuAD 2 that has none


# Language modelling: the log-probability of the text over the units of the original (GPT-2, section
# 3.1).


def original_words(doc: Doc, results: list[float]) -> Scores:
    return {"word_perplexity": (results[0], doc["words"])}


def original_bytes(doc: Doc, results: list[float]) -> Scores:
    return {"bits_per_byte": (results[0], doc["bytes"])}


def original_characters(doc: Doc, results: list[float]) -> Scores:
    return {"bits_per_char": (results[0], doc["characters"])}


# Choices: the log-probability of each, and whether it is greedy.


def likeliest_by_token(doc: Doc, results: list[tuple[float, bool]]) -> Scores:
    """Whether the choice that is likeliest by the token, of which the row gives the numbers, is
    right (CORE's rule).
    """
    means = [logprob / length for (logprob, _), length in zip(results, doc["lengths"], strict=True)]
    return {"acc": float(means.index(max(means)) == doc["label"])}


def share_of_the_true(doc: Doc, results: list[tuple[float, bool]]) -> Scores:
    """TruthfulQA's MC2: the true answers' share of all answers' probability. Relative to the
    likeliest answer, or long ones would all be 0.
    """
    highest = max(logprob for logprob, _ in results)
    weights = [math.exp(logprob - highest) for logprob, _ in results]
    return {
        "mc2": sum(weight for weight, true in zip(weights, doc["labels"], strict=True) if true)
        / sum(weights)
    }


def one_of_three(doc: Doc, results: list[tuple[float, bool]]) -> Scores:
    """CommitmentBank: whether the likeliest answer is right, and (right, likeliest by the token)
    for SuperGLUE's F1.
    """
    return {
        "acc": float(_likeliest(results) == doc["label"]),
        "f1": (doc["label"], _likeliest(results, doc["tokens"])),
    }


def answer_judged(doc: Doc, results: list[tuple[float, bool]]) -> Scores:
    """MultiRC: whether an answer is judged rightly; for F1 over answers and for the share of
    questions, by the token, of all of them.
    """
    judged = _likeliest(results, doc["tokens"])
    judgement = (doc["label"], judged)
    return {
        "acc": float(_likeliest(results) == doc["label"]),
        "f1": judgement,
        "em": (doc["question"], float(judged == doc["label"])),
    }


def entity(doc: Doc, results: list[tuple[float, bool]]) -> Scores:
    """ReCoRD: whether the likeliest entity is a right one; F1 of the likeliest by the token against
    the right one nearest to it.
    """
    by_token = doc["entities"][_likeliest(results, doc["tokens"])]
    return {
        "acc": float(_likeliest(results) in doc["label"]),
        "f1": max(word_f1(answer, by_token) for answer in doc["answers"]),
    }


def _likeliest(results: list[tuple[float, bool]], lengths: list[int] | None = None) -> int:
    scores = [
        logprob / length
        for (logprob, _), length in zip(results, lengths or [1] * len(results), strict=True)
    ]
    return scores.index(max(scores))


# Generated answers.


def continuation(doc: Doc, results: list[str]) -> Scores:
    """Whether the answer is empty. A classifier scores it afterwards (`toxicity.py`)."""
    return {"empty": float(not results[0].strip())}


def first_word(doc: Doc, results: list[str]) -> Scores:
    """Whether the first word generated, punctuation at its ends aside, is the target."""
    generated = results[0].split()
    return {"acc": float(bool(generated) and _bare(generated[0]) == _bare(doc["target"]))}


def _bare(word: str) -> str:
    return word.strip().strip(string.punctuation)


def _first_line(results: list[str]) -> str:
    return results[0].strip().partition("\n")[0].rstrip()


def answer_f1(doc: Doc, results: list[str]) -> Scores:
    """F1 and exact match of the first line against a question's answers, as CoQA's evaluation has
    them.

    With several human answers each is left out once and the best of the others counts, so that
    people are scored by the same rule.
    """
    generated, answers = _first_line(results), doc["answers"]
    groups = (
        [answers[:i] + answers[i + 1 :] for i in range(len(answers))]
        if len(answers) > 1
        else [answers]
    )
    f1 = sum(max(word_f1(answer, generated) for answer in group) for group in groups)
    exact = sum(
        max(float(_normalised(answer) == _normalised(generated)) for answer in group)
        for group in groups
    )
    return {"f1": f1 / len(groups), "em": exact / len(groups)}


def answer_exact(doc: Doc, results: list[str]) -> Scores:
    """Whether the first line is one of a question's answers, case, punctuation and articles aside
    (SQuAD's normalisation).
    """
    return {"exact_match": _is_one_of(doc["answers"], _first_line(results))}


def answer_or_none(doc: Doc, results: list[str]) -> Scores:
    """F1 and exact match of the first line against the nearest of SQuAD 2's answers, of which there
    may be none: "unanswerable".
    """
    generated, answers = _first_line(results), doc["answers"]
    exact = _is_one_of(answers, generated)
    # No credit for a part, as in SQuAD's own evaluation.
    if answers == [UNANSWERABLE] or _normalised(generated) == [UNANSWERABLE]:
        return {"f1": exact, "em": exact}
    return {"f1": max(word_f1(answer, generated) for answer in answers), "em": exact}


def number_date_or_spans(doc: Doc, results: list[str]) -> Scores:
    """DROP's own F1 and exact match, as lm_eval has them, of the first line against the nearest of
    the people's answers.
    """
    # The orchestrator reads this module's names to check a suite, and never lm_eval.
    from lm_eval.tasks.drop.utils import process_results

    scores = process_results({"answers": doc["answers"]}, [_first_line(results)])
    return {name: float(scores[name]) for name in ("f1", "em")}


def referent(doc: Doc, results: list[str]) -> Scores:
    """SuperGLUE's WSC: whether the first line names the noun in question exactly if that is the
    pronoun's referent, by T5's comparison of the two.
    """
    # As above: not in the orchestrator.
    from lm_eval.tasks.super_glue.wsc.t5_utils import process_results

    reference = {"span1_text": doc["referent"], "label": doc["label"]}
    return {"acc": float(process_results(reference, [_first_line(results)])["accuracy"])}


def _is_one_of(answers: Sequence[str], generated: str) -> float:
    right = [_normalised(answer) for answer in answers]
    return float(_normalised(generated) in right)


def _normalised(text: str) -> list[str]:
    """SQuAD's normalisation: lower case, no punctuation, no articles."""
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def word_f1(answer: str, other: str) -> float:
    """SQuAD's F1 of the words that two answers share."""
    first, second = _normalised(answer), _normalised(other)
    if not first or not second:
        return float(first == second)
    common = sum((Counter(first) & Counter(second)).values())
    return 2 * common / (len(first) + len(second))


def summary_rouge(doc: Doc, results: list[str]) -> Scores:
    """ROUGE-1, -2, -L (of whole summaries) and their mean, in per cent, of the first three
    sentences generated (GPT-2, section 3.6).
    """
    scores = _rouge().score(doc["summary"], "\n".join(_sentences(results[0])[:3]))
    rouge = {
        name: 100 * scores[kind].fmeasure
        for name, kind in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rougeL", "rougeLsum"))
    }
    return {**rouge, "rouge_mean": sum(rouge.values()) / 3}


@cache
def _rouge() -> Any:
    # An extra's package, and only summaries need it.
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeLsum"], use_stemmer=True)


def _sentences(text: str) -> list[str]:
    return [
        piece.strip() for piece in re.split(r"(?<=[.!?])[\"'”’)]*\s+|\n+", text) if piece.strip()
    ]


def translation(doc: Doc, results: list[str]) -> Scores:
    """The first sentence generated beside the reference, for BLEU over the whole set (GPT-2,
    section 3.7).
    """
    return {"bleu": (doc["target"], next(iter(_sentences(results[0])), ""))}


def translated_line(doc: Doc, results: list[str]) -> Scores:
    """The first line generated beside the reference, for BLEU over the whole set (GPT-3, section
    3.3).
    """
    return {"bleu": (doc["target"], _first_line(results))}


# Aggregations that are no mean of the examples' scores.


def f1_of_answers(judgements: Sequence[tuple[int, int]]) -> float:
    """F1 of the answers that are right, 1, over all questions' answers (MultiRC's F1a). A
    judgement: (right, judged).
    """
    return _class_f1(judgements, 1)


def macro_f1(judgements: Sequence[tuple[int, int]]) -> float:
    """Mean of the F1 of every class that is right or was predicted (CommitmentBank)."""
    classes = {label for judgement in judgements for label in judgement}
    return sum(_class_f1(judgements, label) for label in classes) / len(classes)


def _class_f1(judgements: Sequence[tuple[int, int]], label: int) -> float:
    both = sum(right == predicted == label for right, predicted in judgements)
    either = sum((right == label) + (predicted == label) for right, predicted in judgements)
    return 2 * both / either if either else 0.0


def share_of_questions(judgements: Sequence[tuple[str, float]]) -> float:
    """The share of questions of whose answers every one is judged rightly. A judgement: (question,
    1 or 0).
    """
    all_right = by_question(judgements)
    return sum(all_right) / len(all_right)


def by_question(judgements: Sequence[tuple[str, float]]) -> list[float]:
    """1 for each question whose every answer is judged rightly, else 0."""
    judged: dict[str, list[float]] = defaultdict(list)
    for question, right in judgements:
        judged[question].append(right)
    return [min(rights) for rights in judged.values()]
