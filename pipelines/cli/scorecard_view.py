"""What is said when a recipe is built: the scorecard's headline and where to look next, for people
and for scripts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from assets.report.headline import ARTIFACT, COMMANDS, FIRST, PROTOCOL, SEEN, SETTINGS, K
from assets.report.known_answers import reproduces_what_is_known
from assets.report.published import NOT_HERE
from assets.stages.zero_shot import ZERO_SHOT
from assets.store.store import Store

PAGE_ONLY = (PROTOCOL, SEEN, K)  # too wide for a terminal
COLOURS = {"better": "green", "worse": "red"}
CALIBRATION = "calibration"


def as_values(store: Store, recipe: str) -> dict[str, Any]:
    """For scripts: every score, what each was built from, where the page is, and what is known of
    the evaluator.
    """
    artifact = store.resolve(f"{recipe}/scorecard")
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
    """Of each released model that the evaluator, as it is now, has scored in this store: how many
    known answers were compared, and wrong.

    It is of the store and of no one recipe, so no page has it: a page is a function of what its
    recipe built.
    """
    found: dict[str, dict[str, int]] = {}
    for artifact in store.artifacts():  # the newest counts
        known, version = artifact.config.get("known"), artifact.manifest["version"]
        if (artifact.stage, version) == (ZERO_SHOT.name, ZERO_SHOT.version) and known:
            figures = store.gate(artifact)[reproduces_what_is_known.__name__].figures
            found[known] = {name: int(figures[name]) for name in ("compared", "wrong")}
    return found


def calibration_line(found: Mapping[str, Mapping[str, int]]) -> str:
    """What `calibrated` found, in a line."""
    said = [
        f"{model} failed, {one['wrong']} of {one['compared']} known answers do not come out"
        if one["wrong"]
        else f"{model} reproduced, {one['compared']} of {one['compared']} known answers"
        for model, one in found.items()
        if one["compared"]
    ]
    return (
        "; ".join(said)
        or f"{NOT_HERE}; gpt-lineage run calibration says whether known answers come out"
    )


def announce(store: Store, recipe: str, say: Callable[[Any], None]) -> None:
    """What was built, its scores by artifact with the commands that walk them back, the scorecard's
    paths, and where to look next.
    """
    artifact = store.resolve(f"{recipe}/scorecard")
    shown = store.show(artifact)
    first = [
        json.loads(path.read_text(encoding="utf-8"))
        for name in FIRST
        if (path := shown / f"{name}.json").is_file()
    ]
    for fact, value in {
        **first[0]["facts"],
        CALIBRATION: calibration_line(calibrated(store)),
    }.items():
        say(f"{fact:<11} {value}")
    not_run: list[str] = []
    for table in first:
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        not_run += [row["score"] for row in rows if row.get("value") == NOT_HERE]
        if run := [row for row in rows if row.get("value") != NOT_HERE]:
            _say_scores(table["columns"], run, say)
    if not_run:
        say(Text(f"\nnot run here   {', '.join(not_run)}: the scorecard says why", style="dim"))
    say(
        f"\nscorecard      {shown / 'scorecard.html'}\n"
        f"as Markdown    {shown / 'scorecard.md'}\n"
        "asset graph    make ui        http://127.0.0.1:3000\n"
        "all metrics    make mlflow    http://127.0.0.1:5000"
    )


def _say_scores(columns: list[str], rows: list[dict[str, str]], say: Callable[[Any], None]) -> None:
    """A table's rows under each artifact with its commands, their columns below each other."""
    shown = [column for column in columns if column not in (ARTIFACT, COMMANDS, *PAGE_ONLY)]
    lines = [[_narrow(column, row[column]) for column in shown] for row in rows]
    widths = [
        max(len(line[place]) for line in ([*map(Text, shown)], *lines))
        for place in range(len(shown))
    ]
    say(Text(""))
    say(_table(widths, [[*map(Text, shown)]], style="dim"))
    for (name, walk), group in groupby(
        zip(rows, lines, strict=True), key=lambda pair: (pair[0][ARTIFACT], pair[0][COMMANDS])
    ):
        say(
            Text.assemble(
                "\n", (name, "bold"), "   ", (walk.strip("`").replace("` `", "   "), "cyan")
            )
        )
        say(_table(widths, [line for _, line in group]))


def _narrow(column: str, cell: str) -> Text:
    """What is counted is examples if nothing is said; where settings stand side by side, the
    verdict is a colour.
    """
    value, _, verdict = cell.rpartition(" ")
    if column not in SETTINGS.values():
        return Text(cell.replace(" examples,", ","))
    told, style = (value, COLOURS[verdict]) if verdict in COLOURS else (cell, "")
    return Text(told.replace(" – ", "–"), style=style)


def _table(widths: list[int], rows: list[list[Text]], style: str = "") -> Table:
    """Rows whose columns stand below those of the table before."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False, style=style)
    for width in widths:
        table.add_column(min_width=width)
    for row in rows:
        table.add_row(*row)
    return table
