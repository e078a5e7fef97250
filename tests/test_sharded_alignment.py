"""SFT, reward model and DPO at ZeRO 3, where no rank has the whole model, on two real ranks: they
train and measure as at ZeRO 1. And on more ranks than a batch has rows. PPO: test_ppo_resume.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import human_world as world
import pytest
import torch
from ppo_world import NEEDS, PPO, make_ppo_inputs, most_gathered
from safetensors.torch import load_file
from stage_ranks import run_in_ranks
from training_ranks import make_inputs, read_record

from assets.recipe.sections import (
    DPOSection,
    PolicyInitSection,
    PPOSection,
    RewardModelSection,
    SupervisedSection,
)
from gpt_model import convert
from gpt_model.config import ModelConfig
from gpt_model.rlhf.chat_template import ChatTemplate, chat_tokenizer
from gpt_model.tokenizer import Tokenizer
from gpt_model.transformer import GPT

pytestmark = pytest.mark.slow
SECTION: dict[str, Any] = {"learning_rate": 3e-3, "epochs": 2, "batch": 10, "precision": "float32"}
STAGES: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "supervised": (SupervisedSection, {}, ("pretrained", "tokenizer", "demonstrations")),
    "reward_model": (
        RewardModelSection,
        {"start": "supervised"},
        ("start", "tokenizer", "demonstrations", "comparisons"),
    ),
    "dpo": (DPOSection, {"beta": 0.1}, ("policy_init", "comparisons")),
}

# Of a batch of one row, or of a dialogue and a window of text, whose second rank then has the window
FEW: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    **STAGES,
    "policy_init": (
        PolicyInitSection,
        {"batch": 2},
        ("pretrained", "tokenizer", "tokens", "demonstrations"),
    ),
}
TRIED = {**FEW, "aligned": (PPOSection, {}, NEEDS)}
SECTIONS = {"aligned": "ppo"}
MEMORIES = (0, 10**6)  # bytes, one for each token
RANKS = ((1, 1), (2, 1), (3, 1), (2, 3))  # and ZeRO stage

# The reward model's loss compares rewards: what adds the same to all of them is free, has rounding
# for a gradient, and AdamW makes steps of that.
FREE = {"shift", "bias", "transformer.ln_f.bias"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each stage at ZeRO 1 and 3; and with few rows."""
    folder = make_inputs(tmp_path_factory.mktemp("built"))
    tokenizer = Tokenizer.load(folder / "tokenizer")
    template = ChatTemplate(chat_tokenizer(tokenizer))
    shape = ModelConfig(
        layers=2, width=32, heads=2, context=96, vocab_size=tokenizer.vocab_size, dropout=0.0
    )
    convert.save(GPT(shape, seed=1), folder / "pretrained" / "model", tokenizer.end_of_text)
    tokenizer.save(folder / "pretrained" / "model")
    for name in ("policy_init", "start"):
        world.model(folder / name, world.tiny(template, context=96), template)
    world.write(
        folder / "demonstrations",
        training=world.demonstrations(40),
        held_out=world.demonstrations(9),
    )
    world.write(
        folder / "comparisons", training=world.rankings(40, 1), held_out=world.rankings(150, 2)
    )
    jobs = [
        {
            "stage": stage,
            "ranks": 2,
            "zero_stage": zero_stage,
            "config": {stage: section.model_validate({**SECTION, **more}).model_dump(mode="json")},
            "inputs": {name: folder / name for name in inputs},
            "output": folder / f"{stage}-{zero_stage}",
        }
        for stage, (section, more, inputs) in STAGES.items()
        for zero_stage in (1, 3)
    ]
    few = {**SECTION, "batch": 1, "epochs": 1, "learning_rate": 1e-4}
    jobs += [
        {
            "stage": stage,
            "ranks": ranks,
            "zero_stage": zero_stage,
            "config": {stage: section.model_validate({**few, **more}).model_dump(mode="json")},
            "inputs": {name: folder / name for name in inputs},
            "output": folder / f"{stage}-{ranks}-{zero_stage}",
        }
        for stage, (section, more, inputs) in FEW.items()
        for ranks, zero_stage in RANKS
    ]
    make_ppo_inputs(folder / "ppo")
    jobs += [
        {
            "stage": stage,
            "ranks": 2,
            "zero_stage": 1,
            "config": {
                SECTIONS.get(stage, stage): section.model_validate(
                    {**SECTION, **more, "epochs": 1, "dropout": 0.0, "batch": 20}
                    if stage in FEW
                    else {**PPO, "episodes": 32, "learning_rate": 1e-4}
                ).model_dump(mode="json")
            },
            "inputs": {name: folder / SECTIONS.get(stage, "") / name for name in inputs},
            "output": folder / f"{stage}-of-{memory}",
            "trial_bytes": memory,
        }
        for stage, (section, more, inputs) in TRIED.items()
        for memory in MEMORIES
    ]
    run_in_ranks(jobs, folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_model_that_is_shared_out_trains_and_measures_as_one_that_is_whole(
    built: Path, stage: str
) -> None:
    whole, sharded = (built / f"{stage}-{zero_stage}" for zero_stage in (1, 3))
    first, second = read_record(whole), read_record(sharded)
    assert len(first["metrics"]) > 3 and first["texts"] == second["texts"]
    for step, values in first["metrics"].items():
        for name in {name for name in values if not name.endswith("_per_second")}:
            near = pytest.approx(values[name], rel=1e-4, abs=1e-4)
            assert second["metrics"][step][name] == near, (step, name)
    for name, value in first["result"].items():
        if "second" not in name and name not in FREE:
            assert second["result"][name] == pytest.approx(value, rel=1e-4, abs=1e-4), name
    files = {str(path.relative_to(whole)) for path in whole.rglob("*.safetensors")}
    files = {file for file in files if not file.startswith(".scratch")}
    assert "model/model.safetensors" in files
    for file in files:
        a, b = load_file(whole / file), load_file(sharded / file)
        assert a.keys() == b.keys()
        for name in a.keys() - (FREE if stage == "reward_model" else set()):
            assert torch.allclose(a[name], b[name], atol=1e-4), (file, name)
    head = 33 if stage == "reward_model" else 0
    assert second["held"] == most_gathered(whole / "model") + head and first["held"] == 0
    assert second["whole"] == 0 < first["whole"]
    assert (whole / "shape.json").read_bytes() == (sharded / "shape.json").read_bytes()


@pytest.mark.parametrize("stage", FEW)
def test_ranks_without_a_row_of_a_batch_leave_loss_and_gradient_as_they_are(
    built: Path, stage: str
) -> None:
    alone, *others = (read_record(built / f"{stage}-{n}-{zero}")["metrics"] for n, zero in RANKS)
    assert len(alone) >= 40
    for other in others:
        for step, values in alone.items():
            for name in {name for name in values if not name.endswith("_per_second")}:
                near = pytest.approx(values[name], rel=1e-5, abs=1e-5)
                assert other[step][name] == near, (step, name)


@pytest.mark.parametrize("stage", TRIED)
def test_every_training_finds_its_micro_batch_by_trial_and_learns_the_same(
    built: Path, stage: str
) -> None:
    small, large = (read_record(built / f"{stage}-of-{memory}") for memory in MEMORIES)
    sizes = [
        int(sequences)
        for record in (small, large)
        for line in record["log"]
        for sequences in re.findall(r"Micro-batches have up to (\d+) sequences", line)
    ]
    assert len(sizes) == 2 and sizes[0] == 1 < sizes[1]
    for step, values in small["metrics"].items():
        for name in {name for name in values if not name.endswith("_per_second")}:
            near = pytest.approx(values[name], rel=1e-3, abs=1e-3)
            assert large["metrics"][step][name] == near, (step, name)
