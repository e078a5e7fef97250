"""The commands that serve pages: ui (Dagster) and mlflow, on this machine only, over this store."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from assets.store.store import Store
from assets.tracking.relocation import ARTIFACTS
from assets.tracking.server import importing_mlflow, prepare, record_page
from assets.tracking.state import LOCAL
from pipelines.cli.common import command_group

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"

app = command_group()


@app.command()
def ui(port: Annotated[int, typer.Option(min=1, max=65535)] = 3000) -> None:
    """Dagster's pages over this store, until Ctrl-C."""
    home = Store.default_home()
    environment = server_environment(home)
    record_page(home, "dagster", f"http://{HOST}:{port}")
    message = f"Dagster: http://{HOST}:{port}  (Ctrl-C stops it)"
    _become(dagster_command(port), message, environment)


@app.command()
def mlflow(port: Annotated[int, typer.Option(min=1, max=65535)] = 5000) -> None:
    """MLflow's pages over this store, until Ctrl-C."""
    home = Store.default_home()
    environment = server_environment(home)
    with importing_mlflow():
        prepare(home / LOCAL, typer.echo)  # before anything else writes to it
    record_page(home, "mlflow", f"http://{HOST}:{port}")
    message = f"MLflow: http://{HOST}:{port}  (Ctrl-C stops it)"
    _become(mlflow_command(port, home), message, environment)


def dagster_command(port: int) -> list[str]:
    workspace = str(ROOT / "workspace.yaml")
    command = [sys.executable, "-m", "dagster", "dev", "-w", workspace]
    return [*command, "-h", HOST, "-p", str(port)]


def mlflow_command(port: int, home: Path) -> list[str]:
    """One worker: the default starts fifteen processes and leaves some behind."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{home / LOCAL}"]
    return [*command, "--default-artifact-root", str(home / ARTIFACTS)]


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


def _become(command: list[str], message: str, environment: Mapping[str, str]) -> NoReturn:
    """Not a child process: the terminal's Ctrl-C then reaches the server alone, which ends its own
    children.
    """
    print(message, flush=True)
    os.execve(command[0], command, environment)  # noqa: S606 - no shell is wanted
