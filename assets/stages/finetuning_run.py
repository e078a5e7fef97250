"""Preparing a task and fine-tuning one decoder on it, for every stage that does: `finetuned` and
the experiments.

A stage's config holds a task's part of the recipe as `task_config` makes it
(`assets.stages.finetuning`). What is done is `gpt_model.finetuning`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import Artifact, Config, Progress
from assets.recipe.task_entries import resolved_entry
from assets.stages import base_model
from assets.store.home import downloads_folder
from gpt_model.errors import about_all_of
from gpt_model.finetuning.entry import SPLITS, SplitName, TaskEntry
from gpt_model.progress import Progress as Said

if TYPE_CHECKING:
    from gpt_model.finetuning.examples import Examples
    from gpt_model.finetuning.heads import TaskModel
    from gpt_model.finetuning.input_forms import Laid, Layout
    from gpt_model.finetuning.metrics import Scoring
    from gpt_model.finetuning.objective import FineTuned, FineTuning
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.transformer import Decoder


def pin_task(config: Config, base: Path) -> Config:
    """The task's local files tied to their bytes, a branch on the hub to its commit; or `not_run`,
    why its data cannot be had here.
    """
    with about_all_of(""):
        source, reason = resolved_entry(config["source"], base, downloads_folder())
    return {**config, "not_run": reason} if reason else {**config, "source": source}


@dataclass(frozen=True)
class Prepared:
    """A task's examples as a decoder's inputs."""

    task: str
    entry: TaskEntry
    examples: Examples
    layout: Layout
    laid: Mapping[SplitName, Sequence[Laid]]
    scoring: Scoring

    @property
    def classes(self) -> int:
        """Labels, or options of a question."""
        return len(self.entry.label_names()) or len(self.laid["test"][0].rows)


def prepare(
    config: Config, pretrained: Artifact, tokenizer: Tokenizer, progress: Progress
) -> Prepared:
    """The task of `config`, read, split and laid out for the pre-trained model's context."""
    from gpt_model.finetuning.examples import read_examples
    from gpt_model.finetuning.input_forms import Layout, cut_of
    from gpt_model.finetuning.metrics import Scoring

    entry, shape = TaskEntry.model_validate(config["source"]), base_model.shape(pretrained)
    with about_all_of(""):
        examples = read_examples(
            config["task"],
            entry,
            config["split_seed"],
            downloads_folder(),
            progress,
            config["examples"],
            config["held_back"],
        )
    layout = Layout(entry.form, tokenizer.vocab_size, shape["context"], cut_of(shape["family"]))
    laid = {split: layout.lay(tokenizer, examples.splits[split]) for split in SPLITS}
    return Prepared(config["task"], entry, examples, layout, laid, Scoring.of_task(entry))


def how_to(config: Config, pretrained: Artifact, **changes: Any) -> FineTuning:
    """The recipe's section, in the precision the model was pre-trained in."""
    from gpt_model.finetuning.objective import FineTuning

    return replace(
        FineTuning(**config["finetuning"], precision=base_model.precision(pretrained)), **changes
    )


def fine_tuned(
    gpt: Decoder, task: Prepared, how: FineTuning, folder: Path, progress: Progress, said: Said
) -> tuple[TaskModel, FineTuned]:
    """`gpt`, which has the specials' rows, fine-tuned; a killed attempt goes on from what `folder`
    keeps. All of it goes to `said`.
    """
    from assets.execution.training import execution_of
    from gpt_model.finetuning.heads import TaskModel
    from gpt_model.finetuning.objective import fine_tune

    model = TaskModel(gpt, task.layout, task.classes, how.dropout, how.seed)
    execution = execution_of(progress, fixed_shapes=False)
    result = fine_tune(
        model,
        task.laid,
        how,
        task.scoring,
        execution,
        folder=folder,
        progress=said,
        micro_rows=progress.profile.micro_batch,
    )
    return model, result


class Part:
    """What one of several fine-tunings says, its numbers' names under its own, and how far all of
    them are.
    """

    def __init__(self, progress: Progress, name: str, number: int, count: int) -> None:
        self._progress, self._name, self._number, self._count = progress, name, number, count

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._progress.metrics(
            step, {f"{self._name}/{name}": value for name, value in values.items()}
        )

    def text(self, step: int, name: str, text: str) -> None:
        self._progress.text(step, f"{self._name}/{name}", text)

    def log(self, message: str) -> None:
        self._progress.log(f"{self._name}: {message}")

    def advance(self, done: float, total: float, unit: str) -> None:
        self._progress.advance(done + self._number * total, self._count * total, unit)
