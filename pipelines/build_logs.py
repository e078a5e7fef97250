"""What builds printed: the messages of a stage, and what its ranks wrote to stdout and stderr.

Both lie in a build's journal, which stands beside the artifact once it is published. Dagster's
event log says how a Dagster run ended that built nothing, or failed outside its builds.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from assets.store.home import DATABASE
from assets.store.manifest import read_json
from assets.store.store import SHORT, Store
from assets.tracking import session
from assets.tracking.event_log import Event, EventReader
from assets.tracking.outbox import is_alive
from assets.tracking.state import run_ids
from gpt_model.errors import CorruptFile, UserError
from gpt_model.redaction import redacted

RUN_ID = re.compile(r"[0-9a-f]{4}[0-9a-f-]*")  # the start of Dagster's or MLflow's
STATES = {"building": "unfinished", "artifacts": "published", "corrupt": "set aside"}
# Python's and Dagster's errors where somebody ended a run
INTERRUPTIONS = ("KeyboardInterrupt", "DagsterExecutionInterruptedError")
INTERRUPTED = "It was interrupted; the next run resumes it."
POLL_SECONDS = 0.5  # between two looks for what was printed since


@dataclass(frozen=True)
class BuildLog:
    """One build's journal, or the end of a Dagster run, which has no fingerprint. `messages`:
    (seconds since the epoch, message).
    """

    asset: str
    fingerprint: str
    state: str  # "published", "unfinished" or "set aside"; of a Dagster run as Dagster has it
    dagster_runs: list[str]
    mlflow_runs: list[str]
    failure: str | None
    messages: list[tuple[float, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # what each rank printed, rank 0 first


class Logs:
    """What a person means by an artifact, by a recipe (its newest run), or by the id of a Dagster
    or MLflow run, or its start.
    """

    def __init__(self, store: Store, text: str) -> None:
        """Raises UserError where several Dagster runs begin so."""
        self._store = store
        self._text = _newest_run(store, text.strip().strip("/").lower())
        self._run_id = self._dagster_run()

    def builds(self) -> list[BuildLog]:
        """In the order of the builds. The last is the Dagster run where it did not succeed, or
        built nothing. Raises UserError where there is none.
        """
        builds = [_read(folder) for folder in self._folders()]
        builds += self._run(built=bool(builds))[1]
        return builds or self._refuse()

    def lines(self, *, follow: bool = False) -> Iterator[str]:
        """For people: each build's messages with their time, and what each rank printed. With
        `follow` also what is printed from now on, until the run or the builds end.
        """
        readers: dict[str, _Reader] = {}
        heading, goes_on = None, follow
        while True:
            for folder in self._folders():
                reader = readers.setdefault(_fingerprint(folder), _Reader())
                for of, line in reader.read(folder, last=not goes_on):
                    if of != heading:
                        yield of
                    yield line
                    heading = of
            if not goes_on:
                break
            time.sleep(POLL_SECONDS)
            goes_on = self._goes_on()  # before reading: nothing is printed after the end
        ends = self._run(built=bool(readers))[1]
        for end in ends:
            yield f"== {end.asset}, Dagster run {end.dagster_runs[0][:8]}, {end.state}"
            yield end.failure or "It built nothing: everything was there."
        if not (readers or ends):
            self._refuse()

    def _folders(self) -> list[Path]:
        """The builds' folders, oldest first."""
        return sorted(filter(self._is_meant, _journals(self._store)), key=_began)

    def _is_meant(self, folder: Path) -> bool:
        text, record = self._text, _record(folder)
        if text in self._store.names():
            with suppress(CorruptFile):
                recipe, _, stage = text.partition("/")
                if folder.name == self._store.get_ref(recipe, stage):
                    return True
        if folder.parent.name == "building" and _asset(record) == text:
            return True
        if not RUN_ID.match(text):
            return False
        runs = [*_dagster_runs(record), *run_ids(folder)]
        return folder.name.startswith(text) or any(run.startswith(text) for run in runs)

    def _goes_on(self) -> bool:
        """Whether more may be printed: by the Dagster run, by a build that is meant, or by one that
        a session has still to begin.
        """
        if self._run_id:
            return not self._run(built=True)[0]
        recipe, _, stage = self._text.partition("/")
        for _, record in session.sessions(self._store.home):
            if (
                stage
                and record["recipe"] == recipe
                and session.status(self._store.home, record) == "RUNNING"
            ):
                begun = record["artifacts"].get(stage)
                if not begun or session.state_of(self._store.home, begun["fingerprint"]) != "built":
                    return True
        return any(map(_is_built_now, self._folders()))

    def _dagster_run(self) -> str | None:
        """The id of the Dagster run that is meant."""
        if not RUN_ID.fullmatch(self._text):
            return None
        runs = sorted(path.stem for path in _dagster(self._store).glob(f"{self._text}*.db"))
        if not runs and DATABASE in os.environ:
            from pipelines.run_outcomes import run_ids_of  # as in `_run`

            runs = run_ids_of(_dagster(self._store).parents[1], self._text)
        if len(runs) > 1:
            raise UserError(f"Several Dagster runs begin with {self._text}: {', '.join(runs)}.")
        return runs[0] if runs else None

    def _run(self, *, built: bool) -> tuple[bool, list[BuildLog]]:
        """Whether the Dagster run ended; and its end, where it did not succeed or nothing was
        `built`.
        """
        if self._run_id is None:
            return True, []
        from pipelines.run_outcomes import (
            outcome,  # Dagster takes a second, for which no other text waits
        )

        run = outcome(_dagster(self._store).parents[1], self._run_id)
        if run is None or (built and run.state in ("success", "started")):
            return run is None or run.ended, []
        failure = redacted("\n".join(run.failures)) or None
        end = BuildLog(run.job, "", run.state, [run.run_id], [], failure)
        return run.ended, [end]

    def _refuse(self) -> NoReturn:
        artifact = self._store.resolve(self._text)  # its error says what there is
        short = artifact.fingerprint[:SHORT]
        raise UserError(f"{self._text} ({short}) has no log: it was built elsewhere.")


