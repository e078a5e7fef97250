"""The two pages to look at: Dagster's and MLflow's, on this machine only, over the store of this
home.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from assets.lineage import prepare_home
from assets.store.store import Store
from assets.tracking.server import Server

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"


def dagster_command(port: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "dagster",
        "dev",
        "-w",
        str(ROOT / "workspace.yaml"),
        "-h",
        HOST,
        "-p",
        str(port),
    ]


def mlflow_command(port: int, home: Path) -> list[str]:
    """One worker: the default starts fifteen processes and leaves some behind."""
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        HOST,
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        f"sqlite:///{home / 'mlflow.db'}",
        "--default-artifact-root",
        str(home / "mlartifacts"),
    ]


def server_environment(home: Path) -> dict[str, str]:
    """What both servers need: the same home as the builds, MLflow's job executor off."""
    return {
        **os.environ,
        "LINEAGE_HOME": str(home),
        "DAGSTER_HOME": str(prepare_home(home)),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def serve_dagster(port: int = 3000) -> NoReturn:
    """Become `dagster dev`, until it is interrupted."""
    _become(
        dagster_command(port),
        f"Dagster: http://{HOST}:{port}  (Ctrl-C stops it)",
        Store.default_home(),
    )


def serve_mlflow(port: int = 5000) -> NoReturn:
    """Become `mlflow server` on the home's store, until it is interrupted."""
    home = Store.default_home()
    prepare_home(home)
    Server(home).client()  # migrates the database once, before anything else writes to it
    _become(mlflow_command(port, home), f"MLflow: http://{HOST}:{port}  (Ctrl-C stops it)", home)


def _become(command: list[str], told: str, home: Path) -> NoReturn:
    """Not a child process: the terminal's Ctrl-C then reaches the server alone, which ends its own
    children.
    """
    print(told, flush=True)
    os.execve(command[0], command, server_environment(home))  # noqa: S606 - no shell is wanted
