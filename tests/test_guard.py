"""The launcher and its guard: ranks find each other, and nothing of them outlives whoever started
them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from assets.launch import guard
from assets.launch.launcher import Exit, LocalLauncher, Ranks, worker_environment
from assets.store.store import Store

GRACE = 1.0
WITHIN = 20.0  # seconds; the promise is 30

# A rank with a child in a session of its own, that has a grandchild in another, none of which ends
# by itself or by TERM.
STUBBORN = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
depth, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
if depth:
    subprocess.Popen([sys.executable, "-S", __file__, str(depth - 1), str(folder)], start_new_session=True)
(folder / f"{os.getpid()}.pid").touch()
time.sleep(600)
"""

STARTER = """
import sys
from pathlib import Path
from assets.launch.launcher import LocalLauncher, Ranks
from assets.store.store import Store
folder = Path(sys.argv[1])
with Store(folder / "home").lock("f" * 64) as fd:
    command = [sys.executable, "-S", str(folder / "stubborn.py"), "2", str(folder / "pids")]
    LocalLauncher(grace=1.0).run(Ranks(command, 2, 1, folder / "worker.log", keep_fds=(fd,)))
"""

TREE = 6  # processes: two ranks, each with a child and a grandchild


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "pids").mkdir()
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    (tmp_path / "starter.py").write_text(STARTER)
    yield tmp_path
    for process in alive(tmp_path):  # only where a test failed
        process.kill()


def alive(folder: Path) -> list[psutil.Process]:
    results = []
    for path in (folder / "pids").iterdir():
        try:
            process = psutil.Process(int(path.stem))
            if process.status() != psutil.STATUS_ZOMBIE and str(folder) in " ".join(
                process.cmdline()
            ):
                results.append(process)
        except psutil.NoSuchProcess:
            continue
    return results


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    starter = subprocess.Popen(
        [sys.executable, str(folder / "starter.py"), str(folder)], env=environment
    )
    until(lambda: len(alive(folder)) == TREE, "the tree did not start")
    return starter


def run(
    tmp_path: Path, code: str, ranks: int = 2, on_poll: Callable[[], None] = lambda: None
) -> Exit:
    command = [sys.executable, "-c", code]
    return LocalLauncher(grace=GRACE).run(
        Ranks(command, ranks, 1, tmp_path / "worker.log"), on_poll
    )


def test_every_rank_is_told_where_the_others_are(tmp_path: Path) -> None:
    code = (
        "import os, json, pathlib; e = os.environ\n"
        f"pathlib.Path({str(tmp_path)!r}, 'rank' + e['RANK']).write_text(json.dumps("
        "{k: e.get(k) for k in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', "
        "'OMP_NUM_THREADS')}))"
    )
    assert run(tmp_path, code).code == 0
    results = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(2)]
    assert (
        [entry["RANK"] for entry in results]
        == [entry["LOCAL_RANK"] for entry in results]
        == ["0", "1"]
    )
    assert results[0] | {"RANK": "1", "LOCAL_RANK": "1"} == results[1]
    assert (results[0]["WORLD_SIZE"], results[0]["MASTER_ADDR"], results[0]["OMP_NUM_THREADS"]) == (
        "2",
        "127.0.0.1",
        "1",
    )
    assert 0 < int(results[0]["MASTER_PORT"]) < 65536


def test_workers_compile_their_bytecode_and_keep_what_a_person_has_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("MALLOC_TOP_PAD_", "4096")
    environment = worker_environment("cpu", ranks=2, threads=3)
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert environment["MALLOC_TOP_PAD_"] == "4096"
    assert (environment["DS_ACCELERATOR"], environment["OMP_NUM_THREADS"]) == ("cpu", "3")
    assert (
        "DS_ACCELERATOR"
        not in worker_environment("cuda", ranks=2, threads=3).keys() - os.environ.keys()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 99)]
)
def test_a_containers_cpu_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(99)))
    path = tmp_path / "cpu.max"
    assert guard.cores(path) == 99
    path.write_text(limit)
    assert guard.cores(path) == cores


def test_peak_memory_is_that_of_the_whole_tree(tmp_path: Path) -> None:
    exit = run(tmp_path, "import time; held = bytearray(b'x') * 60_000_000; time.sleep(1.5)")
    assert 120e6 < exit.peak_memory_bytes < 200e6


