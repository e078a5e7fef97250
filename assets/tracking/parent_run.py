"""The MLflow run of a session: named after the recipe, the parent of the runs of what was built in
it. What the session found is linked in its description, and not copied.

Like a build's run it is found by its tag before it is made, restored where somebody deleted it, and
begun again where it is gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from mlflow.entities import RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking.client import MlflowClient

from assets.store.manifest import MANIFEST, canonical, read_json
from assets.tracking import limits, session, state
from assets.tracking.metric_names import scores
from assets.tracking.server import TRAINING, Server
from assets.tracking.state import State

SCORECARD = "show/scorecard.html"  # of a scorecard's artifact, and of its run
SESSION = "lineage.session"  # the tag by which a session's run is found
OURS = ("lineage.", "dagster.")  # tags that nobody else sets; earlier commits set the latter
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
        client, status, tags = (
            self.server.client(),
            session.status(self.server.home, self.session),
            self._tags(),
        )
        run_id = self.state.run_id or self._run(tags)
        known = hashlib.sha256(canonical(tags)).hexdigest()
        if known != self.state.tags:
            set_tags(client, run_id, tags, SESSION)
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
                experiment, began, tags | {SESSION: self.folder.name}, recipe
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
            "recipe": self.session["recipe"],
            "mlflow.user": self.session["process"]["user"],
            "mlflow.source.name": "gpt-lineage",
            "mlflow.source.type": "PROJECT",
            "mlflow.note.content": self._note(),
        }
        if run:
            tags["lineage.dagster.url"] = f"{self.server.dagster_ui}/runs/{run}"
        return {key: limits.shortened(tag, limits.TAG_CHARACTERS) for key, tag in tags.items()}

    def _note(self) -> str:
        """What it built and found; its fine-tunings side by side, accuracy first; the scorecard."""
        recipe, run = self.session["recipe"], self.session["dagster_run"]
        entries: dict[str, dict[str, Any]] = self.session["artifacts"]
        page = f"#/experiments/{self.server.experiment(recipe)}/runs"
        runs = {stage: run_id for stage in entries if (run_id := self._run_of(entries[stage]))}
        links = [f"**{recipe}**"]
        if run:
            links.append(f"Dagster run [{run[:8]}]({self.server.dagster_ui}/runs/{run})")
        if "scorecard" in runs:
            links.append(f"[scorecard]({page}/{runs['scorecard']}/artifacts/{SCORECARD})")
        if tuned := [f"'{runs[stage]}'" for stage in runs if stage.startswith("finetuned/")]:
            query = runs_query(
                f"run_id IN ({', '.join(tuned)})", "CHART", "metrics.`eval/accuracy`"
            )
            links.append(f"[fine-tunings compared]({page}?{query})")
        if "zero_shot" in runs:
            query = runs_query("tags.stage = 'zero_shot'", "ARTIFACT", "tags.`mlflow.runName`")
            links.append(f"[answers compared]({page}?{query})")
        rows = [
            f"| {f'[{stage}]({page}/{runs[stage]})' if stage in runs else stage} "
            f"| `{entry['fingerprint'][:12]}` | {self._how(entry)} | {self._accuracy(entry)} |"
            for stage, entry in entries.items()
        ]
        header = ["| stage | artifact | in this run | accuracy |", "|---|---|---|---|"]
        return "\n".join([" · ".join(links), "", *header, *rows])

    def _how(self, entry: Mapping[str, Any]) -> str:
        if entry["built"]:
            return session.state_of(self.server.home, entry["fingerprint"])
        return "found, not built again"

    def _folder(self, entry: Mapping[str, Any]) -> Path:
        built = self.server.home / "artifacts" / str(entry["fingerprint"])
        return built if built.is_dir() else self.server.home / "building" / built.name

    def _run_of(self, entry: Mapping[str, Any]) -> str | None:
        """The id of the artifact's run, where the server has it already."""
        return state.load(self._folder(entry), self.server.name).run_id

    def _accuracy(self, entry: Mapping[str, Any]) -> str:
        """With its interval, where it has one."""
        manifest = self._folder(entry) / MANIFEST
        metrics = read_json(manifest)["metrics"] if manifest.is_file() else {}
        return scores(metrics).get("accuracy", "")


def runs_query(which: str, mode: str, order: str) -> str:
    """Of MLflow's page of runs: which of them, as what, by what. By their start, which is the
    default, they would lie folded below their parents.
    """
    query = {"searchFilter": which, "compareRunsMode": mode, "orderByKey": order}
    return urlencode(query | {"orderByAsc": "false", "workflowType": TRAINING}, quote_via=quote)


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str], found_by: str) -> None:
    """Sets `tags`, and removes what else an earlier state or commit set, but for `found_by`."""
    entities = [RunTag(key, value) for key, value in tags.items()]
    for some in limits.batches(entities, limits.PARAMETERS_AT_ONCE):
        client.log_batch(run_id, tags=some)
    for name in client.get_run(run_id).data.tags.keys() - tags.keys() - {found_by}:
        if name.startswith(OURS):
            client.delete_tag(run_id, name)


def is_lost(server: Server, run_id: str | None, error: MlflowException) -> bool:
    """Whether MLflow refused something because it has no such run any more."""
    if error.error_code not in REFUSALS or run_id is None:
        return False
    try:
        run = server.client().get_run(run_id)
    except MlflowException as other:
        return bool(other.error_code == GONE)
    return bool(run.info.lifecycle_stage == "deleted")
