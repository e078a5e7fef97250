"""What the experiments that fine-tune many times share: a task's part of the recipe, and its
fine-tuning in several ways and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import SCRATCH, Artifact, Config, Progress
from assets.recipe.recipe import Recipe
from assets.report import experiment
from assets.stages.finetuning import finetuning_config, task_names
from assets.stages.finetuning_run import Part, Prepared, fine_tuned, how_to, pin_task, prepare
from gpt_model.errors import UserError

if TYPE_CHECKING:
    from gpt_model.finetuning.objective import FineTuning
    from gpt_model.statistics import Bootstrap
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.transformer import Decoder


def task_config(recipe: Recipe, task: str, sizes: Any, field: str, base: Path) -> dict[str, Any]:
    """`task`'s part of the recipe, as large as the experiment's section `sizes` has it. Raises
    UserError where it is not a task of it.
    """
    if task not in (known := task_names(recipe)):
        there = ", ".join(known) or "none"
        raise UserError(
            f"{task!r} is not among finetuning.tasks: {there}. An experiment fine-tunes as that section says.",
            field=field,
        )
    config = finetuning_config(recipe, task, base)
    given = {
        name: getattr(sizes, name)
        for name in ("examples", "held_back")
        if getattr(sizes, name) is not None
    }
    how = {
        name: getattr(sizes, name)
        for name in ("epochs", "learning_rate")
        if getattr(sizes, name) is not None
    }
    return {**config, **given, "finetuning": {**config["finetuning"], **how}, "seeds": sizes.seeds}


def pin_tasks(config: Config, base: Path) -> Config:
    return {**config, "tasks": [pin_task(one, base) for one in config["tasks"]]}


@dataclass(frozen=True)
class Way:
    """One way to train: its name, and the decoder and the settings that it begins with, made of the
    recipe's with a seed.
    """

    name: str
    begin: Callable[[FineTuning], tuple[Decoder, FineTuning]]


def scored(
    config: Config,
    ways: Sequence[Way],
    pretrained: Artifact,
    tokenizer: Tokenizer,
    output: Path,
    progress: Progress,
    place: tuple[int, int],
) -> tuple[Prepared, Bootstrap, Mapping[str, Sequence[float]]]:
    """A task fine-tuned in every way and from every seed: the metric on the test split with what
    its interval takes, and each model's own.

    What is done is kept under `output`, so that a killed attempt repeats none of it. `place`:
    (number, count) of this task among others.
    """
    from gpt_model.statistics import cluster_bootstrap

    task, given = prepare(config, pretrained, tokenizer, progress), how_to(config, pretrained)
    each, parts, own = len(ways) * config["seeds"], [], {}
    for number, way in enumerate(ways):
        models = []
        for n in range(config["seeds"]):
            decoder, how = way.begin(replace(given, seed=given.seed + n))
            name = f"{task.task}/{way.name}/{n + 1}"
            at = place[0] * each + number * config["seeds"] + n
            said = Part(progress, name, at, place[1] * each)
            _, result = fine_tuned(decoder, task, how, output / SCRATCH / name, progress, said)
            models.append(task.scoring.parts(task.laid["test"], result.test_logits))
        parts.append(models)
        own[way.name] = [task.scoring.of_parts(one) for one in models]
        progress.log(
            f"{task.task}, {way.name}: {task.scoring.metric} "
            + ", ".join(f"{value:.3f}" for value in own[way.name])
        )
    return (
        task,
        cluster_bootstrap(
            parts, task.scoring.statistic, [one.group for one in task.laid["test"]], place[0]
        ),
        own,
    )


def not_run(output: Path, progress: Progress, title: str, source: str, why: list[str]) -> None:
    """An experiment.json that says why there is nothing in it."""
    if progress.rank == 0:
        experiment.write(output, {"title": title, "source": source, "summary": why})


def data_of(task: Prepared) -> str:
    """How many examples were trained and tested on, in words."""
    used = ", ".join(
        f"{len(task.laid[split]):,} of {task.examples.available[split]:,} {split}"
        for split in ("training", "validation", "test")
    )
    return f"{task.task}: {used} examples"
