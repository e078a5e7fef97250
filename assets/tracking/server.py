"""The MLflow server: MLFLOW_TRACKING_URI, or else a sqlite file under the store. MLflow is imported
at the first call, not before.

Not here: what is said to it (`delivery.py`), and when (`tracking.py`).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from assets.store.locks import locked, migrating
from assets.store.manifest import read_json
from assets.tracking.outbox import Say
from assets.tracking.relocation import ARTIFACTS, relocate
from assets.tracking.state import LOCAL
from gpt_model.errors import CorruptFile, UserError
from gpt_model.io import fsync, write_json
from gpt_model.redaction import redacted

if TYPE_CHECKING:
    from mlflow.tracking.client import MlflowClient

# Before MLflow is imported. One try and a patience of seconds a request: what fails is tried again
# from disk.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with its password
}

# The UI opens the experiment as training runs, not as GenAI traces.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
TRAINING = "machine_learning"  # MLflow's name for the pages of model training, not of agents
PAGES = "pages.json"  # in the store: where Dagster's and MLflow's pages were served last
RUNS_AT_ONCE = 100  # in one search
NOT_MLFLOWS = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)  # no such table
SQLITE_FILES = ("", "-journal", "-wal", "-shm")  # the endings of one database

_import_lock = threading.RLock()
_clients: dict[str, MlflowClient] = {}


def first_line(error: BaseException) -> str:
    """What an error says, for a sentence: without secrets, and without its further lines."""
    return redacted(str(error)).strip().partition("\n")[0][:300]


@contextmanager
def importing_mlflow() -> Iterator[None]:
    """Import MLflow, and what imports it, in here only: threads that import it at the same time see
    half of it. It reads its settings then.
    """
    with _import_lock:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        yield
        for logger in ("mlflow", "alembic"):  # a problem comes as an exception, and is logged once
            logging.getLogger(logger).setLevel(logging.CRITICAL)


def with_driver(url: str) -> str:
    """`url` of a Postgres with the driver that is installed with us: by itself SQLAlchemy takes
    another, with which Dagster's pages close their connections.
    """
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg2://{rest}" if scheme in ("postgresql", "postgres") else url


class Server:
    """Where MLflow is, and how to speak with it: by `MlflowClient` and explicit ids, never through
    global state.
    """

    def __init__(
        self, home: Path, uri: str | None = None, say: Say = lambda sentence: None
    ) -> None:
        """`uri`: default MLFLOW_TRACKING_URI, else the store's file. `say` hears that this file had
        to be made anew.
        """
        self.home = home
        self.say = say
        self.file = home / LOCAL
        local = f"sqlite:///{self.file}"
        self.uri = with_driver(uri or os.environ.get("MLFLOW_TRACKING_URI") or local)
        self.is_local = self.uri == local
        self.address = redacted(self.uri).rstrip("/")  # as it may be shown
        self.name = LOCAL if self.is_local else self.address  # as delivery.json has it

    @property
    def ui(self) -> str:
        """The address of MLflow's page."""
        served = self.address if self.uri.startswith("http") else self._page("mlflow", 5000)
        return _address(os.environ.get("LINEAGE_MLFLOW_UI") or served)

    @property
    def dagster_ui(self) -> str:
        """The address of Dagster's page."""
        return _address(os.environ.get("LINEAGE_DAGSTER_UI") or self._page("dagster", 3000))

    def _page(self, name: str, port: int) -> str:
        return _pages(self.home).get(name) or f"http://127.0.0.1:{port}"

    def client(self) -> MlflowClient:
        """Connected; the first call imports MLflow (1 s, 120 MB). Raises what MLflow raises."""
        with importing_mlflow():
            from mlflow.tracking.client import MlflowClient
        with importing_mlflow():  # the tables' code too; by now MLflow's logger is quiet
            if self.uri not in _clients:
                if self.is_local:
                    prepare(self.file, self.say)
                registry = with_driver(os.environ.get("MLFLOW_REGISTRY_URI") or self.uri)
                with migrating:  # a new database that is not the store's
                    _clients[self.uri] = MlflowClient(self.uri, registry)
            return _clients[self.uri]

    def experiment(self, recipe: str) -> str:
        """The id of the recipe's experiment, made where there is none."""
        client = self.client()
        from mlflow.exceptions import MlflowException

        existing = client.get_experiment_by_name(recipe)
        if existing is None:
            folder = self._artifacts()
            artifacts = (folder / recipe).as_uri() if folder else None
            try:
                return client.create_experiment(recipe, artifacts, tags=EXPERIMENT_TAGS)
            except MlflowException:  # another process was quicker
                existing = client.get_experiment_by_name(recipe)
                if existing is None:
                    raise
        if existing.lifecycle_stage == "deleted":
            client.restore_experiment(existing.experiment_id)
        return existing.experiment_id

    def _artifacts(self) -> Path | None:
        """Where MLflow keeps files, where no server says: beside a file of sqlite, and in the store
        for another database. By itself MLflow takes ./mlruns.
        """
        from mlflow.store.db.db_types import DATABASE_ENGINES
        from sqlalchemy.engine import make_url

        if self.uri.partition(":")[0].partition("+")[0] not in DATABASE_ENGINES:
            return None
        url = make_url(self.uri)
        file = self.file
        if url.get_backend_name() == "sqlite" and url.database:
            file = Path(url.database).absolute()
        return file.parent / ARTIFACTS

    def active(self, runs: Mapping[str, str]) -> set[str]:
        """Those of `runs` (run id -> recipe) that the server has and nobody has deleted. Raises
        what MLflow raises.

        The store's own file is read without MLflow: every `gpt-lineage run` looks here.
        """
        if self.is_local:
            rows = _rows(self.file, "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active'")
            return {row[0] for row in rows} & runs.keys()
        client = self.client()
        experiments = [client.get_experiment_by_name(name) for name in sorted(set(runs.values()))]
        ids = [experiment.experiment_id for experiment in experiments if experiment]
        names, active = sorted(runs), set()
        for start in range(0, len(names) if ids else 0, RUNS_AT_ONCE):
            some = ", ".join(f"'{name}'" for name in names[start : start + RUNS_AT_ONCE])
            matches = client.search_runs(ids, f"run_id IN ({some})", max_results=RUNS_AT_ONCE)
            active |= {run.info.run_id for run in matches}
        return active


