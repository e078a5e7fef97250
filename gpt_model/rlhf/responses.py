"""Answers of a model to prompts, many at once. What an answer is worth is the reward model's matter
(`reward.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from gpt_model.generation import generate
from gpt_model.rlhf.dialogue import Dialogue
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.batching import consecutive_batches
from gpt_model.transformer import GPT

ROWS = 64  # answers that are written together: what a CPU decodes fastest


class Asks(Protocol):
    """How a prompt becomes tokens: a `Layout`, or plain text."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def end(self) -> int: ...

    def prompt(self, turns: Dialogue) -> list[int]: ...


@dataclass(frozen=True)
class PlainText:
    """For a model that knows no markers: the turns as the beginning of a text, a line each. An
    answer's opening words are gone on with.
    """

    tokenizer: Tokenizer

    @property
    def end(self) -> int:
        return self.tokenizer.end_of_text

    def prompt(self, turns: Dialogue) -> list[int]:
        text = "\n".join(turn.text for turn in turns)
        return [
            self.end,
            *self.tokenizer.encode(text if turns[-1].role == "assistant" else f"{text}\n"),
        ]


@dataclass(frozen=True)
class Answer:
    """`text`: the continuation as it was written, without the end; after opening words its space is
    kept.
    """

    text: str
    tokens: list[int]  # with the end, where it ended
    ended: bool  # by the model itself; else it was cut at the longest allowed
    prompt_cut: bool = False  # the prompt's first turns did not fit the context
    nats: float = field(
        default=math.nan, compare=False
    )  # log-probability of its tokens, at their temperature, where it was noted

    @property
    def empty(self) -> bool:
        """Whether it says nothing. Such an answer stays one: it is scored and counted as all others
        are.
        """
        return not self.text.strip()


def answer(
    model: GPT,
    layout: Asks,
    prompts: Sequence[Dialogue],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    copies: int = 1,
    noting: bool = False,
) -> list[Answer]:
    """`copies` answers to each prompt, a prompt's after another's; their `nats` if `noting`. What
    is drawn depends on seed and prompt.
    """
    room = max(model.config.context // 2, model.config.context - max_new_tokens)
    laid = [_prompt(layout, prompt, room) for prompt in prompts for _ in range(copies)]
    found: list[Answer | None] = [None] * len(laid)
    for part in _parts([tokens for tokens, _ in laid]):
        rows = [laid[number][0] for number in part]
        noted = _Noted(len(rows), temperature) if noting else None
        written = generate(
            model, rows, max_new_tokens, temperature, seed=seed, stop=(layout.end,), on_choice=noted
        )
        known = noted.nats.tolist() if noted else [math.nan] * len(rows)
        for number, tokens, nats in zip(part, written, known, strict=True):
            ended = len(tokens) < max_new_tokens
            text = layout.tokenizer.decode(tokens)
            found[number] = Answer(
                text, [*tokens, layout.end] if ended else tokens, ended, laid[number][1], nats
            )
    return [one for one in found if one is not None]


class _Noted:
    """Log-probability of what was written in each row so far, its end among it: [rows]. Of the
    likeliest tokens, at temperature 0: 0.
    """

    def __init__(self, rows: int, temperature: float) -> None:
        self.nats, self.temperature = torch.zeros(rows, dtype=torch.float64), temperature

    def __call__(self, numbers: Tensor, states: Tensor, logits: Tensor, tokens: Tensor) -> None:
        if self.temperature:
            logs = (
                (logits.float() / self.temperature).log_softmax(1).gather(1, tokens[:, None])[:, 0]
            )
            self.nats.index_add_(0, numbers.cpu(), logs.double().cpu())


def _prompt(layout: Asks, prompt: Dialogue, room: int) -> tuple[list[int], bool]:
    """A prompt's tokens, and whether turns were left out; of one whose last turn alone is too long
    the decoder reads the end.
    """
    whole = layout.prompt(prompt)
    if len(whole) <= room:
        return whole, False
    return shortened(layout, prompt, room) or whole, True


def shortened(layout: Asks, prompt: Dialogue, room: int) -> list[int] | None:
    """The prompt in at most `room` tokens: its first turns are left out, a question with its
    answer. None where the last one does not fit.

    What the system says is kept.
    """
    system, said = (prompt[:1], prompt[1:]) if prompt[0].role == "system" else ((), prompt)
    for first in range(0, len(said), 2):
        tokens = layout.prompt((*system, *said[first:]))
        if len(tokens) <= room:
            return tokens
    return None


def _parts(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of rows of like length. Equal rows stay together: `generate` tells copies apart by
    their place among them.
    """
    by_length = sorted(
        range(len(rows)), key=lambda number: (len(rows[number]), rows[number], number)
    )
    return consecutive_batches(
        by_length, lambda part: len(part) <= ROWS or rows[part[-1]] == rows[part[-2]]
    )
