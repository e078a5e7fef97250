"""Tokens that a device chooses and reads on its own, several between two looks of the host at them.

`Sampler` chooses a token of each row. `choose_ahead` chooses some, one after the other, with shapes
that grow by a token each. `FixedStep` does so with shapes that stay: a GPU then repeats one
captured graph a token, where it would otherwise wait for Python to launch each layer's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_model.kv_cache import Cache
from gpt_model.ops.conv1d import output_head
from gpt_model.transformer import GPT

# tokens among which a nucleus is looked for first: to sort a whole vocabulary takes as long as the
# decoder
LIKELY = 1024
WARM_UP = 2  # steps before one is captured: libraries allocate what they need in the first

Prepare = Callable[[Callable[[], None]], Callable[[], None]]


@dataclass(frozen=True)
class Sampler:
    """How a token is chosen: the most probable at temperature 0; otherwise temperature, top-k and
    nucleus, in that order.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def choose(self, logits: Tensor, draw: Tensor | None, *, fixed_shapes: bool) -> Tensor:
        """One token a row [rows] from logits [rows, vocabulary], by uniform random numbers
        [rows, 1] where the temperature is above 0.

        `fixed_shapes`: nothing waits for a number; a nucleus is looked for in the whole vocabulary.
        """
        if draw is None:
            return logits.argmax(-1)
        mass, tokens = self._cumulated(logits, fixed_shapes)
        last = torch.full_like(tokens[:, :1], mass.shape[1] - 1)
        if self.top_p is not None:  # the smallest set whose mass reaches top_p
            last = last.minimum((mass < self.top_p).sum(-1, keepdim=True))
        index = torch.searchsorted(mass, draw * mass.gather(1, last), right=True).minimum(last)
        return tokens.gather(1, index)[:, 0]

    def _cumulated(self, logits: Tensor, fixed_shapes: bool) -> tuple[Tensor, Tensor]:
        """Probabilities in double precision, summed up token by token, and the tokens, each
        [rows, n]: of all, or from the most probable on as many as matter.
        """
        vocabulary = logits.shape[1]
        if self.top_k is None and self.top_p is None:
            mass = (logits.double() / self.temperature).softmax(-1).cumsum(-1)
            return mass, torch.arange(vocabulary, device=logits.device).expand_as(logits)
        if self.top_k is not None:
            ranked, tokens = _most_probable(logits, min(self.top_k, vocabulary))
            return (ranked.double() / self.temperature).softmax(-1).cumsum(-1), tokens
        assert self.top_p is not None
        whole = (logits.double() / self.temperature).logsumexp(-1, keepdim=True)
        for size in (vocabulary,) if fixed_shapes else (min(LIKELY, vocabulary), vocabulary):
            ranked, tokens = _most_probable(logits, size)
            mass = (ranked.double() / self.temperature - whole).exp().cumsum(-1)
            if size == vocabulary or bool((mass[:, -1] >= self.top_p).all()):
                break
        return mass, tokens


