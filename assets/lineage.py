"""The one Dagster resource of a build: where the store is, how to execute, who is told. Resolves to
store, launcher and tracking.
"""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg
from pydantic import Field

from assets.launch.launcher import LocalLauncher
from assets.recipe.profile import Profile, load_profile
from assets.store.locks import locked
from assets.store.store import Store
from assets.tracking.tracking import Tracking

DEFAULT_PROFILE = "cpu"

DAGSTER_YAML = """\
# Written by gpt-lineage: one machine, sqlite underneath. Yours to edit.
telemetry:
  enabled: false
nux: # the invitation that covers the page at its first visit
  enabled: false
concurrency:
  runs:
    max_concurrent_runs: 4
  pools:
    default_limit: 1
run_monitoring:
  enabled: true
  free_slots_after_run_end_seconds: 30
"""


def prepare_home(home: Path) -> Path:
    """Make the home and Dagster's corner of it; points DAGSTER_HOME there unless it is set. Returns
    DAGSTER_HOME.
    """
    Store(home)
    dagster_home = Path(os.environ.setdefault("DAGSTER_HOME", str(home / "dagster")))
    dagster_home.mkdir(parents=True, exist_ok=True)
    with locked(
        dagster_home / "prepare.lock"
    ):  # two processes that make Dagster's databases at once trip over each other
        settings = dagster_home / "dagster.yaml"
        if not settings.exists():
            settings.write_text(DAGSTER_YAML)
        if not (dagster_home / "schedules" / "schedules.db").exists():  # the last of them
            dg.DagsterInstance.get().dispose()
    return dagster_home


class Lineage(dg.ConfigurableResource):
    """Everything a stage is built with."""

    home: str = Field(
        default_factory=lambda: str(Store.default_home()),
        description="the store's folder ($LINEAGE_HOME)",
    )
    profile: str = Field(
        default_factory=lambda: os.environ.get("LINEAGE_PROFILE") or DEFAULT_PROFILE,
        description="a name under profiles/, or a path",
    )

    def store(self) -> Store:
        return Store(Path(self.home))

    def launcher(self) -> LocalLauncher:
        return LocalLauncher(self.execution().device)

    def tracking(self) -> Tracking:
        return Tracking(Path(self.home))

    def execution(self) -> Profile:
        return load_profile(self.profile)
