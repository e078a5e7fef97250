"""Comparisons a second against TRL's reward trainer: the same model, texts, pairs and batch, on the
same cores.

    python benchmarks/alignment_reward.py [--steps 8] [--json FILE]

A decoder of 6 × 384 with 8,192 tokens and random weights, two responses a prompt, prompts of 32 to
96 tokens and responses of 16 to 96, 16 pairs an optimizer step, float32. The texts are the same
tokens on both sides, laid out before the clock starts; TRL runs with the fastest of its settings that were tried once
each (`peers.py`): the batch whole and in parts. Each side runs in a process of its own, with all cores, and takes turns with the other (`--rounds`); the
first two steps of a run are not counted, and the ratio is of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bars import at_least, verdict  # noqa: E402
from benchmarks.peers import Settings, fastest, micro_batches  # noqa: E402

VOCABULARY, CONTEXT, BATCH, WARM = 8192, 256, 16, 2
TRIED_STEPS = 2  # that are counted of a try
SHAPE = {
    "family": "gpt2",
    "layers": 6,
    "width": 384,
    "heads": 6,
    "context": CONTEXT,
    "dropout": 0.0,
}
PROMPT, RESPONSE = (32, 96), (16, 96)  # tokens, at least and at most
RATE = 1e-5
SIDES = ("ours", "trl")
BAR = 1.25


# --- what both sides are given ---


def make_inputs(folder: Path, steps: int) -> None:
    """model/ (a folder that transformers loads, tokenizer and all) and pairs.json: prompt, chosen
    and rejected, as tokens.
    """
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
    model = GPT(ModelConfig.model_validate({**SHAPE, "vocab_size": tokenizer.vocab_size}), seed=1)
    convert.export(model, folder / "model", tokenizer.end_of_text)
    tokenizer.save(folder / "model")

    def text(limits: tuple[int, int]) -> list[int]:
        return [draw.randrange(1, VOCABULARY) for _ in range(draw.randint(*limits))]

    pairs = [
        {
            "prompt": text(PROMPT),
            "chosen": [*text(RESPONSE), tokenizer.end_of_text],
            "rejected": [*text(RESPONSE), tokenizer.end_of_text],
        }
        for _ in range(BATCH * (WARM + steps))
    ]
    (folder / "pairs.json").write_text(json.dumps(pairs))


def pairs_in(folder: Path) -> list[dict[str, list[int]]]:
    document: list[dict[str, list[int]]] = json.loads((folder / "pairs.json").read_text())
    return document


def compared_in(folder: Path) -> list[Any]:
    """The pairs as our objectives take them."""
    from gpt_model.rlhf.reward_model import EncodedRanking

    return [
        EncodedRanking(
            "",
            str(number),
            [item["prompt"] + item["chosen"], item["prompt"] + item["rejected"]],
            [len(item["chosen"]), len(item["rejected"])],
            [(0, 1)],
        )
        for number, item in enumerate(pairs_in(folder))
    ]


# --- the two sides ---


def train_ours(model: Any, objective: Any, steps: int) -> dict[str, float]:
    """Seconds of a step, in the training loop as the stages use it."""
    from gpt_model.progress import Silent
    from gpt_model.training.engine import Execution
    from gpt_model.training.loop import Hook, train
    from gpt_model.training.optimizer import TrainingSettings

    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    marks: list[float] = []

    def mark(step: int, model: Any) -> dict[str, float]:
        marks.append(time.perf_counter())
        return {}

    settings = TrainingSettings(
        WARM + steps, lambda step: RATE, betas=(0.9, 0.999), weight_decay=0.0
    )
    outcome = train(
        model,
        objective,
        settings,
        Execution(),
        checkpoints=None,
        progress=Silent(),
        hooks=[Hook([WARM, WARM + steps], mark)],
    )
    return {"seconds": (marks[1] - marks[0]) / steps, "loss": outcome.loss}


def run_ours(folder: Path, steps: int) -> dict[str, float]:
    from gpt_model import convert
    from gpt_model.rlhf.reward_model import RewardModel, RewardObjective
    from gpt_model.training.batching import EpochBatches

    compared = compared_in(folder)
    objective = RewardObjective(
        compared, EpochBatches([item.tokens for item in compared], BATCH, 1, seed=1)
    )
    return train_ours(RewardModel(convert.load(folder / "model")), objective, steps)


def trl_options(folder: Path, steps: int, settings: Settings) -> dict[str, Any]:
    """What its trainers are told alike, nothing but training; and `settings`, which were the
    fastest.
    """
    return {
        "output_dir": str(folder / "trl"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_steps": WARM + steps,
        "max_length": CONTEXT,
        "save_strategy": "no",
        "report_to": [],
        "logging_strategy": "no",
        "disable_tqdm": True,
        "weight_decay": 0.0,
        "dataloader_pin_memory": False,
        **settings,
    }


def timed(trainer: Any, steps: int) -> dict[str, float]:
    """Seconds of a step of a trainer of TRL's."""
    import transformers

    marks: list[float] = []

    class Mark(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            marks.append(time.perf_counter())

    trainer.add_callback(Mark())
    loss = trainer.train().training_loss
    return {"seconds": (marks[-1] - marks[WARM - 1]) / steps, "loss": loss}


def run_trl(folder: Path, steps: int, settings: Settings) -> dict[str, float]:
    import datasets
    import transformers
    import trl

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.eos_token
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "model", num_labels=1, dtype="float32"
    )
    rows = datasets.Dataset.from_list(
        [
            {
                "chosen_ids": pair["prompt"] + pair["chosen"],
                "rejected_ids": pair["prompt"] + pair["rejected"],
            }
            for pair in pairs_in(folder)
        ]
    )
    args = trl.RewardConfig(**trl_options(folder, steps, settings))
    return timed(
        trl.RewardTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer),
        steps,
    )


