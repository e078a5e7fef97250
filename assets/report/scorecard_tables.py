"""The scorecard's own tables: what was built from what, the data and its licences, time and cost,
forecast and outcome, checks.

All from the inputs' manifests and verdicts. Which scores there are is `scorecard.py`'s, how a page
looks `scorecard_page.py`'s.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from assets.contract import Artifact, Inputs
from assets.report.lineage_tree import draw_lineages, origin, sources_of, traced
from assets.report.page import Table, Text
from assets.stages import base_model
from assets.store.provenance import seconds_spent
from assets.store.store import SHORT, Store
from gpt_model.config import ModelConfig

TREE_COLUMNS = 170


def number(value: float) -> str:
    """Three decimals, thousands by a comma, and powers of ten from a million on."""
    return (
        f"{value:.3f}"
        if abs(value) < 1000
        else f"{value:,.0f}"
        if abs(value) < 1e6
        else f"{value:.3g}"
    )


def share_of(used: int, available: int) -> str:
    """How many examples were used: "400", or "400 of 1,280 (seeded subset)"."""
    return f"{used:,} of {available:,} (seeded subset)" if used < available else f"{used:,}"


def facts(inputs: Inputs) -> dict[str, str]:
    """What it is, in a few lines."""
    imported = inputs.get("imported")
    model = inputs["pretrained"] if "pretrained" in inputs else inputs["imported"]
    made = model.manifest["provenance"]
    commit = str(made["git"]["commit"] or "not from a clone")[:SHORT] + (
        " with changes" if made["git"]["dirty"] else ""
    )
    ended = max(a.manifest["provenance"]["ended"] for a in inputs.values())
    spent = sum(seconds_spent(a.manifest["provenance"]) for a in inputs.values())
    return {
        "model": _described(model, imported or inputs["tokenizer"]),
        **({"imported from": _described_import(imported)} if imported else {}),
        **({"trained on": _trained_on(model, inputs["corpus"])} if model is not imported else {}),
        **({"note": caveat} if (caveat := base_model.caveat(model, inputs)) else {}),
        "built": f"{ended[:16].replace('T', ' ')} UTC in {spent / 60:.1f} min inside the stages, profile {made['profile']['name']}, "
        f"code {commit}",
    }


def _described(model: Artifact, tokenizer: Artifact) -> str:
    if reason := base_model.not_run(model):
        return f"not here: {reason}"
    shape, vocabulary = base_model.shape(model), int(tokenizer.metrics["vocab_size"])
    return (
        f"{shape['family']}, {shape['layers']} layers of width {shape['width']}, {shape['heads']} heads, context {shape['context']}, "
        f"vocabulary {vocabulary:,}: {ModelConfig(**shape, vocab_size=vocabulary).parameters():,} parameters"
    )


def _described_import(imported: Artifact) -> str:
    [source] = sources_of(imported)
    files = len(source.get("pinned") or ())
    return f"{origin(source)}, " + (
        f"revision {source['revision'][:SHORT]}"
        if "revision" in source
        else f"{files} files by their sha256"
    )


def _trained_on(model: Artifact, corpus: Artifact) -> str:
    sources, adapted = (
        corpus.config["sources"],
        " (adapters alone, by LoRA)" if "lora" in model.config else "",
    )
    weights = sum(source["weight"] for source in sources) or 1.0
    shares = ", ".join(f"{source['name']} {source['weight'] / weights:.0%}" for source in sources)
    return f"{model.metrics['tokens']:,.0f} tokens{adapted}: {shares}"


def family(inputs: Inputs) -> str | None:
    """The model's; of one that could not be imported, nobody knows."""
    model = inputs["pretrained"] if "pretrained" in inputs else inputs["imported"]
    return None if base_model.not_run(model) else base_model.shape(model)["family"]


def lineage(recipe: str, inputs: Inputs) -> Text:
    """The tree down to the sources: the last artifacts first, each above what it was made from."""
    names = {artifact.fingerprint: f"{recipe}/{name}" for name, artifact in inputs.items()}
    below = {
        entry["fingerprint"]
        for artifact in inputs.values()
        for entry in artifact.manifest["inputs"]
    }
    trees = [
        traced(_store(artifact), artifact, names)
        for artifact in inputs.values()
        if artifact.fingerprint not in below
    ]
    console = Console(file=io.StringIO(), width=TREE_COLUMNS, color_system=None, highlight=False)
    with console.capture() as drawn:
        console.print(draw_lineages(f"this scorecard of {recipe}", trees))
    text = "\n".join(line.rstrip() for line in drawn.get().splitlines())
    return Text(
        "Lineage tree",
        f"```text\n{text}\n```\n\nEach artifact stands once, above what it was made from.",
    )


