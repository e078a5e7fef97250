"""How a build ends when its worker does not give a result: what a person reads, and where the rest
is.
"""

from __future__ import annotations

import errno
import json
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
from assets.launch.launcher import Exit, LocalLauncher, log_of
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


WAITED = (  # as torch 2.10 writes it; its handler of faults then writes every thread's stack
    "[rank{rank}]:[E710 18:00:32.427417358 ProcessGroupNCCL.cpp:697] [Rank {rank}] Watchdog caught "
    "collective operation timeout: WorkNCCL(SeqNum=42, OpType={operation}, NumelIn=1, NumelOut=1, "
    "Timeout(ms)=7200000) ran for 7200013 milliseconds before timing out.\n"
    "[rank{rank}]:[E710 18:00:32.427460012 ProcessGroupNCCL.cpp:2333] [PG ID 0 PG GUID "
    "0(default_pg) Rank {rank}] failure detected by watchdog at work sequence id: 42 PG status: "
    "last enqueued work: 45, last completed work: 41\n" + "frame #7: clone + 0x44 (0x7f)\n" * 100
)
DUMPED = (
    "[rank2]:[E710 18:00:32.603241927 ProcessGroupNCCL.cpp:1987] [PG ID 0 PG GUID 0(default_pg) "
    "Rank 2] Received a dump signal due to a collective timeout from  rank 0 and we will try our "
    "best to dump the debug info. Last enqueued NCCL work: 41, last completed NCCL work: 41.\n"
)
TWO_HOURS = "waited in vain for 120 minutes in nccl's ALLREDUCE"


@pytest.mark.parametrize(
    ("logs", "sentence", "read_first"),
    [
        (
            {0: "ALLREDUCE", 1: "ALLREDUCE", 3: "ALLREDUCE"},
            f"Rank 1 of 4, on gpu-a, {TWO_HOURS}, as did 2 more. By the logs, these did not "
            "come to it: rank 2 on gpu-b. ",
            2,
        ),
        (
            {1: "ALLREDUCE"},
            f"Rank 1 of 4, on gpu-a, {TWO_HOURS}. By the logs, these did not "
            "come to it: rank 0 on gpu-a, 2 on gpu-b, 3 on gpu-b. ",
            0,
        ),
        (
            dict.fromkeys(range(4), "ALLREDUCE"),
            f"{TWO_HOURS}, as did 3 more. These are all ranks: no process is lost, the network",
            1,
        ),
        (
            {0: "_ALLGATHER_BASE"} | dict.fromkeys((1, 2, 3), "ALLREDUCE"),
            "different operations, a defect of ours: rank 0 in _ALLGATHER_BASE, rank 1 in ALLREDUCE, ",
            1,
        ),
    ],
)
def test_a_watchdog_of_nccl_is_said_with_the_ranks_that_did_not_come(
    logs: dict[int, str], sentence: str, read_first: int, tmp_path: Path
) -> None:
    building = Store(tmp_path).building("ab" * 32)
    earlier = WAITED.format(rank=2, operation="BROADCAST")  # in an attempt before this one
    for rank in range(4):
        text = WAITED.format(rank=rank, operation=logs[rank]) if rank in logs else DUMPED
        log_of(building.log, rank).write_text(earlier + "Loading\n" + text)
    building.job.write_text(json.dumps({"logged_bytes": [len(earlier)] * 4}))
    hosts = ["gpu-a", "gpu-b"]
    exit = Exit(-signal.SIGABRT, 1, 0, log_of(building.log, 1), hosts=hosts)
    failure = _failure(building, exit)
    assert sentence in str(failure)
    assert str(failure).endswith(f"Its log: {log_of(building.log, read_first)}")


def test_an_abort_that_no_watchdog_made_is_said_as_it_is(tmp_path: Path) -> None:
    building = Store(tmp_path).building("ab" * 32)
    building.log.write_text(WAITED.format(rank=0, operation="BROADCAST") + "double free\n")
    building.job.write_text(json.dumps({"logged_bytes": [building.log.stat().st_size - 12, 0]}))
    failure = _failure(building, Exit(-signal.SIGABRT, 0, 0, building.log))
    assert "rank 0 ended without a result, killed by SIGABRT." in str(failure)


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
