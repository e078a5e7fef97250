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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from assets.graph import check, nodes
from assets.lineage import Lineage
from assets.node import Node
from assets.recipe.recipe import RECIPES, Recipe, load_recipe
from assets.recipe.yaml_file import yaml_files
from assets.stage import as_asset
from gpt_model.errors import UserError
from gpt_model.redaction import redact_output
from pipelines.automation import grown_source_sensor, recipe_job, retraining_schedule
from pipelines.executor import one_process_executor


@dataclass(frozen=True)
class RecipeFile:
    """A recipe and its file, whose folder its local sources are relative to."""

    recipe: Recipe
    path: Path

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
    """The recipes in `folder` (default: $LINEAGE_RECIPES, or recipes/), and its files with a
    mistake.

    Raises UserError where there is no such folder.
    """
    folder = folder or Path(os.environ.get("LINEAGE_RECIPES") or RECIPES)
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}. Point LINEAGE_RECIPES at a folder of recipes, or leave "
            "it unset."
        )
    by_name: dict[str, RecipeFile] = {}
    broken = []
    for path in yaml_files(folder):
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


def build_defs(
    files: Sequence[RecipeFile],
    broken: Sequence[BrokenRecipe] = (),
    *,
    resource_overrides: Mapping[str, Any] | None = None,
) -> dg.Definitions:
    """The definitions of `files`, and an asset that names the mistake of each broken recipe."""
    assets: list[dg.AssetsDefinition | dg.AssetSpec] = [_mistake_asset(recipe) for recipe in broken]
    jobs, schedules, sensors = [], [], []
    for file in files:
        graph, job = file.nodes, recipe_job(file.recipe)
        assets += [as_asset(node, file.base, file.recipe.owners) for node in graph]
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
        resources={"lineage": Lineage(), **(resource_overrides or {})},
        executor=one_process_executor,
    )


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
        dg.get_dagster_logger("gpt-lineage").warning("A recipe is left out. %s", recipe.mistake)
    return build_defs(files, broken)
