"""Runs the ablations stage (GPT-1, table 5)."""

from __future__ import annotations

from pathlib import Path

from assets.contract import Built, Config, Inputs, Metrics, Progress, Verdict
from assets.execution.finetuning_variants import fine_tune_variants
from assets.stages.experiments import LSTM
from gpt_model import convert
from gpt_model.errors import Unavailable
from gpt_model.experiments.document import write_document
from gpt_model.experiments.gpt1_table5_ablations import NAMES, Ablations, variants
from gpt_model.tokenizer import Tokenizer


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json. Raises Unavailable where no task can be run."""
    pretrained = inputs["pretrained"]
    if pretrained.not_run:
        raise Unavailable(pretrained.not_run)
    tasks = [task for task in config["tasks"] if "not_run" not in task]
    missing = {task["task"]: task["not_run"] for task in config["tasks"] if "not_run" in task}
    if not tasks:
        raise Unavailable("; ".join(f"{task}: {reason}" for task, reason in missing.items()))
    lstm = convert.load_decoder(inputs[LSTM].path / "model") if LSTM in inputs else None
    starts = variants(convert.load(pretrained.path / "model"), lstm)
    tokenizer = Tokenizer.load(inputs["tokenizer"].path)
    scores = [
        fine_tune_variants(
            task, starts, pretrained, tokenizer, output, progress, number, len(tasks)
        )
        for number, task in enumerate(tasks)
    ]
    if progress.rank:
        return {}
    unavailable = [f"{task}: not run here. {reason}." for task, reason in missing.items()]
    ablations = Ablations(scores, tasks[0]["seeds"], unavailable)
    write_document(output, ablations.document())
    return ablations.metrics()


def pretraining_helps(built: Built) -> Verdict:
    return _verdict(built, "no_pretraining")


def transformer_helps(built: Built) -> Verdict:
    return _verdict(built, "lstm")


def _verdict(built: Built, variant: str) -> Verdict:
    """Whether the whole is better than `variant`, on average."""
    metrics = built.metrics
    if f"average/{variant}_loss" not in metrics:
        return Verdict(True, "Not run here.")
    ends = {end: metrics[f"average/{variant}_{end}"] for end in ("loss", "loss_low", "loss_high")}
    summary = (
        f"{NAMES[variant].capitalize()}: {ends['loss']:+.3f} "
        f"[{ends['loss_low']:+.3f}, {ends['loss_high']:+.3f}] lost on average."
    )
    return Verdict(ends["loss_low"] > 0, summary, ends)
