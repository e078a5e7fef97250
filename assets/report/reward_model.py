"""What the UI and MLflow show of a reward model: accuracies by source, calibration, curves. What is
measured is `reward_model.py`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from assets.contract import Built, Metrics
from assets.stages import tuning_io
from assets.stages.rankings import BAG_OF_WORDS, HELD_OUT, NO_WORDS

SHOWN = {"": "reward model", BAG_OF_WORDS: "bag of words"}


def show(built: Built, folder: Path) -> None:
    """figures.md, calibration.png and training.png."""
    (folder / "figures.md").write_text(figures(built.metrics, SHOWN), encoding="utf-8")
    if rows := held_out_rows(built.output):
        _plot_calibration(rows, folder / "calibration.png")
    series = built.series
    tuning_io.curves(
        [
            ("loss of a step", "optimizer steps", [("loss", series.get("loss", ()))]),
            (
                "accuracy",
                "optimizer steps",
                [
                    (name, series.get(name, ()))
                    for name in ("training_accuracy", "held_out/accuracy")
                    if name in series
                ],
            ),
            (
                "held-out log loss",
                "optimizer steps",
                [("log loss", series.get("held_out/log_loss", ()))],
            ),
            (
                "better minus worse, training",
                "optimizer steps",
                [("margin", series.get("margin", ()))],
            ),
        ],
        folder / "training.png",
    )


def held_out_rows(output: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (output / HELD_OUT).read_text(encoding="utf-8").split("\n")[:-1]
    ]


def figures(metrics: Metrics, shown: dict[str, str]) -> str:
    """Accuracies as a table, of each of `shown`, over all and by source; and what was left out."""

    def cell(model: str, source: str) -> str:
        key = "/".join(part for part in (model, source, "accuracy") if part)
        return (
            f"{metrics[key]:.3f} ({metrics[f'{key}_low']:.3f} to {metrics[f'{key}_high']:.3f})"
            if key in metrics
            else "–"
        )

    def left_out(reason: str) -> int:
        return int(metrics[f"training/{reason}"] + metrics[f"held_out/{reason}"])

    ends = "/comparisons"
    sources = sorted(
        key.removesuffix(ends)
        for key in metrics
        if key.endswith(ends) and key not in ("training/comparisons", "held_out/comparisons")
    )
    lines = [
        f"| accuracy on held-out comparisons | comparisons | {' | '.join(shown.values())} |",
        "|---|" + "---|" * (1 + len(shown)),
    ]
    for source in ("", *sources):
        count = int(metrics.get(f"{source}{ends}".lstrip("/"), 0))
        lines.append(
            f"| {source or 'all'} | {count:,} | {' | '.join(cell(model, source) for model in shown)} |"
        )
    said = [
        "In brackets: 95 % interval, bootstrap over prompts, whose pairs share responses. Where single texts are ranked under one "
        "instruction, no text is in two rankings, and these are drawn again.",
        f"Trained on {int(metrics['training/comparisons']):,} comparisons in {int(metrics['training/rankings']):,} rankings; left out "
        f"{left_out('without_pairs'):,} rankings without a better and a worse response, {left_out('too_long'):,} responses longer than "
        f"the context, and {left_out('lost'):,} rankings that compare nothing without these.",
    ]
    if f"{BAG_OF_WORDS}/not_run" in metrics:
        said.append(f"Bag of words: not run, as {NO_WORDS}.")
    if "log_loss" in metrics:
        said.append(
            f"Log loss {metrics['log_loss']:.3f} nats (0.693 knows nothing); expected calibration error {metrics['calibration_error']:.3f}."
        )
    if "gained" in metrics:
        low, high = metrics["gained_low"], metrics["gained_high"]
        said.append(
            f"Over the bag of words, on the same comparisons: {metrics['gained']:+.3f} ({low:+.3f} to {high:+.3f})."
        )
    return "\n".join(lines) + "\n\n" + "\n\n".join(said) + "\n"


def _plot_calibration(rows: list[dict[str, Any]], path: Path) -> None:
    """Predicted probability against the share that people prefer, and how many pairs that rests on."""
    from matplotlib.figure import Figure

    from gpt_model.rlhf.pairwise import calibration

    bins, error = calibration([row["rewards"] for row in rows], [row["pairs"] for row in rows])
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color="grey", label="calibrated")
    axes.plot(
        [one.predicted for one in bins],
        [one.preferred for one in bins],
        marker="o",
        label=f"reward model, error {error:.3f}",
    )
    for one in bins:
        axes.annotate(
            f"{one.count:,}",
            (one.predicted, one.preferred),
            textcoords="offset points",
            xytext=(4, -10),
            fontsize=7,
        )
    axes.set_xlabel("predicted: σ(difference of rewards)")
    axes.set_ylabel("share that people prefer (and pairs)")
    axes.legend()
    figure.savefig(path, dpi=110)
