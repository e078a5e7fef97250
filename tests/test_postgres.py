"""Dagster's and MLflow's records in a real Postgres, which two orchestrators share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from conftest import ROOT, environment_of, free_port, write_local_recipe

from assets.dagster_storage import DATABASE
from assets.lineage import dagster_history, prepare_home
from assets.store.store import Store
from gpt_model.errors import UserError
from pipelines.executor import close_lost_runs
from pipelines.run_outcomes import outcome

psycopg2 = pytest.importorskip("psycopg2", reason="pip install -e .[postgres]")
PASSWORD = "xyzzy-postgres-password"  # noqa: S105 # of nothing
SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
ORCHESTRATORS = ("n1", "n2")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The address of a server with the databases `dagster` and `mlflow`, up to their names."""
    if not SERVERS:
        pytest.skip("no Postgres on this machine: apt-get install postgresql")
    folder, port = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp")), free_port()
    is_root = os.getuid() == 0  # as which Postgres refuses to run
    if is_root:
        shutil.chown(folder, "postgres", "postgres")
    account = {"user": "postgres", "group": "postgres", "extra_groups": []} if is_root else {}
    (folder / "password").write_text(PASSWORD, encoding="utf-8")
    data, tools = folder / "data", SERVERS[-1]
    initdb = [str(tools / "initdb"), "--pgdata", str(data), "--username", "lineage"]
    initdb += ["--auth", "scram-sha-256", "--pwfile", str(folder / "password"), "--no-sync"]
    subprocess.run(initdb, cwd=folder, check=True, capture_output=True, **account)
    command = [str(tools / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder)]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    server = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, **account)
    address = f"postgresql://lineage:{PASSWORD}@127.0.0.1:{port}/"
    try:
        for name in ("dagster", "mlflow"):
            _query(f"{address}postgres", f"CREATE DATABASE {name}")
        yield address
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


def _query(address: str, statement: str) -> list[tuple[object, ...]]:
    ends = time.monotonic() + 30
    while True:
        try:
            connection = psycopg2.connect(address)
            break
        except psycopg2.OperationalError:  # it starts
            assert time.monotonic() < ends
            time.sleep(0.1)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
        rows = cursor.fetchall() if cursor.description else []
    connection.close()
    return rows


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


@pytest.mark.slow
def test_two_orchestrators_on_one_store_and_one_postgres_build_nothing_twice(
    postgres: str, tmp_path: Path, downloads: Path
) -> None:
    if os.getuid():
        pytest.skip("host names of their own need root")
    home, recipe = tmp_path / "lineage", write_local_recipe(tmp_path, tokens=2048, paragraphs=200)
    environment = environment_of(home, downloads) | {
        "PYTHONPATH": str(ROOT),
        DATABASE: f"{postgres}dagster",
        "MLFLOW_TRACKING_URI": f"{postgres}mlflow",
    }
    command = [sys.executable, "-m", "pipelines.cli", "run", str(recipe), "--profile", "single"]
    runs = [
        subprocess.Popen(
            [
                "unshare",
                "--uts",
                "sh",
                "-c",
                f'hostname {name}; exec "$@"',
                "-",
                *command,
                "--json",
            ],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ORCHESTRATORS
    ]
    printed = [run.communicate(timeout=300) for run in runs]
    for run, (_, error) in zip(runs, printed, strict=True):
        assert run.returncode == 0, error
    outcomes = [json.loads(output) for output, _ in printed]
    artifacts = Store(home).fingerprints()
    assert sum(outcome["built"] for outcome in outcomes) == len(artifacts) > 3
    assert {outcome["built"] + outcome["found"] for outcome in outcomes} == {len(artifacts)}
    assert Store(home).misnamed() == [] and not list((home / "building").iterdir())

    assert _query(f"{postgres}dagster", "SELECT status FROM runs") == [("SUCCESS",)] * 2
    hosts = _query(f"{postgres}dagster", "SELECT value FROM run_tags WHERE key LIKE '%/host'")
    assert {host for (host,) in hosts} == set(ORCHESTRATORS)
    builds = (
        "SELECT r.status FROM runs r JOIN tags t USING (run_uuid) WHERE t.key = 'lineage.build'"
    )
    assert _query(f"{postgres}mlflow", builds) == [("FINISHED",)] * len(artifacts)

    assert not [path for path in home.rglob("*.db") if "downloads" not in path.parts]
    files = [path for path in home.rglob("*") if path.is_file()]
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]
    assert not [text for pair in printed for text in pair if PASSWORD in text]


HOLDS = """
import os, sys
from pathlib import Path
import dagster as dg
from dagster._core.utils import make_new_run_id
from assets.dagster_storage import make_pools
from assets.lineage import dagster_history, prepare_home
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


def test_a_run_of_a_killed_machine_is_closed_by_another_and_gives_its_slot_back(
    postgres: str, home: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE, f"{postgres}dagster")
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
    state = outcome(home / "dagster", run_id)
    assert state and "on n2) ended without a word" in state.failures[0]


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
