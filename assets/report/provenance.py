"""The scorecard's tables of how its recipe was built: what from what, the data and its licences,
time and cost, estimate and outcome, checks.

All from the inputs' manifests and verdicts. The scores are `scores.py`'s.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pandas import DataFrame
from rich.console import Console

from assets.contract import Artifact, Inputs
from assets.estimate import loss_text
from assets.report.lineage_tree import draw_lineages, origin, sources_of, traced
from assets.report.page import Text
from assets.report.tables import Table, code_block
from assets.stages import base_model
from assets.store.provenance import execution, seconds_spent
from assets.store.store import SHORT, Recorded, Store
from gpt_model.config import ModelConfig

TREE_COLUMNS = 170


def facts(inputs: Inputs) -> dict[str, str]:
    """The model, its data and its build in a few lines."""
    imported = inputs.get("imported")
    model = inputs["pretrained"] if "pretrained" in inputs else inputs["imported"]
    provenance = model.manifest["provenance"]
    commit = str(provenance["git"]["commit"] or "not from a clone")[:SHORT]
    if provenance["git"]["dirty"]:
        commit += " with changes"
    builds = [artifact.manifest["provenance"] for artifact in inputs.values()]
    ended = max(build["ended"] for build in builds)[:16].replace("T", " ")
    minutes = sum(map(seconds_spent, builds)) / 60
    return {
        "model": _model(model, imported or inputs["tokenizer"]),
        **({"imported from": _origin_of_import(imported)} if imported else {}),
        **(
            {"trained on": _training_data(model, inputs["corpus"])} if model is not imported else {}
        ),
        **({"note": caveat} if (caveat := base_model.caveat(model, inputs)) else {}),
        "built": f"{ended} UTC; its stages took {minutes:.1f} min, {execution(provenance)}, "
        f"model by code {commit}",
    }


def _model(model: Artifact, tokenizer: Artifact) -> str:
    if reason := model.not_run:
        return f"not here: {reason}"
    shape, vocabulary = base_model.shape(model), int(tokenizer.metrics["vocab_size"])
    parameters = ModelConfig(**shape, vocab_size=vocabulary).parameters()
    return (
        f"{shape['family']}, {shape['layers']} layers of width {shape['width']}, "
        f"{shape['heads']} heads, context {shape['context']}, vocabulary {vocabulary:,}: "
        f"{parameters:,} parameters"
    )


def _origin_of_import(imported: Artifact) -> str:
    [source] = sources_of(imported)
    if "revision" in source:
        return f"{origin(source)}, revision {source['revision'][:SHORT]}"
    return f"{origin(source)}, {len(source.get('pinned') or ())} files by their sha256"


def _training_data(model: Artifact, corpus: Artifact) -> str:
    sources = corpus.config["sources"]
    adapters = " (adapters alone, by LoRA)" if "lora" in model.config else ""
    total = sum(source["weight"] for source in sources) or 1.0
    shares = ", ".join(f"{source['name']} {source['weight'] / total:.0%}" for source in sources)
    return f"{model.metrics['tokens']:,.0f} tokens{adapters}: {shares}"


def family(inputs: Inputs) -> str | None:
    """The model's; None of one that could not be imported."""
    model = inputs["pretrained"] if "pretrained" in inputs else inputs["imported"]
    return None if model.not_run else base_model.shape(model)["family"]


