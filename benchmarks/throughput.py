"""Training tokens a second inside the pipeline, against nanoGPT's loop on the same cores:
`make bench`.

- pipeline: the stage `pretrained` itself, in ranks with the worker's own environment: DeepSpeed at
  the profile's ZeRO stage, sampler, metrics into the journal, checkpoints. Held-out evaluation is
  left out of the time, as the stage itself leaves it out.
- plain: one process with every core, `plain_gpt.py`, with the same batch, dropout, shape and
  precision; of several micro-batches the fastest. Once as a user would run it, once with the
  pipeline's allocator settings.
- plain on one core: the same with one thread. Its processor seconds a step, over those of all our
  ranks, are the ratio that an idle machine would show if the plain loop's threads shared its work
  out without loss. It hardly depends on what else the machine does, and favours the plain loop.

All take turns step by step, so that a busy moment meets each of them, and ratios are of medians.
The first steps of each are left out. Utilisation is model FLOP/s ÷ matrix-product peak, model FLOPs
being 6N + 12·L·d·T a token (PaLM, appendix B), the peak measured by the same ranks at once.
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
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from assets.launch.launcher import MALLOC, free_port, worker_environment  # noqa: E402
from assets.recipe.profile import Profile, load_profile  # noqa: E402
from assets.recipe.recipe import load_recipe  # noqa: E402
from benchmarks.bars import at_least, at_most, verdict  # noqa: E402

SKIPPED_STEPS = 2
STEP = "step "  # begins the line that a contestant prints after each of its steps
PLAIN_MICRO_BATCHES = (2, 4, 8, 16, 32)  # sequences of 256 tokens
TRIED_STEPS = 4
AS_USER, OUR_ALLOCATOR = "as a user would run it", "with our allocator settings"
ONE_CORE = "on one core, by processor time"
BARS = {AS_USER: 1.25, OUR_ALLOCATOR: 1.10}
CASE_BARS = {"tiny": {OUR_ALLOCATOR: 1.25}, "4x192": {OUR_ALLOCATOR: 1.35}}
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
        "4x192": {**values, "vocab_size": 2048},
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


# --- the contestants, each in processes of its own ---


class InTurns:
    """Processes that train together, and take each step when they are let."""

    def __init__(
        self,
        arguments: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        folder: Path = ROOT,
    ) -> None:
        """Python with `arguments` in `folder`, a process for each of `environments`. The first step
        is taken at once.
        """
        self.processes = [
            subprocess.Popen(
                [sys.executable, *arguments],
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for environment in environments
        ]
        self.steps: list[tuple[float, float]] = []  # seconds, and processor seconds of all
        self._spent = self._wait()

    def step(self) -> None:
        began = time.perf_counter()
        self._let()
        spent = self._wait()
        self.steps.append((time.perf_counter() - began, spent - self._spent))
        self._spent = spent

    def end(self) -> str:
        """Let all of them end; returns the first's last line."""
        self._let()
        printed = [process.communicate()[0] for process in self.processes]
        if any(process.returncode for process in self.processes):
            raise SystemExit(f"a process failed: {printed}")
        return (printed[0].splitlines() or [""])[-1]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def seconds(self) -> float:
        """The median of a step."""
        return statistics.median(wall for wall, _ in self.steps[SKIPPED_STEPS - 1 :])

    def processor_seconds(self) -> float:
        """The median of a step, of all processes together."""
        return statistics.median(spent for _, spent in self.steps[SKIPPED_STEPS - 1 :])

    def _let(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    def _wait(self) -> float:
        """The processor seconds that all have used, once each has done its step."""
        return sum(self._seconds_used(process) for process in self.processes)

    @staticmethod
    def _seconds_used(process: subprocess.Popen[str]) -> float:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(STEP):
                return float(line.removeprefix(STEP))
        raise SystemExit("a process ended before its last step")


def wait_for_turn() -> None:
    """Called after each step in a process of `InTurns`."""
    print(f"{STEP}{time.process_time()}", flush=True)
    sys.stdin.readline()


def pipeline(inputs: Path, case: dict[str, Any], profile: Profile, folder: str) -> InTurns:
    """The stage's ranks; they work in `folder`. `end` returns the stage's own metrics as JSON."""
    job = Path(folder) / "job.json"
    shown = profile.model_dump(mode="json")
    job.write_text(
        json.dumps({"inputs": str(inputs), "case": case, "profile": shown, "output": folder})
    )
    environment = worker_environment(profile.device, profile.processes, profile.threads_each())
    port = str(free_port())  # of all ranks
    ranks = [
        {**environment, "MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(profile.processes)
    ]
    return InTurns([__file__, "--rank", str(job)], ranks)


def run_pipeline(inputs: Path, case: dict[str, Any], profile: Profile) -> dict[str, float]:
    """The stage's own metrics, and tokens a second without the first steps."""
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        ranks = pipeline(inputs, case, profile, folder)
        for _ in range(case["steps"] - 1):
            ranks.step()
        return dict(json.loads(ranks.end()))


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
    progress.advance = lambda *_: wait_for_turn()  # type: ignore[method-assign]
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


def plain(case: dict[str, Any], micro_batch: int, environment: Mapping[str, str]) -> InTurns:
    """The plain loop in a process with these variables."""
    job = json.dumps({"case": case, "micro_batch": micro_batch})
    return InTurns([__file__, "--plain", job], [environment])


def plain_process(job: dict[str, Any]) -> NoReturn:
    import torch

    from benchmarks.plain_gpt import PlainGPT, PlainLoop

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    case = job["case"]
    context, vocabulary = case["model"]["context"], case["vocab_size"]
    model = PlainGPT(case["model"], vocabulary)
    loop = PlainLoop(model, job["micro_batch"], case["precision"])
    while True:
        loop.step(torch.randint(0, vocabulary, (case["batch_tokens"] // context, context + 1)))
        wait_for_turn()


# --- in turn ---


def best_micro_batch(
    case: dict[str, Any], environment: Mapping[str, str], *, processor: bool
) -> tuple[int, dict[int, float]]:
    """The plain loop's fastest micro-batch, and the tokens a second of each that was tried."""
    tokens = case["batch_tokens"]
    sizes = [n for n in PLAIN_MICRO_BATCHES if n * case["model"]["context"] <= tokens]
    tried = {size: plain(case, size, environment) for size in sizes}
    for _ in range(TRIED_STEPS):
        for loop in tried.values():
            loop.step()
    rates = {
        size: tokens / (loop.processor_seconds() if processor else loop.seconds())
        for size, loop in tried.items()
    }
    for loop in tried.values():
        loop.stop()
    return max(rates, key=lambda size: rates[size]), rates


def measure(case: dict[str, Any], profile: Profile, work: Path) -> dict[str, Any]:
    """All figures of one case."""
    make_inputs(work, case["vocab_size"])
    as_user = {
        key: value
        for key, value in os.environ.items()
        if key not in MALLOC and key != "OMP_NUM_THREADS"
    }
    with_ours = as_user | MALLOC
    one_core = with_ours | {"OMP_NUM_THREADS": "1"}
    best, tried = best_micro_batch(case, with_ours, processor=False)
    best_on_one, tried_on_one = best_micro_batch(case, one_core, processor=True)
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        ours = pipeline(work, case, profile, folder)
        loops = {
            AS_USER: plain(case, best, as_user),
            OUR_ALLOCATOR: plain(case, best, with_ours),
            ONE_CORE: plain(case, best_on_one, one_core),
        }
        for _ in range(case["steps"] - 1):
            for contestant in (ours, *loops.values()):
                contestant.step()
        for loop in loops.values():
            loop.stop()
        stage = json.loads(ours.end())
    tokens = case["batch_tokens"]
    speed = tokens / ours.seconds()
    ratio = {name: loop.seconds() / ours.seconds() for name, loop in loops.items()}
    ratio[ONE_CORE] = loops[ONE_CORE].processor_seconds() / ours.processor_seconds()
    return {
        "shape": {**case["model"], "vocab_size": case["vocab_size"]},
        "pipeline_tokens_per_second": speed,
        "plain_tokens_per_second": {
            AS_USER: tokens / loops[AS_USER].seconds(),
            OUR_ALLOCATOR: tokens / loops[OUR_ALLOCATOR].seconds(),
            ONE_CORE: tokens / loops[ONE_CORE].processor_seconds(),
        },
        "ratio": ratio,
        "model_flops_utilisation": stage["utilisation"] * speed / stage["tokens_per_second"],
        "matrix_product_peak_flops": stage["peak_flops"],
        "checkpoint_stall_seconds": stage["stall"],
        "plain_micro_batch": {AS_USER: best, OUR_ALLOCATOR: best, ONE_CORE: best_on_one},
        "plain_tried": {OUR_ALLOCATOR: tried, ONE_CORE: tried_on_one},
        "steps": {"pipeline": ours.steps, **{name: loop.steps for name, loop in loops.items()}},
    }


def report(results: dict[str, Any]) -> str:
    lines = []
    for name, result in results.items():
        lines.append(
            f"{name}: {result['pipeline_tokens_per_second']:,.0f} tokens/s in the pipeline"
        )
        bars = BARS | CASE_BARS.get(name, {})
        for how, ratio in result["ratio"].items():
            rate, size = result["plain_tokens_per_second"][how], result["plain_micro_batch"][how]
            held = at_least(f"{name} {how}: ratio", ratio, bars[how]) if how in bars else ""
            lines.append(
                f"  / {rate:,.0f} plain loop {how} (micro-batch {size}) = {ratio:.2f} {held}"
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
    parser.add_argument("--tiny-steps", type=int, default=30)
    parser.add_argument("--large-steps", type=int, default=8)
    parser.add_argument(
        "--case", choices=list(cases({"tiny": 1, "6x384": 1})), help="only this one"
    )
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
                results[name] = measure(case, profile, Path(work))
            print(report({name: results[name]}), flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
