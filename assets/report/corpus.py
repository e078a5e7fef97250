"""What Dagster, MLflow and the scorecard show of a corpus."""

from __future__ import annotations

from pathlib import Path

from assets.contract import Built
from assets.report import plots
from assets.report.tables import Table, write_markdown
from gpt_model.data import documents, splits

SAMPLE_CHARACTERS = 200  # the text is other people's


def show(built: Built, folder: Path) -> None:
    """sources.md (a table), sources.png (what there is against what is drawn), samples.md (a few
    lines a source).
    """
    index = documents.index(built.output)
    weights = sum(entry["weight"] for entry in index.values())
    rows, samples = [], []
    for source, entry in index.items():
        training, held_out = entry["training"], entry["held_out"]
        rows.append(
            {
                "source": source,
                "documents": training["documents"],
                "MB": training["bytes"] / 1e6,
                "share of training tokens": entry["weight"] / weights,
                "held-out documents": held_out["documents"],
                "held-out MB": held_out["bytes"] / 1e6,
                "dropped": sum(entry["dropped"].values()),
                "licence": entry["licence"],
            }
        )
        text = splits.normalised(next(documents.read(built.output, source, "training")))
        samples += [f"**{source}**", f"> {text[:SAMPLE_CHARACTERS]}…"]
    table = Table(
        rows, formats={"MB": ".2f", "held-out MB": ".2f", "share of training tokens": ".0%"}
    )
    write_markdown(folder / "sources.md", table)
    write_markdown(folder / "samples.md", *samples)
    with plots.picture(folder / "sources.png", height=plots.rows_height(len(index))) as axes:
        plots.bars(
            axes,
            list(index),
            {"training": list(table.frame["MB"]), "held out": list(table.frame["held-out MB"])},
        )
        axes.set_xlabel("text, MB")
