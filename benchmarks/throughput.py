"""Training tokens a second inside the pipeline, against a plain `transformers` GPT-2 loop on the
same cores: `make bench`.

- pipeline: the stage `pretrained` itself, in ranks with the worker's own environment: DeepSpeed at
  the profile's ZeRO stage, sampler, metrics into the journal, checkpoints. Held-out evaluation is
  left out of the time, as the stage itself leaves it out.
- plain: one process with every core, `GPT2LMHeadModel` with SDPA, fused AdamW, gradient clipping,
  the same batch, dropout, shape and precision; of several micro-batches the fastest. Once as a user
  would run it, once with the pipeline's allocator settings.

All run in turn, several rounds, and ratios are of medians. The first steps of each are left out.
Utilisation is model FLOP/s ÷ matrix-product peak, model FLOPs being 6N + 12·L·d·T a token (PaLM,
appendix B), the peak measured by the same ranks at once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from assets.launch.launcher import MALLOC, worker_environment  # noqa: E402
from assets.recipe.profile import Profile, load_profile  # noqa: E402
from assets.recipe.recipe import load_recipe  # noqa: E402
from benchmarks.bars import at_least, at_most, verdict  # noqa: E402

SKIPPED_STEPS = 2
PLAIN_MICRO_BATCHES = (4, 8, 16, 32)  # sequences of 256 tokens
BARS = {"as a user would run it": 1.25, "with our allocator settings": 1.10}
UTILISATION_BAR = 0.85


def cases(steps: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Shape, vocabulary, batch, steps and precision of each case; both sides take the same. tiny:
    as its recipe has them.
    """
    tiny = load_recipe("tiny")
    larger = {
        "family": "gpt2",
        "layers": 6,
        "width": 384,
        "heads": 6,
        "context": 256,
        "dropout": 0.0,
    }
    values = {
        "model": tiny.model.model_dump(mode="json"),
        "vocab_size": tiny.tokenizer.vocab_size,
        "steps": steps["tiny"],
        "batch_tokens": tiny.pretraining.batch_tokens,
        "precision": tiny.pretraining.precision,
    }
    return {
        "tiny": values,
        "tiny, float32": {
            **values,
            "steps": steps["6x384"],
            "batch_tokens": 8192,
            "precision": "float32",
        },
        "6x384": {
            "model": larger,
            "vocab_size": 8192,
            "steps": steps["6x384"],
            "batch_tokens": 8192,
            "precision": "float32",
        },
    }


def make_inputs(folder: Path, vocab_size: int, words_known: int = 20_000) -> None:
    """A tokenizer of `vocab_size` and tokens, from made-up words: enough to have that many merges."""
    from gpt_model.data.shards import SourceTexts, write
    from gpt_model.tokenizer import Tokenizer

    draw = random.Random(0)
    words = [
        "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9)))
        for _ in range(words_known)
    ]
    documents = [" ".join(draw.choices(words, k=500)) for _ in range(300)]
    tokenizer = Tokenizer.train(documents, vocab_size=vocab_size)
    tokenizer.save(folder / "tokenizer")
    write(
        folder / "tokens",
        {"words": SourceTexts(1.0, {"training": documents[:-2], "held_out": documents[-2:]})},
        tokenizer,
    )


# --- the two contestants, each in processes of its own ---


def run_pipeline(inputs: Path, case: dict[str, Any], profile: Profile) -> dict[str, float]:
    """The stage's own metrics, and tokens a second without the first steps."""
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        job = Path(folder) / "job.json"
        job.write_text(
            json.dumps(
                {
                    "inputs": str(inputs),
                    "case": case,
                    "profile": profile.model_dump(mode="json"),
                    "output": folder,
                }
            )
        )
        environment = worker_environment(
            profile.device, profile.processes, profile.threads_each()
        ) | {"MASTER_PORT": str(port)}
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, "--rank", str(job)],
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                text=True,
            )
            for rank in range(profile.processes)
        ]
        printed = ranks[0].communicate()[0]
        if any(rank.wait() for rank in ranks):
            raise SystemExit(f"a rank failed: {printed}")
    return dict(json.loads(printed.splitlines()[-1]))


