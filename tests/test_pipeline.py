"""The whole chain through the Dagster job: what is built, what is found again, what a person sees
of it, and what a kill leaves.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from conftest import ROOT, BuiltStore, environment_of, free_port, write_local_recipe, write_notes
from dagster_graphql import DagsterGraphQLClient, DagsterGraphQLClientError

from assets.lineage import Lineage, prepare_home
from assets.recipe.recipe import load_recipe
from assets.report.lineage_tree import traced
from assets.store.store import Store
from assets.tracking.event_log import events
from assets.tracking.tracking import Tracking
from docs.pictures import HOST, serving
from pipelines.definitions import RecipeFile, build_defs

pytestmark = pytest.mark.slow


def definitions(path: Path, home: Path) -> dg.Definitions:
    return build_defs(
        [RecipeFile(load_recipe(str(path)), path)],
        resource_overrides={"lineage": Lineage(home=str(home))},
    )


def run_job(
    path: Path, home: Path, instance: dg.DagsterInstance, *only: str, **options: Any
) -> dg.ExecuteInProcessResult:
    """A run of the recipe's job, or of the assets `only`."""
    job = definitions(path, home).resolve_job_def(path.stem)
    selection = [dg.AssetKey([path.stem, *name.split("/")]) for name in only] or None
    return job.execute_in_process(
        instance=instance, raise_on_error=False, asset_selection=selection, **options
    )


def materializations(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetMaterialization]:
    return {
        "/".join(e.asset_key.path): e.materialization
        for e in result.get_asset_materialization_events()
        if e.asset_key
    }


def test_ci_recipe_is_built_end_to_end_through_the_job(built: BuiltStore) -> None:
    store = Store(built.home)
    refs = store.refs()
    tasks = ("sentiment", "boolq", "factual_summary", "piqa")  # one of each form
    for name in (
        "corpus",
        "tokenizer",
        "tokens",
        "pretrained",
        *(f"finetuned/{task}" for task in tasks),
        "zero_shot",
        "scorecard",
    ):
        artifact = store.find(refs[f"ci/{name}"])
        assert artifact is not None and store.verify(artifact) == [], name
        gate = store.gate(artifact)
        assert all(verdict.passed for verdict in gate.values() if verdict.blocking), (name, gate)
    pretrained = store.find(refs["ci/pretrained"])
    assert pretrained is not None
    assert pretrained.metrics["held_out/bpb"] < 4.5
    assert (
        "scorecard" in built.printed
        and f"gpt-lineage trace {pretrained.fingerprint[:12]}" in built.printed
    )
    registered = {
        model.name for model in Tracking(built.home).server.client().search_registered_models()
    }
    assert registered == {"ci-pretrained", *(f"ci-finetuned-{task}" for task in tasks)}


def test_second_run_finds_everything(built: BuiltStore) -> None:
    before = {path.name for path in (built.home / "artifacts").iterdir()}
    again = built.cli("run", str(ROOT / "tests" / "recipes" / "ci.yaml"), "--json")
    assert again.returncode == 0, again.stderr
    assert {path.name for path in (built.home / "artifacts").iterdir()} == before
    document = json.loads(again.stdout)  # what a script reads; progress is on stderr
    assert (document["recipe"], document["succeeded"], document["found"], document["built"]) == (
        "ci",
        True,
        len(before),
        0,
    )
    refs = {
        f"ci/{name}": artifact["fingerprint"] for name, artifact in document["artifacts"].items()
    }
    assert refs == Store(built.home).refs()
    assert any(
        score["asset"] == "ci/pretrained" and score["value"] > 0 for score in document["scores"]
    )
    assert "<html" in Path(document["scorecard"]).read_text(encoding="utf-8")[:200]
    assert f"Dagster run {document['dagster_run']}" in again.stderr


