"""What builds a recipe without a person: its job, its weekly schedule, its sensor of grown text.

Dagster concepts: job, schedule, sensor. Jobs run in one process, as the heavy work is in the
workers, and a process a step would cost more than most stages. Schedule and sensor are off until
somebody turns them on; a run in which nothing changed finds every artifact built.
"""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets.lineage import Lineage
from assets.node import Node
from assets.recipe.recipe import Recipe
from gpt_model.errors import UserError
from pipelines.executor import one_process_executor


def recipe_job(recipe: Recipe) -> UnresolvedAssetJobDefinition:
    """The job that builds every asset of `recipe`, or finds it built."""
    return dg.define_asset_job(
        recipe.name,
        selection=dg.AssetSelection.groups(recipe.name),
        description=recipe.description or f"Build the recipe {recipe.name}.",
        executor_def=one_process_executor,
        tags={"recipe": recipe.name},
    )


def weekly_retraining(recipe: Recipe, job: UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    """Runs `job` on Mondays at 03:00, in Dagster's default time zone (UTC)."""
    return dg.ScheduleDefinition(
        name=f"{recipe.name}_weekly",
        job=job,
        cron_schedule="0 3 * * 1",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=f"Build {recipe.name} again every week: new text in a local source is trained "
        "on, everything unchanged is found.",
    )


def grown_source_sensor(
    recipe: Recipe, corpus: Node, base: Path, job: UnresolvedAssetJobDefinition
) -> dg.SensorDefinition | None:
    """Runs `job` when the sha256 of a local source's files has changed. None without local sources.

    `base`: the recipe's folder.
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
        fingerprint = store.fingerprint(corpus.stage.name, corpus.stage.version, config, {})
        if fingerprint == store.refs().get(corpus.ref):
            return dg.SkipReason("The local sources are what the corpus was built from.")
        if fingerprint == context.cursor:
            return dg.SkipReason(
                "A run for this text has already been requested; if it failed, launch "
                f"{recipe.name} by hand."
            )
        request = dg.RunRequest(run_key=fingerprint, tags={"corpus": fingerprint[:12]})
        return dg.SensorResult(run_requests=[request], cursor=fingerprint)

    return grown_source
