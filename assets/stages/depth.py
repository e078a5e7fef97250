"""Stage `depth`: held-out bits per byte of models of fewer and more layers, each trained from the
start and alike.

GPT-1's figure 2 (left) varies how many layers of one model are transferred; this varies how many
there are. The models are assets of their own, `depth/layers_<number>` or one a seed of each, of the
pre-training stage. How they are compared: gpt_model/experiments/depth.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import (
    Artifact,
    Built,
    Check,
    Config,
    Inputs,
    Metrics,
    Progress,
    Stage,
    Verdict,
)
from assets.report import experiment
from gpt_model.config import ModelConfig

if TYPE_CHECKING:
    from gpt_model.statistics import Bootstrap, ConfidenceInterval
    from gpt_model.training.measure import HeldOut

Models = dict[int, list[Artifact]]  # of each depth, one a seed


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json: every model among the inputs ("pretrained" and "depth/…") measured on
    the same held-out windows.
    """
    from gpt_model.experiments.depth import compared

    models: Models = {}
    for name, one in inputs.items():
        if name == "pretrained" or name.startswith("depth/"):
            models.setdefault(int(one.config["model"]["layers"]), []).append(one)
    models = dict(sorted(models.items()))
    measured = _measured(models, inputs["tokens"], progress)
    first = measured[0][0]
    sources = [source for source, one in first.items() if len(one.windows) > 1]
    points = {
        source: compared([[one[source].windows for one in seeds] for seeds in measured], number)
        for number, source in enumerate(sources)
    }
    saved = {
        source: one.interval([1.0, *[0.0] * (len(models) - 2), -1.0])
        for source, one in points.items()
    }
    experiment.write(output, _document(models, inputs["tokenizer"], first, points, saved))
    metrics: Metrics = {}
    for source, curve in points.items():
        for n, found in zip(models, curve.intervals(), strict=True):
            metrics |= found.as_metrics(f"{source}/{n}/bpb")
        metrics |= saved[source].as_metrics(f"{source}/saved")
    return metrics


def _measured(
    models: Models, tokens: Artifact, progress: Progress
) -> list[list[dict[str, HeldOut]]]:
    """The held-out text of every source as each model predicts it: [depth][seed]."""
    from gpt_model import convert
    from gpt_model.data.shards import TokenData
    from gpt_model.training.engine import Execution
    from gpt_model.training.measure import held_out

    data, device, total = (
        TokenData(tokens.path),
        progress.profile.device,
        sum(map(len, models.values())),
    )
    found: list[list[dict[str, HeldOut]]] = []
    for seeds in models.values():
        found.append([])
        for one in seeds:
            found[-1].append(
                held_out(
                    convert.load(one.path / "model").to(device).eval(),
                    data,
                    Execution(device=device),
                )
            )
            progress.advance(sum(map(len, found)), total, "models")
    return found


def _document(
    models: Models,
    tokenizer: Artifact,
    text: Mapping[str, HeldOut],
    points: Mapping[str, Bootstrap],
    saved: Mapping[str, ConfidenceInterval],
) -> dict[str, Any]:
    layers, each = list(models), {source: one.intervals() for source, one in points.items()}
    series = [
        {
            "label": source,
            "x": layers,
            **{
                key: [getattr(one, end) for one in curve]
                for key, end in (("y", "value"), ("low", "low"), ("high", "high"))
            },
        }
        for source, curve in each.items()
    ]
    return {
        "title": "Bits per byte against depth",
        "source": "GPT-1, section 5, extended from layers transferred to layers trained",
        "summary": [
            f"{source}: {layers[-1]} layers instead of {layers[0]} save {one} bits per byte of held-out text; all else is the same."
            for source, one in saved.items()
        ]
        or ["No source has held-out text enough."],
        "tables": [
            {
                "caption": _caption(models, {source: text[source] for source in points}),
                "columns": [
                    "layers",
                    "parameters",
                    *(f"{source}, bits per byte" for source in each),
                ],
                "rows": [
                    [
                        n,
                        f"{_parameters(models[n][0].config, tokenizer):,}",
                        *(str(curve[place]) for curve in each.values()),
                    ]
                    for place, n in enumerate(layers)
                ],
            }
        ],
        "plots": [
            {
                "title": "held-out bits per byte",
                "x": "layers",
                "y": "bits per byte",
                "log_x": True,
                "series": series,
            }
        ]
        if series
        else [],
    }


def _caption(models: Models, text: Mapping[str, HeldOut]) -> str:
    """How much was trained on and measured, and what the intervals are over."""
    seeds = next(iter(models.values()))
    size = "; ".join(
        f"{source} {one.tokens:,} tokens in {len(one.windows):,} windows"
        for source, one in text.items()
    )
    over = (
        f"Means of {len(seeds)} seeds a depth. Intervals: 95 %, a bootstrap over windows and seeds; of what is saved, on the same windows."
        if len(seeds) > 1
        else "One seed a depth. Intervals: 95 %, a bootstrap over windows; what another seed would give is not in them."
    )
    return f"Each model trained on {seeds[0].config['pretraining']['tokens']:,} tokens. Held out: {size}. {over}"


def _parameters(config: Config, tokenizer: Artifact) -> int:
    return ModelConfig(
        **config["model"], vocab_size=int(tokenizer.metrics["vocab_size"])
    ).parameters()


def _deeper_is_better(built: Built) -> Verdict:
    found = {
        name.split("/")[0]: value
        for name, value in built.metrics.items()
        if name.endswith("/saved")
    }
    lows = [built.metrics[f"{source}/saved_low"] for source in found]
    said = ", ".join(f"{source} {value:.3f}" for source, value in found.items())
    return Verdict(
        bool(lows) and min(lows) > 0,
        f"Bits per byte saved by the deepest model over the shallowest: {said}.",
        found,
    )


DEPTH = Stage(
    name="depth",
    version="3",
    run=run,
    description="Held-out bits per byte of models of fewer and more layers, trained alike.",
    kinds=("pytorch",),
    checks=(
        experiment.WHOLE,
        Check(
            "deeper_is_better",
            False,
            "The deepest model takes fewer bits of every source than the shallowest, interval and all.",
            _deeper_is_better,
        ),
    ),
    show=experiment.show,
    pool="training",
)
