"""Every published recipe, cut to a tiny shape and a few rows, is built to its scorecard and traced:
all its tasks, suites and experiments, from data sets in the hub's layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import environment_of, run_cli
from local_hub import Hub, serve
from published_recipes import IMPORTED, OWN_SUITE, PUBLISHED, cut, write_hub
from warm_worker import WarmLauncher, build_recipe

from assets.graph import nodes
from assets.recipe.recipe import RECIPES, load_recipe
from assets.report.lineage_tree import draw_lineage, is_complete, sources_of, traced
from assets.stages import STAGES
from assets.stages.base_model import READ_ALONE, READ_ON
from assets.store.store import Store
from assets.tracking.tracking import Tracking
from gpt_model.io import read_json_lines

# Of the structure of the first: only sizes and rates differ.
LIKE = {
    "gpt2-small": ("gpt2-medium", "gpt2-large", "gpt2-xl"),
    "gpt3-small": tuple(
        f"gpt3-{size}" for size in ("medium", "large", "xl", "2.7b", "6.7b", "13b", "175b")
    ),
    "instructgpt-1.3b": ("instructgpt-6b", "instructgpt-175b"),
}


def test_every_published_recipe_is_built_or_differs_in_sizes_from_one_that_is() -> None:
    published = {path.stem for path in RECIPES.glob("*gpt*.yaml")} - {"gpt1-tiny", "gpt3-tiny"}
    assert published == {*PUBLISHED, *(name for names in LIKE.values() for name in names)}
    for first, names in LIKE.items():
        expected = load_recipe(first)
        for name in names:
            recipe = load_recipe(name)
            for section in ("corpus", "tokenizer", "finetuning", "evaluation", "experiments"):
                assert getattr(recipe, section) == getattr(expected, section), (name, section)
            assert [(node.name.split("/"), node.needs) for node in nodes(recipe)] == [
                (node.name.split("/"), node.needs) for node in nodes(expected)
            ]


# Five models would take longer than all the rest: tests/test_ladder.py holds the same of them.
LADDER = {"scaling", "scaling_prediction"}


def test_every_stage_is_of_a_recipe_that_is_built_here(tmp_path: Path) -> None:
    """So that each is held to write nothing outside store and downloads."""
    stages = set()
    for name in (*PUBLISHED, IMPORTED):
        (tmp_path / name).mkdir()
        stages |= {node.stage.name for node in nodes(load_recipe(str(cut(name, tmp_path / name))))}
    assert stages == set(STAGES) - LADDER


FONT_LIST = ".cache/matplotlib/"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """All data that the recipes read."""
    folder = tmp_path_factory.mktemp("hub")
    write_hub(folder)
    with serve(folder) as hub:
        yield hub


class Place:
    """A store, a recipe's folder, and a third folder that is all the rest: a user's home, where
    caches and temporary files go, the current folder.
    """

    def __init__(self, folder: Path, downloads: Path) -> None:
        self.home, self.work, self.rest = (folder / name for name in ("lineage", "work", "rest"))
        for path in (self.home / "downloads", self.work, self.rest / "tmp"):
            path.mkdir(parents=True)
        (self.home / "downloads" / "packages").symlink_to(downloads / "packages")
        self.store = Store(self.home)


@pytest.fixture
def place(tmp_path: Path, hub: Hub, downloads: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place(tmp_path, downloads)
    for name in ("HF_HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    own = {"HF_ENDPOINT": hub.address, "HOME": str(place.rest), "TMPDIR": str(place.rest / "tmp")}
    for name, value in {**environment_of(place.home, downloads), **own}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(place.rest)
    return place


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def mlflow_metrics(place: Place, recipe: str) -> set[str]:
    """The metrics of the zero-shot evaluation that MLflow has, whose run has ended."""
    artifact = place.store.find(place.store.get_ref(recipe, "zero_shot") or "")
    tracking = Tracking(place.home)
    run = tracking.server.client().get_run(tracking.run_of(artifact))
    assert run.info.status == "FINISHED"
    return set(run.data.metrics)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PUBLISHED, IMPORTED])
def test_a_published_recipe_is_built_to_its_scorecard_and_traced(
    name: str, place: Place, hub: Hub, downloads: Path
) -> None:
    store, recipe = place.store, cut(name, place.work)
    written = files_in(place.work)
    hub.read.clear()
    if name == "gpt2-small":  # as a person runs it
        arguments = ("run", str(recipe), "--profile", "single")
        ran = run_cli(place.home, downloads, *arguments, cwd=place.rest)
        assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-6000:]
        assert f"eval/{OWN_SUITE}/last_word/acc" in mlflow_metrics(place, "gpt2_small_cut")
    else:
        with WarmLauncher(place.home) as launcher:
            build_recipe(recipe, place.home, launcher)
    assert files_in(place.work) == written
    # of the command line; the workers' is in downloads
    assert [name for name in files_in(place.rest) if not name.startswith(FONT_LIST)] == []

    artifacts = {
        node.name: store.find(store.get_ref(node.recipe, node.name) or "")
        for node in nodes(load_recipe(str(recipe)))
    }
    read = set()
    for node, artifact in artifacts.items():
        assert artifact and artifact.not_run is None, node
        assert not store.failed_checks(artifact, blocking=True)
        assert is_complete(traced(store, artifact)) and draw_lineage(traced(store, artifact))
        read |= {source["hub"] for source in sources_of(artifact) if "hub" in source}
    assert read == hub.read
    scorecard = artifacts["scorecard"]
    assert scorecard
    document = json.loads((scorecard.path / "scorecard.json").read_text())
    assert document["not_run"] == []
    zero_shot = artifacts["zero_shot"]
    assert zero_shot
    assert (zero_shot.path / "tasks" / f"{OWN_SUITE}.last_word.jsonl").is_file()
    assert f"{OWN_SUITE}/last_word/acc" in zero_shot.metrics
    page = (store.show(scorecard) / "scorecard.md").read_text()
    if name == "gpt1":
        # The two bits per byte of one text say how each reads it.
        for asset, reading in (("pretrained", READ_ON), ("zero_shot", READ_ALONE)):
            notes = [row["note"] for row in document["scores"] if row["asset"].endswith(asset)]
            assert any(reading in note for note in notes)
        assert READ_ON in page and READ_ALONE in page
        # People's ratings are as they gave them, not rounded to a class.
        rated = artifacts["finetuned/stsb"]
        assert rated
        ratings = {row["rating"] for row in read_json_lines(rated.path / "predictions.jsonl")}
        assert ratings <= {0.0, 5.0, 3.8, 2.25} and ratings & {3.8, 2.25}
    assert all(f"`{name}" in page for name in read)
