"""How Dagster runs ended, from Dagster's event log: for `logs`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from dagster import DagsterEventType

from assets.lineage import dagster_history
from pipelines.executor import is_lost, lost_message
from pipelines.runs import is_interruption, message_of


@dataclass(frozen=True)
class Outcome:
    """`state`: Dagster's status in lower case. `failures`: a sentence each."""

    run_id: str
    job: str
    state: str
    ended: bool
    failures: list[str]


def run_ids_of(dagster_home: Path, beginning: str) -> list[str]:
    """The ids of the runs that begin so."""
    os.environ.setdefault("DAGSTER_HOME", str(dagster_home))
    with dagster_history() as instance:
        return sorted(run_id for run_id in instance.get_run_ids() if run_id.startswith(beginning))


def outcome(dagster_home: Path, run_id: str) -> Outcome | None:
    """How the run ended, or that it goes on; None where Dagster does not know it."""
    os.environ.setdefault("DAGSTER_HOME", str(dagster_home))
    with dagster_history() as instance:
        run = instance.get_run_by_id(run_id)
        if run is None:
            return None
        lost = is_lost(instance, run)
        failures = [] if run.is_success else list(dict.fromkeys(_failures(instance, run_id)))
        return Outcome(
            run_id,
            run.job_name,
            "lost" if lost else run.status.value.lower(),
            run.is_finished or lost,
            [*failures, lost_message(run)] if lost else failures,
        )


def _failures(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """Of its steps; of the run itself where no step failed."""
    steps, of_run = [], []
    for entry in instance.all_logs(run_id):
        event = entry.dagster_event
        if event is None:
            continue
        if event.event_type == DagsterEventType.STEP_FAILURE:
            error = event.step_failure_data.error
            what = "interrupted" if is_interruption(error) else message_of(error)
            steps.append(f"{(event.step_key or '').replace('__', '/')}: {what}")
        elif event.event_type == DagsterEventType.RUN_FAILURE:
            data = event.event_specific_data  # none of a run that was closed for lost
            error = event.job_failure_data.error if data else None
            of_run.append(message_of(error) if error else event.message or entry.user_message)
        elif event.event_type == DagsterEventType.RUN_CANCELED:
            of_run.append(event.message or entry.user_message)
    return steps or of_run
