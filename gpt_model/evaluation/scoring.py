"""How an answer is scored where lm_eval has no metric for it: functions that a suite names as `process_results`.

A copy of this file is written beside the task files that name one of its functions (`!function scoring.NAME`), so that lm_eval reproduces
the scores without anything else of ours: nothing of this project is imported here.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from functools import cache
from typing import Any

Doc = dict[str, Any]
Scores = dict[str, Any]


# -- language modelling: log-probability of the text over the units of the original (GPT-2, section 3.1) -----------------------------------


def original_words(doc: Doc, results: list[float]) -> Scores:
    return {"word_perplexity": (results[0], doc["words"])}


def original_bytes(doc: Doc, results: list[float]) -> Scores:
    return {"bits_per_byte": (results[0], doc["bytes"])}


def original_characters(doc: Doc, results: list[float]) -> Scores:
    return {"bits_per_char": (results[0], doc["characters"])}


# -- choices -------------------------------------------------------------------------------------------------------------------------------


def likeliest_by_token(doc: Doc, results: list[tuple[float, bool]]) -> Scores:
    """Whether the choice that is likeliest by the token, of which the row gives the numbers, is right (CORE's rule)."""
    means = [logprob / length for (logprob, _), length in zip(results, doc["lengths"], strict=True)]
    return {"acc": float(means.index(max(means)) == doc["label"])}


# -- generated answers ---------------------------------------------------------------------------------------------------------------------


def first_word(doc: Doc, results: list[str]) -> Scores:
    """Whether the first word generated, punctuation at its ends aside, is the target."""
    words = results[0].split()
    return {"acc": float(bool(words) and _bare(words[0]) == _bare(doc["target"]))}


def _bare(word: str) -> str:
    return word.strip().strip(string.punctuation)


def answer_f1(doc: Doc, results: list[str]) -> Scores:
    """F1 and exact match of the first line against a question's answers, as CoQA's evaluation has them.

    With several human answers each is left out once and the best of the others counts, so that people are scored by the same rule.
    """
    said, answers = results[0].strip().split("\n")[0], doc["answers"]
    groups = [answers[:i] + answers[i + 1 :] for i in range(len(answers))] if len(answers) > 1 else [answers]
    f1 = sum(max(_f1(one, said) for one in group) for group in groups) / len(groups)
    exact = sum(max(float(_words(one) == _words(said)) for one in group) for group in groups) / len(groups)
    return {"f1": f1, "em": exact}


def answer_exact(doc: Doc, results: list[str]) -> Scores:
    """Whether the first line is one of a question's answers, case, punctuation and articles aside (SQuAD's normalisation)."""
    said = _words(results[0].strip().split("\n")[0])
    return {"exact_match": float(any(_words(answer) == said for answer in doc["answers"]))}


def _words(text: str) -> list[str]:
    """SQuAD's normalisation: lower case, no punctuation, no articles."""
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _f1(answer: str, said: str) -> float:
    right, given = _words(answer), _words(said)
    if not right or not given:
        return float(right == given)
    common = sum((Counter(right) & Counter(given)).values())
    return 2 * common / (len(right) + len(given))


def summary_rouge(doc: Doc, results: list[str]) -> Scores:
    """ROUGE-1, -2, -L (of whole summaries) and their mean, in per cent, of the first three sentences generated (GPT-2, section 3.6)."""
    scores = _rouge().score(doc["summary"], "\n".join(_sentences(results[0])[:3]))
    found = {name: 100 * scores[kind].fmeasure for name, kind in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rougeL", "rougeLsum"))}
    return {**found, "rouge_mean": sum(found.values()) / 3}


@cache
def _rouge() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeLsum"], use_stemmer=True)


def _sentences(text: str) -> list[str]:
    return [piece.strip() for piece in re.split(r"(?<=[.!?])[\"'”’)]*\s+|\n+", text) if piece.strip()]


def translation(doc: Doc, results: list[str]) -> Scores:
    """The first sentence generated beside the reference, for BLEU over the whole set (GPT-2, section 3.7)."""
    return {"bleu": (doc["target"], next(iter(_sentences(results[0])), ""))}
