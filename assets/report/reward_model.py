"""What the UI and MLflow show of a reward model: accuracies by source, calibration, curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assets.contract import Built, Metrics
from assets.report import plots
from assets.report.plots import Panel
from assets.report.tables import Table, markdown, metric, write_markdown
from assets.stages.alignment import BAG_OF_WORDS, HELD_OUT, NO_WORDS
from gpt_model.rlhf.ranking_agreement import calibration

COMPARISONS = "/comparisons"  # how the count of a source's pairs ends


def show(built: Built, folder: Path) -> None:
    """figures.md, calibration.png and training.png."""
    models = {"": "reward model", BAG_OF_WORDS: "bag of words"}
    write_markdown(folder / "figures.md", accuracies(built.metrics, models))
    if rows := held_out_rows(built.output):
        _plot_calibration(rows, folder / "calibration.png")
    panels = {
        "loss of a step": ("loss",),
        "accuracy": ("training_accuracy", "held_out/accuracy"),
        "held-out log loss": ("held_out/log_loss",),
        "better minus worse, training": ("margin",),
    }
    plots.curves(
        folder / "training.png",
        [Panel.of_series(title, built.series, names) for title, names in panels.items()],
    )


def held_out_rows(output: Path) -> list[dict[str, Any]]:
    with (output / HELD_OUT).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def accuracies(metrics: Metrics, models: Mapping[str, str]) -> str:
    """Accuracies of each of `models` (prefix of its metrics -> title), over all and by source, and
    what was left out; as Markdown.
    """
    sources = sorted(
        key.removesuffix(COMPARISONS)
        for key in metrics
        if key.endswith(COMPARISONS) and key not in ("training/comparisons", "held_out/comparisons")
    )

    def accuracy(model: str, source: str) -> str:
        return metric(metrics, "/".join(filter(None, (model, source, "accuracy"))))

    rows = [
        {
            "accuracy on held-out comparisons": source or "all",
            "comparisons": int(metrics.get(f"{source}{COMPARISONS}".lstrip("/"), 0)),
            **{title: accuracy(model, source) for model, title in models.items()},
        }
        for source in ("", *sources)
    ]
    note = (
        "In brackets: 95 % interval, bootstrap over prompts, whose pairs share responses. Where "
        "single texts are ranked under one instruction, no text is in two rankings, and these are "
        "drawn again."
    )
    return markdown(Table(rows, note=note), _trained_on(metrics), *_notes(metrics))


def _trained_on(metrics: Metrics) -> str:
    def left_out(reason: str) -> str:
        return f"{int(metrics[f'training/{reason}'] + metrics[f'held_out/{reason}']):,}"

    return (
        f"Trained on {int(metrics['training/comparisons']):,} comparisons in "
        f"{int(metrics['training/rankings']):,} rankings; left out {left_out('without_pairs')} "
        "rankings without a better and a worse response, "
        f"{left_out('too_long')} responses longer than the context, and {left_out('lost')} "
        "rankings that compare nothing without these."
    )


def _notes(metrics: Metrics) -> list[str]:
    notes = []
    if f"{BAG_OF_WORDS}/not_run" in metrics:
        notes.append(f"Bag of words: not run, as {NO_WORDS}.")
    if "log_loss" in metrics:
        notes.append(
            f"Log loss {metrics['log_loss']:.3f} nats (0.693 knows nothing); expected calibration "
            f"error {metrics['calibration_error']:.3f}."
        )
    if "gained" in metrics:
        gained = metric(metrics, "gained", "+.3f")
        notes.append(f"Over the bag of words, on the same comparisons: {gained}.")
    return notes


def _plot_calibration(rows: list[dict[str, Any]], path: Path) -> None:
    """Predicted probability against the share that people prefer, with the number of pairs."""
    bins, error = calibration([row["rewards"] for row in rows], [row["pairs"] for row in rows])
    with plots.picture(path, width=4.6, height=4.4) as axes:
        plots.line(axes, [(0, 0), (1, 1)], "calibrated", ":", "grey")
        points = [(bin_.predicted, bin_.preferred) for bin_ in bins]
        plots.line(axes, points, f"reward model, error {error:.3f}")
        for bin_, point in zip(bins, points, strict=True):
            axes.annotate(
                f"{bin_.count:,}", point, textcoords="offset points", xytext=(4, -10), fontsize=7
            )
        axes.set(
            xlabel="predicted: σ(difference of rewards)",
            ylabel="share that people prefer (and pairs)",
        )