def _newest_run(store: Store, text: str) -> str:
    """The Dagster run that was the last to build something of the recipe `text`; `text` itself
    where it is no recipe's name.
    """
    runs = [
        (record["began"], record["dagster_run"])
        for _, record in session.sessions(store.home)
        if record["recipe"] == text and record["dagster_run"]
    ]
    return max(runs)[1] if runs else text


def _dagster(store: Store) -> Path:
    """Where Dagster's history has a file for each run, unless it is in a Postgres."""
    home = Path(os.environ.get("DAGSTER_HOME") or store.home / "dagster")
    return home / "history" / "runs"


def _journals(store: Store) -> Iterator[Path]:
    """The folder of every build of which something is on disk."""
    for name in STATES:
        for folder in sorted((store.home / name).glob("*")):
            if (folder / "journal").is_dir():
                yield folder


def _record(folder: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError, CorruptFile):
        record = read_json(folder / "journal" / "build.json")
        return record if isinstance(record, dict) else {}
    return {}


def _asset(record: dict[str, Any]) -> str:
    return f"{record.get('recipe', '?')}/{record.get('stage', '?')}"


def _fingerprint(folder: Path) -> str:
    return folder.name.partition(".")[0]


def _attempts(folder: Path) -> list[dict[str, Any]]:
    return _record(folder).get("attempts") or []


def _began(folder: Path) -> float:
    return min((attempt["began"] for attempt in _attempts(folder)), default=0.0)


def _is_built_now(folder: Path) -> bool:
    if folder.parent.name != "building" or _record(folder).get("failure"):
        return False
    return any(is_alive(attempt, folder.parents[1]) for attempt in _attempts(folder)[-1:])


def _dagster_runs(record: dict[str, Any]) -> list[str]:
    attempts = record.get("attempts") or []
    return list(dict.fromkeys(each["dagster_run"] for each in attempts if each["dagster_run"]))


def _read(folder: Path) -> BuildLog:
    record, journal = _record(folder), folder / "journal"
    messages = []
    with suppress(CorruptFile):
        messages = list(_messages(EventReader(journal / "events.jsonl").read()))
    return BuildLog(
        asset=_asset(record),
        fingerprint=_fingerprint(folder),
        state=STATES[folder.parent.name],
        dagster_runs=_dagster_runs(record),
        mlflow_runs=run_ids(folder),
        failure=record.get("failure"),
        messages=messages,
        files=[str(path) for path in _files(folder)],
    )


def _messages(events: Iterable[Event]) -> Iterator[tuple[float, str]]:
    for event in events:
        if event["kind"] == "attempt":
            yield event["time"], "a worker begins"
        elif event["kind"] == "log":
            yield event["time"], event["message"]


def _files(folder: Path) -> list[Path]:
    """What each rank printed, rank 0 first."""
    return sorted((folder / "journal").glob("worker*.log"), key=_rank)


def _rank(path: Path) -> int:
    number = path.name.removeprefix("worker.").removesuffix("log").strip(".")
    return int(number or 0)


def as_values(log: BuildLog) -> dict[str, Any]:
    """For scripts: everything, what the ranks printed too."""
    printed = {path: _Lines().read(Path(path), last=True) for path in log.files}
    return {**asdict(log), "printed": printed}


class _Reader:
    """Of one build what was written since the last time: (heading, line). The build's folder is
    another once it is published.
    """

    def __init__(self) -> None:
        self._events = EventReader(Path())
        self._files: dict[str, _Lines] = {}

    def read(self, folder: Path, *, last: bool) -> Iterator[tuple[str, str]]:
        """`last`: nothing is written after this."""
        record = _record(folder)
        runs = ", ".join(run[:8] for run in _dagster_runs(record))
        heading = f"== {_asset(record)} {_fingerprint(folder)[:SHORT]}"
        heading += f", {STATES[folder.parent.name]}" * last + f", Dagster run {runs}" * bool(runs)
        self._events.path = folder / "journal" / "events.jsonl"
        with suppress(CorruptFile):
            for seconds, message in _messages(self._events.read()):
                time = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
                yield heading, f"{time} {redacted(message)}"
        for path in _files(folder):
            with suppress(FileNotFoundError):  # it is published just now: the next time
                for line in self._files.setdefault(path.name, _Lines()).read(path, last=last):
                    yield f"-- {path}", line
        if last and (failure := record.get("failure")):
            interrupted = failure.startswith(INTERRUPTIONS)
            yield heading, INTERRUPTED if interrupted else f"It failed: {redacted(failure)}"


class _Lines:
    """The lines that were added to a file since the last time, without the environment's secrets.
    Of a progress bar, which draws itself over and over in one line, its last state.
    """

    def __init__(self) -> None:
        self._offset = 0  # in bytes

    def read(self, path: Path, *, last: bool) -> list[str]:
        """Whole lines, and what is behind them where it is the `last` time."""
        with path.open("rb") as file:
            file.seek(self._offset)
            added = file.read()
        whole = added if last else added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.decode(errors="replace").removesuffix("\n").split("\n") if whole else []
        return [redacted(line.rstrip("\r").rpartition("\r")[2]) for line in lines]
