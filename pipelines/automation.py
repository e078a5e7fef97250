"""What builds a recipe without a person: its job, its schedule, its sensor of grown text.

Dagster concepts: job, schedule, sensor. Jobs run in one process, as the heavy work is in the
workers, and a process a step would cost more than most stages. Schedule and sensor are off until
somebody turns them on; a run in which nothing changed finds every artifact built.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets.lineage import DEFAULT_PROFILE, Lineage
from assets.node import Node
from assets.recipe.recipe import Recipe
from assets.store.store import SHORT
from gpt_model.errors import UserError
from pipelines.executor import one_process_executor

# When a recipe's `schedule` runs it, in Dagster's default time zone (UTC).
CRON = {"daily": "0 3 * * *", "weekly": "0 3 * * 1", "monthly": "0 3 1 * *"}
# A run that failed is requested again: what failed may have been the machine.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 600, 86_400
RUNS_READ = 20  # of the recipe; with as many failures the pause is the longest


def recipe_job(
    recipe: Recipe, profile: str = DEFAULT_PROFILE, description: str = ""
) -> UnresolvedAssetJobDefinition:
    """The job that builds every asset of `recipe`, or finds it built; on `profile`, unless the
    launchpad says otherwise.
    """
    return dg.define_asset_job(
        recipe.name,
        selection=dg.AssetSelection.groups(recipe.name),
        description=description or recipe.description or f"Build the recipe {recipe.name}.",
        config={"resources": {"lineage": {"config": {"profile": profile}}}},
        executor_def=one_process_executor,
        tags={"recipe": recipe.name},
    )


def retraining_schedule(
    recipe: Recipe, job: UnresolvedAssetJobDefinition
) -> dg.ScheduleDefinition | None:
    """Runs `job` as often as the recipe's `schedule` says; None where it says nothing."""
    if recipe.schedule is None:
        return None
    return dg.ScheduleDefinition(
        name=f"{recipe.name}_{recipe.schedule}",
        job=job,
        cron_schedule=CRON[recipe.schedule],
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=f"Build {recipe.name} again: new text in a local source is trained on, "
        "everything unchanged is found.",
    )


def grown_source_sensor(
    recipe: Recipe, corpus: Node, base: Path, job: UnresolvedAssetJobDefinition
) -> dg.SensorDefinition | None:
    """Runs `job` when the sha256 of a local source's files is not what the corpus was built from,
    and again, after a growing pause, when its run failed. None without local sources.

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
    ) -> dg.RunRequest | dg.SkipReason:
        store = lineage.store()
        try:
            config = corpus.config(base)
        except UserError as error:
            return dg.SkipReason(f"The source cannot be read now: {error}")
        fingerprint = store.fingerprint(corpus.stage.name, corpus.stage.version, config, {})
        built = fingerprint == store.refs().get(corpus.ref)
        runs = context.instance.get_run_records(
            dg.RunsFilter(job_name=recipe.name), limit=RUNS_READ
        )
        tags = {"corpus": fingerprint[:SHORT]}
        reason = _reason_to_wait(runs, tags, built)
        return dg.SkipReason(reason) if reason else dg.RunRequest(tags=tags)

    return grown_source


def _reason_to_wait(runs: Sequence[dg.RunRecord], tags: Mapping[str, str], built: bool) -> str:
    """Why no run is requested for the text now; empty where one is.

    `runs`: the recipe's, newest first; those for this text have `tags`. `built`: the corpus is of
    this text.
    """
    of_this_text = list(takewhile(lambda run: tags.items() <= run.dagster_run.tags.items(), runs))
    if runs and not runs[0].dagster_run.is_finished:
        return "A run of this recipe is under way."
    failures = list(takewhile(lambda run: run.dagster_run.is_failure, of_this_text))
    if failures:
        pause = min(FIRST_PAUSE_SECONDS * 2 ** (len(failures) - 1), LONGEST_PAUSE_SECONDS)
        ended = failures[0].end_time or failures[0].create_timestamp.timestamp()
        if time.time() >= ended + pause:
            return ""
        again = datetime.fromtimestamp(ended + pause, UTC)
        return f"The run for this text failed; it is requested again at {again:%Y-%m-%d %H:%M} UTC."
    if built:
        return "The local sources are what the corpus was built from."
    if of_this_text and of_this_text[0].dagster_run.status == dg.DagsterRunStatus.CANCELED:
        return "The run for this text was ended by hand; launch the recipe by hand, or change it."
    return ""
