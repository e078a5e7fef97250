"""build_defs(): every recipe under recipes/ as a Dagster graph, with its job, schedule, sensor and resources.

This is what `workspace.yaml`, `dg` and `dagster dev` load. Tests and the command line call `build_defs` with their own
recipes and resources.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from assets.graph import Node, nodes
from assets.recipe import RECIPES, Recipe, load_recipe
from assets.resources.lineage import Lineage
from assets.stage import as_asset
from assets.yaml_file import yaml_files
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


def recipe_files(folder: Path | None = None) -> list[RecipeFile]:
    """Every recipe in `folder` (default: $LINEAGE_RECIPES, or recipes/). Raises UserError where one is wrong, or two share a name."""
    folder = folder or Path(os.environ.get("LINEAGE_RECIPES") or RECIPES)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Point LINEAGE_RECIPES at a folder of recipes, or leave it unset.")
    files = [RecipeFile(load_recipe(str(path)), path) for path in yaml_files(folder)]
    by_name: dict[str, Path] = {}
    for file in files:
        if (other := by_name.setdefault(file.recipe.name, file.path)) != file.path:
            raise UserError(f"{file.path} and {other} are both named {file.recipe.name!r}: give one of them another `name`.")
    return files


def build_defs(files: Sequence[RecipeFile] | None = None, *, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The definitions of `files` (default: all recipes)."""
    files = recipe_files() if files is None else files
    assets, jobs, schedules, sensors = [], [], [], []
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


@dg.definitions
def defs() -> dg.Definitions:
    return build_defs()