def pipeline_rank(job_path: Path) -> NoReturn:
    """One rank of the stage; rank 0 prints what came of it."""
    from assets.contract import Artifact
    from assets.stages.pretraining import PRETRAINED
    from assets.tracking.event_log import EventWriter
    from assets.worker import LoggedProgress

    job = json.loads(job_path.read_text(encoding="utf-8"))
    case, output, rank = job["case"], Path(job["output"]), int(os.environ["RANK"])
    profile = Profile.model_validate(job["profile"])
    spool = EventWriter(output / "journal.jsonl") if rank == 0 else None
    progress = LoggedProgress(spool, None, rank, profile.processes, profile)
    reported: list[tuple[int, float]] = []
    say = progress.metrics

    def metrics(step: int, values: dict[str, float]) -> None:
        reported.append((step, values["tokens_per_second"]))
        say(step, values)

    progress.metrics = metrics  # type: ignore[method-assign, assignment]
    section = {
        "tokens": case["steps"] * case["batch_tokens"],
        "batch_tokens": case["batch_tokens"],
        "learning_rate": 1e-3,
        "final_learning_rate": 0.1,
        "warmup_tokens": case["batch_tokens"],
        "weight_decay": 0.1,
        "betas": [0.9, 0.95],
        "gradient_clip": 1.0,
        "precision": case["precision"],
        "seed": 1,
        "evaluations": 1,
        "evaluation_tokens": 1024,
        "samples": 0,
    }
    inputs = {
        name: Artifact(Path(job["inputs"]) / name, name, "", "", {}, {})
        for name in ("tokens", "tokenizer")
    }
    result = PRETRAINED.run(
        {"model": case["model"], "pretraining": section}, inputs, output, progress
    )
    results = [rate for step, rate in reported if step > SKIPPED_STEPS]
    rate = statistics.harmonic_mean(results)
    utilisation = result["model_flops_utilisation"] * rate / result["tokens_per_second"]
    print(
        json.dumps(
            {
                "tokens_per_second": rate,
                "utilisation": utilisation,
                "data_sheet_utilisation": (
                    rate / result["tokens_per_second"] * result.get("data_sheet_utilisation", 0.0)
                ),
                "bits_per_byte": result["held_out/total_bpb"],
                "peak_memory_bytes": result["peak_memory_bytes"],
                "peak_flops": result["peak_flops"],
                "stall": result["checkpoint_stall_seconds"],
            }
        ),
        flush=True,
    )
    os._exit(0)


