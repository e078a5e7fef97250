"""Several machines, made of Linux namespaces: how long ranks outlive a kill of anything, whether a
recipe ends with the same bytes after it, and tokens/s of four hosts against four ranks of one.

    python benchmarks/hosts.py [kills|cable|resumed|speed] [--times 5] [--json FILE]

The machines, the ranks and what is killed are those of tests/test_hosts.py; needs root, sshd and
Slurm; `--by ray` starts a Ray cluster, and `--by kubernetes` the tests' own. The network is this
machine's memory: it says nothing about a real one. The tests' hosts give up after 6 seconds of
silence, a profile's after 45.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import test_hosts as cases  # noqa: E402
from machines import Machines, until  # noqa: E402

from assets.launch.hosts import SILENCE_SECONDS  # noqa: E402
from benchmarks.bars import at_least, at_most, verdict  # noqa: E402

KINDS = ("rank", "guard", "watcher", "carrier", "starter", "head", "node")
# The tests' Kubernetes is on the head, and has no daemon on the nodes.
KINDS_OF = {"ray": (*KINDS, "actor"), "kubernetes": KINDS[:5]}
LONGER = "tokens: 600_000"  # some ten seconds of training, for a kill in its middle
WIDER = {"layers: 2, width: 32, heads: 2": "layers: 4, width: 192, heads: 3"}


def kills(machines: Machines, folder: Path, times: int) -> dict[str, Any]:
    """Seconds until no rank ran, of every kind and transport; the allocations that were left."""
    seconds: dict[str, list[float]] = {}
    left = 0
    for by in cases.TRANSPORTS:
        for kind in KINDS_OF.get(by, KINDS):
            for _ in range(times):
                shutil.rmtree(folder / "run", ignore_errors=True)
                (folder / "run").mkdir()
                started = cases.Started(machines, folder / "run", by)
                started.up()
                cases.kill(started, kind, by)
                gone = until(started.gone, f"ranks outlived {kind}", 120)
                seconds.setdefault(f"{by}, {kind}", []).append(round(gone, 2))
                started.process.communicate()
                time.sleep(1)
                left += bool(cases.allocations(machines))
                until(lambda: not cases.allocations(machines), "an allocation was left", 120)
            print(f"{by}, {kind}: {seconds[f'{by}, {kind}']}", flush=True)
    return {"seconds": seconds, "longest": max(map(max, seconds.values())), "left": left}


def cable(machines: Machines, folder: Path, times: int) -> dict[str, Any]:
    """Seconds until both halves had ended, with a profile's silence; and the allocation after it."""
    seconds: dict[str, list[float]] = {}
    for by in cases.TRANSPORTS:
        for _ in range(times):
            shutil.rmtree(folder / "run", ignore_errors=True)
            (folder / "run").mkdir()
            started = cases.Started(machines, folder / "run", by, silence=SILENCE_SECONDS)
            started.up()
            machines.pull_cable("n2")
            seconds.setdefault(by, []).append(
                round(until(started.gone, "ranks outlived a cable", 300), 1)
            )
            machines.plug_cable("n2")
            started.process.communicate()
            until(machines.slurm_is_idle, "an allocation was left", 300)
        print(f"{by}, cable: {seconds[by]}", flush=True)
    return {"seconds": seconds, "longest": max(map(max, seconds.values()))}


def resumed(machines: Machines, folder: Path, times: int) -> dict[str, Any]:
    """Of builds that lost something in the middle of training, how many ended with the digests of
    an undisturbed one on this machine.
    """
    recipe = cases.Recipe(machines, folder)
    path = folder / "hosts.yaml"
    path.write_text(path.read_text().replace("tokens: 60_000", LONGER))
    cases.finish(recipe.run("here"))
    tried = equal = 0
    for by in cases.TRANSPORTS:
        for kind in KINDS_OF.get(by, KINDS):
            for _ in range(times):
                recipe.copy_up_to_tokens(by)
                run = recipe.run(by)
                until(partial(_training, folder / by), "nothing was trained", 120)
                cases.kill(Ranks(run, folder / by, machines), kind, by)
                if (by, kind) == ("ray", "node"):  # back after its restart, as ssh's and Slurm's
                    machines.join_ray("n2")
                run.communicate(timeout=300)
                if run.returncode:
                    cases.finish(recipe.run(by))
                tried += 1
                same = recipe.digests(by) == recipe.digests("here")
                equal += same
                print(f"{by}, {kind}: {'equal' if same else 'OTHER'} digests", flush=True)
    return {"tried": tried, "equal": equal}


