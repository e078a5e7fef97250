"""What Dagster and MLflow show of a scaling ladder's prediction."""

from __future__ import annotations

import json
from pathlib import Path

from assets.contract import Built
from assets.stages.scaling import PREDICTED


def show_prediction(built: Built, folder: Path) -> None:
    """prediction.md."""
    prediction = json.loads((built.output / PREDICTED).read_text(encoding="utf-8"))
    target, model = prediction["target"], prediction["target"]["model"]
    rows = "".join(
        f"| {row['rung']} | {row['compute']:.3g} | {row['said']} |\n"
        for row in prediction["fitted"]
    )
    (folder / "prediction.md").write_text(
        f"**{model['layers']} layers of width {model['width']}, {target['tokens']:,} tokens, "
        f"{target['compute']:.3g} petaflop/s-days: {prediction['loss']:.3f} nats a token "
        f"({prediction['low']:.3f} to {prediction['high']:.3f}, {target['level']:.0%}).**\n\n"
        f"From these alone, of {prediction['text']}; 95 % intervals over its windows:\n\n"
        f"| model | petaflop/s-days | held-out loss, nats a token |\n|---|---|---|\n{rows}",
        encoding="utf-8",
    )
