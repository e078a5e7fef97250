"""One rank that sums and gathers tensors through shared memory and through gloo, for
`test_shared_memory.py`: prints, as JSON, whether memory is shared and whether the bytes are equal.

`--zero STAGE`: it joins the others as a training of that stage does, and prints whether they share.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist

from gpt_model.training import shared_memory
from gpt_model.training.engine import Execution, join_without_training, start

PART = 20_000  # of the shared memory here: the tensor goes in three parts


def refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def main(rank: int, ranks: int, fault: str = "") -> None:
    """`fault` of the last rank's system: it has no memfd ("apart"), or forbids it ("refused")."""
    torch.set_num_threads(1)
    shared_memory.ELEMENTS = PART
    join_without_training(Execution(rank=rank, world_size=ranks))
    if fault and rank == ranks - 1:
        if fault == "apart":
            del os.memfd_create
        else:
            os.truncate = refuse
    through_gloo: list[int] = []

    def all_reduce(tensor: torch.Tensor, op: object, group: object, async_op: bool) -> None:
        through_gloo.append(tensor.numel())
        dist.all_reduce(tensor)

    def all_gather(whole: torch.Tensor, part: torch.Tensor, group: object, async_op: bool) -> None:
        through_gloo.append(part.numel())
        dist.all_gather_into_tensor(whole, part)

    backend = SimpleNamespace(all_reduce=all_reduce, all_gather_into_tensor=all_gather)
    shared = shared_memory.share_memory(backend)
    mine = torch.randn(2 * PART + 7, generator=torch.Generator().manual_seed(rank))
    equal = []
    for tensor in (mine, mine[:100]):  # the second is too small to share
        expected, result = tensor.clone(), tensor.clone()
        dist.all_reduce(expected)
        backend.all_reduce(result, dist.ReduceOp.SUM, None, False)
        whole, whole_result = (tensor.new_empty(ranks * len(tensor)) for _ in range(2))
        dist.all_gather_into_tensor(whole, tensor)
        share = whole_result.chunk(ranks)[rank]  # as ZeRO gathers weights: out of the whole itself
        share.copy_(tensor)
        backend.all_gather_into_tensor(whole_result, share, None, False)
        equal.append(torch.equal(expected, result) and torch.equal(whole, whole_result))
    print(json.dumps({"shared": shared, "equal": equal, "gloo": through_gloo}))


def started(rank: int, ranks: int, zero_stage: int) -> None:
    """Print whether the ranks of a training of that stage exchange through shared memory."""
    start(Execution(rank=rank, world_size=ranks, zero_stage=zero_stage))
    import deepspeed

    reduce = deepspeed.comm.comm.cdb.all_reduce
    print(json.dumps({"shared": isinstance(reduce.__self__, shared_memory.SharedMemory)}))


if __name__ == "__main__":
    if "--zero" in sys.argv:
        started(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(sys.argv[2]))
        sys.exit()
    main(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), *sys.argv[1:])
