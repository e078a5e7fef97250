"""The MLflow run of a session: named after the recipe, the parent of the runs of what was built in
it. What the session found is linked in its description, and not copied.

Like a build's run it is found by its tag before it is made, restored where somebody deleted it, and
begun again where it is gone.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow.entities import RunTag, ViewType
from mlflow.exceptions import MlflowException

from assets.store.manifest import canonical
from assets.tracking import limits, session, state
from assets.tracking.server import Server
from assets.tracking.state import State

SESSION = "lineage.session"  # the tag by which a session's run is found
GONE = "RESOURCE_DOES_NOT_EXIST"
REFUSALS = (GONE, "INVALID_PARAMETER_VALUE")  # of what is sent, or of a run that was deleted


class ParentRun:
    """Of the session in `folder`. Hold the folder's delivery lock."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.session: dict[str, Any] = session.load(folder) or {}
        self.state = state.load(folder, server.name)

    def push(self) -> str | None:
        """Brings the run up to date. Returns its id; None where nothing was built. Raises whatever
        MLflow raises.
        """
        if not self.session or not session.any_built(self.session):
            return None
        try:
            return self._push()
        except MlflowException as error:
            if not is_lost(self.server, self.state.run_id, error):
                raise
            self.state = State()
            return self._push()

    def _push(self) -> str:
        client, status, tags = self.server.client(), session.status(self.session), self._tags()
        run_id = self.state.run_id or self._run(tags)
        known = hashlib.sha256(canonical(tags)).hexdigest()
        if known != self.state.tags:
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if status != self.state.status:
            if status == "RUNNING":
                client.update_run(run_id, status)
            else:
                client.set_terminated(run_id, status, round(self._ended() * 1000))
        wanted = replace(
            self.state,
            tags=known,
            status=status,
            complete=status != "RUNNING",
            dagster_ui=self.server.dagster_ui,
        )
        if wanted != self.state:
            self.state = wanted
            state.save(self.folder, self.server.name, self.state)
        return run_id

    def _run(self, tags: dict[str, str]) -> str:
        client, recipe = self.server.client(), self.session["recipe"]
        experiment = self.server.experiment(recipe)
        which = f"tags.`{SESSION}` = '{self.folder.name}'"
        if matches := client.search_runs([experiment], which, ViewType.ALL, 1):
            run_id = matches[0].info.run_id
            if matches[0].info.lifecycle_stage == "deleted":
                client.restore_run(run_id)
        else:
            began = round(self.session["began"] * 1000)
            run_id = client.create_run(
                experiment, began, {SESSION: self.folder.name, **tags}, recipe
            ).info.run_id
        self.state.run_id = run_id
        state.save(self.folder, self.server.name, self.state)
        return str(run_id)

    def _ended(self) -> float:
        """Of a killed session: when it was last heard of."""
        times = [self.session["ended"] or self.session["began"]]
        for entry in self.session["artifacts"].values():
            for kind in ("artifacts", "building"):
                log = self.server.home / kind / entry["fingerprint"] / "journal" / "events.jsonl"
                if entry["built"] and self.session["ended"] is None and log.is_file():
                    times.append(log.stat().st_mtime)
        return max(times)

    def _tags(self) -> dict[str, str]:
        run = self.session["dagster_run"]
        tags = {
            "lineage.recipe": self.session["recipe"],
            "mlflow.user": self.session["process"]["user"],
            "mlflow.source.name": "gpt-lineage",
            "mlflow.source.type": "PROJECT",
            "mlflow.note.content": self._note(),
        }
        if run:
            tags |= {"dagster.run": run, "dagster.url": f"{self.server.dagster_ui}/runs/{run}"}
        return {key: limits.shortened(tag, limits.TAG_CHARACTERS) for key, tag in tags.items()}

    def _note(self) -> str:
        recipe, run = self.session["recipe"], self.session["dagster_run"]
        title = f"**{recipe}**"
        if run:
            title += f" · Dagster run [{run[:8]}]({self.server.dagster_ui}/runs/{run})"
        runs = f"#/experiments/{self.server.experiment(recipe)}/runs"
        rows = [self._row(stage, entry, runs) for stage, entry in self.session["artifacts"].items()]
        return "\n".join([title, "", "| stage | artifact | in this run |", "|---|---|---|", *rows])

    def _row(self, stage: str, entry: dict[str, Any], runs: str) -> str:
        """A link to the stage's run where the server has one already."""
        home, fingerprint = self.server.home, entry["fingerprint"]
        how = session.state_of(home, fingerprint) if entry["built"] else "found, not built again"
        folder = home / ("artifacts" if how != "failed" else "building") / fingerprint
        if run_id := state.load(folder, self.server.name).run_id:
            stage = f"[{stage}]({runs}/{run_id})"
        return f"| {stage} | `{fingerprint[:12]}` | {how} |"


def is_lost(server: Server, run_id: str | None, error: MlflowException) -> bool:
    """Whether MLflow refused something because it has no such run any more."""
    if error.error_code not in REFUSALS or run_id is None:
        return False
    try:
        run = server.client().get_run(run_id)
    except MlflowException as other:
        return bool(other.error_code == GONE)
    return bool(run.info.lifecycle_stage == "deleted")
