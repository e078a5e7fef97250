"""Samples a model's answers to prompts, many in one batch. `reward_model.py` scores them."""

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
from gpt_model.training.engine import ALONE, Execution
from gpt_model.training.shared_batches import results_of_items
from gpt_model.transformer import GPT

ROWS = 64  # answers decoded together: the fastest batch on a CPU


class PromptEncoder(Protocol):
    """Encodes prompts: a `ChatTemplate`, or plain text."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def end_of_text(self) -> int: ...

    def encode_prompt(self, turns: Dialogue) -> list[int]: ...


@dataclass(frozen=True)
class PlainText:
    """For a model without role tokens: the turns begin a text, a line each. The model continues an
    answer's opening words.
    """

    tokenizer: Tokenizer

    @property
    def end_of_text(self) -> int:
        return self.tokenizer.end_of_text

    def encode_prompt(self, turns: Dialogue) -> list[int]:
        text = "\n".join(turn.text for turn in turns)
        text = text if turns[-1].role == "assistant" else f"{text}\n"
        return [self.end_of_text, *self.tokenizer.encode(text)]


@dataclass(frozen=True)
class Answer:
    """A sampled answer. After opening words `text` keeps its leading space."""

    text: str  # without end-of-text
    tokens: list[int]  # with end-of-text, where the model sampled it
    ended: bool  # by the model; else it was cut at max_new_tokens
    prompt_cut: bool = False  # the prompt's first turns did not fit the context
    # Nats of its tokens at the sampling temperature; NaN where they were not recorded.
    log_probability: float = field(default=math.nan, compare=False)

    @property
    def length(self) -> int:
        """Tokens without end-of-text."""
        return len(self.tokens) - self.ended

    @property
    def empty(self) -> bool:
        """Whether it has no text. An empty answer is scored and counted like all others."""
        return not self.text.strip()


def sample_answers(
    model: GPT,
    encoder: PromptEncoder,
    prompts: Sequence[Dialogue],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    copies: int = 1,
    log_probabilities: bool = False,
    execution: Execution = ALONE,
) -> list[Answer]:
    """`copies` answers to each prompt, those of a prompt side by side. They depend on seed and
    prompt alone. `log_probabilities`: record them. Collective where there are several ranks.
    """
    room = max(model.config.context // 2, model.config.context - max_new_tokens)
    encoded = [_encode(encoder, prompt, room) for prompt in prompts for _ in range(copies)]

    def write(indices: Sequence[int]) -> list[Answer]:
        rows = [encoded[index][0] for index in indices]
        recorder = _LogProbabilities(len(rows), temperature) if log_probabilities else None
        sampled = generate(
            model,
            rows,
            max_new_tokens,
            temperature,
            seed=seed,
            stop=(encoder.end_of_text,),
            on_choice=recorder,
        )
        nats = recorder.sums.tolist() if recorder else [math.nan] * len(rows)
        answers = []
        for index, tokens, log_probability in zip(indices, sampled, nats, strict=True):
            ended = len(tokens) < max_new_tokens
            text = encoder.tokenizer.decode(tokens)
            tokens = [*tokens, encoder.end_of_text] if ended else tokens
            answers.append(Answer(text, tokens, ended, encoded[index][1], log_probability))
        return answers

    batches = list(_batches([tokens for tokens, _ in encoded]))
    return results_of_items(write, batches, execution, model)


class _LogProbabilities:
    """Sums the log-probability of the tokens sampled in each row. At temperature 0 it is 0: the
    likeliest token is certain.
    """

    def __init__(self, rows: int, temperature: float) -> None:
        self.sums, self.temperature = torch.zeros(rows, dtype=torch.float64), temperature  # [rows]

    def __call__(self, rows: Tensor, states: Tensor, logits: Tensor, tokens: Tensor) -> None:
        """`rows` and `tokens` [active], `states` [active, width], `logits` [active, vocabulary]."""
        if self.temperature:
            by_token = (logits.float() / self.temperature).log_softmax(1)
            sampled = by_token.gather(1, tokens[:, None])[:, 0]
            self.sums = self.sums.to(logits.device)  # where nothing waits for them
            self.sums.index_add_(0, rows, sampled.double())


def _encode(encoder: PromptEncoder, prompt: Dialogue, room: int) -> tuple[list[int], bool]:
    """A prompt's tokens, and whether turns were dropped. Where the last turn alone is too long, the
    decoder reads its end.
    """
    tokens = encoder.encode_prompt(prompt)
    if len(tokens) <= room:
        return tokens, False
    return encode_shortened(encoder, prompt, room) or tokens, True


def encode_shortened(encoder: PromptEncoder, prompt: Dialogue, room: int) -> list[int] | None:
    """The prompt in at most `room` tokens: the oldest exchanges are dropped, the system turn stays.
    None where the last turn does not fit.
    """
    system = prompt[:1] if prompt[0].role == "system" else ()
    exchanges = prompt[len(system) :]
    for first in range(0, len(exchanges), 2):
        tokens = encoder.encode_prompt((*system, *exchanges[first:]))
        if len(tokens) <= room:
            return tokens
    return None


def _batches(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of rows of similar length. Equal rows stay together: `generate` seeds copies by their
    order among equals.
    """
    by_length = sorted(range(len(rows)), key=lambda index: (len(rows[index]), rows[index], index))
    return consecutive_batches(
        by_length, lambda batch: len(batch) <= ROWS or rows[batch[-1]] == rows[batch[-2]]
    )