def record_page(home: Path, name: str, address: str) -> None:
    """Remembers where a page ("dagster", "mlflow") is served, for the links that lead to it."""
    with locked(home / f"{PAGES}.lock"):
        write_json(home / PAGES, _pages(home) | {name: address})


def _pages(home: Path) -> dict[str, str]:
    try:
        pages = read_json(home / PAGES)
    except (OSError, CorruptFile):
        return {}
    return pages if isinstance(pages, dict) else {}


def _address(url: str) -> str:
    return redacted(url).rstrip("/")


def _rows(file: Path, query: str) -> list[tuple[str]]:
    """What `query` finds in a sqlite file of MLflow's; nothing where it is none, or damaged.

    Opened for writing: what a killed process left half written is rolled back then.
    """
    if not file.exists():
        return []
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=20)) as database:
            return database.execute(query).fetchall()
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) in NOT_MLFLOWS:
            return []
        raise


def prepare(file: Path, say: Say) -> None:
    """Makes `file` a database of the MLflow installed, or brings it to that MLflow's schema, before
    anything writes: two that start at once would collide.

    That happens beside it, so that a process which dies leaves no half of it. A file that cannot be
    brought there and has no run in it is set aside, and `say` hears of that.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_name(f"{file.name}.lock"), patience=120.0):
        relocate(file.parent)
        try:
            if file.exists() and not _is_old(file):
                return
            _remade(file, copied=file.exists())
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            if not file.exists():
                raise
            if _rows(file, "SELECT 1 FROM runs LIMIT 1"):
                raise UserError(
                    f"{file} cannot be brought to the schema of the MLflow installed ({reason}). "
                    "Move it away, and `gpt-lineage deliver` makes the runs of this store anew."
                ) from error
            aside = _set_aside(file)
            say(
                f"{file} was no whole database of MLflow's ({reason}), and no run is in it. It is "
                f"set aside as {aside.name}, and made anew."
            )
            _remade(file, copied=False)


def _is_old(file: Path) -> bool:
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{file}")
    try:
        return not utils._all_tables_exist(engine) or (
            utils._get_schema_version(engine) != utils._get_latest_schema_revision()
        )
    finally:
        engine.dispose()


def _remade(file: Path, *, copied: bool) -> None:
    """Migrates a new database, or a copy of `file`, beside it, and renames it."""
    from mlflow.store.db import utils

    beside = file.with_name(f"{file.name}.new")
    for ending in SQLITE_FILES:
        beside.with_name(beside.name + ending).unlink(missing_ok=True)
    if copied:
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(beside)) as target:
            source.backup(target)
    engine = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{beside}")
    try:
        with migrating:
            if utils._all_tables_exist(engine):
                utils._upgrade_db(engine)
            else:
                utils._initialize_tables(engine)
    finally:
        engine.dispose()
    fsync(beside)
    beside.replace(file)
    fsync(file.parent)


def _set_aside(file: Path) -> Path:
    number = 1
    while (aside := file.with_name(f"{file.name}.damaged-{number}")).exists():
        number += 1
    for ending in SQLITE_FILES:
        part = file.with_name(file.name + ending)
        if part.exists():
            part.replace(aside.with_name(aside.name + ending))
    return aside
