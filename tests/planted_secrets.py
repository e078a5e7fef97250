"""Secrets in the environment of a process under test, whose workers may print all of it and fail
with it.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from conftest import ROOT

MARK = "xyzzy"  # in every secret, as it stands and decoded, and in nothing else
PRINTING = {"PRINT_THE_ENVIRONMENT": "1"}  # what makes the workers do that
FAILURE = "Not with this environment"
DEFECT = f"""
    import logging, os, pathlib, sys
    read_text = pathlib.Path.read_text
    def fails(path, *arguments, **options):
        if "PRINT_THE_ENVIRONMENT" in os.environ and "assets.worker" in sys.orig_argv and (
            path.name == "job.json"
        ):
            print(dict(os.environ), flush=True)
            logging.warning("The environment: %s", dict(os.environ))
            raise RuntimeError(f"{FAILURE}: {{dict(os.environ)}}")
        return read_text(path, *arguments, **options)
    pathlib.Path.read_text = fails
"""


def environment_with_secrets(home: Path, scratch: Path, port: int) -> dict[str, str]:
    """Where MLflow is at `port`. `scratch` is for temporary files, and for the workers' defect."""
    scratch.mkdir()
    (scratch / "sitecustomize.py").write_text(textwrap.dedent(DEFECT))
    clean = {
        name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
    }
    return (
        clean
        | secrets(port)
        | {
            "LINEAGE_HOME": str(home),
            "DAGSTER_HOME": str(home / "dagster"),
            "TMPDIR": str(scratch),
            "PYTHONPATH": f"{scratch}:{ROOT}",
            "NO_PROXY": "127.0.0.1",
            "LINEAGE_WANDB": "plays",
            "WANDB_MODE": "offline",
            "LINEAGE_TENSORBOARD": str(scratch / "runs"),
        }
    )


def secrets(port: int) -> dict[str, str]:
    """Six kinds: an address with user and password, one with a token for its user, a proxy, a
    password, a token, a key. Nothing answers at the hub, the index, the proxy
    and Weights & Biases.
    """
    return {
        "MLFLOW_TRACKING_URI": f"http://me:{MARK}%2Ftracking@127.0.0.1:{port}",
        "PIP_INDEX_URL": f"https://{MARK}-index-token@index.invalid/simple",
        "HF_ENDPOINT": f"https://me:{MARK}-hub-password@hub.invalid",
        "HTTPS_PROXY": f"http://me:{MARK}%40proxy@127.0.0.1:1",
        "MLFLOW_TRACKING_PASSWORD": f"{MARK} registry password",
        "HF_TOKEN": f"hf_{MARK}0123456789",
        "AWS_SECRET_ACCESS_KEY": f"/{MARK}+0123456789/",
        "WANDB_API_KEY": MARK.ljust(40, "0"),
        "WANDB_BASE_URL": f"http://me:{MARK}-wandb-password@127.0.0.1:1",
    }


def files_with_secrets(folder: Path) -> list[Path]:
    return [
        path for path in folder.rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()
    ]
