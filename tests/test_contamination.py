"""What evaluated text shares with training text: GPT-2's 8-grams, GPT-3's clean and dirty
examples.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
from world import story

from gpt_model.evaluation import contamination
from gpt_model.evaluation.contamination import (
    Examples,
    NgramOverlap,
    TaskOverlap,
    alphanumeric_words,
    run_hashes,
)
from gpt_model.evaluation.results import TrainingOverlap

TRAINING = [story(seed, 60) for seed in range(8)]


def found_in(training: Iterable[str], texts: Sequence[str]) -> contamination.Hashes:
    """The 8-grams of `texts` that stand in `training`."""
    runs = [run_hashes(alphanumeric_words(text), contamination.NGRAM) for text in texts]
    return contamination.runs_in(training, {contamination.NGRAM: np.concatenate(runs)})[
        contamination.NGRAM
    ]


def test_the_overlap_is_that_of_a_set_of_the_training_texts_own_runs() -> None:
    """The paper's way round, without hashes or filter: every 8 words of the training text in a set,
    the evaluated text looked up in it.
    """
    texts = [story(seed, 40) for seed in range(4, 12)] + [
        TRAINING[2][100:900] + " " + story(30, 5),
        "too short",
    ]

    def eights(text: str) -> list[tuple[str, ...]]:
        words = alphanumeric_words(text)
        return [tuple(words[at : at + 8]) for at in range(len(words) - 7)]

    training_runs = {run for text in TRAINING for run in eights(text)}
    looked_up = [run in training_runs for text in texts for run in eights(text)]
    assert 0 < sum(looked_up) < len(looked_up)
    assert contamination.ngram_overlap(found_in(TRAINING, texts), texts) == NgramOverlap(
        sum(looked_up), len(looked_up)
    )


@pytest.mark.slow
def test_none_of_a_million_random_strings_is_found() -> None:
    """GPT-2, section 4, has of a million random strings none in its filter."""
    draw = np.random.default_rng(0)
    texts, strings = (
        [f"{TRAINING[0]} {TRAINING[1]}"],
        draw.integers(0, 2**64, 1_000_000, dtype=np.uint64),
    )
    runs = np.concatenate([strings, run_hashes(alphanumeric_words(texts[0]), 8)])
    seen = contamination.runs_in(TRAINING, {8: runs})[8]
    assert len(seen) > 100 and not np.isin(strings, seen).any()


@pytest.mark.slow
def test_memory_follows_from_the_evaluated_text_and_not_from_the_training_text() -> None:
    def many() -> Iterator[
        str
    ]:  # 1.6 million 8-grams, of which a Bloom filter takes 8 MB and a list of hashes 13
        words = [f"w{n}" for n in range(2000)]
        draw = random.Random(1)
        yield from (" ".join(draw.choices(words, k=2007)) for _ in range(800))

    tracemalloc.start()
    seen = found_in(many(), [TRAINING[0]])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(seen) == 0 and peak < 3_000_000


def test_words_are_lower_cased_letters_and_digits_and_their_order_counts() -> None:
    words = alphanumeric_words("I'm at 36°30' -- the É_end!")
    assert words == ["i", "m", "at", "36", "30", "the", "é", "end"]
    forwards, backwards = run_hashes(words, 8), run_hashes(words[::-1], 8)
    assert len(forwards) == 1 and forwards[0] != backwards[0] and len(run_hashes(words[:7], 8)) == 0


def test_hashes_are_the_same_in_another_process() -> None:
    code = (
        "from gpt_model.evaluation.contamination import run_hashes; "
        "print(run_hashes('abcdefghi', 8).tolist())"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == str(run_hashes("abcdefghi", 8).tolist())


def test_overlap_is_the_share_of_eight_word_runs_found_whatever_the_punctuation() -> None:
    def overlap(texts: Sequence[str]) -> NgramOverlap:
        return contamination.ngram_overlap(found_in(TRAINING, texts), texts)

    copied = TRAINING[3].upper().replace(" ", " -- ")
    fresh = " ".join(f"word{n}" for n in range(40))
    assert overlap([copied]).percent == 100
    assert overlap([fresh, "too short"]) == NgramOverlap(0, 33)
    ten = " ".join(
        alphanumeric_words(TRAINING[0])[:10]
    )  # three runs of its own, then some with new words in them
    assert overlap([f"{ten} {fresh}"]) == NgramOverlap(3, 43)
    assert overlap(["too short"]).percent is None


def test_documents_do_not_run_into_one_another() -> None:
    words = alphanumeric_words(TRAINING[0])
    texts = [" ".join(words[:20])]
    assert contamination.ngram_overlap(
        found_in([" ".join(words[:10]), " ".join(words[10:20])], texts), texts
    ) == NgramOverlap(6, 13)


def test_the_run_length_is_the_fifth_percentile_between_eight_and_thirteen() -> None:
    texts = [
        " ".join(["word"] * count) for count in range(2, 102)
    ]  # the 5th percentile of 2..101 is 6.95
    assert Examples(texts).run == 8
    assert Examples(texts, synthetic=True).run == 6
    assert Examples([text + " more" * 4 for text in texts]).run == 10
    assert Examples([text + " more" * 20 for text in texts]).run == 13
    assert Examples(["\ncasino =", "ocasin = casino"] * 9, synthetic=True).run == 1


def test_one_shared_run_makes_an_example_dirty_and_a_short_one_is_neither() -> None:
    words = alphanumeric_words(TRAINING[5])
    fresh = " ".join(f"word{n}" for n in range(30))
    texts = [
        fresh,
        f"{fresh} {' '.join(words[20:33])}.",
        f"{fresh} {' '.join(words[20:32])}",
        "a few words",
    ]
    long, short = Examples([*texts, *[fresh] * 60]), Examples([" ".join(words[:8]), fresh] * 20)
    seen = contamination.runs_in(
        iter(TRAINING), contamination.runs_of([long, short])
    )  # a stream that is read once
    assert contamination.dirty_examples(long, seen)[:5] == [
        False,
        True,
        False,
        None,
        False,
    ]  # 13 words, all but one of them, too few
    assert contamination.dirty_examples(short, seen) == [True, False] * 20  # its runs have 8 words


def test_scores_are_split_with_intervals_and_numbers() -> None:
    def split(
        metric: str, aggregation: str, values: Sequence[float], dirty: list[bool | None]
    ) -> TrainingOverlap:
        return TaskOverlap(NgramOverlap(1, 4), 8, dirty).split_score(metric, aggregation, values)

    values = [1.0] * 30 + [0.0] * 10 + [1.0] * 5 + [0.0] * 15
    overlap = split("acc", "mean", values, [True] * 40 + [False] * 18 + [None] * 2)
    clean, dirty = overlap.clean, overlap.dirty
    assert clean and clean.low and clean.high and dirty and dirty.low and dirty.high
    assert (dirty.value, dirty.examples) == (0.75, 40)
    assert (clean.value, clean.examples) == (0.25, 20)
    assert overlap.clean_percent == pytest.approx(33.3333) and overlap.too_short == 2
    assert clean.low < 0.25 < clean.high < 0.5 < dirty.low < 0.75 < dirty.high
    assert str(overlap) == (
        "25 % of its 8-grams stand in the training text; "
        "0.25 on the 33.3 % of examples that share no 8 words in a row with it"
    )
    assert split("acc", "mean", values, [False] * 60).dirty is None
    nats = split("perplexity", "perplexity", [-2.0] * 10 + [-1.0] * 10, [True] * 10 + [False] * 10)
    assert nats.clean and nats.clean.value == pytest.approx(np.e, rel=1e-4)
    assert nats.dirty and nats.dirty.value == pytest.approx(np.e**2, rel=1e-4)
