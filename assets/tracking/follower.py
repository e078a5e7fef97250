"""The process of a tracker beside MLflow: brings it up to date with the builds of a store, those of
the process that started it while they run.

    python -m assets.tracking.follower wandb|tensorboard PROJECT|FOLDER HOME

A build that a tracker begins again is sent from its first event: what was sent before is not sent
twice, as each client sees to (`wandb_run.py`, `tensorboard_file.py`). So only what is complete is
remembered (`state.py`), and this process may be killed at any time. Standard input's end means:
once more, and then end.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from assets.store.locks import locked
from assets.store.manifest import read_json
from assets.tracking import build_record, limits, state
from assets.tracking.event_log import EventReader, series
from assets.tracking.metric_names import of_manifest, of_series
from assets.tracking.outbox import next_pause
from assets.tracking.server import first_line
from assets.tracking.state import State

LOOK_SECONDS = 2.0  # between two looks at the store
ORPHAN_SECONDS = 20.0  # that it may outlive the process that started it


@dataclass(frozen=True)
class Finished:
    """How a build ended. Without `metrics` where it was not published."""

    status: str
    time: float
    step: int
    metrics: Mapping[str, float]
    counts: Mapping[str, float]
    digest: str | None


class TrackerRun(Protocol):
    """One build in a tracker, from its first event on."""

    def log(self, row: int, event: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """The numbers of an event, the `row`th that has some."""

    def flush(self) -> None:
        """All that is there has been logged."""

    def finish(self, finished: Finished) -> None:
        """Returns when the tracker has everything."""


class Tracker(Protocol):
    name: str  # as delivery.json has it
    title: str  # for a sentence

    def begin(self, folder: Path, build: Mapping[str, Any]) -> TrackerRun:
        """The run of a build; what is there of it is continued."""

    def is_there(self, build: Mapping[str, Any]) -> bool:
        """Whether what was delivered once is still there, as far as this can be known here."""

    def reset(self) -> None:
        """Something failed: every run that is open is begun again."""


class OpenRun:
    """A build that is being delivered. Holds the build's lock of this tracker."""

    def __init__(self, run: TrackerRun, began: float, lock: ExitStack) -> None:
        self.run, self.lock = run, lock
        self.reader = EventReader(Path())
        self.row = self.step = 0
        self.time = began

    def catch_up(self, folder: Path) -> None:
        """Logs what is new. The folder moves when the build is published."""
        self.reader.path = folder / "journal" / "events.jsonl"
        for event, _ in self.reader:
            self.time = event["time"]
            if event["kind"] in ("metrics", "system"):
                values = {limits.key(of_series(k)): value for k, value in event["values"].items()}
                self.run.log(self.row, event, values)
                self.row += 1
                if event["kind"] == "metrics":
                    self.step = max(self.step, event["step"])
        self.run.flush()


