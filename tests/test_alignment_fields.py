"""An error of a stage of alignment names a field that the recipe's section has, and the file that
it is written in.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import human_world as world
import pytest
import torch
from ppo_world import NEEDS, make_ppo_inputs, one_run
from test_alignment_recipe import COMPARISONS, DEMONSTRATIONS, PPO, PROMPTS, recipe
from training_ranks import RecordingProgress

from assets.contract import Artifact, Stage
from assets.execution import dpo, ppo, reward_model
from assets.graph import node_named, nodes
from assets.stages.alignment import (
    ALIGNED,
    DPO,
    INSTRUCTED,
    POLICY_INIT,
    PREFERENCES,
    REWARD_MODEL,
    SUPERVISED,
)
from gpt_model.errors import UserError
from gpt_model.rlhf import reward_model as reward
from gpt_model.rlhf.chat_template import ChatTemplate, chat_tokenizer
from gpt_model.rlhf.episodes import SamplingParams
from gpt_model.rlhf.records import read_comparisons
from gpt_model.rlhf.reward_model import RewardModel, encode_rankings
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.engine import ALONE, Execution

CONTEXTS = {"": 64, "_short": 4}  # in the second no dialogue fits


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    with world.one_rank():
        yield


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """All that a stage may ask for; "model_short" has a short context."""
    folder, template = tmp_path_factory.mktemp("given"), world.template()
    artifacts = {
        f"model{name}": world.model(
            folder / f"model{name}", world.tiny(template, context=size), template
        )
        for name, size in CONTEXTS.items()
    }
    for artifact, size in zip(artifacts.values(), CONTEXTS.values(), strict=True):
        (artifact.path / "training.json").write_text("{}")
        (artifact.path / "shape.json").write_text(json.dumps({"context": size}))
    template.tokenizer.save(folder / "tokenizer")
    other = ChatTemplate(chat_tokenizer(Tokenizer.train(world.TEXTS, vocab_size=290)))
    for name, vocabulary in (("scorer", template), ("scorer_of_others", other)):
        reward.save(RewardModel(world.tiny(vocabulary)), vocabulary.tokenizer, folder / name)
        artifacts[name] = Artifact(folder / name, name, "", "", {}, {})
    artifacts["tokenizer"] = Artifact(folder / "tokenizer", "tokenizer", "", "", {}, {})
    artifacts["demonstrations"] = world.write(
        folder / "demonstrations",
        training=world.demonstrations(20),
        held_out=world.demonstrations(4),
    )
    artifacts["comparisons"] = world.write(
        folder / "comparisons", training=world.rankings(8, 1), held_out=world.rankings(8, 2)
    )
    artifacts["prompts"] = world.write(
        folder / "prompts", training=world.prompts(8), held_out=world.prompts(8)
    )
    artifacts["no_prompts"] = world.write(
        folder / "no_prompts", training=world.prompts(8), held_out=[]
    )
    return artifacts


class Case:
    """What goes wrong in an asset, and the field that its error is to name."""

    def __init__(
        self, asset: str, field: str, wrong: Callable[[Any, dict[str, Artifact], Path], Any]
    ) -> None:
        self.asset, self.field, self.wrong = asset, field, wrong


def _stage(stage: Stage, **inputs: str) -> Callable[[Any, dict[str, Artifact], Path], Any]:
    """The stage itself, with inputs of other names in `given` than their own."""

    def run(section: Any, given: dict[str, Artifact], folder: Path) -> Any:
        artifacts = {**given, **{name: given[other] for name, other in inputs.items()}}
        return stage.run(section, artifacts, folder, RecordingProgress("wrong"))

    return run


def _no_number(section: Any, given: dict[str, Artifact], folder: Path) -> Any:
    model, compared = reward.load(given["scorer"].path), _compared(given)
    torch.nn.init.constant_(model.head.weight, math.nan)
    reward_model.score_rankings(model, compared, ALONE)


def _compared(given: dict[str, Artifact]) -> Any:
    return encode_rankings(
        world.template(), read_comparisons(given["comparisons"].path, "held_out"), 64
    ).encoded


def _no_text(section: Any, given: dict[str, Artifact], folder: Path) -> Any:
    ppo.objective_of(
        section["ppo"], [[1]], SamplingParams(0, 4, 1.0), None, 64, 64, folder, Execution(), 16
    )


def _no_room(section: Any, given: dict[str, Artifact], folder: Path) -> Any:
    ppo.EncodedPrompts.read(given["prompts"], world.template(), 8, SamplingParams(0, 4, 1.0))


def _stopped(section: Any, given: dict[str, Artifact], folder: Path) -> Any:
    inputs = make_ppo_inputs(folder.with_name("ppo"))
    artifacts = {name: Artifact(inputs / name, name, "", "", {}, {}) for name in NEEDS}
    ALIGNED.run(
        one_run(folder, stop={"length": 1.0001})["config"],
        artifacts,
        folder,
        RecordingProgress("stopped"),
    )


CASES = [
    Case("supervised", "demonstrations", _stage(SUPERVISED, pretrained="model_short")),
    Case("policy_init", "demonstrations", _stage(POLICY_INIT, pretrained="model_short")),
    Case("reward_model", "comparisons", _stage(REWARD_MODEL, start="model_short")),
    Case("reward_model", "reward_model.learning_rate", _no_number),
    Case("dpo", "comparisons", _stage(DPO, policy_init="model_short")),
    Case(
        "dpo",
        "dpo.learning_rate",
        lambda section, given, folder: dpo.check_finite([[math.nan] * 3] * 8, _compared(given)),
    ),
    Case("aligned", "ppo.ptx_weight", _no_text),
    Case("aligned", "ppo.max_new_tokens", _no_room),
    Case("aligned", "ppo", _stopped),
    Case(
        "instructed",
        "prompts.held_out",
        _stage(INSTRUCTED, supervised="model", reward_model="scorer", prompts="no_prompts"),
    ),
    Case("instructed", "supervised", _stage(INSTRUCTED, supervised="model", reward_model="scorer")),
    Case(
        "instructed",
        "reward_model",
        _stage(INSTRUCTED, supervised="model", reward_model="scorer_of_others"),
    ),
    Case(
        "preferences", "preferences.max_new_tokens", _stage(PREFERENCES, supervised="model_short")
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.asset}-{case.field}")
def test_the_field_is_one_of_the_section(
    case: Case, given: dict[str, Artifact], tmp_path: Path
) -> None:
    read = recipe(tmp_path, DEMONSTRATIONS + COMPARISONS + PROMPTS + PPO + "  dpo: {}\n")
    node = node_named(nodes(read), case.asset)
    with pytest.raises(UserError) as raised, node.naming():
        case.wrong(node.settings(tmp_path), given, tmp_path / "output")
    match = re.match(r".*talk\.yaml, line \d+: `([\w.]+)`: ", str(raised.value))
    assert match, raised.value
    assert match[1] == f"alignment.{case.field}"
    reduce(getattr, match[1].split("."), read)  # there is such a key
