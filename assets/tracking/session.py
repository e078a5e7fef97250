"""A session: one Dagster run of a recipe, or one process that builds without Dagster. MLflow shows
it as the parent run of what was built in it. No MLflow.

`sessions/RUN.RECIPE/journal/session.json` says which artifacts the session built or found. Whether
one is built, failed or still being built is read where it lies.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from assets.store.locks import locked
from assets.store.manifest import read_json
from assets.tracking import limits
from assets.tracking.outbox import is_alive, this_process
from gpt_model.errors import CorruptFile
from gpt_model.io import write_json

SESSIONS = "sessions"  # in a store's home


def name_of(home: Path, recipe: str, dagster_run: str | None) -> str:
    """The folder's name under sessions/."""
    process = this_process(home)
    run = dagster_run or f"{process['host']}-{process['pid']}-{process['process_started']}"
    return limits.file_name(f"{run}.{recipe}")


def record(
    home: Path, recipe: str, dagster_run: str | None, stage: str, fingerprint: str, *, built: bool
) -> str:
    """Adds an artifact that the session builds, or found. Returns the session's name."""
    folder = home / SESSIONS / name_of(home, recipe, dagster_run)
    (folder / "journal").mkdir(parents=True, exist_ok=True)
    with locked(folder / "journal" / "session.lock"):
        session = load(folder) or {
            "recipe": recipe,
            "dagster_run": dagster_run,
            "began": time.time(),
            "artifacts": {},
        }
        session |= {"ended": None, "succeeded": None, "process": this_process(home)}
        session["artifacts"][stage] = {"fingerprint": fingerprint, "built": built}
        write_json(folder / "journal" / "session.json", session)
    return folder.name


def end(folder: Path, succeeded: bool) -> bool:
    """Records how the session ended. One that built nothing is forgotten, and has no run: False."""
    session = load(folder)
    if session is None or not any_built(session):
        shutil.rmtree(folder, ignore_errors=True)
        return False
    session |= {"ended": time.time(), "succeeded": succeeded}
    write_json(folder / "journal" / "session.json", session)
    return True


def load(folder: Path) -> dict[str, Any] | None:
    """None where there is no such session, or its file is damaged: it is never worth a stop."""
    with suppress(FileNotFoundError, NotADirectoryError, CorruptFile):
        session = read_json(folder / "journal" / "session.json")
        return session if isinstance(session, dict) else None
    return None


def sessions(home: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folder and record of each session."""
    for folder in sorted((home / SESSIONS).glob("*")):
        if session := load(folder):
            yield folder, session


def any_built(session: dict[str, Any]) -> bool:
    return any(entry["built"] for entry in session["artifacts"].values())


def status(home: Path, session: dict[str, Any]) -> str:
    """As MLflow names it."""
    if session["ended"] is not None:
        return "FINISHED" if session["succeeded"] else "FAILED"
    return "RUNNING" if is_alive(session["process"], home) else "KILLED"


def state_of(home: Path, fingerprint: str) -> str:
    """What became of an artifact that the session built: "built", "failed" or "unfinished"."""
    if (home / "artifacts" / fingerprint / "artifact.json").is_file():
        return "built"
    with suppress(OSError, CorruptFile):
        if read_json(home / "building" / fingerprint / "journal" / "build.json")["failure"]:
            return "failed"
    return "unfinished"
