"""The commands that build a recipe, or plan to: run, plan."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import typer

from assets.graph import check, nodes
from assets.recipe.profile import Profile, load_profile
from assets.recipe.recipe import RECIPES, Recipe, load_recipe
from assets.recipe.yaml_file import find_file, here_and, naming
from assets.stages.pretraining import PRETRAINED, check_shared_out
from assets.store.store import Store
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
from pipelines.cli.plan import draw_plan, memory_facts, model_of, plan_of, what_does_not_fit
from pipelines.cli.scorecard_view import announce, as_values
from pipelines.progress import BuildDisplay, duration, human

app = command_group()


@app.command()
def run(recipe: RecipeName, profile: ProfileName = "cpu", as_json: AsJson = False) -> None:
    """Build a recipe, or find it built; prints the scorecard's headline."""
    began = time.monotonic()
    store = open_store()
    loaded, path, execution = _checked(recipe, profile)
    for sentence in _too_large(loaded, execution, store):
        typer.echo(f"warning: {sentence} The build begins all the same.", err=True)
    with BuildDisplay(store.home, stderr_console()) as display:
        # Dagster takes seconds to import: a mistake in the recipe is reported before that
        from pipelines.definitions import RecipeFile
        from pipelines.runs import run_recipe

        report = run_recipe(RecipeFile(loaded, path), profile, store.home, display)
    if report.interrupted:
        typer.echo(
            "Interrupted. What was built is kept; the same command goes on from there.", err=True
        )
        raise typer.Exit(130)
    outcome = {
        "recipe": loaded.name,
        "dagster_run": report.run_id,
        "found": report.reused,
        "built": report.built,
    }
    if not report.succeeded:
        failures = [*report.failures, *report.failed_checks] or ["The run failed."]
        if as_json:
            print_json({**outcome, "succeeded": False, "failures": failures})
        where = f"Dagster run {report.run_id} (make ui) has the whole story."
        raise UserError("\n".join([*failures, where]))
    elapsed, memory = duration(time.monotonic() - began), human(peak_resident_bytes())
    typer.echo(
        f"{report.reused} found, {report.built} built in {elapsed}, this process with Dagster and "
        f"MLflow {memory}B at its peak. Dagster run {report.run_id}",
        err=True,
    )
    if as_json:
        print_json({**outcome, "succeeded": True, **as_values(store, loaded.name)})
    else:
        announce(store, loaded.name, print_rich)


@app.command()
def plan(recipe: RecipeName, profile: ProfileName = "cpu", as_json: AsJson = False) -> None:
    """Parameters, tokens, FLOPs, memory, time, disk and cost of a recipe, and what of it is built
    already; runs nothing.
    """
    store = open_store()
    loaded, path, execution = _checked(recipe, profile, ignored=(Unreachable,))
    facts = plan_of(loaded, path.parent, execution, store)
    if as_json:
        print_json(facts)
    else:
        print_rich(draw_plan(facts))


def _too_large(recipe: Recipe, profile: Profile, store: Store) -> list[str]:
    """What of the training does not fit the profile, as `plan` says it; of an imported model once
    it is here.
    """
    built = {}
    if recipe.imported:
        with suppress(UserError):
            built["imported"] = store.resolve(f"{recipe.name}/imported")
    model = model_of(recipe, built)
    return what_does_not_fit(memory_facts(recipe, model, profile), profile.name) if model else []


def _checked(
    recipe: str, profile: str, ignored: tuple[type[UserError], ...] = ()
) -> tuple[Recipe, Path, Profile]:
    """Recipe, its file, profile. Raises UserError for a mistake that can be seen before a build.

    `ignored`: kinds of error that are no mistake here.
    """
    path = find_file(recipe, here_and(RECIPES), "recipe")
    loaded, execution = load_recipe(str(path)), load_profile(profile)
    graph = nodes(loaded)
    check(graph, path.parent, ignored=ignored)
    with naming(loaded.files):
        for config in (node.settings(path.parent) for node in graph if node.stage is PRETRAINED):
            if "model" in config:  # an imported model's context is known once it is here
                context = config["model"]["context"]
                section = config["pretraining"]
                check_shared_out(section, context, execution.name, execution.processes)
    return loaded, path, execution
