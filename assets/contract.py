"""The contract that every stage keeps. Plain Python, so that orchestrator and worker share it: no
Dagster, no MLflow, no torch.

* A **stage** is a function from artifact directories to an artifact directory:
  `run(config, inputs, output, progress) -> metrics`. It reads files, writes files, reports metrics,
  and knows nothing else.
* **Description and execution are apart.** `assets/stages/` describes: section, checks, what a user
  reads. `assets/execution/` runs and judges, `assets/report/` shows; both are named by a
  `deferred` function, so that the orchestrator never imports torch.
* On several ranks every rank calls `run` with the same arguments; only rank 0 writes, others into
  `.scratch` alone. The wrapper publishes (`build.py`).
* Everything left in `output` is hashed into the artifact's digest, so it holds no time, host or
  wall-clock figure. Exception: `output/.scratch/`, which outlives a killed attempt (checkpoints
  live there) and is dropped at publication.
* The same worker judges the checks and draws the pictures after `run`, from its output. Their
  results stand beside the artifact, unhashed.
* A `run` that raises `Unavailable` leaves an artifact that says why, and its checks pass.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gpt_model.io import dump_json
from gpt_model.progress import Progress as TrainingProgress

if TYPE_CHECKING:
    from assets.recipe.profile import Profile

SCRATCH = ".scratch"
# In the output of a stage whose data is unavailable here: {"not_run": reason}, and nothing else.
NOT_RUN = "not_run.json"
EVALUATED = "tasks"  # in the output of a stage that evaluates a model: its rows, a file a task
MLFLOW_TABLE = "evaluation/predictions.json"  # below what a stage shows: as `mlflow.log_table` does

Config = Mapping[str, Any]  # the stage's recipe section, as plain JSON values
Metrics = dict[str, float]  # final numbers by name; "/" groups them: "held_out/plays/bpb"


class Progress(TrainingProgress, Protocol):
    """`gpt_model`'s progress, the rank of this process, and how it executes."""

    rank: int
    world_size: int
    profile: Profile


@dataclass(frozen=True)
class Artifact:
    """A published directory of files, as a stage reads it. `path` holds the hashed files."""

    path: Path
    stage: str
    fingerprint: str
    digest: str
    config: Config
    metrics: Metrics
    manifest: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the hashed files."""
        return sum(int(file["size"]) for file in self.manifest["files"])

    @property
    def not_run(self) -> str | None:
        """Why the artifact is empty, where its data was unavailable."""
        return not_run_reason(self.path)


Inputs = Mapping[str, Artifact]


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check. `summary` is a sentence with the figures in it."""

    passed: bool
    summary: str
    figures: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A finished output before it is published: what checks and views read."""

    config: Config
    inputs: Inputs
    output: Path
    metrics: Metrics
    # metric name -> (step, value), as reported while it ran
    series: Mapping[str, Sequence[tuple[int, float]]]
    texts: Sequence[tuple[int, str, str]]  # (step, name, text)


@dataclass(frozen=True)
class Check:
    """A promise about an artifact. No stage reads an artifact whose blocking check failed; the
    failure of another one is a warning.
    """

    name: str
    blocking: bool
    description: str
    verdict: Callable[[Built], Verdict]


@dataclass(frozen=True)
class Deferred:
    """A function named by its module, which is imported at the first call."""

    module: str
    function: str

    def resolve(self) -> Callable[..., Any]:
        resolved: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function)
        return resolved

    def __call__(self, *args: Any) -> Any:
        return self.resolve()(*args)


def deferred(module: str, function: str) -> Callable[..., Any]:
    """`function` of `module`, a stage's execution or report, which its description only names."""
    return Deferred(module, function)


def show_nothing(built: Built, folder: Path) -> None: ...


def as_it_stands(config: Config, base: Path) -> Config:
    return config


@dataclass(frozen=True)
class Table:
    """The rows that a stage's files hold, as a data catalogue shows them."""

    columns: Mapping[str, tuple[str, str]]  # name -> type, description
    rows: str  # a regular expression: the metrics of this name, added up, count the rows

    def count(self, metrics: Metrics) -> int:
        """The rows of an artifact, by its metrics."""
        return int(sum(value for name, value in metrics.items() if re.fullmatch(self.rows, name)))


@dataclass(frozen=True)
class Stage:
    """One kind of artifact that the pipeline makes. Raise `version` by hand when the output changes
    for the same inputs.
    """

    name: str
    version: str
    run: Callable[[Config, Inputs, Path, Progress], Metrics]
    description: str
    kinds: tuple[str, ...] = ("python",)
    checks: tuple[Check, ...] = ()
    # Writes what Dagster and MLflow show into `folder`: *.png, *.md (tables and text), *.html, and
    # *.json for a table whose "short" columns are shown at once:
    # {"columns": […], "rows": [[…]], "short": […]}.
    show: Callable[[Built, Path], None] = show_nothing
    # Resolves the section to bytes outside the store before it is fingerprinted: a local file
    # becomes {path, sha256}. The path is relative to the recipe's folder.
    pin: Callable[[Config, Path], Config] = as_it_stands
    shared_out: str = ""  # what the profile's processes share; empty: the stage has one process
    pool: str | None = None
    table: Table | None = None
    model: bool = False  # the output's model/ is a model directory: logged and registered as one


def write_not_run(output: Path, reason: str) -> None:
    dump_json(output / NOT_RUN, {"not_run": reason}, ensure_ascii=False)


def not_run_reason(output: Path) -> str | None:
    """Why nothing was run, where a stage's data was unavailable."""
    if not (output / NOT_RUN).is_file():
        return None
    reason: str = json.loads((output / NOT_RUN).read_text(encoding="utf-8"))["not_run"]
    return reason
