"""Exchanges between the ranks of one host through memory that they share.

gloo sends what ranks exchange through the loopback interface, which takes a small model a tenth of
its step. Here each rank writes into memory of its process (`memfd`) that the others map, and reads
theirs. gloo's barrier orders the accesses, so it still says, as before, where a rank is gone.

Sums are made here where there are two ranks, and their order is then gloo's, so that a training has
the same bytes on one host and on two. The sums of more ranks, ranks on several hosts, tensors of
other precisions and systems without `memfd` stay with gloo.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from gpt_model.ops.sizes import SHARED_ELEMENTS as ELEMENTS

SMALLEST = 1 << 14  # elements; smaller tensors are sent by gloo, which then takes no longer


class SharedMemory:
    """Takes the place of a DeepSpeed backend's sums and gathers of float32 on CPUs."""

    def __init__(self, backend: Any, memories: list[Tensor], rank: int) -> None:
        """`memories`: each rank's, [ELEMENTS]."""
        self.memories, self.rank, self.ranks = memories, rank, len(memories)
        self._sum, self._gather = backend.all_reduce, backend.all_gather_into_tensor

    def all_reduce(self, tensor: Tensor, op: Any, group: Any = None, async_op: bool = False) -> Any:
        """`tensor` [...] becomes its sum over ranks. `op`: DeepSpeed's own enumeration's."""
        summed = op.name == "SUM" and self.ranks == 2
        if async_op or not summed or not self._takes(tensor, group):
            return self._sum(tensor, op, group, async_op)
        for part in tensor.view(-1).split(ELEMENTS):
            first, second = self._exchanged(part)
            torch.add(first, second, out=part)
            torch.distributed.barrier()  # all have read
        return None

    def all_gather_into_tensor(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any = None, async_op: bool = False
    ) -> Any:
        """`output_tensor` [ranks * n] becomes the `input_tensor` [n] of each rank in turn."""
        if async_op or not self._takes(input_tensor, group) or not output_tensor.is_contiguous():
            return self._gather(output_tensor, input_tensor, group, async_op)
        shares = output_tensor.view(self.ranks, -1).split(ELEMENTS, dim=1)
        for columns, part in zip(shares, input_tensor.view(-1).split(ELEMENTS), strict=True):
            for share, read in zip(columns, self._exchanged(part), strict=True):
                if share.data_ptr() != part.data_ptr():
                    share.copy_(read)
            torch.distributed.barrier()  # all have read
        return None

    def _takes(self, tensor: Tensor, group: Any) -> bool:
        """Whether `tensor` [...] goes through shared memory."""
        return (
            tensor.dtype == torch.float32
            and tensor.is_contiguous()
            and tensor.numel() >= SMALLEST
            and torch.distributed.get_world_size(group) == self.ranks
        )

    def _exchanged(self, part: Tensor) -> list[Tensor]:
        """Every rank's part [elements] in shared memory, of which this rank's is `part`."""
        read = [memory[: len(part)] for memory in self.memories]
        read[self.rank].copy_(part)
        torch.distributed.barrier()  # all have written
        return read


def share_memory(backend: Any) -> bool:
    """Let DeepSpeed's backend exchange through shared memory, where every rank can map every
    other's. Returns whether they can. Collective.
    """
    memories = _memories()
    if memories is not None:
        shared = SharedMemory(backend, memories, torch.distributed.get_rank())
        backend.all_reduce = shared.all_reduce
        backend.all_gather_into_tensor = shared.all_gather_into_tensor
    return memories is not None


def _memories() -> list[Tensor] | None:
    """Every rank's memory [ELEMENTS]; None on all ranks where one cannot map another's."""
    ranks = torch.distributed.get_world_size()
    descriptor, secret = -1, secrets.randbits(62)  # that the memory is that rank's, not another's
    # No memfd, a system that forbids it, or a limit on the size of files: gloo does
    with suppress(AttributeError, OSError):
        descriptor = os.memfd_create("lineage-exchange")
        os.truncate(descriptor, ELEMENTS * 4)
        os.pwrite(descriptor, secret.to_bytes(8, "little"), 0)
    here = torch.tensor([os.getpid(), descriptor, secret])
    there = [torch.empty_like(here) for _ in range(ranks)]
    torch.distributed.all_gather(there, here)
    memories = [_mapped(*each.tolist()) for each in there]
    mapped = torch.tensor([int(all(memory is not None for memory in memories))])
    torch.distributed.all_reduce(mapped, torch.distributed.ReduceOp.MIN)
    if descriptor != -1:
        os.close(descriptor)
    return [memory for memory in memories if memory is not None] if mapped.item() else None


def _mapped(process: int, descriptor: int, secret: int) -> Tensor | None:
    """The memory [ELEMENTS] behind that process's descriptor, if it is on this host and begins with
    the secret.
    """
    path = Path(f"/proc/{process}/fd/{descriptor}")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != ELEMENTS * 4:
            return None
        memory = torch.from_file(str(path), shared=True, size=ELEMENTS, dtype=torch.float32)
    except (OSError, RuntimeError):
        return None
    return memory if int(memory[:2].view(torch.int64)) == secret else None
