"""Exchanges between the ranks of one host through memory that they share.

gloo sends what ranks exchange through the loopback interface, which takes a small model a tenth of
its step. Here each rank writes into memory of its process (`memfd`) that the others map, and reads
theirs. A barrier of counters in that memory orders the accesses: gloo's wakes a thread of its own,
which takes some 1 ms while both cores compute. It is still gloo that says where a rank is gone.

Sums are made here where there are two ranks, and their order is then gloo's, so that a training has
the same bytes on one host and on two. The sums of more ranks, ranks on several hosts, tensors of
other precisions and systems without `memfd` stay with gloo.

At ZeRO 1 and 2 the ranks have one copy of the weights between them (`SharedWeights`), so that none
are gathered, and at ZeRO 1 the buckets in which DeepSpeed collects gradients lie in shared memory
(`SharedGradients`): each rank adds up the part that it steps, and nothing is copied.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from gpt_model.ops.sizes import SHARED_ELEMENTS as ELEMENTS

# Elements; where gloo's barrier orders the accesses, it sends smaller tensors itself
SMALLEST = 1 << 14
FLOAT32, SECRET = 4, 8  # bytes
PRECISIONS = {torch.float32, torch.float64}
HELD_ONCE = "held_once"  # attribute of a tensor that all ranks have in the same memory


# Processors on which others see a rank's writes in the order in which it made them
ORDERED_WRITES = {"x86_64", "AMD64"}
CACHE_LINE = 64  # bytes
SPINS = 2_000  # looks at a counter without sleep, some 1 ms
SHORTEST, LONGEST = 5e-5, 5e-3  # seconds of sleep between later looks: each is twice the last
LOOK_FOR_DEAD = 1.0  # seconds that a rank waits before it looks whether the other is still there


class Barrier:
    """Waits until all ranks have come here, by counters in memory that they share."""

    def __init__(
        self, memories: Sequence[Tensor], rank: int, processes: Sequence[int], timeout: timedelta
    ) -> None:
        """`memories`: each rank's, of which this takes the second cache line; `processes`: ids."""
        counters = [ctypes.c_int64.from_address(each.data_ptr() + CACHE_LINE) for each in memories]
        self._memories, self._timeout = memories, timeout  # which the counters lie in
        self._count, self._mine = 0, counters[rank]
        self._others = [
            (counter, process)
            for other, (counter, process) in enumerate(zip(counters, processes, strict=True))
            if other != rank
        ]

    def __call__(self) -> None:
        self._count += 1
        self._mine.value = self._count
        for counter, process in self._others:
            self._wait(counter, process)

    def _wait(self, counter: ctypes.c_int64, process: int) -> None:
        for _ in range(SPINS):
            if counter.value >= self._count:
                return
            os.sched_yield()
        began = looked = time.monotonic()
        asleep = SHORTEST
        while counter.value < self._count:
            time.sleep(asleep)
            asleep, now = min(2 * asleep, LONGEST), time.monotonic()
            if now - looked > LOOK_FOR_DEAD:
                looked = now
                if _is_gone(process) and counter.value < self._count:
                    torch.distributed.barrier()  # raises, as the connection to it is closed
            if now - began > self._timeout.total_seconds():
                raise torch.distributed.DistBackendError(
                    f"Timed out after {self._timeout}: process {process} did not come"
                )


def _is_gone(process: int) -> bool:
    """Whether it has ended, be it that nobody has asked how."""
    try:
        status = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return True
    return status.rpartition(b") ")[2][:1] in b"ZX"


class SharedMemory:
    """Takes the place of a DeepSpeed backend's sums and gathers on CPUs."""

    def __init__(
        self,
        backend: Any,
        memories: list[Tensor],
        rank: int,
        barrier: Callable[[], Any] = torch.distributed.barrier,
    ) -> None:
        """`memories`: each rank's, [ELEMENTS]."""
        self.memories, self.rank, self.ranks = memories, rank, len(memories)
        self.barrier = barrier
        self._smallest = 1 if isinstance(barrier, Barrier) else SMALLEST
        self._sum, self._gather = backend.all_reduce, backend.all_gather_into_tensor

    def all_reduce(self, tensor: Tensor, op: Any, group: Any = None, async_op: bool = False) -> Any:
        """`tensor` [...] becomes its sum over ranks. `op`: DeepSpeed's own enumeration's."""
        summed = op.name == "SUM" and self.ranks == 2
        if async_op or not summed or not self._takes(tensor, group):
            return self._sum(tensor, op, group, async_op)
        for part in tensor.view(-1).split(self._at_once(tensor)):
            first, second = self._exchanged(part)
            torch.add(first, second, out=part)
            self.barrier()  # all have read
        return None

    def all_gather_into_tensor(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any = None, async_op: bool = False
    ) -> Any:
        """`output_tensor` [ranks * n] becomes the `input_tensor` [n] of each rank in turn."""
        if getattr(output_tensor, HELD_ONCE, False):
            self.barrier()  # all have written their shares where the others read them
            return None
        if async_op or not self._takes(input_tensor, group) or not output_tensor.is_contiguous():
            return self._gather(output_tensor, input_tensor, group, async_op)
        elements = self._at_once(input_tensor)
        shares = output_tensor.view(self.ranks, -1).split(elements, dim=1)
        for columns, part in zip(shares, input_tensor.view(-1).split(elements), strict=True):
            for share, read in zip(columns, self._exchanged(part), strict=True):
                if share.data_ptr() != part.data_ptr():
                    share.copy_(read)
            self.barrier()  # all have read
        return None

    def _takes(self, tensor: Tensor, group: Any) -> bool:
        """Whether `tensor` [...] goes through shared memory."""
        return (
            tensor.dtype in PRECISIONS
            and tensor.is_contiguous()
            and tensor.numel() >= self._smallest
            and torch.distributed.get_world_size(group) == self.ranks
        )

    @staticmethod
    def _at_once(tensor: Tensor) -> int:
        """Elements of `tensor` [...] that fit into the memory."""
        return ELEMENTS * FLOAT32 // tensor.itemsize

    def _exchanged(self, part: Tensor) -> list[Tensor]:
        """Every rank's part [elements] in shared memory, of which this rank's is `part`."""
        elements = part.nbytes // FLOAT32
        read = [memory[:elements].view(part.dtype) for memory in self.memories]
        read[self.rank].copy_(part)
        self.barrier()  # all have written
        return read


