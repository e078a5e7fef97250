"""No secret of the environment stands in the store, in MLflow, in Dagster, in a log, on a page or
on the terminal, whatever fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from conftest import ROOT, extending, free_port, write_local_recipe

from assets.store.store import Store
from assets.tracking.tracking import Tracking

MARK = "xyzzy"  # in every secret, as it stands and decoded, and in nothing else
# Every stage's worker prints its whole environment and then fails with it.
DEFECT = """
    import logging, os, pathlib, sys
    read_text = pathlib.Path.read_text
    def fails(path, *arguments, **options):
        if "PRINT_THE_ENVIRONMENT" in os.environ and "assets.worker" in sys.orig_argv and (
            path.name == "job.json"
        ):
            print(dict(os.environ), flush=True)
            logging.warning("The environment: %s", dict(os.environ))
            raise RuntimeError(f"Not with this environment: {dict(os.environ)}")
        return read_text(path, *arguments, **options)
    pathlib.Path.read_text = fails
"""


def secrets(port: int) -> dict[str, str]:
    """Six kinds: an address with user and password, one with a token for its user, a proxy, a
    password, a token, a key. Nothing answers at the hub, the index and the proxy.
    """
    return {
        "MLFLOW_TRACKING_URI": f"http://me:{MARK}%2Ftracking@127.0.0.1:{port}",
        "PIP_INDEX_URL": f"https://{MARK}-index-token@index.invalid/simple",
        "HF_ENDPOINT": f"https://me:{MARK}-hub-password@hub.invalid",
        "HTTPS_PROXY": f"http://me:{MARK}%40proxy@127.0.0.1:1",
        "MLFLOW_TRACKING_PASSWORD": f"{MARK} registry password",
        "HF_TOKEN": f"hf_{MARK}0123456789",
        "AWS_SECRET_ACCESS_KEY": f"/{MARK}+0123456789/",
    }


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
    home, port, scratch = tmp_path / "lineage", free_port(), tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "sitecustomize.py").write_text(textwrap.dedent(DEFECT))
    clean = {
        name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
    }
    environment = (
        clean
        | secrets(port)
        | {
            "LINEAGE_HOME": str(home),
            "DAGSTER_HOME": str(home / "dagster"),
            "TMPDIR": str(scratch),
            "PYTHONPATH": f"{scratch}:{ROOT}",
            "NO_PROXY": "127.0.0.1",
        }
    )

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
    assert run(recipe, PRINT_THE_ENVIRONMENT="1") == 1
    assert (
        "Not with this environment" in printed and f"MLflow at http://127.0.0.1:{port}" in printed
    )
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
    holding = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and MARK.encode() in path.read_bytes()
    ]
    assert holding == []
    assert MARK not in printed
