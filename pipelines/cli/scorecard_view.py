"""What `gpt-lineage run` prints of a built recipe: the scorecard's headline and where to look next,
for people and for scripts.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from assets.report.columns import ARTIFACT, COMMANDS, FIRST, NOT_HERE, SETTINGS, VERDICT_FILE
from assets.stages.zero_shot import REPRODUCES, ZERO_SHOT
from assets.store.store import Store
from gpt_model.errors import CorruptFile

WIDTH = 80
COLUMN_TITLES = ("score", "value (95 % interval)", "best baseline", "verdict")
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
    """Show the verdict, the scores by artifact, and what to do next: at most 80 columns wide."""
    artifact = store.check(store.resolve(f"{recipe}/scorecard"))
    folder = store.show(artifact)
    for sentence in _verdict(folder):
        show(Text("\n".join(textwrap.wrap(sentence, WIDTH))))
    paths = [path for name in FIRST if (path := folder / f"{name}.json").is_file()]
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    rows = [
        dict(zip(table["columns"], row, strict=True)) for table in tables for row in table["rows"]
    ]
    _show_scores([row for row in rows if row.get("value") != NOT_HERE], show)
    if not_run := [row["score"] for row in rows if row.get("value") == NOT_HERE]:
        line = f"{NOT_HERE}: {', '.join(not_run)}; the scorecard says why"
        show(Text("\n" + "\n".join(textwrap.wrap(line, WIDTH)), style="dim"))
    show(Text(""))
    facts = {**tables[0]["facts"], CALIBRATION: calibration_line(calibrated(store))}
    for fact, value in facts.items():
        show(Text("\n".join(textwrap.wrap(f"{fact:<11} {value}", WIDTH)), style="dim"))
    name, fingerprint = rows[0][ARTIFACT], _fingerprint(rows[0])
    show(
        f"\nscorecard      {folder / 'scorecard.html'}\n"
        f"as Markdown    {folder / 'scorecard.md'}\n"
        f"to the bytes   gpt-lineage trace {fingerprint}    where {name} comes from\n"
        f'its text       gpt-lineage generate {name} "It was"\n'
        "asset graph    gpt-lineage ui        http://127.0.0.1:3000\n"
        "all metrics    gpt-lineage mlflow    http://127.0.0.1:5000"
    )


def _verdict(folder: Path) -> list[str]:
    """The scorecard's first sentences, without the marks of bold text."""
    document = json.loads((folder / VERDICT_FILE).read_text(encoding="utf-8"))
    return [statement["sentence"].replace("**", "") for statement in document["statements"]]


def _show_scores(rows: Sequence[Mapping[str, str]], show: Callable[[Any], None]) -> None:
    """A line a score under its artifact's name and fingerprint: value and interval, the best of
    what it stands beside, verdict.
    """
    lines = [(row, line) for row in rows for line in _lines(row)]
    cells = zip(COLUMN_TITLES, *(line for _, line in lines), strict=True)
    widths = [max(map(len, column)) for column in cells]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - (len(widths) - 1))
    show(Text(""))
    show(_table(widths, [COLUMN_TITLES], style="dim"))
    for name, group in groupby(lines, key=lambda pair: pair[0][ARTIFACT]):
        of_artifact = list(group)
        fingerprint = (_fingerprint(of_artifact[0][0]), "cyan")
        show(Text.assemble((name, "bold"), "   ", fingerprint))
        show(_table(widths, [line for _, line in of_artifact]))


def _fingerprint(row: Mapping[str, str]) -> str:
    """Of `gpt-lineage trace FINGERPRINT` in a row's commands."""
    return row[COMMANDS].split("`")[1].split()[-1]


def _lines(row: Mapping[str, str]) -> Iterator[tuple[str, str, str, str]]:
    """A row of the headline is a line; a row of settings (zero-shot, few-shot) is one for each."""
    beside = _best(row["beside"], lower=row["score"].endswith("\N{DOWNWARDS ARROW}"))
    if "value" in row:
        interval = f" ({row['95 % interval']})" if row["95 % interval"] else ""
        yield row["score"], row["value"] + _narrow(interval), beside, row["verdict"]
        return
    for setting in SETTINGS.values():
        if cell := row.get(setting):
            value, _, verdict = cell.rpartition(" ")
            value, verdict = (value, verdict) if verdict in COLOURS else (cell, "")
            yield f"{row['score']}, {setting}", _narrow(value), beside, verdict


def _best(baselines: str, lower: bool) -> str:
    """The best of "majority 0.533, bag of words 0.696": what the verdict is against."""
    values = {
        float(number[0].replace(",", "")): part
        for part in re.split(r"(?:, | · )(?=\D)", baselines)
        if (number := re.findall(r"-?[\d,]*\.?\d+$", part))
    }
    return values[min(values) if lower else max(values)] if values else baselines


def _narrow(interval: str) -> str:
    return interval.replace(" – ", "–")


def _table(widths: list[int], rows: Sequence[Sequence[str]], style: str = "") -> Table:
    """Rows in columns of exactly these widths, so that several tables align; long names are
    folded.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False, style=style)
    for width in widths:
        table.add_column(width=width, overflow="fold")
    for *cells, verdict in rows:
        table.add_row(*cells, Text(verdict, style=COLOURS.get(verdict, "")))
    return table
