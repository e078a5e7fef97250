"""Supervised tuning, tokens a second, against TRL's SFTTrainer: the same model, dialogues and
batch, on the same cores.

    python benchmarks/alignment_sft.py [--steps 12] [--json FILE]

A model of 6 × 384 with 8,192 tokens and random weights, float32, without dropout, 32 dialogues an
optimizer step. Dialogues are made up: a question of 10 to 60 tokens and an answer whose length is
log-normal about 50, one in five with a second exchange. The loss is of the assistant's tokens alone
on both sides. TRL runs with the fastest of its settings that were tried once each (`peers.py`): the
step's dialogues whole or in parts, padded or packed in one row without padding. Each side runs in a process of its own, with all cores, three times in turn, and the
medians are compared; of a run the first two steps are not counted. Tokens are the dialogues' own:
what pads them is not counted.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bars import at_least, verdict  # noqa: E402
from benchmarks.peers import Settings, fastest, micro_batches  # noqa: E402

BATCH, VOCABULARY, NOT_COUNTED, ROUNDS = 32, 8192, 2, 3
SHAPE = {"family": "gpt2", "layers": 6, "width": 384, "heads": 6, "context": 512, "dropout": 0.0}
RATE = 1e-4
SIDES = ("ours", "trl")
BAR = 1.25


def make_inputs(folder: Path, steps: int) -> None:
    """model/ (a folder that transformers loads, tokenizer and all) and dialogues.json, as many as
    the steps take.
    """
    from gpt_model import GPT, ModelConfig, convert
    from gpt_model.rlhf.chat_template import chat_tokenizer
    from gpt_model.tokenizer import Tokenizer

    draw = random.Random(0)
    words = [
        "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9)))
        for _ in range(20_000)
    ]
    tokenizer = chat_tokenizer(
        Tokenizer.train(
            [" ".join(draw.choices(words, k=500)) for _ in range(300)], vocab_size=VOCABULARY
        )
    )
    model = GPT(ModelConfig.model_validate({**SHAPE, "vocab_size": tokenizer.vocab_size}), seed=1)
    convert.export(model, folder / "model", tokenizer.end_of_text)
    tokenizer.save(folder / "model")

    def text(tokens: float) -> str:
        return tokenizer.decode(
            tokenizer.encode(" ".join(draw.choices(words, k=200)))[: round(tokens)]
        ).strip()

    def exchange() -> list[dict[str, str]]:
        answer = text(min(150.0, max(3.0, draw.lognormvariate(3.9, 0.6))))
        return [
            {"role": "user", "content": text(draw.randint(10, 60))},
            {"role": "assistant", "content": answer},
        ]

    dialogues = [
        exchange() + (exchange() if draw.random() < 0.2 else []) for _ in range(steps * BATCH)
    ]
    (folder / "dialogues.json").write_text(json.dumps(dialogues))


def run_ours(folder: Path, steps: int) -> dict[str, float]:
    """Tokens a second, and the first step's loss."""
    from gpt_model import convert
    from gpt_model.progress import Silent
    from gpt_model.rlhf.chat_template import ChatTemplate
    from gpt_model.rlhf.dialogue import dialogue
    from gpt_model.rlhf.sft import SFTObjective, encode_dialogues
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.training.batching import EpochBatches
    from gpt_model.training.engine import Execution
    from gpt_model.training.loop import train
    from gpt_model.training.optimizer import TrainingSettings

    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    marks: list[float] = []
    losses: list[float] = []

    class Marks(Silent):
        def metrics(self, step: int, values: Any) -> None:
            losses.append(values["loss"])

        def advance(self, done: float, total: float, unit: str) -> None:
            marks.append(time.perf_counter())

    template = ChatTemplate(Tokenizer.load(folder / "model"))
    document = json.loads((folder / "dialogues.json").read_text())
    encoded, _ = encode_dialogues(
        [dialogue(messages) for messages in document], template, int(str(SHAPE["context"]))
    )
    batches = EpochBatches([len(item.tokens) for item in encoded], BATCH, 1, 1)
    settings = TrainingSettings(steps, lambda _: RATE, betas=(0.9, 0.999), weight_decay=0.0)
    train(
        convert.load(folder / "model"),
        SFTObjective(encoded, batches, 0.0),
        settings,
        Execution(),
        checkpoints=None,
        progress=Marks(),
    )
    tokens = sum(
        batches.lengths[item] for step in range(NOT_COUNTED, steps) for item in batches.items(step)
    )
    return {
        "tokens_per_second": tokens / (marks[-1] - marks[NOT_COUNTED - 1]),
        "loss": losses[0],
        "tokens": sum(batches.lengths),
    }


