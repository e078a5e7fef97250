"""Profile: WHERE a recipe is built. Processes, threads, ZeRO stage, memory. Never identifies an
artifact.

One YAML file a kind of machine under profiles/. Precision is not here: it changes results, so it is
the recipe's.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from assets.recipe.yaml_file import here_and, load_strict
from gpt_model.strict import BatchRows, Bounds, Strict

PROFILES = Path(__file__).resolve().parents[2] / "profiles"


class Profile(Strict):
    """How many processes, with what, on which device."""

    name: str = Field(description="for `--profile`; the file's name without .yaml")
    description: str = Field(default="", description="for people")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="of every process")
    processes: Annotated[
        int, Bounds(1, 100_000, "the largest clusters have as many", unit="processes")
    ] = Field(default=1, description="ranks of a training, all on this machine; a GPU each")
    threads: (
        Annotated[int, Bounds(1, 10_000, "no machine has more cores", unit="threads")] | None
    ) = Field(default=None, description="threads a process; default: the cores shared out evenly")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1,
        description="of DeepSpeed: what the ranks share out among them (1: optimizer, 2: gradients "
        "too, 3: weights too)",
    )
    micro_batch: BatchRows | None = Field(
        default=None,
        description="sequences a process and forward pass; default: chosen from the shape",
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="compute activations again in the backward pass: less memory, more time",
    )
    compile: bool = Field(
        default=False, description="torch.compile, where every micro-batch has the same shape"
    )
    checkpoint_seconds: Annotated[
        float,
        Bounds(0, 10**6, "more than a week of work would be lost", above=True, unit="seconds"),
    ] = Field(
        default=30.0, description="seconds between checkpoints; work lost at most when killed"
    )

    memory_gb: (
        Annotated[float, Bounds(0, 10**6, "no device has more", above=True, unit="GB")] | None
    ) = Field(
        default=None,
        description="10^9 bytes that one process may fill: of its GPU; default on a CPU: the "
        "machine's, shared out evenly",
    )
    peak_tflops: (
        Annotated[float, Bounds(0, 10**6, "no device is faster", above=True, unit="TFLOP/s")] | None
    ) = Field(
        default=None,
        description="10^12 FLOP/s of one process's device, of matrix products in the precision "
        "that is trained in",
    )
    price_per_hour: (
        Annotated[float, Bounds(0, 10**6, "no device costs more", unit="an hour")] | None
    ) = Field(default=None, description="of one process's device, in whatever you pay in")

    def memory_each(self) -> float | None:
        """Bytes that one process may fill; None where it is not known."""
        if self.memory_gb is not None:
            return self.memory_gb * 1e9
        if self.device == "cuda" or not math.isfinite(_memory()):
            return None
        return _memory() / self.processes

    def threads_each(self) -> int:
        """Threads for each of the processes, cores shared out evenly unless the file says
        otherwise.
        """
        return self.threads or max(1, _cores() // self.processes)

    def stages_at_once(self) -> int:
        """How many stages of a run this machine has room for, by the threads and the memory of one.
        A stage has all of it, where the file does not state both, and every GPU.
        """
        if self.device == "cuda" or self.threads is None or self.memory_gb is None:
            return 1
        by_cores = _cores() // (self.processes * self.threads)
        by_memory = _memory() // (self.processes * self.memory_gb * 1e9)
        return max(1, int(min(by_cores, by_memory)))


def _cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> float:
    """Bytes of this machine; infinite where it does not say."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return math.inf
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def load_profile(name_or_path: str) -> Profile:
    """A profile by its name under profiles/ (here, or ours) or by path. Raises UserError naming
    file, field and
    line.
    """
    return load_strict(Profile, name_or_path, here_and(PROFILES), what="profile")
