"""Dagster runs that the command line starts: one process, one run of a recipe's job, in the same
history that the UI shows. A scaling ladder takes several runs (`dagster_runs`).

The work is in the worker's process tree, which dies with this process. `executor.py` closes the
runs of processes that were killed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.utils import make_new_run_id
from dagster._utils.interrupts import capture_interrupts, setup_interrupt_handlers

from assets.dagster_storage import make_pools
from assets.lineage import Lineage, dagster_history, prepare_home
from assets.node import Node
from assets.recipe.recipe import RECIPES
from assets.recipe.yaml_file import here_and, named_files
from assets.stage import VERIFIED
from assets.stages.ladder import dagster_runs
from assets.store.manifest import full_disk
from assets.store.recipes import record
from assets.store.remote import finish_pushes, remote_of
from assets.store.store import SHORT
from assets.tracking import other_trackers
from pipelines.definitions import DISPLAY, RecipeFile, build_defs
from pipelines.executor import ENDING, close_lost_runs, process_tags
from pipelines.progress import BuildDisplay, duration
from pipelines.side_by_side import STEP_THREAD

# Names of Dagster's error classes, which events carry without the class.
INTERRUPTIONS = ("DagsterExecutionInterruptedError", "KeyboardInterrupt")
RETRYING = ("RetryRequested", "RetryRequestedFromPolicy", "DagsterMaxRetriesExceededError")
FULL_DISK = re.compile("disk is full|disk I/O error")  # as SQLite puts it
CANCEL_POLL_SECONDS = 0.5  # between two looks whether the page has ended the run


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


def run_recipe(
    file: RecipeFile, chosen: Sequence[Node], profile: str, home: Path, display: BuildDisplay
) -> RunReport:
    """Build the `chosen` assets of the recipe in this process through its Dagster job. SIGTERM and
    Ctrl-C end the run, with its workers.
    """
    remote_of(home)  # what is wrong with its address is said before anything is built
    prepare_home(home)
    if file.path not in named_files(here_and(RECIPES)).values():
        record(home, file.recipe.name, file.path)
    setup_interrupt_handlers()  # SIGTERM as Ctrl-C
    graph = file.nodes
    names = {node.name for node in chosen}
    feed = _EventFeed(display, step_keys(graph), home)
    lineage = Lineage(home=str(home), profile=profile)
    definitions = build_defs(
        [file], resource_overrides={"lineage": lineage}, display=feed.definition()
    )
    job = definitions.resolve_job_def(file.recipe.name)
    # An interruption waits for the steps, or Dagster's record of the run would stay half written.
    with dagster_history() as instance, capture_interrupts(), _quiet():
        for sentence in close_lost_runs(instance):
            display.say(sentence)
        make_pools(instance, (node.stage.pool for node in graph if node.stage.pool))
        for part in dagster_runs(graph):
            if not (nodes := [node for node in part if node.name in names]):
                continue
            run = _created(job, nodes, profile, instance)
            feed.report.run_id = run.run_id
            with _ended_by_the_page(instance, run.run_id):
                result = execute_run(InMemoryJob(job), run, instance)
            feed.report.succeeded = result.success
            if not result.success:
                break
    if not feed.report.interrupted:
        deliveries = lineage.tracking().deliver_pending()
        for problem in dict.fromkeys(delivery.problem for delivery in deliveries):
            if problem:
                display.say(f"  {problem}")
        for problem in (*other_trackers.finish(), *finish_pushes()):
            display.say(f"  {problem}")
    return feed.report


def step_keys(graph: Sequence[Node]) -> dict[str, str]:
    """Dagster's key of the step of each asset -> recipe/stage."""
    return {dg.AssetKey(node.key).to_python_identifier(): node.ref for node in graph}


