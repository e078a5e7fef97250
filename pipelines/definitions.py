"""build_defs(): every recipe under recipes/ as a Dagster graph, with job, schedule, sensor and
resources.

`workspace.yaml`, `dg` and `dagster dev` load this module. Tests and the command line call
`build_defs` with their own recipes and resources.

A recipe with a mistake leaves the graphs of the others alone: the code location loads the rest,
logs the sentence, and shows an asset with the sentence as its description where the recipe would
be. `dg check defs` raises the mistake, so that CI fails.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg

from assets.estimate import pretraining_demand
from assets.graph import check, nodes
from assets.lineage import launchpad_lineage
from assets.node import Node
from assets.recipe.profile import Profile
from assets.recipe.recipe import RECIPES, Recipe, load_recipe
from assets.recipe.yaml_file import compose_files, here_and, named_files
from assets.stage import RecipeEntry, as_asset
from assets.store.recipes import recorded
from assets.store.store import Store
from gpt_model.errors import UserError
from gpt_model.redaction import redact_output
from pipelines.automation import grown_source_sensor, recipe_job, retraining_schedule
from pipelines.executor import one_process_executor
from pipelines.progress import duration, human

DISPLAY = "display"
PATIENCE_SECONDS = 30 * 86_400.0  # of pre-training; a recipe that takes longer is marked


@dataclass(frozen=True)
class RecipeFile:
    """A recipe and its file, whose folder its local sources are relative to."""

    recipe: Recipe
    path: Path
    note: str = ""  # of a file outside recipes/: what the catalogue says of it

    @property
    def base(self) -> Path:
        return self.path.parent

    @property
    def nodes(self) -> list[Node]:
        return nodes(self.recipe)


@dataclass(frozen=True)
class BrokenRecipe:
    """A file that is no valid recipe, and the sentences that say why."""

    path: Path
    mistake: str


def recipe_files(folder: Path | None = None) -> tuple[list[RecipeFile], list[BrokenRecipe]]:
    """The recipes in `folder` (default: $LINEAGE_RECIPES, or recipes/ here and ours), and its files
    with a mistake.

    Raises UserError where there is no such folder.
    """
    if folder is None and (named := os.environ.get("LINEAGE_RECIPES")):
        folder = Path(named)
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}. Point LINEAGE_RECIPES at a folder of recipes, or leave "
            "it unset."
        )
    by_name: dict[str, RecipeFile] = {}
    broken = []
    for path in named_files([folder] if folder else here_and(RECIPES)).values():
        try:
            file = RecipeFile(load_recipe(str(path)), path)
            # local texts are the builds' to read: a missing one takes no graph away
            check(file.nodes, file.base, Node.settings)
            if other := by_name.get(file.recipe.name):
                raise UserError(
                    f"{path} and {other.path} are both named {file.recipe.name!r}: give one of "
                    "them another `name`."
                )
            by_name[file.recipe.name] = file
        except UserError as error:
            broken.append(BrokenRecipe(path, str(error)))
    return list(by_name.values()), broken


def built_by_path(home: Path, files: Sequence[RecipeFile]) -> Iterator[RecipeFile]:
    """The recipes outside `files` that were built in the store `home` from a path, and whose file
    is still there and valid.
    """
    paths, names = {file.path for file in files}, {file.recipe.name for file in files}
    for built in recorded(home):
        if built.path in paths:
            continue
        try:
            file = RecipeFile(load_recipe(str(built.path)), built.path)
            check(file.nodes, file.base, Node.settings)
        except UserError as error:
            _warn("A recipe that was built from a path is left out. %s", error)
            continue
        if file.recipe.name in names:
            _warn("%s is left out: another recipe is named %s too.", built.path, file.recipe.name)
            continue
        names.add(file.recipe.name)
        state = "changed since" if built.changed else "as it was in"
        yield replace(file, note=f"{built.path}, {state} the build of {built.built}")


def build_defs(
    files: Sequence[RecipeFile],
    broken: Sequence[BrokenRecipe] = (),
    *,
    resource_overrides: Mapping[str, Any] | None = None,
    display: dg.LoggerDefinition = dg.colored_console_logger,
) -> dg.Definitions:
    """The definitions of `files`, and an asset that names the mistake of each broken recipe.

    `display`: the logger of runs that the command line starts, whose configuration names it. The
    page has one of that name too, or it could not execute such a run again.
    """
    assets: list[dg.AssetsDefinition | dg.AssetSpec] = [_mistake_asset(recipe) for recipe in broken]
    resources = {"lineage": launchpad_lineage(), **(resource_overrides or {})}
    lineage = resources["lineage"]
    jobs, schedules, sensors = [], [], []
    for file in files:
        entry, warning = _entry(file, lineage.execution())
        graph, job = file.nodes, recipe_job(file.recipe, lineage.profile, warning)
        assets += [as_asset(node, entry) for node in graph]
        jobs.append(job)
        if schedule := retraining_schedule(file.recipe, job):
            schedules.append(schedule)
        if sensor := grown_source_sensor(file.recipe, graph[0], file.base, job):
            sensors.append(sensor)
    return dg.Definitions(
        assets=assets,
        jobs=jobs,
        schedules=schedules,
        sensors=sensors,
        resources=resources,
        loggers={DISPLAY: display},
        executor=one_process_executor,
    )


def _entry(file: RecipeFile, profile: Profile) -> tuple[RecipeEntry, str]:
    """What the catalogue shows of the recipe, and why it cannot be built on `profile`; "" where it
    can.
    """
    recipe, tags, warning = file.recipe, {"machine": "unknown"}, ""
    if recipe.model and recipe.pretraining:
        section = recipe.pretraining.model_dump(mode="json")
        demand = pretraining_demand(recipe.model_config_for(), section, profile)
        tags = {"machine": "fits", "family": recipe.model.family}
        takes = ""
        if not demand.fits:
            tags["machine"] = "too_large"
            each, available = human(demand.bytes), human(demand.available or 0)
            takes = f"{each}B of memory a rank, and there are {available}B"
        elif demand.seconds > PATIENCE_SECONDS:
            tags["machine"] = "too_slow"
            takes = f"about {duration(demand.seconds)}"
        if takes:
            warning = f"Not for this machine: on profile {profile.name} its pre-training takes "
            warning += f"{takes}. See: gpt-lineage plan {file.path.stem}"
    metadata = {"this machine": warning, "recipe file": file.note}
    metadata = {name: text for name, text in metadata.items() if text}
    lines = compose_files(recipe.files)
    return RecipeEntry(file.base, recipe.owners, tags, metadata, lines), warning


def _mistake_asset(recipe: BrokenRecipe) -> dg.AssetSpec:
    """What the page shows of a recipe that does not load; nothing of it can be run."""
    group = re.sub(r"[^A-Za-z0-9_]", "_", recipe.path.stem)
    headline = f"**{recipe.path.name} has a mistake in it**, so its graph is not here."
    return dg.AssetSpec(
        [group, recipe.path.name],
        group_name=group,
        kinds={"yaml"},
        description="\n\n".join([headline, *recipe.mistake.split("\n")]),
        metadata={"file": dg.MetadataValue.path(str(recipe.path))},
    )


@dg.definitions
def defs() -> dg.Definitions:
    redact_output()  # Dagster keeps what the processes print that load this
    files, broken = recipe_files()
    if broken and os.environ.get("DAGSTER_IS_DEFS_VALIDATION_CLI"):  # `dg check defs` sets it
        raise UserError("\n".join(recipe.mistake for recipe in broken))
    for recipe in broken:
        _warn("A recipe is left out. %s", recipe.mistake)
    return build_defs([*files, *built_by_path(Store.default_home(), files)], broken)


def _warn(message: str, *details: object) -> None:
    dg.get_dagster_logger("gpt-lineage").warning(message, *details)
