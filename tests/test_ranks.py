"""Stages that train nothing share their work out among ranks, and the bytes are those of one."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import human_world
import pytest
import torch
import yaml
from ppo_world import most_gathered
from stage_ranks import run_in_ranks
from training_ranks import RecordingProgress
from world import World, make_world, story

from assets.contract import SCRATCH, Artifact
from assets.execution.stored_models import StoredModels
from assets.execution.tokenizer import tokenize
from assets.stages import base_model
from assets.stages.experiments import ZERO_SHOT_DYNAMICS
from gpt_model import GPT, convert
from gpt_model.data import documents
from gpt_model.data.shards import SourceTexts, join, write
from gpt_model.evaluation.results import Results
from gpt_model.lstm import build
from gpt_model.rlhf import reward_model
from gpt_model.rlhf.chat_template import ChatTemplate, chat_tokenizer
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.engine import Execution
from gpt_model.training.sharded import reading
from gpt_model.training.snapshots import save_snapshot, write_index
from gpt_model.training.tuning import epoch_folder

RANKS = (1, 2, 3)
HEAD = 32 + 1  # elements of a reward model's
# What a stage writes, and of how many bytes at least: every rank has batches.
WRITTEN = {
    "tokens": ("index.json", 1000),
    "zero_shot": ("predictions.jsonl", 1000),
    "visible_context": ("experiment.json", 1000),
    "depth": ("experiment.json", 1000),
    "zero_shot_dynamics": ("experiment.json", 1000),
    "instructed": ("answers.jsonl", 40_000),
    "preferences": ("answers.jsonl", 150_000),
}
READING = [stage for stage in WRITTEN if stage != "tokens"]  # those that read models


def write_suite(folder: Path, name: str, **settings: Any) -> str:
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
        "task": name,
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{label}}",
        "generation_kwargs": {"max_gen_toks": 12, "until": ["."], **settings},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0, "data": data},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(suite))
    return f"{name}.yaml"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def write_people(world: World) -> dict[str, Path]:
    """Inputs of the stages that compare answers: models of random weights, by their names."""
    template = ChatTemplate(chat_tokenizer(world.tokenizer))
    folder, context = world.folder / "people", world.model.config.context
    first, second, third = (human_world.tiny(template, seed, context) for seed in (1, 2, 3))
    for name, model in (("policy_init", first), ("aligned", second), ("supervised", third)):
        artifact = human_world.model(folder / name, model, template)
        base_model.write_shape(model.config, artifact.path)
    for epoch, model in ((1, first), (2, second)):
        convert.save(model, epoch_folder(folder / "supervised", epoch), template.end_of_text)
    (folder / "supervised" / "training.json").write_text("{}")
    scorer = reward_model.RewardModel(human_world.tiny(template, 9))
    reward_model.save(scorer, template.tokenizer, folder / "reward_model")
    human_world.write(folder / "prompts", held_out=human_world.prompts(400))
    human_world.write(folder / "comparisons", held_out=human_world.rankings(300, 1))
    return {path.name: path for path in folder.iterdir()}


def write_models(world: World) -> dict[str, Path]:
    """Models of three depths with snapshots, in folders of these names; and an LSTM beside them."""
    for layers in (1, 2, 3):
        shape = world.model.config.model_copy(update={"layers": layers})
        folder = world.folder / f"layers_{layers}"
        convert.save(GPT(shape, seed=layers), folder / "model", world.tokenizer.end_of_text)
        for step in (1, 2, 3):
            save_snapshot(GPT(shape, seed=step), folder, step)
        write_index(folder, {step: 100 * step for step in (1, 2, 3, 4)})
    lstm = shape.model_copy(update={"family": "lstm", "layers": 1, "heads": 1})
    for step in (1, 2):
        save_snapshot(build(lstm, step), world.folder / "lstm", step)
    convert.save(build(lstm, 3), world.folder / "lstm" / "model")
    write_index(world.folder / "lstm", {step: 100 * step for step in (1, 2, 3)})
    return {f"depth/layers_{layers}": world.folder / f"layers_{layers}" for layers in (1, 2, 3)}


def choices(world: World) -> dict[str, Any]:
    """A task of 60 questions, by the heuristic that asks them."""
    rows = [
        {
            "question": f"{story(n, 1)} Which?",
            "options": ["the table", "the wagon"],
            "answer": n % 2,
        }
        for n in range(60)
    ]
    (path := world.folder / "choices.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    columns = {"question": "question", "options": "options", "label": "answer"}
    entry = {"licence": "CC0", "source": {"file": str(path)}, "form": "multiple_choice"}
    task = {"name": "choices", "entry": entry | {"columns": columns}}
    return ZERO_SHOT_DYNAMICS.pin({"tasks": {"questions": task}}, world.folder)["tasks"]


def stages_of(world: World) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Config and inputs of each stage."""
    model, corpus = world.folder / "pretrained", world.folder / "corpus"
    tokens, people, models = world.folder / "tokens-1", write_people(world), write_models(world)
    tokenizer = [model / "model", {}, {"vocab_size": world.tokenizer.vocab_size}]
    shape = {**world.model.config.model_dump(exclude={"vocab_size"})}
    answers = {"max_new_tokens": 10, "temperature": 1.0, "seed": 1}
    unavailable = {"name": "none", "not_run": "it is not here"}
    dynamics = dict.fromkeys(("sentiment", "acceptability", "pronouns"), unavailable)
    return {
        "tokens": ({}, {"corpus": corpus, "tokenizer": model / "model"}),
        "zero_shot": (
            world.config(
                ["held_out", "cloze", write_suite(world.folder, "days", do_sample=False)],
                {"cloze": 60},
            ),
            {"corpus": corpus, "pretrained": model},
        ),
        "visible_context": (
            {"contexts": [1, 9, 64], "positions": 900, "seed": 0},
            {"tokens": tokens, "pretrained": model},
        ),
        "depth": (
            {},
            {"tokens": tokens, "tokenizer": tokenizer}
            | {
                name: [
                    path,
                    {"model": shape | {"layers": layers}, "pretraining": {"tokens": 9}},
                    {},
                ]
                for layers, (name, path) in enumerate(models.items(), 1)
            },
        ),
        "zero_shot_dynamics": (
            {
                "tasks": dynamics | {"acceptability": None} | choices(world),
                "examples": 60,
                "split_seed": 0,
            },
            {
                "corpus": corpus,
                "tokenizer": model / "model",
                "pretrained": models["depth/layers_2"],
                "experiments/lstm": world.folder / "lstm",
            },
        ),
        "instructed": ({"instructed": {"prompts": 200, **answers}}, people),
        "preferences": (
            {"preferences": {"prompts": 200, "best_of": 5, **answers}},
            people | {"pretrained": model, "tokens": tokens},
        ),
    }


