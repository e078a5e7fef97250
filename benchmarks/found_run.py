"""Processor time of `gpt-lineage run RECIPE` where everything is built already.

python benchmarks/found_run.py RECIPE [--against CHECKOUT] [--runs N] [--json PATH]

Builds RECIPE first where it is not built, in a store of its own for each checkout. With --against,
another checkout of this repository takes turns with this one, run by run, and the ratio is of the
medians: on a busy machine only the ratio says anything.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def processor_seconds(checkout: Path, home: Path, recipe: str) -> float:
    """User and system time of one run, with every process that it waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {
        "PYTHONPATH": str(checkout),
        "LINEAGE_HOME": str(home),
        "DAGSTER_HOME": str(home / "dagster"),
    }
    command = [sys.executable, "-m", "pipelines.cli", "run", recipe, "--json"]
    done = subprocess.run(
        command, env=environment, cwd=checkout, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--against", type=Path, help="a checkout of another commit")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    recipe = (
        str(Path(options.recipe).resolve()) if Path(options.recipe).exists() else options.recipe
    )
    checkouts = {"here": HERE} | ({"against": options.against.resolve()} if options.against else {})
    seconds: dict[str, list[float]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory(prefix="found-run-") as folder:
        for name, checkout in checkouts.items():  # builds, and compiles Python's bytecode
            processor_seconds(checkout, Path(folder, name), recipe)
        for _ in range(options.runs):
            for name, checkout in checkouts.items():
                seconds[name].append(processor_seconds(checkout, Path(folder, name), recipe))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        times = " ".join(f"{time:.2f}" for time in seconds[name])
        print(f"{name:8} {median:.2f} s of processor time  ({times})")
    if options.against:
        print(f"ratio    {medians['here'] / medians['against']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(seconds) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
