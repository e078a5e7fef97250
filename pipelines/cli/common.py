"""What the groups of commands share: arguments, options, what the shell completes them to, the
store, output.

Results go to stdout, progress to stderr. Colours are rich's, which leaves them out where stdout is
no terminal or NO_COLOR is set.
"""

from __future__ import annotations

import difflib
import json
import math
import sys
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.console import Console

from assets.contract import Artifact
from assets.recipe.profile import PROFILES
from assets.recipe.yaml_file import RECIPES, SUFFIXES, find_file, here_and, named_files, read_yaml
from assets.store.catalogue import fetched, team_store
from assets.store.store import SHORT, Store
from assets.tracking.relocation import relocate
from gpt_model.errors import UserError


def recipe_names(incomplete: str) -> list[str]:
    """For shell completion: the recipes that have a name. A path is completed by the shell."""
    return _beginning(incomplete, list(named_files(here_and(RECIPES))))


def profile_names(incomplete: str) -> list[str]:
    return _beginning(incomplete, list(named_files(here_and(PROFILES))))


def artifact_names(incomplete: str) -> list[str]:
    """For shell completion: recipe/stage of everything built, experiments too, and fingerprints
    once one is begun.
    """
    store = Store(Store.default_home())
    fingerprints = [name[:SHORT] for name in store.fingerprints()] if incomplete else []
    return _beginning(incomplete, [*store.names(), *fingerprints])


def built_names(incomplete: str) -> list[str]:
    """The same, and the recipes of which something is built."""
    names = Store(Store.default_home()).names()
    recipes = dict.fromkeys(name.partition("/")[0] for name in names)
    return _beginning(incomplete, list(recipes)) + artifact_names(incomplete)


def _beginning(incomplete: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def is_recipe(store: Store, text: str) -> bool:
    """Whether a person means a recipe, where an artifact could be meant too."""
    known = set(named_files(here_and(RECIPES)))
    known |= {name.partition("/")[0] for name in store.names()}
    return text in known or text.endswith(SUFFIXES)


def recipe_in_store(store: Store, recipe: str) -> str:
    """The name that the store has for a recipe: what its file calls it, or that file's own name.
    Raises UserError where nothing of it is built.
    """
    recipes = list(dict.fromkeys(name.partition("/")[0] for name in store.names()))
    if recipe in recipes:
        return recipe
    name = None
    with suppress(UserError):
        name = str(read_yaml(find_file(recipe, here_and(RECIPES), "recipe")).get("name", recipe))
    if name in recipes:
        return name
    if name:
        raise UserError(f"Nothing of {name} is built in {store.home}: gpt-lineage run {recipe}")
    near = difflib.get_close_matches(recipe, recipes, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UserError(
        f"There is nothing of a recipe {recipe!r} in {store.home}. {hint}"
        f"There is: {', '.join(recipes) or 'nothing yet'}."
    )


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="a name under recipes/, or a path to a YAML file",
        autocompletion=recipe_names,
    ),
]
ArtifactName = Annotated[
    str,
    typer.Argument(
        metavar="ARTIFACT",
        help="recipe/stage, or the start of a fingerprint",
        autocompletion=artifact_names,
    ),
]
ProfileName = Annotated[
    str,
    typer.Option(
        "--profile",
        envvar="LINEAGE_PROFILE",
        help="a name under profiles/, or a path to a YAML file",
        autocompletion=profile_names,
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


def open_team_store() -> Store:
    """The store, with what its team's mirror has besides, to be read."""
    return team_store(open_store().home, _say)


def with_files(store: Store, text: str) -> Artifact:
    """The artifact that a person means, fetched where only the mirror has its files."""
    return fetched(store, store.resolve(text), _say)


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


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
