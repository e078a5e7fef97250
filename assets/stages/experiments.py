"""The stages of the papers' experiments. What each computes is in `gpt_model/experiments/`.

A scaling prediction (GPT-3, figure 3.1) is an artifact of its own, made from the smaller models
alone: its fingerprint is a hash over their digests and the largest one's planned size, and knows
nothing of what became of that.

    scaling_prediction    prediction.json: the law through the smaller models, the loss it gives
                          the largest, its 90 % interval
    scaling               experiment.json · fit.json: the laws through all, with their draws ·
                          rules.yaml: for `depth: {rules: …}`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from assets.contract import Check, Config, Stage, deferred
from assets.recipe.recipe import Recipe
from assets.recipe.task_entries import entry_named, resolved_entry, with_files
from assets.recipe.yaml_file import stem
from assets.stages.finetuning import finetuning_config, pin_task, task_names
from assets.store.home import downloads_folder
from gpt_model.errors import UserError, about_all_of

# What the descriptions of several experiments have in common.
LSTM_ASSET = "experiments/lstm"  # an LSTM, pre-trained as the Transformer is
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
    if (task := stem(task)) not in (known := task_names(recipe)):
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


# Stage `ablations`: GPT-1, table 5. Each task without the auxiliary objective, without
# pre-training, and with an LSTM, beside the whole.
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
    version="9",
    run=deferred("assets.execution.experiments", "run_ablations"),
    description="Tasks without the auxiliary objective, without pre-training, and with an LSTM "
    "(GPT-1, table 5).",
    kinds=("pytorch", "deepspeed"),
    checks=(
        PAGE_IS_WHOLE,
        Check(
            "pretraining_helps",
            False,
            "Without pre-training something is lost on average, interval and all.",
            deferred("assets.execution.experiments", "pretraining_helps"),
        ),
        Check(
            "transformer_helps",
            False,
            "With an LSTM something is lost on average, interval and all.",
            deferred("assets.execution.experiments", "transformer_helps"),
        ),
    ),
    show=SHOW,
    pin=pin_tasks,
    shared_out="tokens of the rows; each step's batch; validation and test examples",
    pool="training",
)


# Stage `layers_transferred`: GPT-1, figure 2 left. A task's score against how many of the
# pre-trained layers are transferred, from none to all.
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
    version="7",
    run=deferred("assets.execution.experiments", "run_layers_transferred"),
    description="A task's score against how many of the pre-trained layers are kept (GPT-1, "
    "figure 2 left).",
    kinds=("pytorch", "deepspeed"),
    checks=(
        PAGE_IS_WHOLE,
        Check(
            "layers_help",
            False,
            "The slope of the score over layers is above 0, interval and all.",
            deferred("assets.execution.experiments", "layers_help"),
        ),
    ),
    show=SHOW,
    pin=pin_tasks,
    shared_out="tokens of the rows; each step's batch; validation and test examples",
    pool="training",
)


# `depth`: held-out bits per byte of models of fewer and more layers, each trained from the start
# and alike. GPT-1's figure 2 (left) varies how many layers of one model are transferred, this how
# many there are. The models are assets of the pre-training stage, `depth/layers_<number>`.
DEPTH = Stage(
    name="depth",
    version="4",
    run=deferred("assets.execution.experiments", "run_depth"),
    description="Held-out bits per byte of models of fewer and more layers, trained alike.",
    kinds=("pytorch",),
    checks=(
        PAGE_IS_WHOLE,
        Check(
            "deeper_is_better",
            False,
            "The deepest model takes fewer bits of every source than the shallowest, interval and "
            "all.",
            deferred("assets.execution.experiments", "deeper_is_better"),
        ),
    ),
    show=SHOW,
    shared_out="held-out text, of one model after the other",
    pool="training",
)


# Stage `visible_context`: held-out bits per byte against how many tokens a prediction sees.
# GPT-1's case for a Transformer is that it uses them.
VISIBLE_CONTEXT = Stage(
    name="visible_context",
    version="4",
    run=deferred("assets.execution.experiments", "run_visible_context"),
    description="Held-out bits per byte of the pre-trained model against how many tokens before it "
    "a prediction sees.",
    kinds=("pytorch",),
    checks=(
        PAGE_IS_WHOLE,
        Check(
            "context_helps",
            False,
            "The whole context saves bits of every source, interval and all.",
            deferred("assets.execution.experiments", "context_helps"),
        ),
    ),
    show=SHOW,
    shared_out="the tokens that are predicted, for each context",
    pool="training",
)


# Stage `zero_shot_dynamics`: GPT-1, figure 2 right. What a model can do that was only pre-trained,
# at each snapshot of its pre-training, for the Transformer and for an LSTM of its width trained
# alike.
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
        if recipe.finetuning and stem(task) in recipe.finetuning.files:
            entry = with_files(entry, stem(task), recipe.finetuning.files)
        tasks[heuristic] = {
            "name": stem(task),
            "entry": entry.model_dump(mode="json", exclude_none=True),
        }
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
                entry, reason = resolved_entry(
                    task["name"], task["entry"], base, downloads_folder()
                )
            unavailable = {"not_run": reason} if reason else {}
            tasks[heuristic] = {**task, "entry": entry, **unavailable}
    return {**config, "tasks": tasks}


ZERO_SHOT_DYNAMICS = Stage(
    name="zero_shot_dynamics",
    version="6",
    run=deferred("assets.execution.experiments", "run_zero_shot_dynamics"),
    description="GPT-1's zero-shot heuristics at each snapshot of pre-training, Transformer and "
    "LSTM (figure 2, right).",
    kinds=("pytorch",),
    checks=(
        PAGE_IS_WHOLE,
        Check(
            "something_is_learnt",
            False,
            "A heuristic of the Transformer ends above chance, interval and all.",
            deferred("assets.execution.experiments", "something_is_learnt"),
        ),
    ),
    show=SHOW,
    pin=pin,
    shared_out="the snapshots; of models that are shared out at ZeRO 3 each snapshot's examples",
    pool="training",
)


SCALING_EXECUTION = "assets.execution.scaling"
SCALING_LEVEL = 0.9  # of the intervals of laws and of the prediction
PREDICTED, FIT, RULES = "prediction.json", "fit.json", "rules.yaml"

PREDICTION = Stage(
    name="scaling_prediction",
    version="2",
    run=deferred(SCALING_EXECUTION, "run_prediction"),
    description="What the smaller models of the ladder predict of the largest, before that is "
    "trained.",
    checks=(
        Check(
            "interval_is_finite",
            True,
            "The prediction has an interval.",
            deferred(SCALING_EXECUTION, "interval_is_finite"),
        ),
    ),
    show=deferred("assets.report.pretrained", "show_prediction"),
)

SCALING = Stage(
    name="scaling",
    version="2",
    run=deferred(SCALING_EXECUTION, "run"),
    description="Loss of a ladder of models against compute, parameters and data; the largest "
    "predicted before it was trained.",
    checks=(
        Check(
            "largest_inside",
            False,
            "The largest model lands inside the interval that was predicted of it.",
            deferred(SCALING_EXECUTION, "largest_inside"),
        ),
        Check(
            "predicted_before",
            False,
            "The prediction was published before the largest model's training began.",
            deferred(SCALING_EXECUTION, "predicted_before"),
        ),
    ),
    show=SHOW,
)
