"""Delivery: brings one build's MLflow run up to date with what is on disk. Each step happens once,
and again does no harm.

What has been delivered is remembered in `journal/delivery.json`, after it was. Where a process dies
in between, the step is repeated: runs, models and versions are looked for by our tags before they
are made, parameters and tags are set to the same values, and MLflow keeps one of two equal metrics,
their time being the event's and not the delivery's.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.client import MlflowClient

from assets.contract import NOT_RUN
from assets.store.manifest import canonical, read_json
from assets.tracking.event_log import EventReader
from assets.tracking.logged_model import ModelFacts, deliver_model
from assets.tracking.outbox import Delivered, is_alive
from assets.tracking.server import Server
from gpt_model.errors import CorruptFile
from gpt_model.io import write_json

METRICS_AT_ONCE = 1000  # MLflow's limits of one request
PARAMETERS_AT_ONCE = 100
PARAMETER_CHARACTERS = 6000
TAG_CHARACTERS = 8000
DIGEST_CHARACTERS = 36  # of a data set; the whole digest is in its source
SHOWN_BYTES = (
    8 << 20
)  # of an artifact's files in MLflow, the smallest first; the others stay in the store alone
BUILD = "lineage.build"  # the tag by which a build's run, model and version are found


@dataclass
class State:
    """delivery.json: what MLflow has."""

    uri: str
    run_id: str | None = None
    offset: int = 0  # bytes of events.jsonl
    last_step: int = 0
    attempt: int = 0
    status: str | None = None
    tags: str = ""  # hash of those set
    model_id: str | None = None
    done: list[str] = field(default_factory=list)
    complete: bool = False


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
        self.state = self._load()

    def push(self) -> Delivered:
        """Delivers everything there is. Raises whatever MLflow raises; what was delivered until
        then is remembered.
        """
        if self.state.complete and self.state.attempt == len(self.build["attempts"]):
            return Delivered(self.state.run_id, complete=True)
        try:
            return self._push()
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" or self.state.run_id is None:
                raise
            self.state = State(
                self.server.uri
            )  # the run, or the whole server, was removed: begin again
            return self._push()

    def _push(self) -> Delivered:
        status = self._status()
        run_id = self.state.run_id or self._run()
        self._set_status(run_id, "RUNNING" if status == "FINISHED" else status)
        self._once("parameters", lambda: self._parameters(run_id))
        self._tags(run_id)
        self._once("inputs", lambda: self._inputs(run_id))
        self._events(run_id)
        if status == "FINISHED":
            self._once("results", lambda: self._results(run_id))
            self._once("files", lambda: self._files(run_id))
            if self.build["model"] and not (self.folder / "files" / NOT_RUN).is_file():
                self._once("model", lambda: self._model(run_id))
            self._set_status(run_id, status)
        self.state.attempt = len(self.build["attempts"])
        self.state.complete = status != "RUNNING"
        self._save()
        return Delivered(run_id, complete=self.state.complete)

    # What the run is

    def _status(self) -> str:
        """As MLflow names it. A build whose process died without a word was killed; the next
        attempt sets it running again.
        """
        if self.manifest:
            return "FINISHED"
        if self.build["failure"]:
            return "FAILED"
        return "RUNNING" if is_alive(self.build["attempts"][-1]) else "KILLED"

    def _run(self) -> str:
        """Finds this build's run by its tag, or makes it."""
        client, experiment = self._client(), self.server.experiment(self.build["recipe"])
        matches = client.search_runs(
            [experiment], f"tags.`{BUILD}` = '{self.build['build']}'", max_results=1
        )
        if matches:
            run_id = matches[0].info.run_id
        else:
            name = f"{self.build['stage']} {self.build['fingerprint'][:8]}"
            tags = {BUILD: self.build["build"], **self._wanted_tags()}
            run_id = client.create_run(
                experiment, round(self.build["attempts"][0]["began"] * 1000), tags, name
            ).info.run_id
            self.state.status, self.state.tags = "RUNNING", _hash(self._wanted_tags())
        self.state.run_id = run_id
        self._save()
        return run_id

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
        flat = [
            Param(_name(key), value[:PARAMETER_CHARACTERS])
            for key, value in flatten(self.build["config"])
        ]
        for some in _batches(flat, PARAMETERS_AT_ONCE):
            self._client().log_batch(run_id, params=some)

    def _tags(self, run_id: str) -> None:
        wanted = self._wanted_tags()
        if _hash(wanted) != self.state.tags:
            for some in _batches(
                [RunTag(key, value) for key, value in wanted.items()], PARAMETERS_AT_ONCE
            ):
                self._client().log_batch(run_id, tags=some)
            self.state.tags = _hash(wanted)
            self._save()

    def _wanted_tags(self) -> dict[str, str]:
        build, attempt = self.build, self.build["attempts"][-1]
        runs = list(
            dict.fromkeys(each["dagster_run"] for each in build["attempts"] if each["dagster_run"])
        )
        tags = {
            "lineage.asset": f"{build['recipe']}/{build['stage']}",
            "lineage.recipe": build["recipe"],
            "lineage.stage": build["stage"],
            "lineage.version": build["version"],
            "lineage.fingerprint": build["fingerprint"],
            "lineage.attempts": str(len(build["attempts"])),
            "lineage.host": attempt["host"],
            "lineage.pid": str(attempt["pid"]),
            "lineage.process_started": str(attempt["process_started"]),
            "lineage.git_dirty": str(build["git"]["dirty"]),
            "mlflow.user": attempt["user"],
            "mlflow.source.name": "gpt-lineage",
            "mlflow.source.type": "PROJECT",
            "mlflow.source.git.commit": str(build["git"]["commit"]),
            "mlflow.note.content": self._note(runs),
        }
        for entry in build["inputs"]:
            tags[f"lineage.input.{entry['name']}.fingerprint"] = entry["fingerprint"]
            tags[f"lineage.input.{entry['name']}.digest"] = entry["digest"]
        if runs:
            tags |= {
                "dagster.run": runs[-1],
                "dagster.runs": " ".join(runs),
                "dagster.url": self._dagster_url(runs[-1]),
            }
        if build["failure"]:
            tags["lineage.failure"] = build["failure"]
        if self.manifest:
            tags["lineage.digest"] = self.manifest["digest"]
            for name, verdict in read_json(self.folder / "gate.json").items():
                tags[f"lineage.check.{name}"] = (
                    f"{'passed' if verdict['passed'] else 'FAILED'}: {verdict['summary']}"
                )
        return {_name(key): value[:TAG_CHARACTERS] for key, value in tags.items()}

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
        datasets, models = [], []
        for name, digest, source, profile in [*self._upstream(), *self._sources()]:
            dataset = Dataset(
                name,
                digest[:DIGEST_CHARACTERS],
                "gpt-lineage",
                json.dumps(source),
                None,
                json.dumps(profile),
            )
            datasets.append(
                DatasetInput(dataset, [InputTag("mlflow.data.context", name.rpartition("/")[2])])
            )
        for entry in self.build["inputs"]:
            path = (
                self.server.home / "artifacts" / entry["fingerprint"] / "journal" / "delivery.json"
            )
            upstream = read_json(path) if path.is_file() else {}
            if upstream.get("model_id") and upstream["uri"] == self.server.uri:
                models.append(LoggedModelInput(upstream["model_id"]))
        known = self._client().get_run(run_id).inputs
        if known and known.model_inputs:
            models = []  # MLflow refuses to be told twice
        if datasets or models:
            self._client().log_inputs(run_id, datasets, models or None)

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

    # How it went

    def _events(self, run_id: str) -> None:
        """Metrics and texts said since the last time, in order; the offset is remembered after each
        batch that arrived.
        """
        tail = EventReader(self.journal / "events.jsonl", self.state.offset)
        batch: list[Metric] = []
        for event, end in tail:
            if event["kind"] == "metrics":
                moment = round(event["time"] * 1000)
                batch += [
                    Metric(_name(key), value, moment, event["step"])
                    for key, value in event["values"].items()
                ]
                self.state.last_step = max(self.state.last_step, event["step"])
            elif event["kind"] == "text":
                name = re.sub(r"[^A-Za-z0-9._-]+", "_", event["name"])
                file = f"samples/{event['step']:08d}/{name}.txt"
                self._client().log_text(run_id, event["text"], file)
            if len(batch) >= METRICS_AT_ONCE:
                self._metrics(run_id, batch, end)
                batch = []
        if tail.offset != self.state.offset:
            self._metrics(run_id, batch, tail.offset)

    def _metrics(self, run_id: str, metrics: Sequence[Metric], offset: int) -> None:
        for some in _batches(metrics, METRICS_AT_ONCE):
            self._client().log_batch(run_id, metrics=some)
        self.state.offset = offset
        self._save()

    def _results(self, run_id: str) -> None:
        """The final metrics, their cost and the estimate; at the last step, so that
        they are each metric's latest.
        """
        assert self.manifest is not None
        provenance = self.manifest["provenance"]
        values = dict(self.manifest["metrics"])
        values["system/peak_memory_bytes"] = provenance.get("peak_memory_bytes")
        values["system/seconds"] = provenance.get("seconds")
        values |= {f"system/{name}": value for name, value in provenance.get("cost", {}).items()}
        values |= {
            f"forecast/{name}": value
            for name, value in flatten(provenance.get("forecast", {}), values=True)
        }
        moment = self._ended()
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        metrics = [
            Metric(_name(name), float(value), moment, self.state.last_step)
            for name, value in numbers.items()
        ]
        for some in _batches(metrics, METRICS_AT_ONCE):
            self._client().log_batch(run_id, metrics=some)

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
            self._client().log_artifact(
                run_id, str(self.folder / "files" / path), str("files" / path.parent)
            )

    def _model(self, run_id: str) -> None:
        assert self.manifest is not None
        facts = ModelFacts(
            build_tag=(BUILD, self.build["build"]),
            name=f"{self.build['recipe']}-{self.build['stage'].replace('/', '-')}",
            description=self._note([]),
            experiment=self.server.experiment(self.build["recipe"]),
            run_id=run_id,
            step=self.state.last_step,
            fingerprint=self.build["fingerprint"],
            digest=self.manifest["digest"],
            parameters={key: value for key, value in flatten(self.build["config"])},
            packages=self.manifest["provenance"].get("packages", {}),
        )
        self.state.model_id = deliver_model(self._client(), self.folder / "files", facts)

    # Remembering

    def _client(self) -> MlflowClient:
        return self.server.client()

    def _once(self, step: str, act: Any) -> None:
        if step not in self.state.done:
            act()
            self.state.done.append(step)
            self._save()

    def _load(self) -> State:
        try:
            state = State(**read_json(self.journal / "delivery.json"))
        except (FileNotFoundError, CorruptFile, TypeError):
            return State(self.server.uri)
        return state if state.uri == self.server.uri or state.complete else State(self.server.uri)

    def _save(self) -> None:
        write_json(self.journal / "delivery.json", asdict(self.state))


def flatten(value: Any, values: bool = False, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as "a.b.c" and value; lists of plain values stay whole. As text unless
    `values`.
    """
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from flatten(below, values, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value):
        for number, entry in enumerate(value):
            name = entry.get("name", number) if isinstance(entry, Mapping) else number
            yield from flatten(entry, values, f"{prefix}.{name}")
    elif prefix:
        yield prefix, value if values else value if isinstance(value, str) else json.dumps(value)


def _name(key: str) -> str:
    """A key as MLflow allows it: letters, digits and _-. :/"""
    return re.sub(r"[^\w\-. :/]", "_", key)[:250]


def _batches(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _hash(tags: Mapping[str, str]) -> str:
    return hashlib.sha256(canonical(tags)).hexdigest()
