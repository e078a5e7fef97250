"""Provenance: by whom, on what and at what cost an artifact was built. It stands in the manifest
and never identifies anything.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from assets.store.home import ROOT, is_checkout

PACKAGES = (
    "gpt-lineage",
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "safetensors",
    "lm_eval",
    "datasets",
    "numpy",
    "peft",
    "ftfy",
    "spacy",
    "dagster",
    "mlflow",
)


def provenance(
    *,
    profile: Mapping[str, Any],
    started: float,
    ended: float,
    seconds: float,
    cores: int,
    peak_memory_bytes: int,
    estimate: Mapping[str, Any] | None = None,
    dagster_runs: Sequence[str] = (),
    mlflow_run: str | None = None,
) -> dict[str, Any]:
    """All of it, as JSON values. `started`, `ended`: seconds since the epoch; `seconds`: spent
    building, over all attempts.
    """
    return {
        "git": git_state(),
        "python": platform.python_version(),
        "packages": packages(),
        "hardware": hardware(),
        "profile": dict(profile),
        "started": _iso(started),
        "ended": _iso(ended),
        "seconds": round(seconds, 3),
        "cost": {"core_seconds": round(seconds * cores, 3)},
        "peak_memory_bytes": peak_memory_bytes,
        "forecast": dict(estimate or {}),  # the key of the manifests in users' stores
        "dagster_runs": list(dagster_runs),
        "mlflow_run": mlflow_run,
    }


def seconds_spent(made: Mapping[str, Any]) -> float:
    """What building took, by its provenance, over all attempts; of a single one by the stage's own
    clock, which runs past its last word.
    """
    return max(float(made["seconds"]), float(made["stage_seconds"]))


def execution(made: Mapping[str, Any]) -> str:
    """How an artifact was built, by its provenance. Another number of ranks or threads adds numbers
    in another order, so that the same section and inputs give other bytes.
    """
    ranks, threads = made.get("ranks"), made.get("threads")
    counts = f", ranks {ranks}, threads of each {threads}" if ranks else ""
    return f"profile {made['profile'].get('name')}{counts}"


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


@functools.cache
def git_state() -> dict[str, Any]:
    """The commit this code is at, and whether the working tree differs from it; nulls where it is
    no clone.
    """
    if not is_checkout():  # what git would answer there is of the project that has the environment
        return {"commit": None, "dirty": None}
    try:
        head = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        commit = subprocess.run(
            head, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        status = ["git", "-C", str(ROOT), "status", "--porcelain"]
        dirty = bool(
            subprocess.run(
                status, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
        )
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": dirty}


@functools.cache
def packages() -> dict[str, str]:
    """Versions of what can change a result, and of what runs it."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory in bytes, GPUs by name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": cores,
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpu_names(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("model name")),
        platform.processor(),
    )


def _gpu_names() -> list[str]:
    """NVIDIA GPUs, asked of the driver's own tool: importing torch would cost the orchestrator its
    memory.
    """
    if not (tool := shutil.which("nvidia-smi")):
        return []
    try:
        listing = subprocess.run(
            [tool, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listing.stdout.splitlines() if line.strip()]
