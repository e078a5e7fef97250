"""A peer is set as fast as it goes before it stands against ours: each of its settings is tried once
on the benchmark's own inputs, and the fastest is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Settings = dict[str, Any]


def micro_batches(batch: int, **others: Any) -> list[Settings]:
    """TRL's settings of one optimizer step of `batch` rows, whole and in 2, 4 and 8 parts, with
    torch's fused AdamW.
    """
    return [
        {
            "per_device_train_batch_size": batch // parts,
            "gradient_accumulation_steps": parts,
            "optim": "adamw_torch_fused",
            **others,
        }
        for parts in (1, 2, 4, 8)
        if batch % parts == 0
    ]


def fastest(tries: Iterable[Settings], seconds: Callable[[Settings], float]) -> Settings:
    """The settings of which the benchmark takes the fewest seconds."""
    taken: list[tuple[float, Settings]] = []
    for settings in tries:
        taken.append((seconds(settings), settings))
        print(f"  peer with {settings}: {taken[-1][0]:.2f} s", flush=True)
    return min(taken, key=lambda pair: pair[0])[1]
