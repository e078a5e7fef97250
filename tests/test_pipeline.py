"""The whole chain through the Dagster job: what is built, what is found again, what a person sees of it, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from conftest import ROOT, BuiltStore, environment_of, write_local_recipe, write_notes
from dagster_graphql import DagsterGraphQLClient
from mlflow import MlflowClient

from assets.recipe import load_recipe
from assets.resources.lineage import Lineage, prepare_home
from assets.resources.store import Store
from docs.pictures import HOST, serving
from pipelines.definitions import RecipeFile, build_defs
from pipelines.lineage_views import traced
from pipelines.servers import dagster_command


def definitions(path: Path, home: Path) -> dg.Definitions:
    return build_defs([RecipeFile(load_recipe(str(path)), path)], resource_overrides={"lineage": Lineage(home=str(home))})


def run_job(path: Path, home: Path, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    job = definitions(path, home).get_job_def(path.stem)
    return job.execute_in_process(instance=instance, raise_on_error=False)


def materializations(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetMaterialization]:
    return {"/".join(e.asset_key.path): e.materialization for e in result.get_asset_materialization_events() if e.asset_key}


def test_ci_recipe_is_built_end_to_end_through_the_job(built: BuiltStore) -> None:
    store = Store(built.home)
    refs = store.refs()
    for name in ("corpus", "tokenizer", "tokens", "pretrained", "finetuned/sentiment", "zero_shot", "scorecard"):
        artifact = store.find(refs[f"ci/{name}"])
        assert artifact is not None and store.verify(artifact) == [], name
        gate = store.gate(artifact)
        assert all(verdict.passed for verdict in gate.values() if verdict.blocking), (name, gate)
    pretrained = store.find(refs["ci/pretrained"])
    assert pretrained is not None
    assert pretrained.metrics["held_out/bpb"] < 4.5
    assert "scorecard" in built.printed and "gpt-lineage trace ci/" in built.printed


def test_second_run_finds_everything(built: BuiltStore) -> None:
    before = {path.name for path in (built.home / "artifacts").iterdir()}
    again = built.cli("run", str(ROOT / "tests" / "recipes" / "ci.yaml"))
    assert again.returncode == 0, again.stderr
    assert {path.name for path in (built.home / "artifacts").iterdir()} == before


def test_orchestrator_never_imports_torch_and_stays_small(built: BuiltStore) -> None:
    """Here of a run that finds everything; benchmarks/demo.py measures the peak of one that builds."""
    script = (
        "import sys; from pathlib import Path; from pipelines.cli import main\n"
        f"sys.argv = ['gpt-lineage', 'run', {str(ROOT / 'tests' / 'recipes' / 'ci.yaml')!r}]\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        # VmHWM, not ru_maxrss: that one begins at the peak of whoever started the process
        "peak = Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]\n"
        "print('\\nFIGURES', 'torch' in sys.modules, int(peak) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment_of(built.home, built.downloads),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "FIGURES" in done.stdout, done.stderr
    torch, megabytes = done.stdout.rsplit("FIGURES", 1)[1].split()
    assert torch == "False"
    assert int(megabytes) <= 400


def test_materialization_shows_what_a_person_wants(home: Path, tmp_path: Path) -> None:
    prepare_home(home)
    path = write_local_recipe(tmp_path)
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_job(path, home, instance)
        assert result.success
        shown = materializations(result)
        store = Store(home)
        artifact = store.find(store.refs()["local/pretrained"])
        assert artifact is not None
        event = shown["local/pretrained"]
        assert event.tags is not None and event.tags["dagster/data_version"] == artifact.digest
        metadata = event.metadata
        assert metadata["fingerprint"].value == artifact.fingerprint
        assert any(str(value.value).startswith("![") for value in metadata.values())  # an inline picture
        assert "/runs/" in str(metadata["MLflow run"].value)
        assert float(metadata["seconds"].value) > 0 and float(metadata["size (bytes)"].value) > 10_000  # type: ignore[arg-type]
        checks = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
        assert checks["loss_is_finite"] and checks["loss_falls"] and checks["nothing_held_out_is_trained_on"] and checks["round_trip"]


def test_new_text_is_retrained_by_schedule_and_sensor_and_nothing_new_is_found(home: Path, tmp_path: Path) -> None:
    prepare_home(home)
    path = write_local_recipe(tmp_path)
    store = Store(home)
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_job(path, home, instance).success
        first = store.refs()["local/pretrained"]
        defs = definitions(path, home)
        sensor, schedule = defs.get_sensor_def("local_grown_source"), defs.get_schedule_def("local_weekly")
        assert sensor.default_status == dg.DefaultSensorStatus.STOPPED and schedule.default_status == dg.DefaultScheduleStatus.STOPPED

        def tick(cursor: str | None) -> tuple[list[dg.RunRequest], str | None]:
            with dg.build_sensor_context(
                instance=instance, cursor=cursor, definitions=defs, resources={"lineage": Lineage(home=str(home))}
            ) as context:
                data = sensor.evaluate_tick(context)
            return list(data.run_requests or []), data.cursor

        assert tick(None)[0] == []
        write_notes(tmp_path / "notes", 60, start=10_000)
        requests, cursor = tick(None)
        assert len(requests) == 1
        assert run_job(path, home, instance).success
        second = store.refs()["local/pretrained"]
        assert second != first
        lineage = json.dumps(traced(store, store.resolve("local/pretrained")))
        assert "notes10000.txt" in lineage
        assert tick(cursor)[0] == []
        with dg.build_schedule_context(instance=instance) as context:
            ticked = schedule.evaluate_tick(context)
        assert len(ticked.run_requests or []) == 1
        before = set(os.listdir(home / "artifacts"))  # noqa: PTH208 - names are what is compared
        result = run_job(path, home, instance)
        assert result.success
        assert all(m.metadata["found"].value for m in materializations(result).values())
        assert set(os.listdir(home / "artifacts")) == before  # noqa: PTH208


def start_run(path: Path, home: Path, downloads: Path, profile: Path | None = None) -> subprocess.Popen[str]:
    options = ["--profile", str(profile)] if profile else []
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "run", str(path), *options], env=environment_of(home, downloads), cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def workers_of(home: Path) -> list[psutil.Process]:
    """Every process whose command line names this home's building folder: guard and ranks."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(home / "building") in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for_training(home: Path, run: subprocess.Popen[Any]) -> None:
    """Until the pre-training worker has reported steps."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and run.poll() is None:
        for journal in home.glob("building/*/journal/events.jsonl"):
            job = json.loads((journal.parent.parent / "job.json").read_text())
            if job["asset"].endswith("/pretrained") and journal.read_text().count('"metrics"') >= 3:
                return
        time.sleep(0.1)
    raise AssertionError(f"training was not reached: {run.communicate()[0] if run.poll() is not None else 'still before it'}")


def write_profile(folder: Path) -> Path:
    """Two real DeepSpeed ranks that leave a checkpoint every second."""
    path = folder / "quick.yaml"
    path.write_text("name: quick\nprocesses: 2\nzero_stage: 1\ncheckpoint_seconds: 1.0\n")
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> str:
    """The digest that the recipe below comes to when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path, home = write_local_recipe(folder, tokens=TOKENS), folder / "lineage"
    run = start_run(path, home, downloads, write_profile(folder))
    assert run.wait(timeout=600) == 0, run.communicate()[0]
    return Store(home).resolve("local/pretrained").digest


