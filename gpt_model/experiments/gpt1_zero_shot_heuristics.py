"""GPT-1's zero-shot heuristics (Radford et al. 2018, section 5, "Zero-shot Behaviors"): what a
decoder can do that was only pre-trained.

    sentiment       "very" after the text; whichever of positive and negative is likelier next
    acceptability   the mean log-probability of a sentence's tokens, against a threshold
    pronouns        both referents in the pronoun's place; the one with the higher mean
                    log-probability of what follows
    questions       after document and question, the answer with the highest mean
                    log-probability

Where examples come from, and what they stand in for, is
`gpt1_figure2_right_zero_shot_dynamics.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch

from gpt_model.finetuning.examples import Example
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.batching import token_batches
from gpt_model.training.engine import ALONE, Execution
from gpt_model.training.shared_batches import results_of_items
from gpt_model.transformer import IGNORED, Decoder

PRONOUN = re.compile(r"\b(he|she|they|him|her|them|his|hers|their|theirs)\b", re.IGNORECASE)
SENTIMENTS = (" negative", " positive")  # in class order


@dataclass(frozen=True)
class Scored:
    """A row of tokens, of which those from `start` on are scored. `start` is at least 1: the first
    token is nothing's next.
    """

    ids: tuple[int, ...]
    start: int


@torch.no_grad()
def log_probabilities(
    model: Decoder, rows: Sequence[Scored], execution: Execution = ALONE
) -> list[tuple[float, int]]:
    """Of each row, the log-probability in nats of its scored tokens together, and their number.
    Collective where there are several ranks.

    A row longer than the context loses its beginning; of scored tokens alone longer than that, the
    later ones count.
    """
    cut = [_cut(row, model.config.context) for row in rows]
    lengths = [len(row.ids) - 1 for row in cut]  # the last token is only predicted

    def read(chosen: Sequence[int]) -> list[tuple[float, int]]:
        device = model.wte.weight.device
        longest = max(1, lengths[chosen[0]])
        tokens = torch.zeros(len(chosen), longest, dtype=torch.long)  # [batch, time]
        targets = torch.full((len(chosen), longest), IGNORED)
        for row, i in enumerate(chosen):
            ids = torch.tensor(cut[i].ids)
            tokens[row, : len(ids) - 1] = ids[:-1]
            targets[row, cut[i].start - 1 : len(ids) - 1] = ids[cut[i].start :]
        losses = (
            model.loss_by_token(tokens.to(device), targets.to(device))
            .sum(1, dtype=torch.float64)
            .tolist()
        )
        return [
            (-loss, len(cut[i].ids) - cut[i].start) for loss, i in zip(losses, chosen, strict=True)
        ]

    batches = token_batches(lengths, order="longest", padded=True)
    return results_of_items(read, batches, execution, model)


def _cut(row: Scored, context: int) -> Scored:
    over = len(row.ids) - context - 1
    return row if over <= 0 else Scored(row.ids[over:], max(1, row.start - over))


def mean_log_probabilities(
    model: Decoder, rows: Sequence[Scored], execution: Execution = ALONE
) -> list[float]:
    """Nats a scored token of each row."""
    return [total / max(1, count) for total, count in log_probabilities(model, rows, execution)]


# The four heuristics: each answers every example. Collective where there are several ranks.


def sentiments(
    model: Decoder, tokenizer: Tokenizer, texts: Sequence[str], execution: Execution = ALONE
) -> list[int]:
    """1 where " positive" is likelier than " negative" after the text and "very", else 0."""
    sentiments = [tokenizer.encode(sentiment) for sentiment in SENTIMENTS]
    rows = []
    for text in texts:
        before = (tokenizer.end_of_text, *tokenizer.encode(f"{text} very"))
        rows += [Scored((*before, *sentiment), len(before)) for sentiment in sentiments]
    return _likelier([total for total, _ in log_probabilities(model, rows, execution)], 2)


def acceptability(
    model: Decoder, tokenizer: Tokenizer, sentences: Sequence[str], execution: Execution = ALONE
) -> list[float]:
    """Nats a token of each sentence; `threshold` makes answers of them."""
    return mean_log_probabilities(
        model,
        [Scored((tokenizer.end_of_text, *tokenizer.encode(sentence)), 1) for sentence in sentences],
        execution,
    )


def threshold(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Above which a score means 1, so that most of these labels are met: chosen on examples that
    are not then tested on.
    """
    pairs = sorted(zip(scores, labels, strict=True))
    right = sum(labels)  # everything above
    best, at = right, float("-inf")
    for (score, label), following in zip(pairs, [*pairs[1:], (float("inf"), 0)], strict=True):
        right += 1 if label == 0 else -1
        if right > best and following[0] > score:
            best, at = right, (score + following[0]) / 2 if following[0] != float("inf") else score
    return at


