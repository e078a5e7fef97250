"""Decoding: many prompts at once, each key and value computed once, every row's text its own.

- Greedy at temperature 0; otherwise temperature, top-k and nucleus (Holtzman et al. 2020), applied
  in that order.
- A row draws from a generator seeded by (seed, prompt, which copy of that prompt it is), so its
  text does not depend on the prompts beside it; equal prompts get different texts. Nor on how many
  are answered at once, where each has a seed of its own.
- Logits are in full precision under autocast, too: a token is drawn from the probabilities that are
  later asked for.
- A long text is worth laying the weights out for (`gpt_model.ops.conv1d.prepacked`). Whoever
  generates often with the same weights holds that open round all of it.
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

from gpt_model.kv_cache import Cache
from gpt_model.ops.conv1d import output_head, prepacked
from gpt_model.transformer import GPT

# Tokens of a row that are chosen before the host looks at any: a GPU would wait for it. Those past
# a row's end are thrown away.
AHEAD = {"cpu": 1, "cuda": 16}
LONG = 32  # new tokens from which on laying out the weights costs less than it saves
# tokens among which a nucleus is looked for first: to sort a whole vocabulary takes as long as the
# decoder
LIKELY = 1024


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
    width], logits [rows, vocabulary], chosen tokens [rows]).

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
        while reading:
            watched = on_choice is not None or on_token is not None
            count = 1 if watched else _tokens_ahead(reading, states, model, max_new_tokens)
            draws = _draws(reading, count, states.device) if temperature else None
            chosen: list[Tensor] = []
            for number in range(count):
                if number:
                    states = model.hidden(chosen[-1][:, None], cache)[:, -1]
                logits = logits_of(states, model.wte.weight)
                draw = None if draws is None else draws[:, number, None]
                chosen.append(_choose(logits, draw, temperature, top_k, top_p))
            if on_choice is not None:
                on_choice(*_of_living(reading, states, logits, chosen[0]))
            for tokens in torch.stack(chosen).tolist():
                for row, token in zip(reading, tokens, strict=True):
                    if not row.ended:
                        row.ended = (
                            _ended(row, token, ids, strings, decode, on_token)
                            or len(row.written) == max_new_tokens
                        )
            alive = [index for index, row in enumerate(reading) if not row.ended]
            if len(alive) <= len(reading) // 2:
                reading = [reading[index] for index in alive]
                cache = cache.rows(
                    torch.tensor(alive, dtype=torch.long, device=cache.lengths.device)
                )
            if reading:
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


def logits_of(states: Tensor, weight: Tensor) -> Tensor:
    """Logits [rows, vocabulary] of states [rows, width] by weight [vocabulary, width]."""
    with torch.autocast(states.device.type, enabled=False):
        return output_head(states.to(weight.dtype), weight)


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


def _tokens_ahead(rows: list[_Row], states: Tensor, model: GPT, max_new_tokens: int) -> int:
    """How many tokens of each row are chosen at once: none beyond its context or the last."""
    alive = [row for row in rows if not row.ended]
    room = model.config.context + 1 - max(len(row.window) for row in alive)
    left = max_new_tokens - max(len(row.written) for row in alive)
    return max(1, min(AHEAD[states.device.type], room, left))


def _draws(rows: list[_Row], count: int, device: torch.device) -> Tensor:
    """The next `count` uniform random numbers of each row: [rows, count]."""
    numbers = [[row.draw.random() for _ in range(count)] for row in rows]
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def _of_living(
    rows: list[_Row], states: Tensor, logits: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The arguments of `on_choice` for the rows that have not ended, of states [rows, width],
    logits [rows, vocabulary] and chosen tokens [rows].
    """
    numbers = torch.tensor([row.number for row in rows], device=states.device)
    if not any(row.ended for row in rows):
        return numbers, states, logits, chosen
    index = torch.tensor(
        [index for index, row in enumerate(rows) if not row.ended], device=states.device
    )
    return numbers[index], states[index], logits[index], chosen[index]


def _choose(
    logits: Tensor, draw: Tensor | None, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """One token a row [rows] from logits [rows, vocabulary], by uniform random numbers [rows, 1];
    the most probable without.
    """
    if draw is None:
        return logits.argmax(-1)
    mass, tokens = _cumulated(logits.double() / temperature, top_k, top_p)
    last = torch.full_like(tokens[:, :1], mass.shape[1] - 1)
    if top_p is not None:  # the smallest set whose mass reaches top_p
        last = last.minimum((mass < top_p).sum(-1, keepdim=True))
    index = torch.searchsorted(mass, draw * mass.gather(1, last), right=True).minimum(last)
    return tokens.gather(1, index)[:, 0]


def _cumulated(logits: Tensor, top_k: int | None, top_p: float | None) -> tuple[Tensor, Tensor]:
    """Probabilities summed up token by token, and the tokens, each [rows, n]: of all, or from the
    most probable on as many as matter.
    """
    vocabulary = logits.shape[1]
    if top_k is None and top_p is None:
        return logits.softmax(-1).cumsum(-1), torch.arange(
            vocabulary, device=logits.device
        ).expand_as(logits)
    if top_k is not None:
        ranked, tokens = _most_probable(logits, min(top_k, vocabulary))
        return ranked.softmax(-1).cumsum(-1), tokens
    assert top_p is not None
    whole = logits.logsumexp(-1, keepdim=True)
    # A GPU would wait for whether the likely ones suffice.
    for size in (vocabulary,) if logits.is_cuda else (min(LIKELY, vocabulary), vocabulary):
        ranked, tokens = _most_probable(logits, size)
        mass = (ranked - whole).exp().cumsum(-1)
        if size == vocabulary or bool((mass[:, -1] >= top_p).all()):
            break
    return mass, tokens


def _most_probable(logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` highest of logits [rows, vocabulary] and their tokens, each [rows, size], highest
    first; among equal ones the lower token.
    """
    tokens = logits.topk(size, dim=-1).indices.sort(dim=-1).values
    ranked, order = logits.gather(1, tokens).sort(dim=-1, descending=True, stable=True)
    return ranked, tokens.gather(1, order)


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
