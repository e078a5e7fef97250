"""Zero-shot behaviour against pre-training, as a stage: what its data has to be, and what stands
where some of it cannot be had.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_finetuning import PASSAGES, recipe
from world import Alone

from assets.contract import Artifact, Built, Config
from assets.graph import node_named, nodes
from assets.recipe.recipe import Recipe
from assets.stages.experiments import ZERO_SHOT_DYNAMICS
from gpt_model import GPT, ModelConfig
from gpt_model.data import documents, hub
from gpt_model.errors import Unavailable, Unreachable
from gpt_model.experiments.document import read_document
from gpt_model.tokenizer import Tokenizer
from gpt_model.training import snapshots

MOODS = """
licence: made up
source: {file: moods.csv}
form: classification
columns: {text: text, label: label}
labels: [bad, good]
"""
CHOICES = """
licence: made up
source: {file: FILE}
form: multiple_choice
columns: {question: question, options: options, label: answer}
"""
NOBODY = [
    {"question": f"{i} ships sailed.", "options": ["the ship", "the sea"], "answer": 0}
    for i in range(40)
]
SOMEBODY = [
    {
        "question": f"The fox saw crow {i} because she sang.",
        "options": ["the fox sang", "the crow sang"],
        "answer": i % 2,
    }
    for i in range(40)
]

OF_THE_HUB = {
    "sentiment": "sst2",
    "acceptability": "cola",
    "pronouns": "race",
    "questions": "race",
    "lstm": False,
    "examples": 60,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tasks, and a hub that does not answer."""
    monkeypatch.setenv("LINEAGE_DOWNLOADS", str(tmp_path / "downloads"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setattr(hub, "_silent_since", float("-inf"))
    (tmp_path / "moods.yaml").write_text(MOODS)
    (tmp_path / "moods.csv").write_text(
        "text,label\n"
        + "".join(f"{text},{'good' if 'fox' in text else 'bad'}\n" for text in PASSAGES)
    )
    for name, rows in {"nobody": NOBODY, "somebody": SOMEBODY}.items():
        (tmp_path / f"{name}.yaml").write_text(CHOICES.replace("FILE", f"{name}.jsonl"))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "asked.yaml").write_text(
        MOODS.replace("{file: moods.csv}", "{on_request: their page}")
    )
    return tmp_path


def pinned(folder: Path, **dynamics: Any) -> Config:
    given = recipe(tasks=["boolq"]).model_dump(exclude_none=True)
    given["pretraining"]["snapshots"] = 2
    values = {
        "sentiment": "./moods.yaml",
        "acceptability": "./moods.yaml",
        "pronouns": "./somebody.yaml",
        "questions": "./somebody.yaml",
    }
    experiments = {"zero_shot_dynamics": {**values, "examples": 40, "lstm": False, **dynamics}}
    graph = nodes(Recipe.model_validate({**given, "experiments": experiments}))
    return node_named(graph, "experiments/zero_shot_dynamics").config(folder)


def run(config: Config, folder: Path, precision: str = "float32") -> Built:
    """With two snapshots of a model of random weights, and a corpus whose held-out sentences are
    short.
    """
    inputs = {
        name: Artifact(folder / name, name, name, name, {}, {})
        for name in ("pretrained", "tokenizer", "corpus")
    }
    trained = {"pretraining": {"precision": precision}}
    inputs["pretrained"] = replace(inputs["pretrained"], config=trained)
    (tokenizer := Tokenizer.train(PASSAGES, vocab_size=300)).save(folder / "tokenizer")
    model = GPT(
        ModelConfig(layers=1, width=16, heads=1, context=32, vocab_size=tokenizer.vocab_size),
        seed=1,
    )
    for step in (1, 2):
        snapshots.save_snapshot(model, folder / "pretrained", step)
    snapshots.write_index(folder / "pretrained", {1: 10, 2: 20})
    counts: dict[str, Any] = {}
    for split in ("training", "held_out"):
        with documents.Writer(folder / "corpus", "fables", split) as writer:  # type: ignore[arg-type]
            writer.add(PASSAGES[0])
        counts[split] = writer.counts()
    documents.write_index(
        folder / "corpus",
        {"fables": {"licence": "made up", "weight": 1.0, "held_out": 0.02, **counts}},
    )
    (output := folder / "out").mkdir()
    return Built(
        config, inputs, output, ZERO_SHOT_DYNAMICS.run(config, inputs, output, Alone()), {}, []
    )


def told(built: Built) -> str:
    assert all(check.verdict(built).summary for check in ZERO_SHOT_DYNAMICS.checks)
    return "\n".join(read_document(built.output).summary)


def test_data_that_cannot_be_had_here_is_said_in_what_identifies_the_stage_and_the_rest_is_run(
    folder: Path,
) -> None:
    config = pinned(folder, sentiment="sst2", acceptability="./asked.yaml")
    reasons = {task: item["not_run"] for task, item in config["tasks"].items() if "not_run" in item}
    assert reasons == {
        "sentiment": "nyu-mll/glue is read from the hub, which does not answer here",
        "acceptability": "its authors give the data on request (their page); name your files under "
        "finetuning.files",
    }
    built = run(config, folder)
    for task, why in reasons.items():
        assert f"{task}: not run here. {why}." in told(built)
    assert {name.split("/")[1] for name in built.metrics if name.startswith("transformer/")} >= {
        "pronouns",
        "questions",
    }
    assert not any("sentiment" in name or "acceptability" in name for name in built.metrics)
    [plot] = read_document(built.output).plots
    assert [series.label for series in plot.series] == ["pronouns", "questions"] and plot.series[
        0
    ].x == [10, 20]


def test_a_hub_that_falls_silent_during_the_run_stops_it_and_leaves_no_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for constants in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(
            f"{constants}.HF_HUB_OFFLINE", True
        )  # silent at once, where the client would try again for 20 seconds
    config = pinned(folder)
    entry = {
        **config["tasks"]["sentiment"]["entry"],
        "source": {
            "hub": "nyu-mll/glue",
            "revision": "a" * 40,
            "subset": "sst2",
            "splits": {"training": "train", "test": "validation"},
        },
    }
    answered = {
        **config,
        "tasks": {**config["tasks"], "sentiment": {"name": "sst2", "entry": entry}},
    }
    with pytest.raises(Unreachable, match="nyu-mll/glue"):
        run(answered, folder)
    assert not list((folder / "out").iterdir())


def test_data_in_which_there_is_nothing_to_ask_is_not_run_and_says_what_was_looked_for(
    folder: Path,
) -> None:
    message = told(run(pinned(folder, pronouns="./nobody.yaml", acceptability="held_out"), folder))
    assert (
        "pronouns: not run here. no question holds one pronoun, or _, with text after it, and "
        "names two"
        in message
        and "(40 looked" in message
    )
    assert (
        "acceptability: not run here. there are fewer than two sentences" in message
        and "sentiment, Transformer: 0." in message
    )


def test_where_no_heuristic_can_be_run_the_experiment_is_unavailable(folder: Path) -> None:
    fromkeys = dict.fromkeys(("sentiment", "acceptability"), "./asked.yaml")
    config = pinned(folder, **fromkeys, pronouns="./nobody.yaml", questions="race")
    with pytest.raises(Unavailable) as unavailable:
        run(config, folder)
    reasons = str(unavailable.value).split("; ")
    assert {reason.partition(":")[0] for reason in reasons} >= {
        "sentiment",
        "pronouns",
        "questions",
    }


# --- files of one's own ---


def of_the_hub(folder: Path, **finetuning: Any) -> Config:
    """The stage's config, pinned, of a recipe that has this fine-tuning beside the experiment."""
    given = recipe(**finetuning).model_dump(exclude_unset=True, mode="json")
    given["pretraining"]["snapshots"], given["experiments"] = 2, {"zero_shot_dynamics": OF_THE_HUB}
    return node_named(nodes(Recipe.model_validate(given)), "experiments/zero_shot_dynamics").config(
        folder
    )


def test_a_recipes_own_files_of_a_task_are_read_by_its_heuristic_too(folder: Path) -> None:
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text(
            "sentence\tlabel\n" + "".join(f"{name} film {i}\t{i % 2}\n" for i in range(40))
        )
    files = {"sst2": {"training": "train.tsv", "test": "dev.tsv"}}
    config = of_the_hub(folder, tasks=["sst2", "cola"], files=files)
    assert (
        "not_run" not in config["tasks"]["sentiment"]
        and "hub, which does not answer" in config["tasks"]["acceptability"]["not_run"]
    )
    assert "not_run" in of_the_hub(folder, tasks=["sst2", "cola"])["tasks"]["sentiment"]
    (folder / "dev.tsv").write_text("sentence\tlabel\nother\t1\n")
    assert (
        of_the_hub(folder, tasks=["sst2", "cola"], files=files) != config
    )  # tied to the files' bytes


def test_every_point_is_on_the_scale_with_its_interval(folder: Path) -> None:
    (folder / "dev.tsv").write_text(
        "sentence\tlabel\n"
        + "".join(f"a {'good' if i % 3 else 'bad'} film {i}\t{i % 2}\n" for i in range(400))
    )
    config = of_the_hub(folder, tasks=["sst2"], files={"sst2": "dev.tsv"})
    run(config, folder)
    scales, points = read_document(folder / "out").tables
    assert scales.rows[0][:3] == ["sentiment", "sst2 (dev.tsv)", 0.5]
    best = float(str(scales.rows[0][3]).partition(",")[0])
    assert len(points.rows) == 2
    for row in points.rows:
        item = dict(zip(points.columns, map(str, row), strict=True))
        score, scaled = (
            [float(number) for number in re.findall(r"-?\d\.\d+", item[name])]
            for name in ("score", "on the scale")
        )
        assert len(scaled) == 3 and scaled == pytest.approx(
            [(value - 0.5) / (best - 0.5) for value in score], abs=0.003
        )
        assert item["examples"] == "60"
    assert json.loads((folder / "out" / "experiment.json").read_text())["summary"][0].startswith(
        "sentiment, Transformer: "
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_snapshots_are_read_in_the_precision_of_their_training(
    precision: str, folder: Path, bfloat16_passes: list[bool]
) -> None:
    run(pinned(folder), folder, precision)
    assert set(bfloat16_passes) == {precision == "bfloat16"}