def test_orchestrator_imports_nothing_heavy_and_stays_small(built: BuiltStore) -> None:
    """A run that finds everything built; benchmarks/demo.py measures the peak of one that builds."""
    script = (
        "import sys; from pathlib import Path; from pipelines.cli.main import main\n"
        f"sys.argv = ['gpt-lineage', 'run', {str(ROOT / 'tests' / 'recipes' / 'ci.yaml')!r}]\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        # VmHWM, not ru_maxrss: that one begins at the peak of whoever started the process
        "peak = Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]\n"
        "heavy = {'torch', 'mlflow', 'numpy', 'pandas', 'tokenizers'} & set(sys.modules)\n"
        "print('\\nFIGURES', *sorted(heavy), int(peak) // 1024)"
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
    *heavy, megabytes = done.stdout.rsplit("FIGURES", 1)[1].split()
    assert heavy == []
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
        assert any(
            str(value.value).startswith("![") for value in metadata.values()
        )  # an inline picture
        assert "/runs/" in str(metadata["MLflow run"].value)
        seconds = [float(str(metadata[name].value)) for name in ("duration (s)", "seconds")]
        assert seconds[0] > seconds[1] > 0
        assert float(metadata["size (bytes)"].value) > 10_000  # type: ignore[arg-type]
        tokens = store.resolve("local/tokens")
        rows = {name: shown[f"local/{name}"].metadata for name in ("corpus", "tokens")}
        assert rows["tokens"]["dagster/row_count"].value == tokens.metrics["tokens"] > 20_000
        assert rows["corpus"]["dagster/row_count"].value == sum(
            value
            for name, value in store.resolve("local/corpus").metrics.items()
            if name.endswith("/documents")
        )
        again = run_job(path, home, instance, "tokens")
        log = instance.all_logs(again.run_id)
        assert again.success and materializations(again)["local/tokens"].metadata["found"].value
        assert not [entry.user_message for entry in log if entry.level >= logging.WARNING]
        checks = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
        assert (
            checks["loss_is_finite"]
            and checks["loss_falls"]
            and checks["nothing_held_out_is_trained_on"]
            and checks["round_trip"]
        )


class Ticks:
    """Ticks a recipe's sensor and schedule, and runs what they ask for as the daemon would."""

    def __init__(self, path: Path, home: Path, instance: dg.DagsterInstance) -> None:
        self.path, self.home, self.instance = path, home, instance
        defs = definitions(path, home)
        self.sensor, self.schedule = (
            defs.get_sensor_def("local_grown_source"),
            defs.get_schedule_def("local_weekly"),
        )

    def sensor_tick(self) -> list[dg.RunRequest]:
        resources = {"lineage": Lineage(home=str(self.home))}
        with dg.build_sensor_context(instance=self.instance, resources=resources) as context:
            return list(self.sensor.evaluate_tick(context).run_requests or [])

    def schedule_tick(self) -> list[dg.RunRequest]:
        with dg.build_schedule_context(instance=self.instance) as context:
            return list(self.schedule.evaluate_tick(context).run_requests or [])

    def run(self, request: dg.RunRequest) -> dict[str, bool]:
        """Which of the assets were found, and not built."""
        job = definitions(self.path, self.home).resolve_job_def(
            request.job_name or self.sensor.job_name
        )
        result = job.execute_in_process(
            dict(request.run_config), instance=self.instance, tags=dict(request.tags)
        )
        return {
            name: bool(shown.metadata["found"].value)
            for name, shown in materializations(result).items()
        }

    def names_in_lineage(self) -> str:
        store = Store(self.home)
        return json.dumps(traced(store, store.resolve("local/pretrained")))


def test_new_text_is_retrained_by_schedule_and_sensor_and_nothing_new_is_found(
    home: Path, tmp_path: Path
) -> None:
    prepare_home(home)
    path = write_local_recipe(tmp_path)
    path.write_text(path.read_text() + "schedule: weekly\n")
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_job(path, home, instance).success
        store = Store(home)
        first, card = (
            store.refs()["local/pretrained"],
            store.show(store.resolve("local/scorecard")) / "scorecard.md",
        )
        ticks = Ticks(path, home, instance)
        assert ticks.sensor.default_status == dg.DefaultSensorStatus.STOPPED
        assert ticks.schedule.default_status == dg.DefaultScheduleStatus.STOPPED
        assert ticks.sensor_tick() == []

        write_notes(tmp_path / "notes", 60, start=10_000)
        [request] = ticks.sensor_tick()
        assert not ticks.run(request)["local/pretrained"]
        assert "notes10000.txt" in ticks.names_in_lineage()
        assert f"└── local/pretrained {first[:12]} digest " in card.read_text()
        walked = {
            store.resolve(word).fingerprint
            for word in re.findall(r"`gpt-lineage (?:trace|reproduce) (\S+)`", card.read_text())
        }
        assert (
            walked == {first} != {store.refs()["local/pretrained"]}
        )  # the old card still walks back to what it was of
        assert ticks.sensor_tick() == []

        write_notes(tmp_path / "notes", 60, start=20_000)
        [request] = ticks.schedule_tick()
        assert not ticks.run(request)["local/pretrained"]
        assert "notes20000.txt" in ticks.names_in_lineage()

        before = {artifact.name for artifact in (home / "artifacts").iterdir()}
        assert ticks.sensor_tick() == []
        [request] = ticks.schedule_tick()
        results = ticks.run(request)
        assert len(results) == 5 and all(results.values())
        assert {artifact.name for artifact in (home / "artifacts").iterdir()} == before


def test_what_an_unreachable_server_missed_is_delivered_by_the_next_dagster_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever launches it: page, schedule and sensor know nothing of the command line."""
    prepare_home(home)
    path = write_local_recipe(tmp_path)
    with socket.socket() as refused, dg.DagsterInstance.ephemeral() as instance:
        refused.bind((HOST, 0))  # and nobody listens
        server = f"http://{HOST}:{refused.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        result = run_job(path, home, instance, "corpus", "tokenizer")
        assert result.success
        messages = [
            entry.user_message
            for entry in instance.all_logs(result.run_id)
            if server in entry.user_message
        ]
        assert len(messages) == 1 and messages[0].endswith(
            "What is left is delivered in the background, or by the next run."
        )

        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        result = run_job(path, home, instance, "corpus", "tokenizer")
        assert all(shown.metadata["found"].value for shown in materializations(result).values())
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and [run.info.status for run in mlflow_runs(home)] != [
            "FINISHED",
            "FINISHED",
        ]:
            time.sleep(0.2)
        assert {run.data.tags["lineage.asset"]: run.info.status for run in mlflow_runs(home)} == {
            "local/corpus": "FINISHED",
            "local/tokenizer": "FINISHED",
        }


def mlflow_runs(home: Path, fingerprint: str | None = None) -> list[Any]:
    """The runs of the builds of recipe `local`, or of one build, in the store's own MLflow; not
    their parents.
    """
    client = Tracking(home).server.client()
    experiment = client.get_experiment_by_name("local")
    wanted = f"tags.`lineage.fingerprint` = '{fingerprint}'" if fingerprint else ""
    runs = client.search_runs([experiment.experiment_id], wanted) if experiment else []
    return [run for run in runs if "lineage.asset" in run.data.tags]


def test_a_worker_that_dies_once_is_retried_within_the_run_and_stays_one_mlflow_run(
    home: Path, tmp_path: Path
) -> None:
    prepare_home(home)
    path = write_local_recipe(tmp_path, tokens=60_000)
    killed = list[int]()

    def kill_one_rank() -> None:
        wait_for_training(home)
        ranks = [
            process
            for process in workers_of(home)
            if "assets.worker" in process.cmdline() and "guard" not in str(process.cmdline())
        ]
        ranks[-1].kill()
        killed.append(len(ranks))

    with dg.DagsterInstance.ephemeral() as instance:
        killer = threading.Thread(target=kill_one_rank)
        killer.start()
        result = run_job(path, home, instance)
        killer.join()
        assert killed == [2]
        assert result.success
        assert [event.step_key for event in result.all_events if event.is_step_up_for_retry] == [
            "local__pretrained"
        ]
    artifact = Store(home).resolve("local/pretrained")
    assert artifact.manifest["provenance"]["attempts"] == 2
    [run] = mlflow_runs(home, artifact.fingerprint)
    assert (run.info.status, run.data.tags["lineage.attempts"]) == ("FINISHED", "2")
    assert run.data.tags["lineage.dagster.runs"] == result.run_id


def start_run(
    path: Path, home: Path, downloads: Path, profile: Path | None = None
) -> subprocess.Popen[str]:
    options = ["--profile", str(profile)] if profile else []
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "run", str(path), *options],
        env=environment_of(home, downloads),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def workers_of(home: Path) -> list[psutil.Process]:
    """Every process whose command line names this home's building folder: guard and ranks."""
    workers = []
    for process in psutil.process_iter():
        try:
            if any(str(home / "building") in part for part in process.cmdline()):
                workers.append(process)
        except psutil.Error:
            continue
    return workers


def wait_for(holds: Callable[[], bool], run: subprocess.Popen[Any] | None, what: str) -> None:
    deadline = time.monotonic() + 180
    while not holds():
        assert run is None or run.poll() is None, f"It ended before {what}: {run.communicate()[0]}"
        assert time.monotonic() < deadline, f"{what} not reached"
        time.sleep(0.1)


def wait_for_training(home: Path, run: subprocess.Popen[Any] | None = None) -> None:
    """Until the pre-training worker has reported steps."""

    def has_begun(building: Path) -> bool:
        try:
            journal = (building / "journal" / "events.jsonl").read_text()
            asset = json.loads((building / "job.json").read_text())["asset"]
        except FileNotFoundError:  # not begun, or published meanwhile
            return False
        return asset.endswith("/pretrained") and journal.count('"metrics"') >= 3

    wait_for(
        lambda: any(has_begun(building) for building in home.glob("building/*")), run, "training"
    )


def wait_for_checkpoint(home: Path, run: subprocess.Popen[Any]) -> None:
    """Until there is one that a next attempt can go on from."""
    wait_for(
        lambda: any(path.suffix != ".partial" for path in home.glob(CHECKPOINTS)),
        run,
        "a checkpoint",
    )


def write_profile(folder: Path) -> Path:
    """Two real DeepSpeed ranks that leave a checkpoint every second."""
    path = folder / "quick.yaml"
    path.write_text("name: quick\nprocesses: 2\nzero_stage: 1\ncheckpoint_seconds: 1.0\n")
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Path:
    """A home in which nobody disturbed the recipe below."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path, home = write_local_recipe(folder, tokens=TOKENS), folder / "lineage"
    run = start_run(path, home, downloads, write_profile(folder))
    assert run.wait(timeout=600) == 0, run.communicate()[0]
    return home


TOKENS = 250_000  # some twelve seconds of training
CHECKPOINTS = "building/*/files/.scratch/checkpoints/step-*"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_ended_run_leaves_no_process_and_the_next_one_ends_in_the_same_bits(
    how: signal.Signals, undisturbed: Path, home: Path, downloads: Path, tmp_path: Path
) -> None:
    path, profile = write_local_recipe(tmp_path, tokens=TOKENS), write_profile(tmp_path)
    run = start_run(path, home, downloads, profile)
    wait_for_checkpoint(home, run)
    assert len(workers_of(home)) >= 2
    run.send_signal(how)
    run.wait(timeout=60)
    deadline = time.monotonic() + 30
    while workers_of(home) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers_of(home) == []
    assert "pretrained" not in {
        Store(home).find(p.name).stage for p in (home / "artifacts").iterdir()
    }  # type: ignore[union-attr]

    again = start_run(path, home, downloads, profile)
    assert again.wait(timeout=600) == 0, again.communicate()[0]
    artifact = Store(home).resolve("local/pretrained")
    assert artifact.digest == Store(undisturbed).resolve("local/pretrained").digest
    messages = [
        event["message"]
        for event, _ in events(artifact.path.parent / "journal" / "events.jsonl")
        if event["kind"] == "log"
    ]
    [resumed] = [
        re.findall(r"checkpoint of step (\d+) of", message)[0]
        for message in messages
        if message.startswith("Goes on from")
    ]
    assert int(resumed) > 0
    assert (
        len(artifact.manifest["provenance"]["dagster_runs"]) == 2
    )  # both runs touched this one build …
    assert [run.info.status for run in mlflow_runs(home, artifact.fingerprint)] == [
        "FINISHED"
    ]  # … which has one MLflow run


def test_what_the_worker_says_is_in_the_runs_log_as_it_happens(undisturbed: Path) -> None:
    artifact = Store(undisturbed).resolve("local/pretrained")
    [run_id] = artifact.manifest["provenance"]["dagster_runs"]
    with dg.DagsterInstance.from_config(str(undisturbed / "dagster")) as instance:
        log = [
            entry for entry in instance.all_logs(run_id) if entry.step_key == "local__pretrained"
        ]
    [built] = [
        entry.timestamp
        for entry in log
        if entry.dagster_event and entry.dagster_event.is_step_materialization
    ]
    shown = [
        entry.timestamp for entry in log if re.search(r"step \d+: .*\bloss \d", entry.user_message)
    ]
    steps = [
        event["time"]
        for event, _ in events(artifact.path.parent / "journal" / "events.jsonl")
        if event["kind"] == "metrics"
    ]
    assert shown
    assert max(shown) < built
    assert shown[0] < (steps[0] + steps[-1]) / 2  # not all at once when it was over


def test_two_runs_at_once_build_each_artifact_once(
    home: Path, downloads: Path, tmp_path: Path
) -> None:
    path = write_local_recipe(tmp_path)
    both = [start_run(path, home, downloads) for _ in range(2)]
    outputs = [run.communicate(timeout=600)[0] for run in both]
    assert [run.returncode for run in both] == [0, 0], outputs
    assert (
        sorted(int(re.findall(r"(\d+) built in", output)[-1]) for output in outputs)[0] < 5
    )  # the other found what one had built
    manifests = list((home / "artifacts").glob("*/artifact.json"))
    assert len(manifests) == 5
    assert len(mlflow_runs(home)) == 5


def test_reproduce_of_the_pretrained_model_gives_the_same_digest(built: BuiltStore) -> None:
    done = built.cli("reproduce", "ci/pretrained")
    assert done.returncode == 0, done.stdout + done.stderr


def test_definitions_check_as_they_stand() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "dg"), "check", "defs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_page_and_command_line_end_each_others_runs_and_a_killed_one_holds_up_nobody(
    home: Path, downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the page's Launch and Terminate buttons call, and runs of the command line beside it.
    Training has a pool of one slot.
    """
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    path = write_local_recipe(recipes, tokens=4_000_000)
    monkeypatch.setenv("LINEAGE_RECIPES", str(recipes))
    port = free_port()

    def ends_as_canceled(run_id: str) -> None:
        wait_for(lambda: workers_of(home) == [], None, "the end of the workers")
        wait_for(
            lambda: client.get_run_status(run_id) == dg.DagsterRunStatus.CANCELED, None, "the end"
        )

    def waiting_run() -> tuple[subprocess.Popen[str], str]:
        """A run of the command line that waits for the slot."""
        run = start_run(path, home, downloads)
        wait_for(lambda: "blocked by limit for pool training" in latest_log(home), run, "the pool")
        return run, latest_run(home)

    with serving("ui", port, home) as server:
        client = DagsterGraphQLClient(HOST, port_number=port)
        from_the_page = client.submit_job_execution("local", run_config={})
        wait_for_training(home, server)
        run, run_id = waiting_run()
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=30) == 130
        assert client.get_run_status(run_id) == dg.DagsterRunStatus.CANCELED
        client.terminate_run(from_the_page)
        ends_as_canceled(from_the_page)

        run = start_run(path, home, downloads)
        wait_for(lambda: workers_of(home) != [], run, "training")
        run_id = latest_run(home)
        with suppress(DagsterGraphQLClientError):  # the page cannot reach it; the run looks itself
            client.terminate_run(run_id)
        assert run.wait(timeout=30) == 130
        ends_as_canceled(run_id)
        assert "Traceback" not in run.communicate()[0]

        from_the_page = client.submit_job_execution("local", run_config={})
        wait_for(lambda: workers_of(home) != [], server, "training")
        run, _ = waiting_run()
        for process in [*psutil.Process(server.pid).children(recursive=True), server]:
            process.kill()
        wait_for(lambda: workers_of(home) == [], None, "the end of the workers")
        wait_for(lambda: workers_of(home) != [], run, "the slot")
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=30) == 130
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        lost = instance.get_run_by_id(from_the_page)
        assert lost is not None and lost.status == dg.DagsterRunStatus.FAILURE


def latest_run(home: Path) -> str:
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        return instance.get_runs(limit=1)[0].run_id


def latest_log(home: Path) -> str:
    """What the newest Dagster run has said."""
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        runs = instance.get_runs(limit=1)
        logs = instance.all_logs(runs[0].run_id) if runs else []
    return "\n".join(entry.user_message for entry in logs)
