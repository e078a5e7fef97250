"""What a person sees of supervised fine-tuning: losses, learning rate, and answers to held-out
prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from assets.contract import Built
from assets.report.plots import Panel, curves
from assets.report.tables import last_texts, write_markdown


def show(built: Built, folder: Path) -> None:
    """tuning.png and samples.md."""
    curves(folder / "tuning.png", panels(built.series))
    heading = "Held-out prompts, answered after the last epoch."
    write_markdown(folder / "samples.md", heading, last_texts(built.texts))


def panels(series: Mapping[str, Sequence[tuple[int, float]]]) -> list[Panel]:
    """Losses, that of pre-training text where some is mixed in, and the learning rate."""
    losses = {
        "training": series.get("nats", ()),
        "held out, after each epoch": series.get("held_out/loss", ()),
    }
    result = [Panel("nats a token of the assistant's", "step", losses)]
    if "text_nats" in series:
        text = {"training": series["text_nats"]}
        result.append(Panel("nats a token of pre-training text", "step", text))
    rate = {"learning rate": series.get("learning_rate", ())}
    return [*result, Panel("learning rate", "step", rate)]
