"""What `gpt-lineage run` prints of a built recipe: the scorecard's headline and where to look next,
for people and for scripts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from assets.report.columns import ARTIFACT, COMMANDS, FIRST, NOT_HERE, PROTOCOL, SEEN, SETTINGS, K
from assets.stages.zero_shot import REPRODUCES, ZERO_SHOT
from assets.store.store import Store
from gpt_model.errors import CorruptFile

PAGE_ONLY = (PROTOCOL, SEEN, K)  # too wide for a terminal
CUT = re.compile(r"; ([\d,]+) of [\d,]+ cut, by [\d,]+ tokens? at most")  # the page has it whole
COLOURS = {"better": "green", "worse": "red"}
CALIBRATION = "calibration"


def as_values(store: Store, recipe: str) -> dict[str, Any]:
    """For scripts: every score, the artifacts, the path of the page, and the evaluator's
    calibration.
    """
    artifact = store.check(store.resolve(f"{recipe}/scorecard"))
    document = json.loads((artifact.path / "scorecard.json").read_text(encoding="utf-8"))
    artifacts = {
        **document["built_from"],
        "scorecard": {"fingerprint": artifact.fingerprint, "digest": artifact.digest},
    }
    return {
        "scores": document["scores"],
        "not_run": document["not_run"],
        "artifacts": artifacts,
        "scorecard": str(store.show(artifact) / "scorecard.html"),
        CALIBRATION: calibrated(store),
    }


def calibrated(store: Store) -> dict[str, dict[str, int]]:
    """How many known answers of each released model the evaluator has compared, and how many it
    gets wrong: {model: {"compared", "wrong"}}.

    Only evaluations by the evaluator's present version count. No page shows this: it depends on the
    store, and a page is a function of what its recipe built.
    """
    counts: dict[str, dict[str, int]] = {}
    for artifact in store.artifacts():  # oldest first: the newest counts
        model, version = artifact.config.get("known"), artifact.manifest["version"]
        if (artifact.stage, version) == (ZERO_SHOT.name, ZERO_SHOT.version) and model:
            with suppress(CorruptFile):
                figures = store.gate(artifact)[REPRODUCES].figures
                counts[model] = {name: int(figures[name]) for name in ("compared", "wrong")}
    return counts


def calibration_line(counts: Mapping[str, Mapping[str, int]]) -> str:
    """The counts of `calibrated`, in a line."""
    parts = []
    for model, count in counts.items():
        compared, wrong = count["compared"], count["wrong"]
        if wrong:
            parts.append(f"{model} failed, {wrong} of {compared} known answers do not come out")
        elif compared:
            parts.append(f"{model} reproduced, {compared} of {compared} known answers")
    hint = f"{NOT_HERE}; gpt-lineage run calibration says whether known answers come out"
    return "; ".join(parts) or hint


def announce(store: Store, recipe: str, show: Callable[[Any], None]) -> None:
    """Show what was built, its scores by artifact with the commands that trace them, the paths of
    the scorecard, and where to look next.
    """
    artifact = store.check(store.resolve(f"{recipe}/scorecard"))
    folder = store.show(artifact)
    paths = [path for name in FIRST if (path := folder / f"{name}.json").is_file()]
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    facts = {**tables[0]["facts"], CALIBRATION: calibration_line(calibrated(store))}
    for fact, value in facts.items():
        show(f"{fact:<11} {value}")
    not_run: list[str] = []
    for table in tables:
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        not_run += [row["score"] for row in rows if row.get("value") == NOT_HERE]
        if scored := [row for row in rows if row.get("value") != NOT_HERE]:
            _show_scores(table["columns"], scored, show)
    if not_run:
        show(Text(f"\nnot run here   {', '.join(not_run)}: the scorecard says why", style="dim"))
    show(
        f"\nscorecard      {folder / 'scorecard.html'}\n"
        f"as Markdown    {folder / 'scorecard.md'}\n"
        "asset graph    make ui        http://127.0.0.1:3000\n"
        "all metrics    make mlflow    http://127.0.0.1:5000"
    )


def _show_scores(
    columns: list[str], rows: list[dict[str, str]], show: Callable[[Any], None]
) -> None:
    """A table's rows under each artifact with its commands, their columns below each other."""
    titles = [column for column in columns if column not in (ARTIFACT, COMMANDS, *PAGE_ONLY)]
    header = [Text(title) for title in titles]
    lines = [[_cell(title, row[title]) for title in titles] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    show(Text(""))
    show(_table(widths, [header], style="dim"))
    by_artifact = groupby(
        zip(rows, lines, strict=True), key=lambda pair: (pair[0][ARTIFACT], pair[0][COMMANDS])
    )
    for (name, commands), group in by_artifact:
        commands = commands.strip("`").replace("` `", "   ")
        show(Text.assemble("\n", (name, "bold"), "   ", (commands, "cyan")))
        show(_table(widths, [line for _, line in group]))


def _cell(column: str, cell: str) -> Text:
    """A cell without the word "examples", the default unit of counts, and with cut contexts in
    short; where settings stand side by side, with the verdict as a colour.
    """
    value, _, verdict = cell.rpartition(" ")
    if column not in SETTINGS.values():
        return Text(CUT.sub(r", \1 cut", cell.replace(" examples,", ",")))
    text, style = (value, COLOURS[verdict]) if verdict in COLOURS else (cell, "")
    return Text(text.replace(" – ", "–"), style=style)


def _table(widths: list[int], rows: list[list[Text]], style: str = "") -> Table:
    """Rows in columns of at least these widths, so that several tables align."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False, style=style)
    for width in widths:
        table.add_column(min_width=width)
    for row in rows:
        table.add_row(*row)
    return table
