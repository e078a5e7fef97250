"""What the descriptions of several experiments have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from assets.contract import Check, Config, deferred
from assets.recipe.recipe import Recipe
from assets.stages.finetuning import finetuning_config, pin_task, task_names
from gpt_model.errors import UserError

LSTM = "experiments/lstm"  # the asset: an LSTM that is pre-trained as the recipe's Transformer is
SHOW = deferred("assets.report.experiment", "show")
PAGE_IS_WHOLE = Check(
    "page_is_whole",
    True,
    "experiment.json reads, every number in it is finite, and it says what was found.",
    deferred("assets.report.experiment", "page_is_whole"),
)


def task_config(recipe: Recipe, task: str, sizes: Any, field: str, base: Path) -> dict[str, Any]:
    """What identifies the fine-tuning of `task` in an experiment: as section `finetuning` has it,
    but for what the experiment's section `sizes` gives. Raises UserError where the recipe has no
    such task.
    """
    if task not in (known := task_names(recipe)):
        raise UserError(
            f"{task!r} is not among finetuning.tasks: {', '.join(known) or 'none'}. An experiment "
            "fine-tunes as that section says.",
            field=field,
        )
    config = finetuning_config(recipe, task, base)
    given = sizes.model_dump(exclude_none=True)
    counts = {name: given[name] for name in ("examples", "held_back") if name in given}
    changes = {name: given[name] for name in ("epochs", "learning_rate") if name in given}
    settings = {**config["finetuning"], **changes}
    return {**config, **counts, "finetuning": settings, "seeds": sizes.seeds}


def pin_tasks(config: Config, base: Path) -> Config:
    return {**config, "tasks": [pin_task(task, base) for task in config["tasks"]]}
