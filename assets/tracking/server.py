"""The MLflow server: MLFLOW_TRACKING_URI, or else a sqlite file under the store. MLflow is imported
at the first call, not before.

Not here: what is said to it (`delivery.py`), and when (`tracking.py`).
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from assets.store.locks import locked

if TYPE_CHECKING:
    from mlflow.tracking.client import MlflowClient

# Before MLflow is imported. One try and a patience of seconds a request: what fails is tried again
# from disk.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


# The UI opens the experiment as training runs, not as GenAI traces.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def configure_mlflow() -> None:
    """Call before MLflow is imported, which reads its settings then."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for logger in ("mlflow", "alembic"):  # every problem comes as an exception, and is logged once
        logging.getLogger(logger).setLevel(logging.CRITICAL)


class Server:
    """Where MLflow is, and how to speak with it: by `MlflowClient` and explicit ids, never through
    global state.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.default_uri = f"sqlite:///{home / 'mlflow.db'}"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or self.default_uri
        ui = os.environ.get("LINEAGE_MLFLOW_UI") or (
            self.uri if self.uri.startswith("http") else "http://127.0.0.1:5000"
        )
        self.ui = ui.rstrip("/")
        self.dagster_ui = (os.environ.get("LINEAGE_DAGSTER_UI") or "http://127.0.0.1:3000").rstrip(
            "/"
        )

    def client(self) -> MlflowClient:
        """Connected. Raises what MLflow raises."""
        return _connect(self.uri, self.home / "mlflow.db" if self.uri == self.default_uri else None)

    def experiment(self, recipe: str) -> str:
        """The id of the recipe's experiment, made where there is none."""
        from mlflow.exceptions import MlflowException

        client = self.client()
        existing = client.get_experiment_by_name(recipe)
        if existing is None:
            artifacts = (
                (self.home / "mlartifacts" / recipe).as_uri()
                if self.uri == self.default_uri
                else None
            )
            try:
                return client.create_experiment(recipe, artifacts, tags=EXPERIMENT_TAGS)
            except MlflowException:  # another process was quicker
                existing = client.get_experiment_by_name(recipe)
                if existing is None:
                    raise
        if existing.lifecycle_stage == "deleted":
            client.restore_experiment(existing.experiment_id)
        return existing.experiment_id


@functools.cache
def _connect(uri: str, own_file: Path | None) -> MlflowClient:
    """One client for each server and process: the first call imports MLflow (1 s, 120 MB)."""
    configure_mlflow()
    from mlflow.tracking.client import MlflowClient

    if own_file:
        _migrate(uri, own_file)
    return MlflowClient(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri)


def _migrate(uri: str, file: Path) -> None:
    """Brings our own sqlite file to the schema of the MLflow installed, before anything writes: two
    that start at once would collide.
    """
    from mlflow.store.db import utils

    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_name(f"{file.name}.lock"), patience=120.0):
        engine = utils.create_sqlalchemy_engine_with_retry(uri)
        try:
            if not utils._all_tables_exist(engine):
                utils._initialize_tables(engine)
            elif utils._get_schema_version(engine) != utils._get_latest_schema_revision():
                utils._upgrade_db(engine)
        finally:
            engine.dispose()
