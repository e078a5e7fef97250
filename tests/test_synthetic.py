"""GPT-3's made-up tasks: arithmetic and word scrambling, as the paper describes them and in the
form of its released files.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from gpt_model.evaluation import synthetic

WORDS = [
    "casino",
    "inevitably",
    "corruption",
    "opponent",
    "succession",
    "objects",
    "level",
    "sassy",
    "there",
    "extraordinarily",
]
RANGES = {"two": 100, "three": 1000, "four": 10_000, "five": 100_000}
SYMBOLS = {"plus": "+", "minus": "-", "times": "*"}


@pytest.mark.parametrize("task", sorted(synthetic.ARITHMETIC))
def test_every_answer_is_right_and_every_problem_another(task: str) -> None:
    problems, others = synthetic.arithmetic(task, 0)
    assert len(problems) == len(others) == 2_000
    assert (
        len({row["context"] for row in problems + others}) == 4_000
    )  # so nothing is asked that was demonstrated
    for row in problems + others:
        (question,) = re.fullmatch(r"\n\nQ: What is (.+)\?\n\nA:", row["context"]).groups()  # type: ignore[union-attr]
        sum_ = " ".join(SYMBOLS.get(word, word) for word in question.split())
        assert set(sum_) <= set("0123456789+-*() ") and row["completion"] == f" {eval(sum_)}", row  # noqa: S307 - digits and signs only


def test_operands_are_uniform_from_zero_and_differences_may_be_negative() -> None:
    for digits, end in RANGES.items():
        rows, _ = synthetic.arithmetic(f"{digits}_digit_subtraction", 3)
        pairs = [list(map(int, re.findall(r"\d+", row["context"]))) for row in rows]
        for operands in zip(*pairs, strict=True):
            assert 0 <= min(operands) < 0.02 * end and 0.98 * end < max(operands) < end
            assert sum(operands) / len(operands) == pytest.approx(end / 2, rel=0.05)
        assert sum(row["completion"].startswith(" -") for row in rows) == pytest.approx(
            1000, abs=100
        )


def test_three_operations_put_the_first_two_in_brackets_as_the_released_problems_do() -> None:
    rows, _ = synthetic.arithmetic("single_digit_three_ops", 0)
    patterns = [
        re.fullmatch(r"\n\nQ: What is \((\d) ([-+*]) (\d)\) ([-+*]) (\d)\?\n\nA:", row["context"])
        for row in rows
    ]
    seconds = Counter(pattern[4] for pattern in patterns if pattern)
    assert None not in patterns and set(seconds) == set("+-*") and min(seconds.values()) > 550


def test_the_same_seed_gives_the_same_problems_and_another_others() -> None:
    assert synthetic.arithmetic("two_digit_addition", 0) == synthetic.arithmetic(
        "two_digit_addition", 0
    )
    assert synthetic.arithmetic("two_digit_addition", 0) != synthetic.arithmetic(
        "two_digit_addition", 1
    )
    once, again = (list(synthetic.scrambled("mid_word_1_anagrams", WORDS, 0)) for _ in range(2))
    assert once == again != list(synthetic.scrambled("mid_word_1_anagrams", WORDS, 1))


def test_words_are_the_most_frequent_of_five_to_fourteen_letters() -> None:
    text = (
        "Casino casino CASINO four opponent opponent extraordinarily objects don't "
        "antidisestablishment 12345"
    )
    assert synthetic.common_words([text]) == ["casino", "opponent", "objects"]
    assert synthetic.common_words([text, "objects objects objects"], limit=1) == ["objects"]


def scrambled(task: str) -> dict[str, str]:
    rows = synthetic.scrambled(task, WORDS, 0)
    pairs = [(row["completion"], re.fullmatch(r"\n(.+) =", row["context"], re.S)) for row in rows]
    return {word.removeprefix(" "): match[1] for word, match in pairs if match}


def test_each_scramble_keeps_what_the_paper_says_it_keeps() -> None:
    cycled = scrambled("cycle_letters_in_word")
    assert len(cycled) == len(WORDS) and all(
        letters != word and letters in word + word for word, letters in cycled.items()
    )
    for retained, task in ((1, "mid_word_1_anagrams"), (2, "mid_word_2_anagrams")):
        shuffled = scrambled(task)
        for word, letters in shuffled.items():
            assert letters != word and sorted(letters) == sorted(word)
            assert letters[:retained] == word[:retained] and letters[-retained:] == word[-retained:]
    assert "level" not in scrambled("mid_word_2_anagrams")  # one letter in the middle
    inserted = scrambled("random_insertion_in_word")
    assert all(
        letters[::2] == word and set(letters[1::2]) <= set(" .!/")
        for word, letters in inserted.items()
    )
    assert scrambled("reversed_words")["objects"] == "stcejbo" and "level" not in scrambled(
        "reversed_words"
    )
