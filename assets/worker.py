"""What runs inside a launched process: one rank of one stage. `python -m assets.worker BUILDING`.

It reads BUILDING/job.json, runs the stage, and on rank 0 judges the checks, draws the pictures and
writes result.json. It reports to the event log on disk, which the orchestrator delivers
(`tracking/`), and live through Dagster Pipes. It imports neither MLflow nor Dagster itself; torch
only if the stage does.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from pathlib import Path

from dagster_pipes import PipesContext, open_dagster_pipes

from assets.contract import (
    Artifact,
    Built,
    Config,
    Inputs,
    Metrics,
    Stage,
    Verdict,
    not_run_reason,
    write_not_run,
)
from assets.launch.system_metrics import sampled
from assets.recipe.profile import Profile
from assets.stages import stage_named
from assets.store.manifest import disk_is_full, full_disk
from assets.store.store import Building, Store
from assets.tracking.event_log import EventWriter, series, texts
from gpt_model.errors import Unavailable, UserError, sentence_of
from gpt_model.io import write_json
from gpt_model.redaction import redact_output, redacted

LOG_EVERY_SECONDS = 5.0  # metrics in the Dagster run's log; the event log has every one


class LoggedProgress:
    """`Progress` into the event log, and what a person follows into the Dagster run's log."""

    def __init__(
        self,
        events: EventWriter | None,
        pipes: PipesContext | None,
        rank: int,
        world_size: int,
        profile: Profile,
    ) -> None:
        self.rank, self.world_size, self.profile = rank, world_size, profile
        self._events, self._pipes = events, pipes
        # names of metrics -> when the run's log had them last
        self._logged: dict[frozenset[str], float] = {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if self._events is None:
            return
        self._events.metrics(step, values)
        # An evaluation among the steps has other names, and so a clock of its own.
        now, names = time.monotonic(), frozenset(values)
        if self._pipes and now - self._logged.get(names, float("-inf")) >= LOG_EVERY_SECONDS:
            self._logged[names] = now
            self._pipes.log.info(
                f"step {step}: "
                + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            )

    def text(self, step: int, name: str, text: str) -> None:
        if self._events is not None:
            text = redacted(text)
            self._events.text(step, name, text)
            if self._pipes:
                self._pipes.log.info(f"step {step}, {name}: {text}")

    def log(self, message: str) -> None:
        if self._events is not None:
            message = redacted(message)
            self._events.log(message)
            if self._pipes:
                self._pipes.log.info(message)

    def advance(self, done: float, total: float, unit: str) -> None:
        if self._events is not None:
            self._events.advance(done, total, unit)


def run_job(building: Building, store: Store, rank: int, world_size: int) -> None:
    """Run one rank of the job in `building`; rank 0 leaves result.json there."""
    job = json.loads(building.job.read_text(encoding="utf-8"))
    profile = Profile.model_validate(job["profile"])
    stage = stage_named(job["stage"])
    inputs = {name: _published(store, fingerprint) for name, fingerprint in job["inputs"].items()}
    if rank:
        progress = LoggedProgress(None, None, rank, world_size, profile)
        with suppress(Unavailable):  # rank 0 says so
            run_stage(stage, job["config"], inputs, building.files, progress)
        return
    with ExitStack() as stack:
        in_dagster = "DAGSTER_PIPES_CONTEXT" in os.environ
        pipes = stack.enter_context(open_dagster_pipes()) if in_dagster else None
        writer = stack.enter_context(closing(EventWriter(building.events, {"pid": os.getpid()})))
        progress = LoggedProgress(writer, pipes, rank, world_size, profile)
        started = time.monotonic()
        sampling = stack.enter_context(ExitStack())
        sampling.enter_context(sampled(writer.system, profile.device))
        try:
            if job.get("metrics") is None:
                metrics = run_stage(stage, job["config"], inputs, building.files, progress)
                unavailable = None
            else:  # the files are those that were published
                metrics, unavailable = job["metrics"], not_run_reason(building.files)
        except Unavailable as error:
            unavailable = str(error).rstrip(".")
            metrics = leave_not_run(building.files, unavailable, progress)
        stage_seconds = time.monotonic() - started
        sampling.close()
        shutil.rmtree(building.show, ignore_errors=True)
        building.show.mkdir()
        if unavailable is not None:
            sentence = f"Not run here: {unavailable}."
            verdicts = {check.name: Verdict(True, sentence) for check in stage.checks}
            (building.show / "not_run.md").write_text(sentence + "\n", encoding="utf-8")
        else:
            events = building.events
            built = Built(
                job["config"], inputs, building.files, metrics, series(events), texts(events)
            )
            verdicts = {check.name: check.verdict(built) for check in stage.checks}
            stage.show(built, building.show)
    result = {
        "metrics": metrics,
        "verdicts": {name: asdict(verdict) for name, verdict in verdicts.items()},
        "stage_seconds": stage_seconds,
    }
    write_json(building.result, result)


def run_stage(
    stage: Stage, config: Config, inputs: Inputs, output: Path, progress: LoggedProgress
) -> Metrics:
    """`stage.run`. Raises UserError where a GPU's memory runs out, or ranks no longer reach each
    other.
    """
    try:
        return stage.run(config, inputs, output, progress)
    except Exception as error:
        if "torch" not in sys.modules:
            raise
        from assets.execution.device_failures import sentence_of_device  # imports torch

        if (refusal := sentence_of_device(error, progress.profile, progress.rank)) is None:
            raise
        raise refusal from error


def leave_not_run(output: Path, reason: str, progress: LoggedProgress) -> Metrics:
    """Nothing but the reason in `output`: what a stage leaves whose data is unavailable here."""
    for path in output.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_not_run(output, reason)
    progress.log(f"Not run here: {reason}.")
    return {"not_run": 1.0}


def _published(store: Store, fingerprint: str) -> Artifact:
    artifact = store.find(fingerprint)
    assert artifact is not None, f"{fingerprint} was there when the build began"
    return artifact


def sentence(error: BaseException, folder: Path) -> str | None:
    """What a person should read of `error`, where it is theirs to act on; None for a defect of
    ours. `folder`: where the job writes.
    """
    if not isinstance(error, UserError) and disk_is_full(error, folder):
        return full_disk(folder, getattr(error, "filename", None))
    return sentence_of(error)


def main() -> int:
    redact_output()
    folder = Path(sys.argv[1]).resolve()  # HOME/building/FINGERPRINT
    building = Building(folder, folder.name)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        run_job(building, Store(folder.parent.parent), rank, world_size)
    except Exception as error:
        traceback.print_exc()
        return _write_failure(building, rank, error)
    return 0


def _write_failure(building: Building, rank: int, error: Exception) -> int:
    """failure.json, for whoever waits. Returns the exit status, which alone says it where the disk
    is too full for even that.
    """
    message = sentence(error, building.folder)
    failure = {
        "message": redacted(message or f"{type(error).__name__}: {error}"),
        "user": message is not None,
        "field": getattr(error, "field", None),
        "rank": rank,
        "traceback": redacted(traceback.format_exc()),
    }
    try:  # the first rank to fail is the one to blame; the others fail because it did
        with building.failure.open("x", encoding="utf-8") as file:
            json.dump(failure, file)
    except FileExistsError:
        pass
    except OSError:
        building.failure.unlink(missing_ok=True)
    return errno.ENOSPC if disk_is_full(error, building.folder) else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is on disk. Tearing torch and gloo down takes seconds and may hang.
    os._exit(code)
