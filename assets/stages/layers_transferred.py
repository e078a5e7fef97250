"""Stage `layers_transferred`: GPT-1, figure 2 left. A task's score against how many of the
pre-trained layers are transferred, from none to all.
"""

from __future__ import annotations

from pathlib import Path

from assets.contract import Check, Config, Stage, deferred
from assets.recipe.recipe import Recipe
from assets.stages.experiment_parts import PAGE_IS_WHOLE, SHOW, pin_tasks, task_config
from gpt_model.errors import UserError

EXECUTION = "assets.execution.layers_transferred"


def layers_transferred_config(recipe: Recipe, base: Path) -> Config:
    assert recipe.experiments and recipe.experiments.layers_transferred
    section = recipe.experiments.layers_transferred
    if recipe.model and section.layers and max(section.layers) > recipe.model.layers:
        raise UserError(
            f"{max(section.layers)} layers cannot be transferred from a model of "
            f"{recipe.model.layers}: leave it out.",
            field="experiments.layers_transferred.layers",
        )
    task = task_config(recipe, section.task, section, "experiments.layers_transferred.task", base)
    return {"tasks": [task], "layers": sorted(set(section.layers)) if section.layers else None}


LAYERS_TRANSFERRED = Stage(
    name="layers_transferred",
    version="3",
    run=deferred(EXECUTION, "run"),
    description="A task's score against how many of the pre-trained layers are kept (GPT-1, "
    "figure 2 left).",
    kinds=("pytorch", "deepspeed"),
    checks=(
        PAGE_IS_WHOLE,
        Check(
            "layers_help",
            False,
            "The slope of the score over layers is above 0, interval and all.",
            deferred(EXECUTION, "layers_help"),
        ),
    ),
    show=SHOW,
    pin=pin_tasks,
    ranks="profile",
    pool="training",
)
