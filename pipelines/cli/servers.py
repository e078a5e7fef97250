"""The commands that serve pages: ui (Dagster) and mlflow, on this machine only, over this store."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from assets.launch.launcher import module_command, serve
from assets.store.store import Store
from assets.tracking.relocation import ARTIFACTS
from assets.tracking.server import importing_mlflow, prepare, record_page
from assets.tracking.state import LOCAL
from pipelines.cli.common import command_group
from pipelines.local_only import HOST, NAMES, check_free

GRACE_SECONDS = 10.0  # between TERM and KILL: runs of the page end their workers first

Host = Annotated[
    str, typer.Option("--host", metavar="ADDRESS", help="where to listen, for other machines too")
]

app = command_group()


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="where to listen")] = 3000,
    host: Host = HOST,
) -> None:
    """Dagster's pages over this store, until Ctrl-C."""
    home = Store.default_home()
    environment = server_environment(home)
    command = [*module_command(sys.executable, "pipelines.webserver"), host, str(port)]
    _serve("Dagster", command, environment, home, host, port)


@app.command()
def mlflow(
    port: Annotated[int, typer.Option(min=1, max=65535, help="where to listen")] = 5000,
    host: Host = HOST,
) -> None:
    """MLflow's pages over this store, until Ctrl-C."""
    home = Store.default_home()
    environment = server_environment(home)
    with importing_mlflow():
        prepare(home / LOCAL, typer.echo)  # before anything else writes to it
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    # one worker: the default starts fifteen processes and leaves some behind
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{home / LOCAL}"]
    command += ["--default-artifact-root", str(home / ARTIFACTS)]
    command += ["--allowed-hosts", ",".join(f"{name}:{port}" for name in (*NAMES, host))]
    _serve("MLflow", command, environment, home, host, port)


def server_environment(home: Path) -> dict[str, str]:
    """What both servers need: the home of the builds, made ready; MLflow's job executor off."""
    from assets.lineage import prepare_home  # imports Dagster, for which --help does not wait

    return {
        **os.environ,
        "LINEAGE_HOME": str(home),
        "DAGSTER_HOME": str(prepare_home(home)),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _serve(
    name: str, command: list[str], environment: Mapping[str, str], home: Path, host: str, port: int
) -> None:
    """Runs the server under a guard, so that it and its children end with this process."""
    check_free(port, "--port", host)
    address = f"http://{host}:{port}"
    record_page(home, name.lower(), address)
    typer.echo(f"{name}: {address}  (Ctrl-C stops it)")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also where Ctrl-C is ignored
    with suppress(KeyboardInterrupt):
        raise typer.Exit(serve(command, environment, GRACE_SECONDS))
