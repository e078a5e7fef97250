"""Delivery: brings one build's MLflow run up to date with what is on disk. Each step happens once,
and again does no harm.

What has been delivered is remembered (`state.py`) after it was. Where a process dies in between,
the step is repeated: runs, models and versions are looked for by our tags before they are made,
parameters and tags are set to the same values, and MLflow keeps one of two equal metrics, their
time being the event's and not the delivery's. A run that somebody deleted in MLflow is restored, or
begun again where it is gone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    Metric,
    Param,
    ViewType,
)
from mlflow.exceptions import MlflowException

# loaded here, so that two threads do not load them at once
from mlflow.store.model_registry import rest_store, sqlalchemy_store  # noqa: F401
from mlflow.tracking.client import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from assets.contract import EVALUATED, MLFLOW_TABLE, NOT_RUN
from assets.store.manifest import canonical, read_json
from assets.store.store import SHORT, Store
from assets.tracking import build_record, limits, state
from assets.tracking.event_log import EventReader, series
from assets.tracking.logged_model import ModelFacts, deliver_model
from assets.tracking.metric_names import USAGE, of_manifest, of_series, scores
from assets.tracking.outbox import Delivered
from assets.tracking.parent_run import REFUSALS, SCORECARD, ParentRun, is_lost, set_tags
from assets.tracking.server import Server, first_line
from assets.tracking.session import SESSIONS
from assets.tracking.state import State

FILE_CLOCK_MS = 10  # at most: by a tick of the kernel, a file's time is behind the clock
SHOWN_BYTES = (
    8 << 20
)  # of an artifact's files in MLflow, the smallest first; the others stay in the store alone
PARENT = "mlflow.parentRunId"
BUILD = "lineage.build"  # the tag by which a build's run, model and version are found


class Delivery:
    """One build, by its folder under building/ or artifacts/. Hold the folder's delivery lock."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.journal = folder / "journal"
        self.server = server
        self.build: dict[str, Any] = read_json(self.journal / "build.json")
        self.manifest: dict[str, Any] | None = (
            read_json(folder / "artifact.json") if (folder / "artifact.json").is_file() else None
        )
        self.state = state.load(folder, server.name)

    def push(self) -> Delivered:
        """Delivers everything there is. Raises whatever MLflow raises; what was delivered until
        then is remembered.
        """
        try:
            if self.state.complete and self.state.attempt == len(self.build["attempts"]):
                if self.state.run_id and (self.state.dagster_ui, self.state.parent) != (
                    self.server.dagster_ui,
                    self._parent(),
                ):
                    self._tags(self.state.run_id)
                return Delivered(self.state.run_id, complete=True)
            return self._push()
        except MlflowException as error:
            if not self._is_lost(error):
                raise
            self.state = State()  # somebody removed the run, or the whole server: begin again
            return self._push()

    def _push(self) -> Delivered:
        status = build_record.status(self.folder, self.build, published=self.manifest is not None)
        run_id = self.state.run_id or self._run()
        self._set_status(run_id, "RUNNING" if status == "FINISHED" else status)
        self._once("parameters", lambda: self._parameters(run_id))
        self._tags(run_id)
        self._once("inputs", lambda: self._inputs(run_id))
        if status == "FINISHED":  # the scores first: MLflow lists metrics as they arrived
            self._require_sound()
            self._once("results", lambda: self._results(run_id))
        self._events(run_id)
        if status == "FINISHED":
            self._once("evaluated", lambda: self._evaluated(run_id))
            self._once("files", lambda: self._files(run_id))
            if self.build["model"] and not (self.folder / "files" / NOT_RUN).is_file():
                self._once("model", lambda: self._model(run_id))
            self._tags(run_id)  # of what was refused
            self._set_status(run_id, status)
        self.state.attempt = len(self.build["attempts"])
        self.state.complete = status != "RUNNING"
        self._save()
        if self.state.complete:
            self._parent(again=True)
        problem = self._refusal() if self.state.complete else None
        return Delivered(run_id, complete=self.state.complete, problem=problem)

    def _require_sound(self) -> None:
        """Raises CorruptFile where the artifact is not what was published."""
        store = Store(self.server.home)
        if artifact := store.find(self.folder.name):
            store.check(artifact)

    def _refusal(self) -> str | None:
        if not self.state.refused:
            return None
        what, why = next(iter(self.state.refused.items()))
        return (
            f"MLflow at {self.server.address} refused the {what} of {self.build['recipe']}/"
            f"{self.build['stage']}: {why} All else of the build is delivered."
        )

    # What the run is

    def _run(self) -> str:
        """Finds this build's run by its tag, or makes it."""
        client, experiment = self._client(), self.server.experiment(self.build["recipe"])
        matches = client.search_runs(
            [experiment], f"tags.`{BUILD}` = '{self.build['build']}'", ViewType.ALL, 1
        )
        if matches:
            run_id = matches[0].info.run_id
            if matches[0].info.lifecycle_stage == "deleted":
                client.restore_run(run_id)
        else:
            name = f"{self.build['stage']} {self.build['fingerprint'][:8]}"
            wanted = self._wanted_tags()
            tags = wanted | {BUILD: self.build["build"]}
            run_id = client.create_run(
                experiment, round(self.build["attempts"][0]["began"] * 1000), tags, name
            ).info.run_id
            self.state.status, self.state.tags = "RUNNING", _hash(wanted)
            self.state.dagster_ui = self.server.dagster_ui
            self.state.parent = wanted.get(PARENT)
        self.state.run_id = run_id
        self._save()
        return run_id

    def _parent(self, again: bool = False) -> str | None:
        """The id of the run of the session that built it last; made, or brought up to date `again`,
        where the server has none.
        """
        name = self.build["attempts"][-1].get("session")  # none in a build of an earlier commit
        folder = self.server.home / SESSIONS / str(name)
        if not folder.is_dir():
            return None
        known = state.load(folder, self.server.name).run_id
        if known and not again:
            return known
        with state.delivering(folder):
            return ParentRun(folder, self.server).push()

    def _set_status(self, run_id: str, status: str) -> None:
        if self.state.status == status:
            return
        if status == "RUNNING":
            self._client().update_run(run_id, "RUNNING")
        else:
            self._client().set_terminated(run_id, status, self._ended())
        self.state.status = status
        self._save()

    def _ended(self) -> int:
        """Milliseconds since the epoch: the last sign of life."""
        last = max(
            (
                path.stat().st_mtime
                for path in (self.journal / "events.jsonl", self.folder / "artifact.json")
                if path.exists()
            ),
            default=0,
        )
        return round((last or time.time()) * 1000)

    def _parameters(self, run_id: str) -> None:
        self._log_parameters(run_id, self.build["config"])

    def _log_parameters(self, run_id: str, values: Mapping[str, Any]) -> None:
        flat = [Param(key, value) for key, value in limits.parameters(values).items()]
        for some in limits.batches(flat, limits.PARAMETERS_AT_ONCE):
            self._client().log_batch(run_id, params=some)

    def _tags(self, run_id: str) -> None:
        wanted = self._wanted_tags()
        ui, parent = self.server.dagster_ui, wanted.get(PARENT)
        if (_hash(wanted), ui, parent) != (
            self.state.tags,
            self.state.dagster_ui,
            self.state.parent,
        ):
            set_tags(self._client(), run_id, wanted, BUILD)
            self.state.tags, self.state.dagster_ui, self.state.parent = _hash(wanted), ui, parent
            self._save()

    def _wanted_tags(self) -> dict[str, str]:
        """A few that a person reads first; the others begin with `lineage.`."""
        build, attempt = self.build, self.build["attempts"][-1]
        stage, _, task = build["stage"].partition("/")
        runs = list(
            dict.fromkeys(each["dagster_run"] for each in build["attempts"] if each["dagster_run"])
        )
        tags = {"recipe": build["recipe"], "stage": stage}
        if task:
            tags["task"] = task
        tags["fingerprint"] = build["fingerprint"][:SHORT]
        gate = read_json(self.folder / "gate.json") if self.manifest else {}
        tags["checks"] = _summary(gate) if gate else "not run"
        if (self.folder / SCORECARD).is_file():
            tags["scorecard"] = SCORECARD
        if (self.folder / "show" / MLFLOW_TABLE).is_file():
            tables = [{"path": f"show/{MLFLOW_TABLE}", "type": "table"}]
            tags[MLFLOW_LOGGED_ARTIFACTS] = json.dumps(tables)
        tags |= {
            "lineage.asset": f"{build['recipe']}/{build['stage']}",
            "lineage.fingerprint": build["fingerprint"],
            "lineage.version": build["version"],
            "lineage.attempts": str(len(build["attempts"])),
            "lineage.process": f"{attempt['host']} {attempt['pid']}",
            "lineage.git_dirty": str(build["git"]["dirty"]),
            "mlflow.user": attempt["user"],
            "mlflow.source.name": "gpt-lineage",
            "mlflow.source.type": "PROJECT",
            "mlflow.source.git.commit": str(build["git"]["commit"]),
            "mlflow.note.content": self._note(runs),
        }
        if parent := self._parent():
            tags[PARENT] = parent
        for entry in build["inputs"]:
            tags[f"lineage.input.{entry['name']}"] = entry["fingerprint"]
        if runs:
            tags["lineage.dagster.runs"] = " ".join(runs)
            tags["lineage.dagster.url"] = self._dagster_url(runs[-1])
        if build["failure"]:
            tags["lineage.failure"] = build["failure"]
        if self.manifest:
            tags["lineage.digest"] = self.manifest["digest"]
        if refusal := self._refusal():
            tags["lineage.refused"] = refusal
        return {
            limits.key(name): limits.shortened(value, limits.TAG_CHARACTERS)
            for name, value in tags.items()
        }

    def _note(self, runs: Sequence[str]) -> str:
        build = self.build
        asset = f"{build['recipe']}/{build['stage']}"
        links = [f"Dagster run [{run[:8]}]({self._dagster_url(run)})" for run in reversed(runs)]
        lines = [
            " · ".join([f"**{asset}** {build['fingerprint'][:12]}", *links]),
            build["description"],
        ]
        if build["failure"]:
            lines.append(f"Failed: {build['failure']}")
        lines.append(
            f"`gpt-lineage trace {build['fingerprint'][:12]}` · `gpt-lineage reproduce "
            f"{build['fingerprint'][:12]}`"
        )
        return "\n\n".join(line for line in lines if line)

    def _dagster_url(self, run: str) -> str:
        return f"{self.server.dagster_ui}/runs/{run}"

    # What it was made from

    def _inputs(self, run_id: str) -> None:
        """Upstream artifacts, and the sources of a corpus, as data sets with our digests; upstream
        models as models.
        """
        models = []
        for entry in self.build["inputs"]:
            upstream = state.load(
                self.server.home / "artifacts" / entry["fingerprint"], self.server.name
            )
            if upstream.model_id:
                models.append(LoggedModelInput(upstream.model_id))
        known = self._client().get_run(run_id).inputs
        if known and known.model_inputs:
            models = []  # MLflow refuses to be told twice
        if models:
            self._client().log_inputs(run_id, None, models)
        inputs = [*self._upstream(), *self._sources()]
        self._log_datasets(run_id, [(*each, each[0].rpartition("/")[2]) for each in inputs])

    def _log_datasets(
        self, run_id: str, datasets: Sequence[tuple[str, str, Mapping[str, Any], Any, str]]
    ) -> None:
        """`datasets`: name, digest, source, profile, and what it is to the run."""
        entities = [
            DatasetInput(
                Dataset(
                    limits.shortened(name, limits.DATASET_NAME_CHARACTERS),
                    digest[: limits.DIGEST_CHARACTERS],
                    "gpt-lineage",
                    limits.source(source),
                    None,
                    json.dumps(profile),
                ),
                [
                    InputTag(
                        "mlflow.data.context",
                        limits.shortened(context, limits.DATASET_NAME_CHARACTERS),
                    )
                ],
            )
            for name, digest, source, profile, context in datasets
        ]
        for start in range(0, len(entities), limits.DATASETS_AT_ONCE):
            some = entities[start : start + limits.DATASETS_AT_ONCE]
            self._client().log_inputs(run_id, some)

    def _upstream(self) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
        for entry in self.build["inputs"]:
            source = {key: entry[key] for key in ("stage", "fingerprint", "digest")}
            yield (
                f"{self.build['recipe']}/{entry['stage']}",
                entry["digest"],
                source,
                {"files": entry["files"], "bytes": entry["bytes"]},
            )

    def _sources(self) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
        for entry in self.build["config"].get("sources", []):
            if isinstance(entry, Mapping) and "name" in entry:
                pinned = (
                    entry.get("sha256")
                    or entry.get("revision")
                    or hashlib.sha256(canonical(entry)).hexdigest()
                )
                yield str(entry["name"]), str(pinned), dict(entry), {}

    def _evaluated(self, run_id: str) -> None:
        """What a model was evaluated on, a data set a task."""
        assert self.manifest is not None
        datasets = []
        for entry in self.manifest["files"]:
            path = PurePosixPath(entry["path"])
            if path.parts[0] != EVALUATED or path.suffix != ".jsonl":
                continue
            with (self.folder / "files" / path).open("rb") as lines:
                profile = {"num_rows": sum(1 for _ in lines)}
            source = {"fingerprint": self.build["fingerprint"], "file": entry["path"]}
            datasets.append((path.stem, entry["sha256"], source, profile, "evaluation"))
        self._log_datasets(run_id, datasets)

    # How it went

    def _events(self, run_id: str) -> None:
        """Metrics and texts said since the last time, in order; the offset is remembered after each
        batch that arrived.
        """
        tail = EventReader(self.journal / "events.jsonl", self.state.offset)
        batch: list[Metric] = []
        for event, end in tail:
            if event["kind"] in ("metrics", "system"):
                moment = round(event["time"] * 1000)
                batch += [
                    Metric(limits.key(of_series(name)), value, moment, event["step"])
                    for name, value in event["values"].items()
                ]
            elif event["kind"] == "text":
                self._sample(run_id, event)
            if len(batch) >= limits.METRICS_AT_ONCE:
                self._metrics(run_id, batch, end)
                batch = []
        if tail.offset != self.state.offset:
            self._metrics(run_id, batch, tail.offset)

    def _metrics(self, run_id: str, metrics: Sequence[Metric], offset: int) -> None:
        self._log_metrics(run_id, metrics)
        self.state.offset = offset
        self._save()

    def _log_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        for some in limits.batches(metrics, limits.METRICS_AT_ONCE):
            self._accepted("metrics", partial(self._client().log_batch, run_id, metrics=some))

    def _sample(self, run_id: str, event: Mapping[str, Any]) -> None:
        file = f"samples/{event['step']:08d}/{limits.file_name(event['name'])}.txt"
        self._accepted(file, partial(self._client().log_text, run_id, event["text"], file))

    def _results(self, run_id: str) -> None:
        """The final metrics, the cost and what was forecast of it; counts as parameters."""
        assert self.manifest is not None
        metrics, counts = self._final()
        self._log_final(run_id, metrics)
        self._log_parameters(run_id, counts)

    def _final(self) -> tuple[dict[str, float], dict[str, float]]:
        """The manifest's metrics, sorted, as MLflow shows the first by itself; and parameters."""
        assert self.manifest is not None
        metrics, counts = of_manifest(self.manifest, self._curves)
        return dict(sorted(metrics.items())), counts

    @cached_property
    def _curves(self) -> dict[str, list[tuple[int, float]]]:
        """What the stage reported while it ran, by its own names."""
        return series(self.journal / "events.jsonl")

    @property
    def _last_step(self) -> int:
        return max((curve[-1][0] for curve in self._curves.values()), default=0)

    def _log_final(
        self, run_id: str, metrics: Mapping[str, float], model_id: str | None = None
    ) -> None:
        """Each is its curve's last point. One without a curve is at step 0: MLflow draws bars of
        those, a bar a run, and a dot of any other.
        """
        moment = self._ended() + FILE_CLOCK_MS  # so that it is later than the curve's others
        curves = {of_series(name) for name in self._curves}
        self._log_metrics(
            run_id,
            [
                Metric(
                    limits.key(name),
                    value,
                    moment,
                    self._last_step if name in curves else 0,
                    model_id,
                )
                for name, value in metrics.items()
            ],
        )

    def _files(self, run_id: str) -> None:
        """Manifest, verdicts, pictures and tables; of the payload what is small. A model directory
        is the logged model's.
        """
        assert self.manifest is not None
        for name in ("artifact.json", "gate.json"):
            self._client().log_artifact(run_id, str(self.folder / name), "lineage")
        if any((self.folder / "show").iterdir() if (self.folder / "show").is_dir() else []):
            self._client().log_artifacts(run_id, str(self.folder / "show"), "show")
        left = SHOWN_BYTES
        for entry in sorted(self.manifest["files"], key=lambda entry: entry["size"]):
            path = PurePosixPath(entry["path"])
            if self.build["model"] and path.parts[0] == "model":
                continue
            if (left := left - entry["size"]) < 0:
                break
            source, folder = str(self.folder / "files" / path), str("files" / path.parent)
            self._accepted(
                f"file {path}", partial(self._client().log_artifact, run_id, source, folder)
            )

    def _model(self, run_id: str) -> None:
        assert self.manifest is not None
        metrics, _ = self._final()
        facts = ModelFacts(
            build_tag=(BUILD, self.build["build"]),
            name=limits.model_name(f"{self.build['recipe']}-{self.build['stage']}"),
            description=limits.shortened(self._note([]), limits.DESCRIPTION_CHARACTERS),
            experiment=self.server.experiment(self.build["recipe"]),
            run_id=run_id,
            step=self._last_step,
            fingerprint=self.build["fingerprint"],
            digest=self.manifest["digest"],
            parameters=limits.parameters(self.build["config"]),
            packages=self.manifest["provenance"].get("packages", {}),
            scores={limits.key(name): score for name, score in scores(metrics).items()},
        )
        self.state.model_id = deliver_model(self._client(), self.folder / "files", facts)
        # Its usage is the build's, which `_results` has logged.
        of_model = {name: value for name, value in metrics.items() if not name.startswith(USAGE)}
        self._log_final(run_id, of_model, self.state.model_id)

    # Remembering

    def _client(self) -> MlflowClient:
        return self.server.client()

    def _once(self, step: str, act: Callable[[], None]) -> None:
        if step not in self.state.done:
            self._accepted(step, act)
            self.state.done.append(step)
            self._save()

    def _accepted(self, what: str, act: Callable[[], Any]) -> None:
        """Remembers what the server refuses as such: it would refuse it every time, and nothing
        else of the build must wait for it.
        """
        try:
            act()
        except MlflowException as error:
            if error.error_code not in REFUSALS or self._is_lost(error):
                raise
            self.state.refused[what] = f"{first_line(error).rstrip('.')}."

    def _is_lost(self, error: MlflowException) -> bool:
        return is_lost(self.server, self.state.run_id, error)

    def _save(self) -> None:
        state.save(self.folder, self.server.name, self.state)


def _summary(gate: Mapping[str, Any]) -> str:
    """Of an artifact's verdicts."""
    failed = [name for name, verdict in gate.items() if not verdict["passed"]]
    passed = f"{len(gate) - len(failed)} of {len(gate)} passed"
    return f"{passed}; not {', '.join(failed)}" if failed else passed


def _hash(tags: Mapping[str, str]) -> str:
    return hashlib.sha256(canonical(tags)).hexdigest()
