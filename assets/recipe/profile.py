"""Profile: WHERE a recipe is built. Processes, threads, ZeRO stage, memory. Never identifies an
artifact.

One YAML file a kind of machine under profiles/. Precision is not here: it changes results, so it is
the recipe's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from assets.recipe.yaml_file import load_strict
from gpt_model.strict import BatchRows, Bounds, Strict

PROFILES = Path(__file__).resolve().parents[2] / "profiles"


class Profile(Strict):
    """How many processes, with what, on which device."""

    name: str
    description: str = ""
    device: Literal["cpu", "cuda"] = "cpu"
    processes: Annotated[int, Bounds(1, 100_000, "the largest clusters have as many")] = 1
    threads: Annotated[int, Bounds(1, 10_000, "no machine has more cores")] | None = Field(
        default=None, description="threads a process; default: the cores shared out evenly"
    )
    zero_stage: Literal[0, 1, 2, 3] = 1
    micro_batch: BatchRows | None = Field(
        default=None,
        description="sequences a process and forward pass; default: chosen from the shape",
    )
    activation_checkpointing: bool = False
    compile: bool = False
    checkpoint_seconds: Annotated[
        float, Bounds(0, 10**6, "more than a week of work would be lost", above=True)
    ] = Field(
        default=30.0, description="seconds between checkpoints; work lost at most when killed"
    )

    def threads_each(self) -> int:
        """Threads for each of the processes, cores shared out evenly unless the file says
        otherwise.
        """
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else (os.cpu_count() or 1)
        )
        return self.threads or max(1, cores // self.processes)


def load_profile(name_or_path: str) -> Profile:
    """A profile by its name under profiles/ or by path. Raises UserError naming file, field and
    line.
    """
    return load_strict(Profile, name_or_path, PROFILES, what="profile")
