"""What the UI and MLflow show of a finetuned artifact: its scores, a few samples, the confusion
matrix and the losses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assets.contract import NOT_RUN, Built, Config, Metrics

SCORE_NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson with the ratings",
}
CONSTANT = {
    "accuracy": "majority",
    "f1": "constant_f1",
    "matthews": "constant_matthews",
}  # what the best of always one answer gets
ARMS = ("pretrained", "random")  # fine-tuned from pre-trained weights, and from random ones


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def show(built: Built, folder: Path) -> None:
    if (path := built.output / NOT_RUN).is_file():
        reason = json.loads(path.read_text(encoding="utf-8"))["not_run"]
        (folder / "scores.md").write_text(
            f"**{built.config['task']}** is not run here. {reason}.\n", encoding="utf-8"
        )
        return
    (folder / "scores.md").write_text(_scores_table(built), encoding="utf-8")
    (folder / "samples.md").write_text(_samples_table(built), encoding="utf-8")
    if "scale" in built.config["source"]:
        _plot_ratings(built, folder / "ratings.png")
    else:
        _plot_confusion(built, folder / "confusion.png")
    _plot_losses(built, folder / "fine_tuning.png")


def _of(metrics: Mapping[str, float], split: str) -> str:
    """How many examples of a split were used: "400", or "400 of 1,280 (a seeded subset)"."""
    used, available = int(metrics[f"{split}_examples"]), int(metrics[f"{split}_examples_available"])
    return f"{used:,} of {available:,} (a seeded subset)" if used < available else f"{used:,}"


def _scores_table(built: Built) -> str:
    m, facts = built.metrics, json.loads((built.output / "task.json").read_text(encoding="utf-8"))
    left_out = "".join(
        f"; {count:,} rows left out ({reason})"
        for reason, count in sorted(facts["left_out"].items())
    )

    how = adapted(built.config, m)
    how = f"{how[0].upper()}{how[1:]}.\n\n" if how else ""

    def cell(key: str) -> str:
        return f"{m[key]:.3f} ({m[f'{key}_low']:.3f} – {m[f'{key}_high']:.3f})"

    def row(key: str) -> str:
        constant = f"{m[CONSTANT[key]]:.3f}" if key in CONSTANT else "–"
        return f"| {SCORE_NAMES[key]} | {cell(key)} | {cell(f'random_{key}')} | {constant} |\n"

    name = SCORE_NAMES[built.config["source"]["metric"]]
    shown = [key for key in SCORE_NAMES if key in m]
    return (
        f"**{built.config['task']}** ({facts['entry']['form'].replace('_', ' ')}): "
        f"{_of(m, 'training')} training, {_of(m, 'validation')} validation, {_of(m, 'test')} test examples; "
        f"{int(m['cut_examples']):,} cut to the context{left_out}.\n\n{how}"
        "| on test | pre-trained | random weights | always one answer, the best |\n|---|---|---|---|\n"
        + "".join(row(key) for key in shown)
        + "".join(
            f"| {SCORE_NAMES[key]}, {part} ({int(m[f'{part}/test_examples']):,}) | {cell(f'{part}/{key}')} | | |\n"
            for part in parts_of(m)
            for key in shown
        )
        + f"| transfer: {name} over random weights | {cell('transfer')} | | |\n\n"
        "In brackets: 95 % interval. Accuracy: Wilson's. The others: bootstrap over groups, transfer's in pairs. "
        f"Weights of the epoch best on validation by {name} (epoch {int(m['pretrained_best_epoch'])} pre-trained, "
        f"{int(m['random_best_epoch'])} random).\n\n"
        f"Licence: {facts['entry']['licence']}\n"
    )


def adapted(config: Config, metrics: Metrics) -> str:
    """How the arms were trained, where not alike: with `lora` in the recipe. Else nothing."""
    if "lora" not in config:
        return ""
    return (
        f"pre-trained weights adapted with LoRA of rank {config['lora']['rank']} beside {' and '.join(config['lora']['targets'])}: "
        f"{int(metrics['trained_parameters']):,} parameters trained, those of the adapters, of Start, Delim and Extract, and of the head; "
        "random weights trained whole"
    )


def parts_of(metrics: Mapping[str, float]) -> list[str]:
    """The parts of the test split that have scores of their own."""
    return sorted(key.partition("/")[0] for key in metrics if key.endswith("/test_examples"))


def _samples_table(built: Built) -> str:
    samples = json.loads((built.output / "samples.json").read_text(encoding="utf-8"))
    lines = "".join(
        "| "
        + " ⏐ ".join(text.replace("|", "\\|").replace("\n", " ") for text in one["texts"])
        + f" | {one['label']} | {one['predicted']} |\n"
        for one in samples
    )
    return f"| text | label | predicted |\n|---|---|---|\n{lines}"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _plot_confusion(built: Built, path: Path) -> None:
    from sklearn.metrics import ConfusionMatrixDisplay

    predictions = json_lines(built.output / "predictions.jsonl")
    names = json.loads((built.output / "task.json").read_text(encoding="utf-8"))["labels"]
    figure, axes = _figure(3.6, 3.2)
    labels, predicted = ([one[key] for one in predictions] for key in ("label", "predicted"))
    ConfusionMatrixDisplay.from_predictions(
        labels, predicted, labels=names, ax=axes, colorbar=False, cmap="Blues"
    )
    axes.set_title(f"{built.config['task']}, test")
    figure.savefig(path, dpi=120)


def _plot_ratings(built: Built, path: Path) -> None:
    predictions = json_lines(built.output / "predictions.jsonl")
    figure, axes = _figure(3.6, 3.2)
    axes.plot(
        *([float(one[key]) for one in predictions] for key in ("label", "predicted")),
        ".",
        markersize=3,
        alpha=0.5,
    )
    axes.set_xlabel("rating")
    axes.set_ylabel("predicted")
    axes.set_title(f"{built.config['task']}, test")
    figure.savefig(path, dpi=120)


def _plot_losses(built: Built, path: Path) -> None:
    figure, axes = _figure(5, 3.2)
    for arm in ARMS:
        for name, style in (("label_loss", "-"), ("text_loss", ":")):
            if points := built.series.get(f"{arm}/{name}"):
                axes.plot(
                    *zip(*points, strict=True),
                    style,
                    label=f"{arm}, {name.replace('_', ' ')}",
                    color=f"C{ARMS.index(arm)}",
                    alpha=0.8,
                )
    axes.set_xlabel("step")
    axes.set_ylabel("nats")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)
