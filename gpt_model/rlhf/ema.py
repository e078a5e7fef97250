"""The moving average of a policy's weights, batch by batch: average = decay · average + (1 − decay)
· weights (InstructGPT, appendix C.4).

Each rank averages a share of the elements: at ZeRO 3 those that it has, else an equal part of each
parameter. Each batch leaves a folder with a file of each rank, made of the folder before and of the
weights at that step. So the average is a function of the step, and a run that resumes from a
checkpoint finds the files it continues, on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor

from gpt_model.errors import CorruptFile
from gpt_model.rlhf.rollout_engine import write_tensors
from gpt_model.training.checkpoint import read_overlaps
from gpt_model.training.engine import Execution
from gpt_model.training.sharded import filling, shares
from gpt_model.transformer import GPT

Share = tuple[str, int, Tensor]  # a parameter's name, the first of its elements, elements [n]


@torch.no_grad()
def advance(
    folder: Path, batch: int, policy: GPT, start: GPT, decay: float, execution: Execution
) -> None:
    """Write the average after `batch` batches of training. The average before the first is
    `start`. Collective.
    """
    weights = list(_shares(policy, execution))
    if batch == 1:
        average = [share for _, _, share in _shares(start, execution)]
    else:
        average = [torch.empty_like(share, device="cpu") for _, _, share in weights]
        targets = zip(weights, average, strict=True)
        _read(folder, batch - 1, {name: (first, share) for (name, first, _), share in targets})
    averaged = {
        f"{name}/{first}": before.cpu().float() * decay + share.cpu().float() * (1 - decay)
        for (name, first, share), before in zip(weights, average, strict=True)
    }
    rank, ranks = execution.rank, execution.world_size
    written = folder_of(folder, batch)
    write_tensors(averaged, written / f"{rank:05d}-of-{ranks:05d}.safetensors")
    torch.distributed.barrier()
    if rank == 0:  # what another number of ranks has left
        for path in set(written.iterdir()) - set(written.glob(f"*-of-{ranks:05d}.safetensors")):
            path.unlink()
    torch.distributed.barrier()


@torch.no_grad()
def load_into(policy: GPT, folder: Path, batch: int) -> None:
    """Give this rank's share of `policy`, of a plain one all of it, the average's weights after
    `batch` batches.
    """
    with filling(policy) as targets:
        _read(folder, batch, targets)


def folder_of(folder: Path, batch: int) -> Path:
    return folder / f"average-{batch:06d}"


def _shares(model: GPT, execution: Execution) -> Iterator[Share]:
    """What this rank averages of each parameter."""
    for share in shares(model):
        weight = share.values["weight"]
        if execution.zero_stage == 3:
            yield share.name, share.start, weight
        else:
            rank, ranks = execution.rank, execution.world_size
            first, end = (len(weight) * number // ranks for number in (rank, rank + 1))
            yield share.name, first, weight[first:end]


def _read(folder: Path, batch: int, targets: dict[str, tuple[int, Tensor]]) -> None:
    """Fill targets [n], by parameter, with the average's elements from a first one on."""
    files = sorted(folder_of(folder, batch).glob("*.safetensors"))
    if not files or len(files) != int(files[-1].stem.rpartition("-")[2]):
        raise CorruptFile(
            f"{folder_of(folder, batch)} has {len(files)} files of the moving average, and not one "
            "of each rank. Remove the unfinished build's folder, and build again."
        )
    read_overlaps(files, targets)
