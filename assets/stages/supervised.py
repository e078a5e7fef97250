"""The stages `supervised` and `policy_init`: supervised fine-tuning on demonstrations (Ouyang et
al. 2022).

`supervised` is InstructGPT's first step (section 3.5). It keeps every epoch's weights: validation
loss is best after one epoch, but people prefer later ones, so the reward model chooses
(`instructed`). Beside the files in `tuning_io.py`:

    epochs/<n>/      the model after epoch n, without the tokenizer; the last one is model/ too

`policy_init` is where PPO starts, and its reference (appendix C.3): two epochs of demonstrations. A
tenth of the loss is the corpus's, and a tenth of every batch's sequences are windows of it.
"""

from __future__ import annotations

from assets.contract import Check, Stage, deferred
from assets.stages.tuning_io import LOSS_FALLS, LOSS_IS_FINITE, MODEL_LOADS

EXECUTION = "assets.execution.sft"

ALIKE = Check(
    "laid_out_alike",
    False,
    "transformers' chat template gives the tokens that training saw.",
    deferred(EXECUTION, "alike_in_transformers"),
)

SUPERVISED = Stage(
    name="supervised",
    version="2",
    run=deferred(EXECUTION, "run_supervised"),
    description=(
        "The pre-trained model tuned on demonstrations (InstructGPT's first step), every epoch "
        "kept."
    ),
    kinds=("pytorch", "deepspeed"),
    checks=(
        LOSS_IS_FINITE,
        MODEL_LOADS,
        LOSS_FALLS,
        ALIKE,
        Check(
            "held_out_falls",
            False,
            "Held-out loss is lower after some epoch than after the first.",
            deferred(EXECUTION, "held_out_loss_falls"),
        ),
    ),
    show=deferred("assets.report.sft", "show"),
    ranks="profile",
    pool="training",
    model=True,
)

POLICY_INIT = Stage(
    name="policy_init",
    version="2",
    run=deferred(EXECUTION, "run_policy_init"),
    description=(
        "Where PPO starts: the pre-trained model tuned on demonstrations with pre-training text "
        "mixed in."
    ),
    kinds=("pytorch", "deepspeed"),
    checks=(LOSS_IS_FINITE, MODEL_LOADS, LOSS_FALLS, ALIKE),
    show=deferred("assets.report.sft", "show"),
    ranks="profile",
    pool="training",
    model=True,
)
