"""Stage `zero_shot_dynamics`: GPT-1, figure 2 right. What a model can do that was only pre-trained,
at each snapshot of its pre-training, for the Transformer and for an LSTM of its width trained
alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from assets.contract import Check, Config, Stage, deferred
from assets.recipe.recipe import Recipe
from assets.recipe.task_entries import entry_named, resolved_entry, task_name, with_files
from assets.stages.experiment_parts import PAGE_IS_WHOLE, SHOW
from assets.store.home import downloads_folder
from gpt_model.errors import UserError, about_all_of

EXECUTION = "assets.execution.zero_shot_dynamics"
# What each heuristic needs of its task: the form, and the number of labels (of multiple choice
# none: its classes are the options).
TASK_FORMS = {
    "sentiment": ("classification", 2),
    "acceptability": ("classification", 2),
    "pronouns": ("multiple_choice", 0),
    "questions": ("multiple_choice", 0),
}


def zero_shot_dynamics_config(recipe: Recipe, base: Path) -> Config:
    """Of each heuristic its task's entry, whole; None where it is the corpus's own sentences."""
    assert recipe.experiments and recipe.experiments.zero_shot_dynamics
    section = recipe.experiments.zero_shot_dynamics
    tasks: dict[str, Any] = {}
    for heuristic, form in TASK_FORMS.items():
        task, field = getattr(section, heuristic), f"experiments.zero_shot_dynamics.{heuristic}"
        if (heuristic, task) == ("acceptability", "held_out"):
            tasks[heuristic] = None
            continue
        entry = entry_named(task, base, field)
        if (given := (entry.form, len(entry.label_names()))) != form:
            raise UserError(
                f"{task} is {_form(*given)}, and this heuristic wants {_form(*form)}: name another "
                "task.",
                field=field,
            )
        if recipe.finetuning and task in recipe.finetuning.tasks:
            entry = with_files(entry, task_name(task), recipe.finetuning.files)
        tasks[heuristic] = {"name": task, "entry": entry.model_dump(mode="json", exclude_none=True)}
    return {"tasks": tasks, "examples": section.examples, "split_seed": recipe.split_seed}


def _form(form: str, labels: int) -> str:
    return f"{form} of {labels} labels" if labels else form


def pin(config: Config, base: Path) -> Config:
    """Each task's entry tied to its data; with `not_run`, the reason, where that is unavailable."""
    tasks: dict[str, Any] = {}
    for heuristic, task in config["tasks"].items():
        tasks[heuristic] = task
        if task:
            with about_all_of(heuristic):
                entry, reason = resolved_entry(task["entry"], base, downloads_folder())
            unavailable = {"not_run": reason} if reason else {}
            tasks[heuristic] = {**task, "entry": entry, **unavailable}
    return {**config, "tasks": tasks}


ZERO_SHOT_DYNAMICS = Stage(
    name="zero_shot_dynamics",
    version="4",
    run=deferred(EXECUTION, "run"),
    description="GPT-1's zero-shot heuristics at each snapshot of pre-training, Transformer and "
    "LSTM (figure 2, right).",
    kinds=("pytorch",),
    checks=(
        PAGE_IS_WHOLE,
        Check(
            "something_is_learnt",
            False,
            "A heuristic of the Transformer ends above chance, interval and all.",
            deferred(EXECUTION, "something_is_learnt"),
        ),
    ),
    show=SHOW,
    pin=pin,
    pool="training",
)
