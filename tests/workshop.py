"""Builds artifacts as the wrapper does, with a worker that is this process: for the tests of what
MLflow is told of a build.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import Artifact, Check, Verdict
from assets.store.manifest import Facts
from assets.store.provenance import provenance
from assets.store.store import Building, Store
from assets.tracking.event_log import EventWriter
from assets.tracking.tracking import Build, Tracking

if TYPE_CHECKING:  # imported when used, as in the wrapper: some tests are of that import
    from mlflow.entities import Run
    from mlflow.tracking.client import MlflowClient

STEPS = 50
SCORES = {"accuracy": 0.75, "accuracy_low": 0.7, "accuracy_high": 0.8}


class Workshop:
    """A store and its tracking."""

    def __init__(self, home: Path) -> None:
        self.store = Store(home)
        self.tracking = Tracking(home)

    def begin(
        self,
        stage: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        run: str = "dagster-1",
        model: bool = False,
    ) -> Building:
        fingerprint = self.store.fingerprint(
            stage, "1", config, {name: artifact.digest for name, artifact in inputs.items()}
        )
        building = self.store.building(fingerprint)
        self.tracking.begin(
            building,
            Build("tiny", stage, "1", fingerprint, config, inputs, model, "What it is."),
            run,
        )
        return building

    def work(self, building: Building, steps: range = range(1, STEPS + 1)) -> None:
        spool = EventWriter(building.events)
        for step in steps:
            spool.metrics(step, {"loss": 5.0 - step / 100, "held_out/plays/bpb": 2.5})
        spool.text(steps[-1], "free sample", "To be, or not")
        spool.close()

    def publish(
        self,
        building: Building,
        stage: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
    ) -> Artifact:
        (building.files / "payload.txt").write_text(stage)
        (building.show / "table.md").write_text("| a |\n|---|\n| 1 |\n")
        known = provenance(
            profile={},
            started=0.0,
            ended=9.0,
            seconds=9.0,
            cores=2,
            peak_memory_bytes=1000,
            estimate={"loss": {"value": 4.4}},
        )
        facts = Facts(
            stage, "1", config, inputs, SCORES | {"loss": 4.25, "steps": 50, "seconds": 8.0}, known
        )
        finite = Check(
            "finite", blocking=True, description="", verdict=lambda built: Verdict(True, "")
        )
        return self.store.publish(
            building, facts, {"finite": (finite, Verdict(True, "It is finite."))}
        )

    def build(
        self,
        stage: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Artifact] | None = None,
        model: Path | None = None,
    ) -> Artifact:
        building = self.begin(stage, config, inputs or {}, model=model is not None)
        self.work(building)
        if model:
            shutil.copytree(model, building.files / "model")
        return self.publish(building, stage, config, inputs or {})

    def delivered(self, artifact: Artifact) -> Run:
        delivered = self.tracking.deliver(artifact.path.parent, deadline=60.0)
        assert (delivered.complete, delivered.problem) == (True, None), delivered
        assert delivered.run_id is not None
        return self.client.get_run(delivered.run_id)

    @property
    def client(self) -> MlflowClient:
        return self.tracking.server.client()

    def runs(self) -> list[Run]:
        """Of builds."""
        return [run for run in self._runs() if "lineage.build" in run.data.tags]

    def parents(self) -> list[Run]:
        """Of sessions."""
        return [run for run in self._runs() if "lineage.session" in run.data.tags]

    def _runs(self) -> list[Run]:
        return list(self.client.search_runs([self.tracking.server.experiment("tiny")]))

    def history(self, run: Run, name: str) -> list[tuple[int, float]]:
        return [
            (metric.step, metric.value)
            for metric in self.client.get_metric_history(run.info.run_id, name)
        ]

    def files(self, run: Run, folder: str | None = None) -> set[str]:
        return {file.path for file in self.client.list_artifacts(run.info.run_id, folder)}
