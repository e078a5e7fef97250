"""Jobs: one a recipe, that materializes its whole graph.

They run in one process: the heavy work is in the workers anyway, and a process a step would cost
more than most stages.
"""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets.recipe.recipe import Recipe


def recipe_job(recipe: Recipe) -> UnresolvedAssetJobDefinition:
    """The job that builds `recipe`, or finds it built."""
    return dg.define_asset_job(
        recipe.name,
        selection=dg.AssetSelection.groups(recipe.name),
        description=recipe.description or f"Build the recipe {recipe.name}.",
        executor_def=dg.in_process_executor,
        tags={"recipe": recipe.name},
    )
