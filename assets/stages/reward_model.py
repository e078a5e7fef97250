"""The stage `reward_model`: a reward for every answer, learnt from rankings (Ouyang et al. 2022,
section 3.5).

    model/, reward_head.safetensors, reward.json     as `gpt_model.rlhf.reward_model` has them
    shape.json, training.json                        as `tuning_io.py` has them
    held_out.jsonl      of each held-out ranking: pairs (better, worse), and the scores that the
                        model, and the baseline where there is one, give its responses
"""

from __future__ import annotations

from assets.contract import Check, Stage, deferred
from assets.stages.tuning_io import LOSS_IS_FINITE

EXECUTION = "assets.execution.reward_model"
HELD_OUT = "held_out.jsonl"
BAG_OF_WORDS = "bag_of_words"  # the baseline, in names of metrics
NO_WORDS = "the responses have no words in them"  # why there is none, where …/not_run is reported

REWARD_MODEL = Stage(
    name="reward_model",
    version="2",
    run=deferred(EXECUTION, "run"),
    description=(
        "A model that gives every answer a number, learnt from rankings, beside a bag of words "
        "learnt from the same."
    ),
    kinds=("deepspeed", "pytorch"),
    checks=(
        LOSS_IS_FINITE,
        Check(
            "demonstrations_mean_zero",
            True,
            "The mean reward of the demonstrations is 0.",
            deferred(EXECUTION, "demonstrations_mean_zero"),
        ),
        Check(
            "model_loads",
            True,
            "It loads, its weights are numbers, and its tokenizer has the roles' markers.",
            deferred(EXECUTION, "model_loads"),
        ),
        Check(
            "accuracy_above_half",
            False,
            "The interval of held-out accuracy lies above a half.",
            deferred("assets.execution.rankings", "accuracy_above_half"),
        ),
    ),
    show=deferred("assets.report.reward_model", "show"),
    ranks="profile",
    pool="training",
)
