"""Batches that the ranks share out: each computes some, and every rank, or rank 0 alone, gets every
result.

What a batch holds does not depend on the number of ranks, so neither do the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Generic, TypeVar

import torch.distributed
from torch import nn

from gpt_model.training.engine import Execution
from gpt_model.training.sharded import reading

Batch = TypeVar("Batch")
Result = TypeVar("Result")


class SharedBatches(Generic[Batch, Result]):
    """Every rank calls `results`, with the same batches. Or rank 0 alone calls it, within
    `leading`, and the others call `follow`.
    """

    def __init__(
        self, compute: Callable[[Sequence[Batch]], Iterable[Result]], execution: Execution
    ) -> None:
        """`compute`: yields the result of each batch. Results travel as pickles, and so do batches
        that rank 0 hands out.
        """
        self.compute, self.rank, self.ranks = compute, execution.rank, execution.world_size
        self._leading = False
        self._others_wait = False  # for what rank 0 hands out

    def results(
        self, batches: Sequence[Batch], on_batch: Callable[[Batch], None] = lambda batch: None
    ) -> list[Result]:
        """The result of each batch, in order. `on_batch` is called as each is computed, or would be
        by a rank that is as fast as this one.
        """
        self._others_wait = False
        if self._leading:
            self._hand_out([batches[rank :: self.ranks] for rank in range(self.ranks)])
        share: list[Result] = []
        rounds = range(0, len(batches) - self.rank, self.ranks)
        computed = self.compute(batches[self.rank :: self.ranks])
        for result, first in zip(computed, rounds, strict=True):
            share.append(result)
            for batch in batches[first : first + self.ranks]:
                on_batch(batch)
        results: list[Any] = [None] * len(batches)
        for rank, of_rank in enumerate(self._gathered(share, on_every_rank=not self._leading)):
            results[rank :: self.ranks] = of_rank
        self._others_wait = self._leading
        return results

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Within, the other ranks compute what `results` hands out. Then they end. A rank that
        fails while all compute is not waited for: whoever started the ranks ends the others.
        """
        self._leading = self._others_wait = True
        try:
            yield
        finally:
            self._leading = False
            if self._others_wait:
                self._hand_out([None] * self.ranks)

    def follow(self) -> None:
        """Compute what rank 0 hands out, until it has no more."""
        while (share := self._hand_out(None)) is not None:
            self._gathered(list(self.compute(share)), on_every_rank=False)

    def _hand_out(self, shares: list[Any] | None) -> Any:
        """This rank's of rank 0's `shares`, one a rank."""
        if self.ranks == 1:
            return shares and shares[0]
        received = [None]
        torch.distributed.scatter_object_list(received, shares)
        return received[0]

    def _gathered(self, share: list[Result], on_every_rank: bool) -> list[list[Result]]:
        """Each rank's share of the results; nothing on ranks that need none."""
        if self.ranks == 1:
            return [share]
        shares: Any = [None] * self.ranks if on_every_rank or self.rank == 0 else None
        if on_every_rank:
            torch.distributed.all_gather_object(shares, share)
        else:
            torch.distributed.gather_object(share, shares)
        return shares or []


def while_reading(
    compute: Callable[[Batch], Result], model: nn.Module | None
) -> Callable[[Sequence[Batch]], Iterator[Result]]:
    """For `SharedBatches`: `compute` of each batch, which makes forward passes of `model`, if it
    makes any.
    """

    def computed(share: Sequence[Batch]) -> Iterator[Result]:
        # Left with the last batch, before the ranks exchange results
        with reading(model) if model else nullcontext():
            yield from map(compute, share)

    return computed


def results_of_items(
    compute: Callable[[Sequence[int]], list[Result]],
    batches: Sequence[Sequence[int]],
    execution: Execution,
    model: nn.Module | None = None,
) -> list[Result]:
    """The result of each item, in order. `batches` are of the items' numbers, from 0 on; `compute`
    gives the results of a batch, by forward passes of `model` if of any. Collective where there are
    several ranks.
    """
    shared = SharedBatches(while_reading(compute, model), execution)
    by_item: dict[int, Result] = {}
    for items, results in zip(batches, shared.results(batches), strict=True):
        by_item.update(zip(items, results, strict=True))
    return [by_item[item] for item in range(len(by_item))]
