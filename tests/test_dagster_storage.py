"""Dagster's history is written through connections that stay open, into Dagster's own files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import psutil
import pytest
from conftest import ROOT
from sqlalchemy import event
from sqlalchemy.pool import Pool

from assets.dagster_storage import instance_ref
from assets.lineage import dagster_history, prepare_home
from assets.store.locks import migrating

EVENTS, THREADS = 20, 6


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Grows by an entry for each connection that SQLAlchemy opens."""
    connections: list[str] = []

    def opens(connection: object, record: object) -> None:
        connections.append("opened")

    event.listen(Pool, "connect", opens)
    yield connections
    event.remove(Pool, "connect", opens)


def test_statements_share_a_connection_and_dagster_reads_what_they_wrote(
    home: Path, opened: list[str]
) -> None:
    prepare_home(home)
    with dagster_history() as instance:
        run = instance.create_run_for_job(_job())
        instance.report_engine_event("the first makes the tables", run)
        opened.clear()
        for number in range(EVENTS):
            instance.report_engine_event(f"event {number}", run)
            assert instance.get_run_by_id(run.run_id) is not None
        # A Dagster that has renamed what our classes override opens one for each statement again.
        assert opened == []
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(lambda n: instance.report_engine_event(f"event {n}", run), range(60)))
            found = list(threads.map(lambda n: instance.get_run_by_id(run.run_id), range(60)))
        assert None not in found
    assert not [file for file in psutil.Process().open_files() if str(home) in file.path]
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:  # by Dagster's classes
        messages = [str(entry.dagster_event) for entry in instance.all_logs(run.run_id)]
        assert sum("event " in message for message in messages) == 60 + EVENTS


def test_a_new_run_waits_for_a_migration_of_mlflows(home: Path) -> None:
    prepare_home(home)
    with dagster_history() as instance, ThreadPoolExecutor() as threads:
        run = instance.create_run_for_job(_job())
        with migrating:
            first = threads.submit(instance.report_engine_event, "first", run)
            with pytest.raises(TimeoutError):
                first.result(timeout=0.3)
        first.result()
        assert len(instance.all_logs(run.run_id)) == 1


@pytest.mark.slow
def test_runs_taken_in_turns_and_wiped_are_each_whole(home: Path) -> None:
    prepare_home(home)
    with dagster_history() as instance:
        runs = [instance.create_run_for_job(_job()) for _ in range(3)]
        for number in range(3):
            for run in runs:
                instance.report_engine_event(f"event {number}", run)
        assert [len(instance.all_logs(run.run_id)) for run in runs] == [3, 3, 3]
        instance.wipe()
        assert [len(instance.all_logs(run.run_id)) for run in runs] == [0, 0, 0]
        instance.report_engine_event("again", runs[2])
        assert [len(instance.all_logs(run.run_id)) for run in runs] == [0, 0, 1]


def test_a_storage_that_the_settings_name_is_used(home: Path) -> None:
    folder = prepare_home(home)
    with (folder / "dagster.yaml").open("a") as settings:
        settings.write(f"storage: {{sqlite: {{base_dir: {home / 'elsewhere'}}}}}\n")
    storage = instance_ref(folder).storage_data
    assert storage is not None and storage.class_name == "DagsterSqliteStorage"
    assert str(home / "elsewhere") in storage.config_yaml


def _job() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None:
        pass

    @dg.job
    def job() -> None:
        nothing()

    return job


def test_sqlalchemy_is_whole_before_a_thread_of_mlflow_could_import_it() -> None:
    """A statement that another thread compiled meanwhile ended in "partially initialized module"."""
    script = """
import sys
import assets.lineage
print("sqlalchemy.orm" in sys.modules, "mlflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False"]
