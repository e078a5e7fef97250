"""Batches that the ranks share out: rank 0 has them, each rank computes some, and rank 0 gets every
result.

What a batch holds does not depend on the number of ranks, so neither do the results.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Generic, TypeVar

import torch.distributed

Batch = TypeVar("Batch")
Result = TypeVar("Result")


class SharedBatches(Generic[Batch, Result]):
    """Rank 0 calls `results` within `leading`, the others call `follow` and have no more to do.
    Alone a rank may call `results` at any time.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Batch]], Generator[Result, None, None]],
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """`compute`: yields the result of each batch. Batches and results travel as pickles."""
        self.compute, self.rank, self.ranks = compute, rank, ranks

    def results(
        self, batches: Sequence[Batch], on_batch: Callable[[Batch], None] = lambda batch: None
    ) -> list[Result]:
        """The result of each batch, in order. `on_batch` is called as each is computed, or would be
        by a rank that is as fast as this one.
        """
        self._hand_out([batches[rank :: self.ranks] for rank in range(self.ranks)])
        results: list[Any] = [None] * len(batches)
        with closing(self.compute(batches[:: self.ranks])) as computed:
            for number, batch in enumerate(batches):
                if number % self.ranks == 0:
                    results[number] = next(computed)
                on_batch(batch)
        for rank, share in enumerate(self._gathered([])):
            if rank:
                results[rank :: self.ranks] = share
        return results

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Within, the other ranks compute what `results` hands out. Then they end."""
        try:
            yield
        finally:
            self._hand_out([None] * self.ranks)

    def follow(self) -> None:
        """Compute what rank 0 hands out, until it has no more."""
        while (share := self._hand_out(None)) is not None:
            self._gathered(list(self.compute(share)))

    def _hand_out(self, shares: list[Any] | None) -> Any:
        """This rank's of rank 0's `shares`, one a rank."""
        if self.ranks == 1:
            return shares and shares[0]
        received = [None]
        torch.distributed.scatter_object_list(received, shares)
        return received[0]

    def _gathered(self, share: list[Result]) -> list[list[Result]]:
        """On rank 0 each rank's share of the results, on others nothing."""
        if self.ranks == 1:
            return [share]
        shares: Any = [None] * self.ranks if self.rank == 0 else None
        torch.distributed.gather_object(share, shares)
        return shares or []
