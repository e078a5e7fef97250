"""The commands that read the store: list, show, trace, verify, diff, reproduce, deliver."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated

import typer
from rich.progress import Progress

from assets.contract import Artifact
from assets.store.store import SHORT, Store
from assets.tracking.state import run_ids
from assets.tracking.tracking import Tracking
from gpt_model.errors import UserError
from pipelines import lineage_views
from pipelines.cli.common import (
    ArtifactName,
    AsJson,
    artifact_names,
    built_names,
    command_group,
    is_recipe,
    open_store,
    open_team_store,
    print_json,
    print_rich,
    recipe_in_store,
    stderr_console,
)
from pipelines.verification import verified

MLFLOW_RUN = re.compile(r"[0-9a-f]{32}")

app = command_group()


@app.command("list")
def list_(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="only its artifacts", autocompletion=built_names),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Every artifact in the store, or of a recipe, by name. Exit status 1 where a name is damaged
    or gone.
    """
    store = open_team_store()
    _list(store, recipe_in_store(store, recipe) if recipe else None, as_json)


def _list(store: Store, recipe: str | None, as_json: bool) -> None:
    damaged: list[str] = []
    rows = lineage_views.listed(store, damaged.append)
    if recipe:
        rows = [row for row in rows if (row["ref"] or "").startswith(f"{recipe}/")]
    if as_json:
        print_json(rows)
    elif rows:
        print_rich(lineage_views.draw_list(rows))
    else:
        typer.echo(f"There is nothing in {store.home} yet. Build a recipe: gpt-lineage run tiny")
    if damaged:
        typer.echo(
            f"Damaged, and left out: {len(damaged)}. gpt-lineage verify names them.", err=True
        )
    if problems := store.misnamed():  # an artifact without its name is no artifact of its recipe
        raise UserError("\n".join(["Not every name can be read:", *problems]))


@app.command()
def show(
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT|RECIPE",
            help="recipe/stage, the start of a fingerprint, or a recipe",
            autocompletion=built_names,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """One artifact: its inputs, configuration, checks, metrics, files and where it was built. Of a
    recipe: its artifacts.
    """
    store = open_team_store()
    if is_recipe(store, artifact):
        _list(store, recipe_in_store(store, artifact), as_json)
        return
    facts = lineage_views.shown(store, store.resolve(artifact))
    if as_json:
        print_json(facts)
    else:
        print_rich(lineage_views.draw_artifact(facts))


@app.command()
def trace(
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT|MLFLOW_RUN",
            help="recipe/stage, the start of a fingerprint, or an MLflow run id",
            autocompletion=artifact_names,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Where an artifact comes from: its whole lineage back to the sources. Exit status 1 where a
    part of it is gone.
    """
    from assets.report import lineage_tree  # imports the stages, for which `list` does not wait

    store = open_team_store()
    recipe, _, stage = artifact.strip().strip("/").partition("/")
    lineage = lineage_tree.traced(
        store, _artifact_or_run(store, artifact), recipe=recipe if stage else None
    )
    if as_json:
        print_json(lineage)
    else:
        print_rich(lineage_tree.draw_lineage(lineage))
    if not lineage_tree.is_complete(lineage):
        raise UserError("A part of this lineage is not in the store any more.")


def _artifact_or_run(store: Store, text: str) -> Artifact:
    """The artifact `text` names, or the one that the MLflow run `text` built."""
    if MLFLOW_RUN.fullmatch(text):
        for artifact in store.artifacts():
            if text in run_ids(artifact.path.parent):
                return artifact
    return store.resolve(text)


@app.command()
def verify(
    artifact: Annotated[
        str | None,
        typer.Argument(
            metavar="[ARTIFACT]",
            help="default: everything in the store",
            autocompletion=artifact_names,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every checksum along an artifact's lineage, or of the whole store. Exit status 1
    names what is not as published.
    """
    store = open_store()
    root = store.resolve(artifact) if artifact else None
    result = verified(store, root, stderr_console())
    if as_json:
        print_json(asdict(result))
    if result.problems:
        raise UserError("\n".join(result.problems))
    if not as_json:
        count = f"{result.artifacts} artifact{'s verify' if result.artifacts != 1 else ' verifies'}"
        typer.echo(f"{count}: every file is as it was published.")
        if result.unsummed:
            typer.echo(
                f"Not recorded of {result.unsummed} of them, which an earlier version published: "
                "metrics, provenance, verdicts, pictures and events. The next run records them."
            )


@app.command()
def diff(
    a: Annotated[
        str, typer.Argument(metavar="A", help="an artifact", autocompletion=artifact_names)
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="another", autocompletion=artifact_names)],
    whole: Annotated[
        bool, typer.Option("--all", help="also each field of the configuration, metric and file")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Where the lineages of two artifacts part, and how they differ: scores first, then inputs.
    Fields, other metrics and files are counted; --all lists them.
    """
    store = open_team_store()
    differences = lineage_views.differences(store, store.resolve(a), store.resolve(b))
    if as_json:
        print_json(differences)
    else:
        print_rich(lineage_views.draw_differences(differences, whole))


@app.command()
def reproduce(artifact: ArtifactName, as_json: AsJson = False) -> None:
    """Build an artifact again from its manifest and compare, file by file. Exit status 1 where a
    file differs.
    """
    from pipelines.reproduction import reproduced  # imports the stages too

    store = open_store()
    original = store.resolve(artifact)
    differences = reproduced(store, original, stderr_console())
    if as_json:
        identity = {
            "stage": original.stage,
            "fingerprint": original.fingerprint,
            "digest": original.digest,
        }
        print_json({**identity, "same": not differences, "differences": differences})
    if differences:
        name = f"{original.stage} {original.fingerprint[:SHORT]}"
        raise UserError(
            "\n".join([f"{name} was built again, and it is not the same:", *differences])
        )
    if not as_json:
        files = len(original.manifest["files"])
        typer.echo(f"The same, byte for byte: {files} files, digest {original.digest}")


@app.command()
def deliver(
    to: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="an MLflow server; default: $MLFLOW_TRACKING_URI, else the store's own file",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring every build of the store to an MLflow server, whatever that has of them already. Exit
    status 1 where one did not arrive whole.
    """
    tracking = Tracking(open_store().home, to)
    deliveries = []
    with Progress(console=stderr_console(), transient=True) as progress:
        for delivered in progress.track(
            tracking.deliver_again(), tracking.builds, description="builds delivered"
        ):
            deliveries.append(delivered)
            if not delivered.complete:
                break
    problems = list(dict.fromkeys(each.problem for each in deliveries if each.problem))
    complete = sum(each.complete for each in deliveries)
    if as_json:
        server = tracking.server.address
        print_json({"server": server, "delivered": complete, "problems": problems})
    if problems:
        raise UserError("\n".join(problems))
    if not as_json:
        typer.echo(f"{complete} builds are in MLflow at {tracking.server.address}.")