def _most_probable(logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` highest of logits [rows, vocabulary] and their tokens, each [rows, size], highest
    first; among equal ones the lower token.
    """
    if size == logits.shape[1]:
        ranked, order = logits.sort(dim=-1, descending=True, stable=True)
        return ranked, order
    tokens = logits.topk(size, dim=-1).indices.sort(dim=-1).values
    ranked, order = logits.gather(1, tokens).sort(dim=-1, descending=True, stable=True)
    return ranked, tokens.gather(1, order)


@dataclass(frozen=True)
class Choices:
    """Tokens that were chosen one after the other, [steps, rows]; and, where somebody watches, the
    states [rows, width] and logits [rows, vocabulary] that those of each step came from.
    """

    tokens: Tensor
    states: Sequence[Tensor] = ()
    logits: Sequence[Tensor] = ()


def choose_ahead(
    model: GPT,
    cache: Cache,
    states: Tensor,
    sampler: Sampler,
    draws: Tensor | None,
    count: int,
    watched: bool,
) -> Choices:
    """The next `count` tokens of each row: the first from states [rows, width], by uniform random
    numbers [rows, count]. All but the last are read into the cache.
    """
    tokens: list[Tensor] = []
    seen: list[Tensor] = []
    scores: list[Tensor] = []
    for number in range(count):
        if number:
            states = model.hidden(tokens[-1][:, None], cache)[:, -1]
        logits = logits_of(states, model.wte.weight)
        draw = None if draws is None else draws[:, number, None]
        tokens.append(sampler.choose(logits, draw, fixed_shapes=logits.is_cuda))
        if watched:
            seen.append(states)
            scores.append(logits)
    return Choices(torch.stack(tokens), seen, scores)


def logits_of(states: Tensor, weight: Tensor) -> Tensor:
    """Logits [rows, vocabulary] of states [rows, width] by weight [vocabulary, width]."""
    with torch.autocast(states.device.type, enabled=False):
        return output_head(states.to(weight.dtype), weight)


def repeatable(model: GPT) -> bool:
    """Whether a step of the model may be captured: no hook runs within, such as one that gathers
    weights.
    """
    return not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


class FixedStep:
    """A step of decoding with the same shapes each time, and tensors that stay where they are:
    choose a token of each row, then read it into the cache. Attention reads the whole capacity of
    the cache, behind masks.
    """

    def __init__(
        self,
        model: GPT,
        cache: Cache,
        states: Tensor,
        sampler: Sampler,
        most: int,
        watched: bool,
        prepare: Prepare,
    ) -> None:
        """`states` [rows, width]: what the first token is chosen from. `most`: tokens of a row in
        one `choose_ahead`. `prepare` makes of the step what is called in its place; it may call it.
        The cache has room for a token of each row.
        """
        self.model, self.cache, self.sampler = model, cache, sampler
        rows, device = len(states), states.device
        self.states = states.clone()
        self.number = torch.zeros(1, dtype=torch.long, device=device)  # of the step
        self.draws = torch.zeros(rows, most, dtype=torch.float64, device=device)
        self.tokens = torch.zeros(most, rows, dtype=torch.long, device=device)
        self.watched, recorded = watched, most if watched else 0
        self.seen = states.new_zeros(recorded, *states.shape)
        self.logits = model.wte.weight.new_zeros(recorded, rows, model.config.vocab_size)
        before = cache.lengths.clone()
        self._repeat = prepare(self._step)
        cache.lengths.copy_(before)

    def choose_ahead(
        self, states: Tensor, draws: Tensor | None, count: int
    ) -> tuple[Choices, Tensor]:
        """As the function of that name, of which all tokens are read into the cache; and the states
        [rows, width] after them. What is returned is overwritten by the next call.
        """
        self.number.zero_()
        self.states.copy_(states)
        if draws is not None:
            self.draws[:, :count].copy_(draws)
        for _ in range(count):
            self._repeat()
        self.cache.extent = None  # which the host does not know now
        watched = (part[:count].unbind() for part in (self.seen, self.logits))
        return Choices(self.tokens[:count], *watched), self.states

    def _step(self) -> None:
        # Bounds of the lengths that hold at each step: so they give each the same shapes
        self.cache.extent = 0, self.cache.capacity
        logits = logits_of(self.states, self.model.wte.weight)
        draw = self.draws.index_select(1, self.number) if self.sampler.temperature else None
        token = self.sampler.choose(logits, draw, fixed_shapes=True)
        self.tokens.index_copy_(0, self.number, token[None])
        if self.watched:
            self.seen.index_copy_(0, self.number, self.states[None])
            self.logits.index_copy_(0, self.number, logits[None])
        self.states.copy_(self.model.hidden(token[:, None], self.cache)[:, -1])
        self.number.add_(1).remainder_(len(self.tokens))


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph: one launch."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as NCCL's and one that prepares batches, may go on meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay
