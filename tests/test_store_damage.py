"""Every damage to a store that was built is found: each file flipped, cut, emptied, removed, put in
another's place; each field of each JSON file changed or left out. A run sets it right.
"""

from __future__ import annotations

import copy as copies
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import build_stages
from rich.console import Console
from typer.testing import CliRunner

from assets.build import gather_inputs
from assets.graph import node_named, nodes
from assets.recipe.recipe import load_recipe
from assets.store.manifest import record_sums
from assets.store.store import Store
from gpt_model.errors import CorruptFile, UserError
from pipelines.cli.main import app
from pipelines.verification import Verification, verified

pytestmark = pytest.mark.slow

# what changes after publication, and is no part of what was published
CHANGING = ("delivery.json", "delivery.lock", "worker.log", "stdout.log")


def check(home: Path) -> Verification:
    """What `verify` says of the whole store; a store that cannot be opened is said so too."""
    try:
        return verified(Store(home), None, Console(quiet=True))
    except UserError as error:
        return Verification(0, 0, [str(error)])


def published_files(home: Path) -> list[Path]:
    """Every file of the store but logs, locks, databases and downloads."""
    folders = (home / "artifacts", home / "refs")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [home / "store.json", *(path for path in sorted(files) if path.name not in CHANGING)]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def exchange(path: Path) -> None:
    """Another file of the same name, or of the same folder, in its place."""
    content = path.read_bytes()
    near = [*path.parents[1].rglob(path.name), *path.parent.iterdir(), *path.parents[2].rglob("*")]
    other = next(other for other in near if other.is_file() and other.read_bytes() != content)
    path.write_bytes(other.read_bytes())


def link(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.symlink_to("/dev/null" if content else "/etc/hostname")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "exchanged": exchange,
    "a link": link,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"}"),
}


def test_a_store_as_it_was_built_verifies(small: Path) -> None:
    assert check(small) == Verification(5, 0, [])


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_found(copy: Path, damage: str) -> None:
    missed = []
    files = published_files(copy)
    assert len(files) > 60
    for path in files:
        content = path.read_bytes()
        if not content and damage in ("flipped", "truncated", "emptied"):
            continue
        DAMAGES[damage](path)
        if not check(copy).problems:
            missed.append(str(path.relative_to(copy)))
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    assert missed == []
    assert check(copy).problems == []


