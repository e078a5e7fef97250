"""What every stage that trains shares: how the profile executes it, and whether its losses are
numbers.
"""

from __future__ import annotations

import math

from assets.contract import Built, Progress, Verdict
from gpt_model.training.engine import Execution


def execution_of(progress: Progress, *, fixed_shapes: bool = True) -> Execution:
    """The profile as the training loop takes it, for this rank.

    `fixed_shapes`: every micro-batch has the same. Otherwise nothing is compiled, as each new shape
    would be compiled anew.
    """
    profile = progress.profile
    return Execution(
        device=profile.device,
        zero_stage=profile.zero_stage,
        rank=progress.rank,
        world_size=progress.world_size,
        checkpoint_seconds=profile.checkpoint_seconds,
        compile=profile.compile and fixed_shapes,
        activation_checkpointing=profile.activation_checkpointing,
    )


def loss_is_finite(built: Built) -> Verdict:
    losses = [value for _, value in built.series.get("loss", ())]
    finite = sum(math.isfinite(value) for value in losses)
    return Verdict(
        bool(losses) and finite == len(losses),
        f"{finite} of {len(losses)} reported losses are numbers.",
        {"reported": len(losses)},
    )
