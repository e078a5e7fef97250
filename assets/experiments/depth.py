"""Stage `depth`: held-out bits per byte of models of fewer and more layers, each trained from the start as the recipe's own is.

GPT-1's figure 2 (left) varies how many layers of one model are transferred; this varies how many there are. The models are assets of their
own, `depth/layers_<number>`, of the pre-training stage.
"""

from __future__ import annotations

import math
from pathlib import Path

from assets import experiment_page
from assets.contract import Artifact, Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from gpt_model.config import ModelConfig


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json from the metrics of the models that stand before it: "pretrained" and "depth/layers_<number>"."""
    models = {int(one.config["model"]["layers"]): one for name, one in inputs.items() if name == "pretrained" or name.startswith("depth/")}
    layers = sorted(models)
    sources = sorted(name.split("/")[1] for name in models[layers[0]].metrics if name.startswith("held_out/") and name.endswith("/bpb_low"))
    series, rows = [], []
    for source in sources:
        ends = [[models[n].metrics[f"held_out/{source}/bpb{end}"] for n in layers] for end in ("", "_low", "_high")]
        series.append({"label": source, "x": layers, "y": ends[0], "low": ends[1], "high": ends[2]})
    for n in layers:
        metrics = models[n].metrics
        cells = [
            f"{metrics[f'held_out/{s}/bpb']:.3f} ({metrics[f'held_out/{s}/bpb_low']:.3f} to {metrics[f'held_out/{s}/bpb_high']:.3f})"
            for s in sources
        ]
        rows.append([n, f"{_parameters(models[n].config, inputs['tokenizer']):,}", f"{metrics['held_out/bpb']:.3f}", *cells])
    metrics = {f"{n}/bpb": models[n].metrics["held_out/bpb"] for n in layers}
    slope = _slope([math.log2(n) for n in layers], list(metrics.values())) if len(layers) > 1 else 0.0
    experiment_page.write(output, {
        "title": "Bits per byte against depth",
        "source": "GPT-1, section 5, extended from layers transferred to layers trained",
        "summary": [f"Doubling the layers changes the mixture's bits per byte by {slope:+.3f}; width, text and steps are the same."],
        "tables": [{
            "caption": "Held-out text of each source, 95 % intervals over windows; one seed a depth.",
            "columns": ["layers", "parameters", "mixture, bits per byte", *sources], "rows": rows,
        }],
        "plots": [{"title": "held-out bits per byte", "x": "layers", "y": "bits per byte", "log_x": True, "series": series, "levels": []}],
    })  # fmt: skip
    return {**metrics, "bpb_a_doubling": slope}


def _parameters(config: Config, tokenizer: Artifact) -> int:
    return ModelConfig(**config["model"], vocab_size=int(tokenizer.metrics["vocab_size"])).parameters()


def _slope(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def _deeper_is_better(built: Built) -> Verdict:
    slope = built.metrics["bpb_a_doubling"]
    return Verdict(slope < 0, f"A doubling of the layers changes held-out bits per byte by {slope:+.3f}.", {"bpb_a_doubling": slope})


DEPTH = Stage(
    name="depth",
    version="1",
    run=run,
    description="Held-out bits per byte of models of fewer and more layers, trained alike.",
    checks=(experiment_page.WHOLE, Check("deeper_is_better", False, "Bits per byte fall with the number of layers.", _deeper_is_better)),
    show=experiment_page.show,
)