def test_a_failed_rank_ends_the_others_and_is_named(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.environ['RANK'] == '1': print('rank one gives up', flush=True); time.sleep(0.3); "
        "sys.exit(7)\ntime.sleep(600)"
    )
    exit = run(tmp_path, code)
    assert (exit.code, exit.failed_rank) == (7, 1)
    assert "rank one gives up" in exit.log.read_text()
    assert exit.log != tmp_path / "worker.log"


def test_a_rank_killed_by_a_signal_is_reported_with_it(tmp_path: Path) -> None:
    code = "import os, time\nif os.environ['RANK'] == '0': os.kill(os.getpid(), 9)\ntime.sleep(600)"
    exit = run(tmp_path, code)
    assert (exit.code, exit.failed_rank) == (-signal.SIGKILL, 0)


def test_a_command_that_is_not_there_fails_and_says_so(tmp_path: Path) -> None:
    exit = LocalLauncher().run(Ranks(["/nowhere/python"], 1, 1, tmp_path / "worker.log"))
    assert exit.code != 0
    assert "/nowhere/python cannot be started" in exit.log.read_text()


def test_processes_a_finished_rank_left_behind_are_ended(folder: Path) -> None:
    pids = folder / "pids"
    child = [sys.executable, "-S", str(folder / "stubborn.py"), "1", str(pids)]
    code = (
        f"import pathlib, subprocess, time; subprocess.Popen({child!r}, start_new_session=True)\n"
        f"while len(list(pathlib.Path({str(pids)!r}).iterdir())) < 2: time.sleep(0.05)"
    )
    assert run(folder, code, ranks=1).code == 0
    assert len(list(pids.iterdir())) == 2
    assert alive(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_a_starter_ended_by_a_signal(
    folder: Path, number: signal.Signals
) -> None:
    starter = start(folder)
    starter.send_signal(number)
    until(lambda: alive(folder) == [], "processes outlived their starter")
    assert starter.wait(WITHIN) != 0


@pytest.mark.slow
def test_the_lock_is_held_until_the_tree_of_a_killed_starter_is_gone(folder: Path) -> None:
    starter = start(folder)
    starter.kill()
    starter.wait()
    with Store(folder / "home").lock("f" * 64):
        assert alive(folder) == []


def test_no_process_outlives_a_killed_guard(folder: Path) -> None:
    starter = start(folder)
    [guard] = psutil.Process(starter.pid).children()
    assert "guard.py" in " ".join(guard.cmdline())
    time.sleep(0.6)  # for the launcher to have looked at the tree
    guard.kill()
    until(lambda: alive(folder) == [], "processes outlived their guard")
    assert starter.wait(WITHIN) == 0  # `run` returned, with the signal as the exit status


def test_an_interrupted_run_ends_its_ranks_before_it_raises(folder: Path) -> None:
    class Interruption(BaseException):
        """As Dagster's: no Exception."""

    def interrupt() -> None:
        if len(alive(folder)) == TREE:
            raise Interruption

    command = [sys.executable, "-S", str(folder / "stubborn.py"), "2", str(folder / "pids")]
    with pytest.raises(Interruption):
        LocalLauncher(grace=GRACE).run(Ranks(command, 2, 1, folder / "worker.log"), interrupt)
    assert alive(folder) == []


def test_a_step_process_of_a_killed_run_process_leaves_none_behind(folder: Path) -> None:
    """Dagster's multiprocess executor: the step process outlives the run process and keeps the
    guard's pipe open.
    """
    parent = folder / "run_process.py"
    parent.write_text(
        "import multiprocessing, runpy, sys\n"
        "def step(): sys.argv = ['', sys.argv[1]]; runpy.run_path(sys.argv[1] + '/starter.py')\n"
        "if __name__ == '__main__':\n    "
        "multiprocessing.get_context('spawn').Process(target=step).start(); import time; "
        "time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    run_process = subprocess.Popen([sys.executable, str(parent), str(folder)], env=environment)
    until(lambda: len(alive(folder)) == TREE, "the tree did not start")
    run_process.kill()
    run_process.wait()
    until(lambda: alive(folder) == [], "processes outlived the run process")
