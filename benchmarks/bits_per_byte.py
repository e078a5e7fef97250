"""Held-out bits per byte of a built recipe, against a compressor and against a plain training loop:
`make bench`.

- ours: the recipe's `pretrained` artifact, as it stands in the store (it is built first where it is
  not).
- plain: nanoGPT's way on the same tokens: one process with every core, `GPT2LMHeadModel` of the
  same shape, random windows, AdamW, warm-up and cosine, batch 32 sequences, learning rate 1e-3 to
  1e-4, betas 0.9 and 0.99 (nanoGPT, config/train_shakespeare_char.py), stopped after the seconds of
  training that ours took.
- xz: `xz -9e` primed with the training text (a metric of the corpus artifact).

Both models are measured by the same code on every held-out token.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from assets.store.store import Store  # noqa: E402
from benchmarks.bars import below, verdict  # noqa: E402
from gpt_model.data.shards import TokenData  # noqa: E402


def plain_loop(tokens: Path, shape: dict[str, Any], seconds: float) -> dict[str, float]:
    """Train nanoGPT's way for `seconds`; returns bits per byte by source, by mixture, and how far
    it got.
    """
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt_model.convert import from_transformers
    from gpt_model.training.engine import Execution, start
    from gpt_model.training.measure import held_out, held_out_metrics

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    data = TokenData(tokens)
    streams = [
        np.concatenate(list(data.tokens(source, "training").parts())) for source in data.sources
    ]
    weights = torch.tensor([data.weights[source] for source in data.sources])
    context, batch, rate = shape["context"], 32, 1e-3
    config = GPT2Config(
        n_layer=shape["layers"],
        n_embd=shape["width"],
        n_head=shape["heads"],
        n_positions=context,
        vocab_size=data.vocab_size,
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
    began, step, loss = time.perf_counter(), 0, torch.tensor(math.nan)
    while (spent := (time.perf_counter() - began) / seconds) < 1:
        factor = min(1.0, (step + 1) / 100) * (0.1 + 0.45 * (1 + math.cos(math.pi * spent)))
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        chosen = [
            streams[source]
            for source in torch.multinomial(weights, batch, replacement=True).tolist()
        ]
        starts = [int(torch.randint(len(stream) - context, (1,))) for stream in chosen]
        rows = np.stack(
            [stream[at : at + context] for stream, at in zip(chosen, starts, strict=True)]
        ).astype(np.int64)
        ids = torch.from_numpy(rows)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    execution = Execution(zero_stage=0)
    start(execution)
    result = held_out_metrics(
        held_out(from_transformers(model).eval(), data, execution), data.weights
    )
    return {**result, "steps": step, "tokens": step * batch * context, "loss": float(loss)}


def measure(recipe: str) -> dict[str, Any]:
    """The figures of one recipe, by name or path."""
    name = Path(recipe).stem
    subprocess.run([sys.executable, "-m", "pipelines.cli", "run", recipe], cwd=ROOT, check=True)
    store = Store(Store.default_home())
    ours = store.resolve(f"{name}/pretrained")
    tokens, corpus = store.resolve(f"{name}/tokens"), store.resolve(f"{name}/corpus")
    job = {
        "tokens": str(tokens.path),
        "shape": ours.config["model"],
        "seconds": ours.metrics["seconds"],
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
    plain = json.loads(done.stdout.splitlines()[-1])
    by_source = {}
    for source in TokenData(tokens.path).sources:
        key = f"held_out/{source}/bpb"
        by_source[source] = {
            "ours": ours.metrics[key],
            "plain": plain[key],
            "xz": corpus.metrics[f"xz/{source}/bpb"],
        }
    return {
        "seconds": ours.metrics["seconds"],
        "tokens": ours.metrics["tokens"],
        "plain_tokens": plain["tokens"],
        "mixture": {"ours": ours.metrics["held_out/bpb"], "plain": plain["held_out/bpb"]},
        "by_source": by_source,
    }


def report(name: str, found: dict[str, Any]) -> str:
    lines = [
        f"{name}: {found['seconds']:.0f} s of training; {found['tokens']:,.0f} tokens ours, "
        f"{found['plain_tokens']:,.0f} the plain loop"
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
    parser.add_argument("--plain", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        print(
            json.dumps(
                plain_loop(
                    Path(given.plain["tokens"]), given.plain["shape"], given.plain["seconds"]
                )
            ),
            flush=True,
        )
        os._exit(0)
    results = {}
    for recipe in given.recipe or ["tiny", str(ROOT / "benchmarks" / "recipes" / "plays.yaml")]:
        results[Path(recipe).stem] = measure(recipe)
        print(report(Path(recipe).stem, results[Path(recipe).stem]))
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
