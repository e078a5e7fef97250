"""A training goes on under other ranks and another ZeRO stage, half-way: nine changes, the losses at
the end beside that of a run that was left alone.

    python benchmarks/elastic.py

A model of two layers, without dropout, over gloo. All of them run at once, so it takes half a
minute on two cores, and no time is measured.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from training_ranks import change_half_way, make_inputs  # noqa: E402

from benchmarks.bars import at_most, verdict  # noqa: E402

# (ranks, ZeRO stage) before and after. One that another waits for stands before it.
CHANGES = [
    ((1, 0), (2, 3)),
    ((1, 0), (3, 2)),
    ((2, 3), (1, 0)),
    ((2, 3), (3, 1)),
    ((2, 3), (3, 3)),
    ((2, 1), (2, 0)),
    ((2, 1), (3, 3)),
    ((3, 2), (1, 1)),
    ((3, 2), (2, 3)),
]


def main() -> int:
    """Print each change and its bar."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(Path(folder) / "inputs")
        with contextlib.redirect_stdout(None):  # progress
            expected, records = change_half_way(inputs, Path(folder), CHANGES)
    print(f"undisturbed: loss {expected:.6f}; (ranks, ZeRO stage) before -> after:")
    for (before, after), record in records.items():
        name = f"{before} -> {after}"
        off = abs(record["result"]["loss"] - expected)
        step = record["result"]["resumed_from"]
        bar = at_most(name, off, 1e-5)
        print(f"{name}: from step {step} of 20, off by {off:.1e} {bar}")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
