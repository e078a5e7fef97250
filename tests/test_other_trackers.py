"""Weights & Biases and TensorBoard beside MLflow: what their own clients write and readers read,
and that neither is there where it is off.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Cli, free_port
from planted_secrets import MARK, files_with_secrets
from wandb_server import serving
from workshop import STEPS, Workshop

from assets.launch import guard
from assets.store.locks import locked
from assets.store.manifest import read_json
from assets.tracking.event_log import EventWriter
from assets.tracking.other_trackers import VARIABLES, configured
from gpt_model.errors import UserError
from gpt_model.io import write_json

ALL_STEPS = [(step, 5.0 - step / 100) for step in range(1, STEPS + 1)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, without a database of MLflow's: nothing here delivers to that."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def workshop(home: Path) -> Workshop:
    return Workshop(home)


MODULE = ["-m", "assets.tracking.follower"]
IMPATIENT = (
    "from assets.tracking import follower, wandb_run; wandb_run.INIT_SECONDS = 1.0; follower.main()"
)


def wait_until(happens: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def follow(kind: str, target: str, home: Path) -> list[str]:
    """The follower's process, at whose standard input nobody is. Returns what it prints."""
    done = subprocess.run(
        [sys.executable, *MODULE, kind, target, str(home)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line]


@pytest.fixture
def tensorboard_scalars(tmp_path: Path) -> Any:
    """What TensorBoard reads of the build of a stage: tag -> [(step, wall time, value)]."""
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the extra gpt-lineage[tensorboard] is not installed",
    )

    opened: dict[str, Any] = {}

    def scalars(stage: str) -> dict[str, list[tuple[int, float, float]]]:
        [run] = (tmp_path / "runs" / "tiny" / stage).iterdir()
        read = opened.setdefault(stage, reader.EventAccumulator(str(run)))
        read.Reload()  # what came since the last time
        return {
            tag: [(each.step, each.wall_time, each.value) for each in read.Scalars(tag)]
            for tag in read.Tags()["scalars"]
        }

    return scalars


def test_tensorboard_reads_every_number_at_its_step_and_time(
    workshop: Workshop, tmp_path: Path, tensorboard_scalars: Any
) -> None:
    building = workshop.begin("finetuned/sst2", {}, {})
    folder = str(tmp_path / "runs")
    workshop.work(building, range(1, 21))
    assert follow("tensorboard", folder, workshop.store.home) == []  # it runs: more is to come
    assert len(tensorboard_scalars("finetuned/sst2")["train/loss"]) == 20
    workshop.work(building, range(21, STEPS + 1))
    writer = EventWriter(building.events)
    writer.system({"system/cpu_utilization_percentage": 50.0})
    writer.close()
    events = [json.loads(line) for line in building.events.read_text().splitlines()]
    times = [event["time"] for event in events if event["kind"] == "metrics"]
    workshop.publish(building, "finetuned/sst2", {}, {})
    assert follow("tensorboard", folder, workshop.store.home) == []
    scalars = tensorboard_scalars("finetuned/sst2")
    *curve, last = scalars["train/loss"]
    assert [step for step, _, _ in curve] == [step for step, _ in ALL_STEPS]
    assert [value for _, _, value in curve] == pytest.approx([loss for _, loss in ALL_STEPS])
    assert [moment for _, moment, _ in curve] == pytest.approx(times, abs=1e-6)
    assert (last[0], last[2]) == (STEPS, 4.25)
    assert [value for _, _, value in scalars["eval/accuracy"]] == [0.75]
    assert [value for _, _, value in scalars["usage/seconds"]] == [9.0]
    assert [step for step, _, _ in scalars["system/cpu_utilization_percentage"]] == [0]
    [file] = [path for path in Path(folder).rglob("*") if path.is_file()]
    written, changed = file.read_bytes(), file.stat().st_mtime_ns
    assert follow("tensorboard", folder, workshop.store.home) == []
    assert file.stat().st_mtime_ns == changed  # complete: it is not written again
    file.unlink()
    follow("tensorboard", folder, workshop.store.home)
    assert file.read_bytes() == written  # sent again, it is the same to the byte


def records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format behind seven bytes, with the client's own
    messages in it.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, offset, message = file.read_bytes(), 7, b""
    while offset + 7 <= len(content):
        if (left := 32768 - offset % 32768) < 7:
            offset += left
            continue
        _, size, kind = struct.unpack("<IHB", content[offset : offset + 7])
        message += content[offset + 7 : offset + 7 + size]
        offset += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(message)
            yield record
            message = b""


