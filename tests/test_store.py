"""The store: identity, publication by one rename, locks, names; and the journal a worker leaves
beside an artifact.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from assets.contract import SCRATCH, Artifact, Check, Verdict
from assets.store import manifest
from assets.store.manifest import Facts, explain_full_disk, record_sums
from assets.store.provenance import provenance
from assets.store.store import Building, Store
from assets.tracking import event_log
from assets.tracking.event_log import EventReader, EventWriter
from assets.tracking.outbox import is_alive
from gpt_model.errors import CorruptFile, UserError
from gpt_model.io import temporary_name

ROOT = Path(__file__).resolve().parent.parent
FINITE = Check(
    "finite",
    blocking=True,
    description="the loss is finite",
    verdict=lambda built: Verdict(True, ""),
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def fill(building: Building, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (building.files / name).parent.mkdir(parents=True, exist_ok=True)
        (building.files / name).write_text(text)


def publish(
    store: Store,
    stage: str,
    files: Mapping[str, str],
    inputs: Mapping[str, Artifact] | None = None,
    **config: object,
) -> Artifact:
    inputs = inputs or {}
    fingerprint = store.fingerprint(
        stage, "1", config, {name: artifact.digest for name, artifact in inputs.items()}
    )
    building = store.building(fingerprint)
    fill(building, files)
    facts = Facts(stage, "1", config, inputs, {"loss": 1.5}, {"seconds": 2.0})
    return store.publish(
        building, facts, {"finite": (FINITE, Verdict(True, "The loss is 1.5.", {"loss": 1.5}))}
    )


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )


def test_a_fingerprint_is_of_stage_version_section_and_input_digests_and_of_nothing_else(
    store: Store,
) -> None:
    base = store.fingerprint("tokens", "1", {"a": 1, "b": [1, 2]}, {"corpus": "d1"})
    assert base == Store(store.home / "elsewhere").fingerprint(
        "tokens", "1", {"b": [1, 2], "a": 1}, {"corpus": "d1"}
    )
    assert len(base) == 64
    others = [
        store.fingerprint("tokenizer", "1", {"a": 1, "b": [1, 2]}, {"corpus": "d1"}),
        store.fingerprint("tokens", "2", {"a": 1, "b": [1, 2]}, {"corpus": "d1"}),
        store.fingerprint("tokens", "1", {"a": 1, "b": [2, 1]}, {"corpus": "d1"}),
        store.fingerprint("tokens", "1", {"a": 1, "b": [1, 2]}, {"corpus": "d2"}),
    ]
    assert len({base, *others}) == 5


def test_a_digest_is_of_the_files_alone(store: Store) -> None:
    sha256 = {text: hashlib.sha256(text.encode()).hexdigest() for text in "xy"}
    expected = hashlib.sha256(f"a\0{sha256['x']}\nb/c\0{sha256['y']}\n".encode()).hexdigest()
    artifact = publish(store, "corpus", {"a": "x", "b/c": "y"}, seed=1)
    same = publish(store, "corpus", {"b/c": "y", "a": "x"}, seed=2)
    moved = publish(store, "corpus", {"a": "x", "c": "y"}, seed=3)
    assert artifact.digest == same.digest == expected
    assert artifact.fingerprint != same.fingerprint
    assert moved.digest != artifact.digest


def test_a_large_artifact_is_read_whole_where_a_file_changed_and_once_a_week(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def sha256_of(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr("assets.store.manifest.sha256_of", sha256_of)

    def files_read() -> list[str]:
        read.clear()
        store.check(artifact, again=True)
        return [path.name for path in read if path.parent == artifact.path]

    artifact = publish(store, "corpus", {"a": "x", "b": "y"}, seed=1)
    assert files_read() == files_read() == ["a", "b"]  # a small one each time
    assert store.read_whole_at(artifact) is None
    monkeypatch.setattr(manifest, "LARGE_BYTES", 1)
    assert (files_read(), files_read()) == (["a", "b"], [])
    at = store.read_whole_at(artifact)
    assert at is not None and abs(time.time() - at) < 60

    file = artifact.path / "a"
    stat = file.stat()
    file.write_text("x")  # the same bytes, but that is known only by reading them
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (files_read(), files_read()) == (["a", "b"], [])
    monkeypatch.setattr(time, "time", lambda: at + 8 * 24 * 3600)
    assert (files_read(), files_read()) == (["a", "b"], [])
    file.write_text("z")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(CorruptFile, match=r"is not what was published: .*/files/a has sha256"):
        files_read()
    file.write_text("x")
    assert files_read() == ["a", "b"]
    (artifact.path.parent / manifest.READ_WHOLE).write_text('{"at": "damaged"')
    assert files_read() == ["a", "b"]
    assert store.verify(artifact) == [] and read.count(file) == 2  # whole, whatever is noted


def test_what_is_published_is_found_as_it_was_built(store: Store) -> None:
    fingerprint = store.fingerprint("corpus", "1", {"seed": 1}, {})
    assert store.find(fingerprint) is None
    made = publish(store, "corpus", {"a": "x", f"{SCRATCH}/checkpoint": "dropped"}, seed=1)
    artifact = Store(store.home).find(fingerprint)
    assert artifact == made
    assert artifact is not None
    assert (artifact.stage, artifact.config, artifact.metrics) == (
        "corpus",
        {"seed": 1},
        {"loss": 1.5},
    )
    assert [path.name for path in artifact.path.iterdir()] == ["a"]
    assert artifact.manifest["files"] == [
        {
            "path": "a",
            "size": 1,
            "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
        }
    ]
    assert store.gate(artifact)["finite"].summary == "The loss is 1.5."
    assert store.verify(artifact) == []
    assert not list((store.home / "building").iterdir())


def test_verify_names_every_changed_missing_and_extra_file(store: Store) -> None:
    artifact = publish(store, "corpus", {"changed": "x", "missing": "x", "sound": "x"})
    (artifact.path / "changed").write_text("y")  # same size, same folder
    (artifact.path / "missing").unlink()
    (artifact.path / "extra").write_text("x")
    problems = store.verify(artifact)
    assert len(problems) == 3
    assert [
        next(name for name in ("missing", "extra", "changed") if f"/{name} " in problem)
        for problem in problems
    ] == ["missing", "extra", "changed"]


def test_a_changed_manifest_does_not_verify(store: Store) -> None:
    artifact = publish(store, "corpus", {"a": "x"}, seed=1)
    manifest = artifact.path.parent / "artifact.json"
    manifest.write_text(manifest.read_text().replace('"seed": 1', '"seed": 2'))
    with pytest.raises(CorruptFile, match=r"artifact\.json has sha256"):
        store.find(artifact.fingerprint)
    record_sums(artifact.path.parent)  # whoever changes the sums too has the identity against him
    tampered = store.find(artifact.fingerprint)
    assert tampered is not None
    assert "fingerprint" in store.verify(tampered)[0]


def test_a_damaged_manifest_is_an_error_that_names_it(store: Store) -> None:
    artifact = publish(store, "corpus", {"a": "x"})
    path = artifact.path.parent / "artifact.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(CorruptFile, match=r"artifact\.json is damaged"):
        store.find(artifact.fingerprint)


def test_an_artifact_that_does_not_verify_is_put_aside_and_built_again(store: Store) -> None:
    artifact = publish(store, "corpus", {"a": "x"})
    (artifact.path / "a").write_text("y")
    aside = store.quarantine(artifact.fingerprint)
    assert (aside / "files" / "a").read_text() == "y"
    assert store.verify(publish(store, "corpus", {"a": "x"})) == []


def test_of_two_publications_the_first_stays(store: Store) -> None:
    first = publish(store, "corpus", {"a": "x"})
    second = publish(store, "corpus", {"a": "different"})
    assert second.digest == first.digest
    assert (second.path / "a").read_text() == "x"


def test_a_link_is_never_published(store: Store) -> None:
    building = store.building("f" * 64)
    (building.files / "link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="is a link"):
        store.publish(building, Facts("corpus", "1", {}, {}, {}), {})


PUBLISHER = """
    import os, sys
    from pathlib import Path
    from assets.store.manifest import Facts
    from assets.store.store import Store
    store = Store(Path(sys.argv[1]))
    if sys.argv[2] == "at the rename":
        Path.rename = lambda *_: os.kill(os.getpid(), 9)
    with store.lock("a" * 64):
        building = store.building("a" * 64)
        (building.files / ".scratch").mkdir(exist_ok=True)
        for number in range(200):
            (building.files / str(number)).write_text(str(number) * 1000)
        print("publishing", flush=True)
        store.publish(building, Facts("corpus", "1", {}, {}, {}), {})
    print("published", flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.06])