def lineage(recipe: str, inputs: Inputs) -> Text:
    """The tree down to the sources: the last artifacts first, each above its inputs."""
    names = {artifact.fingerprint: f"{recipe}/{name}" for name, artifact in inputs.items()}
    used = {
        entry["fingerprint"]
        for artifact in inputs.values()
        for entry in artifact.manifest["inputs"]
    }
    trees = [
        traced(_store(artifact), artifact, names)
        for artifact in inputs.values()
        if artifact.fingerprint not in used
    ]
    console = Console(file=io.StringIO(), width=TREE_COLUMNS, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(draw_lineages(f"this scorecard of {recipe}", trees))
    tree = "\n".join(line.rstrip() for line in capture.get().splitlines())
    return Text(
        "Lineage tree",
        f"{code_block(tree)}\n\nBelow each artifact stands what it was built from. *(as above)*: "
        "the page shows that already.",
    )


def _store(artifact: Artifact) -> Store:
    return Store(artifact.path.parents[2])  # home/artifacts/<fingerprint>/files


def data(recipe: str, inputs: Inputs) -> Table:
    """Everything that was read from outside the store, with its licence. Suites built from held-out
    text have the corpus's.
    """
    rows = [
        {
            "read by": f"{recipe}/{name}",
            "data": source["name"],
            "weight": f"{source['weight']:g}" if "weight" in source else "",
            "from": f"`{origin(source)}`",
            "sha256 or revision": ", ".join(pin[:SHORT] for pin in _pins(source)) or "not pinned",
            "licence": source["licence"],
        }
        for name, artifact in inputs.items()
        for source in sources_of(artifact)
    ]
    columns = ["read by", "data", "weight", "from", "sha256 or revision", "licence"]
    return Table(
        DataFrame(rows, columns=columns),
        "Data and licences",
        "Suites of held-out text (bits per byte, last word, cloze) have the licences of that text.",
    )


def _pins(source: Mapping[str, Any]) -> Iterator[str]:
    if pin := source.get("sha256") or source.get("revision"):
        yield pin
    for file in source.get("pinned") or []:
        yield file["sha256"]


def cost(inputs: Inputs) -> Table:
    """Of all attempts at each stage, and of the whole."""
    rows: list[dict[str, Any]] = []
    for name, artifact in inputs.items():
        build = artifact.manifest["provenance"]
        seconds = seconds_spent(build)
        rows.append(
            {
                "stage": name,
                "profile": build["profile"]["name"],
                "ranks": f"{build['ranks']} × {build['threads']}",
                "attempts": build["attempts"],
                "seconds": seconds,
                "core hours": seconds * build["ranks"] * build["threads"] / 3600,
                "peak MB": build["peak_memory_bytes"] / 1e6,
                "size MB": artifact.size / 1e6,
            }
        )
    frame = DataFrame(rows)
    whole = {
        "stage": "all",
        "profile": "",
        "ranks": "",
        "attempts": None,
        "peak MB": frame["peak MB"].max(),
        **frame[["seconds", "core hours", "size MB"]].sum(),
    }
    return Table(
        [*rows, whole],
        "Cost by stage",
        "*ranks*: processes × threads of each. Another number of either adds numbers in another "
        "order, so the same recipe gives other bytes. *seconds*: the time inside the stage, all "
        "attempts together. The last row has the highest peak memory of any stage.",
        {"seconds": ".1f", "core hours": ".4f", "peak MB": ",.0f", "size MB": ".1f"},
    )


UNITS = {"seconds": ("seconds", 1.0), "loss": ("bits per byte", 1.0), "bytes": ("MB", 1e6)}


def estimates(inputs: Inputs) -> Table:
    """What was estimated before each build, beside the actual values; an interval where the
    estimate has one.
    """
    rows = []
    for name, artifact in inputs.items():
        build = artifact.manifest["provenance"]
        actual = {
            "seconds": seconds_spent(build),
            "loss": artifact.metrics.get("held_out/bpb"),
            "bytes": float(artifact.size),
        }
        if "loss" not in build["forecast"] and "loss_basis" in build["forecast"]:
            rows.append(
                {
                    "stage": name,
                    "quantity": UNITS["loss"][0],
                    "estimated": loss_text(build["forecast"]),
                    "interval": "",
                    "actual": actual["loss"],
                    "inside": "",
                }
            )
        for quantity, value in actual.items():
            estimate = build["forecast"].get(quantity)
            if not estimate or value is None:
                continue
            unit, size = UNITS[quantity]
            interval = inside = ""
            if "low" in estimate:
                interval = f"{estimate['low'] / size:,.3g} – {estimate['high'] / size:,.3g}"
                inside = "yes" if estimate["low"] <= value <= estimate["high"] else "no"
            if quantity == "seconds" and build["attempts"] > 1:  # an estimate is of one attempt
                inside = f"resumed, {build['attempts']} attempts"
            rows.append(
                {
                    "stage": name,
                    "quantity": unit,
                    "estimated": estimate["expected"] / size,
                    "interval": interval,
                    "actual": value / size,
                    "inside": inside,
                }
            )
    columns = ["stage", "quantity", "estimated", "interval", "actual", "inside"]
    return Table(
        DataFrame(rows, columns=columns),
        "Estimated before each build, and actual",
        formats={"estimated": ",.3g", "actual": ",.3g"},
    )


def checks(recipe: str, inputs: Inputs) -> Table:
    """Every check of every input, those that did not pass first."""
    rows = [
        {
            "artifact": f"{recipe}/{name}",
            "check": check,
            "verdict": _outcome(verdict),
            "result": verdict.summary,
        }
        for name, artifact in inputs.items()
        for check, verdict in _store(artifact).gate(artifact).items()
    ]
    rows.sort(key=lambda row: row["verdict"] == "passed")
    columns = ["artifact", "check", "verdict", "result"]
    title = "Every check of every artifact"
    return Table(DataFrame(rows, columns=columns), title)


def checks_in_short(table: Table) -> str:
    """ "31 passed, 2 warning": the verdicts of the table of checks."""
    counts = Counter(table.frame["verdict"])
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


def _outcome(verdict: Recorded) -> str:
    if verdict.passed:
        return "passed"
    return "FAILED" if verdict.blocking else "warning"
