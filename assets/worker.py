"""What runs inside a launched process: one rank of one stage. `python -m assets.worker BUILDING`.

It reads BUILDING/job.json, runs the stage, and on rank 0 makes its checks and pictures and leaves
result.json. What it has to say goes to the journal on disk (delivered by the orchestrator, see
`resources/journal.py`) and, live, through Dagster Pipes. It imports neither MLflow nor Dagster
itself; torch only if the stage does.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import sqlite3
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

from dagster_pipes import PipesContext, open_dagster_pipes

from assets.contract import Artifact, Built, Stage
from assets.recipe.profile import Profile
from assets.store.manifest import FULL, full_disk
from assets.store.store import Building, Store
from assets.tracking.event_log import Spool, series, texts
from gpt_model.disk import write_json
from gpt_model.errors import UserError

SPOKEN_EVERY_SECONDS = 5.0  # metrics in the Dagster run's log; the journal has every one


class SpooledProgress:
    """`Progress` into the journal, and what a person would follow into the Dagster run's log."""

    def __init__(
        self,
        spool: Spool | None,
        pipes: PipesContext | None,
        rank: int,
        world_size: int,
        profile: Profile,
    ) -> None:
        self.rank, self.world_size, self.profile = rank, world_size, profile
        self._spool, self._pipes = spool, pipes
        self._spoken: dict[
            frozenset[str], float
        ] = {}  # names of metrics → when they were last in the run's log

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if self._spool is None:
            return
        self._spool.metrics(step, values)
        now, names = (
            time.monotonic(),
            frozenset(values),
        )  # an evaluation among the steps is no step: it has a clock of its own
        if self._pipes and now - self._spoken.get(names, float("-inf")) >= SPOKEN_EVERY_SECONDS:
            self._spoken[names] = now
            self._pipes.log.info(
                f"step {step}: "
                + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            )

    def text(self, step: int, name: str, text: str) -> None:
        if self._spool is not None:
            self._spool.text(step, name, text)
            if self._pipes:
                self._pipes.log.info(f"step {step}, {name}: {text}")

    def log(self, message: str) -> None:
        if self._spool is not None:
            self._spool.log(message)
            if self._pipes:
                self._pipes.log.info(message)

    def advance(self, done: float, total: float, unit: str) -> None:
        if self._spool is not None:
            self._spool.advance(done, total, unit)


def stage_named(path: str) -> Stage:
    """The Stage at "module:ATTRIBUTE"."""
    module, _, attribute = path.partition(":")
    stage = getattr(importlib.import_module(module), attribute)
    if not isinstance(stage, Stage):
        raise TypeError(f"{path} is a {type(stage).__name__}, not a Stage")
    return stage


def run_job(building: Building, store: Store, rank: int, world_size: int) -> None:
    """Run one rank of the job in `building`; rank 0 leaves result.json there."""
    job = json.loads(building.job.read_text())
    profile = Profile.model_validate(job["profile"])
    stage = stage_named(job["stage"])
    inputs = {name: _published(store, fingerprint) for name, fingerprint in job["inputs"].items()}
    if rank:
        stage.run(
            job["config"],
            inputs,
            building.files,
            SpooledProgress(None, None, rank, world_size, profile),
        )
        return
    with ExitStack() as stack:
        pipes = (
            stack.enter_context(open_dagster_pipes())
            if "DAGSTER_PIPES_CONTEXT" in os.environ
            else None
        )
        spool = stack.enter_context(closing(Spool(building.events, {"pid": os.getpid()})))
        started = time.monotonic()
        metrics = stage.run(
            job["config"],
            inputs,
            building.files,
            SpooledProgress(spool, pipes, rank, world_size, profile),
        )
        stage_seconds = time.monotonic() - started
        built = Built(
            job["config"],
            inputs,
            building.files,
            metrics,
            series(building.events),
            texts(building.events),
        )
        verdicts = {check.name: asdict(check.verdict(built)) for check in stage.checks}
        shutil.rmtree(building.show, ignore_errors=True)
        building.show.mkdir()
        stage.show(built, building.show)
    write_json(
        building.result, {"metrics": metrics, "verdicts": verdicts, "stage_seconds": stage_seconds}
    )


def _published(store: Store, fingerprint: str) -> Artifact:
    artifact = store.find(fingerprint)
    assert artifact is not None, f"{fingerprint} was there when the build began"
    return artifact


def sentence(error: BaseException, folder: Path) -> str | None:
    """What a person should read of `error`, where it is theirs to act on; None for a defect of
    ours. `folder`: where the job writes.
    """
    if isinstance(error, UserError):
        return str(error)
    return full_disk(folder, getattr(error, "filename", None)) if _disk_is_full(error) else None


def _disk_is_full(error: BaseException) -> bool:
    """Also in the words of SQLite and safetensors, whose errors are no OSError."""
    if isinstance(error, OSError):
        return error.errno in FULL
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return type(error).__name__ == "SafetensorError" and f"(os error {errno.ENOSPC})" in str(error)


def main() -> int:
    folder = Path(sys.argv[1]).resolve()  # HOME/building/FINGERPRINT
    building = Building(folder, folder.name)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        run_job(building, Store(folder.parent.parent), rank, world_size)
    except Exception as error:
        traceback.print_exc()
        return _leave_word(building, rank, error)
    return 0


def _leave_word(building: Building, rank: int, error: Exception) -> int:
    """failure.json, for whoever waits. Returns the exit status, which alone says it where the disk
    is too full for even that.
    """
    told = sentence(error, building.folder)
    failure = {
        "message": told or f"{type(error).__name__}: {error}",
        "user": told is not None,
        "field": getattr(error, "field", None),
        "rank": rank,
        "traceback": traceback.format_exc(),
    }
    try:  # the first rank to fail is the one to blame; the others fail because it did
        with building.failure.open("x") as file:
            json.dump(failure, file)
    except FileExistsError:
        pass
    except OSError:
        building.failure.unlink(missing_ok=True)
    return errno.ENOSPC if _disk_is_full(error) else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(
        code
        # what is worth writing is written; interpreter teardown of torch and gloo takes seconds and may
        # hang
    )