def _created(
    job: dg.JobDefinition, part: Sequence[Node], profile: str, instance: dg.DagsterInstance
) -> dg.DagsterRun:
    """A run of the job's assets `part`, which this process is to execute."""
    run_id = make_new_run_id()
    return instance.create_run_for_job(
        job,
        run_id=run_id,
        tags={**job.run_tags, **process_tags(instance, run_id)},
        run_config=run_config(profile),
        asset_selection={dg.AssetKey(node.key) for node in part},
    )


def run_config(profile: str) -> dict[str, Any]:
    """What the page shows of the run, and executes it again with."""
    return {"loggers": {DISPLAY: {}}, "resources": {"lineage": {"config": {"profile": profile}}}}


@contextlib.contextmanager
def _ended_by_the_page(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Interrupts this process when the page's Terminate button has been pressed, which reaches only
    runs that the page launched and marks others as CANCELING.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(CANCEL_POLL_SECONDS):
            run = instance.get_run_by_id(run_id)
            if run is not None and run.status in ENDING:
                # Ctrl-C and SIGTERM make a run CANCELING, too. No step runs by then, and a second
                # interruption is raised nowhere: `capture_interrupts` has it.
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=watch, name="Terminate button", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Limits Dagster's loggers to warnings, as the feed shows the rest, and the database's to
    nothing: it logs the traceback of an interruption, which goes on all the same.

    What is printed beside that is held back to the end. Where the disk is full, Dagster prints a
    page for each event that finds no room, also from threads: a sentence says it instead.
    """
    levels = {"dagster": logging.WARNING, "sqlalchemy.pool": logging.CRITICAL}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        if not FULL_DISK.search(printed.getvalue()):
            sys.stderr.write(printed.getvalue())


class _EventFeed(logging.Handler):
    """A Dagster logger that shows a run's events on the display, and records how the run ended."""

    def __init__(self, display: BuildDisplay, assets: Mapping[str, str], home: Path) -> None:
        """`assets`: Dagster's step key -> recipe/stage."""
        super().__init__(logging.DEBUG)  # the beginning of a step is a debug message
        self.display, self.assets, self.home = display, assets, home
        self.report = RunReport()

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
        elif _of_a_step(record) and logging.INFO <= record.levelno < logging.ERROR:
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
        elif kind == dg.DagsterEventType.RUN_CANCELED:
            self.report.interrupted = True
        elif kind == dg.DagsterEventType.RUN_FAILURE:
            # of a failed step there is no error here: `_failed` has recorded it
            if (error := event.job_failure_data.error) and not self.report.failures:
                self.report.failures.append(message_of(error))
        elif kind == dg.DagsterEventType.STEP_UP_FOR_RETRY:
            message = message_of(event.step_retry_data.error)
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
            if at := metadata.get(VERIFIED):  # a large artifact's: once a week
                how += f" on {datetime.fromtimestamp(at):%Y-%m-%d %H:%M} and not changed since"
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
        if is_interruption(error):
            how = "interrupted; what it built so far is kept and resumed by the next run"
        elif _is(error, "DagsterAssetCheckFailedError"):  # `_checked` has recorded which
            how = "a blocking check failed: nothing is built from it"
        else:
            message = full_disk(self.home) if FULL_DISK.search(error.message) else message_of(error)
            self.report.failures.append(f"{asset}: {message}")
            how = "failed"
        self.display.ended(asset, f"! {asset:<28} {how}")


def _of_a_step(record: logging.LogRecord) -> bool:
    return (record.threadName or "").startswith(("MainThread", STEP_THREAD))


def is_interruption(error: Any) -> bool:
    """Whether a step's error is that somebody ended the run."""
    return any(each and _is(each, *INTERRUPTIONS) for each in (error, error.cause))


def message_of(error: Any) -> str:
    """The stage's message: without Dagster's wrapping of a retry and the class name before it."""
    while error.cause is not None and _is(error, *RETRYING):
        error = error.cause
    return error.message.strip().removeprefix("dagster._core.definitions.events.Failure: ").strip()


def _is(error: Any, *names: str) -> bool:
    return (error.cls_name or "").rsplit(".", 1)[-1] in names