def referents(
    model: Decoder,
    tokenizer: Tokenizer,
    sentences: Sequence[Substitution],
    execution: Execution = ALONE,
) -> list[int]:
    """Which referent is likelier in the pronoun's place, by the mean log-probability of the rest of
    the sentence.
    """
    rows = []
    for sentence in sentences:
        for referent in sentence.referents:
            before = (tokenizer.end_of_text, *tokenizer.encode(sentence.before + referent))
            rows.append(Scored((*before, *tokenizer.encode(sentence.after)), len(before)))
    return _likelier(mean_log_probabilities(model, rows, execution), 2)


def answers(
    model: Decoder, tokenizer: Tokenizer, questions: Sequence[Example], execution: Execution = ALONE
) -> list[int]:
    """The option of each question with the highest mean log-probability after its text."""
    rows = []
    for question in questions:
        before = (tokenizer.end_of_text, *tokenizer.encode(" ".join(question.segments)))
        rows += [
            Scored((*before, *tokenizer.encode(f" {option}")), len(before))
            for option in question.options
        ]
    means = iter(mean_log_probabilities(model, rows, execution))
    chosen = []
    for question in questions:
        scores = [next(means) for _ in question.options]
        chosen.append(max(range(len(scores)), key=scores.__getitem__))
    return chosen


def _likelier(scores: Sequence[float], each: int) -> list[int]:
    return [
        max(range(each), key=scores[i : i + each].__getitem__) for i in range(0, len(scores), each)
    ]


# Pronouns.


@dataclass(frozen=True)
class Substitution:
    """A sentence round its pronoun, and the two texts that may stand in its place."""

    before: str
    referents: tuple[str, str]
    after: str
    label: int


def resolution(question: Example) -> Substitution | None:
    """Of a question whose options are the referents, a _ where the pronoun was, or are readings of
    its one pronoun, "Ambiguous" left out.

    None where it is neither, or where it is ambiguous that is right.
    """
    sentence, right = question.segments[-1], question.options[question.label]
    named = [option for option in question.options if option != "Ambiguous"]
    if len(named) != 2 or right not in named:
        return None
    if sentence.count("_") == 1:
        before, after = sentence.split("_")
        return (
            Substitution(before, (named[0], named[1]), after, named.index(right))
            if after.strip(" .!?")
            else None
        )
    return substitution(sentence, (named[0], named[1]), named.index(right))


def substitution(sentence: str, readings: tuple[str, str], label: int) -> Substitution | None:
    """From a sentence with one pronoun and a reading of it for each referent: "The visitor liked
    it", "The teacher liked it".

    What the readings differ in are the referents. None where there is not one pronoun, or nothing
    follows it.
    """
    pronouns = list(PRONOUN.finditer(sentence))
    first, second = (reading.split() for reading in readings)
    head = _alike(first, second)
    tail = _alike(first[head:][::-1], second[head:][::-1])
    if len(pronouns) != 1:
        return None
    article = "the " if head and first[head - 1].lower() == "the" else ""
    named = tuple(
        article + _lowered(" ".join(reading[head : len(reading) - tail]), sentence)
        for reading in (first, second)
    )
    before, after = sentence[: pronouns[0].start()], sentence[pronouns[0].end() :]
    if not after.strip(" .!?") or not all(named):
        return None
    return Substitution(before, (named[0], named[1]), after, label)


def _alike(first: Sequence[str], second: Sequence[str]) -> int:
    """How many words the two have in common from the beginning, whatever their case."""
    return sum(
        1
        for _ in takewhile(
            lambda pair: pair[0].lower() == pair[1].lower(), zip(first, second, strict=False)
        )
    )


def _lowered(referent: str, sentence: str) -> str:
    """A referent that a reading began with, in the case it has in the sentence: "We" as "we",
    "Sam" as it is.
    """
    return (
        referent
        if referent.removesuffix("'s") in sentence or referent[:1].islower()
        else referent[:1].lower() + referent[1:]
    )
