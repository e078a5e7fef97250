"""How a Dagster run executes, whoever launches it: every step in one process, since the heavy work
is in the workers. One step after another, or several where there is room (`side_by_side.py`).

Dagster's own in-process executor ignores an interruption while it waits for a pool, and nobody
notices when the process of a run was killed with -9: the run stays STARTED and keeps its slot. So
each run records its process (host, pid, start time) in its tags, and the next run, or one that
waits for the slot, closes it. Hosts that share a Postgres see by a lock in it whether a process of
another one runs.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import dagster as dg
from dagster import DagsterRunStatus, RunsFilter
from dagster._core.errors import DagsterExecutionInterruptedError, raise_execution_interrupts
from dagster._core.events import DagsterEvent, EngineEventData
from dagster._core.execution.api import ExecuteRunWithPlanIterable
from dagster._core.execution.context.system import PlanExecutionContext, PlanOrchestrationContext
from dagster._core.execution.context_creation_job import PlanExecutionContextManager
from dagster._core.execution.plan.execute_plan import inner_plan_execution_iterator
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.in_process import InProcessExecutor

from assets.dagster_storage import is_held, process_lock
from assets.launch import guard
from assets.store.remote import finish_pushes
from assets.tracking.tracking import end_run
from pipelines.side_by_side import room, steps_at_once

# Tags of a run, by a prefix that Dagster's pages hide; earlier versions wrote them without it. RUN
# says whose they are: a run launched again from the page has its parent's tags.
HIDDEN = ".dagster/"
PROCESS = f"{HIDDEN}gpt-lineage/"
HOST, PID, STARTED = f"{PROCESS}host", f"{PROCESS}pid", f"{PROCESS}process_started"
LOCK = f"{PROCESS}lock"  # of the process, in a Postgres
RUN = f"{PROCESS}run"
UNFINISHED = [
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
ENDING = (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED)
CLAIM_SECONDS = 0.5  # between two tries to get a slot of a pool
LOST_SECONDS = 5.0  # between two looks, while waiting, whether the slot's holder still lives


def process_tags(instance: dg.DagsterInstance, run_id: str) -> dict[str, str]:
    """Tags that say that this process executes the run."""
    lock = process_lock(instance)
    return {
        **({LOCK: lock} if lock else {}),
        HOST: socket.gethostname(),
        PID: str(os.getpid()),
        STARTED: str(guard.started(os.getpid())),
        RUN: run_id,
    }


def close_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """Close each unfinished run whose process is gone, and free its slots in pools. Returns a
    sentence for each.
    """
    sentences = []
    for run in instance.get_runs(RunsFilter(statuses=UNFINISHED)):
        if not is_lost(instance, run):
            continue
        message = lost_message(run)
        if run.status == DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, message)
        else:
            instance.report_run_failed(run, message)
        sentences.append(
            f"Dagster run {run.run_id[:8]} of {run.job_name} had lost its process; closed. "
            "What it built so far is resumed."
        )
    _free_slots_of_ended_runs(instance)
    return sentences


def _free_slots_of_ended_runs(instance: dg.DagsterInstance) -> None:
    """A run that was killed ends without giving its slots back."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    holders = {
        slot.run_id
        for key in storage.get_concurrency_keys()
        for slot in storage.get_concurrency_info(key).claimed_slots
    }
    for run_id in holders:
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)


