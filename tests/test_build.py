"""How a build ends when its worker does not give a result: what a person reads, and where the rest
is.
"""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from conftest import ROOT, write_local_recipe

from assets.build import Request, WorkerFailed, _failure, build, gather_inputs
from assets.contract import Check, Verdict
from assets.graph import node_named, nodes
from assets.launch.launcher import Exit, LocalLauncher
from assets.recipe.profile import load_profile
from assets.recipe.recipe import load_recipe
from assets.stage import _check_results
from assets.store.manifest import Facts
from assets.store.provenance import provenance
from assets.store.store import Building, Recorded, Store
from assets.tracking.tracking import Tracking
from assets.worker import _write_failure
from gpt_model.errors import UserError


@pytest.mark.slow
def test_defect_is_one_sentence_that_names_the_log_with_its_traceback(
    home: Path, tmp_path: Path
) -> None:
    recipe = write_local_recipe(tmp_path)
    node = node_named(nodes(load_recipe(str(recipe))), "corpus")
    node = replace(node, stage=replace(node.stage, name="not_there"))
    with pytest.raises(WorkerFailed) as failed:
        build(
            Request(node, {}, node.config(tmp_path), load_profile("single")),
            Store(home),
            LocalLauncher(),
            Tracking(home),
        )
    (log,) = home.glob("building/*/journal/worker.log")
    assert str(failed.value).startswith("The worker's rank 0 failed: KeyError: ") and str(
        failed.value
    ).endswith(f"Its log: {log}")
    assert "Traceback" not in str(failed.value) and "\n" not in str(failed.value)
    assert "Traceback" in failed.value.details and "not_there" in log.read_text()


def test_input_whose_blocking_check_failed_in_an_earlier_run_is_refused(
    home: Path, tmp_path: Path
) -> None:
    """Dagster's own blocking holds only inside the run in which the check failed."""
    graph, store = nodes(load_recipe(str(write_local_recipe(tmp_path)))), Store(home)
    building = store.building("ab" * 32)
    (building.files / "documents.jsonl").write_text("{}\n")
    check = Check("no_leak", blocking=True, description="", verdict=lambda built: Verdict(True, ""))
    known = provenance(
        profile={}, started=0.0, ended=1.0, seconds=1.0, cores=1, peak_memory_bytes=1
    )
    corpus = store.publish(
        building,
        Facts("corpus", "1", {}, {}, {}, known),
        {"no_leak": (check, Verdict(False, "3 documents leak."))},
    )
    store.set_ref("local", "corpus", corpus.fingerprint)
    with pytest.raises(UserError) as refused:
        gather_inputs(store, node_named(graph, "tokenizer"))
    assert str(refused.value) == (
        "local/tokenizer refuses its input local/corpus (abababababab): its blocking check "
        "'no_leak' failed: 3 documents leak. "
        "Mend the recipe or the source, and build local/corpus again."
    )
    assert list(home.glob("building/*")) == [] and store.get_ref("local", "tokenizer") is None


def test_a_disk_too_full_for_a_word_is_still_said(tmp_path: Path) -> None:
    """The worker that cannot leave failure.json leaves an exit status."""
    building = Building(tmp_path / "no such folder", "ab" * 32)
    code = _write_failure(building, 0, OSError(errno.ENOSPC, "No space left on device"))
    assert code == errno.ENOSPC
    failure = _failure(building, Exit(code, 0, 0, building.log))
    assert (
        isinstance(failure, UserError)
        and "disk is full" in str(failure)
        and "bytes free" in str(failure)
    )


def test_a_killed_rank_is_named_though_another_no_longer_hears_from_it(tmp_path: Path) -> None:
    building = Store(tmp_path).building("ab" * 32)
    _write_failure(building, 1, RuntimeError("Connection closed by peer"))
    killed = _failure(building, Exit(-signal.SIGKILL, 0, 0, building.log))
    assert str(killed).startswith("The worker's rank 0 ended without a result, killed by SIGKILL")
    failed = _failure(building, Exit(1, 1, 0, building.log))
    assert str(failed).startswith("The worker's rank 1 failed: RuntimeError: Connection closed")


def test_a_watchdog_of_nccl_is_said_with_the_rank_that_waited(tmp_path: Path) -> None:
    building = Building(tmp_path, "f" * 64)
    building.log.parent.mkdir(parents=True, exist_ok=True)
    building.log.write_text(
        "[rank3]:[E ProcessGroupNCCL.cpp:683] [Rank 3] Watchdog caught collective operation "
        "timeout: WorkNCCL(SeqNum=42, OpType=ALLREDUCE, Timeout(ms)=7200000)\n"
    )
    failure = _failure(building, Exit(-signal.SIGABRT, 3, 0, building.log))
    assert "rank 3 ended without a result" in str(failure)
    assert "nccl: rank 3 waited in vain for the others" in str(failure)


def test_a_check_newer_than_the_artifact_found_is_said_not_to_have_judged_it(
    home: Path, tmp_path: Path
) -> None:
    """And one that is gone is left out: Dagster wants the checks that the stage has now, no other."""
    recipe = load_recipe(str(write_local_recipe(tmp_path)))
    node = node_named(nodes(recipe), "corpus")
    newer = Check(
        "newer", blocking=False, description="", verdict=lambda built: Verdict(True, "fine")
    )
    check = node.stage.checks[0]
    now = replace(node, stage=replace(node.stage, checks=(check, newer)))
    recorded = {
        check.name: Recorded(True, check.blocking, "as it was"),
        "gone": Recorded(True, False, ""),
    }
    first, second = _check_results(recorded, now)
    assert (first.check_name, first.passed, first.description) == (check.name, True, "as it was")
    assert (second.check_name, second.passed) == (
        "newer",
        False,
    ) and second.severity == dg.AssetCheckSeverity.WARN
    assert second.description == "Not judged: this check is newer than the artifact."


def test_a_build_loads_no_stage_and_at_most_35_modules_of_ours() -> None:
    script = (
        "import sys, assets.build\n"
        "floors = ('gpt_model', 'assets', 'pipelines')\n"
        "print(*sorted(name for name in sys.modules if name.split('.')[0] in floors))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "assets.build" in modules and len(modules) <= 35, modules
    rooms = ("assets.stages", "assets.execution", "assets.report", "assets.estimate")
    assert not [name for name in modules if name.startswith(rooms)]
