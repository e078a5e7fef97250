"""The InstructGPT recipes have appendix C's values, and what their stages take is foretold before
anything is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from assets.estimate import estimate, planned
from assets.graph import nodes
from assets.recipe.profile import Profile
from assets.recipe.recipe import load_recipe
from assets.recipe.sections import AlignmentSection
from assets.stages.alignment_nodes import alignment_nodes
from gpt_model.config import ModelConfig

# Ouyang et al. 2022, appendix C: base, supervised rate and batch, policy_init rate and batch, value
# rate.
PAPER = {
    "instructgpt-1.3b": ("gpt3-xl", 9.65e-6, 32, 5e-6, 32, 9e-6),
    "instructgpt-6b": ("gpt3-6.7b", 9.65e-6, 32, 1.04e-5, 32, 9e-6),
    "instructgpt-175b": ("gpt3-175b", 5.03e-6, 8, 2.45e-6, 8, 5e-6),
}
STAGES = (
    "demonstrations",
    "comparisons",
    "prompts",
    "supervised",
    "policy_init",
    "reward_model",
    "judge",
    "instructed",
    "aligned",
    "preferences",
)


@pytest.mark.parametrize("name", PAPER)
def test_a_published_size_is_aligned_as_its_paper_says(name: str) -> None:
    base, rate, batch, init_rate, init_batch, value_rate = PAPER[name]
    recipe, pretrained = load_recipe(name), load_recipe(base)
    assert recipe.model == pretrained.model and recipe.pretraining == pretrained.pretraining
    alignment = recipe.alignment
    assert alignment and alignment.ppo
    ppo = alignment.ppo
    assert (alignment.supervised.learning_rate, alignment.supervised.batch) == (rate, batch)
    assert (
        alignment.supervised.epochs,
        alignment.supervised.dropout,
        alignment.supervised.final_learning_rate,
    ) == (16, 0.2, 0.1)
    assert (
        alignment.policy_init.learning_rate,
        alignment.policy_init.batch,
        alignment.policy_init.epochs,
    ) == (init_rate, init_batch, 2)
    assert alignment.reward_model.learning_rate == 9e-6 and alignment.reward_model.batch == 64
    assert (ppo.episodes, ppo.batch, ppo.minibatch, ppo.inner_epochs, ppo.kl, ppo.ptx_weight) == (
        256_000,
        512,
        64,
        1,
        0.02,
        27.8,
    )
    assert ppo.value_learning_rate == value_rate and 2.55e-6 <= ppo.learning_rate < 8.05e-6
    # what no recipe of these writes, as it is the section's default: appendix C's too
    assert (ppo.ptx_examples, ppo.ema, ppo.clip, ppo.warmup_batches, ppo.temperature) == (
        8,
        0.992,
        0.2,
        10,
        1.0,
    )
    assert (ppo.value, ppo.adaptive_kl, ppo.max_new_tokens) == ("reward_model", None, 1024)
    assert alignment.policy_init.pretraining_share == 0.1 and alignment.reward_model.epochs == 1
    for section in (alignment.supervised, alignment.reward_model, alignment.policy_init, ppo):
        assert section.betas == (0.9, 0.95)
    for tuning in (alignment.supervised, alignment.reward_model):
        assert (tuning.final_learning_rate, tuning.warmup) == (0.1, 0.0)
    # its predecessor's released code (openai/lm-human-preferences), where the paper is silent
    assert (ppo.gae, ppo.value_clip, ppo.value_weight) == (0.95, 0.2, 0.1)


@pytest.mark.parametrize("name", PAPER)
def test_prompts_are_of_parts_that_nothing_else_is_made_of(name: str) -> None:
    alignment = load_recipe(name).alignment
    assert isinstance(alignment, AlignmentSection) and alignment.comparisons and alignment.prompts
    taken = {
        graph_node.hub: graph_node.part or (0, 1)
        for graph_node in (*alignment.demonstrations.sources, *alignment.comparisons.sources)
    }
    for source in alignment.prompts.sources:
        assert (
            source.part
            and taken[source.hub][1] <= source.part[0]
            and source.licence != "not stated"
        )


def test_every_stage_of_alignment_is_estimated_before_anything_is_built() -> None:
    recipe, profile = load_recipe("instructgpt-1.3b"), Profile(name="one")
    graph = {node.name: node for node in nodes(recipe)}
    if "supervised" not in graph:
        graph |= {node.name: node for node in alignment_nodes(recipe, set(graph), ())}
    estimates: dict[str, dict[str, Any]] = {}
    known: dict[str, Any] = {}
    for name, node in graph.items():
        if name == "scorecard":
            continue
        inputs = {need: known[node.asset(need)] for need in node.needs}
        config = node.settings(Path())
        estimates[name] = estimate(node, config, inputs, profile, [])
        known[name] = planned(node, config, estimates[name], inputs)
    for name in STAGES:
        assert estimates[name]["work"]["unit"] != "artifacts", name
    weights = 4.3 * ModelConfig.published("gpt3-xl").parameters()
    # every epoch is stored
    assert estimates["supervised"]["bytes"]["expected"] == pytest.approx(16 * weights, rel=0.01)
    assert estimates["aligned"]["bytes"]["expected"] == pytest.approx(weights, rel=0.01)
    seconds = {name: answer["seconds"]["expected"] for name, answer in estimates.items()}
    assert seconds["aligned"] > seconds["aligned_without_ptx"]
