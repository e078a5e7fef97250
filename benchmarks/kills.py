"""kill -9 at random moments of a build, then the same command again: equal digests, whole tracking.

    python benchmarks/kills.py [--kills 100] [--stores 25] [--seed 0] [--json FILE]

A build that nobody disturbs is the reference. Each further store is new; the first kill falls into
its first three seconds (longer where MLflow's database is there only later), the others into any
moment. The command's process, its whole group, or one process of its tree is killed. What the last run leaves
is compared with the reference: each artifact's digest, and all that MLflow has of its build.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from assets.store.store import Store  # noqa: E402
from benchmarks.bars import at_most, verdict  # noqa: E402

FIRST_SECONDS = 3.0
VICTIMS = ("process", "group", "member")
RECIPE = """\
name: killed
corpus:
  sources: [{name: notes, path: notes.txt, documents: paragraphs, licence: CC0-1.0}]
  held_out: 0.1
tokenizer: {style: gpt2, vocab_size: 300}
model: {family: gpt2, layers: 2, width: 32, heads: 2, context: 32, dropout: 0.1}
pretraining: {tokens: 20_480, batch_tokens: 512, learning_rate: 3e-3, warmup_tokens: 512, seed: 1, evaluations: 4, samples: 1}
"""
PROFILE = "name: killed\nprocesses: 1\nthreads: 1\ncheckpoint_seconds: 0.2\n"
# What differs between two builds of the same artifact.
CLOCK = ("system/", "usage/", "forecast.")


class Trial:
    """One store and the command that builds it."""

    def __init__(self, folder: Path, recipe: Path) -> None:
        self.home, self.recipe = folder / "lineage", recipe
        self.output = folder / "output.txt"

    def start(self) -> subprocess.Popen[bytes]:
        environment = {
            name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"
        }
        environment |= {
            "LINEAGE_HOME": str(self.home),
            "DAGSTER_HOME": str(self.home / "dagster"),
            "PYTHONPATH": str(ROOT),
        }
        profile = str(self.recipe.with_name("profile.yaml"))
        command = [sys.executable, "-m", "pipelines.cli", "run", str(self.recipe)]
        with self.output.open("ab") as output:
            return subprocess.Popen(
                [*command, "--profile", profile],
                env=environment,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def finish(self) -> tuple[float, float]:
        """Builds what is left. Returns the seconds until MLflow's database was there, and until the
        end; raises where the command fails.
        """
        began = time.monotonic()
        process, first = self.start(), 0.0
        while process.poll() is None:
            if not first and (self.home / "mlflow.db").exists():
                first = time.monotonic() - began
            time.sleep(0.05)
        if process.returncode:
            output = self.output.read_text(encoding="utf-8", errors="replace")
            raise SystemExit(f"The last run ended with {process.returncode}:\n{output[-5000:]}")
        return first, time.monotonic() - began

    def digests(self) -> dict[str, str]:
        store = Store(self.home)
        artifacts = {ref: store.find(fingerprint) for ref, fingerprint in store.refs().items()}
        return {ref: artifact.digest for ref, artifact in artifacts.items() if artifact}


def kill(process: subprocess.Popen[bytes], victim: str, chance: random.Random) -> bool:
    """Kills with -9. False where there was nothing left to kill."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
        if process.poll() is not None:
            return False
        if victim == "group":
            os.killpg(process.pid, signal.SIGKILL)
        elif victim == "member" and tree:
            chance.choice(tree).kill()
        else:
            process.kill()
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    if victim != "member":
        process.wait()
    return True


