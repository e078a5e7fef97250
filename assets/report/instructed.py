"""What a person sees of the choice of an epoch: rewards and held-out losses side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assets.contract import Built
from assets.report.plots import Panel, curves
from assets.report.tables import Table, interval, last_texts, write_markdown
from assets.stages.alignment import TRAINING_FILE

# label -> series
REWARDS = {"mean": "reward", "interval, low": "reward_low", "interval, high": "reward_high"}


def show(built: Built, folder: Path) -> None:
    """epochs.png, epochs.md and samples.md."""
    series = built.series
    rewards = {label: series.get(name, ()) for label, name in REWARDS.items()}
    losses = {"nats a token": series.get("held_out_loss", ())}
    curves(
        folder / "epochs.png",
        [
            Panel("reward on held-out prompts", "epoch", rewards),
            Panel("loss on held-out demonstrations", "epoch", losses),
        ],
    )
    facts = json.loads((built.output / TRAINING_FILE).read_text(encoding="utf-8"))
    write_markdown(folder / "epochs.md", epochs_table(facts))
    if built.texts:
        heading = "Answers of the last epoch to held-out prompts."
        write_markdown(folder / "samples.md", heading, last_texts(built.texts))


def epochs_table(facts: Mapping[str, Any]) -> Table:
    """Reward and held-out loss of every epoch, from training.json."""
    rows = [
        {
            "epoch": f"{row['epoch']}{' (kept)' * (row['epoch'] == facts['best_epoch'])}",
            "reward (95 % interval)": interval(*(row[name] for name in REWARDS.values())),
            "held-out loss": row.get("held_out_loss"),
            "tokens": row["length"],
            "ended": row["ended"],
            "say nothing": row["empty"],
        }
        for row in facts["epochs"]
    ]
    note = (
        f"{facts['prompts']} held-out prompts, the same for every epoch. The best mean reward is "
        "kept; loss has no say in it. "
    )
    note += (
        "Models are compared on none of them."
        if facts["apart"]
        else f"Models are compared on the same ones, as there are only {facts['left']} others: the "
        "figures of this epoch there, by the judge too, are a little too good."
    )
    formats = {"held-out loss": ".3f", "tokens": ".1f", "ended": ".0%"}
    return Table(rows, note=note, formats=formats)