def failing(world: World, stages: Mapping[str, tuple[Any, Any]]) -> Iterator[dict[str, Any]]:
    """Jobs of which the first batch fails, which is rank 0's, and of which the second does."""
    settings = {"do_sample": True, "begin_suppress_tokens": "stop_words"}
    suite = write_suite(world.folder, "sampled", **settings)
    yield {
        "stage": "zero_shot",
        "config": world.config([suite], {"sampled": 20}),
        "inputs": stages["zero_shot"][1],
    }
    config, inputs = stages["zero_shot_dynamics"]
    broken = world.folder / "layers_3" / "snapshots" / "2" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    yield {
        "stage": "zero_shot_dynamics",
        "config": config,
        "inputs": inputs | {"pretrained": world.folder / "layers_3"},
    }


def most_of(inputs: Mapping[str, Any]) -> int:
    """Elements that a rank gathers at once of the models among the inputs, of that of which it
    gathers most.
    """
    return max(
        most_gathered(file.parent) + (HEAD if name == "reward_model" else 0)
        for name, given in inputs.items()
        for file in Path(given[0] if isinstance(given, list) else given).rglob("model.safetensors")
    )


@dataclass(frozen=True)
class Done:
    folder: Path
    printed: str
    # Elements that a rank of each stage gathers at once at ZeRO 3: of one model, a block and what
    # is in none, and a reward model's head
    most: Mapping[str, int]

    def output(self, stage: str, ranks: int | str) -> Path:
        return self.folder / f"{stage}-{ranks}"


