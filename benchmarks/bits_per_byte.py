"""Held-out bits per byte of a built recipe, against a compressor and against a plain training loop:
`make bench`.

- ours: the recipe's `pretrained` artifact, as it stands in the store (it is built first where it is
  not).
- plain: nanoGPT's way on the same tokens: one process with every core, `GPT2LMHeadModel` of the
  same shape, random windows, fused AdamW, warm-up and cosine, stopped after the seconds of training
  that ours took. Its settings are chosen as ours were: by as many tries (`TRIES`), each of a
  quarter of the seconds, on another split: the last twentieth of each source's training text, which
  the tries do not train on. The first try is nanoGPT's own (config/train_shakespeare_char.py).
- xz: `xz -9e` primed with the training text (a metric of the corpus artifact).

Both models are measured by the same code on every held-out token.

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
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from assets.store.store import Store  # noqa: E402
from benchmarks.bars import below, verdict  # noqa: E402
from gpt_model.data.shards import TokenData  # noqa: E402


@dataclass(frozen=True)
class Settings:
    """What is chosen of the plain loop."""

    batch: int = 32  # sequences
    rate: float = 1e-3
    final: float = 0.1  # the last learning rate, as a share of `rate`
    precision: str = "float32"  # of the factors of products; weights and sums stay float32


# As many as ours had: fourteen trials in docs/performance.md.
GRID = [Settings(batch, rate) for batch, rate in itertools.product((32, 8, 4), (1e-3, 2e-3, 4e-3))]
TRIES = len(GRID) + 5
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

    def train(self, settings: Settings, seconds: float, share: float = 1.0) -> tuple[Any, int]:
        """The model after `seconds`, and its steps. Trained on the first `share` of each source."""
        import numpy as np
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel

        context, rate = self.shape["context"], settings.rate
        streams = [stream[: int(len(stream) * share)] for stream in self.streams]
        config = GPT2Config(
            n_layer=self.shape["layers"],
            n_embd=self.shape["width"],
            n_head=self.shape["heads"],
            n_positions=context,
            vocab_size=self.data.vocab_size,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="sdpa",
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
        torch.manual_seed(1)
        model = GPT2LMHeadModel(config).train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.1, fused=True
        )
        began, step = self.clock(), 0
        while (spent := (self.clock() - began) / seconds) < 1:
            cosine = (1 + math.cos(math.pi * spent)) / 2
            factor = settings.final + (1 - settings.final) * cosine
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (spent + 1e-3) / WARMUP) * factor
            chosen = [
                streams[source]
                for source in torch.multinomial(
                    self.weights, settings.batch, replacement=True
                ).tolist()
            ]
            starts = [int(torch.randint(len(stream) - context, (1,))) for stream in chosen]
            rows = np.stack(
                [stream[at : at + context] for stream, at in zip(chosen, starts, strict=True)]
            ).astype(np.int64)
            ids = torch.from_numpy(rows)
            half = settings.precision == "bfloat16"
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        return model.eval(), step

    def validation(self, model: Any) -> float:
        """Bits per byte, by mixture, of what the tries do not train on."""
        import numpy as np
        import torch

        context, values = self.shape["context"], []
        for stream in self.streams:
            text = stream[int(len(stream) * (1 - VALIDATION)) :][:VALIDATION_TOKENS]
            rows = text[: len(text) // context * context].reshape(-1, context).astype(np.int64)
            with torch.no_grad():
                nats = sum(
                    float(model(input_ids=ids, labels=ids).loss) * (context - 1) * len(ids)
                    for ids in torch.from_numpy(rows).split(8)
                )
            size = int(self.data.byte_lengths[rows[:, 1:]].sum())
            values.append(nats / math.log(2) / size)
        weights = (self.weights / self.weights.sum()).tolist()
        return sum(weight * value for weight, value in zip(weights, values, strict=True))

    def held_out(self, model: Any) -> dict[str, float]:
        from gpt_model.convert import from_transformers
        from gpt_model.training.engine import Execution, start
        from gpt_model.training.measure import held_out, held_out_metrics

        execution = Execution(zero_stage=0)
        start(execution)
        measured = held_out(from_transformers(model).eval(), self.data, execution)
        return held_out_metrics(measured, self.data.weights)


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
        env={**environment, "DS_ACCELERATOR": "cpu"},
    )
    opponent = json.loads(done.stdout.splitlines()[-1])
    by_source = {}
    for source in TokenData(tokens.path).sources:
        key = f"held_out/{source}/bpb"
        by_source[source] = {
            "ours": ours.metrics[key],
            "plain": opponent[key],
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


def report(name: str, found: dict[str, Any]) -> str:
    lines = [
        f"{name}: {found['seconds']:.0f} s of training; {found['tokens']:,.0f} tokens ours, "
        f"{found['plain_tokens']:,.0f} the plain loop, at best of {len(found['plain_tries'])} "
        f"tries with {found['plain_settings']}"
    ]
    for source, one in {**found["by_source"], "by mixture": found["mixture"]}.items():
        lines.append(f"  {source}: {one['ours']:.3f} bits per byte")
        for other, words in (("plain", "plain loop"), ("xz", "xz -9e")):
            if other in one:
                lines.append(
                    f"    {words} {one[other]:.3f} "
                    f"{below(f'{name}, {source}, against {words}:', one['ours'], one[other])}"
                )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--recipe",
        action="append",
        help="name or path; default: tiny and benchmarks/recipes/plays.yaml",
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
    for recipe in given.recipe or ["tiny", str(ROOT / "benchmarks" / "recipes" / "plays.yaml")]:
        results[Path(recipe).stem] = measure(recipe, given.try_seconds, given.processor_seconds)
        print(report(Path(recipe).stem, results[Path(recipe).stem]))
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
