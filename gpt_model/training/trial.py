"""The micro-batch found by trial: the largest power of two of sequences whose training step a GPU
has memory for, or all of a rank's.

A step of 1 sequence, of 2, of 4 and so on is taken, at a learning rate of 0. Before each next one
its memory is extrapolated from the last two, so that none runs out: one rank that does leaves the
others waiting.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.distributed

from gpt_model.io import write_json
from gpt_model.training.ahead import on_device
from gpt_model.training.batching import MicroBatchSize
from gpt_model.training.engine import Engine
from gpt_model.training.memory import USABLE

# More tokens a micro-batch make no step faster
MOST_TOKENS = 1 << 16


@runtime_checkable
class SizedObjective(Protocol):
    """An objective (`loop.Objective`) whose micro-batches may have another size."""

    size: MicroBatchSize

    def full_micro_batch(self, sequences: int) -> Any:
        """A micro-batch of so many sequences of `size.context` tokens, of which none takes more
        memory. Its loss counts nothing.
        """


class Trial(NamedTuple):
    """Sequences of the largest micro-batch that fits, and the bytes that a step of it takes. And
    those of a larger one, where memory is what forbids it.
    """

    rows: int
    peak: float
    next_rows: int = 0
    next_peak: float = 0.0


def choose_micro_batch(
    objective: SizedObjective, engine: Engine, record: Path | None, log: Callable[[str], None]
) -> None:
    """Give the objective the largest micro-batch that fits, once a build: what resumes has the same
    one, from `record`. Collective.
    """
    size, known = objective.size, 0
    if record and record.is_file():
        known = int(json.loads(record.read_text(encoding="utf-8"))["sequences"])
    # Another host may not see the file yet
    if known := int(_most_of_ranks(known, engine)):
        size.fit(known)
        return
    most = max(1, min(size.most(engine.execution.world_size), MOST_TOKENS // size.context))
    tried = largest_micro_batch(engine, objective.full_micro_batch, most)
    size.fit(tried.rows)
    log(
        f"Micro-batches have up to {tried.rows} sequences of {size.context} tokens, "
        f"{tried.peak / 1e9:.1f} GB; "
        + (
            f"{tried.next_rows} would take {tried.next_peak / 1e9:.1f} GB."
            if tried.next_rows
            else "larger ones are not faster."
        )
    )
    if record and engine.execution.rank == 0:
        write_json(record, {"sequences": tried.rows})


def largest_micro_batch(engine: Engine, of_rows: Callable[[int], Any], most: int) -> Trial:
    """Of 1, 2, 4, … sequences and `most`, `of_rows` each. Leaves weights and moments as they were
    before the first step. Collective.
    """

    def peak(rows: int) -> float:
        # Two, so that the second is computed beside the first one's gradients
        batch = on_device(of_rows(rows), engine.execution.device)
        on_this_rank = peak_bytes(lambda: engine.step([batch, batch], 0.0, [0, 0]))
        return _most_of_ranks(on_this_rank, engine)

    peak(1)  # makes the moments
    before = _most_of_ranks(peak_bytes(lambda: None), engine)  # of no sequence
    rows_before, tried = 0, Trial(1, peak(1))
    while tried.rows < most:
        rows = min(2 * tried.rows, most)
        # A row more takes what the last rows took, each
        of_row = (tried.peak - before) / (tried.rows - rows_before)
        predicted = tried.peak + of_row * (rows - tried.rows)
        if _most_of_ranks(predicted - usable_bytes(), engine) > 0:
            tried = tried._replace(next_rows=rows, next_peak=predicted)
            break
        rows_before, before, tried = tried.rows, tried.peak, Trial(rows, peak(rows))
    engine.forget_steps()
    if engine.execution.compile:  # what comes now has one shape, and is compiled for it
        torch.compiler.reset()
    return tried


def _most_of_ranks(value: float, engine: Engine) -> float:
    most = torch.tensor([value], dtype=torch.float64, device=engine.execution.device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return float(most.item())


def usable_bytes() -> float:
    """Of this rank's GPU, what torch holds already among it."""
    free, _ = torch.cuda.mem_get_info()
    return USABLE * (free + torch.cuda.memory_reserved())


def peak_bytes(call: Callable[[], Any]) -> float:
    """The most memory that torch has allocated on this rank's GPU during the call."""
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated())
