"""How and on what to train: `Settings` come from the recipe and change the result, `Execution` from
the profile and does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """How to optimise, with AdamW (Loshchilov & Hutter 2019)."""

    steps: int
    learning_rate: Callable[
        [int], float
    ]  # of the step about to be taken, counted from 0 (`schedules.py`)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    # decoupled, on matrices only (rank ≥ 2, embeddings too), as in GPT-1's released opt.py
    weight_decay: float = 0.01
    gradient_clip: float = 1.0  # global norm
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 1  # of dropout
    # Beginning of a parameter's name -> its learning rate, as a multiple of the others'. The first
    # that fits counts.
    scales: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Execution:
    """On what. Nothing here changes the result beyond the order of additions and which dropout mask
    falls on which row.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    zero_stage: Literal[0, 1, 2, 3] = 1
    rank: int = 0
    world_size: int = 1
    checkpoint_seconds: float = 30.0
    compile: bool = False
    activation_checkpointing: bool = False
    peak_flops: float | None = (
        None  # FLOP/s of all ranks together (`measure.py`); None: utilisation is not reported
    )
