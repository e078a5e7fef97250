"""The contract every stage keeps, in plain Python: no Dagster, no MLflow, no torch, so that
orchestrator and worker share it.

* A **stage** is a function from artifact directories to an artifact directory: `run(config, inputs,
  output, progress) -> metrics`. It reads files, writes files, reports metrics, and knows nothing
  else.
* On several ranks every rank calls it with the same arguments; only rank 0 writes. Publishing is
  the wrapper's (`stage.py`).
* What it leaves in `output` is hashed into the artifact's digest, so no time, host or wall-clock
  figure may be in there. Exception: `output/.scratch/`, which outlives a killed attempt
  (checkpoints live there) and is dropped at publication.
* Checks and pictures are made by the same worker after `run`, from its output; their results stand
  beside the artifact, unhashed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from assets.recipe.profile import Profile
from gpt_model.progress import Progress as Progress_

SCRATCH = ".scratch"
# in the output of a stage whose data cannot be had here: {"not_run": why}, and nothing else
NOT_RUN = "not_run.json"

Config = Mapping[str, Any]  # the stage's recipe section, as plain JSON values
Metrics = dict[str, float]  # final numbers by name; "/" groups them: "held_out/plays/bpb"


class Progress(Progress_, Protocol):
    """`gpt_model`'s progress plus where this process stands among its peers and how it is to
    execute.
    """

    rank: int
    world_size: int
    profile: Profile


@dataclass(frozen=True)
class Artifact:
    """A published directory of files, seen by a stage that reads it. `path` holds the hashed files
    themselves.
    """

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


Inputs = Mapping[str, Artifact]


@dataclass(frozen=True)
class Verdict:
    """What a check found. `summary` is one sentence with the figures in it."""

    passed: bool
    summary: str
    figures: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A finished output, before it is published: what checks and pictures are made from."""

    config: Config
    inputs: Inputs
    output: Path
    metrics: Metrics
    series: Mapping[
        str, Sequence[tuple[int, float]]
    ]  # metric name -> (step, value), as reported while it ran
    texts: Sequence[tuple[int, str, str]]  # (step, name, text)


@dataclass(frozen=True)
class Check:
    """A promise about an artifact. Where a blocking one fails, no stage reads the artifact; a
    warning is shown.
    """

    name: str
    blocking: bool
    description: str
    verdict: Callable[[Built], Verdict]


def show_nothing(built: Built, folder: Path) -> None: ...


def as_it_stands(config: Config, base: Path) -> Config:
    return config


@dataclass(frozen=True)
class Stage:
    """One kind of thing the pipeline makes. `version` is bumped by hand when the output changes for
    the same inputs.
    """

    name: str
    version: str
    run: Callable[[Config, Inputs, Path, Progress], Metrics]
    description: str
    kinds: tuple[str, ...] = ("python",)
    checks: tuple[Check, ...] = ()
    # Writes what the UI and MLflow show of it into `folder`: *.png, *.md (tables and text), *.html,
    # and *.json for a table of which a few columns are shown at once: {"columns": […], "rows":
    # [[…]], "short": [those columns]}.
    show: Callable[[Built, Path], None] = show_nothing
    # Ties the section to bytes outside the store, before fingerprinting: local files become {path,
    # sha256}. `base`: the recipe's folder.
    pin: Callable[[Config, Path], Config] = as_it_stands
    ranks: Literal["one", "profile"] = "one"  # "profile": as many processes as the profile says
    pool: str | None = None
    model: bool = False  # the output's model/ is a model directory: logged and registered as one
