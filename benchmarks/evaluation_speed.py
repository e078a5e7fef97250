"""How much reading a question's context once buys: our lm_eval adapter against lm_eval's own Hugging Face backend, same tokens a batch.

    python benchmarks/evaluation_speed.py [--model DIR] [--examples 200]

The suite is multiple_choice; without --model, a GPT-2 of tiny's shape with random weights and GPT-2's vocabulary cut to 2,048 (speed does
not depend on what the weights are). Prints seconds each and their ratio, and checks that both give the same log-probabilities.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from lm_eval.models.huggingface import HFLM

from assets.evaluation import ZERO_SHOT, zero_shot_config
from gpt_model import convert
from gpt_model.config import ModelConfig
from gpt_model.data import documents
from gpt_model.data.sources import downloads_folder
from gpt_model.evaluation.evaluate import evaluate, write_tasks
from gpt_model.evaluation.examples import Material, TaskRows, rows_of
from gpt_model.evaluation.harness import GPTLM
from gpt_model.evaluation.suites import suite_tasks
from gpt_model.progress import Silent
from gpt_model.tokenizer import Tokenizer
from gpt_model.transformer import GPT

BATCH_TOKENS = 4096


def the_rows(corpus: Path, context: int, limit: int, encode: Any) -> list[TaskRows]:
    """The suite's tasks. The corpus is empty: these tasks take nothing from it."""
    documents.write_index(corpus, {})
    recipe: Any = SimpleNamespace(
        name="bench", evaluation=SimpleNamespace(suites=["multiple_choice"], examples={}), corpus=SimpleNamespace(seed=0)
    )
    config = ZERO_SHOT.pin(zero_shot_config(recipe), corpus)
    material = Material(corpus, 0, downloads_folder(), encode, context, Silent())
    tasks = suite_tasks("multiple_choice", config["suites"]["multiple_choice"])
    return [rows for task in tasks for rows in rows_of(task, material, limit)]


def random_model(folder: Path, texts: list[str]) -> None:
    tokenizer = Tokenizer.train(texts, vocab_size=2048)
    tokenizer.save(folder)
    model = GPT(ModelConfig(layers=4, width=192, heads=4, context=256, vocab_size=tokenizer.vocab_size))
    convert.save(model, folder, tokenizer.end_of_text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model folder with its tokenizer")
    parser.add_argument("--examples", type=int, default=200, help="questions a task")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        folder = arguments.model or work / "model"
        if not arguments.model:
            rows = the_rows(work, 256, 10**6, lambda text: [0])
            random_model(folder, [json.dumps(row) for task in rows for row in task.rows])
        model, tokenizer = convert.load(folder), Tokenizer.load(folder)
        tasks = the_rows(work, model.config.context, arguments.examples, tokenizer.encode)
        write_tasks(work / "tasks", tasks)
        names = [task.full_name for task in tasks]
        longest = max(
            len(tokenizer.encode(f"{row['question']} {option}")) for task in tasks for row in task.rows for option in row["options"]
        )
        sequences = max(1, BATCH_TOKENS // min(longest, model.config.context))  # as many tokens in their largest batch as in ours
        backends: dict[str, Any] = {
            "lm_eval's Hugging Face backend": HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=sequences),
            "ours": GPTLM(model, tokenizer, batch_tokens=BATCH_TOKENS),
        }
        seconds, logprobs = {}, {}
        for name, backend in backends.items():
            started = time.perf_counter()
            results = evaluate(backend, work / "tasks", names)
            seconds[name] = time.perf_counter() - started
            logprobs[name] = np.array(
                [pair[0] for task in names for sample in results["samples"][task] for pair in sample["filtered_resps"]]
            )
    theirs, ours = logprobs.values()
    print(f"{len(ours):,} answers of {sum(len(task.rows) for task in tasks):,} questions, {BATCH_TOKENS:,} tokens a batch")
    for name, value in seconds.items():
        print(f"{name}: {value:.1f} s")
    slow, fast = seconds.values()
    print(f"ratio: {slow / fast:.2f}; largest difference of a log-probability: {np.abs(theirs - ours).max():.1e} nats")


if __name__ == "__main__":
    main()
