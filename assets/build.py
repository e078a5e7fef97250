"""Building one artifact: a cache hit, or a worker. The contract in motion, without Dagster
(`stage.py` adds it).

inputs from refs ─► refuse failed gates ─► resolve local files ─► fingerprint ─► lock
    ├─► found, here or in the team's mirror, its files verify: a cache hit
    └─► launch the worker ─► verdicts ─► publish by one rename
"""

from __future__ import annotations

import errno
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import Artifact, Config, Inputs, Verdict
from assets.launch.launcher import Exit, Launcher, Ranks, log_of, module_command, name_of_signal
from assets.node import Node
from assets.recipe.profile import Profile
from assets.store.home import cache_environment
from assets.store.manifest import BUILD_AGAIN, Facts, explain_full_disk, full_disk, read_json
from assets.store.provenance import provenance
from assets.store.store import Building, Recorded, Store
from assets.tracking.event_log import attempts, seconds
from assets.tracking.tracking import Build, Tracking
from gpt_model.errors import CorruptFile, UserError
from gpt_model.io import write_json
from gpt_model.redaction import redacted

if TYPE_CHECKING:
    from assets.store.remote import Remote

LOG_TAIL = 2000  # characters of the log to show of a worker that ended without a result

# What nccl's watchdog writes before it aborts the process that waited: Python hears nothing of it
WATCHDOG = re.compile(
    rb"Watchdog caught collective operation timeout: WorkNCCL\(SeqNum=\d+, OpType=(\w+),.*\) "
    rb"ran for (\d+) milliseconds"
)

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
    # of a worker, once one is launched: e.g. the Dagster Pipes bootstrap
    environment: Callable[[Building], Mapping[str, str]] = lambda building: {}
    python: str = sys.executable
    say: Say = lambda message: None
    tag: Callable[[str, str], None] = lambda name, value: None  # of the Dagster run

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
    read_whole_at: float | None  # of a large artifact, seconds since 1970


class WorkerFailed(Exception):
    """The worker ended without a result, for no reason that a person can act on. `details`: its
    traceback, or the end of its log.
    """

    def __init__(self, sentence: str, log: Path, details: str) -> None:
        super().__init__(f"{sentence} Its log: {log}")
        self.sentence, self.details = sentence, details


