"""Which items are met when: all of them in every epoch, in batches that any ranks share out."""

from __future__ import annotations

import random

import pytest

from gpt_model.training.batching import EpochBatches


@pytest.mark.parametrize(
    ("count", "batch", "ranks"),
    [
        (127, 64, 1),
        (127, 64, 2),
        (100, 64, 1),
        (64, 64, 2),
        (65, 64, 3),
        (5, 64, 2),
        (9, 4, 3),
        (7, 1, 1),
        (33, 32, 32),
        (7, 3, 3),
        (5, 3, 4),
        (17, 8, 128),
    ],
)
def test_every_epoch_meets_every_item_once_in_batches_of_nearly_one_size(
    count: int, batch: int, ranks: int
) -> None:
    sizes = [random.Random(item).randint(3, 90) for item in range(count)]
    by_rank = [
        EpochBatches(sizes, batch, 3, 1, rank, ranks, sequences=1, context=200)
        for rank in range(ranks)
    ]
    each, orders = by_rank[0].steps_per_epoch, []
    for epoch in range(3):
        steps = range(epoch * each, (epoch + 1) * each)
        met = [by_rank[0].items(step) for step in steps]
        assert sorted(item for items in met for item in items) == list(range(count))
        assert max(map(len, met)) <= batch and max(map(len, met)) - min(map(len, met)) <= 1
        assert met == [EpochBatches(sizes, batch, 3, 1).items(step) for step in steps]
        for step in steps:
            shared = [batches.micro_batches(step) for batches in by_rank]
            assert len({len(parts) for parts in shared}) == 1
            empty = [part for parts in shared for part in parts].count([])
            assert max(0, ranks - len(by_rank[0].items(step))) <= empty < ranks
            assert sorted(item for parts in shared for part in parts for item in part) == sorted(
                by_rank[0].items(step)
            )
            assert by_rank[0].items_before(step + 1) - by_rank[0].items_before(step) == len(
                by_rank[0].items(step)
            )
        orders.append([item for items in met for item in items])
    assert by_rank[0].steps == 3 * each and by_rank[0].items_before(by_rank[0].steps) == 3 * count
    assert count < 7 or len({tuple(order) for order in orders}) == 3
