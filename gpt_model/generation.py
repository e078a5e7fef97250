"""Decoding: many prompts at once, each key and value computed once, every row's text its own.

- Greedy at temperature 0; otherwise temperature, top-k and nucleus (Holtzman et al. 2020), applied
  in that order.
- A row draws from a generator seeded by (seed, prompt, which copy of that prompt it is), so its
  text does not depend on the prompts beside it; equal prompts get different texts. Nor on how many
  are answered at once, where each has a seed of its own.
- Logits are in full precision under autocast, too: a token is drawn from the probabilities that are
  later asked for.
- A long text is worth laying the weights out for (`gpt_model.ops.conv1d.prepacked`). Whoever
  generates often with the same weights holds that open round all of it. On a GPU it is worth a step
  of fixed shapes, captured as a graph (`gpt_model.decoding`), and the host looks at the tokens
  every AHEAD steps: a stop string needs the tokenizer, so ends are looked for there.
- GPT-2's positions are learned and end at the context. A row that reaches it goes on from the later
  half of its own tokens, read anew: a window that slides by half a context, the cost of one reading
  for every half context written.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gpt_model.decoding import (
    Choices,
    FixedStep,
    Prepare,
    Sampler,
    captured,
    choose_ahead,
    repeatable,
)
from gpt_model.kv_cache import Cache
from gpt_model.ops.conv1d import prepacked
from gpt_model.transformer import GPT

# Tokens of a row that are chosen before the host looks at any: a GPU would wait for it. Those past
# a row's end are thrown away.
AHEAD = {"cpu": 1, "cuda": 16}
WAITING_LOGITS = 1 << 26  # that wait for `on_choice`, at most: 256 MB in float32
# How a step of fixed shapes is made ready, on devices where it is faster
PREPARE: dict[str, Prepare] = {"cuda": captured}
# new tokens from which on laying out the weights, or capturing a step, costs less than it saves
LONG = 32


@dataclass
class _Row:
    """One prompt on its way."""

    number: int
    window: list[int]  # what the model reads: the tail of prompt and text
    draw: np.random.Generator
    written: list[int] = field(default_factory=list)
    ended: bool = False


@torch.no_grad()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] = 0,
    stop: Sequence[int | str] = (),
    decode: Callable[[list[int]], str] | None = None,
    on_token: Callable[[int, int], None] | None = None,
    on_choice: Callable[[Tensor, Tensor, Tensor, Tensor], None] | None = None,
) -> list[list[int]]:
    """New token ids for every prompt, the prompt left out: at most `max_new_tokens`, ending before
    the first `stop`.

    `seed`: one for all, or one for each prompt. `stop` holds token ids (e.g. end-of-text, which is
    not part of the result) and strings, which need `decode`, the tokenizer's. A string that ends
    inside a token ends the row before that token. A prompt longer than the context is read from its
    end. `on_token(prompt number, token)` is called as each token is written. `on_choice` is called
    before it, for all rows at once and for stop tokens too: (prompt numbers [rows], states [rows,
    width], logits [rows, vocabulary], chosen tokens [rows]), which the next tokens may overwrite.

    Raises ValueError for an empty prompt, a temperature below 0, a top_k below 1, a top_p outside
    (0, 1], stop strings without `decode`.
    """
    strings = [text for text in stop if isinstance(text, str)]
    _check(prompts, temperature, top_k, top_p, strings, decode)
    ids = {token for token in stop if not isinstance(token, str)}
    was_training = model.training
    model.eval()
    with ExitStack() as after:
        after.callback(model.train, was_training)
        if max_new_tokens >= LONG:
            after.enter_context(prepacked(model, model.wte))
        rows = _rows(prompts, seed, model.config.context)
        # The rows in the cache. Those that have ended stay until they are half of it.
        reading = list(rows) if max_new_tokens > 0 else []
        if reading:
            longest = max(len(row.window) for row in reading)
            states, cache = _read(
                model, reading, min(model.config.context, longest + max_new_tokens)
            )
        sampler, watched = Sampler(temperature, top_k, top_p), on_choice is not None
        prepare = PREPARE.get(model.wte.weight.device.type) if repeatable(model) else None
        step: FixedStep | None = None
        while reading:
            alive = [row for row in reading if not row.ended]
            # A fixed step reads each token that it chooses, the last one too.
            room = model.config.context - max(len(row.window) for row in alive)
            left = max_new_tokens - len(alive[0].written)
            most = _most_ahead(len(reading), model, watched)
            if step is None and prepare is not None and room and left >= LONG:
                step = FixedStep(model, cache, states, sampler, most, watched, prepare)
            fixed = step if room else None
            count = min(most, left, room if fixed else room + 1)
            draws = _draws(reading, count, states.device) if temperature else None
            if fixed is not None:
                choices, states = fixed.choose_ahead(states, draws, count)
            else:
                choices = choose_ahead(model, cache, states, sampler, draws, count, watched)
            for number, tokens in enumerate(choices.tokens.tolist()):
                if on_choice is not None and not all(row.ended for row in reading):
                    on_choice(*_of_living(reading, choices, number))
                for row, token in zip(reading, tokens, strict=True):
                    if not row.ended:
                        row.ended = (
                            _ended(row, token, ids, strings, decode, on_token)
                            or len(row.written) == max_new_tokens
                        )
            living = [index for index, row in enumerate(reading) if not row.ended]
            unread = fixed is None  # the last tokens chosen
            if len(living) <= len(reading) // 2:
                reading = [reading[index] for index in living]
                index = torch.tensor(living, dtype=torch.long, device=cache.lengths.device)
                cache, states, step = cache.rows(index), states[index], None
                del fixed, choices  # and the memory of their graph, before the next is captured
            if reading and unread:
                states = _advance(model, reading, cache)
    return [row.written for row in rows]


def _check(
    prompts: Sequence[Sequence[int]],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    strings: list[str],
    decode: Callable[[list[int]], str] | None,
) -> None:
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(
                f"prompt {number} is empty: begin with at least one token, such as end-of-text"
            )
    if temperature < 0:
        raise ValueError(f"temperature {temperature} is below 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k} is below 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} is not in (0, 1]")
    if strings and decode is None:
        raise ValueError(f"stop strings {strings} need decode=, the tokenizer's")


def _rows(prompts: Sequence[Sequence[int]], seed: int | Sequence[int], context: int) -> list[_Row]:
    copies: Counter[tuple[int, tuple[int, ...]]] = Counter()
    rows = []
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    for number, (prompt, start) in enumerate(zip(prompts, seeds, strict=True)):
        key = tuple(int(token) for token in prompt)
        digest = hashlib.sha256(repr((start, copies[start, key], key)).encode()).digest()
        copies[start, key] += 1
        draw = np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little")))
        rows.append(_Row(number, list(key[-context:]), draw))
    return rows


def _read(model: GPT, rows: list[_Row], capacity: int) -> tuple[Tensor, Cache]:
    """Read every row's window afresh: states of its last token [rows, width], and the cache, with
    room for `capacity` tokens a row.
    """
    device = model.wte.weight.device
    longest = max(len(row.window) for row in rows)
    tokens = torch.tensor(
        [row.window + [0] * (longest - len(row.window)) for row in rows], device=device
    )
    lengths = torch.tensor([len(row.window) for row in rows], device=device)
    cache = model.new_cache(len(rows), capacity)
    hidden = model.hidden(tokens, cache, lengths)
    return hidden[torch.arange(len(rows), device=device), lengths - 1], cache


def _advance(model: GPT, rows: list[_Row], cache: Cache) -> Tensor:
    """States of each row's newest token [rows, width], which is read into the cache; of rows that
    have ended, anything.
    """
    device = model.wte.weight.device
    context = model.config.context
    full = [index for index, row in enumerate(rows) if len(row.window) > context and not row.ended]
    tokens = torch.tensor([[row.window[-1]] for row in rows], device=device)
    anew = len(full) == len(rows)
    states = (
        model.wte.weight.new_empty(len(rows), model.config.width)
        if anew
        else model.hidden(tokens, cache)[:, -1]
    )
    if full:
        full_rows = [rows[number] for number in full]
        for row in full_rows:
            row.window = row.window[-max(1, context // 2) :]
        index = torch.tensor(full, device=device)
        states[index], read = _read(model, full_rows, context)
        cache.replace(index, read)
    return states


def _most_ahead(rows: int, model: GPT, watched: bool) -> int:
    """How many tokens of each row may be chosen before the host looks at any."""
    most = AHEAD[model.wte.weight.device.type]
    if watched:
        most = min(most, WAITING_LOGITS // (rows * model.config.vocab_size))
    return max(1, most)


def _draws(rows: list[_Row], count: int, device: torch.device) -> Tensor:
    """The next `count` uniform random numbers of each row: [rows, count]."""
    numbers = [[row.draw.random() for _ in range(count)] for row in rows]
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def _of_living(
    rows: list[_Row], choices: Choices, step: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The arguments of `on_choice` for the rows that have not ended before the step: their numbers
    [rows], states [rows, width], logits [rows, vocabulary] and chosen tokens [rows].
    """
    states, logits, chosen = choices.states[step], choices.logits[step], choices.tokens[step]
    numbers = torch.tensor([row.number for row in rows], device=states.device)
    if not any(row.ended for row in rows):
        return numbers, states, logits, chosen
    index = torch.tensor(
        [index for index, row in enumerate(rows) if not row.ended], device=states.device
    )
    return numbers[index], states[index], logits[index], chosen[index]


def _ended(
    row: _Row,
    token: int,
    ids: set[int],
    strings: list[str],
    decode: Callable[[list[int]], str] | None,
    on_token: Callable[[int, int], None] | None,
) -> bool:
    """Take the token into the row, unless it ends it. True where the row has ended."""
    if token in ids:
        return True
    row.written.append(token)
    row.window.append(token)
    if strings and decode is not None:
        text = decode(row.written)
        if any(string in text for string in strings):
            row.written.pop()
            return True
    if on_token is not None:
        on_token(row.number, token)
    return False