def edits(document: Any) -> Iterator[Any]:
    """Copies of a JSON document with one field changed, or left out."""

    def fields(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        yield path
        if isinstance(value, dict | list):
            for key, below in value.items() if isinstance(value, dict) else enumerate(value):
                yield from fields(below, (*path, key))

    for *above, key in list(fields(document, ()))[1:]:
        for change in ("other", None):
            edited = holder = copies.deepcopy(document)
            for part in above:
                holder = holder[part]
            if change is None:
                del holder[key]
            elif isinstance(holder[key], bool):
                holder[key] = not holder[key]
            elif isinstance(holder[key], int | float):
                holder[key] += 1
            else:
                holder[key] = "0" * 64 if isinstance(holder[key], str) else {}
            if edited != document:
                yield edited


def test_every_edited_field_is_found(copy: Path) -> None:
    """Of one artifact, and of all that names it."""
    store = Store(copy)
    folder = store.resolve("local/tokens").path.parent
    files = [path for path in published_files(copy) if path.suffix == ".json"]
    files = [path for path in files if path.is_relative_to(folder)] + [copy / "store.json"]
    files += [copy / "refs" / "local" / "tokens", folder / "names" / "local" / "tokens"]
    missed, count = [], 0
    for path in files:
        content = path.read_bytes()
        for edited in edits(json.loads(content)):
            path.write_text(json.dumps(edited))
            count += 1
            if not check(copy).problems:
                missed.append((str(path.relative_to(copy)), edited))
        path.write_bytes(content)
    assert missed == []
    assert count > 300


def test_files_that_were_not_published_are_found(copy: Path) -> None:
    folder = Store(copy).resolve("local/tokens").path.parent
    for name in ("files/extra", "show/extra.png", "files/new/extra"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
        (problem,) = check(copy).problems
        assert name in problem and "was not there" in problem
        (folder / name).unlink()


def test_verify_of_one_artifact_sees_what_it_was_made_from(copy: Path) -> None:
    """Also where somebody wrote the sums anew."""
    store = Store(copy)
    tokens, other = store.resolve("local/tokens"), store.resolve("other/tokenizer")
    facts = dict(tokens.manifest)
    for entry in facts["inputs"]:
        if entry["name"] == "tokenizer":
            entry["fingerprint"] = other.fingerprint
    (tokens.path.parent / "artifact.json").write_text(json.dumps(facts))
    record_sums(tokens.path.parent)
    (problem,) = verified(store, store.resolve("local/tokens"), Console(quiet=True)).problems
    assert "was made from tokenizer" in problem and other.digest[:12] in problem


def rebuilt(copy: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the recipe, after which all is as it was: names, digests, verdicts."""
    monkeypatch.setenv("LINEAGE_HOME", str(copy))
    build_stages(small.parent / "local.yaml", copy)
    assert check(copy).problems == []
    before, after = Store(small), Store(copy)
    for name, fingerprint in before.refs().items():
        artifacts = [store.find(store.refs()[name]) for store in (before, after)]
        assert artifacts[0] and artifacts[1] and artifacts[0].digest == artifacts[1].digest
        assert artifacts[1].fingerprint == fingerprint
        assert before.gate(artifacts[0]) == after.gate(artifacts[1])


def test_a_run_sets_right_what_is_damaged(
    copy: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(copy)
    corpus, tokenizer, tokens = (
        store.resolve(f"local/{name}").path.parent for name in ("corpus", "tokenizer", "tokens")
    )
    index, made = corpus / "files" / "index.json", store.resolve("local/corpus").manifest
    inode = index.stat().st_ino
    (corpus / "gate.json").write_text("{}")
    flip(next((tokenizer / "files").rglob("*.json")))
    manifest = json.loads((tokens / "artifact.json").read_text())
    manifest["metrics"] = dict.fromkeys(manifest["metrics"], 1.0)
    (tokens / "artifact.json").write_text(json.dumps(manifest))
    (copy / "refs" / "local" / "tokens").write_text("not json")
    assert len(check(copy).problems) >= 4
    rebuilt(copy, small, monkeypatch)
    assert len(list((copy / "corrupt").iterdir())) == 3
    # of the corpus the verdicts alone were made again
    assert index.stat().st_ino == inode
    assert store.resolve("local/corpus").manifest == made

    (corpus / "artifact.json").unlink()
    (tokenizer / "sums.json").unlink()
    link(next((tokens / "files").rglob("*.json")))
    (copy / "refs" / "local" / "tokenizer").unlink()
    shutil.copy(copy / "refs" / "local" / "corpus", copy / "refs" / "local" / "tokens")
    assert len(check(copy).problems) >= 5
    rebuilt(copy, small, monkeypatch)


def test_what_is_not_as_published_is_not_built_on(copy: Path, small: Path) -> None:
    store = Store(copy)
    tokens = node_named(nodes(load_recipe(str(small.parent / "local.yaml"))), "tokens")
    tokenizer = store.resolve("local/tokenizer").path.parent
    content = (tokenizer / "gate.json").read_text()

    (tokenizer / "gate.json").unlink()
    with pytest.raises(CorruptFile, match=r"gate\.json is missing\. Run its recipe again"):
        gather_inputs(store, tokens)

    verdicts = json.loads(content)
    blocking = next(name for name, verdict in verdicts.items() if verdict["blocking"])
    del verdicts[blocking]
    (tokenizer / "gate.json").write_text(json.dumps(verdicts))
    record_sums(tokenizer)  # as where the check is newer than the artifact
    with pytest.raises(UserError, match=f"never judged by its blocking check '{blocking}'"):
        gather_inputs(store, tokens)

    (tokenizer / "gate.json").write_text(content)
    record_sums(tokenizer)
    assert set(gather_inputs(store, tokens)) == {"corpus", "tokenizer"}


def test_where_files_are_whole_only_verdicts_and_pictures_are_made_again(
    copy: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINEAGE_HOME", str(copy))
    store = Store(copy)
    folders = [store.resolve(f"local/{name}").path.parent for name in ("tokenizer", "tokens")]
    inodes = [(folder / "files").stat().st_ino for folder in folders]
    verdicts = json.loads((folders[0] / "gate.json").read_text())
    (folders[0] / "gate.json").write_text("{}")
    record_sums(folders[0])  # as where the checks are newer than the artifact
    flip(next((folders[1] / "show").iterdir()))
    rebuilt(copy, small, monkeypatch)
    assert [(folder / "files").stat().st_ino for folder in folders] == inodes
    assert json.loads((folders[0] / "gate.json").read_text()).keys() == verdicts.keys()


def test_files_that_were_moved_half_are_built_again(
    copy: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was killed between the moves."""
    store = Store(copy)
    tokens = store.resolve("local/tokens")
    aside = store.quarantine(tokens.fingerprint)
    assert store.take_back(aside, store.building(tokens.fingerprint))
    next((store.building(tokens.fingerprint).files).rglob("*.json")).unlink()
    rebuilt(copy, small, monkeypatch)


def as_an_earlier_version_left_it(home: Path) -> None:
    for folder in (home / "artifacts").iterdir():
        (folder / "sums.json").unlink()
        shutil.rmtree(folder / "names")
        facts = json.loads((folder / "artifact.json").read_text()) | {"format": 1}
        (folder / "artifact.json").write_text(json.dumps(facts))


def test_a_store_without_sums_is_read_said_to_be_so_and_gets_them_at_the_next_run(
    copy: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_an_earlier_version_left_it(copy)
    assert check(copy) == Verification(5, 5, [])
    done = CliRunner().invoke(app, ["verify"], env={"LINEAGE_HOME": str(copy)})
    assert done.exit_code == 0 and "Not recorded of 5 of them" in done.stdout
    rebuilt(copy, small, monkeypatch)
    assert check(copy) == Verification(5, 2, [])  # the other recipe's two are still to come
    assert not (copy / "corrupt").exists()
    show = next((Store(copy).resolve("local/tokens").path.parent / "show").iterdir())
    flip(show)
    assert show.name in check(copy).problems[0]
