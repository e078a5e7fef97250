"""Dagster's records in a real Postgres. test_team.py has two orchestrators that share one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from conftest import ROOT, environment_of, free_port
from postgres_server import PASSWORD, Postgres, postgres_server

from assets.lineage import dagster_history, prepare_home
from assets.store.home import DATABASE
from assets.store.store import Store
from gpt_model.errors import UserError
from pipelines.build_logs import Logs
from pipelines.executor import close_lost_runs

pytest.importorskip("psycopg2", reason="pip install -e .[postgres]")


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


def elsewhere(host: str, command: list[str]) -> list[str]:
    inside = f'hostname {host}; exec "$@"'
    return [
        "unshare",
        "--uts",
        "--pid",
        "--fork",
        "--kill-child=KILL",
        "sh",
        "-c",
        inside,
        "-",
        *command,
    ]


HOLDS = """
import os, sys
from pathlib import Path
import dagster as dg
from dagster._core.utils import make_new_run_id
from assets.dagster_storage import make_pools
from assets.lineage import dagster_history, prepare_home
from pipelines.build_logs import Logs
from pipelines.executor import process_tags
prepare_home(Path(os.environ["LINEAGE_HOME"]))
with dagster_history() as instance:
    make_pools(instance, ["training"])
    job, run_id = dg.GraphDefinition(name="nothing").to_job(), make_new_run_id()
    instance.create_run_for_job(
        job, run_id=run_id, status=dg.DagsterRunStatus.STARTED, tags=process_tags(instance, run_id)
    )
    claim = instance.event_log_storage.claim_concurrency_slot("training", run_id, "step")
    print(run_id, claim.is_claimed, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_run_of_a_killed_machine_is_closed_by_another_and_gives_its_slot_back(
    postgres: Postgres, home: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE, postgres.address("dagster"))
    environment = environment_of(home, downloads) | {"PYTHONPATH": str(ROOT)}
    command = elsewhere("n2", [sys.executable, "-c", HOLDS])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    run_id, claimed = process.stdout.readline().split()
    assert claimed == "True"
    prepare_home(home)
    with dagster_history() as instance:
        monkeypatch.setattr("assets.dagster_storage.RESTART_SECONDS", 10_000)
        assert close_lost_runs(instance) == []  # the server has just started: it may be alive
        monkeypatch.setattr("assets.dagster_storage.RESTART_SECONDS", 0)
        assert close_lost_runs(instance) == []
        process.kill()
        process.wait()
        deadline = time.monotonic() + 20
        while not (sentences := close_lost_runs(instance)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert run_id[:8] in sentences[0]
        run = instance.get_run_by_id(run_id)
        assert run and run.status == dg.DagsterRunStatus.FAILURE
        info = instance.event_log_storage.get_concurrency_info("training")
        assert info.slot_count == 1 and not info.claimed_slots
    monkeypatch.delenv("DAGSTER_HOME")
    lines = list(Logs(Store(home), run_id[:8]).lines())
    assert lines[0] == f"== nothing, Dagster run {run_id[:8]}, failure"
    assert "on n2) ended without a word" in lines[1]


def test_a_database_that_does_not_answer_is_a_sentence_without_its_password(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between Dagster's tries
    monkeypatch.setenv(DATABASE, f"postgresql://me:{PASSWORD}@127.0.0.1:{free_port()}/dagster")
    with pytest.raises(UserError, match=rf"Dagster's database \({DATABASE}\) cannot") as refused:
        prepare_home(home)
    assert PASSWORD not in str(refused.value) and "127.0.0.1" in str(refused.value)


def test_a_database_without_its_package_is_a_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE, "postgresql://127.0.0.1/dagster")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'gpt-lineage\[postgres\]'"):
        prepare_home(home)
