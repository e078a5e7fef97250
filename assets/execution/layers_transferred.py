"""Runs the layers_transferred stage (GPT-1, figure 2 left)."""

from __future__ import annotations

from pathlib import Path

from assets.contract import Built, Config, Inputs, Metrics, Progress, Verdict
from assets.execution.finetuning_variants import fine_tune_variants
from gpt_model import convert
from gpt_model.errors import Unavailable
from gpt_model.experiments.document import write_document
from gpt_model.experiments.gpt1_figure2_left_layers_transferred import LayersTransferred, variants
from gpt_model.tokenizer import Tokenizer


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json. Raises Unavailable where the task's data or the model is."""
    [task], pretrained = config["tasks"], inputs["pretrained"]
    if reason := pretrained.not_run or task.get("not_run"):
        raise Unavailable(f"{task['task']}: {reason}")
    gpt = convert.load(pretrained.path / "model")
    layers = config["layers"] or list(range(gpt.config.layers + 1))
    tokenizer = Tokenizer.load(inputs["tokenizer"].path)
    starts = variants(gpt, layers)
    scores = fine_tune_variants(task, starts, pretrained, tokenizer, output, progress)
    if progress.rank:
        return {}
    curve = LayersTransferred(scores, layers, task["seeds"])
    write_document(output, curve.document())
    return curve.metrics()


def layers_help(built: Built) -> Verdict:
    slope = {name: built.metrics[name] for name in ("slope", "slope_low", "slope_high")}
    summary = (
        f"A transferred layer is worth {slope['slope']:+.4f} "
        f"[{slope['slope_low']:+.4f}, {slope['slope_high']:+.4f}]."
    )
    return Verdict(slope["slope_low"] > 0, summary, slope)
