"""What a person sees of DPO: the accuracy of its implicit reward, and curves."""

from __future__ import annotations

from pathlib import Path

from assets.contract import Built
from assets.report import plots
from assets.report.plots import Panel
from assets.report.reward_model import accuracies
from assets.report.tables import write_markdown

PANELS = {
    "loss of a step": ("loss",),
    "accuracy of the implicit reward": ("training_accuracy", "held_out/accuracy"),
    "implicit reward, training": ("better_reward", "worse_reward"),
    "better minus worse": ("margin", "held_out/margin"),
}


def show(built: Built, folder: Path) -> None:
    """figures.md and training.png."""
    m, gained = built.metrics, ""
    if "nats_gained/better" in m:
        gained = (
            "On held-out comparisons the better response has gained "
            f"{m['nats_gained/better']:+.2f} nats and the worse one {m['nats_gained/worse']:+.2f}: "
            "DPO trains the difference, and both may fall."
        )
    write_markdown(folder / "figures.md", accuracies(m, {"": "implicit reward"}), gained)
    panels = [Panel.of_series(title, built.series, names) for title, names in PANELS.items()]
    plots.curves(folder / "training.png", panels)
