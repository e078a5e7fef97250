"""Runs the depth stage (GPT-1, figure 2 left, extended to layers trained)."""

from __future__ import annotations

from pathlib import Path

from assets.contract import Artifact, Built, Config, Inputs, Metrics, Progress, Verdict
from gpt_model import convert
from gpt_model.config import ModelConfig
from gpt_model.data.shards import TokenData
from gpt_model.experiments.document import write_document
from gpt_model.experiments.gpt1_figure2_left_depth import Depths
from gpt_model.training.engine import Execution
from gpt_model.training.measure import HeldOut, held_out


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json: every model among the inputs ("pretrained" and "depth/…") measured on
    the same held-out windows.
    """
    models: dict[int, list[Artifact]] = {}
    for name, artifact in inputs.items():
        if name == "pretrained" or name.startswith("depth/"):
            models.setdefault(int(artifact.config["model"]["layers"]), []).append(artifact)
    models = dict(sorted(models.items()))
    data, device = TokenData(inputs["tokens"].path), progress.profile.device
    count, measured = sum(map(len, models.values())), 0
    results: dict[int, list[dict[str, HeldOut]]] = {layers: [] for layers in models}
    for layers, seeds in models.items():
        for artifact in seeds:
            model = convert.load(artifact.path / "model").to(device).eval()
            results[layers].append(held_out(model, data, Execution(device=device)))
            measured += 1
            progress.advance(measured, count, "models")
    vocab_size = int(inputs["tokenizer"].metrics["vocab_size"])
    shapes = {layers: seeds[0].config["model"] for layers, seeds in models.items()}
    parameters = {
        layers: ModelConfig(**shape, vocab_size=vocab_size).parameters()
        for layers, shape in shapes.items()
    }
    first = next(iter(models.values()))[0]
    depths = Depths(results, parameters, first.config["pretraining"]["tokens"])
    write_document(output, depths.document())
    return depths.metrics()


def deeper_is_better(built: Built) -> Verdict:
    """What the deepest model saves, of every source interval and all."""
    saved = {
        name.split("/")[0]: value
        for name, value in built.metrics.items()
        if name.endswith("/saved")
    }
    lows = [built.metrics[f"{source}/saved_low"] for source in saved]
    values = ", ".join(f"{source} {value:.3f}" for source, value in saved.items())
    return Verdict(
        bool(lows) and min(lows) > 0,
        f"Bits per byte saved by the deepest model over the shallowest: {values}.",
        saved,
    )
