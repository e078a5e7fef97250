"""What is said when a recipe is built: the scorecard's headline and where to look next, for people and for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from assets.resources.store import Store
from assets.scorecard_published import NOT_HERE

ARTIFACT, COMMANDS = "artifact", "walk it back, make it again"  # said once above an artifact's scores
PAGE_ONLY = ("protocol", "K", "8-grams seen")  # too wide for a terminal


def as_values(store: Store, recipe: str) -> dict[str, Any]:
    """For scripts: every score, what each was built from, and where the page is."""
    artifact = store.resolve(f"{recipe}/scorecard")
    document = json.loads((artifact.path / "scorecard.json").read_text(encoding="utf-8"))
    artifacts = {**document["built_from"], "scorecard": {"fingerprint": artifact.fingerprint, "digest": artifact.digest}}
    return {
        "scores": document["scores"],
        "not_run": document["not_run"],
        "artifacts": artifacts,
        "scorecard": str(store.show(artifact) / "scorecard.html"),
    }


def announce(store: Store, recipe: str, say: Callable[[Any], None]) -> None:
    """What was built, its scores by artifact with the commands that walk them back, the scorecard's paths, and where to look next."""
    artifact = store.resolve(f"{recipe}/scorecard")
    shown = store.show(artifact)
    headline = json.loads((shown / "headline.json").read_text(encoding="utf-8"))
    for fact, value in headline["facts"].items():
        say(f"{fact:<11} {value}")
    columns = headline["columns"]
    not_run, rows = ([row for row in headline["rows"] if (row[columns.index("value")] == NOT_HERE) is told] for told in (True, False))
    places = [place for place, column in enumerate(columns) if column not in (ARTIFACT, COMMANDS, *PAGE_ONLY)]
    widths = [max(len(row[place]) for row in (columns, *rows)) for place in places]
    say(Text(""))
    say(_table(widths, [[columns[place] for place in places]], style="dim"))
    of, commands = columns.index(ARTIFACT), columns.index(COMMANDS)
    for (name, walk), group in groupby(rows, key=lambda row: (row[of], row[commands])):
        say(Text.assemble("\n", (name, "bold"), "   ", (walk.strip("`").replace("` `", "   "), "cyan")))
        say(_table(widths, [[row[place] for place in places] for row in group]))
    if not_run:
        names = ", ".join(row[columns.index("score")] for row in not_run)
        say(Text(f"\nnot run here   {names}: the scorecard says why", style="dim"))
    say(
        f"\nscorecard      {shown / 'scorecard.html'}\n"
        f"as Markdown    {shown / 'scorecard.md'}\n"
        "asset graph    make ui        http://127.0.0.1:3000\n"
        "all metrics    make mlflow    http://127.0.0.1:5000"
    )


def _table(widths: list[int], rows: list[list[str]], style: str = "") -> Table:
    """Rows whose columns stand below those of the table before."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False, style=style)
    for width in widths:
        table.add_column(min_width=width)
    for row in rows:
        table.add_row(*map(escape, row))
    return table
