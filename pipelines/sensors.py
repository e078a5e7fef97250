"""Sensors: a local source that has grown asks for one run of its recipe. Off until somebody turns
it on.
"""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets.lineage import Lineage
from assets.node import Node
from assets.recipe.recipe import Recipe
from gpt_model.errors import UserError


def grown_source_sensor(
    recipe: Recipe, corpus: Node, base: Path, job: UnresolvedAssetJobDefinition
) -> dg.SensorDefinition | None:
    """Watches the local files of `recipe`'s sources by their sha256. None where the recipe has no
    local source.
    """
    if recipe.corpus is None or not any(source.local for source in recipe.corpus.sources):
        return None

    @dg.sensor(
        name=f"{recipe.name}_grown_source",
        job=job,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=f"Runs {recipe.name} when the files of a local source have changed.",
    )
    def grown_source(
        context: dg.SensorEvaluationContext, lineage: Lineage
    ) -> dg.SensorResult | dg.SkipReason:
        store = lineage.store()
        try:
            config = corpus.config(base)
        except UserError as error:
            return dg.SkipReason(f"The source cannot be read now: {error}")
        wanted = store.fingerprint(corpus.stage.name, corpus.stage.version, config, {})
        if wanted == store.get_ref(corpus.recipe, corpus.name):
            return dg.SkipReason("The local sources are what the corpus was built from.")
        if wanted == context.cursor:
            return dg.SkipReason(
                f"A run for this text has already been asked for; if it failed, launch {recipe.name} by hand."
            )
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=wanted, tags={"corpus": wanted[:12]})],
            cursor=wanted,
        )

    return grown_source
