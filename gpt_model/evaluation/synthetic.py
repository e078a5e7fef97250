"""GPT-3's synthetic tasks: arithmetic and word scrambling (Brown et al. 2020, sections 3.9.1 and
3.9.2). Rows only; nothing is scored here.

A row has the form of the released ones (github.com/openai/gpt-3, data/): {"context": "\\n\\nQ: What
is 98 plus 45?\\n\\nA:", "completion": " 143"} and {"context": "\\nasinoc =", "completion": "
casino"}, so that a prompt is rows put one after another. The released problems are not copied:
these are drawn the same way from a seed.
"""

from __future__ import annotations

import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

Row = dict[str, str]
Draw = Callable[[random.Random], tuple[str, int]]

PROBLEMS = 2_000  # of each arithmetic task, section 3.9.1
COMMON_WORDS = 10_000  # the most frequent, section 3.9.2, of
SHORTEST, LONGEST = 5, 14  # "more than 4 characters and less than 15"
INSERTED = " .!/"  # between letters: those of the paper's own examples
_LETTERS = re.compile(r"[^\W\d_]+")
_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def _of_two(digits: int, word: str, operation: Callable[[int, int], int]) -> Draw:
    """Two numbers, each uniform in [0, 10^digits); a difference may be negative."""

    def draw(dice: random.Random) -> tuple[str, int]:
        first, second = dice.randrange(10**digits), dice.randrange(10**digits)
        return f"{first} {word} {second}", operation(first, second)

    return draw


def _composite(dice: random.Random) -> tuple[str, int]:
    """Three digits and two operations. The paper's text puts the last two in brackets, its released
    problems and figure G.42 the first.
    """
    a, b, c = (dice.randrange(10) for _ in range(3))
    first, second = dice.choice("+-*"), dice.choice("+-*")
    return f"({a} {first} {b}) {second} {c}", _OPERATIONS[second](_OPERATIONS[first](a, b), c)


ARITHMETIC: dict[str, Draw] = {  # named as the released files
    "two_digit_addition": _of_two(2, "plus", operator.add),
    "two_digit_subtraction": _of_two(2, "minus", operator.sub),
    "three_digit_addition": _of_two(3, "plus", operator.add),
    "three_digit_subtraction": _of_two(3, "minus", operator.sub),
    "four_digit_addition": _of_two(4, "plus", operator.add),
    "four_digit_subtraction": _of_two(4, "minus", operator.sub),
    "five_digit_addition": _of_two(5, "plus", operator.add),
    "five_digit_subtraction": _of_two(5, "minus", operator.sub),
    "two_digit_multiplication": _of_two(2, "times", operator.mul),
    "single_digit_three_ops": _composite,
}


def arithmetic(task: str, seed: int) -> tuple[list[Row], list[Row]]:
    """(PROBLEMS problems, as many others to demonstrate with), all different. `task` is a name of
    ARITHMETIC.
    """
    dice = random.Random(f"{seed} {task}")
    problems: dict[str, int] = {}
    while len(problems) < 2 * PROBLEMS:
        question, answer = ARITHMETIC[task](dice)
        problems[question] = answer
    rows = [
        {"context": f"\n\nQ: What is {question}?\n\nA:", "completion": f" {answer}"}
        for question, answer in problems.items()
    ]
    return rows[:PROBLEMS], rows[PROBLEMS:]


def common_words(texts: Iterable[str], limit: int = COMMON_WORDS) -> list[str]:
    """The most frequent lower-cased words of SHORTEST to LONGEST letters, ties by the alphabet. The
    paper's are Norvig's, of the web.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(
            word for word in _LETTERS.findall(text.lower()) if SHORTEST <= len(word) <= LONGEST
        )
    return sorted(counts, key=lambda word: (-counts[word], word))[:limit]


def _cycled(word: str, dice: random.Random) -> str:
    start = dice.randrange(1, len(word))
    return word[start:] + word[:start]


def _anagram(fixed: int) -> Callable[[str, random.Random], str]:
    """Shuffles all but the first and last `fixed` letters."""

    def shuffled(word: str, dice: random.Random) -> str:
        middle = list(word[fixed:-fixed])
        dice.shuffle(middle)
        return word[:fixed] + "".join(middle) + word[-fixed:]

    return shuffled


def _with_insertions(word: str, dice: random.Random) -> str:
    return word[0] + "".join(dice.choice(INSERTED) + letter for letter in word[1:])


def _reversed(word: str, dice: random.Random) -> str:
    return word[::-1]


SCRAMBLES: dict[str, Callable[[str, random.Random], str]] = {  # named as the released files
    "cycle_letters_in_word": _cycled,  # CL
    "mid_word_1_anagrams": _anagram(1),  # A1
    "mid_word_2_anagrams": _anagram(2),  # A2
    "random_insertion_in_word": _with_insertions,  # RI
    "reversed_words": _reversed,  # RW
}
TRIES = 20  # of a shuffle, to get another word out of one


def scrambled(task: str, words: Iterable[str], seed: int) -> Iterator[Row]:
    """A row a word, but for words that stay what they are (a palindrome reversed). `task` is a name
    of SCRAMBLES.
    """
    for word in words:
        dice = random.Random(f"{seed} {task} {word}")
        tries = (SCRAMBLES[task](word, dice) for _ in range(TRIES))
        if (letters := next((tried for tried in tries if tried != word), None)) is not None:
            yield {"context": f"\n{letters} =", "completion": f" {word}"}