def test_a_reader_never_sees_half_an_artifact_of_a_killed_publication(
    store: Store, delay: float
) -> None:
    process = python(PUBLISHER, store.home, "")
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay)
    process.kill()
    process.wait()
    artifact = store.find("a" * 64)
    assert (
        artifact is None
        or len(artifact.manifest["files"]) == len(list(artifact.path.iterdir())) == 200
    )


def test_a_publication_killed_before_its_rename_is_finished_by_the_next_holder_of_the_lock(
    store: Store,
) -> None:
    assert python(PUBLISHER, store.home, "at the rename").wait() == -9
    assert store.find("a" * 64) is None
    with store.lock("a" * 64):
        artifact = store.find("a" * 64)
        assert artifact is not None
        assert len(artifact.manifest["files"]) == len(list(artifact.path.iterdir())) == 200


def test_of_two_processes_building_one_artifact_one_waits_and_reuses(store: Store) -> None:
    heard: list[str] = []
    with store.lock("a" * 64):
        code = """
            import sys
            from pathlib import Path
            from assets.store.store import Store
            store = Store(Path(sys.argv[1]))
            with store.lock("a" * 64, waiting=lambda who: print(who, flush=True)):
                print(store.find("a" * 64) is not None, flush=True)
        """
        other = python(code, store.home)
        assert other.stdout is not None
        heard.append(other.stdout.readline())
        building = store.building("a" * 64)
        fill(building, {"a": "x"})
        store.publish(building, Facts("corpus", "1", {}, {}, {}), {})
    heard += other.stdout.readlines()
    assert f"process {os.getpid()} " in heard[0]
    assert heard[-1] == "True\n"
    assert other.wait() == 0


