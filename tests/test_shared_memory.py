"""Ranks of one host exchange through memory that they share, and get gloo's bytes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from assets.launch.launcher import worker_environment
from gpt_model.training.shared_memory import ORDERED_WRITES, Barrier

# Elsewhere gloo's barrier orders the accesses, and small tensors are gloo's
COUNTERS = os.uname().machine in ORDERED_WRITES
RANK = Path(__file__).with_name("exchanging_rank.py")
LARGE, SMALL = 40_007, 100


def exchanged(ranks: int, *arguments: str) -> list[dict[str, Any]]:
    """What each rank printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = worker_environment("cpu", ranks, 1) | {
        "MASTER_PORT": str(port),
        "PYTHONPATH": str(RANK.parent.parent),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), *arguments],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    return [json.loads(text.splitlines()[-1]) for text in printed]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's")
@pytest.mark.parametrize(
    ("ranks", "arguments", "gloo"),
    [
        (2, [], [] if COUNTERS else [SMALL, SMALL]),
        # sums of three: gloo's order of additions
        (3, [], [LARGE, SMALL] if COUNTERS else [LARGE, SMALL, SMALL]),
        (2, ["apart"], [LARGE, LARGE, SMALL, SMALL]),
        (2, ["refused"], [LARGE, LARGE, SMALL, SMALL]),
    ],
)
def test_ranks_that_share_memory_get_gloos_bytes(
    ranks: int, arguments: list[str], gloo: list[int]
) -> None:
    for rank in exchanged(ranks, *arguments):
        assert rank == {"shared": not arguments, "equal": [True, True], "gloo": gloo}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's")
@pytest.mark.parametrize(("zero_stage", "shared"), [(1, True), (3, False)])
def test_a_training_below_zero_3_exchanges_through_shared_memory(
    zero_stage: int, shared: bool
) -> None:
    assert exchanged(2, "--zero", str(zero_stage)) == [{"shared": shared}] * 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's")
@pytest.mark.parametrize(
    ("ranks", "zero_stage", "optimizer", "bucket", "shared"),
    [
        (2, 1, "adamw", 0, [True, True, False]),
        (2, 1, "adamw", 5_000, [True, True, False]),  # several buckets; the table is larger
        (2, 1, "muon", 0, [True, True, True]),
        (2, 2, "muon", 0, [True, False, True]),
        (3, 1, "adamw", 0, [True, False, False]),
        (2, 1, "adamw offloaded", 0, [False, False, False]),
    ],
)
def test_a_training_whose_ranks_share_weights_and_gradients_has_gloos_bytes(
    ranks: int, zero_stage: int, optimizer: str, bucket: int, shared: list[bool]
) -> None:
    arguments = ["--train", str(zero_stage), optimizer, str(bucket)]
    through_memory, through_gloo = (
        exchanged(ranks, *arguments),
        exchanged(ranks, *arguments, "apart"),
    )
    for rank in through_memory:
        assert rank["shared"] == shared
    for rank in through_gloo:
        assert rank["shared"] == [False, False, False]
    results = [(rank["digest"], rank["norms"]) for rank in [*through_memory, *through_gloo]]
    assert results == results[:1] * (2 * ranks)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's")
def test_a_rank_whose_other_is_gone_fails_as_gloo_does() -> None:
    assert exchanged(2, "--dead") == [{"outcome": "RuntimeError"}, {"outcome": "gone"}]


def test_a_wait_for_a_rank_that_hangs_ends() -> None:
    memories = [torch.zeros(32), torch.zeros(32)]
    barrier = Barrier(memories, 0, [os.getpid()] * 2, timedelta(seconds=0.2))
    with pytest.raises(torch.distributed.DistBackendError, match="did not come"):
        barrier()
