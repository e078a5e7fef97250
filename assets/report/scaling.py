"""What Dagster and MLflow show of a scaling ladder's prediction."""

from __future__ import annotations

import json
from pathlib import Path

from assets.contract import Built
from assets.report.tables import Table, interval, write_markdown
from assets.stages.scaling import PREDICTED


def show_prediction(built: Built, folder: Path) -> None:
    """prediction.md."""
    prediction = json.loads((built.output / PREDICTED).read_text(encoding="utf-8"))
    target, model = prediction["target"], prediction["target"]["model"]
    loss = interval(prediction["loss"], prediction["low"], prediction["high"])
    rows = [
        {
            "model": row["rung"],
            "petaflop/s-days": row["compute"],
            "held-out loss, nats a token": row["said"],
        }
        for row in prediction["fitted"]
    ]
    write_markdown(
        folder / "prediction.md",
        f"**{model['layers']} layers of width {model['width']}, {target['tokens']:,} tokens, "
        f"{target['compute']:.3g} petaflop/s-days: {loss} nats a token "
        f"({target['level']:.0%} interval).**",
        f"From these alone, of {prediction['text']}; 95 % intervals over its windows:",
        Table(rows, formats={"petaflop/s-days": ".3g"}),
    )
