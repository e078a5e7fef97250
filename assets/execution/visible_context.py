"""Runs the visible_context stage (GPT-1, section 1)."""

from __future__ import annotations

from pathlib import Path

from assets.contract import Built, Config, Inputs, Metrics, Progress, Verdict
from gpt_model import convert
from gpt_model.data.shards import TokenData
from gpt_model.experiments.document import write_document
from gpt_model.experiments.gpt1_section1_visible_context import (
    VisibleContext,
    default_contexts,
    measure_source,
)


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json: a curve a source."""
    data = TokenData(inputs["tokens"].path)
    model = convert.load(inputs["pretrained"].path / "model").to(progress.profile.device).eval()
    contexts = sorted(config["contexts"] or default_contexts(model.config.context))
    sources = []
    for number, name in enumerate(data.sources, 1):
        source = measure_source(model, data, name, contexts, config["positions"], config["seed"])
        if source is None:
            progress.log(
                f"{name}: fewer than two held-out tokens have {contexts[-1]} before them; left out"
            )
            continue
        sources.append(source)
        progress.advance(number, len(data.sources), "sources")
    curves = VisibleContext(contexts, sources)
    write_document(output, curves.document())
    return curves.metrics()


def context_helps(built: Built) -> Verdict:
    """What the whole context saves, of every source interval and all."""
    gains = {
        name.removesuffix("_low"): low
        for name, low in built.metrics.items()
        if name.endswith("/gain_low")
    }
    values = ", ".join(
        f"{name.split('/')[0]} {built.metrics[name]:.3f} (at least {low:.3f})"
        for name, low in gains.items()
    )
    return Verdict(
        bool(gains) and min(gains.values()) > 0,
        f"Bits per byte saved by the whole context: {values or 'no source was measured'}.",
        {name: built.metrics[name] for name in gains},
    )
