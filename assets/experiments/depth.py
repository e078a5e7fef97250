"""Stage `depth`: held-out bits per byte of models of fewer and more layers, each trained from the start as the recipe's own is.

GPT-1's figure 2 (left) varies how many layers of one model are transferred; this varies how many there are. The models are assets of their
own, `depth/layers_<number>`, of the pre-training stage.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from assets import experiment_page
from assets.contract import Artifact, Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from gpt_model.config import ModelConfig

if TYPE_CHECKING:
    from gpt_model.experiments.intervals import Estimate

ENDS = ("", "_low", "_high")  # of a metric's name: the value, and its interval


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json from the metrics of the models that stand before it: "pretrained" and "depth/layers_<number>"."""
    from gpt_model.experiments.intervals import Estimate

    models = {int(one.config["model"]["layers"]): one for name, one in inputs.items() if name == "pretrained" or name.startswith("depth/")}
    layers = sorted(models)
    sources = sorted(name.split("/")[1] for name in models[layers[0]].metrics if name.startswith("held_out/") and name.endswith("/bpb_low"))
    series, rows = [], []
    for source in sources:
        ends = [[models[n].metrics[f"held_out/{source}/bpb{end}"] for n in layers] for end in ENDS]
        series.append({"label": source, "x": layers, "y": ends[0], "low": ends[1], "high": ends[2]})
    for n in layers:
        metrics = models[n].metrics
        cells = [str(Estimate(*(metrics[f"held_out/{source}/bpb{end}"] for end in ENDS))) for source in sources]
        rows.append([n, f"{_parameters(models[n].config, inputs['tokenizer']):,}", *cells])
    saved = {source: _saved(models[layers[0]], models[layers[-1]], source) for source in sources}
    experiment_page.write(output, {
        "title": "Bits per byte against depth",
        "source": "GPT-1, section 5, extended from layers transferred to layers trained",
        "summary": [
            f"{source}: {layers[-1]} layers instead of {layers[0]} save {one} bits per byte of held-out text; all else is the same."
            for source, one in saved.items()
        ],
        "tables": [{
            "caption": "Held-out text of each source, 95 % intervals over windows; one seed a depth.",
            "columns": ["layers", "parameters", *(f"{source}, bits per byte" for source in sources)], "rows": rows,
        }],
        "plots": [{"title": "held-out bits per byte", "x": "layers", "y": "bits per byte", "log_x": True, "series": series}],
    })  # fmt: skip
    return {
        f"{source}/saved{end}": number
        for source, one in saved.items()
        for end, number in zip(ENDS, (one.value, one.low, one.high), strict=True)
    }


def _parameters(config: Config, tokenizer: Artifact) -> int:
    return ModelConfig(**config["model"], vocab_size=int(tokenizer.metrics["vocab_size"])).parameters()


def _saved(shallow: Artifact, deep: Artifact, source: str) -> Estimate:
    """Bits per byte that the deeper model saves: their intervals taken for independent, wider than need be on the same text."""
    from gpt_model.experiments.intervals import Estimate

    value = shallow.metrics[f"held_out/{source}/bpb"] - deep.metrics[f"held_out/{source}/bpb"]
    widths = [one.metrics[f"held_out/{source}/bpb_high"] - one.metrics[f"held_out/{source}/bpb_low"] for one in (shallow, deep)]
    half = math.hypot(*widths) / 2
    return Estimate(value, value - half, value + half)


def _deeper_is_better(built: Built) -> Verdict:
    found = {name.split("/")[0]: value for name, value in built.metrics.items() if name.endswith("/saved")}
    lows = [built.metrics[f"{source}/saved_low"] for source in found]
    said = ", ".join(f"{source} {value:.3f}" for source, value in found.items())
    return Verdict(bool(lows) and min(lows) > 0, f"Bits per byte saved by the deepest model over the shallowest: {said}.", found)


DEPTH = Stage(
    name="depth",
    version="2",
    run=run,
    description="Held-out bits per byte of models of fewer and more layers, trained alike.",
    checks=(
        experiment_page.WHOLE,
        Check(
            "deeper_is_better",
            False,
            "The deepest model takes fewer bits of every source than the shallowest, interval and all.",
            _deeper_is_better,
        ),
    ),
    show=experiment_page.show,
)
