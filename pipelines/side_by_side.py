"""Independent steps of one Dagster run at once, each in a thread: the work is in their workers.

How many: as many as the profile leaves room for on this machine (`Profile.stages_at_once`), and no
more than the pools have slots. Each step executes as it would alone, so digests are the same.
`executor.py` runs one step after another with Dagster's own iterator, where there is no more room.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack

from dagster._core.errors import DagsterExecutionInterruptedError, raise_execution_interrupts
from dagster._core.events import DagsterEvent
from dagster._core.execution.compute_logs import create_compute_log_file_key
from dagster._core.execution.context.system import PlanExecutionContext, StepExecutionContext
from dagster._core.execution.plan.execute_plan import dagster_event_sequence_for_step
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.plan import ExecutionPlan

STEP_THREAD = "step "  # begins the name of a step's thread
POLL_SECONDS = 0.2  # between two looks for steps that may start

# An event of a step; how its thread failed; None at its end.
Outcome = DagsterEvent | BaseException | None


def room(job_context: PlanExecutionContext, plan: ExecutionPlan) -> int:
    """How many steps of the run may execute at once."""
    resources = job_context.scoped_resources_builder.build(frozenset({"lineage"}))
    lineage = getattr(resources, "lineage", None)
    at_once: int = lineage.execution().stages_at_once() if lineage else 1
    if at_once == 1:
        return 1
    storage = job_context.instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return at_once
    limits = {pool.name: pool.limit for pool in storage.get_pool_limits()}
    default = storage.get_pool_config().default_pool_limit
    slots = [limits.get(step.pool, default) for step in plan.steps if step.pool]
    fewest = min((number for number in slots if number), default=at_once)
    if fewest < at_once:
        job_context.log.info(
            f"The profile leaves room for {at_once} stages at once, and a pool limits them to "
            f"{fewest}: Deployment > Concurrency sets another limit."
        )
    return min(at_once, fewest)


def steps_at_once(
    job_context: PlanExecutionContext,
    plan: ExecutionPlan,
    claims: InstanceConcurrencyContext,
    at_once: int,
) -> Iterator[DagsterEvent]:
    """Executes the plan, at most `at_once` steps at a time. An interruption ends every step first,
    and goes on.
    """
    outcomes: queue.SimpleQueue[tuple[str, Outcome]] = queue.SimpleQueue()
    threads: dict[str, threading.Thread] = {}
    with ExitStack() as stack:
        active = stack.enter_context(
            plan.start(
                job_context.retry_mode,
                max_concurrent=at_once,
                instance_concurrency_context=claims,
                step_dependency_config=job_context.step_dependency_config,
            )
        )
        logs = job_context.instance.compute_log_manager
        log_key = logs.build_log_key_for_run(job_context.run_id, create_compute_log_file_key())
        step_keys = [step.key for step in plan.get_steps_to_execute_in_topo_order()]
        captured = stack.enter_context(logs.capture_logs(log_key))
        yield DagsterEvent.capture_logs(job_context, step_keys, log_key, captured)
        stack.callback(_end, threads)  # before the logs are closed
        while not active.is_complete:
            for step in active.get_steps_to_execute():
                context = job_context.for_step(step, active.get_known_state())
                threads[step.key] = threading.Thread(
                    target=_execute,
                    args=(context, outcomes),
                    name=f"{STEP_THREAD}{step.key}",
                    daemon=True,
                )
                threads[step.key].start()
            yield from active.concurrency_event_iterator(job_context)
            try:
                with raise_execution_interrupts():
                    step_key, outcome = outcomes.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(outcome, DagsterEvent):
                yield outcome
                active.handle_event(outcome)
                continue
            threads.pop(step_key).join()
            if outcome is not None:
                raise outcome
            active.verify_complete(job_context, step_key)
            yield from active.plan_events_iterator(job_context)


def _execute(
    context: StepExecutionContext, outcomes: queue.SimpleQueue[tuple[str, Outcome]]
) -> None:
    """What a step's thread does."""
    end: BaseException | None = None
    try:
        for event in dagster_event_sequence_for_step(context):
            outcomes.put((context.step.key, event))
    except BaseException as error:  # the run's thread raises it
        end = error
    outcomes.put((context.step.key, end))


def _end(threads: dict[str, threading.Thread]) -> None:
    """Interrupts the steps that still execute, as Ctrl-C does the main thread, and waits for them.
    None is left where the run came to its end.
    """
    interruption = ctypes.py_object(DagsterExecutionInterruptedError)
    for thread in threads.values():
        if thread.is_alive() and thread.ident:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), interruption)
    for thread in threads.values():
        thread.join()
