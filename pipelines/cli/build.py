"""The commands that build a recipe, or plan to: run, plan.

What they call imports the sections of recipes and Dagster, for which neither --help nor shell
completion waits: each command imports it itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assets.store.store import Store
from assets.tracking.other_trackers import VARIABLES, configured
from gpt_model.errors import Unreachable, UserError
from gpt_model.io import peak_resident_bytes
from pipelines.cli.common import (
    AsJson,
    ProfileName,
    RecipeName,
    command_group,
    open_store,
    print_json,
    print_rich,
    stderr_console,
)
from pipelines.progress import BuildDisplay, duration, human

if TYPE_CHECKING:
    from assets.node import Node
    from assets.recipe.recipe import Recipe
    from pipelines.runs import RunReport

app = command_group()


def asset_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """For shell completion of --select: the assets of the recipe that stands before it."""
    from assets.graph import nodes
    from assets.recipe.recipe import load_recipe

    # of a line whose option still lacks its value, typer leaves what stands before it unread
    recipes = [name for name in (ctx.params.get("recipe"), *ctx.args) if name]
    try:
        graph = nodes(load_recipe(recipes[0]))
    except (UserError, IndexError):
        return []
    sign = incomplete[: len(incomplete) - len(incomplete.lstrip("+"))]
    return [name for node in graph if (name := sign + node.name).startswith(incomplete)]


@app.command()
def run(
    recipe: RecipeName,
    select: Annotated[
        list[str] | None,
        typer.Option(
            "--select",
            "-s",
            metavar="SELECTION",
            help="only these assets, in Dagster's asset selection syntax: pretrained, pretrained+, "
            "+scorecard, 'finetuned/* or zero_shot'; may be given again",
            autocompletion=asset_names,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "-n", help="only say what would be found and built, and why"),
    ] = False,
    profile: ProfileName = "cpu",
    wandb: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT",
            envvar=VARIABLES["wandb"],
            help="send every build to this project of Weights & Biases too",
        ),
    ] = None,
    tensorboard: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            envvar=VARIABLES["tensorboard"],
            help="write TensorBoard's event files into this folder too",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build a recipe, or find it built; prints the scorecard's headline. With --select only a part
    of it. An asset that is not selected is read as its name has it.
    """
    began = time.monotonic()
    store = open_store()
    from pipelines.cli.plan import draw_dry_run, dry_run_of, too_large
    from pipelines.cli.recipes import checked

    loaded, path, graph, execution = checked(recipe, profile)
    chosen = _selected(loaded, path, graph, select) if select else graph
    names = {node.name for node in chosen}
    if select or dry_run:
        facts = dry_run_of(loaded, path.parent, execution, store, names)
        _report_unselected(facts)
        if dry_run:
            if as_json:
                print_json(facts)
            else:
                print_rich(draw_dry_run(facts))
            return
    _turn_on({"wandb": wandb, "tensorboard": tensorboard})
    for sentence in too_large(loaded, execution, store) if "pretrained" in names else ():
        typer.echo(f"warning: {sentence} The build begins all the same.", err=True)
    with BuildDisplay(store.home, stderr_console()) as display:
        # Dagster takes seconds to import: a mistake in the recipe is reported before that
        from pipelines.definitions import RecipeFile
        from pipelines.runs import run_recipe

        report = run_recipe(RecipeFile(loaded, path), chosen, profile, store.home, display)
    outcome = {
        "recipe": loaded.name,
        "dagster_run": report.run_id,
        "found": report.reused,
        "built": report.built,
    }
    _raise_unless_succeeded(report, outcome, as_json)
    elapsed, memory = duration(time.monotonic() - began), human(peak_resident_bytes())
    typer.echo(
        f"{report.reused} found, {report.built} built in {elapsed}. Peak memory of this process "
        f"{memory}B. Dagster run {report.run_id}",
        err=True,
    )
    _announce(store, loaded.name, chosen, outcome, as_json)


def _turn_on(trackers: Mapping[str, str | None]) -> None:
    """Those that have a value, for the whole process. Raises UserError for one that cannot work."""
    os.environ.update({VARIABLES[kind]: target for kind, target in trackers.items() if target})
    configured()


def _selected(recipe: Recipe, path: Path, graph: list[Node], select: Sequence[str]) -> list[Node]:
    from pipelines.definitions import RecipeFile, build_defs
    from pipelines.selection import selected

    text = select[0] if len(select) == 1 else " or ".join(f"({each})" for each in select)
    return selected(text, graph, build_defs([RecipeFile(recipe, path)]))


def _report_unselected(facts: dict[str, Any]) -> None:
    """Says what the selected assets read that is not selected and not as the recipe has it."""
    if facts["not_built"]:
        raise UserError(
            f"What is selected reads {', '.join(facts['not_built'])}, not built yet and not "
            "selected. Select it too, as with a + in front, or run the whole recipe."
        )
    if outdated := [f"{asset} ({why})" for asset, why in facts["outdated"].items()]:
        typer.echo(
            f"warning: not selected, and not as the recipe has it now: {', '.join(outdated)}. What "
            "is selected is built from what is there; a + in front of the selection builds all of "
            "it anew.",
            err=True,
        )


def _raise_unless_succeeded(report: RunReport, outcome: dict[str, Any], as_json: bool) -> None:
    if report.interrupted:
        typer.echo(
            "Interrupted. What was built is kept; the same command goes on from there.", err=True
        )
        raise typer.Exit(130)
    if not report.succeeded:
        failures = [*report.failures, *report.failed_checks] or ["The run failed."]
        if as_json:
            print_json({**outcome, "succeeded": False, "failures": failures})
        where = f"gpt-lineage logs {report.run_id[:8]} has what was printed, Dagster all events."
        raise UserError("\n".join([*failures, where]))


def _announce(
    store: Store, recipe: str, chosen: Sequence[Node], outcome: dict[str, Any], as_json: bool
) -> None:
    """What was built: the scorecard's headline where it is among it, else the artifacts."""
    # imports the stages, which a dry run need not wait for
    from pipelines.cli.scorecard_view import announce, as_values
    from pipelines.lineage_views import draw_list, listed

    refs = [node.ref for node in chosen]
    if f"{recipe}/scorecard" in refs:
        if as_json:
            print_json({**outcome, "succeeded": True, **as_values(store, recipe)})
        else:
            announce(store, recipe, print_rich)
        return
    rows = [row for row in listed(store, lambda _: None) if row["ref"] in refs]
    if as_json:
        artifacts = {row["ref"].partition("/")[2]: row for row in rows}
        print_json({**outcome, "succeeded": True, "artifacts": artifacts})
    else:
        print_rich(draw_list(rows))


@app.command()
def plan(
    recipe: RecipeName,
    profile: ProfileName = "cpu",
    as_json: AsJson = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with status 1 where it does not fit.")
    ] = False,
) -> None:
    """Parameters, tokens, FLOPs, memory, time, disk and cost of a recipe, and what of it is built
    already; runs nothing.
    """
    from pipelines.cli.plan import draw_plan, plan_of, what_does_not_fit
    from pipelines.cli.recipes import checked

    store = open_store()
    loaded, path, _, execution = checked(recipe, profile, ignored=(Unreachable,))
    facts = plan_of(loaded, path.parent, execution, store)
    if as_json:
        print_json(facts)
    else:
        print_rich(draw_plan(facts))
    if strict and what_does_not_fit(facts, execution.name):
        raise typer.Exit(1)
