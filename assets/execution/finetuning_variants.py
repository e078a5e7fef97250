"""Fine-tunes one task in several variants, for the experiments that compare them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from assets.contract import SCRATCH, Artifact, Config, Progress
from assets.execution.finetuning import PartProgress, fine_tune_task, prepare, settings_of
from gpt_model.experiments.finetuning_variants import Start, TaskScores, score_variants
from gpt_model.finetuning.entry import SPLITS
from gpt_model.finetuning.objective import FineTuned, FineTuning
from gpt_model.tokenizer import Tokenizer
from gpt_model.transformer import Decoder


def fine_tune_variants(
    config: Config,
    variants: Mapping[str, Start],
    pretrained: Artifact,
    tokenizer: Tokenizer,
    output: Path,
    progress: Progress,
    number: int = 0,
    count: int = 1,
) -> TaskScores:
    """The scores of the task of `config`, which is `number` of `count`. What is done is kept under
    `output`, so that a killed attempt repeats none of it.
    """
    task, seeds = prepare(config, pretrained, tokenizer, progress), config["seeds"]
    models = len(variants) * seeds

    def fine_tune(name: str, model: int, decoder: Decoder, settings: FineTuning) -> FineTuned:
        part = PartProgress(progress, name, number * models + model, count * models)
        folder = output / SCRATCH / name
        return fine_tune_task(decoder, task, settings, folder, progress, part)[1]

    sizes = ", ".join(
        f"{len(task.encoded[split]):,} of {task.examples.available[split]:,} {split}"
        for split in SPLITS
    )
    return score_variants(
        task.task,
        variants,
        settings_of(config, pretrained),
        seeds,
        task.encoded["test"],
        task.scoring,
        fine_tune,
        data=f"{task.task}: {sizes} examples",
        bootstrap_seed=number,
        log=progress.log,
    )
