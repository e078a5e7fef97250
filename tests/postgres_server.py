"""A real Postgres server, as Debian's package has it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from conftest import free_port
from s3_server import end

PASSWORD = "xyzzy-postgres-password"  # noqa: S105 # of nothing
SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


class Postgres:
    """A server with the databases `dagster` and `mlflow`. `folder`: of its data and its socket."""

    def __init__(self, folder: Path, host: str) -> None:
        self.folder, self.host, self.port = folder, host, free_port()

    def address(self, database: str) -> str:
        return f"postgresql://lineage:{PASSWORD}@{self.host}:{self.port}/{database}"

    def query(self, database: str, statement: str) -> list[tuple[object, ...]]:
        """By the server's socket, which every network namespace reaches."""
        import psycopg2  # of an extra

        ends = time.monotonic() + 30
        while True:
            try:
                connection = psycopg2.connect(
                    host=str(self.folder),
                    port=self.port,
                    user="lineage",
                    password=PASSWORD,
                    dbname=database,
                )
                break
            except psycopg2.OperationalError:  # it starts
                assert time.monotonic() < ends
                time.sleep(0.1)
        connection.autocommit = True
        with closing(connection), connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def postgres_server(
    host: str = "127.0.0.1", on: Callable[[list[str]], list[str]] = list
) -> Iterator[Postgres]:
    """`on`: the command that runs a command on the machine that has the address `host`."""
    pytest.importorskip("psycopg2", reason="pip install -e .[postgres]")
    if not SERVERS:
        pytest.skip("no Postgres on this machine: apt-get install postgresql")
    tools, folder = SERVERS[-1], Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))
    account: list[str] = []
    if os.getuid() == 0:  # as which Postgres refuses to run
        shutil.chown(folder, "postgres", "postgres")
        account = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    (folder / "password").write_text(PASSWORD, encoding="utf-8")
    data, server = folder / "data", Postgres(folder, host)
    initdb = [str(tools / "initdb"), "--pgdata", str(data), "--username", "lineage"]
    initdb += ["--auth", "scram-sha-256", "--pwfile", str(folder / "password"), "--no-sync"]
    subprocess.run([*account, *initdb], cwd=folder, check=True, capture_output=True)
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {host}/24 scram-sha-256\n")
    command = [str(tools / "postgres"), "-D", str(data), "-p", str(server.port), "-k", str(folder)]
    command += ["-c", f"listen_addresses={host}", "-c", "fsync=off"]
    process = subprocess.Popen(on([*account, *command]), cwd=folder, stderr=subprocess.DEVNULL)
    try:
        for name in ("dagster", "mlflow"):
            server.query("postgres", f"CREATE DATABASE {name}")
        yield server
    finally:
        end(process, signal.SIGINT)  # which waits for no client
        shutil.rmtree(folder)