class Follower:
    """A tracker, and the builds of a store that it does not have whole."""

    def __init__(self, tracker: Tracker, home: Path, starter: int) -> None:
        """`starter`: the process whose running builds are followed."""
        self.tracker, self.home, self.starter = tracker, home, starter
        self.failures: dict[str, int] = {}  # of a build: those that fail come last
        self.is_behind = False
        self._open: dict[str, OpenRun] = {}
        self._complete: set[Path] = set()

    def look(self) -> str | None:
        """Brings running builds up to date, and one of the others; `is_behind` where there may be
        more. Returns a sentence where something keeps it from that.
        """
        self.is_behind = False
        records = build_record.builds(self.home)
        for folder, build in sorted(records, key=lambda each: self._urgency(*each)):
            try:
                if self._bring(folder, build):
                    self.is_behind = True
                    return None
            except Exception as error:
                self._reset()
                if not folder.is_dir():
                    continue  # it has just been published, or removed
                self.failures[build["build"]] = self.failures.get(build["build"], 0) + 1
                return (
                    f"{self.tracker.title}: {type(error).__name__}: "
                    f"{first_line(error).rstrip('.')}. The build goes on; what is left is sent "
                    "later, or by the next run."
                )
        return None

    def _urgency(self, folder: Path, build: Mapping[str, Any]) -> tuple[int, bool]:
        return self.failures.get(build["build"], 0), not build_record.runs_now(folder, build)

    def _bring(self, folder: Path, build: Mapping[str, Any]) -> bool:
        """True where a build was finished."""
        if folder in self._complete or self._is_anothers(folder, build):
            return False
        attempts = len(build["attempts"])
        known = state.load(folder, self.tracker.name)
        if known.complete and known.attempt == attempts and self.tracker.is_there(build):
            if folder.parent.name == "artifacts":
                self._complete.add(folder)
            return False
        if not (current := self._begin(folder, build)):
            return False
        current.catch_up(folder)
        status = build_record.status(folder, build, published=folder.parent.name == "artifacts")
        if status == "RUNNING":
            return False
        current.run.finish(_finished(folder, status, current))
        with state.delivering(folder):
            state.save(folder, self.tracker.name, State(attempt=attempts, complete=True))
        del self._open[build["build"]]
        current.lock.close()
        self.failures.pop(build["build"], None)
        return True

    def _is_anothers(self, folder: Path, build: Mapping[str, Any]) -> bool:
        """Whether the process that builds it sees to it."""
        process = build["attempts"][-1]
        mine = (process["host"], process["pid"]) == (socket.gethostname(), self.starter)
        return not mine and build_record.runs_now(folder, build)

    def _begin(self, folder: Path, build: Mapping[str, Any]) -> OpenRun | None:
        """None where another process delivers it."""
        if build["build"] not in self._open:
            lock = ExitStack()
            with suppress(TimeoutError):
                path = folder / "journal" / f"{type(self.tracker).__name__.lower()}.lock"
                lock.enter_context(locked(path, patience=0.0))
                try:
                    run = self.tracker.begin(folder, build)
                except BaseException:
                    lock.close()
                    raise
                began = build["attempts"][0]["began"]
                self._open[build["build"]] = OpenRun(run, began, lock)
        return self._open.get(build["build"])

    def _reset(self) -> None:
        with suppress(Exception):
            self.tracker.reset()
        for current in self._open.values():
            current.lock.close()
        self._open.clear()


def _finished(folder: Path, status: str, current: OpenRun) -> Finished:
    metrics: dict[str, float] = {}
    counts: dict[str, float] = {}
    digest = None
    if status == "FINISHED":
        manifest = read_json(folder / "artifact.json")
        metrics, counts = of_manifest(manifest, series(folder / "journal" / "events.jsonl"))
        digest = manifest["digest"]
    metrics = {limits.key(name): value for name, value in metrics.items()}
    return Finished(status, current.time, current.step, metrics, counts, digest)


def _wandb(project: str, home: Path) -> Tracker:
    from assets.tracking.wandb_run import WeightsAndBiases  # of an extra, as is the next

    return WeightsAndBiases(project, home)


def _tensorboard(folder: str, home: Path) -> Tracker:
    from assets.tracking.tensorboard_file import TensorBoard

    return TensorBoard(Path(folder))


TRACKERS: dict[str, Callable[[str, Path], Tracker]] = {"wandb": _wandb, "tensorboard": _tensorboard}


def main() -> None:
    kind, target, home = sys.argv[1:]
    follower = Follower(TRACKERS[kind](target, Path(home)), Path(home), os.getppid())
    over = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        over.set()
        over_for_good = threading.Timer(ORPHAN_SECONDS, os._exit, [1])
        over_for_good.daemon = True
        over_for_good.start()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    last, pause = None, 0.0
    while True:
        is_last = over.is_set()
        problem = follower.look()
        if problem != last:
            with suppress(OSError):  # nobody listens any more
                print(problem or "", flush=True)
        last = problem
        if over.is_set() and (problem or (is_last and not follower.is_behind)):
            os._exit(0)  # what is not finished is begun again by the next run
        pause = next_pause(pause) if problem else LOOK_SECONDS
        if not follower.is_behind:
            over.wait(pause)


if __name__ == "__main__":
    main()
