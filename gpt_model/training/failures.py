"""What fails at the ranks' work: memory that runs out, with what was being done; an exchange
between them, as a sentence that names who did not come to it.
"""

from __future__ import annotations

import os
import re
import time
from typing import Literal

import torch
import torch.distributed
from torch.distributed.distributed_c10d import _get_default_store

from gpt_model.config import ModelConfig
from gpt_model.errors import UserError
from gpt_model.training.optimizer import TrainingSettings

PATIENCE = 20.0  # seconds in which the other ranks fail in the same exchange
# nccl's results that may be of another rank's making; a time-out has none
OF_OTHERS = {"", "ncclRemoteError", "ncclSystemError"}


class OutOfMemory(torch.OutOfMemoryError):
    """torch's, while a model of `shape` was built for a training by `settings`, or trained in
    micro-batches of so many `sequences`, where that is known.
    """

    def __init__(
        self,
        error: torch.OutOfMemoryError,
        phase: Literal["building", "training"],
        shape: ModelConfig,
        settings: TrainingSettings,
        sequences: int | None = None,
    ) -> None:
        super().__init__(str(error))
        self.phase, self.shape, self.settings, self.sequences = phase, shape, settings, sequences


def host_of(rank: int, ranks: int) -> str:
    """Of LINEAGE_HOSTS, by the launcher."""
    hosts = os.environ.get("LINEAGE_HOSTS", "this machine").split(",")
    return hosts[rank * len(hosts) // ranks]


def exchange_failed(error: torch.distributed.DistBackendError) -> UserError:
    """What to tell people of nccl's error on this rank. Waits for the others' word."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    message, _, cause = str(error).strip().partition("\nLast error:")
    lines = (message.split("\n")[0], cause.strip().split("\n")[0])
    reason = ": ".join(line[:300].rstrip(".") for line in lines if line)
    result = re.search(r"^(nccl[A-Z]\w+):", message, re.MULTILINE)
    kind = result[1] if result else ""
    here = f"Rank {rank} of {ranks}, on {host_of(rank, ranks)},"
    if kind not in OF_OTHERS:
        own_gpu = (
            "Each rank needs a GPU of its own: see `processes` in the profile and "
            "CUDA_VISIBLE_DEVICES there."
        )
        other = "See `nvidia-smi` there, and run again with NCCL_DEBUG=INFO."
        advice = own_gpu if cause.strip().startswith("Duplicate GPU") else other
        return UserError(f"{here} cannot exchange anything with the others: {reason}. {advice}")
    waited = f"{here} waited in vain: {reason}."
    try:
        silent = _silent_ranks(rank, ranks)
    except (torch.distributed.DistError, RuntimeError):
        return UserError(
            f"{waited} Rank 0's process, on {host_of(0, ranks)}, is not there either: see its part "
            "of the log first."
        )
    if not silent:
        network = (
            ", the network between them is. See NCCL_SOCKET_IFNAME and NCCL_IB_HCA, and run"
            if kind != "ncclSystemError"
            else ". See to what nccl names, or run"
        )
        return UserError(
            f"{waited} So did every other rank: no process is lost{network} again with "
            "NCCL_DEBUG=INFO."
        )
    absent = ", ".join(f"{each} on {host_of(each, ranks)}" for each in silent)
    return UserError(
        f"{waited} Not heard of: rank {absent}. It hangs or is gone: see its part of the log, and "
        "`dmesg` and `nvidia-smi` there. Training resumes from its last checkpoint."
    )


def _silent_ranks(rank: int, ranks: int) -> list[int]:
    """Those that did not fail in the same exchange within PATIENCE."""
    store = _get_default_store()
    store.set(f"waited/{rank}", "")
    deadline = time.monotonic() + PATIENCE
    while silent := [each for each in range(ranks) if not store.check([f"waited/{each}"])]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return silent
