"""What the stage `aligned` needs, all tiny: a policy, a reward model, prompts and tokens. For the
tests of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training_ranks import make_inputs

from assets.recipe.sections import PPOSection
from gpt_model import convert
from gpt_model.config import ModelConfig
from gpt_model.rlhf import reward_model
from gpt_model.rlhf.chat_template import chat_tokenizer
from gpt_model.rlhf.reward_model import RewardModel
from gpt_model.tokenizer import Tokenizer
from gpt_model.transformer import GPT

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


def one_run(output: Path, zero_stage: int = 1, **section: Any) -> dict[str, Any]:
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
        **how,
    }
