"""Dagster runs that the command line starts: one process, one run of a recipe's job, in the same
history that the UI shows. A scaling ladder takes several runs (`dagster_runs`).

The work is in the worker's process tree, which dies with this process. Dagster's record of a run
whose process was killed with -9 stays STARTED for ever, so the next start closes such runs, by
host, pid and the process's start time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import DagsterRunStatus, RunsFilter
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import RunFailureReason
from dagster._utils.interrupts import setup_interrupt_handlers

from assets.launch import guard
from assets.lineage import Lineage, prepare_home
from assets.stages.ladder import dagster_runs
from assets.store.store import SHORT
from pipelines.definitions import RecipeFile, build_defs
from pipelines.progress import BuildDisplay, duration

# Tags of a run.
HOST, PID, STARTED = "gpt-lineage/host", "gpt-lineage/pid", "gpt-lineage/process_started"
# Names of Dagster's error classes, which events carry without the class.
INTERRUPTIONS = ("DagsterExecutionInterruptedError", "KeyboardInterrupt")
RETRYING = ("RetryRequested", "RetryRequestedFromPolicy", "DagsterMaxRetriesExceededError")
UNFINISHED = [
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


@dataclass
class RunReport:
    """How a run ended. The display has shown a line for each asset; this is for the summary."""

    run_id: str = ""
    succeeded: bool = False
    interrupted: bool = False
    reused: int = 0  # artifacts
    built: int = 0
    failures: list[str] = field(default_factory=list)  # a sentence each
    failed_checks: list[str] = field(default_factory=list)


def run_recipe(file: RecipeFile, profile: str, home: Path, display: BuildDisplay) -> RunReport:
    """Build the recipe in this process through its Dagster job. SIGTERM and Ctrl-C end the run,
    with its workers.
    """
    prepare_home(home)
    setup_interrupt_handlers()  # SIGTERM as Ctrl-C, outside the steps too
    graph = file.nodes
    feed = _EventFeed(display, {"__".join(node.key): node.ref for node in graph})
    lineage = Lineage(home=str(home), profile=profile)
    definitions = dg.Definitions.merge(
        build_defs([file], resource_overrides={"lineage": lineage}),
        dg.Definitions(loggers={"display": feed.definition()}),
    )
    with dg.DagsterInstance.get() as instance:
        for sentence in close_lost_runs(instance):
            display.say(sentence)
        with _quiet():
            try:
                for part in dagster_runs(graph):
                    result = definitions.resolve_job_def(file.recipe.name).execute_in_process(
                        instance=instance,
                        raise_on_error=False,
                        tags=process_tags(),
                        run_config={"loggers": {"display": {}}},
                        asset_selection=[dg.AssetKey(node.key) for node in part],
                    )
                    feed.report.run_id, feed.report.succeeded = result.run_id, result.success
                    if not result.success:
                        break
            except (KeyboardInterrupt, DagsterExecutionInterruptedError):
                feed.report.interrupted = True
    if not feed.report.interrupted:
        deliveries = lineage.tracking().deliver_pending()
        for problem in dict.fromkeys(delivery.problem for delivery in deliveries):
            if problem:
                display.say(f"  {problem}")
    return feed.report


def process_tags() -> dict[str, str]:
    """Tags that identify this process."""
    return {
        HOST: socket.gethostname(),
        PID: str(os.getpid()),
        STARTED: str(guard.started(os.getpid())),
    }


def close_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """Close each unfinished run of the command line whose process is gone, and free its slots in
    pools. Returns a sentence for each.
    """
    sentences = []
    unfinished = RunsFilter(statuses=UNFINISHED, tags={HOST: socket.gethostname()})
    for record in instance.get_run_records(unfinished):
        run = record.dagster_run
        if _alive(run.tags):
            continue
        message = (
            f"The process of this run (pid {run.tags[PID]}) ended without a word; it was killed, "
            "or the machine went down."
        )
        if run.status == DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, message)
        else:
            instance.report_run_failed(run, message)
        with contextlib.suppress(NotImplementedError):
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        sentences.append(
            f"Dagster run {run.run_id[:8]} of {run.job_name} had lost its process; closed. "
            "What it built so far is resumed."
        )
    return sentences


def _alive(tags: Mapping[str, str]) -> bool:
    return guard.started(int(tags[PID])) == tags[STARTED]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Limits Dagster's loggers to warnings: the feed shows the rest."""
    logger = logging.getLogger("dagster")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


