"""The demo as a person runs it, in a home of its own: wall time, the time of a second run, the time
outside stage functions, memory.

    python benchmarks/demo.py [--recipe tiny] [--home DIR] [--json FILE]

Overhead is the wall time of the first run less the seconds inside stage functions, which every
manifest records: Dagster, MLflow, process starts, checks, pictures, publication.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from assets.store.store import Store  # noqa: E402
from benchmarks.bars import at_most, verdict  # noqa: E402


def run(recipe: str, home: Path) -> tuple[float, int]:
    """(wall seconds, peak memory of the orchestrator in bytes) of `gpt-lineage run`."""
    environment = {**os.environ, "LINEAGE_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    command = [sys.executable, "-m", "pipelines.cli", "run", recipe]
    began, peak = time.monotonic(), 0
    process = psutil.Popen(command, cwd=ROOT, env=environment)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        if "VmHWM:" in status:
            peak = max(peak, int(status.split("VmHWM:")[1].split()[0]) * 1024)
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"gpt-lineage run {recipe} ended with status {process.returncode}")
    return time.monotonic() - began, peak


def measure(recipe: str, home: Path) -> dict[str, Any]:
    first, first_peak = run(recipe, home)
    second, second_peak = run(recipe, home)
    store, name = Store(home), Path(recipe).stem
    stages = {
        ref: store.resolve(ref).manifest["provenance"]["stage_seconds"]
        for ref in store.refs()
        if ref.startswith(f"{name}/")
    }
    overhead = first - sum(stages.values())
    return {
        "first_seconds": first,
        "second_seconds": second,
        "stage_seconds": stages,
        "overhead_seconds": overhead,
        "overhead_share": overhead / first,
        "orchestrator_peak_bytes": max(first_peak, second_peak),
    }


def report(results: dict[str, Any]) -> str:
    first, second = results["first_seconds"], results["second_seconds"]
    overhead, share = results["overhead_seconds"], 100 * results["overhead_share"]
    megabytes = results["orchestrator_peak_bytes"] / 1e6
    stages = [f"  {name}: {seconds:.1f} s" for name, seconds in results["stage_seconds"].items()]
    lines = [
        f"first run {first:.0f} s {at_most('first run', first, 600, 's')}",
        f"second run {second:.1f} s {at_most('second run', second, 30, 's')}",
        f"not in stage functions: {overhead:.0f} s {at_most('overhead', overhead, 60, 's')}, "
        f"{share:.1f} % {at_most('overhead', share, 15, '%')}",
        f"orchestrator's peak memory {megabytes:.0f} MB "
        f"{at_most('peak memory', megabytes, 400, 'MB')}",
    ]
    return "\n".join([*lines, *stages])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--home", type=Path, help="an empty folder; default: a temporary one")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        results = measure(given.recipe, given.home or Path(folder) / "lineage")
    print(report(results))
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
