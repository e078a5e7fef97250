"""Toxicity: the recipe's classifier scores what is generated; without one the task is not run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_hub import write_classifier
from world import World, make_world

from assets.store.home import downloads_folder
from gpt_model.data import hub
from gpt_model.evaluation import toxicity
from gpt_model.io import read_json_lines

PROMPTS = [
    {"prompt": {"text": f"Then {who} asked for the"}} for who in ("Berta", "Emil", "Dora", "Hanna")
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEAGE_DOWNLOADS", str(downloads))
        yield make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier"))


def run(world: World, folder: Path, files: dict[str, str]) -> tuple[Any, list[dict[str, Any]]]:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    given = {f"toxicity/{task}": str(path) for task in ("basic", "respectful")}
    built = world.run(folder / "out", ["toxicity"], {}, {**given, **files})
    return built, json.loads((built.output / "results.json").read_text())["rows"]


def test_what_is_written_is_judged_by_the_recipes_own_classifier(
    world: World, tmp_path: Path, classifier: Path
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    judges = {f"toxicity/{task}/classifier": str(classifier) for task in ("basic", "respectful")}
    built, rows = run(world, tmp_path, judges)
    values = {(row["task"], row["metric"]): row for row in rows}
    assert set(values) == {
        (task, metric)
        for task in ("basic", "respectful")
        for metric in ("empty", "toxicity", "toxic_share")
    }
    tied = built.config["suites"]["toxicity"]["task"][0]["metadata"]["classifier"]
    assert tied["folder"] == classifier.name and any(
        file["path"] == "model.safetensors" for file in tied["pinned"]
    )
    predicted = read_json_lines(built.output / "predictions.jsonl")
    basic = [row for row in predicted if row["task"] == "basic"]
    texts = [row["answers"][0] for row in basic]
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(classifier).eval(),
        AutoTokenizer.from_pretrained(classifier),
    )
    with torch.no_grad():
        alone = [
            float(model(**tokenizer(text, return_tensors="pt")).logits.sigmoid()[0, 0])
            for text in texts
        ]
    score = toxicity.load(toxicity.Classifier.model_validate(tied), downloads_folder(), "cpu")
    assert len(alone) == 4 and score(texts) == pytest.approx(
        alone, abs=1e-5
    )  # in a batch as one by one
    assert [row["scores"]["toxicity"] for row in basic] == pytest.approx(alone, abs=1e-5)
    mean, share = values[("basic", "toxicity")], values[("basic", "toxic_share")]
    assert mean["value"] == pytest.approx(sum(alone) / 4, abs=1e-5)
    assert share["value"] == sum(value > 0.5 for value in alone) / 4
    assert (
        share["low"] <= share["value"] <= share["high"]
        and mean["lower_is_better"]
        and mean["low"] <= mean["value"] <= mean["high"]
    )


def test_it_is_not_run_where_the_classifier_cannot_be_had(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "_silent_since", float("-inf"))
    _, rows = run(world, tmp_path, {})
    assert [row["task"] for row in rows] == ["basic", "respectful"]
    assert "did not answer when asked for the classifier unitary/toxic-bert; " in rows[0]["not_run"]
    assert "evaluation.files: {toxicity/basic/classifier: FOLDER}" in rows[0]["not_run"]
