"""Schedules: retraining once a week, off until somebody turns it on. A week in which nothing
changed is all hits.
"""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets.recipe.recipe import Recipe


def weekly_retraining(recipe: Recipe, job: UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    """Mondays at 03:00, the machine's time zone left to Dagster's default (UTC)."""
    return dg.ScheduleDefinition(
        name=f"{recipe.name}_weekly",
        job=job,
        cron_schedule="0 3 * * 1",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=f"Build {recipe.name} again every week: new text in a local source is trained on, everything unchanged is found.",
    )
