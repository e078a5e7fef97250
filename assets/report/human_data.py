"""What Dagster, MLflow and the scorecard show of demonstrations, comparisons and prompts; and how
much of a text any page shows where its licence does not cover it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assets.contract import Built
from assets.report.tables import Table, code_block, write_markdown
from gpt_model.rlhf.records import excerpt

SAMPLES = 3  # of each source
TURN_CHARACTERS = 400


def show(built: Built, folder: Path) -> None:
    """sources.md: what became of every source's rows; samples.md: a few of them."""
    reports = json.loads((built.output / "report.json").read_text(encoding="utf-8"))["sources"]
    rows = [
        {
            "source": name,
            "rows": str(report["rows"]),
            "kept": _retained(report),
            "left out": _reasons(report["left_out"]) or "none",
            "licence": report["licence"][:200],
        }
        for name, report in reports.items()
    ]
    write_markdown(folder / "sources.md", Table(rows))
    write_markdown(folder / "samples.md", *_samples(built, reports))


def _retained(report: Mapping[str, Any]) -> str:
    text = f"{report['kept']}"
    if report["shortened"]:
        text += f" ({report['shortened']} without a last turn that nobody answered)"
    if dropped := _reasons(report["dropped"]):
        text += f"; dropped of their answers: {dropped}"
    return text


def _reasons(counted: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{reason}: {entry['count']} (first: {entry['first'][:200]})"
        for reason, entry in counted.items()
    )


def _samples(built: Built, reports: Mapping[str, Any]) -> list[str]:
    counts = dict.fromkeys(reports, 0)
    samples = []
    with (built.output / "training.jsonl").open(encoding="utf-8") as file:
        examples = [json.loads(line) for line in file]
    for row in examples:
        if counts[row["source"]] == SAMPLES:
            continue
        counts[row["source"]] += 1
        turns = [f"{message['role']}: {message['content']}" for message in row["messages"]]
        orders = zip(row.get("responses", ()), *row.get("further", ()), strict=True)
        for response, *further in orders:
            ranks = ["–" if rank is None else str(rank) for rank in (response["rank"], *further)]
            turns.append(f"rank {', '.join(ranks)}: {response['text']}")
        if not reports[row["source"]]["show_text"]:
            turns = [excerpt(text) for text in turns]
        text = "\n".join(text[:TURN_CHARACTERS] for text in turns)
        samples += [f"**{row['source']}**", code_block(text)]
    return samples
