"""Task inputs as token sequences (Radford et al. 2018, section 3.3 and figure 1). No weights.

    classification   Start text Extract
    entailment       Start premise Delim hypothesis Extract
    similarity       Start first Delim second Extract  and  Start second Delim first Extract, final states added
    multiple choice  Start [context question] Delim option Extract  for each option, a scalar each, softmax over them

Start, Delim and Extract are three ids after the vocabulary's last. What does not fit the context is
cut from the ends of segments: of the longest, so that as much is read as there is room for, or of a
gpt1's two segments each at half the context (`cut_of`).
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

SPECIALS = ("<|start|>", "<|delim|>", "<|extract|>")
Cut = Literal["longest", "halves"]


def cut_of(family: Family) -> Cut:
    """How a family's inputs are cut. The released code (train.py) cuts each of two segments at
    n_ctx//2 - 2 tokens, however short the other is, which halves a passage beside a short question:
    so that is kept to the model it was written for.
    """
    return "halves" if family == "gpt1" else "longest"


@dataclass(frozen=True)
class Laid:
    """An example ready for the model: one row of token ids for each pass it needs, Extract last in
    each.
    """

    id: str
    group: str
    rows: tuple[tuple[int, ...], ...]
    label: int
    cut: bool  # something did not fit the context
    rating: float | None = None
    target: tuple[float, ...] = ()  # how much of each class is right, where not `label` is
    part: str = ""  # of the test split

    @property
    def length(self) -> int:
        """Of the longest row, tokens."""
        return max(len(row) for row in self.rows)


@dataclass(frozen=True)
class Layout:
    """How examples of a form become rows, for a vocabulary and a context."""

    form: Form
    vocab_size: int  # without the three specials
    context: int
    cut: Cut = "longest"

    def __post_init__(self) -> None:
        if self.context < 8:
            raise UserError(
                f"A context of {self.context} tokens does not hold a task's three special tokens and its text: use at least 8."
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

    def lay(self, tokenizer: Tokenizer, examples: Sequence[Example]) -> list[Laid]:
        """`examples` as rows of token ids, in their order."""
        texts = [text for example in examples for text in (*example.segments, *example.options)]
        ids = iter(tokenizer.encode_batch(texts))
        laid = []
        for example in examples:
            segments = [next(ids) for _ in example.segments]
            options = [next(ids) for _ in example.options]
            rows, cut = zip(
                *(self._row(parts) for parts in self._passes(segments, options)), strict=True
            )
            how = (example.label, any(cut), example.rating, example.target, example.part)
            laid.append(Laid(example.id, example.group, tuple(rows), *how))
        return laid

    def _passes(self, segments: list[list[int]], options: list[list[int]]) -> list[list[list[int]]]:
        if self.form == "similarity":
            return [segments, segments[::-1]]
        if self.form == "multiple_choice":
            return [[*segments, option] for option in options]
        return [segments]

    def _row(self, segments: list[list[int]]) -> tuple[tuple[int, ...], bool]:
        lengths = [len(segment) for segment in segments]
        if self.cut == "halves" and len(segments) > 1:
            kept = [min(length, self.context // 2 - 2) for length in lengths]
        else:
            kept = fit(lengths, self.context - len(segments) - 1)
        row = [self.start]
        for i, (segment, length) in enumerate(zip(segments, kept, strict=True)):
            row += [*([self.delim] if i else []), *segment[:length]]
        return (*row, self.extract), kept != lengths


def fit(lengths: list[int], budget: int) -> list[int]:
    """Lengths that sum to at most `budget`, the longest shortened first: `fit([9, 2], 8)` is [6,
    2].
    """
    kept = list(lengths)
    while (over := sum(kept) - budget) > 0:
        longest = max(range(len(kept)), key=kept.__getitem__)
        next_longest = max((length for i, length in enumerate(kept) if i != longest), default=0)
        kept[longest] -= min(over, max(1, kept[longest] - next_longest))
    return kept
