"""What each server has of a build: `journal/delivery.json`, an entry a server. No MLflow.

A file of an earlier commit has one server, whose `uri` stands beside the entry.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from assets.store.locks import locked
from assets.store.manifest import read_json
from gpt_model.errors import CorruptFile
from gpt_model.io import write_json
from gpt_model.redaction import redacted

LOCAL = "mlflow.db"  # the server that is the store's own file, wherever the store is moved to


@dataclass
class State:
    """What one server has."""

    run_id: str | None = None
    offset: int = 0  # bytes of events.jsonl
    attempt: int = 0
    status: str | None = None
    tags: str = ""  # hash of those set
    dagster_ui: str = ""  # the page that the tags lead to
    parent: str | None = None  # id of the session's run
    model_id: str | None = None
    done: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # what -> why; never sent again
    complete: bool = False


def delivering(folder: Path) -> AbstractContextManager[int]:
    """The lock of whoever delivers a build or a session."""
    return locked(folder / "journal" / "delivery.lock", patience=30.0)


def load(folder: Path, server: str) -> State:
    """What `server` has of the build in `folder`; a blank State where that is not known."""
    entry = _servers(folder).get(server)
    known = {each.name for each in fields(State)}
    return State(**{key: value for key, value in (entry or {}).items() if key in known})


def save(folder: Path, server: str, state: State) -> None:
    """Hold the build's delivery lock."""
    write_json(_file(folder), {"servers": _servers(folder) | {server: asdict(state)}})


def run_ids(folder: Path) -> list[str]:
    """The ids of the build's run on every server."""
    entries = _servers(folder).values()
    return [entry["run_id"] for entry in entries if entry.get("run_id")]


def _file(folder: Path) -> Path:
    return folder / "journal" / "delivery.json"


def _servers(folder: Path) -> dict[str, dict[str, Any]]:
    """Nothing where the file is not there or cannot be read: what is delivered twice does no
    harm.
    """
    document: Any = None
    with suppress(FileNotFoundError, NotADirectoryError, CorruptFile):
        document = read_json(_file(folder))
    if not isinstance(document, dict):
        return {}
    if uri := document.get("uri"):
        is_local = uri.startswith("sqlite:") and uri.endswith(f"/{LOCAL}")
        return {LOCAL if is_local else redacted(uri).rstrip("/"): document}
    servers = document.get("servers")
    return servers if isinstance(servers, dict) else {}
