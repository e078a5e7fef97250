"""What is on disk of each build: `journal/build.json`, and how far the build is. No MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from assets.store.manifest import read_json
from assets.tracking.outbox import is_alive
from gpt_model.errors import CorruptFile


def read(path: Path) -> dict[str, Any] | None:
    """A journal's JSON; None where it is not there or cannot be read: the journal is not the
    artifact, and is never worth a stop.
    """
    with suppress(FileNotFoundError, NotADirectoryError, CorruptFile):
        document = read_json(path)
        return document if isinstance(document, dict) else None
    return None


def builds(home: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Folder and build.json of each build, in the order they began: inputs before what is made of
    them.
    """
    records = []
    for folder in [*(home / "building").glob("*"), *(home / "artifacts").glob("*")]:
        if build := read(folder / "journal" / "build.json"):
            records.append((folder, build))
    return sorted(records, key=lambda each: each[1]["attempts"][0]["began"])


def runs_now(folder: Path, build: Mapping[str, Any]) -> bool:
    return (
        folder.parent.name == "building"
        and not build["failure"]
        and is_alive(build["attempts"][-1], folder.parents[1])
    )


def status(folder: Path, build: Mapping[str, Any], *, published: bool) -> str:
    """As MLflow names it, of the build in `folder`. A build whose process died without a word was
    killed; the next attempt sets it running again.
    """
    if published:
        return "FINISHED"
    if build["failure"]:
        return "FAILED"
    return "RUNNING" if is_alive(build["attempts"][-1], folder.parents[1]) else "KILLED"
