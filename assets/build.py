"""Building one artifact: find it or make it. The contract in motion, without Dagster (`stage.py`
shows it there).

inputs from refs ─► refuse failed gates ─► pin, fingerprint ─► lock ─┬─► found and verified: a hit
                                                                     └─► launch the worker ─► verdicts ─► publish by one rename
"""

from __future__ import annotations

import errno
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assets.contract import Artifact, Config, Inputs, Verdict
from assets.launch.launcher import Exit, LocalLauncher, log_of, name_of_signal
from assets.node import Node
from assets.recipe.profile import Profile
from assets.store.manifest import Facts, explain_full_disk, full_disk
from assets.store.provenance import provenance
from assets.store.store import Building, Recorded, Store
from assets.tracking.event_log import attempts, seconds
from assets.tracking.tracking import Build, Tracking
from gpt_model.disk import write_json
from gpt_model.errors import UserError

LAST_WORDS = 2000  # characters of its log that are shown of a worker which ended without a word

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """One build: what is built from what, how it executes, and who requests it."""

    node: Node
    inputs: Inputs  # `gather_inputs`
    config: Config  # `node.config`: the node's section, with everything outside the store pinned
    profile: Profile
    estimate: Mapping[str, Any] = field(default_factory=dict)  # frozen with the artifact, unread
    dagster_run_id: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)  # e.g. the Dagster Pipes bootstrap
    python: str = sys.executable
    say: Say = lambda message: None

    @property
    def fingerprint(self) -> str:
        stage = self.node.stage
        digests = {name: artifact.digest for name, artifact in self.inputs.items()}
        return Store.fingerprint(stage.name, stage.version, self.config, digests)


@dataclass(frozen=True)
class Outcome:
    artifact: Artifact
    hit: bool
    verdicts: Mapping[str, Recorded]


class WorkerFailed(Exception):
    """The worker ended without a result, and not for a reason a person can act on. `details`: its
    traceback, or its last words.
    """

    def __init__(self, sentence: str, log: Path, details: str) -> None:
        super().__init__(f"{sentence} Its log: {log}")
        self.sentence, self.details = sentence, details


def gather_inputs(store: Store, node: Node) -> dict[str, Artifact]:
    """The artifacts the refs of `node`'s upstream assets name. Refuses one that is missing or whose
    blocking check failed.
    """
    inputs = {}
    for need in node.needs:
        name = node.asset(need)
        fingerprint = store.get_ref(node.recipe, name)
        artifact = store.find(fingerprint) if fingerprint else None
        if artifact is None:
            raise UserError(
                f"{node.ref} needs {node.recipe}/{name}, which is not built. Build it first: "
                f"gpt-lineage run {node.recipe}"
            )
        for check, verdict in store.gate(artifact).items():
            if verdict.blocking and not verdict.passed:
                raise UserError(
                    f"{node.ref} refuses its input {node.recipe}/{name} "
                    f"({store.short(artifact.fingerprint)}): its blocking check "
                    f"{check!r} failed: {verdict.summary} Mend the recipe or the source, and build "
                    f"{node.recipe}/{name} again."
                )
        inputs[need] = artifact
    return inputs


def build(request: Request, store: Store, launcher: LocalLauncher, tracking: Tracking) -> Outcome:
    """Find the artifact of `request`, or make it. Raises UserError or WorkerFailed; leaves no
    half-made artifact either way.
    """
    node, fingerprint = request.node, request.fingerprint
    tracking.serve(request.dagster_run_id, request.say)

    def waiting(holder: str) -> None:
        request.say(
            f"{holder} is building {node.ref} ({store.short(fingerprint)}); waiting to use what it "
            "makes"
        )

    with store.lock(fingerprint, waiting) as lock:
        artifact = _found(store, fingerprint, request.say)
        hit = artifact is not None
        if artifact is None:
            building = store.building(fingerprint)
            artifact = _made(request, building, lock, store, launcher, tracking)
        store.set_ref(node.recipe, node.name, fingerprint)
    if not hit:
        tracking.finish(artifact.path.parent)
    return Outcome(artifact, hit, store.gate(artifact))