def share_memory(backend: Any, timeout: timedelta) -> bool:
    """Let DeepSpeed's backend exchange through shared memory, where every rank can map every
    other's. Returns whether they can. Collective. `timeout`: of an exchange.
    """
    memories, rank = _memories(ELEMENTS), torch.distributed.get_rank()
    if memories is not None:
        shared = SharedMemory(backend, memories, rank, _barrier(rank, timeout))
        backend.all_reduce = shared.all_reduce
        backend.all_gather_into_tensor = shared.all_gather_into_tensor
    return memories is not None


def exchange_between(
    backend: Any, elements: int
) -> Callable[[Sequence[Tensor], Sequence[int]], Tensor] | None:
    """What gives each rank its part [at most `elements`] and returns so many elements of each rank,
    joined; None where `backend` does not exchange through shared memory, or parts are too large.
    Collective, as each call is.
    """
    shared = _in_use(backend)
    ranks = torch.distributed.get_world_size()
    if shared is None or ranks * elements > ELEMENTS:
        return None
    memories, rank, barrier = shared.memories, shared.rank, shared.barrier

    def exchange(parts: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
        for other, part in enumerate(parts):
            memories[rank][other * elements :][: len(part)].copy_(part)
        barrier()  # all have written
        start = rank * elements
        joined = torch.cat(
            [
                memory[start : start + length]
                for memory, length in zip(memories, lengths, strict=True)
            ]
        )
        barrier()  # all have read
        return joined

    return exchange


def _barrier(rank: int, timeout: timedelta) -> Callable[[], Any]:
    """One of counters, where the processor allows it; else gloo's. Collective."""
    ordered = os.uname().machine in ORDERED_WRITES
    counters = _memories(2 * CACHE_LINE // FLOAT32) if ordered else None
    if counters is None:
        return torch.distributed.barrier
    process = torch.tensor(os.getpid())
    processes = [torch.empty_like(process) for _ in counters]
    torch.distributed.all_gather(processes, process)
    return Barrier(counters, rank, [int(each) for each in processes], timeout)


def _in_use(backend: Any) -> SharedMemory | None:
    """What `backend` exchanges through, if it does through shared memory."""
    shared = getattr(getattr(backend, "all_reduce", None), "__self__", None)
    return shared if isinstance(shared, SharedMemory) else None


def share_state(backend: Any, optimizer: Any) -> None:
    """Let DeepSpeed's optimizer of ZeRO 1 or 2 share weights, and at 1 what gradients are collected
    in, where `backend` exchanges through shared memory. Collective.
    """
    shared = _in_use(backend)
    in_float32 = all(flat.dtype == torch.float32 for flat in optimizer.bit16_groups_flat)
    # Before ranks write weights, the norm's exchange says that no other reads them any more
    if shared is None or not in_float32 or optimizer.cpu_offload or not optimizer.compute_grad_norm:
        return
    _share_weights(optimizer)
    in_one_bucket = (
        optimizer.contiguous_gradients
        and not optimizer.overlap_comm
        and set(optimizer.ipg_buckets) == {torch.float32}
        and optimizer.reduce_bucket_size <= ELEMENTS
    )
    if shared.ranks == 2 and in_one_bucket and not optimizer.partition_gradients:
        _share_gradients(optimizer, shared)


def _share_weights(optimizer: Any) -> None:
    """Move the flat weights of DeepSpeed's optimizer, the same on all ranks, into rank 0's memory:
    each rank then writes its share where the others read it.
    """
    flats = optimizer.bit16_groups_flat
    memories = _memories(sum(len(flat) for flat in flats))
    if memories is None:
        return
    parts = memories[0].split([len(flat) for flat in flats])
    for group, (flat, part) in enumerate(zip(list(flats), parts, strict=True)):
        if torch.distributed.get_rank() == 0:
            part.copy_(flat)
        setattr(part, HELD_ONCE, True)
        flats[group] = part
        shares = optimizer.get_data_parallel_partitions(part, group)
        optimizer.parallel_partitioned_bit16_groups[group] = shares
        optimizer._update_model_bit16_weights(group)
        for weight in optimizer.bit16_groups[group]:
            if (mapping := weight._hp_mapping) is not None:  # of what this rank steps
                address = mapping.lp_fragment_address
                flat_weight = weight.data.view(-1)
                mapping.lp_fragment = flat_weight.narrow(0, address.start, address.numel)
    torch.distributed.barrier()


def _share_gradients(optimizer: Any, exchange: SharedMemory) -> None:
    """Have DeepSpeed's optimizer of ZeRO 1 collect gradients in memory that both ranks read, and
    average there what its rank steps.
    """
    memories = _memories(optimizer.reduce_bucket_size)
    if memories is not None:
        shared = SharedGradients(optimizer, memories, exchange.rank, exchange.barrier)
        optimizer.setup_buckets = shared.setup_buckets
        optimizer.average_tensor = shared.average_tensor
        if sum(map(len, optimizer.bit16_groups_flat)) <= optimizer.reduce_bucket_size:
            # Each gradient has a place of its own in the bucket till the step is made
            optimizer.copy_grads_in_partition = lambda *_: None


class SharedGradients:
    """Takes the place of two methods of DeepSpeed's optimizer of ZeRO 1, on two ranks whose weights
    lie in one memory.
    """

    def __init__(
        self, optimizer: Any, memories: list[Tensor], rank: int, barrier: Callable[[], Any]
    ) -> None:
        """`memories`: each rank's bucket, [elements]."""
        self.memories, self.rank, self._barrier = memories, rank, barrier
        self._weights, self._shares = (
            optimizer.bit16_groups,
            [shares[rank] for shares in optimizer.parallel_partitioned_bit16_groups],
        )
        [self._bucket] = optimizer.ipg_buckets.values()
        self._setup, self._average = optimizer.setup_buckets, optimizer.average_tensor

    def setup_buckets(self) -> None:
        """DeepSpeed makes a bucket before a step's first gradient: it has this memory instead."""
        self._setup()
        self._bucket.buffer[0] = self.memories[self.rank]

    def average_tensor(self, tensor: Tensor, communication_data_type: torch.dtype) -> None:
        """What this rank steps of the gradients `tensor` [elements] becomes their mean over ranks;
        the rest is of no further use.
        """
        if tensor.data_ptr() != self.memories[self.rank].data_ptr():  # larger than a bucket
            self._average(tensor, communication_data_type)
            return
        self._barrier()  # all have written
        for part in self._stepped():
            first, second = (memory[part] for memory in self.memories)
            torch.add(first, second, out=tensor[part]).mul_(1 / len(self.memories))
        self._barrier()  # all have read

    def _stepped(self) -> Iterator[slice]:
        """Where in the bucket lies what this rank steps."""
        start = 0
        for group, index, _ in self._bucket.params:
            weight, share = self._weights[group][index], self._shares[group]
            # Both are views of one memory
            at = weight.storage_offset() - share.storage_offset()
            first, last = max(-at, 0), min(weight.numel(), share.numel() - at)
            if first < last:
                yield slice(start + first, start + last)
            start += weight.numel()


def _memories(elements: int) -> list[Tensor] | None:
    """Every rank's memory [elements] of float32; None on all ranks where one cannot map another's.
    Collective.
    """
    ranks = torch.distributed.get_world_size()
    descriptor, secret = -1, secrets.randbits(62)  # that the memory is that rank's, not another's
    # No memfd, a system that forbids it, or a limit on the size of files: gloo does
    with suppress(AttributeError, OSError):
        descriptor = os.memfd_create("lineage-exchange")
        os.truncate(descriptor, max(elements * FLOAT32, SECRET))
        os.pwrite(descriptor, secret.to_bytes(SECRET, "little"), 0)
    here = torch.tensor([os.getpid(), descriptor, secret])
    there = [torch.empty_like(here) for _ in range(ranks)]
    torch.distributed.all_gather(there, here)
    memories = [_mapped(elements, *each.tolist()) for each in there]
    mapped = torch.tensor([int(all(memory is not None for memory in memories))])
    torch.distributed.all_reduce(mapped, torch.distributed.ReduceOp.MIN)
    if descriptor != -1:
        os.close(descriptor)
    return [memory for memory in memories if memory is not None] if mapped.item() else None


def _mapped(elements: int, process: int, descriptor: int, secret: int) -> Tensor | None:
    """The memory [elements] behind that process's descriptor, if it is on this host and begins with
    the secret.
    """
    path, size = Path(f"/proc/{process}/fd/{descriptor}"), max(elements * FLOAT32, SECRET)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            return None
        memory = torch.from_file(str(path), shared=True, size=elements, dtype=torch.float32)
    except (OSError, RuntimeError):
        return None
    return memory if int(memory[: SECRET // FLOAT32].view(torch.int64)) == secret else None