# --- side by side ---


def measure(
    script: str, folder: Path, side: str, steps: int, settings: Settings
) -> dict[str, float]:
    """A side in a process of its own. `settings`: TRL's."""
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    command = [
        sys.executable,
        script,
        "--side",
        side,
        "--folder",
        str(folder),
        "--steps",
        str(steps),
        "--settings",
        json.dumps(settings),
    ]
    done = subprocess.run(
        command, env={**os.environ, **offline}, stdout=subprocess.PIPE, text=True, check=True
    )
    document: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return document


def compare(
    script: str, told: str, unit: str, sides: Mapping[str, Any], tries: Sequence[Settings]
) -> int:
    """The command line of either benchmark: `sides` run one side each. `tries`: TRL's settings, of
    which the fastest stands against ours.
    """
    parser = argparse.ArgumentParser(description=told.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help="that are counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        extra = [given.settings] if given.side == "trl" else []
        print(json.dumps(sides[given.side](given.folder, given.steps, *extra)))
        return 0
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="preferences-") as folder:
        make_inputs(Path(folder), max(given.steps, TRIED_STEPS))
        settings = fastest(
            tries, lambda tried: measure(script, Path(folder), "trl", TRIED_STEPS, tried)["seconds"]
        )
        for number in range(given.rounds):
            for side in sorted(SIDES, reverse=number % 2 == 1):
                results[side].append(measure(script, Path(folder), side, given.steps, settings))
    rates = {
        side: BATCH / statistics.median(run["seconds"] for run in runs)
        for side, runs in results.items()
    }
    ratio = rates["ours"] / rates["trl"]
    print(
        f"{unit}/s: {rates['ours']:.1f} / TRL {rates['trl']:.1f} = {ratio:.2f} "
        f"{at_least(f'{unit}/s: ratio', ratio, BAR)}",
        flush=True,
    )
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def main() -> int:
    sides = {"ours": run_ours, "trl": run_trl}
    tries = micro_batches(BATCH)
    if status := compare(__file__, __doc__, "reward-model comparisons", sides, tries):
        return status
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
