"""The stage `dpo`: policy_init tuned on comparisons without a reward model (Rafailov et al. 2023).
policy_init is the reference too.

Beside the files in `tuning_io.py`, held_out.jsonl: of each held-out ranking the implicit rewards of
its responses, β times what they have gained in log-probability.
"""

from __future__ import annotations

from assets.contract import Check, Stage, deferred
from assets.stages.tuning_io import LOSS_IS_FINITE, MODEL_LOADS

DPO = Stage(
    name="dpo",
    version="2",
    run=deferred("assets.execution.dpo", "run"),
    description=(
        "policy_init tuned on comparisons directly (DPO), for comparison with the reward model and "
        "PPO."
    ),
    kinds=("deepspeed", "pytorch"),
    checks=(
        LOSS_IS_FINITE,
        MODEL_LOADS,
        Check(
            "accuracy_above_half",
            False,
            "The interval of the implicit reward's held-out accuracy lies above a half.",
            deferred("assets.execution.rankings", "accuracy_above_half"),
        ),
    ),
    show=deferred("assets.report.dpo", "show"),
    ranks="profile",
    pool="training",
    model=True,
)