def test_a_lock_is_held_as_long_as_a_process_that_inherited_it(store: Store) -> None:
    with store.lock("a" * 64) as handle:
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", "import time; time.sleep(600)"], pass_fds=(handle,)
        )
    taken = threading.Event()

    def take() -> None:
        with store.lock("a" * 64):
            taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not taken.wait(0.5)
    child.kill()
    child.wait()
    assert taken.wait(10)
    thread.join()


needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")


def disk_full_at(path: Path) -> None:
    """The next atomic write of `path` finds the disk full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary_name(path).symlink_to("/dev/full")


@needs_dev_full
def test_a_full_disk_leaves_nothing_half_made_and_says_how_much_is_free(store: Store) -> None:
    building = store.building("a" * 64)
    fill(building, {"a": "x", f"{SCRATCH}/checkpoint": "precious"})
    disk_full_at(building.folder / "artifact.json")
    with pytest.raises(UserError, match=r"disk is full: writing .*artifact\.json.* bytes free"):
        store.publish(building, Facts("corpus", "1", {}, {}, {}), {})
    assert store.find("a" * 64) is None
    assert (building.files / SCRATCH / "checkpoint").read_text() == "precious"
    published = store.publish(store.building("a" * 64), Facts("corpus", "1", {}, {}, {}), {})
    assert [path.name for path in published.path.iterdir()] == ["a"]


@needs_dev_full
def test_a_full_disk_leaves_a_name_as_it_was(store: Store) -> None:
    store.set_ref("tiny", "corpus", "a" * 64)
    disk_full_at(store.home / "refs" / "tiny" / "corpus")
    with pytest.raises(UserError, match="disk is full"):
        store.set_ref("tiny", "corpus", "b" * 64)
    assert store.get_ref("tiny", "corpus") == "a" * 64


def test_other_errors_of_the_disk_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), explain_full_disk(tmp_path):
        (tmp_path / "nowhere" / "file").write_text("x")


def test_a_store_written_by_a_newer_version_is_refused(store: Store) -> None:
    publish(store, "corpus", {"a": "x"})
    assert json.loads((store.home / "store.json").read_text()) == {"version": 1}
    (store.home / "store.json").write_text('{"version": 2}')
    with pytest.raises(UserError, match=r"has version 2 .*this one reads version 1"):
        Store(store.home)


def test_a_store_that_is_only_looked_at_is_not_made(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    assert (store.refs(), list(store.artifacts()), store.find("a" * 64)) == ({}, [], None)
    assert not store.home.exists()


def test_two_recipes_name_one_artifact(store: Store) -> None:
    artifact = publish(store, "corpus", {"a": "x"})
    store.set_ref("tiny", "corpus", artifact.fingerprint)
    store.set_ref("small", "corpus", artifact.fingerprint)
    store.set_ref("tiny", "finetuned/boolq", "b" * 64)
    assert store.refs() == {
        "small/corpus": artifact.fingerprint,
        "tiny/corpus": artifact.fingerprint,
        "tiny/finetuned/boolq": "b" * 64,
    }
    assert store.get_ref("tiny", "tokens") is None


def test_a_person_names_an_artifact_by_recipe_and_stage_or_by_the_start_of_its_fingerprint(
    store: Store,
) -> None:
    artifact = publish(store, "corpus", {"a": "x"}, seed=1)
    other = publish(store, "corpus", {"a": "x"}, seed=2)
    store.set_ref("tiny", "corpus", artifact.fingerprint)
    assert store.resolve("tiny/corpus") == store.resolve(artifact.fingerprint[:8]) == artifact
    assert store.resolve(other.fingerprint) == other
    with pytest.raises(UserError, match="Did you mean tiny/corpus"):
        store.resolve("tiny/corpsu")
    with pytest.raises(UserError, match=r"no artifact '\.\./\.\./etc'"):
        store.resolve("../../etc")


def test_an_ambiguous_start_of_a_fingerprint_asks_for_more_of_it(store: Store) -> None:
    seen: dict[str, str] = {}
    for seed in range(17):  # of 17 fingerprints, two begin alike
        artifact = publish(store, "corpus", {"a": "x"}, seed=seed)
        if artifact.fingerprint[0] in seen:
            with pytest.raises(UserError, match="start of 2 fingerprints"):
                store.resolve(artifact.fingerprint[0])
            return
        seen[artifact.fingerprint[0]] = artifact.fingerprint
    raise AssertionError("17 fingerprints began with 17 of 16 digits")


def test_lineage_goes_back_to_the_sources_and_marks_what_is_no_longer_there(store: Store) -> None:
    corpus = publish(store, "corpus", {"a": "x"})
    tokenizer = publish(store, "tokenizer", {"t": "y"}, {"corpus": corpus})
    tokens = publish(store, "tokens", {"s": "z"}, {"corpus": corpus, "tokenizer": tokenizer})
    store.set_ref("tiny", "corpus", corpus.fingerprint)
    tree = store.lineage(tokens)
    assert [below["stage"] for below in tree["inputs"]] == ["corpus", "tokenizer"]
    assert tree["inputs"][0]["ref"] == "tiny/corpus"
    assert tree["inputs"][1]["inputs"][0]["digest"] == corpus.digest
    store.quarantine(corpus.fingerprint)
    tree = store.lineage(tokens)
    assert [below["missing"] for below in tree["inputs"]] == [True, False]


def test_provenance_says_with_what_and_on_what(tmp_path: Path) -> None:
    known = provenance(
        profile={"name": "cpu"}, started=0.0, ended=60.0, seconds=50.0, cores=2, peak_memory_bytes=7
    )
    assert known["started"] == "1970-01-01T00:00:00.000+00:00"
    assert known["cost"] == {"core_seconds": 100.0}
    assert known["hardware"]["memory_bytes"] > 1e8
    assert known["hardware"]["cores"] >= 1
    assert {"torch", "mlflow", "dagster"} <= known["packages"].keys()
    assert json.loads(json.dumps(known)) == known


def test_a_resumed_attempt_says_nothing_twice_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal" / "events.jsonl"
    first = EventWriter(path, {"dagster_run": "one"})
    for step in range(1, 11):
        first.metrics(step, {"loss": 1.0 / step})
    first.metrics(5, {"held_out": 2.0})
    first.text(5, "sample", "once upon")
    os.write(
        first._file, b'{"kind": "metrics", "time": 1.0, "step": 11, "val'
    )  # kill -9 in the middle of a write
    second = EventWriter(path, {"dagster_run": "two"})
    for step in range(4, 13):  # from the checkpoint at 3
        second.metrics(step, {"loss": 1.0 / step})
        if step in (5, 10):
            second.metrics(step, {"held_out": 2.0})
            second.text(step, "sample", "once upon")
    second.close()
    series = event_log.series(path)
    assert series["loss"] == [(step, 1.0 / step) for step in range(1, 13)]
    assert series["held_out"] == [(5, 2.0), (10, 2.0)]
    assert event_log.texts(path) == [(5, "sample", "once upon"), (10, "sample", "once upon")]


def test_a_reader_follows_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventReader(path)
    assert tail.read() == []
    spool = EventWriter(path)
    spool.metrics(1, {"loss": math.nan})
    events = tail.read()
    assert [event["kind"] for event in events] == ["attempt", "metrics"]
    assert math.isnan(events[1]["values"]["loss"])
    with path.open("ab") as file:
        file.write(b'{"kind": "log", "time": 1, "mess')
        file.flush()
        assert tail.read() == []
        file.write(b'age": "hello"}\n')
    assert [event["message"] for event in EventReader(path, tail.offset).read()] == ["hello"]


def test_a_damaged_line_is_an_error_that_names_file_and_place(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventWriter(path).close()
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\0\0\0\n")
    with pytest.raises(CorruptFile, match=rf"events\.jsonl: the line at byte {size} "):
        event_log.series(path)


def test_seconds_are_those_spent_building_and_not_the_pause_between_attempts(
    tmp_path: Path,
) -> None:
    path = tmp_path / "events.jsonl"
    events = [("attempt", 100.0), ("log", 130.0), ("attempt", 1000.0), ("log", 1012.0)]
    path.write_text(
        "".join(
            json.dumps({"kind": kind, "time": moment, "message": ""}) + "\n"
            for kind, moment in events
        )
    )
    assert event_log.seconds(path) == 42.0


def test_advancing_often_writes_seldom(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    spool = EventWriter(path)
    for done in range(1001):
        spool.advance(done, 1000, "tokens")
    advances = [event["done"] for event in EventReader(path).read() if event["kind"] == "advance"]
    assert advances[0] == 0
    assert advances[-1] == 1000
    assert len(advances) < 10


HOLDS = """
import sys
from pathlib import Path
from assets.tracking.outbox import this_process
print(this_process(Path(sys.argv[1]))["lock"], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [True, False])
def test_whether_a_process_of_another_host_runs_is_seen_by_its_lock(
    tmp_path: Path, killed: bool
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    attempt = {"host": "elsewhere", "pid": 1, "lock": process.stdout.readline().strip()}
    for _ in range(2):  # looking takes nothing away
        assert is_alive(attempt, tmp_path)
    if killed:
        process.kill()
    process.communicate()
    assert not is_alive(attempt, tmp_path)
    assert not list((tmp_path / "locks").iterdir())
