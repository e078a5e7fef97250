"""Tracking: one MLflow run a build of an artifact, kept up to date from what is on disk.

`begin` writes what a build is into `journal/build.json`, its worker appends to
`journal/events.jsonl`, and `delivery.py` brings both to MLflow whenever that answers. So nothing
here can stop or slow a build: a server that is down leaves events on disk, `outbox.py` limits how
long anybody waits for it, and `deliver_pending` delivers them another time.

`server.py` knows where MLflow is, and imports it at the first call.
"""

from __future__ import annotations

import functools
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.contract import Artifact, Config
from assets.store.manifest import read_json
from assets.store.provenance import git_state
from assets.store.store import Building
from assets.tracking import build_record, session, state
from assets.tracking.build_record import builds, runs_now
from assets.tracking.outbox import (
    PAUSES,
    PROMPT_SECONDS,
    Delivered,
    Outbox,
    Say,
    next_pause,
    this_process,
)
from assets.tracking.server import TRAINING, Server, first_line, importing_mlflow
from assets.tracking.state import State, delivering
from gpt_model.errors import CorruptFile
from gpt_model.io import write_json
from gpt_model.redaction import redacted

STREAM_SECONDS = 2.0  # between two deliveries while a build runs
DELIVER_SECONDS = 600.0  # for one build, where somebody waits for nothing else
LATER = "what is left is delivered in the background, or by the next run."


@dataclass(frozen=True)
class Build:
    """What is being built, as MLflow is to know it."""

    recipe: str
    stage: str
    version: str
    fingerprint: str
    config: Config
    inputs: Mapping[str, Artifact]
    model: bool = False
    description: str = ""


