"""The stage `aligned`: policy_init after PPO-ptx against the reward model, InstructGPT's third step
(Ouyang et al. 2022, section 3.5). The asset `aligned_without_ptx` is the same without pre-training
text.

Beside the files in `tuning_io.py`: model/ is the moving average of the policy's weights.
"""

from __future__ import annotations

from assets.contract import Check, Stage, deferred
from assets.stages.tuning_io import LOSS_IS_FINITE, MODEL_LOADS

EXECUTION = "assets.execution.aligned"
WIDEST_RISE = 0.03  # of bits per byte on held-out text that PPO-ptx may cost

ALIGNED = Stage(
    name="aligned",
    version="2",
    run=deferred(EXECUTION, "run"),
    description=(
        "policy_init after PPO against the reward model (InstructGPT's third step): the moving "
        "average of the policy's weights."
    ),
    kinds=("deepspeed", "pytorch"),
    checks=(
        LOSS_IS_FINITE,
        MODEL_LOADS,
        Check(
            "has_not_run_away",
            True,
            "After the last batch too the policy is within what stops a run.",
            deferred(EXECUTION, "has_not_run_away"),
        ),
        Check(
            "rewards_are_numbers",
            False,
            "Every answer's reward is a number.",
            deferred(EXECUTION, "rewards_are_numbers"),
        ),
        Check(
            "reward_rises",
            False,
            "The reward on held-out prompts rises, interval and all.",
            deferred(EXECUTION, "reward_rises"),
        ),
        Check(
            "text_is_kept",
            False,
            "Held-out text takes at most 3 % more bits per byte than before.",
            deferred(EXECUTION, "text_is_kept"),
        ),
    ),
    show=deferred("assets.report.aligned", "show"),
    ranks="profile",
    pool="training",
    model=True,
)
