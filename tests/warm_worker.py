"""Builds a recipe's nodes one after the other with the pipeline's own `build`, each stage's worker
forked off one process that has the imports behind it: a tenth of the time of starting each anew.

`python tests/warm_worker.py` is that process: it takes a job a line and prints its exit status.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
ONE_RANK = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}


class WarmLauncher:
    """`LocalLauncher`'s stand-in, for stages on one rank."""

    device = "cpu"

    def __init__(self, home: Path) -> None:
        """For builds in the store `home`."""
        from assets.store.home import cache_environment

        # libraries read theirs when they are imported
        caches = cache_environment(home / "downloads")
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, **caches, **ONE_RANK, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, ranks: Any) -> Any:
        from assets.launch.launcher import Exit

        assert ranks.count == 1
        assert self._process.stdin and self._process.stdout
        job = {"folder": ranks.command[-1], "log": str(ranks.log), "environment": dict(ranks.env)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Exit(int(self._process.stdout.readline()), None, 0, ranks.log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=30)


def build_recipe(path: Path, home: Path, launcher: WarmLauncher) -> dict[str, Any]:
    """Every artifact of a recipe, by its asset's name. A failed check of one stops the rest, as in
    a run.
    """
    from assets.build import Request, build, gather_inputs
    from assets.graph import nodes
    from assets.recipe.profile import load_profile
    from assets.recipe.recipe import load_recipe
    from assets.store.store import Store
    from assets.tracking.tracking import Tracking

    store, tracking, profile = Store(home), Tracking(home), load_profile("single")
    artifacts = {}
    for node in nodes(load_recipe(str(path))):
        request = Request(node, gather_inputs(store, node), node.config(path.parent), profile)
        artifacts[node.name] = build(request, store, launcher, tracking).artifact
    return artifacts


def _main() -> None:
    from assets import worker
    from gpt_model.training.engine import _import_deepspeed

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print there
    for folder in ("execution", "report"):
        for module in sorted((ROOT / "assets" / folder).glob("[a-z]*.py")):
            importlib.import_module(f"assets.{folder}.{module.stem}")
    for name in ("datasets", "sklearn.metrics", "transformers.models.bert.modeling_bert"):
        importlib.import_module(name)
    _import_deepspeed(compiling=False)
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            job = json.loads(line)
            os.environ.update(job["environment"])
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.argv = ["worker", job["folder"]]
            code = worker.main()
            sys.stderr.flush()
            sys.stdout.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    _main()
