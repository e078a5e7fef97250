"""What is printed when a recipe is built: the scorecard's headline, and where to look next."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rich.markup import escape
from rich.table import Table

from assets.resources.store import Store

PAGE_ONLY = ("protocol", "walk it back, make it again")  # too wide for a terminal


def announce(store: Store, recipe: str, say: Callable[[Any], None]) -> None:
    """The headline table, the scorecard's paths, and the commands that go on from here."""
    artifact = store.resolve(f"{recipe}/scorecard")
    shown = store.show(artifact)
    headline = json.loads((shown / "headline.json").read_text(encoding="utf-8"))
    places = [place for place, column in enumerate(headline["columns"]) if column not in PAGE_ONLY]
    table = Table(*(headline["columns"][place] for place in places), box=None, pad_edge=False)
    for row in headline["rows"]:
        table.add_row(*(escape(str(row[place])) for place in places))
    say(table)
    say(
        f"\nscorecard      {shown / 'scorecard.html'}\n"
        f"as Markdown    {shown / 'scorecard.md'}\n"
        "asset graph    make ui        http://127.0.0.1:3000\n"
        "all metrics    make mlflow    http://127.0.0.1:5000\n"
        f"walk it back   gpt-lineage trace {recipe}/pretrained\n"
        f"make it again  gpt-lineage reproduce {recipe}/pretrained"
    )
