"""Stages that train nothing share their work out among ranks, and the bytes are those of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stage_ranks import run_in_ranks
from world import World, make_world

RANKS = (1, 2, 3)
GENERATED = """\
task: endings
dataset_path: json
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 12}
"""


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
            world.config(["held_out", "cloze", "multiple_choice"]),
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
    assert {"tokens": "index.json", "zero_shot": "predictions.jsonl"}[stage] in alone
    for several in others:
        assert several == alone
