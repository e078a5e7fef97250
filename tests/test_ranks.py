"""Stages that train nothing share their work out among ranks, and the bytes are those of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from stage_ranks import run_in_ranks
from training_ranks import RecordingProgress
from world import World, make_world, story

from assets.contract import SCRATCH, Artifact
from assets.execution.tokenizer import tokenize
from gpt_model.data import documents
from gpt_model.data.shards import SourceTexts, join, write
from gpt_model.tokenizer import Tokenizer

RANKS = (1, 2, 3)


def write_suite(folder: Path) -> str:
    """A suite of 180 texts that the model writes, its rows beside it: its file's name."""
    rows = [
        {"text": f"On day {n} {story(n, 2)}", "label": "fine" if n % 3 else "grey"}
        for n in range(180)
    ]
    (folder / "days.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {
        "licence": "CC0",
        "source": {"file": str(folder / "days.jsonl")},
        "format": "jsonl",
        "form": "classification",
        "columns": {"text": "text", "label": "label"},
        "labels": ["grey", "fine"],
    }
    data = {"builder": "labelled", "entry": entry, "splits": ["training", "validation", "test"]}
    suite = {
        "task": "days",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{label}}",
        "generation_kwargs": {"do_sample": False, "max_gen_toks": 12, "until": ["."]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0, "data": data},
    }
    (folder / "days.yaml").write_text(yaml.safe_dump(suite))
    return "days.yaml"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def outputs(world: World, downloads: Path) -> dict[tuple[str, int], Path]:
    """Of the stages `zero_shot` and `tokens`, by their number of ranks."""
    model, corpus = world.folder / "pretrained", world.folder / "corpus"
    stages: dict[str, Any] = {
        "tokens": ({}, {"corpus": corpus, "tokenizer": model / "model"}),
        "zero_shot": (
            world.config(["held_out", "cloze", write_suite(world.folder)], {"cloze": 60}),
            {"corpus": corpus, "pretrained": model},
        ),
    }
    jobs = [
        {
            "stage": stage,
            "ranks": ranks,
            "config": config,
            "inputs": inputs,
            "output": world.folder / f"{stage}-{ranks}",
        }
        for stage, (config, inputs) in stages.items()
        for ranks in RANKS
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEAGE_DOWNLOADS", str(downloads))
        run_in_ranks(jobs, world.folder)
    return {(job["stage"], job["ranks"]): job["output"] for job in jobs}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokens", "zero_shot"])
def test_any_number_of_ranks_gives_the_bytes_of_one(
    stage: str, outputs: dict[tuple[str, int], Path]
) -> None:
    alone, *others = (contents(outputs[stage, ranks]) for ranks in RANKS)
    assert len(alone["index.json" if stage == "tokens" else "predictions.jsonl"]) > 1000
    for several in others:
        assert several == alone


def test_joined_parts_are_the_bytes_of_the_whole(tmp_path: Path) -> None:
    """Also of empty documents, parts without a document, and shards that end within a part."""
    texts = {"training": [story(n, 4) for n in range(9)], "held_out": ["", "one", ""]}
    tokenizer = Tokenizer.train(texts["training"], vocab_size=300)
    sizes = {split: sum(len(text.encode()) for text in whole) for split, whole in texts.items()}

    def written(folder: Path, number: int, parts: int) -> Path:
        share = {
            split: documents.part(whole, sizes[split], number, parts)
            for split, whole in texts.items()
        }
        write(folder, {"plays": SourceTexts(0.5, share)}, tokenizer, shard_tokens=100)
        return folder

    whole = contents(written(tmp_path / "whole", 0, 1))
    assert len([name for name in whole if "training-" in name]) > 3
    for parts in (2, 5, 14):
        folder = tmp_path / str(parts)
        join([written(folder / str(n), n, parts) for n in range(parts)], folder / "all", 100)
        assert contents(folder / "all") == whole


def test_a_part_that_a_killed_attempt_has_completed_is_there_for_the_next(
    world: World, tmp_path: Path
) -> None:
    model = Artifact(world.folder / "pretrained" / "model", "tokenizer", "", "", {}, {})
    inputs = {"corpus": world.inputs["corpus"], "tokenizer": model}
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir()
    tokenize({}, inputs, alone, RecordingProgress("alone"))
    assert tokenize({}, inputs, shared, RecordingProgress("second", 1, 2)) == {}
    part = shared / SCRATCH / "1-of-2"
    before = {path: path.stat().st_mtime_ns for path in part.rglob("*")}
    killed = part.with_name("0-of-2.unfinished") / "first"
    killed.mkdir(parents=True)
    (killed / "training-00007.bin").write_bytes(b"half of it")
    assert tokenize({}, inputs, shared, RecordingProgress("second again", 1, 2)) == {}
    assert {path: path.stat().st_mtime_ns for path in part.rglob("*")} == before
    tokenize({}, inputs, shared, RecordingProgress("first", 0, 2))
    assert contents(shared) == contents(alone)
