"""`gpt-lineage ui` with every recipe: seconds from its start to the asset graph of one recipe, and
processor time and memory over `dagster dev` on a project with one asset.

python benchmarks/ui_start.py [--recipe NAME] [--rounds N] [--json PATH]

The two take turns. Each starts on an empty home that its first, uncounted round has prepared. The
graph is there when GraphQL answers with the recipe's assets. Memory is the proportional set size
(PSS) of the whole process tree: pages that processes share are counted once. On a busy machine
only processor time and memory say anything.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import psutil

HERE = Path(__file__).resolve().parents[1]
BARS = {"seconds": 10.0, "megabytes over an empty project": 150.0}
PATIENCE_SECONDS = 300.0
SETTLE_SECONDS = 5.0  # between the graph and the look at memory
QUERY = "{assetNodes(group: {groupName: %s, repositoryName: %s, repositoryLocationName: %s}) {id}}"
EMPTY = "import dagster as dg\n\n\n@dg.asset\ndef one() -> None: ...\n"


class Start(NamedTuple):
    seconds: float
    processor_seconds: float  # of the whole tree until the graph is there
    megabytes: float
    processes: int


class Command(NamedTuple):
    """A server, and the group of assets that it is asked for."""

    arguments: list[str]
    home: Path
    folder: Path
    group: str
    location: str


def measured(command: Command) -> Start:
    """One start, until the graph is there and the processes have settled."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "LINEAGE_HOME": str(command.home),
        "DAGSTER_HOME": str(command.home / "dagster"),
        "DAGSTER_DISABLE_TELEMETRY": "true",
    }
    (command.home / "dagster").mkdir(parents=True, exist_ok=True)
    names = (command.group, "__repository__", command.location)
    query = QUERY % tuple(json.dumps(name) for name in names)
    began = time.monotonic()
    with (command.home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command.arguments, "--port", str(port)],
            cwd=command.folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while not _assets(port, query):
            if server.poll() is not None or time.monotonic() - began > PATIENCE_SECONDS:
                sys.exit(f"{command.arguments}: no graph; see {command.home / 'server.log'}")
            time.sleep(0.1)
        seconds = time.monotonic() - began
        tree = _tree(server.pid)
        spent = sum(sum(process.cpu_times()[:2]) for process in tree)
        time.sleep(SETTLE_SECONDS)
        tree = _tree(server.pid)
        bytes_used = sum(process.memory_full_info().pss for process in tree)
        return Start(seconds, spent, bytes_used / 1e6, len(tree))
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _tree(pid: int) -> list[psutil.Process]:
    server = psutil.Process(pid)
    return [server, *server.children(recursive=True)]


def _assets(port: int, query: str) -> int:
    """How many assets GraphQL answers with; 0 while the server starts."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        json.dumps({"query": query}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310 - loopback
            answer = json.load(reply)
    except (urllib.error.URLError, OSError):
        return 0
    return len((answer.get("data") or {}).get("assetNodes") or [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="tiny", help="whose graph is waited for")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ui-start-") as name:
        folder = Path(name)
        (folder / "empty.py").write_text(EMPTY, encoding="utf-8")
        dagster = str(Path(sys.executable).with_name("dagster"))
        commands = {
            "gpt-lineage ui": Command(
                [sys.executable, "-m", "pipelines.cli", "ui"],
                folder / "lineage",
                HERE,
                options.recipe,
                "gpt-lineage",
            ),
            "dagster dev, empty": Command(
                [dagster, "dev", "-f", "empty.py"], folder / "empty", folder, "default", "empty.py"
            ),
        }
        for command in commands.values():  # Python's bytecode and Dagster's databases
            measured(command)
        starts: dict[str, list[Start]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                starts[name].append(measured(command))
                print(f"{name:20} {starts[name][-1]}", flush=True)
    medians = {
        name: Start(*(statistics.median(values) for values in zip(*rows, strict=True)))
        for name, rows in starts.items()
    }
    ours, empty = medians.values()
    over = ours.megabytes - empty.megabytes
    result = {
        "recipes": len(list((HERE / "recipes").glob("*.yaml"))),
        "load average": os.getloadavg()[0],
        "seconds": ours.seconds,
        "seconds of an empty project": empty.seconds,
        "processor seconds": ours.processor_seconds,
        "processor seconds of an empty project": empty.processor_seconds,
        "megabytes": ours.megabytes,
        "megabytes over an empty project": over,
        "processes": ours.processes,
    }
    print(json.dumps(result, indent=1))
    for name, bar in BARS.items():
        print(
            f"{name}: {result[name]:.1f}, bar {bar:g}: {'met' if result[name] <= bar else 'not met'}"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
