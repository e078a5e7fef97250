"""The scorecard's curve: bits per byte over the tokens trained on, beside what xz and a uniform
guess make of the same held-out text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from assets.contract import Artifact, Inputs
from assets.report import plots
from assets.report.page import Picture, Section
from assets.report.plots import Points
from assets.report.score import Score
from assets.stages.pretraining import SAMPLE
from assets.store.manifest import EVENTS
from assets.tracking.event_log import series
from gpt_model.data.shards import TokenData

TRAINING, HELD_OUT = "training batches", "held-out text, a sample"
UNIFORM = "uniform guess"
XZ = "xz -9e"
INTRODUCTION = (
    "Lower is better. The dashed lines are two baselines on the same held-out text: a "
    f"*{UNIFORM}* gives every token the same probability, and *{XZ}* is a compressor that reads "
    "the training text first. The × is the final model on all held-out text; the curve is of a "
    "sample. Sources are weighted as in training."
)


@dataclass(frozen=True)
class LossCurve:
    lines: Mapping[str, Points]  # (tokens, bits per byte)
    levels: Mapping[str, float]  # bits per byte
    final: tuple[float, float]  # of all held-out text


def loss_curve(inputs: Inputs, mixture: Score) -> LossCurve | None:
    """Of the pre-training; None where its log is not there. `mixture`: its score by mixture."""
    model = inputs["pretrained"]
    log = model.path.parent / EVENTS
    if not log.is_file():
        return None
    reported = series(log)
    tokens = dict(reported.get("tokens", ()))

    def points(name: str, factor: float = 1.0) -> Points:
        return [
            (tokens[step], value * factor)
            for step, value in reported.get(name, ())
            if step in tokens
        ]

    held_out = f"{SAMPLE}/bpb" if f"{SAMPLE}/bpb" in reported else "held_out/bpb"
    lines = {
        TRAINING: points("loss", 1 / math.log(2) / _bytes_a_token(inputs["tokens"])),
        HELD_OUT: points(held_out),
    }
    levels = {UNIFORM: model.metrics["uniform_bpb"]}
    if XZ in mixture.baseline and mixture.against is not None:
        levels[XZ] = mixture.against
    return LossCurve(
        {label: line for label, line in lines.items() if line},
        levels,
        (model.metrics["tokens"], model.metrics["held_out/bpb"]),
    )


def _bytes_a_token(tokens: Artifact) -> float:
    """Of the training text, each source by its share of the tokens trained on."""
    data = TokenData(tokens.path)
    split = "training"
    sizes = {
        source: data.bytes(source, split) / max(1, len(data.tokens(source, split)))
        for source in data.sources
    }
    total = sum(data.weights[source] for source in sizes)
    return sum(data.weights[source] * size for source, size in sizes.items()) / total


def section(curve: LossCurve) -> Section:
    """The curve drawn. A batch's loss is turned from nats a token into bits per byte by the
    training text's average.
    """
    with plots.drawing(width=9.5, height=3.5) as axes:
        for number, (label, points) in enumerate(curve.lines.items()):
            faint = label == TRAINING
            axes.plot(
                *zip(*points, strict=True),
                "-" if faint else "o-",
                color=f"C{1 - number if len(curve.lines) > 1 else 0}",
                alpha=0.45 if faint else 1,
                linewidth=1 if faint else 2,
                label=label,
            )
        axes.plot(*curve.final, "x", color="C0", markersize=9, markeredgewidth=2)
        axes.set(xlabel="tokens trained on", ylabel="bits per byte")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        plots.levels(axes, [(f"{name} {value:.3f}", value) for name, value in curve.levels.items()])
    png, svg = plots.rendered(axes.get_figure(root=True))
    picture = Picture("bits per byte over the tokens trained on", png, "loss.png", svg)
    return Section("Loss curve", pictures=[picture], intro=INTRODUCTION)