def is_lost(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether the run is unfinished, and the process that executed it is gone. Of another host's
    that is known by its lock alone.
    """
    tags = _process_tags(run)
    if run.status not in UNFINISHED or tags.get(RUN, run.run_id) != run.run_id:
        return False
    if LOCK in tags:
        return not is_held(instance, tags[LOCK])
    here = tags.get(HOST) == socket.gethostname()
    return here and guard.started(int(tags[PID])) != tags[STARTED]


def lost_message(run: dg.DagsterRun) -> str:
    """Of a run that `is_lost`."""
    tags = _process_tags(run)
    return (
        f"The process of this run (pid {tags[PID]} on {tags[HOST]}) ended without a word; it was "
        "killed, or the machine went down."
    )


def _process_tags(run: dg.DagsterRun) -> dict[str, str]:
    return {f"{HIDDEN}{name.removeprefix(HIDDEN)}": tag for name, tag in run.tags.items()}


class _Claims(InstanceConcurrencyContext):
    """Claims on pools that an interruption ends, and a killed holder does not outlast."""

    _next_look = 0.0

    def __exit__(self, *error: Any) -> None:
        """Dagster frees the slot of a step once it has handled the step's last event, which it does
        not where `_steps` ends the run at that event.
        """
        super().__exit__(*error)
        storage = self._instance.event_log_storage
        if storage.supports_global_concurrency_limits:
            storage.free_concurrency_slots_for_run(self._run_id)

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        if super().claim(concurrency_key, step_key, step_priority):
            return True
        with raise_execution_interrupts():
            time.sleep(CLAIM_SECONDS)
        if time.monotonic() >= self._next_look:
            close_lost_runs(self._instance)
            self._next_look = time.monotonic() + LOST_SECONDS
        return False


class OneProcessExecutor(InProcessExecutor):
    """Dagster's in-process executor with `_Claims`, and with the process in the run's tags."""

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        instance, run = plan_context.instance, plan_context.dagster_run
        instance.add_run_tags(run.run_id, process_tags(instance, run.run_id))
        yield DagsterEvent.engine_event(
            plan_context,
            f"Executing steps in process (pid: {os.getpid()})",
            EngineEventData.in_process(os.getpid(), execution_plan.step_keys_to_execute),
        )
        succeeded = True
        try:
            for event in ExecuteRunWithPlanIterable(
                execution_plan=execution_plan,
                iterator=_steps,
                execution_context_manager=PlanExecutionContextManager(
                    job=plan_context.job,
                    retry_mode=plan_context.retry_mode,
                    execution_plan=execution_plan,
                    run_config=plan_context.run_config,
                    dagster_run=run,
                    instance=instance,
                    raise_on_error=plan_context.raise_on_error,
                    output_capture=plan_context.output_capture,
                    step_dependency_config=self.step_dependency_config,
                ),
            ):
                succeeded = succeeded and not event.is_step_failure
                yield event
            # an interruption ends the wait, and the next run pushes the rest
            with suppress(DagsterExecutionInterruptedError), raise_execution_interrupts():
                finish_pushes()
        except BaseException as error:
            succeeded = False
            if isinstance(error, KeyboardInterrupt | DagsterExecutionInterruptedError):
                report_canceling(instance, run)
            raise
        finally:
            end_run(run.run_id, succeeded)


def report_canceling(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Make an interrupted run CANCELING, so that it ends as canceled. The page has done that, where
    it ended the run; Ctrl-C and SIGTERM have not.
    """
    if not _ending(instance, run):
        instance.report_run_canceling(run, "The run was interrupted.")


def _ending(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    current = instance.get_run_by_id(run.run_id)
    return current is not None and current.status in ENDING


def _steps(
    job_context: PlanExecutionContext, execution_plan: ExecutionPlan
) -> Iterator[DagsterEvent]:
    instance, run = job_context.instance, job_context.dagster_run
    at_once = room(job_context, execution_plan)
    with _Claims(instance, run) as claims:
        if at_once > 1:
            events = steps_at_once(job_context, execution_plan, claims, at_once)
        else:
            events = inner_plan_execution_iterator(job_context, execution_plan, claims)
        with closing(events):  # type: ignore[type-var]  # generators, declared as iterators
            for event in events:
                yield event
                if event.is_step_failure and _ending(instance, run):
                    raise DagsterExecutionInterruptedError("The run was ended within a step.")


@dg.executor(name="one_process")
def one_process_executor(_: dg.InitExecutorContext) -> OneProcessExecutor:
    """Every step in the process of the run."""
    return OneProcessExecutor(RetryMode.ENABLED)