class Ranks:
    """The ranks of a recipe's run, for `cases.kill`."""

    def __init__(self, process: Any, home: Path, machines: Machines) -> None:
        self.process, self.home, self.machines = process, home, machines

    def rank(self) -> Any:
        return next(iter(self._with("assets.worker", str(self.home / "building"))))

    def starter(self) -> Any:
        [starter] = self._with("pipelines.cli", str(self.home.parent))
        return starter

    def _with(self, module: str, prefix: str) -> list[Any]:
        return cases.processes(
            lambda words: (
                module in words[:4]
                and words[0] == sys.executable
                and any(word.startswith(prefix) for word in words)
            )
        )


def _training(home: Path) -> bool:
    events = home.glob("building/*/journal/events.jsonl")
    return any('"loss"' in path.read_text() for path in events)


def speed(folder: Path, rounds: int) -> dict[str, Any]:
    """Tokens/s of four ranks on four hosts by ssh, and on one, in turns."""
    rates: dict[str, list[float]] = {"here": [], "ssh": []}
    with Machines(folder / "four", ("n1", "n2", "n3", "n4")) as machines:
        machines.start_ssh()
        recipe = cases.Recipe(machines, folder)
        path = folder / "hosts.yaml"
        text = path.read_text().replace("tokens: 60_000", "tokens: 400_000")
        for small, wide in WIDER.items():
            text = text.replace(small, wide)
        path.write_text(text)
        for _ in range(rounds):
            for by, seen in rates.items():
                shutil.rmtree(folder / by, ignore_errors=True)
                cases.finish(recipe.run(by, processes=4))
                seen.append(_rate(folder / by))
                print(f"{by}: {seen[-1]:.0f} tokens/s", flush=True)
    medians = {by: statistics.median(seen) for by, seen in rates.items()}
    return {"tokens/s": rates, "ratio": medians["ssh"] / medians["here"]}


def _rate(home: Path) -> float:
    for path in home.glob("artifacts/*/artifact.json"):
        if rate := json.loads(path.read_text())["metrics"].get("tokens_per_second"):
            return float(rate)
    raise AssertionError(f"nothing was trained in {home}")


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("what", nargs="*", choices=["kills", "cable", "resumed", "speed"])
    parser.add_argument("--times", type=int, default=5, help="of each kind, or rounds")
    parser.add_argument("--by", choices=[*cases.TRANSPORTS, *KINDS_OF], help="this one alone")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.by:
        cases.TRANSPORTS = (arguments.by,)
    what = arguments.what or ["kills", "cable", "resumed", "speed"]
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with Machines(folder / "machines") as machines:
            machines.start_ssh()
            os.environ |= machines.start_slurm() | {"RAY_AUTH_MODE": "disabled"}
            if arguments.by == "kubernetes":
                os.environ |= machines.start_kubernetes()
            if "kills" in what:
                document["kills"] = kills(machines, folder, arguments.times)
                longest = document["kills"]["longest"]
                print(f"a rank outlived a kill by {longest} s", at_most("seconds", longest, 60))
            if "cable" in what:
                document["cable"] = cable(machines, folder, arguments.times)
                longest = document["cable"]["longest"]
                print(f"a cable's ranks ended after {longest} s", at_most("seconds", longest, 60))
            if "resumed" in what:
                document["resumed"] = resumed(machines, folder, arguments.times)
                share = document["resumed"]["equal"] / document["resumed"]["tried"]
                print(f"resumed to equal digests: {share:.0%}", at_least("share", share, 1.0))
        if "speed" in what:
            document["speed"] = speed(folder, arguments.times)
            ratio = document["speed"]["ratio"]
            print(f"four hosts against one: {ratio:.2f}", at_least("ratio", ratio, 0.9))
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1))
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
