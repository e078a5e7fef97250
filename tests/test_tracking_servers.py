"""Tracking, whatever happens to the server: its database half made, runs deleted, the server
emptied, moved or another, and what it refuses.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import MAKE_MLFLOW_DATABASE, ROOT
from workshop import STEPS, Workshop

from assets.store.store import Store
from assets.tracking import limits
from assets.tracking.event_log import EventWriter
from assets.tracking.server import record_page
from assets.tracking.tracking import Tracking

pytestmark = pytest.mark.slow


def started(home: Path) -> subprocess.Popen[bytes]:
    """A process that makes MLflow's database in `home`."""
    command = [sys.executable, "-c", MAKE_MLFLOW_DATABASE, str(home)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_a_process_killed_while_it_makes_the_database_leaves_no_half_of_one(tmp_path: Path) -> None:
    beside = tmp_path / "mlflow.db.new"
    for pause in (0.0, 0.7):
        process = started(tmp_path)
        while not beside.exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(pause)
        process.kill()
        process.wait()
        assert not (tmp_path / "mlflow.db").exists()
    assert started(tmp_path).wait() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def break_migration(database: Path) -> None:
    """As a process leaves it that was killed in the middle of the migrations."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DROP TABLE alembic_version")
        connection.execute("DROP TABLE logged_models")


DELIVER_PENDING = """
    import sys
    from pathlib import Path
    from assets.tracking.tracking import Tracking
    tracking = Tracking(Path(sys.argv[1]))
    tracking.outbox.serve("dagster-2", print)
    while pending := tracking.deliver_pending(60.0):
        print([delivered.problem for delivered in pending if delivered.problem])
"""


def in_another_process(home: Path, code: str, **environment: str) -> str:
    """What `code` prints: nothing that this process remembers of a server is known there."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(home)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("damage", [break_migration, lambda path: path.write_bytes(b"no database")])
def test_a_damaged_database_without_runs_is_set_aside_and_made_anew(
    workshop_home: Path, damage: Any
) -> None:
    artifact = Workshop(workshop_home).build("corpus", {})
    database = workshop_home / "mlflow.db"
    damage(database)
    size = database.stat().st_size
    printed = in_another_process(workshop_home, DELIVER_PENDING)
    assert "mlflow.db was no whole database of MLflow's" in printed
    assert "It is set aside as mlflow.db.damaged-1, and made anew." in printed
    assert (workshop_home / "mlflow.db.damaged-1").stat().st_size == size
    tracking = Tracking(workshop_home)
    assert tracking.run_of(artifact) in tracking.server.active({tracking.run_of(artifact): "tiny"})


def test_a_database_with_runs_that_does_not_migrate_stays_and_the_cure_is_named(
    workshop: Workshop,
) -> None:
    workshop.delivered(workshop.build("corpus", {}))
    workshop.build("corpus", {"seed": 1})
    database = workshop.store.home / "mlflow.db"
    break_migration(database)
    printed = in_another_process(workshop.store.home, DELIVER_PENDING.replace("while", "if"))
    assert "Move it away, and `gpt-lineage deliver` makes the runs of this store anew." in printed
    assert not list(workshop.store.home.glob("*.damaged*"))


def test_threads_that_import_mlflow_at_once_see_the_whole_of_it(workshop_home: Path) -> None:
    code = """
        import sys, threading
        sys.path.insert(0, "tests")
        from pathlib import Path
        from workshop import Workshop
        workshop, problems = Workshop(Path(sys.argv[1])), []
        folders = [workshop.build("corpus", {"seed": n}).path.parent for n in range(8)]
        assert "mlflow" not in sys.modules
        def deliver(folder):
            problems.append(workshop.tracking._push(folder).problem)
        threads = [threading.Thread(target=deliver, args=[folder]) for folder in folders]
        threads += [threading.Thread(target=workshop.tracking.server.client) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(problems)
    """
    code = code.replace('"tests"', repr(str(ROOT / "tests")))
    assert in_another_process(workshop_home, code) == f"{[None] * 8}\n"


def corpus_of(files: int) -> dict[str, Any]:
    pinned = [{"path": f"notes/{n:05d}.txt", "sha256": "ab" * 32, "size": n} for n in range(files)]
    return {"sources": [{"name": "notes", "path": "notes/*.txt", "pinned": pinned}]}


def test_a_build_beyond_every_limit_of_mlflow_arrives(workshop: Workshop) -> None:
    config = {**corpus_of(700), "prompt": "名" * 20_000, "c" * 300: 1, "a[1]": 1, "a(1)": 2}
    config |= {f"field_{n}": "名" * 6000 for n in range(40)}
    building = workshop.begin("corpus", config, {})
    writer = EventWriter(building.events)
    writer.metrics(1, {f"metric/{n}": float(n) for n in range(2500)})
    writer.metrics(2, {"../suite.yaml/accuracy": 0.5, "held_out/notes [1].txt/bpb": 2.0})
    writer.metrics(3, {"loss": float("nan"), "reward": float("-inf"), "n" * 300: 1.0})
    writer.text(3, "x" * 400, "a lone \ud800 surrogate")
    writer.close()
    run = workshop.delivered(workshop.publish(building, "corpus", config, {}))
    assert run.info.status == "FINISHED"
    assert len(run.data.params) == len(config) - 1 + 3 + len(["result.steps"])
    assert run.data.params["sources.notes.pinned"].startswith("700 entries, sha256 ")
    assert sorted(value for name, value in run.data.params.items() if "a_1_" in name) == ["1", "2"]
    assert sum(name.startswith("train/metric/") for name in run.data.metrics) == 2500
    assert run.data.metrics["train/metric/2499"] == 2499.0
    [bpb] = [value for name, value in run.data.metrics.items() if "notes _1_.txt/bpb" in name]
    assert bpb == 2.0
    [data] = run.inputs.dataset_inputs
    assert data.dataset.name == "notes"
    assert "lineage.refused" not in run.data.tags


def test_what_the_server_refuses_holds_up_nothing_else(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DATASET_SOURCE_CHARACTERS", 10**9)
    artifact = workshop.build("corpus", corpus_of(700))
    delivered = workshop.tracking.deliver(artifact.path.parent, 60.0)
    assert delivered.complete
    assert "refused the inputs of tiny/corpus: 'source' exceeds the maximum length" in str(
        delivered.problem
    )
    run = workshop.client.get_run(delivered.run_id)
    assert (run.info.status, run.data.metrics["eval/accuracy"]) == ("FINISHED", 0.75)
    assert run.data.tags["lineage.refused"] == delivered.problem
    assert workshop.tracking.deliver_pending() == []


def test_a_run_or_an_experiment_deleted_in_mlflow_is_there_again_after_the_next_run(
    workshop: Workshop,
) -> None:
    run = workshop.delivered(workshop.build("corpus", {}))
    workshop.client.delete_run(run.info.run_id)
    assert [delivered.run_id for delivered in workshop.tracking.deliver_pending(60.0)] == [
        run.info.run_id
    ]
    assert workshop.tracking.deliver_pending() == []
    workshop.client.delete_experiment(workshop.tracking.server.experiment("tiny"))
    workshop.tracking.deliver_pending(60.0)
    [again] = workshop.runs()
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert len(workshop.history(again, "train/loss")) == STEPS + 1


def test_a_run_deleted_while_its_build_runs_is_continued(workshop: Workshop) -> None:
    building = workshop.begin("corpus", {}, {})
    workshop.work(building, range(1, 31))
    delivered = workshop.tracking.deliver(building.folder, 60.0)
    workshop.client.delete_run(delivered.run_id)
    workshop.work(building, range(31, STEPS + 1))
    run = workshop.delivered(workshop.publish(building, "corpus", {}, {}))
    assert (run.info.lifecycle_stage, run.info.status) == ("active", "FINISHED")
    assert len(workshop.history(run, "train/loss")) == STEPS + 1


def test_an_emptied_server_gets_every_build_again_and_another_server_too(
    workshop: Workshop, first_start: tuple[Path, list[int]]
) -> None:
    home, empty = workshop.store.home, first_start[0]
    corpus = workshop.build("corpus", {})
    tokens = workshop.build("tokens", {}, {"corpus": corpus})
    before = [workshop.delivered(artifact).info.run_id for artifact in (corpus, tokens)]
    assert in_another_process(home, DELIVER_PENDING) == ""
    shutil.copy(empty, home / "mlflow.db")
    assert in_another_process(home, DELIVER_PENDING) == "[]\n"
    runs = [workshop.tracking.run_of(artifact) for artifact in (corpus, tokens)]
    assert not {*before} & {*runs} and None not in runs

    other = f"sqlite:///{home.parent / 'other.db'}"
    shutil.copy(empty, home.parent / "other.db")
    assert in_another_process(home, DELIVER_PENDING, MLFLOW_TRACKING_URI=other) == "[]\n"
    assert in_another_process(home, DELIVER_PENDING, MLFLOW_TRACKING_URI=other) == ""
    assert in_another_process(home, DELIVER_PENDING) == ""
    assert workshop.tracking.run_of(corpus) == runs[0] != Tracking(home, other).run_of(corpus)


def test_deliver_brings_every_build_to_a_server_and_finds_it_there(
    workshop: Workshop, first_start: tuple[Path, list[int]], tmp_path: Path
) -> None:
    home, empty = workshop.store.home, tmp_path / "empty"
    empty.mkdir()
    corpus = workshop.build("corpus", {})
    workshop.build("tokens", {}, {"corpus": corpus})
    shutil.copy(first_start[0], home.parent / "other.db")
    uri = f"sqlite:///{home.parent / 'other.db'}"
    command = [sys.executable, "-m", "pipelines.cli", "deliver", "--to", uri]
    environment = os.environ | {"LINEAGE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=empty)
        assert (done.returncode, done.stdout) == (0, f"2 builds are in MLflow at {uri}.\n")
    assert [*empty.iterdir()] == []
    there = Tracking(home, uri)
    runs = there.server.client().search_runs([there.server.experiment("tiny")])
    builds = [run.info.status for run in runs if "lineage.asset" in run.data.tags]
    assert builds == ["FINISHED", "FINISHED"]
    files = (home.parent / "mlartifacts" / "tiny").as_uri()
    assert all(run.info.artifact_uri.startswith(f"{files}/") for run in runs)
    assert workshop.runs() == []
    command = [sys.executable, "-m", "pipelines.cli", "trace", str(there.run_of(corpus)), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert corpus.fingerprint in done.stdout


def test_links_lead_to_where_the_pages_are_served(workshop: Workshop) -> None:
    home = workshop.store.home
    artifact = workshop.build("corpus", {})
    first = workshop.delivered(artifact)
    assert first.data.tags["lineage.dagster.url"] == "http://127.0.0.1:3000/runs/dagster-1"
    record_page(home, "dagster", "http://127.0.0.1:3456")
    record_page(home, "mlflow", "http://127.0.0.1:5050")
    [delivered] = workshop.tracking.deliver_pending(60.0)
    run = workshop.client.get_run(delivered.run_id)
    assert run.data.tags["lineage.dagster.url"] == "http://127.0.0.1:3456/runs/dagster-1"
    assert "(http://127.0.0.1:3456/runs/dagster-1)" in run.data.tags["mlflow.note.content"]
    assert Tracking(home).run_url("r").startswith("http://127.0.0.1:5050/#/runs/r?")
    assert workshop.tracking.deliver_pending() == []


def test_a_delivery_of_an_earlier_commit_is_known(workshop: Workshop) -> None:
    artifact = workshop.build("corpus", {})
    run_id = workshop.delivered(artifact).info.run_id
    file = artifact.path.parent / "journal" / "delivery.json"
    build = json.loads((file.parent / "build.json").read_text())
    del build["attempts"][-1]["session"]
    (file.parent / "build.json").write_text(json.dumps(build))
    uri = f"sqlite:////elsewhere/{workshop.store.home.name}/mlflow.db"
    file.write_text(f'{{"uri": "{uri}", "run_id": "{run_id}", "attempt": 1, "complete": true}}')
    assert (
        Tracking(workshop.store.home).run_of(
            Store(workshop.store.home).resolve(artifact.fingerprint)
        )
        == run_id
    )
    assert workshop.tracking.deliver_pending() == []
