"""GPT-1's four input forms: a task's texts as token sequences (Radford et al. 2018, section 3.3 and
figure 1). No weights.

    classification   Start text Extract
    entailment       Start premise Delim hypothesis Extract
    similarity       Start first Delim second Extract  and  Start second Delim first Extract;
                     the head reads the sum of both states at Extract
    multiple choice  Start [context question] Delim option Extract  for each option; a scalar for
                     each, softmax over them

Start, Delim and Extract are the three ids after the vocabulary's last. Segments that exceed the
context are truncated at their ends (`truncation_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpt_model.config import Family
from gpt_model.errors import UserError
from gpt_model.finetuning.entry import Form
from gpt_model.finetuning.examples import Example
from gpt_model.tokenizer import Tokenizer

SPECIAL_TOKENS = ("<|start|>", "<|delim|>", "<|extract|>")
SHORTEST_CONTEXT = 8  # the special tokens, and some text of each segment
# "longest": the longest segment first, so that as much is read as fits. "halves": of two segments
# each at half the context.
Truncation = Literal["longest", "halves"]


def truncation_of(family: Family) -> Truncation:
    """How a family's inputs are truncated. The released code (train.py) cuts each of two segments
    at n_ctx//2 - 2 tokens, however short the other is, which halves a passage beside a short
    question: so only the model it was written for does that.
    """
    return "halves" if family == "gpt1" else "longest"


@dataclass(frozen=True)
class EncodedExample:
    """An example ready for the model: one row of token ids for each pass it needs, Extract last in
    each.
    """

    id: str
    group: str
    rows: tuple[tuple[int, ...], ...]
    label: int
    cut: int  # tokens by which its texts exceeded the context, the most of a pass
    rating: float | None = None
    target: tuple[float, ...] = ()  # the share of each class, where not `label` alone is right
    part: str = ""  # of the test split

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(len(row) for row in self.rows)


@dataclass(frozen=True)
class InputFormat:
    """How examples of a form become rows, for a vocabulary and a context."""

    form: Form
    vocab_size: int  # without the special tokens
    context: int
    cut: Truncation = "longest"

    def __post_init__(self) -> None:
        if self.context < SHORTEST_CONTEXT:
            raise UserError(
                f"A context of {self.context} tokens does not hold a task's three special tokens "
                f"and its text: use at least {SHORTEST_CONTEXT}."
            )

    @property
    def start(self) -> int:
        return self.vocab_size

    @property
    def delim(self) -> int:
        return self.vocab_size + 1

    @property
    def extract(self) -> int:
        return self.vocab_size + 2

    def encode(self, tokenizer: Tokenizer, examples: Sequence[Example]) -> list[EncodedExample]:
        """`examples` as rows of token ids, in their order."""
        texts = [text for example in examples for text in (*example.segments, *example.options)]
        ids = iter(tokenizer.encode_batch(texts))
        encoded = []
        for example in examples:
            segments = [next(ids) for _ in example.segments]
            options = [next(ids) for _ in example.options]
            passes = self._passes(segments, options)
            rows, cut = zip(*(self._row(segments) for segments in passes), strict=True)
            encoded.append(
                EncodedExample(
                    example.id,
                    example.group,
                    tuple(rows),
                    example.label,
                    max(cut),
                    example.rating,
                    example.target,
                    example.part,
                )
            )
        return encoded

    def _passes(self, segments: list[list[int]], options: list[list[int]]) -> list[list[list[int]]]:
        """The segments of each pass through the model."""
        if self.form == "similarity":
            return [segments, segments[::-1]]
        if self.form == "multiple_choice":
            return [[*segments, option] for option in options]
        return [segments]

    def _row(self, segments: list[list[int]]) -> tuple[tuple[int, ...], int]:
        """One pass as token ids, and how many were cut off."""
        lengths = [len(segment) for segment in segments]
        if self.cut == "halves" and len(segments) > 1:
            fitting = [min(length, self.context // 2 - 2) for length in lengths]
        else:
            fitting = truncated(lengths, self.context - len(segments) - 1)
        row = [self.start]
        for number, (segment, length) in enumerate(zip(segments, fitting, strict=True)):
            row += [*([self.delim] if number else []), *segment[:length]]
        return (*row, self.extract), sum(lengths) - sum(fitting)


def truncated(lengths: list[int], budget: int) -> list[int]:
    """Lengths that sum to at most `budget`, the longest shortened first: `truncated([9, 2], 8)` is
    [6, 2].
    """
    result = list(lengths)
    while (excess := sum(result) - budget) > 0:
        longest = max(range(len(result)), key=result.__getitem__)
        others = (length for index, length in enumerate(result) if index != longest)
        second = max(others, default=0)
        result[longest] -= min(excess, max(1, result[longest] - second))
    return result
