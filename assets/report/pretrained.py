"""What the UI and MLflow show of a pre-training: curves, figures, mixture, samples. What is
measured is `pretraining.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from assets.contract import Built
from assets.report import mixture
from assets.stages import base_model


def show(built: Built, folder: Path) -> None:
    """training.png (curves), figures.md (a table), mixture.md (sources, weights and epochs) and
    samples.md (the last texts).
    """
    _curves(built, folder / "training.png")
    (folder / "figures.md").write_text(_figures(built), encoding="utf-8")
    (folder / "mixture.md").write_text(
        mixture.table(built.inputs["tokens"].path, built.metrics), encoding="utf-8"
    )
    if built.texts:
        last = max(step for step, _, _ in built.texts)
        texts = [
            f"**{name}**\n\n```text\n{text}\n```\n"
            for step, name, text in built.texts
            if step == last
        ]
        header = f"After step {last}; what stands in brackets is the prompt, the beginning of a held-out document.\n\n"
        (folder / "samples.md").write_text(header + "\n".join(texts), encoding="utf-8")


def _sources(names: Iterable[str]) -> list[str]:
    """Of which sources there is a `held_out/<source>/bpb`."""
    return sorted(
        name.split("/")[1]
        for name in names
        if name.startswith("held_out/") and name.endswith("/bpb") and name.count("/") == 2
    )


def _curves(built: Built, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    (loss, bpb), (rate, norm) = figure.subplots(2, 2)
    by_source = {
        source: built.series.get(f"held_out/{source}/bpb", ()) for source in _sources(built.series)
    }
    panels = [
        (loss, "training loss, nats a token", {"": built.series.get("loss", ())}),
        (
            bpb,
            "held-out bits per byte",
            {**by_source, "mixture": built.series.get("held_out/bpb", ())},
        ),
        (rate, "learning rate", {"": built.series.get("learning_rate", ())}),
        (norm, "gradient norm", {"": built.series.get("gradient_norm", ())}),
    ]
    seen = dict(built.series.get("tokens", ()))
    for axes, title, lines in panels:
        for label, points in lines.items():
            x, y = [seen.get(step, math.nan) for step, _ in points], [value for _, value in points]
            axes.plot(x, y, label=label, marker="." if len(points) < 30 else None)
        axes.set_title(title)
        axes.set_xlabel("tokens")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    figure.savefig(path, dpi=90)


def _figures(built: Built) -> str:
    metrics = built.metrics
    rows = [
        ("tokens", f"{metrics['tokens']:,.0f}"),
        ("steps", f"{metrics['steps']:,.0f}"),
        ("training loss, nats a token", f"{metrics['loss']:.3f}"),
    ]
    for source in _sources(metrics):
        bpb, perplexity = (
            metrics[f"held_out/{source}/bpb"],
            metrics[f"held_out/{source}/perplexity"],
        )
        low, high = (
            metrics.get(f"held_out/{source}/bpb_{end}", math.nan) for end in ("low", "high")
        )
        rows.append(
            (
                f"held-out {source}",
                f"{bpb:.3f} bits per byte ({low:.3f} to {high:.3f}), perplexity {perplexity:.1f} a token",
            )
        )
    rows += [
        ("held-out, by mixture", f"{metrics['held_out/bpb']:.3f} bits per byte"),
        (
            "held-out, all text",
            f"{metrics['held_out/total_bpb']:.3f} bits per byte (uniform guess: {metrics['uniform_bpb']:.3f})",
        ),
        (
            "speed",
            f"{metrics['tokens_per_second']:,.0f} tokens a second over {metrics['seconds']:.0f} s",
        ),
        (
            "model FLOP/s utilisation, (6N + 12·L·d·T) · tokens/s ÷ matrix-product peak",
            f"{metrics['model_flops_utilisation']:.0%} of {metrics['peak_flops'] / 1e9:,.0f} GFLOP/s",
        ),
        ("peak memory of a rank", f"{metrics['peak_memory_bytes'] / 1e6:,.0f} MB"),
        ("longest wait for a checkpoint", f"{metrics['checkpoint_stall_seconds']:.3f} s"),
    ]
    table = "| figure | value |\n|---|---|\n" + "".join(
        f"| {name} | {value} |\n" for name, value in rows
    )
    note = "In brackets: 95 % interval, windows of the model's context taken for independent."
    return f"{table}\n{note} {base_model.caveat(built, built.inputs)}".rstrip() + "\n"