def gather_inputs(store: Store, node: Node) -> dict[str, Artifact]:
    """The artifacts that the refs of `node`'s upstream assets name, verified once a process. Raises
    UserError where one is missing, not what was published, or did not pass a blocking check.
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
        _require_passed(store, node, name, store.check(artifact))
        inputs[need] = artifact
    return inputs


def _require_passed(store: Store, node: Node, name: str, artifact: Artifact) -> None:
    gate = store.gate(artifact)
    refuses = (
        f"{node.ref} refuses its input {node.recipe}/{name} ({store.short(artifact.fingerprint)}): "
    )
    for check, verdict in gate.items():
        if verdict.blocking and not verdict.passed:
            raise UserError(
                f"{refuses}its blocking check {check!r} failed: {verdict.summary} Mend the recipe "
                f"or the source, and build {node.recipe}/{name} again."
            )
    for asset, check in node.requires:
        if asset == name and check not in gate:
            raise UserError(
                f"{refuses}it was never judged by its blocking check {check!r}. Build "
                f"{node.recipe}/{name} again."
            )


def build(
    request: Request,
    store: Store,
    launcher: Launcher,
    tracking: Tracking,
    remote: Remote | None = None,
) -> Outcome:
    """Find the artifact of `request`, here or in the `remote`, or build it. Raises UserError or
    WorkerFailed, and leaves no half of an artifact.
    """
    node, fingerprint = request.node, request.fingerprint
    tracking.serve(request.dagster_run_id, request.say)

    def waiting(holder: str) -> None:
        request.say(
            f"{holder} is building {node.ref} ({store.short(fingerprint)}); waiting for its "
            "artifact"
        )

    with store.lock(fingerprint, waiting) as lock:
        artifact = _verified(store, request, remote)
        hit = artifact is not None
        if artifact is None:
            building = store.building(fingerprint)
            artifact = _launch(request, building, lock, store, launcher, tracking)
        store.set_ref(node.recipe, node.name, fingerprint)
    if hit:
        tracking.cache_hit(node.recipe, node.name, fingerprint, request.dagster_run_id)
    else:
        tracking.finish(artifact.path.parent)
    if remote:
        remote.request(request.say, node.ref)
    return Outcome(artifact, hit, store.gate(artifact), store.read_whole_at(artifact))


def _verified(store: Store, request: Request, remote: Remote | None) -> Artifact | None:
    """The published artifact, if it verifies and every blocking check has judged it: the store's,
    or else the remote's. A damaged one is moved aside, and all of it or its verdicts and pictures
    are to be made again.
    """
    fingerprint = request.fingerprint
    aside, problem = None, ""
    for fetched in (False, True) if remote else (False,):
        try:
            if remote and fetched:
                artifact = remote.pull(fingerprint, store.building(fingerprint), request.say)
            else:
                artifact = store.find(fingerprint)
            if artifact is None:
                continue
            store.check(artifact, again=not fetched)
            store.record_sums(artifact)
            _require_judged(store, request, artifact)
        except CorruptFile as error:
            problem = str(error).removesuffix(BUILD_AGAIN)
            aside = store.quarantine(fingerprint)
            continue
        if aside:
            request.say(f"{problem}It is fetched again. What was there: {aside}")
        return artifact
    if aside:
        whole = store.take_back(aside, store.building(fingerprint))
        what = "Its files are whole: it is judged and shown again" if whole else "It is built again"
        request.say(f"{problem}{what}. What was there: {aside}")
    return None


def _require_judged(store: Store, request: Request, artifact: Artifact) -> None:
    gate, stage = store.gate(artifact), request.node.stage
    for check in stage.checks:
        if check.blocking and check.name not in gate:
            raise CorruptFile(
                f"{request.node.ref} {store.short(artifact.fingerprint)} was never judged by its "
                f"blocking check {check.name!r}. {BUILD_AGAIN}"
            )


def _launch(
    request: Request,
    building: Building,
    lock: int,
    store: Store,
    launcher: Launcher,
    tracking: Tracking,
) -> Artifact:
    node, stage, profile = request.node, request.node.stage, request.profile
    config, inputs = request.config, request.inputs
    published = store.published(building)
    left = _left_running(building, request)
    if left:  # it has its own profile, and reads its own job
        profile = Profile.model_validate(read_json(building.job)["profile"])
    ranks = profile.processes if stage.shared_out and not published else 1
    threads = profile.threads_each() * (1 if ranks > 1 else profile.processes_each_host())
    if not left:
        for leftover in (building.result, building.failure, building.messages):
            leftover.unlink(missing_ok=True)
    job: dict[str, Any] = {
        "asset": node.ref,
        "stage": stage.name,
        "config": config,
        "profile": profile.model_dump(mode="json"),
        "inputs": {name: artifact.fingerprint for name, artifact in inputs.items()},
        "metrics": published["metrics"] if published else None,  # only judge and show
        # of each rank's log: earlier attempts'
        "logged_bytes": [_size(log_of(building.log, rank)) for rank in range(ranks)],
    }
    downloads = store.home / "downloads"
    started = time.time()
    description = Build(
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
        if not left:
            write_json(building.job, job)
        _require_present(node, inputs)
        tracking.begin(building, description, request.dagster_run_id)
    with tracking.stream(building):  # an error in here fails the MLflow run too
        environment = {
            **request.environment(building),
            **cache_environment(downloads),
            "LINEAGE_DOWNLOADS": str(downloads),
        }
        command = [*module_command(request.python, "assets.worker"), str(building.folder)]
        exit = (left or launcher).run(
            Ranks(command, ranks, threads, building.log, environment, (lock,))
        )
        if exit.code:
            with node.naming():
                raise _failure(building, exit)
        result = json.loads(building.result.read_text(encoding="utf-8"))
    origin = provenance(
        profile=job["profile"],
        started=started,
        ended=time.time(),
        seconds=seconds(building.events),
        cores=ranks * exit.threads,
        peak_memory_bytes=exit.peak_memory_bytes,
        estimate=request.estimate,
        dagster_runs=tracking.dagster_runs(building),
        mlflow_run=tracking.run_of(building),
    )
    origin |= {
        "asset": node.ref,
        "stage_seconds": result["stage_seconds"],  # of the last attempt; `seconds` is of all
        "attempts": attempts(building.events),
        "ranks": ranks,
        "threads": exit.threads,
    }
    if published:
        origin = published["provenance"]
    checks = {check.name: check for check in stage.checks}
    verdicts = {
        name: (checks[name], Verdict(**verdict)) for name, verdict in result["verdicts"].items()
    }
    try:
        return store.publish(
            building,
            Facts(stage.name, stage.version, config, inputs, result["metrics"], origin),
            verdicts,
        )
    except Exception as error:
        tracking.failed(building, str(error))
        raise


def _left_running(building: Building, request: Request) -> Launcher | None:
    """What waits for a job that outlived its starter, whatever the profile of this request is: two
    would write the same files.
    """
    if not building.detached.exists():
        return None
    from assets.launch.detached import left_running  # no other build needs Slurm

    return left_running(building.log, request.say, request.tag)


def _require_present(node: Node, inputs: Inputs) -> None:
    """From job.json on nobody removes the inputs of a build; before that somebody may have."""
    for name, artifact in inputs.items():
        if not artifact.path.is_dir():
            raise UserError(
                f"{node.ref}: its input {node.recipe}/{node.asset(name)} "
                f"({Store.short(artifact.fingerprint)}) has just been removed from the store. Run "
                "the recipe again: it is built anew."
            )


def _failure(building: Building, exit: Exit) -> Exception:
    """The worker's failure.json where it left one; otherwise its exit status and the log's end."""
    failure = {}
    if building.failure.exists():
        failure = json.loads(building.failure.read_text(encoding="utf-8"))
        if failure["user"]:
            return UserError(failure["message"], field=failure["field"])
    # Where a rank is killed, another fails because it no longer hears from that one.
    if failure and (exit.code > 0 or failure["rank"] == exit.failed_rank):
        sentence = f"The worker's rank {failure['rank']} failed: {failure['message'].rstrip('.')}."
        return WorkerFailed(sentence, log_of(building.log, failure["rank"]), failure["traceback"])
    if exit.code == errno.ENOSPC:  # too full for failure.json
        return UserError(full_disk(building.folder))
    if exit.lost:
        return WorkerFailed(redacted(exit.lost), exit.log, "")
    tail = (
        redacted(exit.log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:])
        if exit.log.exists()
        else ""
    )
    if exit.code == -signal.SIGABRT and (timeout := _nccl_timeout(building, exit)):
        return WorkerFailed(*timeout, tail)
    hint = " (often: out of memory)" if exit.code == -signal.SIGKILL else ""
    rank = "The worker" if exit.failed_rank is None else f"The worker's rank {exit.failed_rank}"
    sentence = f"{rank} ended without a result, {name_of_signal(exit.code)}{hint}."
    return WorkerFailed(sentence, exit.log, tail)


def _nccl_timeout(building: Building, exit: Exit) -> tuple[str, Path] | None:
    """Which ranks the others waited for in vain, as a sentence, and the log to read first. None
    where no watchdog of nccl's ended the failed rank.
    """
    logged = read_json(building.job).get("logged_bytes", [])
    waits: dict[int, tuple[str, float]] = {}  # by rank: the operation and its minutes
    for rank, start in enumerate(logged):
        with suppress(FileNotFoundError), log_of(building.log, rank).open("rb") as log:
            log.seek(start)
            if wait := WATCHDOG.search(log.read()):
                waits[rank] = wait[1].decode(), int(wait[2]) / 60_000
    failed, ranks = exit.failed_rank, len(logged)
    if failed is None or failed not in waits:
        return None
    hosts = [exit.hosts[rank * len(exit.hosts) // ranks] for rank in range(ranks)]
    operation, minutes = waits[failed]
    waited = (
        f"Rank {failed} of {ranks}, on {hosts[failed]}, waited in vain for {minutes:.3g} minutes "
        f"in nccl's {operation}" + (f", as did {len(waits) - 1} more." if len(waits) > 1 else ".")
    )
    resumes = "What trains resumes from its last checkpoint."
    if absent := [rank for rank in range(ranks) if rank not in waits]:
        named = ", ".join(f"{rank} on {hosts[rank]}" for rank in absent)
        return (
            f"{waited} By the logs, these did not come to it: rank {named}. Such a rank hangs, is "
            "gone, or was ended before its time-out: see its log, and `dmesg` and "
            f"`nvidia-smi` there. {resumes}"
        ), log_of(building.log, absent[0])
    if len({operation for operation, _ in waits.values()}) > 1:
        each = ", ".join(f"rank {rank} in {waits[rank][0]}" for rank in waits)
        return f"{waited} They were in different operations, a defect of ours: {each}.", exit.log
    return (
        f"{waited} These are all ranks: no process is lost, the network between them is. See "
        f"NCCL_SOCKET_IFNAME and NCCL_IB_HCA, and run again with NCCL_DEBUG=INFO. {resumes}"
    ), exit.log


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
