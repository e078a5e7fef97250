"""Ranks of one host exchange through memory that they share, and get gloo's bytes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from assets.launch.launcher import worker_environment

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
        (2, [], [SMALL, SMALL]),
        (3, [], [LARGE, SMALL, SMALL]),  # sums of three: gloo's order of additions
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
