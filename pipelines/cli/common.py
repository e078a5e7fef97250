"""What the groups of commands share: arguments, options, the store, output.

Results go to stdout, progress to stderr.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from assets.store.store import Store
from assets.tracking.relocation import relocate

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="a name under recipes/, or a path to a YAML file")
]
ArtifactName = Annotated[
    str, typer.Argument(metavar="ARTIFACT", help="recipe/stage, or the start of a fingerprint")
]
ProfileName = Annotated[
    str,
    typer.Option(
        "--profile",
        envvar="LINEAGE_PROFILE",
        help="a name under profiles/, or a path to a YAML file",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="as JSON, for scripts")]

WIDEST_COLUMNS = 10_000  # of a table


def command_group() -> typer.Typer:
    """An empty group; `main.py` takes its commands by name."""
    return typer.Typer(rich_markup_mode=None)


def open_store() -> Store:
    """The store, and MLflow's file in it set right where it was moved here."""
    store = Store(Store.default_home())
    relocate(store.home)
    return store


def stderr_console() -> Console:
    """On stderr as it is now: a run redirects it while Dagster is at work."""
    return Console(file=sys.stderr)


def print_rich(renderable: Any) -> None:
    """A table, a tree or a line on stdout. Nothing is cut: what is wider than the terminal goes on
    in its next line.
    """
    console = Console(highlight=False)
    unbounded = console.options.update(max_width=WIDEST_COLUMNS)
    console.width = max(console.width, console.measure(renderable, options=unbounded).maximum)
    console.print(renderable, soft_wrap=isinstance(renderable, str))


def print_json(value: Any) -> None:
    """Strict JSON on stdout: a number that JSON cannot say, such as NaN, is null."""
    escaped = "utf" not in (sys.stdout.encoding or "").lower()
    typer.echo(json.dumps(_finite(value), indent=1, ensure_ascii=escaped, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
