"""How much reading a question's context once buys: our lm_eval adapter against lm_eval's own
Hugging Face backend, same tokens a batch.

    python benchmarks/evaluation_speed.py [--model DIR] [--examples 200] [--rounds 3]

The suite is multiple_choice; without --model, a GPT-2 of tiny's shape with random weights and
GPT-2's vocabulary cut to 2,048 (speed does not depend on what the weights are). lm_eval's backend
has the fastest of five batch sizes, tried once each. Both answer
everything in turn, several rounds; prints median seconds and their ratio, and the largest
difference of their log-probabilities.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from lm_eval.models.huggingface import HFLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from assets.recipe.recipe import EvaluationSection  # noqa: E402
from assets.stages.zero_shot import ZERO_SHOT, zero_shot_config  # noqa: E402
from assets.store.home import downloads_folder  # noqa: E402
from benchmarks.bars import at_least, at_most, verdict  # noqa: E402
from benchmarks.peers import Settings, fastest  # noqa: E402
from gpt_model import convert  # noqa: E402
from gpt_model.config import ModelConfig  # noqa: E402
from gpt_model.data import documents  # noqa: E402
from gpt_model.evaluation.adapters.registry import TaskContext  # noqa: E402
from gpt_model.evaluation.evaluate import evaluate, write_tasks  # noqa: E402
from gpt_model.evaluation.lm_eval_adapter import GPTLM  # noqa: E402
from gpt_model.evaluation.suites import suite_tasks  # noqa: E402
from gpt_model.evaluation.tasks import TaskRows, rows_of  # noqa: E402
from gpt_model.progress import Silent  # noqa: E402
from gpt_model.tokenizer import Tokenizer  # noqa: E402
from gpt_model.transformer import GPT  # noqa: E402

BATCH_TOKENS = 4096
BARS = {"ratio": 1.5, "nats": 1e-4}


def the_rows(corpus: Path, context: int, limit: int, encode: Any) -> list[TaskRows]:
    """The suite's tasks. The corpus is empty: these tasks take nothing from it."""
    documents.write_index(corpus, {})
    recipe: Any = SimpleNamespace(
        evaluation=EvaluationSection(suites=["multiple_choice"]), corpus=corpus, split_seed=0
    )
    config = ZERO_SHOT.pin(zero_shot_config(recipe, corpus), corpus)
    task_context = TaskContext(corpus, 0, downloads_folder(), encode, context, Silent())
    tasks = suite_tasks("multiple_choice", config["suites"]["multiple_choice"])
    return [rows for task in tasks for rows in rows_of(task, task_context, limit)]


def random_model(folder: Path, texts: list[str]) -> None:
    tokenizer = Tokenizer.train(texts, vocab_size=2048)
    tokenizer.save(folder)
    model = GPT(
        ModelConfig(layers=4, width=192, heads=4, context=256, vocab_size=tokenizer.vocab_size)
    )
    convert.save(model, folder, tokenizer.end_of_text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model folder with its tokenizer")
    parser.add_argument("--examples", type=int, default=200, help="questions a task")
    parser.add_argument("--rounds", type=int, default=3)
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
            len(tokenizer.encode(f"{row['question']} {option}"))
            for task in tasks
            for row in task.rows
            for option in row["options"]
        )
        sequences = max(
            1, BATCH_TOKENS // min(longest, model.config.context)
        )  # as many tokens in their largest batch as in ours: the middle of what is tried
        theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=sequences)

        def tried(settings: Settings) -> float:
            theirs.batch_size_per_gpu = settings["batch_size"]
            started = time.perf_counter()
            evaluate(theirs, work / "tasks", names)
            return time.perf_counter() - started

        sizes = [{"batch_size": max(1, sequences * part // 4)} for part in (1, 2, 4, 8, 16)]
        theirs.batch_size_per_gpu = fastest(sizes, tried)["batch_size"]
        backends: dict[str, Any] = {
            "lm_eval's Hugging Face backend": theirs,
            "ours": GPTLM(model, tokenizer, batch_tokens=BATCH_TOKENS),
        }
        seconds: dict[str, list[float]] = {name: [] for name in backends}
        logprobs = {}
        for number in range(arguments.rounds):
            for name in sorted(backends, reverse=number % 2 == 1):
                started = time.perf_counter()
                results = evaluate(backends[name], work / "tasks", names)
                seconds[name].append(time.perf_counter() - started)
                logprobs[name] = np.array(
                    [
                        pair[0]
                        for task in names
                        for sample in results["samples"][task]
                        for pair in sample["filtered_resps"]
                    ]
                )
    others, ours = (logprobs[name] for name in backends)
    print(
        f"{len(ours):,} answers of {sum(len(task.rows) for task in tasks):,} questions, "
        f"{BATCH_TOKENS:,} tokens a batch"
    )
    slow, fast = (statistics.median(seconds[name]) for name in backends)
    for name, value in zip(backends, (slow, fast), strict=True):
        print(f"{name}: {value:.1f} s")
    apart = float(np.abs(others - ours).max())
    print(f"ratio: {slow / fast:.2f} {at_least('ratio', slow / fast, BARS['ratio'])}")
    print(
        f"largest difference of a log-probability: {apart:.1e} nats "
        f"{at_most('log-probability apart', apart, BARS['nats'])}"
    )
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
