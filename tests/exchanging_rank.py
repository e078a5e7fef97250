"""One rank that sums and gathers tensors through shared memory and through gloo, for
`test_shared_memory.py`: prints, as JSON, whether memory is shared and whether the bytes are equal.
"""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist

from gpt_model.training import shared_memory
from gpt_model.training.engine import Execution, join_without_training

PART = 20_000  # of the shared memory here: the tensor goes in three parts


def main(rank: int, ranks: int, apart: bool) -> None:
    """`apart`: the last rank is on a system that does not share memory."""
    torch.set_num_threads(1)
    shared_memory.ELEMENTS = PART
    join_without_training(Execution(rank=rank, world_size=ranks))
    if apart and rank == ranks - 1:
        del os.memfd_create
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


if __name__ == "__main__":
    main(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), sys.argv[1:] == ["apart"])