@pytest.fixture(scope="module")
def done(world: World, downloads: Path) -> Done:
    """Each stage on each number of ranks, and two in which a rank fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEAGE_DOWNLOADS", str(downloads))
        stages = stages_of(world)
        most = {stage: most_of(inputs) for stage, (_, inputs) in stages.items() if stage in READING}
        done = Done(world.folder, "", most)
        jobs: list[dict[str, Any]] = [
            {"stage": stage, "ranks": ranks, "config": config, "inputs": inputs}
            | {"output": done.output(stage, ranks)}
            for stage, (config, inputs) in stages.items()
            for ranks in RANKS
        ]
        jobs += [
            {"stage": stage, "ranks": 2, "config": config, "inputs": inputs}
            | {"zero_stage": 3, "output": done.output(stage, "shared_out")}
            for stage, (config, inputs) in stages.items()
            if stage in READING
        ]
        config, inputs = stages["preferences"]
        jobs.append(
            {"stage": "preferences", "ranks": 2, "config": config, "inputs": inputs}
            | {"zero_stage": 3, "memory_gb": 1, "output": done.output("preferences", "fits")}
        )
        jobs += [
            {**job, "ranks": 2, "fails": True, "output": world.folder / f"{job['stage']}-failed"}
            for job in failing(world, stages)
        ]
        return replace(done, printed=run_in_ranks(jobs, world.folder))


@pytest.mark.slow
@pytest.mark.parametrize("stage", WRITTEN)
def test_any_number_of_ranks_gives_the_bytes_of_one(stage: str, done: Done) -> None:
    alone, *others = (contents(done.output(stage, ranks)) for ranks in RANKS)
    name, size = WRITTEN[stage]
    assert len(alone[name]) > size
    for several in others:
        assert several == alone


def records(output: Path) -> list[dict[str, Any]]:
    """Of both ranks."""
    folders = (output, output / SCRATCH / "1")
    return [json.loads((folder / "record.json").read_text()) for folder in folders]


def files_of(output: Path) -> dict[str, bytes]:
    """What the stage wrote: all but the ranks' records."""
    files = contents(output)
    return {name: file for name, file in files.items() if not name.endswith("record.json")}


@pytest.mark.slow
@pytest.mark.parametrize("stage", READING)
def test_no_rank_has_a_whole_model_at_zero_3_and_the_bytes_are_the_same(
    stage: str, done: Done
) -> None:
    output = done.output(stage, "shared_out")
    of_ranks = records(output)
    assert [record["whole"] for record in of_ranks] == [0, 0]
    assert max(record["held"] for record in of_ranks) == done.most[stage]
    if stage != "zero_shot":  # which lays out whole weights in blocks, and adds in their order
        assert files_of(output) == contents(done.output(stage, 1))
        return
    scores, others = (
        {row.name: row.value for row in Results.read(done.output(stage, ranks)).scores}
        for ranks in (1, "shared_out")
    )
    assert len(scores) > 5 and others == pytest.approx(scores, rel=1e-5)


@pytest.mark.slow
def test_models_that_fit_are_whole_at_zero_3(done: Done) -> None:
    output = done.output("preferences", "fits")
    for record in records(output):
        assert record["held"] == 0 < record["whole"]
    assert files_of(output) == contents(done.output("preferences", 1))


def test_a_model_that_is_shared_out_is_gone_when_the_next_is_read(tmp_path: Path) -> None:
    template = human_world.template()
    human_world.model(tmp_path, human_world.tiny(template), template)
    with human_world.one_rank():
        models = StoredModels(Execution(zero_stage=3), whole=False)
        first = models.gpt(tmp_path / "model")
        assert all(parameter.is_meta for parameter in first.parameters())
        shares = [
            weakref.ref(parameter.shared_out.ds_tensor)  # type: ignore[attr-defined]
            for parameter in first.parameters()
        ]
        del first
        second = models.gpt(tmp_path / "model")
        assert sum(share() is not None for share in shares) == 0
        tokens = torch.arange(40).view(2, 20)
        with reading(second):
            losses = second.loss_by_token(tokens, tokens)
        whole = convert.load(tmp_path / "model").eval()
        assert torch.equal(losses, whole.loss_by_token(tokens, tokens))


@pytest.mark.slow
def test_a_rank_that_fails_in_its_batch_says_why_and_is_not_waited_for(done: Done) -> None:
    """Rank 0, which hands the batches out, and rank 1, of ranks that all have them."""
    assert done.printed.count("UserError: begin_suppress_tokens goes with greedy decoding") == 1
    assert done.printed.count("snapshots/2/model.safetensors is not a whole") == 1


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
