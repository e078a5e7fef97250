"""What the stage `aligned` needs, all tiny: a policy, a reward model, prompts and tokens. For the
tests of it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_ranks import make_inputs

from assets.recipe.sections import PPOSection
from gpt_model import convert
from gpt_model.config import ModelConfig
from gpt_model.convert import folder as folders
from gpt_model.rlhf import reward_model, rollouts
from gpt_model.rlhf.chat_template import chat_tokenizer
from gpt_model.rlhf.ppo import ActorCritic
from gpt_model.rlhf.reward_model import RewardModel
from gpt_model.rlhf.rollout_engine import Chunk, SamplingParams, answers_of
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.engine import Execution
from gpt_model.training.sharded import ShardedModel
from gpt_model.transformer import GPT, Decoder, with_rows

BATCHES, EACH = 8, 2  # batches, and optimizer steps each
PPO: dict[str, Any] = {
    "episodes": 16 * BATCHES,
    "batch": 16,
    "minibatch": 8,
    "learning_rate": 3e-3,
    "value_learning_rate": 3e-3,
    "warmup_batches": 2,
    "ptx_examples": 1,
    "max_new_tokens": 8,
    "ema": 0.9,
    "evaluations": 2,
    "adaptive_kl": {"target": 0.1, "horizon": 100},
    "stop": {"kl": 1e3, "reward": 1e3, "length": 1e3},
}
NEEDS = ("policy_init", "reward_model", "prompts", "tokens")


def make_ppo_inputs(folder: Path) -> Path:
    """A policy, a reward model, prompts and tokens, all tiny."""
    make_inputs(folder)
    tokenizer = chat_tokenizer(Tokenizer.load(folder / "tokenizer"))
    shape = ModelConfig(
        layers=2, width=32, heads=2, context=32, vocab_size=tokenizer.vocab_size, dropout=0.1
    )
    convert.save(GPT(shape, seed=1), folder / "policy_init" / "model", tokenizer.end_of_text)
    tokenizer.save(folder / "policy_init" / "model")
    reward_model.save(RewardModel(GPT(shape, seed=2), seed=2), tokenizer, folder / "reward_model")
    (folder / "prompts").mkdir()
    splits = {"training": range(30), "held_out": range(100, 112)}
    for split, numbers in splits.items():
        texts = [f"the king {n}" for n in numbers] + [
            "Enter the king, who says: much more than there is room for. " * 3
        ]
        rows = [
            {"source": "s", "id": str(n), "messages": [{"role": "user", "content": text}]}
            for n, text in enumerate(texts)
        ]
        (folder / "prompts" / f"{split}.jsonl").write_text(
            "".join(f"{json.dumps(row)}\n" for row in rows)
        )
    return folder


def actors_of(start: GPT, reward: RewardModel, shared: bool = False) -> ActorCritic:
    """Copies of `start` and `reward`, without dropout."""
    critic = None if shared else copy.deepcopy(reward)
    if critic is not None:
        critic.gpt = with_rows(reward.gpt, 0, 0.0, 1)
    return ActorCritic(with_rows(start, 0, 0.0, 1), critic, start, reward)


def most_gathered(model: Path) -> int:
    """Elements of a stored model's embeddings, last norm and one block: all that a rank has of it
    at a time at ZeRO 3.
    """
    weights = load_file(model / "model.safetensors")
    names = {name.removeprefix("transformer."): name for name in weights}
    return sum(
        weights[stored].numel()
        for name, stored in names.items()
        if not name.startswith("h.") or name.startswith("h.0.")
    )


class CopyEngine:
    """Stands where an inference engine would: rank 0 takes the weights one by one into a model
    apart, answers every chunk with it, and writes tokens alone.
    """

    @torch.no_grad()
    def answer(
        self,
        policy: GPT,
        value_head: nn.Module | None,
        chunks: Sequence[Chunk],
        sampling: SamplingParams,
        execution: Execution,
    ) -> None:
        weights = {name: policy.weight(name).clone() for name, _ in policy.named_parameters()}
        if execution.rank == 0:
            apart = GPT(policy.config).eval()
            apart.load_state_dict(weights)
            for chunk in chunks:
                answers = answers_of(apart, None, chunk, sampling)
                replace(answers, log_probs=None, entropy=None, values=None).save(chunk.path)


@contextmanager
def watched(record: dict[str, Any], engine: str | None = None) -> Iterator[None]:
    """Within, `record` gets the most elements of gathered parameters that a rank had at once while
    it evaluated ("held"), and those of models that it drew, or read from a file, whole ("whole");
    and rollouts are answered by the class of this module named `engine`.
    """
    record["held"] = record["whole"] = 0
    put, initialise, read = ShardedModel._put, Decoder.initialise, folders._weights

    def drawn(self: Decoder, seed: int) -> None:
        initialise(self, seed)
        record["whole"] += sum(p.numel() for p in self.parameters() if not p.is_meta)

    def counted(self: ShardedModel, name: str, parameter: nn.Parameter) -> None:
        put(self, name, parameter)
        gathered = sum(p.numel() for p in self.model.parameters() if not p.is_meta)
        record["held"] = max(record["held"], gathered)

    def counted_whole(path: Path) -> tuple[dict[str, torch.Tensor], str]:
        weights, file = read(path)
        record["whole"] += sum(weight.numel() for weight in weights.values())
        return weights, file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardedModel, "_put", counted)
        patch.setattr(Decoder, "initialise", drawn)
        patch.setattr(folders, "_weights", counted_whole)
        if engine:
            patch.setattr(rollouts, "DecoderEngine", globals()[engine])
        yield


def one_run(
    output: Path, zero_stage: int = 1, engine: str | None = None, **section: Any
) -> dict[str, Any]:
    config = {"ppo": PPOSection.model_validate({**PPO, **section}).model_dump(mode="json")}
    how = {
        "zero_stage": zero_stage,
        "profile": {"micro_batch": 2},
    }  # of 16 episodes, so that a rank makes four chunks
    return {
        "what": "aligned",
        "output": output,
        "config": config,
        "given": {},
        "needs": NEEDS,
        "engine": engine,
        **how,
    }
