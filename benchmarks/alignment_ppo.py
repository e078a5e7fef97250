"""PPO episodes a second against TRL's RLOO trainer: the same policy, reward, lengths, episodes and
updates, on the same cores.

    python benchmarks/alignment_ppo.py [--batches 4] [--json FILE]

A policy of 6 × 384 with 8,192 tokens and random weights, prompts of 32 tokens, answers of exactly
64 (the end is made all but impossible), float32. A batch is 64 episodes, learnt from in 4 optimizer
steps of 16, with a KL penalty to a reference. The reward is one function of the tokens. What is
counted is everything: answers, log-probabilities, rewards, updates. Each side runs in a process of
its own, with all cores, and takes turns with the others (`--rounds`); the first batch of a run is
not counted, and ratios are of medians. RLOO has no value model: the bar is held against PPO whose
values are a head on the policy's trunk. What one of the policy's size costs is told beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bars import at_least, verdict  # noqa: E402
from benchmarks.peers import Settings, fastest, micro_batches  # noqa: E402

PROMPT, NEW, BATCH, MINIBATCH, VOCABULARY = 32, 64, 64, 16, 8192
SHAPE = {"family": "gpt2", "layers": 6, "width": 384, "heads": 6, "context": 128, "dropout": 0.0}
RATE, KL = 1e-5, 0.05
SIDES = ("value model", "shared trunk", "trl")
BAR = 1.5


def make_inputs(folder: Path, shape: Mapping[str, Any] = SHAPE) -> None:
    """policy/ (a folder that transformers loads, tokenizer and all) and prompts.json (text of
    exactly PROMPT tokens each).
    """
    import torch

    from gpt_model import GPT, ModelConfig, convert
    from gpt_model.tokenizer import Tokenizer

    draw = random.Random(0)
    words = [
        "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9)))
        for _ in range(20_000)
    ]
    tokenizer = Tokenizer.train(
        [" ".join(draw.choices(words, k=500)) for _ in range(300)], vocab_size=VOCABULARY
    )
    model = GPT(ModelConfig.model_validate({**shape, "vocab_size": tokenizer.vocab_size}), seed=1)
    # the end's logit is -50 wherever it is asked for: one of the states is 1 there, and only the
    # end looks at it
    with torch.no_grad():
        model.ln_f.weight[0], model.ln_f.bias[0] = 0.0, 1.0  # type: ignore[index,operator]
        model.wte.weight[:, 0] = 0.0
        model.wte.weight[tokenizer.end_of_text] = 0.0
        model.wte.weight[tokenizer.end_of_text, 0] = -50.0
    convert.export(model, folder / "policy", tokenizer.end_of_text)
    tokenizer.save(folder / "policy")
    prompts: list[str] = []
    while len(prompts) < 4 * BATCH:
        text = tokenizer.decode(tokenizer.encode(" ".join(draw.choices(words, k=60)))[:PROMPT])
        if len(tokenizer.encode(text)) == PROMPT:
            prompts.append(text)
    (folder / "prompts.json").write_text(json.dumps(prompts))


def liked(tokens: list[int]) -> float:
    """The reward: the share of an answer's tokens that are below a third of the vocabulary."""
    return sum(token < VOCABULARY // 3 for token in tokens) / len(tokens)


def run_ours(
    folder: Path,
    side: str,
    batches: int,
    device: Literal["cpu", "cuda"] = "cpu",
    zero_stage: Literal[1, 3] = 1,
) -> dict[str, float]:
    """Seconds a batch, and the mean length of an answer."""
    import torch
    from torch import Tensor

    from gpt_model import convert
    from gpt_model.ops.varlen import PackedSequences
    from gpt_model.progress import Silent
    from gpt_model.rlhf.ppo import ActorCritic, LossConfig, PPOObjective
    from gpt_model.rlhf.reward_model import RewardModel
    from gpt_model.rlhf.rollout_engine import SamplingParams
    from gpt_model.rlhf.rollouts import Limits, RolloutConfig, Rollouts
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.training.engine import Execution
    from gpt_model.training.loop import Hook, train
    from gpt_model.training.optimizer import TrainingSettings
    from gpt_model.training.schedules import warmup_constant

    class Liking(RewardModel):
        def rewards(self, rows: PackedSequences) -> Tensor:
            return torch.tensor(
                [
                    liked(text[PROMPT : PROMPT + NEW].tolist())
                    for text in rows.tokens.split(list(rows.lengths))
                ]
            )

    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    tokenizer, start = Tokenizer.load(folder / "policy"), convert.load(folder / "policy")
    prompts = [tokenizer.encode(text) for text in json.loads((folder / "prompts.json").read_text())]
    config = RolloutConfig(
        prompts=prompts,
        sampling=SamplingParams(tokenizer.end_of_text, NEW, 1.0),
        batch_size=BATCH,
        batches=batches + 1,
        steps_per_batch=BATCH // MINIBATCH,
        kl_coefficient=KL,
        unfinished_penalty=0.0,
        kl_target=None,
        gae_lambda=0.95,
        ema_decay=0.992,
        seed=1,
        limits=Limits(math.inf, 1e9, math.inf),
    )
    marks: list[float] = []
    execution = Execution(device=device, zero_stage=zero_stage)
    with tempfile.TemporaryDirectory() as scratch:
        rollouts = Rollouts(Path(scratch), None, config, execution)
        objective = PPOObjective(
            rollouts,
            MINIBATCH,
            1.0,
            LossConfig(0.2, 0.2, 0.1, 0.0),
            None,
            execution,
            1,
            start.config.context,
        )

        def between(step: int, model: Any) -> dict[str, float]:
            marks.append(
                time.perf_counter()
            )  # a batch begins as it is made, and ends where the next begins
            return rollouts.between(step, model.rollout_models())

        critic, reward = (Liking(convert.load(folder / "policy")) for _ in range(2))
        model = ActorCritic(
            start,
            None if side == "shared trunk" else critic,
            convert.load(folder / "policy"),
            reward,
        )
        steps = (batches + 1) * config.steps_per_batch
        settings = TrainingSettings(
            steps,
            warmup_constant(RATE, 0, config.steps_per_batch),
            betas=(0.9, 0.95),
            weight_decay=0.0,
        )
        hooks = [Hook(rollouts.steps, between, "by part")]
        train(
            model, objective, settings, execution, checkpoints=None, progress=Silent(), hooks=hooks
        )
        metrics = rollouts.batch(batches).metrics
    return {
        "seconds": (marks[-1] - marks[1]) / batches,
        "length": metrics["length"],
        "reward": metrics["reward"],
    }


def run_trl(folder: Path, batches: int, settings: Settings) -> dict[str, float]:
    """The same of TRL's trainer with the fastest of its settings: one generation of BATCH episodes, two for each prompt, for every
    BATCH / MINIBATCH updates.
    """
    import datasets
    import transformers
    import trl

    lengths: list[int] = []
    rewards: list[float] = []
    marks: list[float] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(len(completion_id) for completion_id in completion_ids)
        rewards[:] = [liked(completion_id) for completion_id in completion_ids]
        return list(rewards)

    class Mark(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % (BATCH // MINIBATCH) == 0:
                marks.append(time.perf_counter())

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    args = trl.RLOOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        steps_per_generation=BATCH // settings["per_device_train_batch_size"],
        num_generations=2,
        max_completion_length=NEW,
        temperature=1.0,
        beta=KL,
        num_iterations=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_steps=(batches + 1) * (BATCH // MINIBATCH),
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
        weight_decay=0.0,
        adam_beta2=0.95,
        model_init_kwargs={"dtype": "float32"},
        generation_kwargs={"min_new_tokens": NEW, "use_cache": True},
        dataloader_pin_memory=False,
        **settings,
    )
    rows = datasets.Dataset.from_list(
        [{"prompt": text} for text in json.loads((folder / "prompts.json").read_text())]
    )
    trainer = trl.RLOOTrainer(
        model=str(folder / "policy"),
        reward_funcs=reward,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[Mark()],
    )
    trainer.train()
    return {
        "seconds": (marks[-1] - marks[0]) / batches,
        "length": sum(lengths) / len(lengths),
        "reward": sum(rewards) / len(rewards),
        "answered": len(lengths) / (batches + 1),
    }


def measure(folder: Path, side: str, batches: int, settings: Settings) -> dict[str, float]:
    """A side in a process of its own. `settings`: TRL's."""
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--folder",
        str(folder),
        "--batches",
        str(batches),
        "--settings",
        json.dumps(settings),
    ]
    done = subprocess.run(
        command, env={**os.environ, **offline}, stdout=subprocess.PIPE, text=True, check=True
    )
    document: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return document


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=4, help="that are counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        metrics = (
            run_trl(given.folder, given.batches, given.settings)
            if given.side == "trl"
            else run_ours(given.folder, given.side, given.batches)
        )
        print(json.dumps(metrics))
        return 0
    with tempfile.TemporaryDirectory(prefix="ppo-") as folder:
        make_inputs(Path(folder))
        settings = fastest(
            micro_batches(MINIBATCH),
            lambda tried: measure(Path(folder), "trl", 1, tried)["seconds"],
        )
        results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for number in range(given.rounds):
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                results[side].append(measure(Path(folder), side, given.batches, settings))
    seconds = {
        side: statistics.median(run["seconds"] for run in runs) for side, runs in results.items()
    }
    for side, runs in results.items():
        print(
            f"{side}: {BATCH / seconds[side]:.2f} episodes/s, answers of {runs[0]['length']:.1f} "
            "tokens",
            flush=True,
        )
    ratios = {side: seconds["trl"] / seconds[side] for side in SIDES}
    print(
        f"PPO with a shared trunk / TRL's RLOO: {ratios['shared trunk']:.2f} "
        f"{at_least('PPO: ratio', ratios['shared trunk'], BAR)}"
    )
    print(
        "PPO with a value model beside it / TRL's RLOO, which has none: "
        f"{ratios['value model']:.2f}",
        flush=True,
    )
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
