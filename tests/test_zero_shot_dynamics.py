"""Figure 2, right: the heuristics on files of one's own, with nothing of the hub within reach, and what its page says of each point."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_finetuning import recipe
from world import Alone

from assets import experiment_page
from assets.contract import Artifact
from assets.experiments.zero_shot_dynamics import ZERO_SHOT_DYNAMICS
from assets.graph import nodes
from assets.recipe import Recipe
from gpt_model import GPT, ModelConfig
from gpt_model.data import hub
from gpt_model.tokenizer import Tokenizer
from gpt_model.training import snapshots

OF_THE_HUB = {"sentiment": "sst2", "acceptability": "cola", "pronouns": "race", "questions": "race", "lstm": False, "examples": 60}


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINEAGE_DOWNLOADS", str(tmp_path / "downloads"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setattr(hub, "_silent_since", float("-inf"))


def dynamics(folder: Path, **finetuning: Any) -> dict[str, Any]:
    """The stage's config, pinned, of a recipe that has this fine-tuning beside the experiment."""
    given = recipe(**finetuning).model_dump(exclude_unset=True, mode="json")
    given["pretraining"]["snapshots"], given["experiments"] = 2, {"zero_shot_dynamics": OF_THE_HUB}
    node = next(node for node in nodes(Recipe.model_validate(given)) if node.name == "experiments/zero_shot_dynamics")
    return dict(ZERO_SHOT_DYNAMICS.pin(node.config(folder), folder))


def test_a_recipes_own_files_of_a_task_are_read_by_its_heuristic_too(no_hub: None, tmp_path: Path) -> None:
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(f"{name} film {i}\t{i % 2}\n" for i in range(40)))
    files = {"sst2": {"training": "train.tsv", "test": "dev.tsv"}}
    config = dynamics(tmp_path, tasks=["sst2", "cola"], files=files)
    assert "not_run" not in config["tasks"]["sentiment"] and "hub, which does not answer" in config["tasks"]["acceptability"]["not_run"]
    assert "not_run" in dynamics(tmp_path, tasks=["sst2", "cola"])["tasks"]["sentiment"]
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nother\t1\n")
    assert dynamics(tmp_path, tasks=["sst2", "cola"], files=files) != config  # tied to the files' bytes


def test_every_point_is_on_the_scale_with_its_interval(no_hub: None, tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text(
        "sentence\tlabel\n" + "".join(f"a {'good' if i % 3 else 'bad'} film {i}\t{i % 2}\n" for i in range(400))
    )
    config = dynamics(tmp_path, tasks=["sst2"], files={"sst2": "dev.tsv"})
    tokenizer = Tokenizer.train(["a good film, a very bad film. " * 9], vocab_size=270)
    tokenizer.save(tmp_path / "tokenizer")
    shape = ModelConfig(layers=1, width=16, heads=2, context=24, vocab_size=270)
    for step in (1, 2):
        snapshots.keep(GPT(shape, seed=step), tmp_path / "pretrained", step)
    snapshots.write_index(tmp_path / "pretrained", {1: 100, 2: 200})
    given = {name: Artifact(tmp_path / name, name, name, name, {}, {}) for name in ("pretrained", "tokenizer", "corpus")}
    (tmp_path / "out").mkdir()
    ZERO_SHOT_DYNAMICS.run(config, given, tmp_path / "out", Alone())

    scales, points = experiment_page.read(tmp_path / "out").tables
    assert scales.rows[0][:3] == ["sentiment", "sst2 (dev.tsv)", 0.5]
    best = float(str(scales.rows[0][3]).partition(",")[0])
    assert len(points.rows) == 2
    for row in points.rows:
        one = dict(zip(points.columns, map(str, row), strict=True))
        score, scaled = ([float(number) for number in re.findall(r"-?\d\.\d+", one[name])] for name in ("score", "on the scale"))
        assert len(scaled) == 3 and scaled == pytest.approx([(value - 0.5) / (best - 0.5) for value in score], abs=0.003)
        assert one["examples"] == "60"
    assert json.loads((tmp_path / "out" / "experiment.json").read_text())["summary"][0].startswith("sentiment, Transformer: ")
