"""Locally banded attention against dense attention, the operation alone: time, and how memory grows
with the context.

    python benchmarks/banded_attention.py [--rounds 7] [--json FILE]

One sequence, 12 heads of 64, float32, forward and backward. Dense is torch's
scaled_dot_product_attention(is_causal=True), which makes no [time, time] buffer on a CPU either: it
is its time that grows with the square. Both take turns in one process; the ratio is of medians.
Memory is what a fresh process holds at its peak beyond what it held with the inputs made: result,
gradients, everything kept and scratch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bars import below, verdict  # noqa: E402
from gpt_model.io import peak_resident_bytes  # noqa: E402
from gpt_model.ops.sliding_window import sliding_window_attention  # noqa: E402

BAND = 256
CONTEXTS = (1024, 2048, 4096)
HEADS, WIDTH = 12, 64
TIME_BAR = 0.6
GROWTH_BAR = 2.2  # times the memory at twice the context; linear is 2, and 4 were quadratic

WAYS: dict[str, Callable[..., Tensor]] = {
    "banded": lambda query, key, value: sliding_window_attention(query, key, value, BAND),
    "dense": lambda query, key, value: F.scaled_dot_product_attention(
        query, key, value, is_causal=True
    ),
}


def inputs(context: int) -> tuple[list[Tensor], Tensor]:
    """Query, key and value as a model makes them, views of one product; and the gradient of the
    result.
    """
    fused, upstream = (
        torch.randn(1, context, 3 * HEADS * WIDTH),
        torch.randn(1, context, HEADS * WIDTH),
    )
    return [_by_head(part).requires_grad_() for part in fused.chunk(3, -1)], _by_head(upstream)


def _by_head(fused: Tensor) -> Tensor:
    return fused.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)


def times(context: int, rounds: int) -> dict[str, float]:
    """Median seconds of one forward and backward, each way."""
    qkv, upstream = inputs(context)
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(1 + rounds):
        for name, way in WAYS.items():
            began = time.perf_counter()
            torch.autograd.grad(way(*qkv), qkv, upstream)
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def memory(way: str, context: int) -> int:
    """Bytes at the peak beyond the inputs, of a process that does nothing else."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", way, str(context)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def memory_process(way: str, context: int) -> None:
    qkv, upstream = inputs(128)
    torch.autograd.grad(WAYS[way](*qkv), qkv, upstream)  # what any first call loads and starts
    qkv, upstream = inputs(context)
    before = peak_resident_bytes()
    torch.autograd.grad(WAYS[way](*qkv), qkv, upstream)
    print(peak_resident_bytes() - before)


def report(found: dict[str, dict[str, dict[str, float]]]) -> str:
    seconds, held = found["seconds"], found["bytes"]
    lines = [
        f"band {BAND}, {HEADS} heads of {WIDTH}, one sequence, float32, forward and backward, "
        f"{torch.get_num_threads()} threads"
    ]
    for context in map(str, CONTEXTS):
        banded, dense = seconds[context]["banded"], seconds[context]["dense"]
        bar = (
            f" {below(f'banded / dense at {context}', banded / dense, TIME_BAR)}"
            if context == str(CONTEXTS[-1])
            else ""
        )
        lines.append(
            f"context {int(context):,}: banded {1e3 * banded:.1f} ms / dense {1e3 * dense:.1f} ms "
            f"= {banded / dense:.2f}{bar}"
        )
    for way in WAYS:
        at = [held[str(context)][way] for context in CONTEXTS]
        growth = max(later / earlier for earlier, later in pairwise(at))
        line = f"peak memory, {way}: {', '.join(f'{size / 1e6:.1f}' for size in at)} MB"
        if way == "banded":
            line += (
                f", at most {growth:.2f} times at twice the context "
                f"{below('growth of memory', growth, GROWTH_BAR)}"
            )
        lines.append(line)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        memory_process(given.memory[0], int(given.memory[1]))
        return 0
    values = {
        "seconds": {str(context): times(context, given.rounds) for context in CONTEXTS},
        "bytes": {
            str(context): {way: float(memory(way, context)) for way in WAYS} for context in CONTEXTS
        },
    }
    print(report(values))
    if given.json:
        given.json.write_text(json.dumps(values, indent=2) + "\n")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