def _store(artifact: Artifact) -> Store:
    return Store(artifact.path.parents[2])  # home/artifacts/<fingerprint>/files


def data(recipe: str, inputs: Inputs) -> Table:
    """Everything that was read from outside the store, with its licence. Suites built from held-out
    text have the corpus's.
    """
    rows = [
        [
            f"{recipe}/{name}",
            source["name"],
            f"{source['weight']:g}" if "weight" in source else "",
            f"`{origin(source)}`",
            ", ".join(pin[:SHORT] for pin in _pins(source)) or "not pinned",
            source["licence"],
        ]
        for name, artifact in inputs.items()
        for source in sources_of(artifact)
    ]
    columns = ["read by", "data", "weight", "from", "sha256 or revision", "licence"]
    return Table(
        "Data and licences",
        columns,
        rows,
        "Suites built from held-out text (bits per byte, last word, cloze) have the corpus's.",
    )


def _pins(source: Mapping[str, Any]) -> Iterator[str]:
    if pin := source.get("sha256") or source.get("revision"):
        yield pin
    for file in source.get("pinned") or []:
        yield file["sha256"]


def cost(inputs: Inputs) -> Table:
    """Of all attempts at each stage, and of the whole."""
    rows, seconds, core_hours = [], 0.0, 0.0
    for name, artifact in inputs.items():
        made = artifact.manifest["provenance"]
        took = seconds_spent(made)
        hours = took * made["ranks"] * made["threads"] / 3600
        seconds, core_hours = seconds + took, core_hours + hours
        rows.append(
            [
                name,
                str(made["attempts"]),
                *_costs(took, hours, made["peak_memory_bytes"], artifact.size),
            ]
        )
    peak = max(artifact.manifest["provenance"]["peak_memory_bytes"] for artifact in inputs.values())
    rows.append(
        [
            "all",
            "",
            *_costs(seconds, core_hours, peak, sum(artifact.size for artifact in inputs.values())),
        ]
    )
    columns = ["stage", "attempts", "seconds", "core hours", "peak MB", "size MB"]
    return Table(
        "Cost by stage",
        columns,
        rows,
        "Seconds inside the stages, all attempts added up. Peak of memory; of all: the highest.",
    )


def _costs(seconds: float, core_hours: float, peak_bytes: int, size: int) -> list[str]:
    return [f"{seconds:.1f}", f"{core_hours:.4f}", f"{peak_bytes / 1e6:,.0f}", f"{size / 1e6:.1f}"]


def forecasts(inputs: Inputs) -> Table:
    """What was estimated before each build, beside the actual figures; an interval where the
    estimate has one.
    """
    rows = []
    for name, artifact in inputs.items():
        record = artifact.manifest["provenance"]
        actual = {
            "seconds": seconds_spent(record),
            "loss": artifact.metrics.get("held_out/bpb"),
            "bytes": float(artifact.size),
        }
        for quantity, value in actual.items():
            estimate = record["forecast"].get(quantity)
            if not estimate or value is None:
                continue
            unit, size = UNITS[quantity]
            interval = inside = ""
            if "low" in estimate:
                interval = f"{estimate['low'] / size:,.3g} – {estimate['high'] / size:,.3g}"
                inside = "yes" if estimate["low"] <= value <= estimate["high"] else "no"
            if quantity == "seconds" and record["attempts"] > 1:  # an estimate is of one attempt
                inside = f"resumed, {record['attempts']} attempts"
            expected = f"{estimate['expected'] / size:,.3g}"
            rows.append([name, unit, expected, interval, f"{value / size:,.3g}", inside])
    columns = ["stage", "quantity", "estimated", "interval", "actual", "inside"]
    return Table("Estimated before each build, and actual", columns, rows)


UNITS = {"seconds": ("seconds", 1.0), "loss": ("bits per byte", 1.0), "bytes": ("MB", 1e6)}


def checks(recipe: str, inputs: Inputs) -> Table:
    """Every check of every input, those that did not pass first."""
    rows = [
        [
            f"{recipe}/{name}",
            check,
            "passed" if verdict.passed else "FAILED" if verdict.blocking else "warning",
            verdict.summary,
        ]
        for name, artifact in inputs.items()
        for check, verdict in _store(artifact).gate(artifact).items()
    ]
    return Table(
        "What was checked before anything was built on it",
        ["artifact", "check", "verdict", "what it found"],
        sorted(rows, key=lambda row: row[2] == "passed"),
    )