# A step's dialogues whole and in parts, padded, or one after another in a row without padding
TRIES = [
    {**settings, "padding_free": free}
    for free in (False, True)
    for settings in micro_batches(BATCH)
]
TRIED_STEPS = NOT_COUNTED + 2


def run_trl(folder: Path, steps: int, settings: Settings) -> dict[str, float]:
    """The same of TRL's trainer with these settings."""
    import datasets
    import torch
    import transformers
    import trl

    marks: list[float] = []
    tokens: list[int] = []

    class Mark(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            marks.append(time.perf_counter())

    class Counting(trl.SFTTrainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *others: Any) -> Any:
            mask = inputs.get("attention_mask")  # none of a row without padding
            tokens.append(int(inputs["input_ids"].numel() if mask is None else mask.sum()))
            return super().training_step(model, inputs, *others)

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.eos_token
    args = trl.SFTConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        max_length=None if settings["padding_free"] else int(str(SHAPE["context"])),
        assistant_only_loss=True,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_steps=steps,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        weight_decay=0.0,
        dataloader_pin_memory=False,
        **settings,
    )
    rows = datasets.Dataset.from_list(
        [{"messages": dialogue} for dialogue in json.loads((folder / "dialogues.json").read_text())]
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    trainer = Counting(
        model=model, args=args, train_dataset=rows, processing_class=tokenizer, callbacks=[Mark()]
    )
    trainer.train()
    counted = tokens[NOT_COUNTED * settings["gradient_accumulation_steps"] :]
    return {
        "tokens_per_second": sum(counted) / (marks[-1] - marks[NOT_COUNTED - 1]),
        "loss": float(next(item["loss"] for item in trainer.state.log_history if "loss" in item)),
        "tokens": sum(tokens),
    }


def measure(folder: Path, side: str, steps: int, settings: Settings) -> dict[str, float]:
    """A side in a process of its own. `settings`: TRL's."""
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }
    command = [
        sys.executable,
        __file__,
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps",
        type=int,
        default=12,
        help=f"optimizer steps, of which the first {NOT_COUNTED} are not counted",
    )
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(
            json.dumps(
                run_ours(given.folder, given.steps)
                if given.side == "ours"
                else run_trl(given.folder, given.steps, given.settings)
            )
        )
        return 0
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="sft-") as folder:
        make_inputs(Path(folder), max(given.steps, TRIED_STEPS))
        settings = fastest(
            TRIES,
            lambda tried: (
                1e3 / measure(Path(folder), "trl", TRIED_STEPS, tried)["tokens_per_second"]
            ),
        )
        for turn in range(ROUNDS):
            for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                results[side].append(measure(Path(folder), side, given.steps, settings))
    rates = {
        side: statistics.median(item["tokens_per_second"] for item in result)
        for side, result in results.items()
    }
    for side, outcome in results.items():
        print(
            f"{side}: {rates[side]:,.0f} tokens/s, {outcome[0]['tokens']:,.0f} tokens, first loss "
            f"{outcome[0]['loss']:.4f}",
            flush=True,
        )
    ratio = rates["ours"] / rates["trl"]
    print(
        f"supervised tuning / TRL's SFTTrainer: {ratio:.2f} {at_least('SFT: ratio', ratio, BAR)}",
        flush=True,
    )
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