TOKENS = 400_000  # some twenty seconds of training


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_ended_run_leaves_no_process_and_the_next_one_ends_in_the_same_bits(
    how: signal.Signals, undisturbed: str, home: Path, downloads: Path, tmp_path: Path
) -> None:
    path, profile = write_local_recipe(tmp_path, tokens=TOKENS), write_profile(tmp_path)
    run = start_run(path, home, downloads, profile)
    wait_for_training(home, run)
    assert len(workers_of(home)) >= 2
    run.send_signal(how)
    run.wait(timeout=60)
    deadline = time.monotonic() + 30
    while workers_of(home) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers_of(home) == []
    assert "pretrained" not in {Store(home).find(p.name).stage for p in (home / "artifacts").iterdir()}  # type: ignore[union-attr]

    again = start_run(path, home, downloads, profile)
    assert again.wait(timeout=600) == 0, again.communicate()[0]
    artifact = Store(home).resolve("local/pretrained")
    assert artifact.digest == undisturbed
    assert len(artifact.manifest["provenance"]["dagster_runs"]) == 2  # both runs touched this one build …
    runs = MlflowClient(f"sqlite:///{home / 'mlflow.db'}").search_runs(
        [MlflowClient(f"sqlite:///{home / 'mlflow.db'}").get_experiment_by_name("local").experiment_id],
        f"tags.`lineage.fingerprint` = '{artifact.fingerprint}'",
    )
    assert [run.info.status for run in runs] == ["FINISHED"]  # … which has one MLflow run


def test_two_runs_at_once_build_each_artifact_once(home: Path, downloads: Path, tmp_path: Path) -> None:
    path = write_local_recipe(tmp_path)
    both = [start_run(path, home, downloads) for _ in range(2)]
    words = [run.communicate(timeout=600)[0] for run in both]
    assert [run.returncode for run in both] == [0, 0], words
    assert sorted(int(word.rsplit(" built", 1)[0].rsplit(" ", 1)[1]) for word in words)[0] < 5  # the other found what one had built
    manifests = list((home / "artifacts").glob("*/artifact.json"))
    assert len(manifests) == 5
    experiment = MlflowClient(f"sqlite:///{home / 'mlflow.db'}").get_experiment_by_name("local")
    assert len(MlflowClient(f"sqlite:///{home / 'mlflow.db'}").search_runs([experiment.experiment_id])) == 5


def test_reproduce_of_the_pretrained_model_gives_the_same_digest(built: BuiltStore) -> None:
    done = built.cli("reproduce", "ci/pretrained")
    assert done.returncode == 0, done.stdout + done.stderr


def test_definitions_check_as_they_stand() -> None:
    done = subprocess.run([str(Path(sys.executable).parent / "dg"), "check", "defs"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_run_terminated_from_the_page_leaves_no_process(
    home: Path, downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the page's Terminate button calls, on a run that the page's Launch button would have launched."""
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    write_local_recipe(recipes, tokens=4_000_000)
    monkeypatch.setenv("LINEAGE_RECIPES", str(recipes))
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    with serving(dagster_command(port), f"http://{HOST}:{port}/server_info", home) as server:
        client = DagsterGraphQLClient(HOST, port_number=port)
        run_id = client.submit_job_execution("local", run_config={})
        wait_for_training(home, server)
        client.terminate_run(run_id)
        deadline = time.monotonic() + 30
        while workers_of(home) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert workers_of(home) == []
        while client.get_run_status(run_id) == dg.DagsterRunStatus.CANCELING and time.monotonic() < deadline:
            time.sleep(0.2)
        assert client.get_run_status(run_id) == dg.DagsterRunStatus.CANCELED