def run_plain(
    case: dict[str, Any], micro_batch: int, steps: int, environment: dict[str, str]
) -> float:
    """Tokens a second of the plain loop in a process with these variables."""
    job = json.dumps({"case": case, "micro_batch": micro_batch, "steps": steps})
    done = subprocess.run(
        [sys.executable, __file__, "--plain", job],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


def plain_process(job: dict[str, Any]) -> NoReturn:
    """What anyone would write."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model_shape, vocabulary = job["case"]["model"], job["case"]["vocab_size"]
    dropout = model_shape["dropout"]
    config = GPT2Config(
        n_layer=model_shape["layers"],
        n_embd=model_shape["width"],
        n_head=model_shape["heads"],
        n_positions=model_shape["context"],
        vocab_size=vocabulary,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        attn_implementation="sdpa",
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    rows = job["case"]["batch_tokens"] // model_shape["context"]
    began = 0.0
    for step in range(SKIPPED_STEPS + job["steps"]):
        if step == SKIPPED_STEPS:
            began = time.perf_counter()
        tokens = torch.randint(0, vocabulary, (rows, model_shape["context"]))
        parts = tokens.split(job["micro_batch"])
        for part in parts:
            with torch.autocast(
                "cpu", torch.bfloat16, enabled=job["case"]["precision"] == "bfloat16"
            ):
                loss = model(input_ids=part, labels=part).loss
            (loss / len(parts)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(job["steps"] * job["case"]["batch_tokens"] / (time.perf_counter() - began), flush=True)
    os._exit(0)


# --- in turn ---


def measure(case: dict[str, Any], profile: Profile, rounds: int, work: Path) -> dict[str, Any]:
    """All figures of one case."""
    make_inputs(work, case["vocab_size"])
    as_user = {
        key: value
        for key, value in os.environ.items()
        if key not in MALLOC and key != "OMP_NUM_THREADS"
    }
    environments = {
        "as a user would run it": as_user,
        "with our allocator settings": as_user | MALLOC,
    }
    sizes = [
        size
        for size in PLAIN_MICRO_BATCHES
        if size * case["model"]["context"] <= case["batch_tokens"]
    ]
    tried = {size: run_plain(case, size, 2, as_user) for size in sizes}
    best = max(tried, key=lambda size: tried[size])
    ours: list[dict[str, float]] = []
    plain: dict[str, list[float]] = {name: [] for name in environments}
    for _ in range(rounds):
        ours.append(run_pipeline(work, case, profile))
        for name, environment in environments.items():
            plain[name].append(run_plain(case, best, case["steps"] - SKIPPED_STEPS, environment))
    speed = statistics.median(run["tokens_per_second"] for run in ours)
    return {
        "shape": {**case["model"], "vocab_size": case["vocab_size"]},
        "pipeline_tokens_per_second": speed,
        "plain_tokens_per_second": {
            name: statistics.median(rates) for name, rates in plain.items()
        },
        "ratio": {name: speed / statistics.median(rates) for name, rates in plain.items()},
        "model_flops_utilisation": statistics.median(run["utilisation"] for run in ours),
        "matrix_product_peak_flops": statistics.median(run["peak_flops"] for run in ours),
        "checkpoint_stall_seconds": max(run["stall"] for run in ours),
        "plain_micro_batch": best,
        "plain_tried": tried,
        "rounds": {"pipeline": ours, "plain": plain},
    }


def report(results: dict[str, Any]) -> str:
    lines = []
    for name, result in results.items():
        lines.append(
            f"{name}: {result['pipeline_tokens_per_second']:,.0f} tokens/s in the pipeline"
        )
        for how, bar in BARS.items():
            rate, ratio = result["plain_tokens_per_second"][how], result["ratio"][how]
            plain = (
                f"{rate:,.0f} plain transformers loop {how} (micro-batch "
                f"{result['plain_micro_batch']})"
            )
            lines.append(
                f"  / {plain} = {ratio:.2f} {at_least(f'{name} {how}: ratio', ratio, bar)}"
            )
        peak, used = result["matrix_product_peak_flops"] / 1e9, result["model_flops_utilisation"]
        held = at_least(f"{name}: utilisation", used, UTILISATION_BAR) if name == "6x384" else ""
        lines.append(
            f"  (6N + 12·L·d·T) · tokens/s = {used:.2f} of the matrix-product peak of {peak:,.0f} "
            f"GFLOP/s {held}".rstrip()
        )
        stall = result["checkpoint_stall_seconds"]
        lines.append(
            f"  longest wait for a checkpoint {stall:.3f} s "
            f"{at_most(f'{name}: wait for a checkpoint', stall, 1, 's')}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny-steps", type=int, default=30)
    parser.add_argument("--large-steps", type=int, default=8)
    parser.add_argument("--case", choices=["tiny", "tiny, float32", "6x384"], help="only this one")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument(
        "--micro-batch", type=int, help="sequences a rank, instead of the profile's"
    )
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        pipeline_rank(given.rank)
    if given.plain:
        plain_process(given.plain)
    profile = load_profile(given.profile)
    if given.micro_batch:
        profile = profile.model_copy(update={"micro_batch": given.micro_batch})
    results = {}
    for name, case in cases({"tiny": given.tiny_steps, "6x384": given.large_steps}).items():
        if given.case in (None, name):
            with tempfile.TemporaryDirectory(prefix="throughput-inputs-") as work:
                results[name] = measure(case, profile, given.rounds, Path(work))
            print(report({name: results[name]}), flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
