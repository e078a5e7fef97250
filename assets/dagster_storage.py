"""Dagster's storage: the Postgres that LINEAGE_DAGSTER_DB names, else sqlite, with connections
that stay open.

Dagster's classes make an engine and a connection for each statement, so that SQLAlchemy compiles
the statement and sqlite reads the schema anew: a third of the processor time of a run that finds
everything built. The files are the same, and Dagster's classes read them too.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Whole before any thread begins: MLflow's thread would import it while another asks Dagster's
# database, and SQLAlchemy's statements break on a half imported sqlalchemy.orm.
import sqlalchemy.orm  # noqa: F401
import yaml
from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.event_log.sqlite.sqlite_event_log import (
    INDEX_SHARD_NAME,
    SqliteEventLogStorage,
)
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._serdes import ConfigurableClassData
from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError, InternalError

from assets.store.home import DATABASE
from assets.store.locks import migrating
from assets.tracking.server import with_driver
from gpt_model.errors import UserError

BUSY_SECONDS = 30  # that a statement waits for another process's
LOCK = "hashtextextended(:name, 0)"  # the number of a named advisory lock
# By which Postgres closes the session of a host that went without a word, within a minute.
KEEP_ALIVE = (
    "tcp_keepalives_idle = 20",
    "tcp_keepalives_interval = 10",
    "tcp_keepalives_count = 3",
    "tcp_user_timeout = '50s'",  # in place of signs of life, where an answer was on its way
)
LOOK_SECONDS = 5.0  # between two looks whether the session is open
RESTART_SECONDS = 30  # after its start Postgres has none of the locks that it had before


class OpenRunStorage(SqliteRunStorage):
    """The runs."""

    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engine = _engine(conn_string)
        super().__init__(conn_string, inst_data)

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> OpenRunStorage:
        return cls.from_local(inst_data=inst_data, **config_value)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._engine.begin() as connection:
            yield connection

    def dispose(self) -> None:
        super().dispose()
        self._engine.dispose()


class OpenEventLogStorage(SqliteEventLogStorage):
    """The events: a file for each run ("shard"), and one with an index of all. The index and the
    run of the last statement are open.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines: dict[str, Engine] = {}
        super().__init__(base_dir, inst_data)

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> OpenEventLogStorage:
        return cls(inst_data=inst_data, **config_value)

    def _initdb(self, engine: Engine, for_index_shard: bool = False) -> None:
        with migrating:
            super()._initdb(engine, for_index_shard)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        if shard not in self._initialized_dbs:  # its tables are not made yet, or wiped
            with super()._connect(shard):
                self._close(shard)
        with self._db_lock, self._engine(shard).begin() as connection:
            yield connection

    def _engine(self, shard: str) -> Engine:
        if shard not in self._engines:
            self._close(*self._engines.keys() - {INDEX_SHARD_NAME})
            self._engines[shard] = _engine(self.conn_string_for_shard(shard))
        return self._engines[shard]

    def _close(self, *shards: str) -> None:
        for shard in shards:
            if engine := self._engines.pop(shard, None):
                engine.dispose()

    def dispose(self) -> None:
        super().dispose()
        self._close(*self._engines)


def _engine(url: str) -> Engine:
    """Keeps one connection open, and makes more while threads need more at once."""
    return create_engine(url, pool_size=1, max_overflow=-1, connect_args={"timeout": BUSY_SECONDS})


def make_pools(instance: DagsterInstance, pools: Iterable[str]) -> None:
    """Make the limits of pools that a Postgres does not have yet. Two processes that begin there at
    once make the same one, and Dagster 1.13 goes on in the transaction that this ends.
    """
    if DATABASE not in os.environ:
        return
    storage = instance.event_log_storage
    for pool in sorted(set(pools) - storage.get_concurrency_keys()):
        with suppress(InternalError):  # the other process has made it
            storage.initialize_concurrency_limit_to_default(pool)


def process_lock(instance: DagsterInstance) -> str | None:
    """The name of a lock that this process holds in Dagster's Postgres until it ends, however it
    ends; None where Dagster has another database, which is one machine's.
    """
    url = getattr(instance.run_storage, "postgres_url", None)
    return _held(url) if url else None


def is_held(instance: DagsterInstance, lock: str) -> bool:
    """Whether the process still runs, on whichever host, that has the lock in this Postgres."""
    free = (
        f"SELECT pg_try_advisory_xact_lock_shared({LOCK}) "
        "AND now() - pg_postmaster_start_time() > make_interval(secs => :restart)"
    )
    with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
        values = {"name": lock, "restart": RESTART_SECONDS}
        return not connection.execute(text(free), values).scalar()


@functools.cache
def _held(url: str) -> str:
    name = secrets.token_hex(8)
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    session = _locking_session(engine, name)

    def hold() -> None:
        nonlocal session
        while True:
            time.sleep(LOOK_SECONDS)
            with suppress(DBAPIError):  # Postgres is down: Dagster's own statements say so
                if session.closed:
                    session = _locking_session(engine, name)
                try:
                    session.execute(text("SELECT 1"))
                except DBAPIError:
                    session.close()

    threading.Thread(target=hold, name="lock of this process", daemon=True).start()
    return name


def _locking_session(engine: Engine, name: str) -> Connection:
    session = engine.connect()
    for setting in KEEP_ALIVE:
        session.execute(text(f"SET {setting}"))
    session.execute(text(f"SELECT pg_advisory_lock({LOCK})"), {"name": name})
    return session


def instance_ref(home: Path) -> InstanceRef:
    """Dagster's instance in `home`, with this storage unless its dagster.yaml names another. Raises
    UserError where the database needs a package that is not installed.
    """
    ref, defaults = InstanceRef.from_dir(str(home)), InstanceRef.config_defaults(str(home))
    if ref.storage_data != defaults["storage"]:
        return ref
    if database := os.environ.get(DATABASE):
        if importlib.util.find_spec("dagster_postgres") is None:
            raise UserError(
                f"{DATABASE} needs the package dagster-postgres, not installed here: "
                "pip install 'gpt-lineage[postgres]' -c constraints.txt"
            )
        os.environ[DATABASE] = with_driver(database)  # for this process and those that it starts
        # by the variable's name: no file of Dagster's has the password
        postgres = {"postgres": {"postgres_url": {"env": DATABASE}}}
        return InstanceRef.from_dir(str(home), overrides={"storage": postgres})
    overrides = {}
    storages = {"run_storage": OpenRunStorage, "event_log_storage": OpenEventLogStorage}
    for key, storage in storages.items():
        if default := defaults[key]:
            config = yaml.safe_load(default.config_yaml)
            overrides[key] = {"module": __name__, "class": storage.__name__, "config": config}
    return InstanceRef.from_dir(str(home), overrides=overrides)
