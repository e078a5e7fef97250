"""What the groups of commands share: arguments, options, the store, output.

Results go to stdout, progress to stderr.
"""

from __future__ import annotations

import json
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

PIPE_COLUMNS = 400  # a table is not cut to 80 columns where stdout is a file or a pipe


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
    """A table, a tree or a line on stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    console.print(renderable, soft_wrap=isinstance(renderable, str))


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
