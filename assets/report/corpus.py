"""What Dagster, MLflow and the scorecard show of a corpus."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from assets.contract import Built
from gpt_model.data import documents, splits

SAMPLE_CHARACTERS = 200  # the text is other people's


def show(built: Built, folder: Path) -> None:
    """sources.md (a table), sources.png (what there is against what is drawn), samples.md (a few
    lines a source).
    """
    index = documents.index(built.output)
    weights = sum(entry["weight"] for entry in index.values())
    lines = [
        "| source | documents | MB | share of training tokens | held out: documents | MB | "
        "dropped | licence |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    samples = []
    for source, entry in index.items():
        training, held_out = entry["training"], entry["held_out"]
        lines.append(
            f"| {source} | {training['documents']:,} | {training['bytes'] / 1e6:.2f} | "
            f"{entry['weight'] / weights:.0%} "
            f"| {held_out['documents']:,} | {held_out['bytes'] / 1e6:.2f} | "
            f"{sum(entry['dropped'].values()):,} | {entry['licence']} |"
        )
        text = splits.normalised(next(documents.read(built.output, source, "training")))
        samples.append(f"**{source}**\n\n> {text[:SAMPLE_CHARACTERS]}…\n")
    (folder / "sources.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "samples.md").write_text("\n".join(samples), encoding="utf-8")

    figure = Figure(figsize=(7, 0.8 + 0.6 * len(index)), layout="constrained")
    axes = figure.subplots()
    megabytes = {
        split: [entry[split]["bytes"] / 1e6 for entry in index.values()]
        for split in documents.SPLITS
    }
    axes.barh(list(index), megabytes["training"], label="training")
    axes.barh(list(index), megabytes["held_out"], left=megabytes["training"], label="held out")
    axes.set_xlabel("text, MB")
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(folder / "sources.png", dpi=110)
