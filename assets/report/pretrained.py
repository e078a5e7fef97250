"""What Dagster and MLflow show of a model, trained here or imported, and of a scaling ladder's
prediction: curves, final metrics, mixture, samples.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

from assets.contract import Built, Metrics
from assets.report import plots
from assets.report.plots import Panel, Points
from assets.report.tables import Table, interval, key_values, last_texts, write_markdown
from assets.stages import base_model
from assets.stages.experiments import PREDICTED
from assets.stages.imported import SOURCE_FILE
from assets.stages.pretraining import SAMPLE
from gpt_model.data.shards import TokenData

MIXTURE = "mixture"


def show_pretrained(built: Built, folder: Path) -> None:
    """training.png (curves), figures.md (a table), mixture.md (sources, weights and epochs) and
    samples.md (the last texts).
    """
    plots.curves(folder / "training.png", panels(built))
    caveat = base_model.caveat(built, built.inputs)
    write_markdown(folder / "figures.md", metrics_table(built.metrics), caveat)
    mixture = mixture_table(built.inputs["tokens"].path, built.metrics)
    write_markdown(folder / "mixture.md", mixture)
    if built.texts:
        last = max(step for step, _, _ in built.texts)
        heading = f"After step {last}. In brackets: the prompt, which begins a held-out document."
        write_markdown(folder / "samples.md", heading, last_texts(built.texts))


def panels(built: Built) -> list[Panel]:
    """Each curve over the tokens trained on. Held-out curves are of one sample throughout; the
    whole of the held-out text is a mark at the end.
    """
    tokens = dict(built.series.get("tokens", ()))
    sources = _sources(built.metrics)
    curves = {source: f"{SAMPLE}/{source}/bpb" for source in sources} | {MIXTURE: f"{SAMPLE}/bpb"}
    whole = {source: f"held_out/{source}/bpb" for source in sources} | {MIXTURE: "held_out/bpb"}

    def points(name: str) -> Points:
        return [(tokens.get(step, math.nan), value) for step, value in built.series.get(name, ())]

    def final(name: str) -> Points:
        return [(built.metrics["tokens"], built.metrics[name])]

    return [
        Panel("training loss, nats a token", "tokens", {"loss": points("loss")}),
        Panel(
            "held-out bits per byte: a sample, ×: all of it",
            "tokens",
            {label: points(name) for label, name in curves.items()},
            {label: final(name) for label, name in whole.items()},
        ),
        Panel("learning rate", "tokens", {"rate": points("learning_rate")}),
        Panel("gradient norm", "tokens", {"norm": points("gradient_norm")}),
    ]


def _sources(names: Iterable[str]) -> list[str]:
    """The sources of which there is a `held_out/<source>/bpb`."""
    matches = (re.fullmatch(r"held_out/([^/]+)/bpb", name) for name in names)
    return sorted(match[1] for match in matches if match)


def metrics_table(metrics: Metrics) -> Table:
    values: dict[str, str | None] = {
        "tokens": f"{metrics['tokens']:,.0f}",
        "steps": f"{metrics['steps']:,.0f}",
        "training loss, nats a token": f"{metrics['loss']:.3f}",
    }
    for source in _sources(metrics):
        name = f"held_out/{source}/bpb"
        low, high = (metrics.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
        values[f"held-out {source}"] = (
            f"{metrics[name]:.3f} bits per byte ({low:.3f} – {high:.3f}), perplexity "
            f"{metrics[f'held_out/{source}/perplexity']:.1f} a token"
        )
    values |= {
        "held-out, by mixture": f"{metrics['held_out/bpb']:.3f} bits per byte",
        "held-out, all text": (
            f"{metrics['held_out/total_bpb']:.3f} bits per byte (uniform guess: "
            f"{metrics['uniform_bpb']:.3f})"
        ),
        "speed": (
            f"{metrics['tokens_per_second']:,.0f} tokens a second over {metrics['seconds']:.0f} s"
        ),
        "model FLOP/s utilisation, (6N + 12·L·d·T) · tokens/s ÷ matrix-product peak": (
            f"{metrics['model_flops_utilisation']:.0%} of {metrics['peak_flops'] / 1e9:,.0f} "
            "GFLOP/s"
        ),
        "peak memory of a rank": f"{metrics['peak_memory_bytes'] / 1e6:,.0f} MB",
        "longest wait for a checkpoint": f"{metrics['checkpoint_stall_seconds']:.3f} s",
    }
    if "data_sheet_flops" in metrics:  # of a GPU whose peak is known
        values["the same ÷ the GPUs' peak by their data sheet (MFU)"] = (
            f"{metrics['data_sheet_utilisation']:.0%} of {metrics['data_sheet_flops'] / 1e12:,.0f} "
            "TFLOP/s"
        )
    note = (
        f"Held-out text: {base_model.READ_ON}. In brackets: 95 % interval, with windows taken as "
        "independent."
    )
    return key_values(values, note)


def mixture_table(tokens: Path, metrics: Metrics) -> Table:
    """The mixture that a model was trained on, as GPT-3's table 2.2 has it: each source's tokens,
    weight and epochs. `tokens`: a tokens artifact's folder.
    """
    data = TokenData(tokens)
    total = sum(data.weights.values())
    epochs = f"epochs in {metrics['tokens']:,.0f} tokens"
    rows = [
        {
            "source": source,
            "tokens": len(data.tokens(source, "training")),
            "weight": data.weights[source] / total,
            epochs: metrics.get(f"epochs/{source}", 0.0),
        }
        for source in data.sources
    ]
    note = (
        "*weight*: the source's share of the training tokens. Within one epoch of a source, no "
        "window is drawn twice (Brown et al. 2020, table 2.2, appendix B)."
    )
    return Table(rows, note=note, formats={"weight": ".1%", epochs: ".2f"})


def show_imported(built: Built, folder: Path) -> None:
    """imported.md: where the model is from, and its files."""
    facts = json.loads((built.output / SOURCE_FILE).read_text(encoding="utf-8"))
    origin = {
        **facts["from"],
        "licence": built.config["licence"],
        "parameters": f"{built.metrics['parameters']:,.0f}",
    }
    files = [{**file, "sha256": f"`{file['sha256']}`"} for file in facts["files"]]
    rows = [{name: file[name] for name in ("path", "bytes", "sha256")} for file in files]
    write_markdown(
        folder / "imported.md",
        "\n".join(f"- {name}: {value}" for name, value in origin.items()),
        Table(rows),
    )


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
