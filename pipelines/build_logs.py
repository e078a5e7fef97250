"""What builds printed: the messages of a stage, and what its ranks wrote to stdout and stderr.

Both lie in a build's journal, which stands beside the artifact once it is published. Reads files
only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assets.store.manifest import read_json
from assets.store.store import SHORT, Store
from assets.tracking.event_log import events
from assets.tracking.state import run_ids
from gpt_model.errors import CorruptFile, UserError
from gpt_model.redaction import redacted

RUN_ID = re.compile(r"[0-9a-f]{4}[0-9a-f-]*")  # the start of Dagster's or MLflow's


@dataclass(frozen=True)
class BuildLog:
    """One build's journal. `messages`: (seconds since the epoch, message)."""

    asset: str
    fingerprint: str
    state: str  # "published", "unfinished" or "set aside"
    dagster_runs: list[str]
    mlflow_runs: list[str]
    failure: str | None
    messages: list[tuple[float, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # what each rank printed, rank 0 first


def build_logs(store: Store, text: str) -> list[BuildLog]:
    """The logs that a person means by an artifact, or by the id of a Dagster or MLflow run, or its
    start; in the order of the builds. Raises UserError where there is none.
    """
    if folders := [folder for folder in _journals(store) if _is_meant(store, folder, text)]:
        return sorted(map(_read, folders), key=lambda log: log.messages[:1] or [(0.0, "")])
    runs = store.home / "dagster" / "history" / "runs"
    if RUN_ID.fullmatch(text) and any(runs.glob(f"{text}*.db")):
        raise UserError(
            f"Dagster run {text} built nothing: every artifact was found, or it failed before a "
            "worker began. gpt-lineage ui has its events."
        )
    artifact = store.resolve(text)  # its error says what there is
    raise UserError(f"{text} ({artifact.fingerprint[:SHORT]}) has no log: it was built elsewhere.")


def _journals(store: Store) -> Iterator[Path]:
    """The folder of every build of which something is on disk."""
    for name in ("building", "artifacts", "corrupt"):
        for folder in sorted((store.home / name).glob("*")):
            if (folder / "journal").is_dir():
                yield folder


def _is_meant(store: Store, folder: Path, text: str) -> bool:
    text = text.strip().strip("/").lower()
    record = _record(folder)
    asset = f"{record.get('recipe')}/{record.get('stage')}"
    if text in store.names():
        with suppress(CorruptFile):
            recipe, _, stage = text.partition("/")
            if folder.name == store.get_ref(recipe, stage):
                return True
    if folder.parent.name == "building" and asset == text:
        return True
    if not RUN_ID.match(text):
        return False
    runs = [*_dagster_runs(record), *run_ids(folder)]
    return folder.name.startswith(text) or any(run.startswith(text) for run in runs)


def _record(folder: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError, CorruptFile):
        record = read_json(folder / "journal" / "build.json")
        return record if isinstance(record, dict) else {}
    return {}


def _dagster_runs(record: dict[str, Any]) -> list[str]:
    attempts = record.get("attempts") or []
    return list(dict.fromkeys(each["dagster_run"] for each in attempts if each["dagster_run"]))


def _read(folder: Path) -> BuildLog:
    record, journal = _record(folder), folder / "journal"
    states = {"artifacts": "published", "building": "unfinished", "corrupt": "set aside"}
    messages = []
    with suppress(CorruptFile):
        for event, _ in events(journal / "events.jsonl"):
            if event["kind"] == "attempt":
                messages.append((event["time"], "a worker begins"))
            elif event["kind"] == "log":
                messages.append((event["time"], event["message"]))
    return BuildLog(
        asset=f"{record.get('recipe', '?')}/{record.get('stage', '?')}",
        fingerprint=folder.name.partition(".")[0],
        state=states[folder.parent.name],
        dagster_runs=_dagster_runs(record),
        mlflow_runs=run_ids(folder),
        failure=record.get("failure"),
        messages=messages,
        files=[str(path) for path in sorted(journal.glob("worker*.log"), key=_rank)],
    )


def _rank(path: Path) -> int:
    number = path.name.removeprefix("worker.").removesuffix("log").strip(".")
    return int(number or 0)


def as_values(log: BuildLog) -> dict[str, Any]:
    """For scripts: everything, what the ranks printed too."""
    return {**asdict(log), "printed": {path: list(_lines(Path(path))) for path in log.files}}


def as_lines(log: BuildLog) -> Iterator[str]:
    """For people: the messages with their time, then what each rank printed."""
    runs = f", Dagster run {', '.join(run[:8] for run in log.dagster_runs)}" * bool(
        log.dagster_runs
    )
    yield f"== {log.asset} {log.fingerprint[:SHORT]}, {log.state}{runs}"
    for seconds, message in log.messages:
        yield f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} {redacted(message)}"
    if log.failure:
        yield f"It failed: {redacted(log.failure)}"
    for path in map(Path, log.files):
        lines = list(_lines(path))
        yield f"-- {path}{'' if lines else ' (nothing printed)'}"
        yield from lines


def _lines(path: Path) -> Iterator[str]:
    """A log's lines without the environment's secrets. Of a progress bar, which draws itself over
    and over in one line, its last state.
    """
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            yield redacted(line.rstrip("\r\n").rpartition("\r")[2])
