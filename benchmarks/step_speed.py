"""How fast a training step is: ours, a plain `transformers` GPT-2 loop of the same shape, and the matrix-product peak, in one run.

    python benchmarks/step_speed.py [--layers 6 --width 384 --heads 6 --context 256 --vocabulary 8192] [--threads 1] [--rounds 8]

Three processes take steps in turn, so that whatever else the machine does falls on all of them: ours with the worker's allocator settings,
the baseline as a user would run it, and the baseline with our settings. Both sides have fused AdamW, gradient clipping, no dropout, the
same threads, sequences and accumulation; the baseline has SDPA. The peak is the best float32 square product (2048 and 3072) seen during
the run. Times are the fastest round's. Model FLOPs: PaLM's 6N + 12·L·d·T a token.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from assets.resources.launcher import MALLOC

if TYPE_CHECKING:
    from gpt_model import ModelConfig

CONTESTANTS = {"ours": ("ours", MALLOC), "baseline": ("baseline", {}), "baseline, our allocator settings": ("baseline", MALLOC)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 6), ("width", 384), ("heads", 6), ("context", 256), ("vocabulary", 8192)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sequences", type=int, default=8, help="sequences a forward pass")
    parser.add_argument("--accumulate", type=int, default=4, help="forward passes a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--contestant", choices=["ours", "baseline"], help=argparse.SUPPRESS)
    return parser.parse_args()


def contestant(options: argparse.Namespace) -> None:
    """A process that takes one step for each line it reads, and answers with the seconds and the peak it saw (FLOP/s)."""
    import torch

    from gpt_model import GPT
    from gpt_model.convert import to_transformers

    torch.set_num_threads(options.threads)
    ours = GPT(shape(options)).train()
    model = ours if options.contestant == "ours" else to_transformers(ours).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, options.vocabulary, (options.accumulate, options.sequences, options.context), generator=generator)

    def loss(part: torch.Tensor) -> torch.Tensor:
        return model(part, part.roll(-1, 1)) if model is ours else model(input_ids=part, labels=part, use_cache=False).loss

    def step() -> None:
        for part in tokens:
            (loss(part) / options.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    squares = [torch.ones(size, size) for size in (2048, 3072)] if options.contestant == "ours" else []
    for _ in sys.stdin:
        peak = max((2 * len(square) ** 3 / seconds(lambda square=square: square @ square) for square in squares * 2), default=0.0)
        print(json.dumps({"seconds": seconds(step), "peak": peak}), flush=True)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def shape(options: argparse.Namespace) -> ModelConfig:
    from gpt_model import ModelConfig

    return ModelConfig(
        layers=options.layers, width=options.width, heads=options.heads, context=options.context, vocab_size=options.vocabulary
    )


def main() -> None:
    options = arguments()
    if options.contestant:
        return contestant(options)
    given = [f"--{name}={value}" for name, value in vars(options).items() if value is not None]
    plain = {name: value for name, value in os.environ.items() if name not in MALLOC}
    processes = {
        name: subprocess.Popen(
            [sys.executable, __file__, *given, f"--contestant={kind}"],
            env=plain | settings | {"OMP_NUM_THREADS": str(options.threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, (kind, settings) in CONTESTANTS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in processes}
    peak = 0.0
    for turn in range(options.rounds + 1):  # the first is warm-up
        for name, process in processes.items():
            assert process.stdin and process.stdout
            process.stdin.write("step\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            peak = max(peak, answer["peak"])
            if turn:
                times[name].append(answer["seconds"])
    for process in processes.values():
        process.communicate()
    report(options, times, peak)


def report(options: argparse.Namespace, times: dict[str, list[float]], peak: float) -> None:
    tokens = options.sequences * options.accumulate * options.context
    flops = shape(options).flops_per_token() * tokens
    print(
        f"{options.layers} layers x {options.width}, context {options.context}, vocabulary {options.vocabulary}, threads {options.threads}"
    )
    print(f"matrix-product peak {peak / 1e9:.0f} GFLOP/s; a step is {tokens} tokens")
    best = {name: min(values) for name, values in times.items()}
    for name, value in best.items():
        ratio, middle = value / best["ours"], statistics.median(times[name]) / statistics.median(times["ours"])
        print(f"  {name:34s} {value:7.3f} s {tokens / value:7.0f} tokens/s {flops / value / peak:6.3f} of peak", end="  ")
        print(f"ours is {ratio:.2f}x ({middle:.2f}x)")
    print("bars: 1.25x the baseline, 1.10x with our allocator settings, 0.85 of peak at 6 x 384; in brackets by medians")


if __name__ == "__main__":
    main()
