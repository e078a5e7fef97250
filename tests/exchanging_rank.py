"""One rank that sums and gathers tensors through shared memory and through gloo, for
`test_shared_memory.py`: prints, as JSON, whether memory is shared and whether the bytes are equal.

`--zero STAGE`: it joins the others as a training of that stage does, and prints whether they share.
`--dead`: rank 1 ends, and rank 0 prints what becomes of a sum that waits for it.
`--train STAGE`: it trains a small GPT so, and prints what ranks share and the weights' digest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from gpt_model import GPT, ModelConfig
from gpt_model.training import shared_memory
from gpt_model.training.engine import Engine, Execution, join_without_training, start
from gpt_model.training.optimizer import MuonSettings, TrainingSettings

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
    shared = shared_memory.share_memory(backend, timedelta(minutes=5))
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


def left_alone(rank: int, ranks: int) -> None:
    """Rank 1 is gone without having summed."""
    start(Execution(rank=rank, world_size=ranks))
    import deepspeed

    outcome = "gone"
    if rank == 0:
        try:
            deepspeed.comm.all_reduce(torch.zeros(PART))
        except RuntimeError as error:
            outcome = type(error).__name__
    print(json.dumps({"outcome": outcome}), flush=True)
    os._exit(0)


class NextToken:
    """The loss of a language model, without metrics."""

    def loss(self, model: torch.nn.Module, micro_batch: torch.Tensor) -> tuple[torch.Tensor, dict]:
        return model(micro_batch[:, :-1], micro_batch[:, 1:]), {}


def trained(
    rank: int, ranks: int, zero_stage: int, optimizer: str, bucket: int, apart: str
) -> None:
    """Train for three steps of two micro-batches. `bucket`: of how many gradients, 0 for all.
    `apart`: the last rank's system has no memfd.
    """
    torch.set_num_threads(1)
    if apart and rank == ranks - 1:
        del os.memfd_create
    shape = {"layers": 2, "width": 32, "heads": 2, "context": 16, "vocab_size": 1000}
    model = GPT(ModelConfig(family="gpt2", dropout=0.0, **shape), seed=1)
    muon = MuonSettings(rate_multiplier=2.0, weight_decay=0.1) if optimizer == "muon" else None
    settings = TrainingSettings(3, lambda step: 1e-3, muon=muon)  # type: ignore[arg-type]
    zero: dict[str, Any] = {"reduce_bucket_size": bucket} if bucket else {}
    if "offloaded" in optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    profile = {"zero_optimization": zero}
    execution = Execution("cpu", zero_stage, rank, ranks, deepspeed=profile)  # type: ignore[arg-type]
    engine = Engine(model, NextToken(), settings, execution)
    draw, norms = torch.Generator().manual_seed(rank), []
    for step in range(3):
        rows = torch.randint(0, 1000, (2, 2, 17), generator=draw)
        norms.append(engine.step(list(rows), 1e-3, [step, step])[2])
    optimizer_of_zero = engine._deepspeed.optimizer
    shared = [
        hasattr(optimizer_of_zero.bit16_groups_flat[0], shared_memory.HELD_ONCE),
        isinstance(
            getattr(optimizer_of_zero.average_tensor, "__self__", None),
            shared_memory.SharedGradients,
        ),
        bool(getattr(engine._base, "_through_memory", None)),
    ]
    engine.close()
    weights = b"".join(bytes(p.detach().numpy()) for p in model.parameters())
    digest = hashlib.sha256(weights).hexdigest()
    print(json.dumps({"shared": shared, "digest": digest, "norms": norms}))


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
    if "--dead" in sys.argv:
        left_alone(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    if "--train" in sys.argv:
        stage, muon_or_adamw, elements, *fault = sys.argv[2:]
        trained(
            int(os.environ["RANK"]),
            int(os.environ["WORLD_SIZE"]),
            int(stage),
            muon_or_adamw,
            int(elements),
            "".join(fault),
        )
        sys.exit()
    main(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), *sys.argv[1:])
