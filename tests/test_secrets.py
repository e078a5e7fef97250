"""No secret of the environment stands in the store, in MLflow, in Dagster, in a log or on the
terminal, whatever fails. `test_pages.py` looks for them in what the pages serve.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests
from conftest import ROOT, extending, free_port, write_local_recipe
from planted_secrets import FAILURE, MARK, PRINTING, environment_with_secrets, files_with_secrets

from assets.store.store import Store
from assets.tracking.tracking import Tracking


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[None]:
    """MLflow as a team runs it, at `port`, its output in `folder`."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.slow
def test_no_secret_of_the_environment_stands_anywhere(
    tmp_path: Path, first_start: tuple[Path, list[int]]
) -> None:
    home, port = tmp_path / "lineage", free_port()
    environment = environment_with_secrets(home, tmp_path / "scratch", port)
    printed = ""

    def run(recipe: Path, **more: str) -> int:
        nonlocal printed
        command = [sys.executable, "-m", "pipelines.cli", "run", str(recipe)]
        done = subprocess.run(
            command, env=environment | more, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        printed += done.stdout + done.stderr
        return done.returncode

    recipe = write_local_recipe(tmp_path, tokens=2048, paragraphs=200)
    # No server answers, and the worker says all it knows.
    assert run(recipe, **PRINTING) == 1
    assert FAILURE in printed and f"MLflow at http://127.0.0.1:{port}" in printed
    logs = [path.read_text() for path in home.glob("building/*/journal/worker.log")]
    assert any("HF_TOKEN" in log for log in logs)  # it did print its environment
    index = (
        "corpus: {sources: [{name: it, package: 'it==1.0', sha256: '"
        + "ab" * 32
        + "', files: 'it/*'}]}"
    )
    assert run(extending(tmp_path, index)) == 1
    assert "index.invalid" in printed
    hub = "corpus: {sources: [{name: it, hub: a/b, revision: main, split: train, text: text}]}"
    assert run(extending(tmp_path, hub)) == 1
    assert "a/b" in printed
    (tmp_path / "team").mkdir()
    shutil.copy(first_start[0], tmp_path / "team" / "mlflow.db")
    with mlflow_server(tmp_path / "team", port):
        for _ in range(600):
            try:
                requests.get(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except requests.ConnectionError:
                continue
        assert run(recipe) == 0
        artifact = Store(home).resolve("local/pretrained")
    uri = f"http://127.0.0.1:{port}"
    assert Tracking(home, uri).run_of(artifact) is not None
    if find_spec("wandb"):
        assert list((home / "wandb").glob("offline-run-*"))
    if find_spec("tensorboard"):
        assert list((tmp_path / "scratch" / "runs" / "local" / "pretrained").rglob("*tfevents*"))
    assert files_with_secrets(tmp_path) == []
    assert MARK not in printed
