"""The one Dagster resource of a build: where the store is, how to execute, who is told. Resolves to
store, launcher and tracking.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import yaml
from dagster_shared.check import CheckError
from pydantic import Field, create_model
from sqlalchemy.exc import DatabaseError

from assets.dagster_storage import instance_ref
from assets.launch.detached import Tag
from assets.launch.hosts import Say
from assets.launch.launcher import Launcher
from assets.launch.transport import launcher_for
from assets.recipe.profile import PROFILES, Profile, load_profile
from assets.recipe.yaml_file import here_and, named_files
from assets.store.home import DATABASE
from assets.store.locks import locked
from assets.store.manifest import disk_is_full
from assets.store.remote import Remote, remote_of
from assets.store.store import Store
from assets.tracking.tracking import Tracking
from gpt_model.errors import UserError, shortened

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
            settings.write_text(DAGSTER_YAML, encoding="utf-8")
        if not (dagster_home / "schedules" / "schedules.db").exists():  # the last of them
            with dagster_history():
                pass
    return dagster_home


@contextmanager
def dagster_history() -> Iterator[dg.DagsterInstance]:
    """Dagster's instance of DAGSTER_HOME. Raises UserError where its settings or a database in it
    cannot be read.
    """
    home = Path(os.environ["DAGSTER_HOME"])
    try:
        try:
            instance = dg.DagsterInstance.from_ref(instance_ref(home))
        except (yaml.YAMLError, dg.DagsterInvalidConfigError, CheckError) as error:
            reason = " ".join(line.strip() for line in str(error).splitlines())
            raise UserError(
                f"{home / 'dagster.yaml'} cannot be used: {shortened(reason)} Mend it, or remove "
                "it: a new one is written."
            ) from None
        with instance:
            yield instance
    except Exception as error:
        if os.environ.get(DATABASE) and _is_of_database(error):
            raise UserError(
                f"Dagster's database ({DATABASE}) cannot be used: "
                f"{shortened(' '.join(str(error.__cause__ or error).split()))} Check that it "
                "answers, and its user, password and name."
            ) from None
        if not isinstance(error, DatabaseError) or disk_is_full(error, home):
            raise
        raise UserError(
            f"Dagster's history under {home} cannot be used ({error.orig}). Move that folder away: "
            "a new one is made, and no artifact is in it."
        ) from None


def _is_of_database(error: Exception) -> bool:
    # the package is of an extra, and its exception the base of no other
    return isinstance(error, DatabaseError) or type(error).__name__ == "DagsterPostgresException"


class Lineage(dg.ConfigurableResource):
    """Everything a stage is built with."""

    home: str = Field(
        default_factory=lambda: str(Store.default_home()),
        description="the store's folder ($LINEAGE_HOME)",
    )
    profile: str = Field(
        default_factory=lambda: os.environ.get("LINEAGE_PROFILE") or DEFAULT_PROFILE,
        description="how a stage executes, from profiles/; it changes no fingerprint",
    )

    def store(self) -> Store:
        return Store(Path(self.home))

    def launcher(self, say: Say, tag: Tag) -> Launcher:
        """`say`: a sentence for a person who waits. `tag`: a name and a value, of the run."""
        return launcher_for(self.execution(), say, tag)

    def tracking(self) -> Tracking:
        return Tracking(Path(self.home))

    def remote(self) -> Remote | None:
        return remote_of(Path(self.home))

    def execution(self) -> Profile:
        return load_profile(self.profile)


def launchpad_lineage() -> Lineage:
    """`Lineage` whose profile is a choice in Dagster's launchpad: a name under profiles/, or what
    $LINEAGE_PROFILE says, which is the default.
    """
    lineage = Lineage()
    names = dict.fromkeys([lineage.profile, *named_files(here_and(PROFILES))])
    description = Lineage.model_fields["profile"].description
    choice: Any = (Literal[tuple(names)], Field(default=lineage.profile, description=description))
    return create_model("Lineage", __base__=Lineage, profile=choice)()
