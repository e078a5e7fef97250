"""Which examples go through the model together, and which of them a training step takes.

- **Token budget**: `token_batches` cuts examples that are only read into forward passes of at most
  so many tokens. `EpochBatches.partition` cuts a training batch into micro-batches the same way, as
  many for each rank. A rank that is left without an item has an `Idle` one.
- **Epoch order**: `epoch_order` and `pooled_epoch`, pure functions of the seed and the epoch, so
  that a step's batch is a pure function of (seed, step) and nothing about it needs a checkpoint.

What pre-training reads, windows of a mixture of sources, is `data/sampler.py`'s. No torch here.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, Literal, TypeVar

# Token budgets of one forward pass on one rank
# Of a training micro-batch, unless the profile sets `micro_batch`: of 512 to 4,096 the fastest at
# 4 × 192 and at 6 × 384 on a CPU core
TRAINING_TOKENS = 2048
EVALUATION_TOKENS = 8192  # without a gradient, nothing is kept for a backward pass
# Of a rollout, which reference, reward and value model read in turn: at 6 × 384 on two cores a
# quarter faster than 8192
ROLLOUT_TOKENS = 2048
ROLLOUT_EPISODES = 64  # that a rank samples together, unless the profile sets `micro_batch`
TASK_TOKENS = 4096  # GPT-1's tasks, padding included: activations that fit in a CPU's cache
LM_EVAL_TOKENS = {"cpu": 4096, "cuda": 65536}  # `lm_eval`'s requests, padding included

ENCODED_ROWS = 256  # that a rank makes tokens of at a time

T = TypeVar("T")
M = TypeVar("M")  # a micro-batch


class MicroBatchSize:
    """How much of a step goes through the model together on a rank: some `tokens` on average,
    `sequences` of `context` tokens. A trial may change it.
    """

    def __init__(
        self,
        sequences: int | None,
        context: int,
        step_tokens: int,
        longest_item: int = 0,
        tokens: int = TRAINING_TOKENS,
    ) -> None:
        """`sequences`: a profile's bound; without it so many `tokens`. `step_tokens`: of a step at
        most, all ranks together. `longest_item`: tokens by which a micro-batch may exceed the
        average, as items are not cut.
        """
        self.context, self.step_tokens, self.longest_item = context, step_tokens, longest_item
        self.tokens = sequences * context if sequences else tokens
        self.sequences = max(1, self.tokens // context)

    def most(self, ranks: int) -> int:
        """Sequences of the largest micro-batch that a rank has, where it has one a step."""
        return -(-(-(-self.step_tokens // ranks) + self.longest_item) // self.context)

    def fit(self, sequences: int) -> None:
        """Have no micro-batch be larger than so many sequences, but for an item that is."""
        self.sequences = sequences
        self.tokens = max(sequences * self.context - self.longest_item, 1)


@dataclass(frozen=True)
class Idle(Generic[M]):
    """The micro-batch of a rank that has no item of a step. The engine computes `stand_in`, because
    the ranks' passes are collective, and counts nothing of it.
    """

    stand_in: M


def collated(
    parts: Iterable[Sequence[T]], collate: Callable[[Sequence[T]], M], stand_in: Sequence[T]
) -> list[M | Idle[M]]:
    """The micro-batch of each part; of an empty one, the idle one of `stand_in`."""
    return [collate(part) if part else Idle(collate(stand_in)) for part in parts]


def consecutive_batches(
    items: Iterable[T], fits: Callable[[Sequence[T]], bool]
) -> Iterator[list[T]]:
    """Consecutive items in batches, each as large as `fits` allows, and of at least one item."""
    batch: list[T] = []
    for item in items:
        if batch and not fits([*batch, item]):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def token_batches(
    lengths: Sequence[int],
    budget: int = EVALUATION_TOKENS,
    *,
    order: Literal["shortest", "longest", "given"] = "shortest",
    padded: bool = False,
) -> list[list[int]]:
    """Indices into `lengths` (tokens of each example) in batches of at most `budget` tokens; a
    longer example is a batch of its own.

    `order`: which examples come first; equal lengths keep the order given. `padded`: count every
    row as long as its batch's longest, as in a rectangular batch, instead of packing them.
    """
    indices = list(range(len(lengths)))
    if order != "given":
        sign = 1 if order == "shortest" else -1
        indices.sort(key=lambda index: sign * lengths[index])

    def fits(batch: Sequence[int]) -> bool:
        if padded:
            return len(batch) * max(lengths[index] for index in batch) <= budget
        return sum(lengths[index] for index in batch) <= budget

    return list(consecutive_batches(indices, fits))


def chunks(count: int, size: int) -> list[range]:
    """The numbers below `count` in order, so many together."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def micro_batch_count(size: int, budget: int, items: int, world_size: int) -> int:
    """In how many micro-batches, over all ranks, a batch of `items` is computed.

    As few as keep the mean `size` of them within `budget` (both in tokens, or both in rows), as
    many for each rank, and not more than it takes for each to have an item at most.
    """
    return world_size * max(1, min(-(-size // (budget * world_size)), -(-items // world_size)))


def balanced_micro_batches(
    items: Iterable[int],
    lengths: Sequence[int],
    budget: int,
    world_size: int,
    *,
    snake: bool = True,
) -> list[list[int]]:
    """The items of a batch in micro-batches over all ranks, dealt out from the longest on.

    `lengths`: tokens of each item, by its number. `snake`: every other round is dealt backwards, so
    that no micro-batch has the longer item each time; otherwise each round starts at the first.
    Some may be empty: each rank has as many.
    """
    by_length = sorted(items, key=lambda item: (-lengths[item], item))
    tokens = sum(lengths[item] for item in by_length)
    count = micro_batch_count(tokens, budget, len(by_length), world_size)
    parts: list[list[int]] = [[] for _ in range(count)]
    for position, item in enumerate(by_length):
        turn, index = divmod(position, count)
        parts[count - 1 - index if snake and turn % 2 else index].append(item)
    return parts


@lru_cache(maxsize=8)
def epoch_order(count: int, seed: int, *key: object) -> tuple[int, ...]:
    """A permutation of range(count). `key`: the epoch's number, and what else tells orders of one
    seed apart.
    """
    order = list(range(count))
    _generator(seed, *key).shuffle(order)
    return tuple(order)


def pooled_epoch(
    lengths: Sequence[int], batch: int, pool_batches: int, seed: int, epoch: int
) -> list[list[int]]:
    """An epoch's batches of `batch` items each, of like length so that little is padding.

    Only within a pool of `pool_batches` batches are items sorted by length; which items share a
    pool, and the order of the batches, change with the epoch. The last, partial batch is left out.
    """
    generator = _generator(seed, epoch)
    order = list(range(len(lengths)))
    generator.shuffle(order)
    order = order[: len(lengths) // batch * batch]
    pool, batches = pool_batches * batch, []
    for start in range(0, len(order), pool):
        by_length = sorted(order[start : start + pool], key=lengths.__getitem__)
        batches += [by_length[at : at + batch] for at in range(0, len(by_length), batch)]
    generator.shuffle(batches)
    return batches


def _generator(seed: int, *key: object) -> random.Random:
    return random.Random(" ".join(map(str, (seed, *key))))


class EpochBatches:
    """Batches over a fixed set of items: each epoch meets all of them once, in another order.

    An epoch has as few batches as `batch` allows, of sizes that differ by one at most, whatever the
    number of ranks.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch: int,
        epochs: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        sequences: int | None = None,
        context: int | None = None,
        windows: int = 0,
    ) -> None:
        """`lengths`: tokens of each item. `batch`: items an optimizer step, all ranks together.
        `sequences` of a micro-batch, of `context` tokens each, by default as many as an item.
        `windows` of `context` tokens stand beside a step's items (`rlhf.sft`).
        """
        self.lengths, self.epochs, self.seed = lengths, epochs, seed
        self.rank, self.world_size = rank, world_size
        longest = max(lengths)
        context = context or longest
        step_tokens = sum(heapq.nlargest(batch, lengths)) + windows * context
        beside = context if windows < world_size and windows else 0  # one, on some ranks
        self.size = MicroBatchSize(sequences, context, step_tokens, longest + beside)
        self.steps_per_epoch = -(-len(lengths) // batch)
        self.steps = epochs * self.steps_per_epoch

    def items_before(self, step: int) -> int:
        """Items of all steps before a step, each counted as often as it was met."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return epoch * len(self.lengths) + index * len(self.lengths) // self.steps_per_epoch

    def items(self, step: int) -> Sequence[int]:
        """Numbers of the items of a step, all ranks together."""
        epoch = step // self.steps_per_epoch
        first = epoch * len(self.lengths)
        order = epoch_order(len(self.lengths), self.seed, epoch)
        return order[self.items_before(step) - first : self.items_before(step + 1) - first]

    def partition(self, step: int) -> list[list[int]]:
        """The items of a step in micro-batches, all ranks': as many for each, of like size in
        tokens. The last may be empty.
        """
        return balanced_micro_batches(
            self.items(step), self.lengths, self.size.tokens, self.world_size
        )

    def micro_batches(self, step: int) -> list[list[int]]:
        """This rank's."""
        return self.partition(step)[self.rank :: self.world_size]