class OfflineRun:
    """What a folder of the client's says of its run."""

    def __init__(self, folder: Path) -> None:
        [file] = folder.glob("*.wandb")
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.axes: dict[str, str] = {}
        self.exit_code = None
        for record in records(file):
            match record.WhichOneof("record_type"):
                case "run":
                    self.run = record.run
                    self._configure(record.run.config)
                case "config":
                    self._configure(record.config)
                case "metric" if record.metric.glob_name:
                    self.axes[record.metric.glob_name] = record.metric.step_metric
                case "history":
                    self.rows.append(_values(record.history.item))
                case "summary":
                    self.summary |= _values(record.summary.update)
                case "exit":
                    self.exit_code = record.exit.exit_code

    def _configure(self, config: Any) -> None:
        self.config |= _values(config.update)


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def offline_runs(home: Path) -> list[OfflineRun]:
    return [OfflineRun(folder) for folder in sorted((home / "wandb").glob("offline-run-*"))]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra gpt-lineage[wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", MARK.ljust(40, "0"))


@pytest.mark.usefixtures("offline")
def test_weights_and_biases_has_a_run_a_build(workshop: Workshop) -> None:
    corpus = workshop.build("corpus", {"seed": 3, "sources": [{"name": "plays"}]})
    workshop.build("tokens", {}, {"corpus": corpus})
    home = workshop.store.home
    assert follow("wandb", "plays", home) == []
    runs = {run.run.job_type: run for run in offline_runs(home)}
    of_corpus, of_tokens = runs["corpus"], runs["tokens"]
    build = json.loads((corpus.path.parent / "journal" / "build.json").read_text())
    run = of_corpus.run
    assert (run.run_id, run.project) == (build["build"], "plays")
    assert (run.run_group, run.job_type) == ("tiny dagster-", "corpus")
    assert run.display_name == f"corpus {corpus.fingerprint[:8]}"
    assert (list(run.tags), run.notes) == (["tiny", "corpus"], "What it is.")
    assert of_corpus.config["seed"] == 3 and of_corpus.config["sources"] == [{"name": "plays"}]
    assert of_corpus.config["lineage"]["fingerprint"] == corpus.fingerprint
    assert of_corpus.config["result"] == {"steps": 50}
    inputs = of_tokens.config["lineage"]["inputs"]
    assert inputs == {"corpus": {"fingerprint": corpus.fingerprint, "digest": corpus.digest}}
    assert [(row["step"], row["train/loss"]) for row in of_corpus.rows] == ALL_STEPS
    assert [row["_step"] for row in of_corpus.rows] == list(range(STEPS))
    log = (corpus.path.parent / "journal" / "events.jsonl").read_text().splitlines()
    times = [event["time"] for event in map(json.loads, log) if event["kind"] == "metrics"]
    assert [row["_timestamp"] for row in of_corpus.rows] == pytest.approx(times, abs=1e-6)
    assert of_corpus.axes["train/*"] == "step" and of_corpus.axes["system/*"] == "sample"
    assert of_corpus.summary["train/loss"] == 4.25 and of_corpus.summary["eval/accuracy"] == 0.75
    assert of_corpus.exit_code == 0
    assert follow("wandb", "plays", home) == []
    assert len(offline_runs(home)) == 2  # complete: they are not sent again
    assert files_with_secrets(home) == []


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_a_build_that_failed_is_one_run_and_goes_on_with_the_next_attempt(
    workshop: Workshop,
) -> None:
    home, building = workshop.store.home, workshop.begin("corpus", {}, {})
    workshop.work(building, range(1, 21))
    record = building.journal / "build.json"
    write_json(record, read_json(record) | {"failure": "Rank 1 was killed by SIGKILL."})
    follow("wandb", "plays", home)
    [first] = offline_runs(home)
    assert (len(first.rows), first.exit_code) == (20, 1)
    building = workshop.begin("corpus", {}, {})
    workshop.work(building, range(11, STEPS + 1))
    workshop.publish(building, "corpus", {}, {})
    time.sleep(1.0)  # the client names its folders by the second
    follow("wandb", "plays", home)
    again = offline_runs(home)[-1]
    assert again.run.run_id == first.run.run_id and again.run.resume
    assert [(row["step"], row["train/loss"]) for row in again.rows] == ALL_STEPS


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> int:
    """The port where a server of Weights & Biases is to be."""
    pytest.importorskip("wandb", reason="the extra gpt-lineage[wandb] is not installed")
    port = free_port()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://me:{MARK}-password@127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", MARK.ljust(40, "0"))
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")
    return port


@pytest.mark.slow
def test_rows_reach_a_server_once_whatever_is_killed_and_whoever_is_down(
    workshop: Workshop, online: int
) -> None:
    home, building = workshop.store.home, workshop.begin("corpus", {}, {})
    workshop.work(building, range(1, 21))
    [name] = [json.loads((building.journal / "build.json").read_text())["build"]]
    command = [sys.executable, *MODULE, "wandb", "plays", str(home)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with serving(online) as server:
        follower = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
        wait_until(lambda: len(server.history.get(name, [])) == 20)
        follower.kill()
        follower.wait()
        assert follower.stdin
        follower.stdin.close()
    workshop.work(building, range(21, STEPS + 1))
    workshop.publish(building, "corpus", {}, {})
    command[1:3] = ["-c", IMPATIENT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as late:
        assert late.stdin and late.stdout
        problem = late.stdout.readline()
        assert problem.startswith(
            f"Weights & Biases, project plays http://127.0.0.1:{online} online: CommError: "
        )
        with serving(online) as again:  # the same process goes on once the server answers
            again.runs, again.history = server.runs, server.history
            wait_until(lambda: name in again.exit_codes)
            late.stdin.close()
            assert late.wait(30) == 0
            assert follow("wandb", "plays", home) == []
    rows = again.history[name]
    assert [(row["step"], row["train/loss"]) for row in rows] == ALL_STEPS
    assert server.received[name] + again.received[name] == STEPS
    assert again.exit_codes == {name: 0}
    run = again.runs[name]
    assert (run["groupName"], run["jobType"], run["project"]) == (
        "tiny dagster-",
        "corpus",
        "plays",
    )
    assert files_with_secrets(home) == [] and MARK not in problem
    assert run["program"] == "gpt-lineage" and {"repo", "commit"}.isdisjoint(run)


def test_a_build_that_another_process_delivers_is_left_to_it(
    workshop: Workshop, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    artifact = workshop.build("corpus", {})
    with locked(artifact.path.parent / "journal" / "tensorboard.lock"):
        assert follow("tensorboard", str(tmp_path / "runs"), workshop.store.home) == []
    assert not (tmp_path / "runs").exists()


BUILD = """
    import sys
    from pathlib import Path
    from workshop import Workshop
    from assets.tracking import other_trackers
    workshop = Workshop(Path(sys.argv[1]))
    other_trackers.follow(workshop.store.home, print)
    workshop.build("corpus", {})
    print(sorted({"wandb", "tensorboard"} & sys.modules.keys()))
"""


def build_in_another_process(home: Path, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BUILD), str(home)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    ).stdout


def test_where_they_are_off_nothing_is_imported_started_or_written(home: Path) -> None:
    assert build_in_another_process(home) == "[]\n"
    assert not (home / "wandb").exists()
    assert not [path for path in home.rglob("*tfevents*")]
    assert not [path for path in home.rglob("*.lock") if path.stem in VARIABLES]


@pytest.mark.usefixtures("offline")
def test_where_they_are_on_a_build_is_in_them_when_its_process_has_ended(
    home: Path, tmp_path: Path, tensorboard_scalars: Any
) -> None:
    on = {"LINEAGE_WANDB": "plays", "LINEAGE_TENSORBOARD": str(tmp_path / "runs")}
    assert build_in_another_process(home, **on) == "[]\n"
    assert len(tensorboard_scalars("corpus")["train/loss"]) == STEPS + 1
    [run] = offline_runs(home)
    assert len(run.rows) == STEPS and run.exit_code == 0


FOLLOW = """
    import sys, time
    from pathlib import Path
    from assets.tracking import other_trackers
    other_trackers.follow(Path(sys.argv[1]), print)
    [follower] = other_trackers._followers.values()
    print(follower._process.pid, flush=True)
    time.sleep(600)
"""


def test_a_follower_ends_with_a_process_that_is_killed(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    starter = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FOLLOW), str(home)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "LINEAGE_TENSORBOARD": str(tmp_path / "runs")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout
    follower = int(starter.stdout.readline())
    assert guard.started(follower)
    starter.kill()
    starter.wait()
    wait_until(lambda: not guard.started(follower), seconds=20)


def test_a_command_that_cannot_follow_says_so_and_builds_nothing(cli: Cli, home: Path) -> None:
    done = cli("run", "tiny", "--tensorboard", "/dev/null/runs")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "--tensorboard (LINEAGE_TENSORBOARD) names /dev/null/runs, where no file" in done.stderr
    assert not list(home.glob("building/*"))


def test_what_cannot_work_here_is_a_sentence_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LINEAGE_TENSORBOARD", str(tmp_path / "file" / "runs"))
    with pytest.raises(UserError, match=r"where no file can be written \(Not a directory\)"):
        configured()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'gpt-lineage\[tensorboard\]'"):
        configured()
    monkeypatch.delenv("LINEAGE_TENSORBOARD")
    assert configured() == {}
