"""finetuned/<task>: the pre-trained model fine-tuned on one task as GPT-1 was, beside the same
network from random weights.

Here: the task's part of the recipe, and the stage's description. A task is a YAML file, of the
catalogue (`gpt_model.finetuning`) or the user's own. The artifact:

    model/             the decoder, the head and the tokenizer (`gpt_model.finetuning.heads`)
    adapters/          where the recipe has `lora`
    predictions.jsonl  a row a test example: the label, a rating as it was given, and the answers of
                       both arms and of a bag of words
    examples.jsonl     which example is in which split, by identity and not by text
    samples.json       a few test examples as text
    task.json          the entry, the sizes of the splits, the validation score of each epoch
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from assets.contract import Check, Config, Stage, deferred
from assets.recipe.recipe import Recipe
from assets.recipe.task_entries import entry_named, resolved_entry, with_files
from assets.recipe.yaml_file import is_path, stem
from assets.store.home import downloads_folder
from gpt_model.errors import UserError, about_all_of
from gpt_model.evaluation.suites import NAME
from gpt_model.finetuning.entry import CATALOGUE

EXECUTION = "assets.execution.finetuning"
ARMS = ("pretrained", "random")  # fine-tuned from pre-trained weights, and from random ones
# A score -> the metric that has the best of always one answer
CONSTANT = {"accuracy": "majority", "f1": "constant_f1", "matthews": "constant_matthews"}


def task_names(recipe: Recipe) -> list[str]:
    """The recipe's tasks by name; a task that is a file is named after it. Raises UserError for an
    unknown or repeated one.
    """
    tasks = recipe.finetuning.tasks if recipe.finetuning else []
    names = [stem(task) for task in tasks]
    known = sorted(path.stem for path in CATALOGUE.glob("*.yaml"))
    for number, (task, name) in enumerate(zip(tasks, names, strict=True)):
        field = f"finetuning.tasks[{number}]"
        if not is_path(task) and task not in known:
            near = difflib.get_close_matches(task, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{task!r} is not a task.{hint} There are {', '.join(known)}, or the path of a "
                "task's YAML file.",
                field=field,
            )
        if not NAME.fullmatch(name):
            raise UserError(
                f"{name!r} names an asset, so it has letters, digits, _ and - only. Rename the "
                "file.",
                field=field,
            )
        # Dagster takes - for _.
        if name.replace("-", "_") in (other.replace("-", "_") for other in names[:number]):
            raise UserError(
                f"Two tasks are named {name!r}. Leave one out, or rename its file.", field=field
            )
    for limits in ("examples", "held_back", "files"):
        for stray in sorted(getattr(recipe.finetuning, limits, {}).keys() - set(names)):
            raise UserError(
                f"{stray!r} is not among this recipe's tasks: {', '.join(names)}. Correct the "
                "name, or take the line out.",
                field=f"finetuning.{limits}.{stray}",
            )
    return names


def finetuning_config(recipe: Recipe, task: str, base: Path) -> dict[str, Any]:
    """The section of finetuned/`task`: the task's whole entry and how it is fine-tuned. `base`: the
    recipe's folder.
    """
    section = recipe.finetuning
    assert section is not None  # or there would be no task
    number = [stem(named) for named in section.tasks].index(task)
    entry = with_files(
        entry_named(section.tasks[number], base, f"finetuning.tasks[{number}]"), task, section.files
    )
    return {
        "task": task,
        "finetuning": section.model_dump(
            mode="json", exclude={"tasks", "examples", "held_back", "files"}
        ),
        "examples": section.examples.get(task),
        "held_back": section.held_back.get(task),
        "split_seed": recipe.split_seed,
        **({"lora": recipe.lora.model_dump(mode="json")} if recipe.lora else {}),
        "source": entry.model_dump(mode="json", exclude_none=True),
    }


def pin_task(config: Config, base: Path) -> Config:
    """The task's local files tied to their bytes, a branch on the hub to its commit; or `not_run`,
    why its data is unavailable here.
    """
    with about_all_of(""):
        source, reason = resolved_entry(config["task"], config["source"], base, downloads_folder())
    return {**config, "not_run": reason} if reason else {**config, "source": source}


FINETUNED = Stage(
    name="finetuned",
    version="9",
    run=deferred(EXECUTION, "run"),
    description=(
        "The pre-trained model fine-tuned on one task as GPT-1 was, beside the same network "
        "fine-tuned from random weights."
    ),
    kinds=("pytorch", "deepspeed"),
    checks=(
        Check(
            "splits_do_not_cross",
            True,
            "No group of examples is in two of training, validation and test.",
            deferred(EXECUTION, "splits_do_not_cross"),
        ),
        Check(
            "not_trained_on",
            True,
            "No evaluation text of the task is a document that pre-training saw.",
            deferred(EXECUTION, "not_trained_on"),
        ),
        Check(
            "loss_is_finite",
            True,
            "Every loss of both arms is a finite number.",
            deferred(EXECUTION, "losses_are_finite"),
        ),
        Check(
            "examples_are_whole",
            False,
            "No test example was cut to fit the model's context.",
            deferred(EXECUTION, "examples_are_whole"),
        ),
        Check(
            "beats_majority",
            False,
            "The score's interval lies above always giving the same answer.",
            deferred(EXECUTION, "beats_majority"),
        ),
        Check(
            "beats_bag_of_words",
            False,
            "The score's interval lies above a bag of words trained on the same rows.",
            deferred(EXECUTION, "beats_bag_of_words"),
        ),
        Check(
            "transfer_beats_random",
            False,
            "What is gained over random weights is above 0, interval and all.",
            deferred(EXECUTION, "transfer_beats_random"),
        ),
    ),
    show=deferred("assets.report.finetuned", "show"),
    pin=pin_task,
    shared_out="tokens of the rows; each step's batch; validation and test examples",
    pool="training",
    model=True,
)
