"""Stage `ablations`: GPT-1, table 5. Each task without the auxiliary objective, without
pre-training, and with an LSTM, beside the whole.
"""

from __future__ import annotations

from pathlib import Path

from assets.contract import Check, Config, Stage, deferred
from assets.recipe.recipe import Recipe
from assets.stages.experiment_parts import PAGE_IS_WHOLE, SHOW, pin_tasks, task_config
from assets.stages.finetuning import task_names
from gpt_model.errors import UserError

EXECUTION = "assets.execution.ablations"


def ablations_config(recipe: Recipe, base: Path) -> Config:
    assert recipe.experiments and recipe.experiments.ablations
    section = recipe.experiments.ablations
    if recipe.finetuning and not recipe.finetuning.auxiliary_weight:
        raise UserError(
            "It is 0, so there is no auxiliary objective to be left out: set it above 0 (the "
            "paper's is 0.5).",
            field="finetuning.auxiliary_weight",
        )
    if not (tasks := section.tasks or task_names(recipe)):
        raise UserError(
            "There is no task to take anything away from: list some under finetuning.tasks.",
            field="experiments.ablations",
        )
    field = "experiments.ablations.tasks"
    return {"tasks": [task_config(recipe, task, section, field, base) for task in tasks]}


ABLATIONS = Stage(
    name="ablations",
    version="5",
    run=deferred(EXECUTION, "run"),
    description="Tasks without the auxiliary objective, without pre-training, and with an LSTM "
    "(GPT-1, table 5).",
    kinds=("pytorch", "deepspeed"),
    checks=(
        PAGE_IS_WHOLE,
        Check(
            "pretraining_helps",
            False,
            "Without pre-training something is lost on average, interval and all.",
            deferred(EXECUTION, "pretraining_helps"),
        ),
        Check(
            "transformer_helps",
            False,
            "With an LSTM something is lost on average, interval and all.",
            deferred(EXECUTION, "transformer_helps"),
        ),
    ),
    show=SHOW,
    pin=pin_tasks,
    ranks="profile",
    pool="training",
)
