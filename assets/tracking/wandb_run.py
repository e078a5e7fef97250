"""Weights & Biases, by its own client: a build is a run, with the build's id as the run's.

Its own variables (WANDB_API_KEY, WANDB_BASE_URL, WANDB_ENTITY, WANDB_MODE, WANDB_DIR) are the
client's to read. A row of its history has the number of its event, so that the client knows which
rows the server has already; the event's step and time are columns, and the step is the axis of its
charts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wandb

from assets.tracking import limits
from assets.tracking.metric_names import RESULT, SYSTEM
from gpt_model.redaction import redacted

if TYPE_CHECKING:
    from assets.tracking.follower import Finished

INIT_SECONDS, FINISH_SECONDS = 10.0, 60.0  # for a server to answer
WHERE = ("WANDB_ENTITY", "WANDB_BASE_URL", "WANDB_MODE")  # what a run is sent to, with the project
EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": 137}
AXES = {"metrics": "step", "system": "sample"}  # an event's kind -> the column of its step
CHARACTERS = {"name": 128, "tag": 64}


class WeightsAndBiases:
    """A project."""

    def __init__(self, project: str, home: Path) -> None:
        self.project, self.home = project, home
        where = [os.environ[name] for name in WHERE if os.environ.get(name)]
        self.name = redacted(" ".join(["wandb", project, *where]))
        self.title = redacted(" ".join(["Weights & Biases, project", project, *where]))

    def begin(self, folder: Path, build: Mapping[str, Any]) -> WandbRun:
        return WandbRun(self.project, os.environ.get("WANDB_DIR") or self.home, build)

    def is_there(self, build: Mapping[str, Any]) -> bool:
        return True

    def reset(self) -> None:
        """Ends the client's service, which takes a run that failed to begin for one in use."""
        wandb.teardown(exit_code=1)


class WandbRun:
    """The run of one build."""

    def __init__(self, project: str, folder: str | Path, build: Mapping[str, Any]) -> None:
        settings = wandb.Settings(
            silent=True,
            console="off",
            reinit="create_new",  # stages may be built side by side
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            # Nothing of this process: neither its arguments nor its load, code and packages. The
            # events have the machine's load, and the manifest what the build ran on.
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            program="gpt-lineage",
            disable_git=True,
            disable_code=True,
        )
        self._run = wandb.init(
            project=project,
            dir=folder,
            id=build["build"],
            resume="allow",
            name=limits.shortened(
                f"{build['stage']} {build['fingerprint'][:8]}", CHARACTERS["name"]
            ),
            group=limits.shortened(_group(build), CHARACTERS["name"]),
            job_type=build["stage"][: CHARACTERS["tag"]],
            tags=[build["recipe"][: CHARACTERS["tag"]], build["stage"][: CHARACTERS["tag"]]],
            notes=build["description"],
            config={**build["config"], "lineage": _lineage(build)},
            settings=settings,
        )
        for axis in AXES.values():
            self._run.define_metric(axis, hidden=True)
        for group in ("train", "eval"):
            self._run.define_metric(f"{group}/*", step_metric=AXES["metrics"])
        self._run.define_metric(f"{SYSTEM}*", step_metric=AXES["system"])

    def log(self, row: int, event: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """Rows below the starting step are with the server already."""
        if row >= self._run.starting_step:
            columns = {AXES[event["kind"]]: event["step"], "_timestamp": event["time"]}
            self._run.log({**values, **columns}, step=row, commit=True)

    def flush(self) -> None:
        """The client sends by itself."""

    def finish(self, finished: Finished) -> None:
        self._run.summary.update(dict(finished.metrics))
        result = {name.removeprefix(RESULT): value for name, value in finished.counts.items()}
        ended = {"status": finished.status, "digest": finished.digest}
        self._run.config.update({"result": result, "ended": ended}, allow_val_change=True)
        self._run.finish(exit_code=EXIT_CODES[finished.status])


def _group(build: Mapping[str, Any]) -> str:
    """The recipe's build: MLflow's parent run."""
    attempt = build["attempts"][-1]
    run = attempt["dagster_run"]
    return f"{build['recipe']} {run[:8]}" if run else attempt.get("session") or build["recipe"]


def _lineage(build: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "asset": f"{build['recipe']}/{build['stage']}",
        "version": build["version"],
        "fingerprint": build["fingerprint"],
        "git_commit": build["git"]["commit"],
        "git_dirty": build["git"]["dirty"],
        "dagster_run": build["attempts"][-1]["dagster_run"],
        "inputs": {
            entry["name"]: {"fingerprint": entry["fingerprint"], "digest": entry["digest"]}
            for entry in build["inputs"]
        },
    }
