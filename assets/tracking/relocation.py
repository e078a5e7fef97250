"""A store that was moved or copied: MLflow's file in it holds where each experiment, run and model
has its files as absolute addresses, which this module writes anew. No MLflow.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlparse

from assets.tracking.state import LOCAL

ARTIFACTS = "mlartifacts"  # in the store
ADDRESSES = (  # (table, column)
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def relocate(home: Path) -> None:
    """Makes the addresses in the store's MLflow file those of `home`, where they are another
    store's. Costs a query where nothing was moved; what cannot be written stays as it is.
    """
    file = home / LOCAL
    if not file.is_file():
        return
    new = (home / ARTIFACTS).as_uri()
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=20)) as database,
        database,
    ):
        locations = database.execute("SELECT artifact_location FROM experiments").fetchall()
        for old in {_store_of(location) for (location,) in locations} - {None, new}:
            if old is not None and not _is_same(old, home / ARTIFACTS):
                _rewrite(database, old, new)


def _store_of(location: str | None) -> str | None:
    """Whose artifacts an experiment's are, by the address that `Server.experiment` gave it."""
    folder, marker, _ = (location or "").rpartition(f"/{ARTIFACTS}/")
    return f"{folder}/{ARTIFACTS}" if marker and folder.startswith("file:") else None


def _is_same(address: str, folder: Path) -> bool:
    """Whether an address leads to `folder` by another way, such as a link or a mount."""
    with suppress(OSError):
        return Path(unquote(urlparse(address).path)).samefile(folder)
    return False


def _rewrite(database: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in ADDRESSES:
        known = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        if column in known:  # an earlier MLflow has fewer
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - constants
                f"WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old) + 1, f"{old}/"),
            )
