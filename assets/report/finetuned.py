"""What the UI and MLflow show of a fine-tuned task: its scores, a few samples, the confusion matrix
or the ratings, and the losses.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pandas import DataFrame

from assets.contract import Built, Config, Metrics
from assets.report import plots
from assets.report.tables import Table, metric, not_resampled_note, share_of, write_markdown
from assets.stages.alignment import BAG_OF_WORDS
from assets.stages.finetuning import ARMS, CONSTANT
from gpt_model.evaluation.results import cut_text
from gpt_model.finetuning.entry import SCORE_NAMES
from gpt_model.io import read_json_lines


def show(built: Built, folder: Path) -> None:
    """scores.md, samples.md, confusion.png or ratings.png, and fine_tuning.png; an SVG beside each
    picture.
    """
    task = built.config["task"]
    facts = json.loads((built.output / "task.json").read_text(encoding="utf-8"))
    how = adapted(built.config, built.metrics)
    write_markdown(
        folder / "scores.md",
        _examples(task, built.metrics, facts),
        f"{how[0].upper()}{how[1:]}." if how else "",
        scores_table(built.metrics, built.config["source"]["metric"]),
        f"Licence: {facts['entry']['licence']}",
    )
    write_markdown(folder / "samples.md", _samples(built.output))
    predictions = read_json_lines(built.output / "predictions.jsonl")
    labels, predicted = ([row[key] for row in predictions] for key in ("label", "predicted"))
    if "scale" in built.config["source"]:
        with plots.picture(folder / "ratings.png", 3.6, 3.2) as axes:
            ratings = [(float(x), float(y)) for x, y in zip(labels, predicted, strict=True)]
            plots.line(axes, ratings, style=".")
            axes.set(title=f"{task}, test", xlabel="rating", ylabel="predicted")
    else:
        names = list(map(str, facts["labels"]))
        pairs = Counter(zip(map(str, labels), map(str, predicted), strict=True))
        counts = [[pairs[label, answer] for answer in names] for label in names]
        inches = plots.matrix_inches(len(names))
        with plots.picture(folder / "confusion.png", *inches, grid=False) as axes:
            plots.matrix(axes, counts, names)
            axes.set_title(f"{task}, test")
    _plot_losses(built, folder / "fine_tuning.png")


def _examples(task: str, metrics: Metrics, facts: Mapping[str, Any]) -> str:
    """How many examples of each split were used, and how many rows were left out."""

    def used(split: str) -> str:
        examples, available = f"{split}_examples", f"{split}_examples_available"
        return f"{share_of(int(metrics[examples]), int(metrics[available]))} {split}"

    splits = ", ".join(map(used, ("training", "validation", "test")))
    left_out = "".join(
        f"; {count:,} rows left out ({reason})"
        for reason, count in sorted(facts["left_out"].items())
    )
    cut = cut_of_test(metrics)
    of_test = f" (of test {cut})" if cut else ""
    return (
        f"**{task}** ({facts['entry']['form'].replace('_', ' ')}): {splits} examples; "
        f"{int(metrics['cut_examples']):,} cut to the context{of_test}{left_out}."
    )


def scores_table(metrics: Metrics, selected_by: str) -> Table:
    """The scores of both arms. `selected_by`: the metric that chose the epoch."""
    columns = [
        *("on test", "pre-trained", "random weights", "bag of words"),
        "the best constant answer",
    ]
    shown = [key for key in SCORE_NAMES if key in metrics]
    rows = [
        [
            SCORE_NAMES[key],
            metric(metrics, key),
            metric(metrics, f"random_{key}"),
            metric(metrics, f"{BAG_OF_WORDS}/{key}"),
            metric(metrics, CONSTANT.get(key, "")),
        ]
        for key in shown
    ]
    rows += [
        [
            f"{SCORE_NAMES[key]}, {part} ({int(metrics[f'{part}/test_examples']):,})",
            metric(metrics, f"{part}/{key}"),
            "",
            metric(metrics, f"{BAG_OF_WORDS}/{part}/{key}"),
            "",
        ]
        for part in parts_of(metrics)
        for key in shown
    ]
    name = SCORE_NAMES[selected_by]
    rows.append([f"transfer: {name} over random weights", metric(metrics, "transfer"), "", "", ""])
    note = (
        "In brackets: 95 % interval, by Wilson's formula for accuracy and by a bootstrap over "
        "groups for the other scores, in pairs for transfer. Each network is that of its epoch "
        f"with the best {name} on validation rows (pre-trained: epoch "
        f"{int(metrics['pretrained_best_epoch'])}; random weights: epoch "
        f"{int(metrics['random_best_epoch'])}). The bag of words is a logistic regression on the "
        "TF-IDF of words and word pairs, trained on the same rows."
    )
    note += not_resampled_note(cell for row in rows for cell in row)
    return Table(DataFrame(rows, columns=columns), note=note)


def cut_of_test(metrics: Metrics) -> str:
    """What of the test split was cut to the context, as a phrase; "" of a build of before it was
    counted.
    """
    names = ("test_cut_examples", "test_examples", "test_cut_tokens")
    return cut_text(*(int(metrics.get(name, 0)) for name in names))


def adapted(config: Config, metrics: Metrics) -> str:
    """How the arms were trained, where not alike: with `lora` in the recipe. Else nothing."""
    if "lora" not in config:
        return ""
    rank, targets = config["lora"]["rank"], " and ".join(config["lora"]["targets"])
    return (
        f"pre-trained weights adapted with LoRA of rank {rank} beside {targets}: "
        f"{int(metrics['trained_parameters']):,} parameters trained, those of the adapters, of "
        "Start, Delim and Extract, and of the head; random weights trained whole"
    )


def parts_of(metrics: Mapping[str, float]) -> list[str]:
    """The parts of the test split that have scores of their own."""
    return sorted(key.partition("/")[0] for key in metrics if key.endswith("/test_examples"))


def _samples(output: Path) -> Table:
    samples = json.loads((output / "samples.json").read_text(encoding="utf-8"))
    rows = [
        {
            "text": " ⏐ ".join(sample["texts"]),
            "label": str(sample["label"]),
            "predicted": str(sample["predicted"]),
        }
        for sample in samples
    ]
    return Table(DataFrame(rows, columns=["text", "label", "predicted"]))


def _plot_losses(built: Built, path: Path) -> None:
    with plots.picture(path, 5, 3.2) as axes:
        for number, arm in enumerate(ARMS):
            for name, style in (("label_loss", "-"), ("text_loss", ":")):
                if points := built.series.get(f"{arm}/{name}"):
                    label = f"{arm}, {name.replace('_', ' ')}"
                    plots.line(axes, points, label, style, f"C{number}")
        axes.set(xlabel="step", ylabel="nats")
