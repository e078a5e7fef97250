"""Independent stages of one run at once, where profile and pool leave room."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import dagster as dg
import pytest
from conftest import CI_RECIPE, ROOT, BuiltStore, environment_of
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._utils.interrupts import capture_interrupts

from assets.recipe import profile as profiles
from assets.recipe.profile import Profile
from assets.store.store import Store
from pipelines.executor import one_process_executor


def test_a_profile_says_how_many_stages_the_machine_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profiles, "_cores", lambda: 16)
    monkeypatch.setattr(profiles, "_memory", lambda: 64e9)
    assert Profile(name="p").stages_at_once() == 1  # all threads, all memory
    assert Profile(name="p", threads=2).stages_at_once() == 1
    assert Profile(name="p", threads=2, memory_gb=8).stages_at_once() == 8
    assert Profile(name="p", threads=2, processes=2, memory_gb=8).stages_at_once() == 4
    assert Profile(name="p", threads=1, memory_gb=30).stages_at_once() == 2
    assert Profile(name="p", threads=32, memory_gb=1).stages_at_once() == 1
    assert Profile(name="p", threads=1, memory_gb=1, device="cuda").stages_at_once() == 1


class Room:
    """What the executor reads of the resource."""

    def __init__(self, stages: int) -> None:
        self.stages = stages

    def execution(self) -> Room:
        return self

    def stages_at_once(self) -> int:
        return self.stages


def executed(instance: dg.DagsterInstance, work: dg.OpDefinition, room: int) -> dg.DagsterRun:
    """A run of three steps that each `work`, and of one after them."""

    @dg.op(ins={"begun": dg.In(list)})
    def last(begun: list[int]) -> int:
        return len(begun)

    resource = dg.ResourceDefinition.hardcoded_resource(Room(room))

    @dg.job(executor_def=one_process_executor, resource_defs={"lineage": resource})
    def job() -> None:
        last([work.alias(name)() for name in ("a", "b", "c")])

    run = instance.create_run_for_job(job)
    execute_run(InMemoryJob(job), run, instance)
    return instance.get_run_by_id(run.run_id) or run


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    settings = {"concurrency": {"pools": {"default_limit": 2}}}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides=settings) as instance:
        yield instance


@pytest.mark.parametrize(("room", "most"), [(1, 1), (3, 2)])
def test_no_more_steps_execute_at_once_than_the_profile_and_the_pool_have_room_for(
    instance: dg.DagsterInstance, room: int, most: int
) -> None:
    executing: list[None] = []
    counts: list[int] = []

    @dg.op(pool="training", required_resource_keys={"lineage"})
    def work() -> int:
        executing.append(None)
        time.sleep(0.3)
        counts.append(len(executing))
        executing.pop()
        return 1

    assert executed(instance, work, room).status == dg.DagsterRunStatus.SUCCESS
    assert (len(counts), max(counts)) == (3, most)
    assert not instance.event_log_storage.get_concurrency_info("training").claimed_slots


def test_a_failure_leaves_the_steps_beside_it_to_their_end(instance: dg.DagsterInstance) -> None:
    ended: list[str] = []

    @dg.op(pool="training", required_resource_keys={"lineage"})
    def work(context) -> int:  # Dagster reads annotations, which are postponed here
        time.sleep(0.2 if context.op_handle.name == "a" else 0.6)
        if context.op_handle.name == "a":
            raise dg.Failure("It cannot be done.", allow_retries=False)
        ended.append(context.op_handle.name)
        return 1

    run = executed(instance, work, 3)
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert sorted(ended) == ["b", "c"]
    steps = {s.step_key: s.status.value for s in instance.get_run_step_stats(run.run_id)}
    assert steps == {"a": "FAILURE", "b": "SUCCESS", "c": "SUCCESS"}


def test_an_interruption_ends_every_step(instance: dg.DagsterInstance) -> None:
    both, ended = threading.Barrier(2, action=lambda: os.kill(os.getpid(), signal.SIGINT)), []

    @dg.op(pool="training", required_resource_keys={"lineage"})
    def work(context) -> int:  # Dagster reads annotations, which are postponed here
        try:
            both.wait(30)
            for _ in range(600):
                time.sleep(0.05)
        finally:
            ended.append(context.op_handle.name)
        return 1

    began = time.monotonic()
    with capture_interrupts():
        run = executed(instance, work, 2)
    assert run.status == dg.DagsterRunStatus.CANCELED
    assert len(ended) == 2 and time.monotonic() - began < 25
    assert not instance.event_log_storage.get_concurrency_info("training").claimed_slots


@pytest.mark.slow
def test_fine_tuning_beside_zero_shot_has_the_digests_of_one_after_the_other(
    built: BuiltStore, tmp_path: Path, downloads: Path
) -> None:
    home, names = tmp_path / "lineage", ("finetuned/boolq", "zero_shot")
    shutil.copytree(built.home, home, symlinks=True)
    store = Store(home)
    before = {name: store.resolve(f"ci/{name}") for name in names}
    for artifact in before.values():
        shutil.rmtree(artifact.path.parent)
    profile = {"name": "beside", "processes": 2, "threads": 1, "zero_stage": 1, "memory_gb": 1}
    (tmp_path / "beside.yaml").write_text(json.dumps(profile))
    script = (  # a machine of four cores, and two slots
        "from assets.recipe import profile; profile._cores = lambda: 4\n"
        "import dagster as dg\n"
        "dg.DagsterInstance.get().event_log_storage.set_concurrency_slots('training', 2)\n"
        "from pipelines.cli.main import main; main()\n"
    )
    arguments = ["run", str(CI_RECIPE), "--profile", str(tmp_path / "beside.yaml")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**environment_of(home, downloads), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(names)} built" in done.stderr
    assert json.loads((home / "recipes" / "ci.json").read_text())["path"] == str(CI_RECIPE)
    after = {name: store.resolve(f"ci/{name}") for name in names}
    assert {name: artifact.digest for name, artifact in after.items()} == {
        name: artifact.digest for name, artifact in before.items()
    }
    spans = [
        [
            datetime.fromisoformat(artifact.manifest["provenance"][end])
            for end in ("started", "ended")
        ]
        for artifact in after.values()
    ]
    assert max(start for start, _ in spans) < min(end for _, end in spans), spans
