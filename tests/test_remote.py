"""The team's mirror of the store: what it holds, who may read half of it (nobody), and what keeps a
build from it (nothing).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import ROOT, STAGES, free_port
from s3_server import SECRET, make_bucket, s3_server
from typer.testing import CliRunner

from assets.build import Request, build, gather_inputs
from assets.graph import node_named, nodes
from assets.launch.launcher import LocalLauncher
from assets.recipe.profile import load_profile
from assets.recipe.recipe import load_recipe
from assets.store.catalogue import fetched, team_store
from assets.store.remote import PUSHED, VARIABLE, Remote, remote_of
from assets.store.store import Store
from assets.tracking.tracking import Tracking
from gpt_model.errors import UserError
from pipelines.cli.main import app
from pipelines.upkeep import pin

pytest.importorskip("s3fs", reason="pip install -e .[remote]")
pytest.importorskip("moto", reason="pip install -e .[test]")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client of an S3 server with the bucket `team`."""
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as environment:
        make_bucket(environment, "team")
        yield environment


@pytest.fixture(autouse=True)
def as_in_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec keeps a client, whose environment was another test's."""
    monkeypatch.setenv("LINEAGE_HOME", str(tmp_path / "lineage"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def pushed(home: Path, address: str) -> list[str]:
    """What a run of another process on the store `home` would push, and what it says."""
    sentences: list[str] = []
    remote = Remote(home, address)
    remote.request(sentences.append)
    remote.finish()
    return sentences


def pulled(home: Path, address: str, fingerprint: str) -> tuple[bool, list[str]]:
    sentences: list[str] = []
    store = Store(home)
    with store.lock(fingerprint):
        artifact = Remote(home, address).pull(
            fingerprint, store.building(fingerprint), sentences.append
        )
    return artifact is not None, sentences


def contents(store: Path, fingerprint: str) -> dict[str, str]:
    """name -> sha256 of what an artifact is published with."""
    folder = store / "artifacts" / fingerprint
    present = [
        p for p in folder.rglob("*") if p.is_file() and p.parent.name not in ("journal", "names")
    ]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in present
        if "names" not in path.relative_to(folder).parts
    }


def objects(mirror: Path) -> list[Path]:
    return [path for path in mirror.rglob("*") if path.is_file()]


def test_a_damaged_object_is_refused_by_its_sum_and_built_anew(
    small: Path, s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    address = "s3://team/damaged"
    first = shutil.copytree(small, tmp_path / "first", symlinks=True)
    assert pushed(first, address) == []
    fingerprint = Store(first).get_ref("local", "corpus")
    assert fingerprint
    folder = first / "artifacts" / fingerprint
    sums = hashlib.sha256((folder / "sums.json").read_bytes()).hexdigest()
    files = [path for path in (folder / "files").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    name = f"team/damaged/artifacts/{fingerprint}/{sums}/{largest.relative_to(folder)}"
    bucket = fsspec.filesystem("s3")
    bucket.pipe_file(name, bucket.cat_file(name)[:-1])

    sentences: list[str] = []

    def corpus(home: Path) -> bool:
        monkeypatch.setenv("LINEAGE_HOME", str(home))
        recipe = small.parent / "local.yaml"
        node = node_named(nodes(load_recipe(str(recipe))), "corpus")
        asks = Request(
            node, {}, node.config(recipe.parent), load_profile("single"), say=sentences.append
        )
        remote, store = Remote(home, address), Store(home)
        outcome = build(asks, store, LocalLauncher(), Tracking(home), remote)
        assert remote.finish() == ""
        return outcome.hit

    home = tmp_path / "second"
    assert not corpus(home)
    assert f"has of {fingerprint[:12]} is damaged" in sentences[1] and largest.name in sentences[1]
    assert "sha256" in sentences[1] and not list((home / "pulling").iterdir())
    sentences.clear()
    assert corpus(tmp_path / "third")  # the one that was built anew is there now
    assert len(sentences) == 1 and "fetched from there" in sentences[0]
    assert contents(tmp_path / "third", fingerprint) == contents(home, fingerprint)


def test_who_may_not_write_reads_a_sentence(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the one request without rights makes the bucket
    with s3_server(tmp_path / "log", INITIAL_NO_AUTH_ACTION_COUNT="1") as environment:
        make_bucket(environment, "team")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        home = shutil.copytree(small, tmp_path / "home", symlinks=True)
        sentences = pushed(home, "s3://team/lineage")
    assert len(sentences) == 1 and sentences[0].startswith(
        "LINEAGE_REMOTE s3://team/lineage cannot be"
    ), sentences
    assert "Give it credentials that may" in sentences[0] and SECRET not in sentences[0]


def test_a_remote_that_is_down_stops_no_build_and_the_next_run_pushes(
    small: Path, tmp_path: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    home = shutil.copytree(small, tmp_path / "home", symlinks=True)
    fingerprint = Store(home).fingerprints()[0]
    remote, sentences = Remote(tmp_path / "other", "s3://team/later"), list[str]()
    store = Store(tmp_path / "other")
    for _ in range(3):  # three misses, one sentence
        assert remote.pull(fingerprint, store.building(fingerprint), sentences.append) is None
    assert len(sentences) == 1 and "cannot be read" in sentences[0] and "127.0.0.1" in sentences[0]
    sentences = pushed(home, "s3://team/later")
    assert len(sentences) == 1 and "the next run pushes what it lacks" in sentences[0]
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # as in the next process
    assert pushed(home, "s3://team/later") == []
    assert pulled(tmp_path / "other", "s3://team/later", fingerprint)[0]


def test_a_bucket_that_is_not_there_and_an_address_that_is_none(
    small: Path, tmp_path: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    home = shutil.copytree(small, tmp_path / "home", symlinks=True)
    (sentence,) = pushed(home, "s3://no-such-bucket/lineage")
    assert "Make the bucket or folder" in sentence
    monkeypatch.setenv(VARIABLE, "s4://me:secret-key@team/lineage")
    with pytest.raises(UserError, match=r"is no address that fsspec reads.*s3://bucket") as refused:
        remote_of(tmp_path)
    assert "secret-key" not in str(refused.value)
    monkeypatch.setenv(VARIABLE, "gs://team/lineage")  # its backend is in no extra of ours
    with pytest.raises(UserError, match=r"gcsfs.*pip install 'gpt-lineage\[remote\]'"):
        remote_of(tmp_path)


def test_an_empty_machine_shows_what_the_team_built_and_fetches_what_it_reads(
    small: Path, s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, empty = "s3://team/names", tmp_path / "empty"
    for name, value in (s3 | {VARIABLE: address, "LINEAGE_HOME": str(empty)}).items():
        monkeypatch.setenv(name, value)
    first = shutil.copytree(small, tmp_path / "first", symlinks=True)
    pin(Store(first), Store(first).resolve("local/tokens"), "mine")
    assert pushed(first, address) == []
    bucket = fsspec.filesystem("s3")
    bucket.pipe_file("team/names/refs/local/torn", b'{"fingerp')
    bucket.pipe_file("team/names/refs/local/../../escaped", b"{}")

    def call(*arguments: str) -> Any:
        done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    rows = {row["ref"]: row for row in call("show", "local")}
    assert set(rows) == {f"local/{stage}" for stage in STAGES}
    assert {row["fingerprint"] for row in rows.values()} < set(Store(first).fingerprints())
    assert not any(row["here"] for row in rows.values()) and not (empty / "artifacts").exists()
    assert len(call("list")) == 2 * len(STAGES)
    tokens = call("show", "local/tokens")
    assert tokens["path"] is None and all(check["passed"] for check in tokens["checks"].values())
    lineage = call("trace", "local/tokens")
    assert lineage["inputs"] and not lineage["missing"]
    assert call("where")["remote"] == address
    dry = call("run", str(small.parent / "local.yaml"), "--profile", "single", "--dry-run")
    assert [row["state"] for row in dry["stages"]].count("remote") == len(STAGES)

    store = team_store(empty, pytest.fail)
    tokenizer = fetched(store, store.resolve("local/tokenizer"), print)
    assert Store(empty).verify(tokenizer) == [] and Store(empty).misnamed() == []
    assert contents(empty, tokenizer.fingerprint) == contents(first, tokenizer.fingerprint)
    assert [row["ref"] for row in call("list") if row["here"]] == ["local/tokenizer"]
    (removed,) = call("rm", "local/tokenizer")
    assert removed["remote"] == address and not Store(empty).names()
    assert len(call("list")) == 2 * len(STAGES), "the remote keeps it"


def test_who_sets_a_name_last_has_it_in_the_remote(small: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    first = shutil.copytree(small, tmp_path / "first", symlinks=True)
    second = shutil.copytree(small, tmp_path / "second", symlinks=True)
    names = ("local/tokenizer", "other/tokenizer")
    mine, other = (Store(first).resolve(name).fingerprint for name in names)

    def tokenizer(home: Path, name: str | None = None) -> str:
        """Of the remote, after a process on the store `home` that set `name`, or nothing."""
        remote = Remote(home, str(mirror))
        remote.request(print, name)
        assert remote.finish() == ""
        return remote.refs()["local/tokenizer"]["fingerprint"]

    assert tokenizer(first) == mine
    Store(second).set_ref("local", "tokenizer", other)
    assert tokenizer(second, names[0]) == other
    assert tokenizer(first) == other, "the first has set nothing since"
    assert tokenizer(first, names[0]) == mine, "a run that finds its artifact sets the name"
    assert tokenizer(second) == mine


KILLED = """
import os, sys, threading
from pathlib import Path
from typing import Any
from fsspec.implementations.local import LocalFileSystem
from assets.store.catalogue import fetched, team_store
from assets.store.remote import Remote
whole, copied = LocalFileSystem.put_file, 0
def dies(*arguments, **options):
    global copied
    copied += 1
    if copied > int(sys.argv[3]):
        os.kill(os.getpid(), 9)
    return whole(*arguments, **options)
LocalFileSystem.put_file = dies
remote = Remote(Path(sys.argv[1]), sys.argv[2])
remote.request(print)
remote.finish()
"""


@pytest.mark.parametrize("files", [0, 3])
def test_a_push_that_is_killed_leaves_nothing_to_read_and_the_next_one_pushes_it(
    small: Path, tmp_path: Path, files: int
) -> None:
    home, mirror = shutil.copytree(small, tmp_path / "home", symlinks=True), tmp_path / "mirror"
    command = [sys.executable, "-c", KILLED, str(home), str(mirror), str(files)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -9
    first = Store(home).fingerprints()[0]
    assert len(objects(mirror)) == files and not list(home.glob(f"artifacts/*/{PUSHED}"))
    assert pulled(tmp_path / "other", str(mirror), first) == (False, [])
    assert pushed(home, str(mirror)) == []
    for fingerprint in Store(home).fingerprints():
        assert pulled(tmp_path / "other", str(mirror), fingerprint)[0]
        assert contents(tmp_path / "other", fingerprint) == contents(home, fingerprint)


def test_what_was_pushed_is_not_pushed_again_and_the_first_of_two_builds_stays(
    small: Path, tmp_path: Path
) -> None:
    home, mirror = shutil.copytree(small, tmp_path / "home", symlinks=True), tmp_path / "mirror"
    fingerprint = Store(home).fingerprints()[0]
    other = shutil.copytree(home, tmp_path / "other", symlinks=True)
    folder = other / "artifacts" / fingerprint
    sums = json.loads((folder / "sums.json").read_text())  # of another build of the artifact
    (folder / "show" / "another.md").write_text("another")
    sums["show/another.md"] = hashlib.sha256(b"another").hexdigest()
    (folder / "sums.json").write_text(json.dumps(sums))
    assert pushed(home, str(mirror)) == pushed(other, str(mirror)) == []
    pointer = mirror / "artifacts" / fingerprint / "sums.json"
    assert pointer.read_bytes() == (home / "artifacts" / fingerprint / "sums.json").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in objects(mirror)}
    assert pushed(home, str(mirror)) == pushed(other, str(mirror)) == []
    assert {path: path.stat().st_mtime_ns for path in objects(mirror)} == before


def test_a_damaged_artifact_is_not_pushed_and_is_fetched_again(small: Path, tmp_path: Path) -> None:
    home, mirror = shutil.copytree(small, tmp_path / "home", symlinks=True), tmp_path / "mirror"
    assert pushed(home, str(mirror)) == []
    home = shutil.copytree(home, tmp_path / "damaged", symlinks=True)
    recipe = small.parent / "local.yaml"
    node = node_named(nodes(load_recipe(str(recipe))), "tokenizer")
    store, sentences = Store(home), list[str]()
    fingerprint = store.get_ref("local", "tokenizer") or ""
    file = next(path for path in (home / "artifacts" / fingerprint / "files").rglob("*.json"))
    file.write_text("{}")
    (sentence,) = pushed(home, str(tmp_path / "empty"))
    assert "is not what was published" in sentence and "It is not pushed." in sentence
    asks = Request(
        node,
        gather_inputs(store, node),
        node.config(recipe.parent),
        load_profile("single"),
        say=sentences.append,
    )
    assert build(asks, store, LocalLauncher(), Tracking(home), Remote(home, str(mirror))).hit
    assert "It is fetched again. What was there:" in sentences[-1]
    assert store.verify(store.resolve("local/tokenizer")) == []


def test_a_manifest_that_names_a_file_outside_its_folder_is_refused(
    small: Path, tmp_path: Path
) -> None:
    home, mirror = shutil.copytree(small, tmp_path / "home", symlinks=True), tmp_path / "mirror"
    assert pushed(home, str(mirror)) == []
    fingerprint = Store(home).fingerprints()[0]
    folder = mirror / "artifacts" / fingerprint
    sums = json.loads((folder / "sums.json").read_text())
    content = next(path for path in folder.iterdir() if path.is_dir())
    manifest = json.loads((content / "artifact.json").read_text())
    manifest["files"][0]["path"] = "../../../../escaped"
    (content / "artifact.json").write_text(json.dumps(manifest))
    sums["artifact.json"] = hashlib.sha256((content / "artifact.json").read_bytes()).hexdigest()
    (folder / "sums.json").write_text(json.dumps(sums))
    content.rename(folder / hashlib.sha256((folder / "sums.json").read_bytes()).hexdigest())
    whole, sentences = pulled(tmp_path / "other", str(mirror), fingerprint)
    assert not whole and "names a file outside its folder" in sentences[-1]
    assert not list(tmp_path.rglob("escaped"))