class _EventFeed(logging.Handler):
    """A Dagster logger that shows a run's events on the display, and records how the run ended."""

    def __init__(self, display: BuildDisplay, assets: Mapping[str, str]) -> None:
        """`assets`: Dagster's step key -> recipe/stage."""
        super().__init__(logging.DEBUG)  # the beginning of a step is a debug message
        self.display, self.assets, self.report = display, assets, RunReport()

    def definition(self) -> dg.LoggerDefinition:
        def display_logger(context: dg.InitLoggerContext) -> logging.Logger:
            logger = logging.Logger("gpt-lineage display", logging.DEBUG)
            logger.addHandler(self)
            return logger

        return dg.LoggerDefinition(display_logger, description="the command line's display")

    def emit(self, record: logging.LogRecord) -> None:
        meta: dict[str, Any] = record.dagster_meta  # type: ignore[attr-defined]
        event = meta["dagster_event"]
        if event is not None:
            self._event(event)
        # The worker's messages come from a reader's thread; the display reads them in the journal.
        elif record.threadName == "MainThread" and logging.INFO <= record.levelno < logging.ERROR:
            asset, message = self.assets.get(meta["step_key"] or "", ""), meta["orig_message"]
            # `_materialized` shows more than the wrapper's last message, "recipe/stage: built …"
            if not message.startswith((f"{asset}: ", "[pipes]")):
                self.display.say(f"  {asset}: {message}")

    def _event(self, event: Any) -> None:
        kind = event.event_type
        if kind == dg.DagsterEventType.STEP_START:
            self.display.began(self.assets[event.step_key])
        elif kind == dg.DagsterEventType.ASSET_MATERIALIZATION:
            self._materialized(event)
        elif kind == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            self._checked(event.asset_check_evaluation_data)
        elif kind == dg.DagsterEventType.STEP_FAILURE:
            self._failed(event)
        elif kind == dg.DagsterEventType.RUN_FAILURE:
            reason = event.job_failure_data.failure_reason
            if reason == RunFailureReason.UNEXPECTED_TERMINATION:  # between two steps
                self.report.interrupted = True
        elif kind == dg.DagsterEventType.STEP_UP_FOR_RETRY:
            message = _message(event.step_retry_data.error)
            self.display.say(
                f"  {self.assets[event.step_key]}: {message}\n"
                "  It is tried once more, from where it was."
            )

    def _materialized(self, event: Any) -> None:
        materialization = event.step_materialization_data.materialization
        asset = "/".join(materialization.asset_key.path)
        metadata = {name: value.value for name, value in materialization.metadata.items()}
        if metadata.get("found"):
            self.report.reused += 1
            sign, how = "=", "found, files verified"
        else:
            self.report.built += 1
            sign, how = "+", f"built in {duration(metadata['duration (s)'])}"
        line = f"{sign} {asset:<28} {metadata['fingerprint'][:SHORT]}  {how}"
        self.display.ended(asset, line)

    def _checked(self, check: Any) -> None:
        if check.passed:
            return
        asset = "/".join(check.asset_key.path)
        blocking = check.severity == dg.AssetCheckSeverity.ERROR
        kind = "blocking check" if blocking else "check"
        sentence = f"{asset}: the {kind} {check.check_name!r} failed: {check.description}"
        if blocking:
            self.report.failed_checks.append(sentence)
        else:
            self.display.say(f"  warning: {sentence}")

    def _failed(self, event: Any) -> None:
        asset, error = self.assets[event.step_key], event.step_failure_data.error
        if _is(error, *INTERRUPTIONS) or (error.cause and _is(error.cause, *INTERRUPTIONS)):
            self.report.interrupted = True
            how = "interrupted; what it built so far is kept and resumed by the next run"
        elif _is(error, "DagsterAssetCheckFailedError"):  # `_checked` has recorded which
            how = "a blocking check failed: nothing is built from it"
        else:
            self.report.failures.append(f"{asset}: {_message(error)}")
            how = "failed"
        self.display.ended(asset, f"! {asset:<28} {how}")


def _message(error: Any) -> str:
    """The stage's message: without Dagster's wrapping of a retry and the class name before it."""
    while error.cause is not None and _is(error, *RETRYING):
        error = error.cause
    return error.message.strip().removeprefix("dagster._core.definitions.events.Failure: ").strip()


def _is(error: Any, *names: str) -> bool:
    return (error.cls_name or "").rsplit(".", 1)[-1] in names