def _found(store: Store, fingerprint: str, say: Say) -> Artifact | None:
    """The finished artifact, once its files verify; one whose files do not is moved aside, to be
    built again.
    """
    artifact = store.find(fingerprint)
    problems = store.verify(artifact) if artifact else []
    if artifact is None or not problems:
        return artifact
    say(
        f"{store.short(fingerprint)} does not verify: {problems[0]} Moved to "
        f"{store.quarantine(artifact)}, and built again."
    )
    return None


def _made(
    request: Request,
    building: Building,
    lock: int,
    store: Store,
    launcher: LocalLauncher,
    tracking: Tracking,
) -> Artifact:
    node, stage, profile = request.node, request.node.stage, request.profile
    config, inputs = request.config, request.inputs
    ranks = profile.processes if stage.ranks == "profile" else 1
    threads = profile.threads_each() * (1 if ranks > 1 else profile.processes)
    for leftover in (building.result, building.failure):
        leftover.unlink(missing_ok=True)
    job: dict[str, Any] = {
        "asset": node.ref,
        "stage": stage.name,
        "config": config,
        "profile": profile.model_dump(mode="json"),
        "inputs": {name: artifact.fingerprint for name, artifact in inputs.items()},
    }
    started = time.time()
    what = Build(
        node.recipe,
        node.name,
        stage.version,
        building.fingerprint,
        config,
        inputs,
        stage.model,
        node.description or stage.description,
    )
    with explain_full_disk(building.folder):
        write_json(building.job, job)
        tracking.begin(building, what, request.dagster_run_id)
    with tracking.stream(building):  # what is raised in here is the MLflow run's failure too
        ended = launcher.run(
            [request.python, "-m", "assets.worker", str(building.folder)],
            ranks=ranks,
            threads=threads,
            log=building.log,
            env={**request.environment, "LINEAGE_DOWNLOADS": str(store.home / "downloads")},
            keep_fds=(lock,),
        )
        if ended.code:
            with node.naming():
                raise _failure(building, ended)
        result = json.loads(building.result.read_text())
    known = provenance(
        profile=job["profile"],
        started=started,
        ended=time.time(),
        seconds=seconds(building.events),
        cores=ranks * threads,
        peak_memory_bytes=ended.peak_memory_bytes,
        forecast=request.estimate,
        dagster_runs=tracking.dagster_runs(building),
        mlflow_run=tracking.run_of(building),
    )
    known |= {
        "asset": node.ref,
        "stage_seconds": result[
            "stage_seconds"
        ],  # of the last attempt; what `seconds` counts is all of them
        "attempts": attempts(building.events),
        "ranks": ranks,
        "threads": threads,
    }
    checks = {check.name: check for check in stage.checks}
    verdicts = {
        name: (checks[name], Verdict(**verdict)) for name, verdict in result["verdicts"].items()
    }
    try:
        return store.publish(
            building,
            Facts(stage.name, stage.version, config, inputs, result["metrics"], known),
            verdicts,
        )
    except Exception as error:
        tracking.failed(building, str(error))
        raise


def _failure(building: Building, ended: Exit) -> Exception:
    """The worker's own sentence where it left one; otherwise what is known of its end."""
    if building.failure.exists():
        told = json.loads(building.failure.read_text())
        if told["user"]:
            return UserError(told["message"], field=told["field"])
        sentence = f"The worker's rank {told['rank']} failed: {told['message'].rstrip('.')}."
        return WorkerFailed(sentence, log_of(building.log, told["rank"]), told["traceback"])
    if ended.code == errno.ENOSPC:  # too full to leave a word
        return UserError(full_disk(building.folder))
    words = ended.log.read_text(errors="replace")[-LAST_WORDS:] if ended.log.exists() else ""
    hint = " (often: out of memory)" if ended.code == -signal.SIGKILL else ""
    rank = "The worker" if ended.failed_rank is None else f"The worker's rank {ended.failed_rank}"
    sentence = f"{rank} ended without a result, {name_of_signal(ended.code)}{hint}."
    return WorkerFailed(sentence, ended.log, words)
