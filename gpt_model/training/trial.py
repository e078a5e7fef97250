"""The micro-batch found by trial: the largest power of two whose training step a GPU has memory
for.

A step of 1 sequence, of 2, of 4 and so on is taken, at a learning rate of 0. Before each next one
its memory is extrapolated from the last two, so that none runs out: one rank that does leaves the
others waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed

from gpt_model.training.engine import Engine
from gpt_model.training.memory import USABLE

# More tokens a micro-batch make no step faster
MOST_TOKENS = 1 << 16


class Trial(NamedTuple):
    """Sequences of the largest micro-batch that fits, the bytes that a step of it takes, and of
    one twice as large, where memory is what forbids that.
    """

    rows: int
    peak: float
    next_peak: float | None


def largest_micro_batch(
    engine: Engine,
    of_rows: Callable[[int], Any],
    most: int,
    usable_bytes: Callable[[], float],
    peak_bytes: Callable[[Callable[[], Any]], float],
) -> Trial:
    """Of 1, 2, 4, … `most` sequences, `of_rows` each. Leaves weights and moments as they were
    before the first step. Collective.

    `usable_bytes`, `peak_bytes`: what a GPU has, and the most that a call takes, as measured below.
    """

    def peak(rows: int) -> float:
        # Two, so that the second is computed beside the first one's gradients
        batch = of_rows(rows)
        on_this_rank = peak_bytes(lambda: engine.step([batch, batch], 0.0, [0, 0]))
        return _most_of_ranks(on_this_rank, engine)

    peak(1)  # makes the moments
    before = _most_of_ranks(peak_bytes(lambda: None), engine)  # of no sequence
    rows, now, after = 1, peak(1), None
    while 2 * rows <= most:
        # A row more takes what the last rows took, each: of the first, and of the last doubling.
        predicted = now + (now - before) * (1 if rows == 1 else 2)
        if _most_of_ranks(predicted - usable_bytes(), engine) > 0:
            after = predicted
            break
        rows, before, now = 2 * rows, now, peak(2 * rows)
    engine.forget_steps()
    if engine.execution.compile:  # what comes now has one shape, and is compiled for it
        torch.compiler.reset()
    return Trial(rows, now, after)


def _most_of_ranks(value: float, engine: Engine) -> float:
    most = torch.tensor([value], dtype=torch.float64, device=engine.execution.device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return float(most.item())


def gpu_usable_bytes() -> float:
    """Of this rank's GPU, what torch holds already among it."""
    free, _ = torch.cuda.mem_get_info()
    return USABLE * (free + torch.cuda.memory_reserved())


def gpu_peak_bytes(call: Callable[[], Any]) -> float:
    """The most memory that torch has allocated on this rank's GPU during the call."""
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated())
