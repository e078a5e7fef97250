"""build_defs(): every recipe under recipes/ as a Dagster graph, with its job, schedule, sensor and
resources.

This is what `workspace.yaml`, `dg` and `dagster dev` load. Tests and the command line call
`build_defs` with their own recipes and resources.

A recipe with a mistake in it takes no other one's graph away: what serves the page, ticks and runs
loads the rest, logs the sentence, and shows an asset in the recipe's place that has the sentence as
its description. `dg check defs` says a mistake and fails, so that CI does.
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
from pipelines.jobs import recipe_job
from pipelines.schedules import weekly_retraining
from pipelines.sensors import grown_source_sensor


@dataclass(frozen=True)
class RecipeFile:
    """A recipe and the file it stands in, whose folder its local sources are relative to."""

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
    """A file that is no recipe as it stands, and the sentences that say why."""

    path: Path
    mistake: str


def recipe_files(folder: Path | None = None) -> tuple[list[RecipeFile], list[BrokenRecipe]]:
    """The recipes in `folder` (default: $LINEAGE_RECIPES, or recipes/), and the files there that
    have a mistake in them.

    Raises UserError where there is no such folder.
    """
    folder = folder or Path(os.environ.get("LINEAGE_RECIPES") or RECIPES)
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}. Point LINEAGE_RECIPES at a folder of recipes, or leave it unset."
        )
    by_name: dict[str, RecipeFile] = {}
    broken = []
    for path in yaml_files(folder):
        try:
            file = RecipeFile(load_recipe(str(path)), path)
            check(
                file.nodes, file.base, Node.settings
            )  # local texts are the builds' to read: a missing one takes no graph away
            if other := by_name.get(file.recipe.name):
                raise UserError(
                    f"{path} and {other.path} are both named {file.recipe.name!r}: give one of them another `name`."
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
    """The definitions of `files`, and a place for each broken one."""
    assets: list[dg.AssetsDefinition | dg.AssetSpec] = [_in_its_place(recipe) for recipe in broken]
    jobs, schedules, sensors = [], [], []
    for file in files:
        assets += [as_asset(node, file.base, file.recipe.owners) for node in file.nodes]
        job = recipe_job(file.recipe)
        jobs.append(job)
        schedules.append(weekly_retraining(file.recipe, job))
        if sensor := grown_source_sensor(file.recipe, file.nodes[0], file.base, job):
            sensors.append(sensor)
    return dg.Definitions(
        assets=assets,
        jobs=jobs,
        schedules=schedules,
        sensors=sensors,
        resources={"lineage": Lineage(), **(resource_overrides or {})},
        executor=dg.in_process_executor,
    )


def _in_its_place(recipe: BrokenRecipe) -> dg.AssetSpec:
    """What the page shows of a recipe that does not load; nothing can be run of it."""
    group = re.sub(r"[^A-Za-z0-9_]", "_", recipe.path.stem)
    return dg.AssetSpec(
        [group, recipe.path.name],
        group_name=group,
        kinds={"yaml"},
        description="\n\n".join(
            [
                f"**{recipe.path.name} has a mistake in it**, so its graph is not here.",
                *recipe.mistake.split("\n"),
            ]
        ),
        metadata={"file": dg.MetadataValue.path(str(recipe.path))},
    )


@dg.definitions
def defs() -> dg.Definitions:
    files, broken = recipe_files()
    if broken and os.environ.get(
        "DAGSTER_IS_DEFS_VALIDATION_CLI"
    ):  # set by `dg check defs`, to be asked for here
        raise UserError("\n".join(recipe.mistake for recipe in broken))
    for recipe in broken:
        dg.get_dagster_logger("gpt-lineage").warning("A recipe is left out. %s", recipe.mistake)
    return build_defs(files, broken)
