"""Muon against AdamW at equal processor time, on tiny's text and shape, cut short.

    python benchmarks/muon.py --json FILE

- The learning rate of Muon's matrices (`RATES`) is chosen under `corpus.seed` 0. The result is
  under 3, another split of the documents, which chooses nothing; 1 and 2 say whether it is the
  split's.
  AdamW has tiny's settings, which were chosen under seeds 0 to 2, and Muon has them for the rest.
- Seconds are the processor's, of one process with one thread, since the machine may be busy. A step
  of Muon takes longer, so that it has fewer: the ratio is that of the medians of steps by turns.
- Measured are the first `HELD_OUT` held-out tokens of each source, with intervals of 95 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from assets.recipe.recipe import PretrainingSection, load_recipe  # noqa: E402
from assets.store.store import Store  # noqa: E402

RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
HELD_OUT = 10_240
STEPS_BY_TURNS, TURNS = 6, 3
TINY = load_recipe("tiny").model_and_training


def tokens_of(seed: int, folder: Path) -> Path:
    """tiny's tokens under another `corpus.seed`."""
    recipe = folder / f"tiny_seed_{seed}.yaml"
    recipe.write_text(f"extends: tiny\nname: {recipe.stem}\ncorpus: {{seed: {seed}}}\n")
    command = [sys.executable, "-m", "pipelines.cli", "run", str(recipe), "--select", "+tokens"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    return Store(Store.default_home()).resolve(f"{recipe.stem}/tokens").path


def section_of(tokens: int, rate: float | None) -> dict[str, Any]:
    """tiny's pre-training, cut to so many tokens; with a `rate`, by Muon."""
    section = TINY[1].model_dump(mode="json")
    warmup = section["warmup_tokens"] * tokens // section["tokens"]
    section |= {"tokens": tokens, "warmup_tokens": warmup}
    adamw, muon = ("adamw", None), ("muon", {"learning_rate": rate})
    section["optimizer"], section["muon"] = adamw if rate is None else muon
    return PretrainingSection.model_validate(section).model_dump(mode="json")


def trained(
    path: Path, section: dict[str, Any], steps: int | None = None
) -> tuple[Any, list[float]]:
    """The model after the section's steps, or fewer, and the processor's seconds of each."""
    # torch, once `main` has set the environment; so below
    from assets.execution.pretraining import LanguageModelling, settings_of
    from assets.stages.pretraining import batches_of
    from gpt_model.config import ModelConfig
    from gpt_model.data.sampler import Sampler
    from gpt_model.data.shards import TokenData
    from gpt_model.progress import Silent
    from gpt_model.training.engine import Execution
    from gpt_model.training.loop import train
    from gpt_model.transformer import GPT

    data, execution = TokenData(path), Execution()
    shape = ModelConfig(**TINY[0].model_dump(), vocab_size=data.vocab_size)
    model = GPT(shape, seed=section["seed"])
    sampler = Sampler(data, shape.context, batches_of(section), section["seed"])
    settings = settings_of(section)
    if steps:
        settings = replace(settings, steps=steps)
    clock: list[float] = []

    class Timed(LanguageModelling):
        def micro_batches(self, step: int) -> Sequence[Any]:
            clock.append(time.process_time())
            return super().micro_batches(step)

    objective = Timed(sampler, shape, execution, settings.steps, None)
    train(model, objective, settings, execution, checkpoints=None, progress=Silent())
    clock.append(time.process_time())
    return model.eval(), [after - before for before, after in itertools.pairwise(clock)]


def step_ratio(path: Path, tokens: int) -> float:
    """How much longer a step of Muon takes than one of AdamW."""
    seconds: dict[float | None, list[float]] = {None: [], RATES[0]: []}
    for _ in range(TURNS):
        for rate, steps in seconds.items():
            # The first starts what starts once, the last ends the engine
            steps += trained(path, section_of(tokens, rate), STEPS_BY_TURNS)[1][1:-1]
    return statistics.median(seconds[RATES[0]]) / statistics.median(seconds[None])


def measured(path: Path, tokens: int, rate: float | None) -> dict[str, Any]:
    """Bits per byte by source and mixture of a run, and its seconds."""
    from gpt_model.data.shards import TokenData
    from gpt_model.training.engine import Execution
    from gpt_model.training.measure import held_out, held_out_intervals, held_out_metrics

    data = TokenData(path)
    model, seconds = trained(path, section_of(tokens, rate))
    texts = held_out(model, data, Execution(), HELD_OUT)
    row = {
        "optimizer": "adamw" if rate is None else "muon",
        "learning_rate": rate,
        "tokens": tokens,
        "seconds": sum(seconds),
        **held_out_metrics(texts, data.weights),
        **held_out_intervals(texts),
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def line(seed: int, row: dict[str, Any]) -> str:
    sources = [name.split("/")[1] for name in row if name.endswith("/bpb") and name.count("/") == 2]
    texts = ", ".join(
        f"{source} {row[f'held_out/{source}/bpb']:.3f} ({row[f'held_out/{source}/bpb_low']:.3f} – "
        f"{row[f'held_out/{source}/bpb_high']:.3f})"
        for source in sources
    )
    rate = "" if row["learning_rate"] is None else f" at {row['learning_rate']:g}"
    return (
        f"seed {seed}, {row['optimizer']}{rate}: {row['held_out/bpb']:.3f} by mixture; {texts}; "
        f"{row['tokens']:,} tokens, {row['seconds']:.0f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=81_920, help="of AdamW's runs")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ |= {
        **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "DS_ACCELERATOR": "cpu"},
    }
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="muon-") as folder:
        paths = {seed: tokens_of(seed, Path(folder)) for seed in range(4)}
    ratio = step_ratio(paths[0], given.tokens)
    batch = section_of(given.tokens, None)["batch_tokens"]
    fewer = round(given.tokens / ratio / batch) * batch
    print(f"A step of Muon takes {ratio:.3f} times as long: {fewer:,} tokens.", flush=True)
    rows: dict[int, list[dict[str, Any]]] = {}

    def run(seed: int, *rates: float | None) -> None:
        for rate in rates:
            tokens = given.tokens if rate is None else fewer
            rows.setdefault(seed, []).append(measured(paths[seed], tokens, rate))
            print(line(seed, rows[seed][-1]), flush=True)

    run(0, None, *RATES)
    best = min(rows[0][1:], key=lambda row: row["held_out/bpb"])["learning_rate"]
    for seed in (3, 1, 2):
        run(seed, None, best)
    if given.json:
        given.json.write_text(json.dumps({"step_ratio": ratio, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # gloo's threads may hang the interpreter's teardown
