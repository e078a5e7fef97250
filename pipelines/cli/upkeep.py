"""The commands that keep the store in order: where, du, pin, unpin, prune, rm."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Annotated

import typer

from assets.recipe.profile import PROFILES
from assets.recipe.yaml_file import RECIPES
from assets.store.home import downloads_folder
from assets.store.provenance import git_state
from assets.store.remote import VARIABLE as REMOTE
from assets.tracking.state import LOCAL
from gpt_model.redaction import redacted
from pipelines import upkeep
from pipelines.cli.common import (
    ArtifactName,
    AsJson,
    artifact_names,
    built_names,
    command_group,
    open_store,
    print_json,
    print_rich,
    recipe_in_store,
)
from pipelines.progress import human

ABSENT = {"remote": f"none: {REMOTE} is not set"}

app = command_group()


def pin_names(incomplete: str) -> list[str]:
    """For shell completion: the pins, without the part that all have."""
    pins = artifact_names(f"{upkeep.PINNED}/{incomplete}")
    return [name.partition("/")[2] for name in pins]


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


@app.command()
def where(as_json: AsJson = False) -> None:
    """Where things are: the store, downloads, databases, recipes, the code, and its version."""
    home = open_store().home
    commit = git_state()["commit"]
    paths = {
        "store": str(home),
        "remote": redacted(os.environ.get(REMOTE, "")) or None,
        "artifacts": str(home / "artifacts"),
        "downloads": str(downloads_folder()),
        "mlflow": os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / LOCAL}",
        "dagster": os.environ.get("DAGSTER_HOME") or str(home / "dagster"),
        "recipes": os.environ.get("LINEAGE_RECIPES") or str(RECIPES),
        "profiles": str(PROFILES),
        "code": str(RECIPES.parent),
        "commit": commit,
        "version": metadata.version("gpt-lineage"),
        "python": sys.executable,
    }
    if as_json:
        print_json({**paths, "exists": home.is_dir()})
        return
    for name, value in paths.items():
        typer.echo(f"{name:<10} {value or ABSENT.get(name, 'not a clone')}")
    if not home.is_dir():
        _say("The store does not exist yet: the first run makes it. LINEAGE_HOME sets its folder.")


@app.command()
def du(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="list its artifacts; default: all recipes",
            autocompletion=built_names,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What the store takes on the disk: by recipe and by artifact, what recipes share, downloads,
    MLflow, Dagster.
    """
    store = open_store()
    name = recipe_in_store(store, recipe) if recipe else None
    facts = upkeep.usage(store)
    if as_json and name:
        rows = [row for row in facts["artifacts"] if name in row["recipes"]]
        print_json({"recipe": name, **facts["recipes"][name], "artifacts": rows})
    elif as_json:
        print_json(facts)
    else:
        print_rich(upkeep.draw_usage(facts, name))


@app.command()
def pin(
    artifact: ArtifactName,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="letters, digits, _, - and .; default: its fingerprint's start"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give an artifact a name of your own, pinned/NAME, which no run moves and prune keeps. Every
    command takes it.
    """
    store = open_store()
    pinned = store.resolve(artifact)
    ref = upkeep.pin(store, pinned, name)
    if as_json:
        print_json({"ref": ref, "fingerprint": pinned.fingerprint})
    else:
        typer.echo(f"{ref} is {upkeep.described(pinned)}, and prune keeps it.")


@app.command()
def unpin(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="of the pin", autocompletion=pin_names)
    ],
    as_json: AsJson = False,
) -> None:
    """Take a pin's name away. The artifact stays until prune removes it, or for good where a recipe
    names it.
    """
    ref = upkeep.unpin(open_store(), name)
    if as_json:
        print_json({"ref": ref})
    else:
        typer.echo(f"{ref} is no name any more.")


@app.command()
def prune(
    delete: Annotated[bool, typer.Option("--delete", help="remove it; default: only list it")] = (
        False
    ),
    abandoned: Annotated[
        bool,
        typer.Option(
            "--unfinished", help="also builds that were killed, which the next run would resume"
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List what no name, pin or unfinished build leads to, and what was set aside as damaged; with
    --delete remove it. Safe while recipes are built. MLflow and Dagster keep their records.
    """
    store = open_store()
    what = upkeep.removable(store, abandoned=abandoned)
    total = sum(row["bytes"] for rows in what.values() for row in rows)
    freed = upkeep.prune(store, what, _say) if delete else 0
    if as_json:
        print_json({**what, "bytes": total, "deleted": delete, "freed": freed})
    elif not total:
        typer.echo("Nothing to remove: every artifact has a name, or something with one needs it.")
    else:
        print_rich(upkeep.draw_removable(what))
        if delete:
            typer.echo(f"\n{human(freed)}B removed.")
        else:
            flags = " --unfinished" if abandoned else ""
            typer.echo(
                f"\n{human(total)}B, and nothing is removed yet: gpt-lineage prune{flags} --delete"
            )


@app.command()
def rm(
    artifacts: Annotated[
        list[str],
        typer.Argument(
            metavar="ARTIFACT",
            help="recipe/stage, or the start of a fingerprint; several go together",
            autocompletion=artifact_names,
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", "-f", help="also where something stands on it")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove artifacts, with their names. Refuses, and says what stands on one, where another was
    built from it or another recipe, a pin or an unfinished build has it.
    """
    store = open_store()
    removed = upkeep.remove_artifacts(store, artifacts, force, _say)
    if as_json:
        print_json(removed)
    else:
        for row in removed:
            name = f"{row['artifact']} {row['fingerprint'][:12]}"
            stays = f" {row['remote']} keeps its copy." if row["remote"] else ""
            typer.echo(f"{name} is removed, {human(row['bytes'])}B.{stays}")