class Tracking:
    """What the wrapper and the command line say and ask. What goes wrong with the server is told in
    a `Delivered`, never raised.
    """

    def __init__(self, home: Path, uri: str | None = None) -> None:
        """`uri`: of the server, unless it is the one of the environment or the store's own."""
        self.home = home
        self.server = Server(home, uri, lambda sentence: self.outbox.report(sentence, always=True))

    @property
    def outbox(self) -> Outbox:
        """The one of this store and server, in this process."""
        return _outbox(self.home, self.server.uri)

    def serve(self, dagster_run: str | None, say: Say) -> None:
        """Once a run, in the background: delivers what earlier ones left, and goes on until all is
        delivered or the process ends.

        `say` hears of the first problem.
        """
        self.outbox.serve(dagster_run, say)
        from assets.tracking import other_trackers  # off by default, and no build needs it

        other_trackers.follow(self.home, say)
        if dagster_run:
            _served[dagster_run] = self

    def cache_hit(self, recipe: str, stage: str, fingerprint: str, dagster_run: str | None) -> None:
        """Says that an artifact was there already: the session's run links to it."""
        with suppress(OSError):  # on a full disk what is there is found all the same
            session.record(self.home, recipe, dagster_run, stage, fingerprint, built=False)

    def end(self, dagster_run: str, succeeded: bool) -> None:
        """Says that a Dagster run ended, to MLflow too while there is patience with it."""
        for folder, record in session.sessions(self.home):
            if record["dagster_run"] != dagster_run or not session.end(folder, succeeded):
                continue
            if deadline := self.outbox.patience(5.0):
                began = time.monotonic()
                _within(deadline, functools.partial(self._push_session, folder))
                self.outbox.waited(began)

    def begin(self, building: Building, build: Build, dagster_run: str | None = None) -> None:
        """Says what `building` is, or that another attempt at it begins: that one continues the
        same MLflow run.
        """
        path = building.journal / "build.json"
        known = build_record.read(path) or {"build": uuid.uuid4().hex, "attempts": []}
        attempt = {
            "dagster_run": dagster_run,
            "session": session.record(
                self.home, build.recipe, dagster_run, build.stage, build.fingerprint, built=True
            ),
            "began": time.time(),
            **this_process(self.home),
        }
        facts = {
            "build": known["build"],
            "recipe": build.recipe,
            "stage": build.stage,
            "version": build.version,
            "fingerprint": build.fingerprint,
            "config": build.config,
            "inputs": [_input(name, artifact) for name, artifact in build.inputs.items()],
            "model": build.model,
            "description": build.description,
            "git": git_state(),
            "attempts": [*known["attempts"], attempt],
            "failure": None,
        }
        write_json(path, facts)

    def failed(self, building: Building, reason: str) -> None:
        """Says that this attempt failed, and why, to MLflow too while there is patience with it."""
        path = building.journal / "build.json"
        with suppress(
            OSError, CorruptFile
        ):  # on a full disk what is said goes unwritten; it must not stand in the failure's place
            write_json(path, read_json(path) | {"failure": redacted(reason)})
        self.finish(building.folder, at_most=5.0)

    def finish(self, folder: Path, at_most: float = 15.0) -> None:
        """Brings MLflow up to date with a build that ended. Once that was waited for in vain, no
        build of the run waits again.
        """
        problem = f"MLflow at {self.server.address} did not answer in time; {LATER}"
        delivered = Delivered(None, complete=False, problem=problem)
        if deadline := self.outbox.patience(at_most):
            began = time.monotonic()
            delivered = self.deliver(folder, deadline)
            self.outbox.waited(began, in_vain=not delivered.complete)
        if delivered.problem:
            self.outbox.report(delivered.problem)
        if not delivered.complete:
            self.outbox.request()

    @contextmanager
    def stream(self, building: Building) -> Iterator[None]:
        """Delivers in the background, every two seconds while the block runs; more seldom while the
        server does not answer.

        What is raised in the block, an interruption included, is the attempt's failure.
        """
        over = threading.Event()

        def deliver_often() -> None:
            pause = 0.0
            while not over.wait(pause):
                problem = self._push(building.folder).problem
                pause = next_pause(pause) if problem else STREAM_SECONDS

        thread = threading.Thread(target=deliver_often, name="mlflow delivery", daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            over.set()
            self.failed(building, f"{type(error).__name__}: {error}".rstrip(": "))
            raise
        finally:
            over.set()
            began = time.monotonic()
            thread.join(
                self.outbox.patience(5.0)
            )  # a server may hold it longer; what it then delivers is not delivered twice
            self.outbox.waited(began)

    def deliver(self, folder: Path, deadline: float = 15.0) -> Delivered:
        """Brings MLflow up to date with a building's or an artifact's folder, waiting at most
        `deadline` seconds.
        """
        result: list[Delivered] = []
        thread = threading.Thread(
            target=lambda: result.append(self._push(folder)), name="mlflow delivery", daemon=True
        )
        thread.start()
        thread.join(deadline)
        if result:
            return result[0]
        problem = (
            f"MLflow at {self.server.address} has not answered within {deadline:.3g} s; {LATER}"
        )
        return Delivered(self._run_id(folder), complete=False, problem=problem)

    def deliver_pending(self, deadline: float = 10.0) -> list[Delivered]:
        """Delivers what earlier runs left and what somebody removed from MLflow, and sets right the
        runs of processes that died. Costs nothing where all is delivered.
        """
        ends = time.monotonic() + deadline
        _within(min(deadline, PROMPT_SECONDS), self._forget_removed)
        deliveries = []
        for folder in self._undelivered():
            if time.monotonic() >= ends:
                break
            deliveries.append(self.deliver(folder, max(0.1, ends - time.monotonic())))
        for folder, record in session.sessions(self.home):
            ended = session.status(self.home, record) != "RUNNING"
            if ended and not session.any_built(record):
                session.end(folder, succeeded=False)  # it was killed before it could forget itself
            elif ended and not self._is_delivered_session(folder):
                _within(
                    max(0.1, ends - time.monotonic()), functools.partial(self._push_session, folder)
                )
        return deliveries

    @property
    def builds(self) -> int:
        """How many builds the store has, published or not."""
        return len(builds(self.home))

    def deliver_again(self) -> Iterator[Delivered]:
        """Delivers every build of the store from its beginning, but for those that run now: also
        what MLflow had of it once. Patient with the server.
        """
        for folder, record in session.sessions(self.home):
            if session.status(self.home, record) != "RUNNING":
                with delivering(folder):
                    state.save(folder, self.server.name, State())
        for folder, build in builds(self.home):
            if not runs_now(folder, build):
                with delivering(folder):
                    state.save(folder, self.server.name, State())
                yield self.deliver(folder, DELIVER_SECONDS)

    def run_of(self, built: Artifact | Building) -> str | None:
        """The id of the MLflow run of a build, where it has one yet."""
        return self._run_id(built.folder if isinstance(built, Building) else built.path.parent)

    def dagster_runs(self, building: Building) -> list[str]:
        """The ids of the Dagster runs that took part in a build, in order."""
        build = build_record.read(building.journal / "build.json") or {"attempts": []}
        return list(
            dict.fromkeys(each["dagster_run"] for each in build["attempts"] if each["dagster_run"])
        )

    def run_url(self, run_id: str) -> str:
        """The page of an MLflow run."""
        return f"{self.server.ui}/#/runs/{run_id}?workflowType={TRAINING}"

    def _push(self, folder: Path) -> Delivered:
        if not (folder / "journal" / "build.json").is_file():  # made by no build of ours
            return Delivered(None, complete=True)
        try:
            with importing_mlflow():
                # Takes 1 s and 120 MB, which commands that only read the store do without.
                from assets.tracking.delivery import Delivery
            with delivering(folder):
                return Delivery(folder, self.server).push()
        except Exception as error:
            problem = (
                f"MLflow at {self.server.address}: {type(error).__name__}: {first_line(error)}. "
                f"{LATER.capitalize()}"
            )
            return Delivered(self._run_id(folder), complete=False, problem=problem)

    def _is_delivered_session(self, folder: Path) -> bool:
        delivered = state.load(folder, self.server.name)
        return delivered.complete and delivered.dagster_ui == self.server.dagster_ui

    def _push_session(self, folder: Path) -> None:
        """What goes wrong here went wrong with a build of the session too, which says so."""
        with suppress(Exception):
            with importing_mlflow():
                from assets.tracking.parent_run import ParentRun  # as above
            with delivering(folder):
                ParentRun(folder, self.server).push()

    def _undelivered(self) -> list[Path]:
        """The folders of builds that MLflow has not heard the end of."""
        return [
            folder for folder, build in builds(self.home) if self._is_undelivered(folder, build)
        ]

    def _is_undelivered(self, folder: Path, build: Mapping[str, Any]) -> bool:
        if runs_now(folder, build):
            return False  # its own process sees to it
        delivered = state.load(folder, self.server.name)
        return not (
            delivered.complete
            and delivered.attempt == len(build["attempts"])
            and delivered.dagster_ui in ("", self.server.dagster_ui)
            and delivered.parent == self._parent(build)
        )

    def _parent(self, build: Mapping[str, Any]) -> str | None:
        """The id of the run of the session that built it last, where the server has it."""
        name = build["attempts"][-1].get("session")  # none in a build of an earlier commit
        return self._run_id(self.home / session.SESSIONS / name) if name else None

    def _forget_removed(self) -> None:
        """Forgets the deliveries whose run the server does not have any more: somebody deleted it
        or its experiment, or the server is another at the same address.
        """
        delivered = {
            run: (folder, build["recipe"])
            for folder, build in builds(self.home)
            if (run := self._run_id(folder)) and not runs_now(folder, build)
        }
        delivered |= {
            run: (folder, record["recipe"])
            for folder, record in session.sessions(self.home)
            if (run := self._run_id(folder))
        }
        if not delivered:
            return
        with suppress(Exception):  # a server that does not answer has its problem elsewhere
            active = self.server.active({run: recipe for run, (_, recipe) in delivered.items()})
            for run in delivered.keys() - active:
                folder, _ = delivered[run]
                with delivering(folder):
                    if self._run_id(folder) == run:
                        state.save(folder, self.server.name, State())

    def _run_id(self, folder: Path) -> str | None:
        return state.load(folder, self.server.name).run_id


def _within(seconds: float, act: Callable[[], None]) -> None:
    """Does `act`, and waits at most `seconds` for its end."""
    thread = threading.Thread(target=act, name="mlflow look", daemon=True)
    thread.start()
    thread.join(seconds)


_served: dict[str, Tracking] = {}  # Dagster run -> who tracks it, in this process


def end_run(dagster_run: str, succeeded: bool) -> None:
    """Says to whoever tracks it here that a Dagster run ended."""
    if tracking := _served.pop(dagster_run, None):
        tracking.end(dagster_run, succeeded)


@functools.cache
def _outbox(home: Path, uri: str) -> Outbox:
    tracking = Tracking(home, uri)
    return Outbox(
        lambda: [
            delivered.problem
            for delivered in tracking.deliver_pending(PAUSES[1])
            if delivered.problem
        ]
    )


def _input(name: str, artifact: Artifact) -> dict[str, Any]:
    files = artifact.manifest.get("files", [])
    sizes = {"files": len(files), "bytes": sum(entry["size"] for entry in files)}
    return {
        "name": name,
        "stage": artifact.stage,
        "fingerprint": artifact.fingerprint,
        "digest": artifact.digest,
        **sizes,
    }