def tracked(home: Path) -> dict[str, Any]:
    """Asset -> what MLflow's database and files have of its builds, without clocks and ids."""
    with closing(sqlite3.connect(home / "mlflow.db")) as database:

        def rows(query: str, run: str) -> list[tuple[Any, ...]]:
            return sorted(database.execute(query, (run,)).fetchall())

        builds: dict[str, Any] = {}
        runs = database.execute(
            "SELECT run_uuid, status, value FROM runs JOIN tags USING (run_uuid)"
            " WHERE lifecycle_stage = 'active' AND key = 'lineage.asset'"
        ).fetchall()
        for run, status, asset in runs:
            metrics = Counter(rows("SELECT key, step FROM metrics WHERE run_uuid = ?", run))
            files = home.glob(f"mlartifacts/*/{run}/artifacts/**/*")
            builds.setdefault(asset, []).append(
                {
                    "status": status,
                    "metrics": {
                        metric: count
                        for metric, count in metrics.items()
                        if not metric[0].startswith(CLOCK)
                    },
                    "parameters": [
                        parameter
                        for parameter in rows(
                            "SELECT key, value FROM params WHERE run_uuid = ?", run
                        )
                        if not parameter[0].startswith(CLOCK)
                    ],
                    "digest": rows(
                        "SELECT value FROM tags WHERE key = 'lineage.digest' AND run_uuid = ?", run
                    ),
                    "inputs": len(
                        rows("SELECT source_id FROM inputs WHERE destination_id = ?", run)
                    ),
                    "models": rows(
                        "SELECT name, status FROM logged_models WHERE source_run_id = ?", run
                    ),
                    "versions": rows("SELECT name FROM model_versions WHERE run_id = ?", run),
                    "files": sorted(
                        str(path).rpartition("/artifacts/")[2] for path in files if path.is_file()
                    ),
                }
            )
        return builds


def differences(trial: Trial, digests: Mapping[str, str], tracking: Mapping[str, Any]) -> list[str]:
    """A sentence for each asset that is not as in the reference."""
    sentences = []
    results, deliveries = trial.digests(), tracked(trial.home)
    for ref, digest in digests.items():
        if results.get(ref) != digest:
            sentences.append(f"{ref} has digest {results.get(ref)}, and not {digest}.")
    for asset, [expected] in tracking.items():
        builds = deliveries.get(asset, [])
        if len(builds) != 1:
            sentences.append(f"{asset} has {len(builds)} runs in MLflow, and not 1.")
        else:
            different = [name for name in expected if builds[0][name] != expected[name]]
            sentences += [f"{asset} has other {name} in MLflow." for name in different]
    return sentences


def trial_of_kills(
    trial: Trial, kills: int, first: float, whole: float, chance: random.Random
) -> list[tuple[str, float]]:
    """Kills the build `kills` times, fewer where it is done before. Returns (victim, second)."""
    done: list[tuple[str, float]] = []
    for number in range(kills):
        second = chance.uniform(0.0, max(FIRST_SECONDS, first) if number == 0 else whole)
        victim = chance.choice(VICTIMS)
        process = trial.start()
        try:
            process.wait(timeout=second)
            break  # the build is done
        except subprocess.TimeoutExpired:
            if kill(process, victim, chance):
                done.append((victim, round(second, 3)))
        process.wait()
    return done


def write_recipe(folder: Path) -> Path:
    lines = [f"In the year {n} the {n * 7 % 97}th king saw {n * 5 % 89} ships." for n in range(400)]
    (folder / "notes.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    (folder / "profile.yaml").write_text(PROFILE, encoding="utf-8")
    recipe = folder / "killed.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return recipe


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stores", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    count, stores, again, wrong = 0, 0, 0, list[str]()
    victims: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        folder = Path(scratch)
        recipe = write_recipe(folder)
        reference = Trial(folder / "reference", recipe)
        reference.output.parent.mkdir()
        first, whole = reference.finish()
        digests, tracking = reference.digests(), tracked(reference.home)
        print(
            f"{len(digests)} assets in {whole:.1f} s without a kill, MLflow's database after "
            f"{first:.1f} s",
            flush=True,
        )
        while count < given.kills:
            each = min(-(-given.kills // given.stores), given.kills - count)
            trial = Trial(folder / f"store-{stores}", recipe)
            trial.output.parent.mkdir()
            kills = trial_of_kills(trial, each, first, whole, chance)
            _, seconds = trial.finish()
            problems = differences(trial, digests, tracking)
            if problems and all("MLflow" in problem for problem in problems):
                again += 1  # what the last run had no time to deliver, the next one does
                trial.finish()
                problems = differences(trial, digests, tracking)
            wrong += [f"store {stores}, killed at {kills}: {problem}" for problem in problems]
            count, stores = count + len(kills), stores + 1
            victims.update(victim for victim, _ in kills)
            moments = ", ".join(f"{victim} at {second:.2f} s" for victim, second in kills)
            state = "; ".join(problems) or "as the reference"
            print(f"{count} kills: {moments}; last run {seconds:.1f} s: {state}", flush=True)
    print(f"{count} kills ({dict(victims)}), {stores} stores, {again} needed one more run")
    print("\n".join(wrong), at_most("stores unlike the reference", float(len(wrong)), 0.0))
    if given.json:
        result = {"kills": count, "stores": stores, "again": again, "wrong": wrong}
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
