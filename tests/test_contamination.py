"""What evaluated text shares with training text: GPT-2's 8-grams by a Bloom filter, GPT-3's clean and dirty examples."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from world import story

from gpt_model.evaluation import ngrams
from gpt_model.evaluation.contamination import Examples, marked, split_score

TRAINING = [story(seed, 60) for seed in range(8)]


def test_a_filter_holds_what_was_put_in_and_none_of_a_million_random_strings() -> None:
    """GPT-2, section 4: false positives are bounded by 1e-8, checked with a million random strings, of which none was found."""
    draw = np.random.default_rng(0)
    inside, outside = (draw.integers(0, 2**64, count, dtype=np.uint64) for count in (300_000, 1_000_000))
    made = ngrams.BloomFilter(len(inside))
    made.add(inside)
    assert made.holds(inside).all() and made.holds(outside).sum() == 0
    filled = float(np.unpackbits(made._bits).mean())
    assert filled**made.probes <= 1e-8  # what it comes to by the bits that are set
    assert made.bytes <= 2 * 300_000 * 39 / 8  # 38.9 bits each at the least number, rounded up to a power of two


def test_a_coarser_filter_errs_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    made = ngrams.BloomFilter(12_000, false_positives=0.01)
    made.add(draw.integers(0, 2**64, 12_000, dtype=np.uint64))
    assert 0 < made.holds(draw.integers(0, 2**64, 100_000, dtype=np.uint64)).mean() <= 0.01


def test_words_are_lower_cased_letters_and_digits_and_their_order_counts() -> None:
    words = ngrams.alphanumeric_words("I'm at 36°30' -- the É_end!")
    assert words == ["i", "m", "at", "36", "30", "the", "é", "end"]
    forwards, backwards = ngrams.runs(words, 8), ngrams.runs(words[::-1], 8)
    assert len(forwards) == 1 and forwards[0] != backwards[0] and len(ngrams.runs(words[:7], 8)) == 0


def test_hashes_are_the_same_in_another_process() -> None:
    code = "from gpt_model.evaluation import ngrams; print(ngrams.runs('abcdefghi', 8).tolist())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(ngrams.runs("abcdefghi", 8).tolist())


def test_overlap_is_the_share_of_eight_word_runs_found_whatever_the_punctuation() -> None:
    training = ngrams.filter_of(lambda: TRAINING)
    copied = TRAINING[3].upper().replace(" ", " -- ")
    fresh = " ".join(f"word{n}" for n in range(40))
    assert ngrams.overlap(training, [copied]).percent == 100
    assert ngrams.overlap(training, [fresh, "too short"]) == ngrams.Overlap(0, 33)
    ten = " ".join(ngrams.alphanumeric_words(TRAINING[0])[:10])  # three runs of its own, then some with new words in them
    assert ngrams.overlap(training, [f"{ten} {fresh}"]) == ngrams.Overlap(3, 43)
    assert ngrams.overlap(training, ["too short"]).percent is None


def test_documents_do_not_run_into_one_another() -> None:
    words = ngrams.alphanumeric_words(TRAINING[0])
    training = ngrams.filter_of(lambda: [" ".join(words[:10]), " ".join(words[10:20])])
    assert ngrams.overlap(training, [" ".join(words[:20])]) == ngrams.Overlap(6, 13)


def test_the_run_length_is_the_fifth_percentile_between_eight_and_thirteen() -> None:
    texts = [" ".join(["word"] * count) for count in range(2, 102)]  # the 5th percentile of 2..101 is 6.95
    assert Examples(texts).length == 8
    assert Examples(texts, synthetic=True).length == 6
    assert Examples([text + " more" * 4 for text in texts]).length == 10
    assert Examples([text + " more" * 20 for text in texts]).length == 13
    assert Examples(["\ncasino =", "ocasin = casino"] * 9, synthetic=True).length == 1


def test_one_shared_run_makes_an_example_dirty_and_a_short_one_is_neither() -> None:
    words = ngrams.alphanumeric_words(TRAINING[5])
    fresh = " ".join(f"word{n}" for n in range(30))
    texts = [fresh, f"{fresh} {' '.join(words[20:33])}.", f"{fresh} {' '.join(words[20:32])}", "a few words"]
    found = marked({"long": Examples([*texts, *[fresh] * 60]), "short": Examples([" ".join(words[:8]), fresh] * 20)}, iter(TRAINING))
    assert found["long"][:5] == [False, True, False, None, False]  # 13 words, all but one of them, too few
    assert found["short"] == [True, False] * 20  # its runs have 8 words


def test_scores_are_split_with_intervals_and_numbers() -> None:
    values = [1.0] * 30 + [0.0] * 10 + [1.0] * 5 + [0.0] * 15
    dirty = [True] * 40 + [False] * 18 + [None] * 2
    split = split_score("acc", "mean", values, dirty)
    assert (split["dirty"]["value"], split["dirty"]["examples"]) == (0.75, 40)
    assert (split["clean"]["value"], split["clean"]["examples"]) == (0.25, 20)
    assert split["clean_percent"] == pytest.approx(33.3333) and split["too_short"] == 2
    assert split["clean"]["low"] < 0.25 < split["clean"]["high"] < 0.5 < split["dirty"]["low"] < 0.75 < split["dirty"]["high"]
    assert split_score("acc", "mean", values, [False] * 60)["dirty"] is None
    nats = split_score("perplexity", "perplexity", [-2.0] * 10 + [-1.0] * 10, [True] * 10 + [False] * 10)
    assert nats["clean"]["value"] == pytest.approx(np.e, rel=1e-4) and nats["dirty"]["value"] == pytest.approx(np.e**2, rel=1e-4)
