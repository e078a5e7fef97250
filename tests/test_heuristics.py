"""GPT-1's zero-shot heuristics, the visible context and the LSTM, as libraries: each against a
computation written out here.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt_model import GPT, ModelConfig
from gpt_model.data import shards
from gpt_model.data.shards import SourceTexts, TokenData
from gpt_model.experiments import gpt1_zero_shot_heuristics as heuristics
from gpt_model.experiments.gpt1_section1_visible_context import (
    bits_saved,
    draw_positions,
    nats_by_context,
)
from gpt_model.experiments.gpt1_zero_shot_heuristics import Scored, Substitution
from gpt_model.finetuning.examples import Example
from gpt_model.lstm import build
from gpt_model.statistics import bits_per_byte_interval
from gpt_model.tokenizer import Tokenizer

TEXT = "the cat sat on the mat and the dog ran to the very good end of the very bad road "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT * 20], vocab_size=280)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    return GPT(
        ModelConfig(layers=2, width=32, heads=2, context=32, vocab_size=tokenizer.vocab_size),
        seed=2,
    ).eval()


def direct(model: torch.nn.Module, ids: tuple[int, ...], start: int) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
    return sum(float(logits[i - 1, ids[i]]) for i in range(start, len(ids)))


def test_rows_of_any_length_are_scored_as_each_would_be_alone_and_long_ones_keep_their_end(
    model: GPT,
) -> None:
    draw = np.random.default_rng(0)
    rows = [
        Scored(tuple(int(i) for i in draw.integers(0, 200, length)), 1 + length // 2)
        for length in (2, 5, 33, 33, 17, 60)
    ]
    log_probabilities = heuristics.log_probabilities(model, rows)
    for row, (total, count) in zip(rows, log_probabilities, strict=True):
        ids, start = row.ids[-33:], max(1, row.start - max(0, len(row.ids) - 33))
        assert count == len(ids) - start
        assert total == pytest.approx(direct(model, ids, start), abs=1e-4)


def test_sentiment_is_the_likelier_of_positive_and_negative_after_very(
    model: GPT, tokenizer: Tokenizer
) -> None:
    texts = ["the cat sat", "the dog ran to the road", "good"]
    expected = []
    for text in texts:
        before = [tokenizer.end_of_text, *tokenizer.encode(f"{text} very")]
        words = [tokenizer.encode(word) for word in (" negative", " positive")]
        expected.append(
            int(np.argmax([direct(model, (*before, *word), len(before)) for word in words]))
        )
    assert heuristics.sentiments(model, tokenizer, texts) == expected


def test_a_threshold_meets_the_most_labels_it_can() -> None:
    assert heuristics.threshold([-3.0, -2.0, -1.0, 0.0], [0, 0, 1, 1]) == -1.5
    draw = np.random.default_rng(1)
    scores, labels = draw.normal(size=60).round(1).tolist(), draw.integers(0, 2, 60).tolist()
    at = heuristics.threshold(scores, labels)

    def right(cut: float) -> int:
        return sum(int(score > cut) == label for score, label in zip(scores, labels, strict=True))

    assert right(at) == max(right(cut) for cut in [-math.inf, *scores, math.inf])


def test_answers_and_referents_go_by_the_mean_over_their_tokens_not_the_sum(
    model: GPT, tokenizer: Tokenizer
) -> None:
    question = Example("0", "g", ("the cat",), ("sat on the mat and ran", "ran"), 0)
    before = (tokenizer.end_of_text, *tokenizer.encode("the cat"))
    means = []
    for option in question.options:
        ids = tokenizer.encode(f" {option}")
        means.append(direct(model, (*before, *ids), len(before)) / len(ids))
    assert heuristics.answers(model, tokenizer, [question]) == [int(np.argmax(means))]

    sentence = Substitution("the cat saw the dog and ", ("the cat", "the dog"), " ran", 1)
    rest = tokenizer.encode(" ran")
    likely = []
    for referent in sentence.referents:
        ids = (tokenizer.end_of_text, *tokenizer.encode(sentence.before + referent))
        likely.append(direct(model, (*ids, *rest), len(ids)))
    assert heuristics.referents(model, tokenizer, [sentence]) == [int(np.argmax(likely))]


@pytest.mark.parametrize(
    ("question", "options", "right", "expected"),
    [
        (
            "The nurse told the guest that she was late.",
            ("The nurse was late", "The guest was late", "Ambiguous"),
            1,
            Substitution(
                "The nurse told the guest that ", ("the nurse", "the guest"), " was late.", 1
            ),
        ),
        (
            "After meeting the editors, Kim went to her desk.",
            ("The desk was the editors' desk", "The desk was Kim's desk", "Ambiguous"),
            1,
            Substitution(
                "After meeting the editors, Kim went to ", ("the editors'", "Kim's"), " desk.", 1
            ),
        ),
        (
            "The cup does not fit the box because _ is too big.",
            ("the cup", "the box"),
            0,
            Substitution(
                "The cup does not fit the box because ", ("the cup", "the box"), " is too big.", 0
            ),
        ),
        (
            "The nurse told the guest that she was late.",
            ("The nurse was late", "The guest was late", "Ambiguous"),
            2,
            None,
        ),
        ("Kim met Sam, and he left.", ("Sam left", "left"), 0, None),  # one of them names nobody
        ("Kim met Sam, and he left.", ("left", "left"), 0, None),  # neither does
        (
            "Kim met Sam when he left early.",
            ("Kim left Early", "Sam left early"),
            1,
            Substitution("Kim met Sam when ", ("Kim", "Sam"), " left early.", 1),
        ),
        (
            "The nurse met the cook when she left.",
            ("The nurse the nurse left", "The nurse left"),
            0,
            None,
        ),  # alike from both ends
        ("She said that he left.", ("Ann left", "Bob left"), 1, None),  # two pronouns
        (
            "The nurse thanked her.",
            ("The nurse thanked the guest", "The nurse thanked the cook"),
            0,
            None,
        ),  # nothing follows
    ],
)
def test_what_a_pronouns_readings_differ_in_takes_its_place(
    question: str, options: tuple[str, ...], right: int, expected: Substitution | None
) -> None:
    assert heuristics.resolution(Example("0", question, (question,), options, right)) == expected


def test_a_visible_context_of_k_is_exactly_the_last_k_tokens(
    model: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    documents = {"training": [TEXT], "held_out": [TEXT * 3, "the end of the road "]}
    shards.write(tmp_path, {"it": SourceTexts(1.0, documents)}, tokenizer)
    data = TokenData(tmp_path)
    tokens = data.tokens("it", "held_out")[:].astype(int)
    at = draw_positions(data, "it", 16, 12, seed=1)
    assert len(at) == 12 and at.min() >= 16 and tokenizer.end_of_text not in tokens[at]
    nats = nats_by_context(model, data, "it", at, [1, 5, 16])
    for row, location in enumerate(at):
        for column, k in enumerate((1, 5, 16)):
            alone = direct(model, tuple(tokens[location - k : location + 1]), k)
            assert nats[row, column] == pytest.approx(-alone, abs=1e-4)
    sizes = data.byte_lengths[tokens[at]].astype(int)
    all_seen = bits_per_byte_interval(nats[:, 2], sizes)
    assert (
        all_seen.value == pytest.approx(nats[:, 2].sum() / math.log(2) / sizes.sum())
        and all_seen.low < all_seen.value < all_seen.high
    )
    saved = bits_saved(nats[:, 0], nats[:, 2], sizes)
    assert (
        saved.value
        == pytest.approx(bits_per_byte_interval(nats[:, 0], sizes).value - all_seen.value)
        and saved.low < saved.value < saved.high
    )


def test_the_lstm_learns_and_ends_where_its_seed_says() -> None:
    config = ModelConfig(
        family="lstm", layers=1, width=32, heads=1, context=24, vocab_size=40, dropout=0.1
    )
    tokens = torch.arange(25).repeat(4, 1) % 7
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        model = build(config, seed=5)
        assert (
            sum(weight.numel() for weight in model.parameters())
            == config.parameters()
            == 40 * 32 + 8 * 32 * 32 + 8 * 32
        )
        first = float(model(tokens[:, :-1], tokens[:, 1:]).detach())
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for _ in range(120):
            loss = model(tokens[:, :-1], tokens[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append(float(loss.detach()))
    assert ends[0] == ends[1] < 0.3 * first
    model.eval()
    with torch.no_grad():  # what follows changes nothing of what came before
        assert torch.allclose(model(tokens[:, :9]), model(tokens[:, :24])[:, :9], atol=1e-6)
        expected = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        assert float(model.loss(tokens[:, :-1], tokens[:, 1:])) == pytest.approx(
            float(expected), abs=1e-5
        )
