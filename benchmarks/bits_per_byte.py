"""Held-out bits per byte of a built recipe, against a compressor and against a plain training loop:
`make bench`.

- ours: the recipe's `pretrained` artifact, as it stands in the store (it is built first where it is
  not).
- plain: nanoGPT's loop (`plain_gpt.py`) on the same tokens: one process with every core and the
  worker's allocator settings, the same shape, random windows, warm-up and cosine, stopped after the
  seconds of training that ours took. Its settings are chosen by as many tries (`TRIES`) as ours
  were, each of a quarter of the seconds, on another split: the last twentieth of each source's
  training text, which the tries do not train on. The first try is nanoGPT's own
  (config/train_shakespeare_char.py).
- xz: `xz -9e` primed with the training text (a metric of the corpus artifact).

Both models are measured by the same code on every held-out token, with intervals of 95 %. The bar
is an interval of ours that ends below the plain loop's.

`--processor-seconds N` gives the plain loop so many seconds of processor time, of all threads
together, in place of ours' seconds: for a machine that is not idle.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from assets.launch.launcher import MALLOC  # noqa: E402
from assets.store.store import Store  # noqa: E402
from benchmarks.bars import below, verdict  # noqa: E402
from gpt_model.data.shards import TokenData  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.plain_gpt import PlainGPT


@dataclass(frozen=True)
class Settings:
    """What is chosen of the plain loop."""

    batch: int = 32  # sequences
    rate: float = 1e-3
    final: float = 0.1  # the last learning rate, as a share of `rate`
    precision: str = "float32"  # of the factors of products; weights and sums stay float32
    betas: tuple[float, float] = (0.9, 0.99)


# As many as ours had in docs/performance.md: fourteen trials, and seven rates of Muon.
GRID = [Settings(batch, rate) for batch, rate in itertools.product((32, 8, 4), (1e-3, 2e-3, 4e-3))]
TRIES = len(GRID) + 12
MICRO_BATCH = 8  # sequences: the fastest on two cores, by throughput.py
WARMUP = (
    0.04  # of the seconds, as of ours' tokens; nanoGPT's 100 steps are more than most tries have
)
VALIDATION = 0.05  # of each source's training text, for the tries alone
VALIDATION_TOKENS = 16_384  # of each source


def tries(score: Callable[[Settings], float]) -> Iterator[tuple[Settings, float]]:
    """Every try and its bits per byte: a grid of batch and rate, then the best of it varied."""
    scores: dict[Settings, float] = {}

    def tried(settings: Settings) -> tuple[Settings, float]:
        scores[settings] = score(settings)
        return settings, scores[settings]

    def best() -> Settings:
        return min(scores, key=lambda settings: scores[settings])

    for settings in GRID:
        yield tried(settings)
    yield tried(replace(best(), batch=best().batch // 2))
    yield tried(replace(best(), rate=best().rate * 1.5))
    yield tried(replace(best(), rate=best().rate / 1.5))
    yield tried(replace(best(), final=0.0))
    yield tried(replace(best(), precision="bfloat16"))
    yield tried(replace(best(), betas=(0.9, 0.95)))
    yield tried(replace(best(), betas=(0.9, 0.999)))
    yield tried(replace(best(), rate=best().rate * 1.25))
    yield tried(replace(best(), rate=best().rate / 1.25))
    yield tried(replace(best(), batch=best().batch // 2))  # again: a step takes less time now
    yield tried(replace(best(), batch=best().batch * 2))
    yield tried(replace(best(), final=0.05))


class PlainLoop:
    """nanoGPT's way on a tokens artifact."""

    def __init__(self, tokens: Path, shape: dict[str, Any], clock: Callable[[], float]) -> None:
        import numpy as np
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.data, self.shape, self.clock = TokenData(tokens), shape, clock
        self.streams = [
            np.concatenate(list(self.data.tokens(source, "training").parts()))
            for source in self.data.sources
        ]
        self.weights = torch.tensor([self.data.weights[source] for source in self.data.sources])

    def train(self, settings: Settings, seconds: float, share: float = 1.0) -> tuple[PlainGPT, int]:
        """The model after `seconds`, and its steps. Trained on the first `share` of each source."""
        import numpy as np
        import torch

        from benchmarks import plain_gpt

        context = self.shape["context"]
        streams = [stream[: int(len(stream) * share)] for stream in self.streams]
        torch.manual_seed(1)
        model = plain_gpt.PlainGPT({**self.shape, "dropout": 0.0}, self.data.vocab_size)
        loop = plain_gpt.PlainLoop(model, MICRO_BATCH, settings.precision, settings.betas)
        began, step = self.clock(), 0
        while (spent := (self.clock() - began) / seconds) < 1:
            cosine = (1 + math.cos(math.pi * spent)) / 2
            factor = settings.final + (1 - settings.final) * cosine
            chosen = [
                streams[source]
                for source in torch.multinomial(
                    self.weights, settings.batch, replacement=True
                ).tolist()
            ]
            starts = [int(torch.randint(len(stream) - context, (1,))) for stream in chosen]
            rows = np.stack(
                [stream[at : at + context + 1] for stream, at in zip(chosen, starts, strict=True)]
            ).astype(np.int64)
            warmup = min(1.0, (spent + 1e-3) / WARMUP)
            loop.step(torch.from_numpy(rows), settings.rate * warmup * factor)
            step += 1
        return model.eval(), step

    def validation(self, model: PlainGPT) -> float:
        """Bits per byte, by mixture, of what the tries do not train on."""
        import numpy as np
        import torch
        import torch.nn.functional as F

        context, values = self.shape["context"], []
        for stream in self.streams:
            text = stream[int(len(stream) * (1 - VALIDATION)) :][:VALIDATION_TOKENS]
            rows = text[: len(text) // context * context].reshape(-1, context).astype(np.int64)
            with torch.no_grad():
                nats = sum(
                    float(
                        F.cross_entropy(
                            model.logits(ids[:, :-1]).flatten(0, 1),
                            ids[:, 1:].flatten(),
                            reduction="sum",
                        )
                    )
                    for ids in torch.from_numpy(rows).split(8)
                )
            size = int(self.data.byte_lengths[rows[:, 1:]].sum())
            values.append(nats / math.log(2) / size)
        weights = (self.weights / self.weights.sum()).tolist()
        return sum(weight * value for weight, value in zip(weights, values, strict=True))

    def held_out(self, model: PlainGPT) -> dict[str, float]:
        """What the stage measures of its own model: see `held_out_metrics`, `held_out_intervals`."""
        import torch

        from gpt_model.training.engine import Execution, start
        from gpt_model.training.measure import held_out, held_out_intervals, held_out_metrics

        execution = Execution(zero_stage=0)
        start(execution)
        decoder: Any = PlainDecoder(model, self.shape["context"])
        with torch.no_grad():
            measured = held_out(decoder, self.data, execution)
        return held_out_metrics(measured, self.data.weights) | held_out_intervals(measured)


class PlainDecoder:
    """As much of a `Decoder` as `held_out` asks for."""

    def __init__(self, model: PlainGPT, context: int) -> None:
        self.model, self.config = model, SimpleNamespace(context=context)

    def loss_by_token(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Losses [batch, time] of tokens and targets [batch, time]; 0 where a target is negative."""
        import torch.nn.functional as F

        logits = self.model.logits(tokens).transpose(1, 2)
        return F.cross_entropy(logits, targets.clamp(min=-1), ignore_index=-1, reduction="none")


def plain(job: dict[str, Any]) -> dict[str, Any]:
    """Bits per byte by source and by mixture of the plain loop with the best of its tries, and what
    was tried.
    """
    clock = time.process_time if job["processor"] else time.perf_counter
    loop = PlainLoop(Path(job["tokens"]), job["shape"], clock)
    outcomes = []

    def score(settings: Settings) -> float:
        model, _ = loop.train(settings, job["try_seconds"], 1 - VALIDATION)
        return loop.validation(model)

    for settings, value in tries(score):
        print(f"  try {settings}: {value:.3f}", file=sys.stderr, flush=True)
        outcomes.append((settings, value))
    best = min(outcomes, key=lambda outcome: outcome[1])[0]
    model, steps = loop.train(best, job["seconds"])
    return {
        **loop.held_out(model),
        "tokens": steps * best.batch * job["shape"]["context"],
        "settings": asdict(best),
        "tries": [{**asdict(settings), "bpb": value} for settings, value in outcomes],
    }


def measure(
    recipe: str, try_seconds: float | None, processor_seconds: float | None
) -> dict[str, Any]:
    """The figures of one recipe, by name or path."""
    name = Path(recipe).stem
    subprocess.run([sys.executable, "-m", "pipelines.cli", "run", recipe], cwd=ROOT, check=True)
    store = Store(Store.default_home())
    ours = store.resolve(f"{name}/pretrained")
    tokens, corpus = store.resolve(f"{name}/tokens"), store.resolve(f"{name}/corpus")
    seconds = processor_seconds or ours.metrics["seconds"]
    job = {
        "tokens": str(tokens.path),
        "shape": ours.config["model"],
        "seconds": seconds,
        "try_seconds": try_seconds or seconds / 4,
        "processor": processor_seconds is not None,
    }
    environment = {
        **os.environ,
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
    }
    done = subprocess.run(
        [sys.executable, __file__, "--plain", json.dumps(job)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**environment, "DS_ACCELERATOR": "cpu", **MALLOC},
    )
    opponent = json.loads(done.stdout.splitlines()[-1])
    by_source = {}
    for source in TokenData(tokens.path).sources:
        key = f"held_out/{source}/bpb"
        by_source[source] = {
            "ours": ours.metrics[key],
            "ours_high": ours.metrics[f"{key}_high"],
            "plain": opponent[key],
            "plain_low": opponent[f"{key}_low"],
            "xz": corpus.metrics[f"xz/{source}/bpb"],
        }
    return {
        "seconds": ours.metrics["seconds"],
        "tokens": ours.metrics["tokens"],
        "plain_tokens": opponent["tokens"],
        "plain_settings": opponent["settings"],
        "plain_tries": opponent["tries"],
        "mixture": {"ours": ours.metrics["held_out/bpb"], "plain": opponent["held_out/bpb"]},
        "by_source": by_source,
    }


def report(name: str, results: dict[str, Any]) -> str:
    lines = [
        f"{name}: {results['seconds']:.0f} s of training; {results['tokens']:,.0f} tokens ours, "
        f"{results['plain_tokens']:,.0f} the plain loop, at best of {len(results['plain_tries'])} "
        f"tries with {results['plain_settings']}",
        f"  by mixture: {results['mixture']['ours']:.3f} bits per byte, the plain loop "
        f"{results['mixture']['plain']:.3f}",
    ]
    for source, bpb in results["by_source"].items():
        apart = below(
            f"{name}, {source}, end of the interval against the plain loop's beginning:",
            bpb["ours_high"],
            bpb["plain_low"],
        )
        compressed = below(f"{name}, {source}, against xz -9e:", bpb["ours"], bpb["xz"])
        lines += [
            f"  {source}: {bpb['ours']:.3f} bits per byte, up to {bpb['ours_high']:.3f}",
            f"    plain loop {bpb['plain']:.3f}, from {bpb['plain_low']:.3f} {apart}",
            f"    xz -9e {bpb['xz']:.3f} {compressed}",
        ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--recipe",
        action="append",
        help="name or path; default: tiny, and plays and news of benchmarks/recipes",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--try-seconds", type=float, help="of each try; default: a quarter of ours")
    parser.add_argument("--processor-seconds", type=float, help="of the plain loop")
    parser.add_argument("--plain", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        print(json.dumps(plain(given.plain)), flush=True)
        os._exit(0)
    results = {}
    folder = ROOT / "benchmarks" / "recipes"
    for recipe in given.recipe or ["tiny", str(folder / "plays.yaml"), str(folder / "news.yaml")]:
        results[Path(recipe).stem] = measure(recipe, given.try_seconds, given.processor_seconds)
        print(report(Path(recipe).stem, results[Path(recipe).stem]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
