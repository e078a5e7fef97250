"""Generation with a cache against `transformers.generate`: the same weights, prompts and cores, in
turn.

    python benchmarks/generation_speed.py [--rounds 5] [--model NAME …] [--json FILE]

Greedy, a prompt of 32 tokens, 128 new ones, float32, random weights (speed does not depend on what
they are), GPT-2's vocabulary. Each round lets both write once, and the other one begins the next;
the ratio is of medians. Everything a call does is in its time, laying out the weights included.
Both must write the same; where they part, it is told how near the two tokens' logits are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bars import at_least, verdict  # noqa: E402
from benchmarks.peers import Settings, fastest  # noqa: E402
from gpt_model import GPT, ModelConfig, convert  # noqa: E402
from gpt_model.generation import generate  # noqa: E402

PROMPT, NEW = 32, 128
CACHES = ("dynamic", "static")  # of transformers'; the faster one stands against ours
BARS = {1: 1.5, 8: 2.0}  # by batch
SHAPES = {
    "gpt2 6x384": {"family": "gpt2", "layers": 6, "width": 384, "heads": 6, "context": 1024},
    "gpt2 12x768": {"family": "gpt2", "layers": 12, "width": 768, "heads": 12, "context": 1024},
    "gpt1 6x384": {"family": "gpt1", "layers": 6, "width": 384, "heads": 6, "context": 512},
    "gpt3 6x384, band 64": {
        "family": "gpt3",
        "layers": 6,
        "width": 384,
        "heads": 6,
        "context": 2048,
        "band": 64,
        "attention_bias": False,
    },
}


def measure(name: str, batch: int, rounds: int) -> dict[str, float]:
    """Median seconds of both, the share of rows in which both wrote the same, and how far apart the
    logits are where they part.
    """
    model = GPT(ModelConfig.model_validate(SHAPES[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far from uniform, so that the next token is a clear choice
    other = convert.to_transformers(model)
    other.generation_config.max_length = None  # max_new_tokens is given instead
    prompts = torch.randint(
        0, model.config.vocab_size, (batch, PROMPT), generator=torch.Generator().manual_seed(0)
    )
    rows = prompts.tolist()
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def theirs(settings: Settings) -> list[list[int]]:
        mask = torch.ones_like(prompts)
        written = other.generate(prompts, attention_mask=mask, **options, **settings)
        return list(written[:, PROMPT:].tolist())

    def tried(settings: Settings) -> float:
        began = time.perf_counter()
        theirs(settings)
        return time.perf_counter() - began

    tries = [{"cache_implementation": kind} for kind in CACHES]
    best = fastest(tries, tried)
    ways: dict[str, Callable[[], list[list[int]]]] = {
        "ours": lambda: generate(model, rows, NEW, temperature=0),
        "transformers": lambda: theirs(best),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    written: dict[str, list[list[int]]] = {}
    for number in range(1 + rounds):  # the first is not counted
        for way in sorted(ways, reverse=number % 2 == 1):
            began = time.perf_counter()
            written[way] = ways[way]()
            seconds[way].append(time.perf_counter() - began)
    pairs = list(zip(rows, written["ours"], written["transformers"], strict=True))
    apart = max(
        (logits_apart(model, prompt, mine, its) for prompt, mine, its in pairs if mine != its),
        default=0.0,
    )
    same = statistics.fmean(mine == its for _, mine, its in pairs)
    return {way: statistics.median(taken[1:]) for way, taken in seconds.items()} | {
        "same": same,
        "apart": apart,
    }


@torch.no_grad()
def logits_apart(model: GPT, prompt: list[int], mine: list[int], its: list[int]) -> float:
    """The difference of the two tokens' logits where two texts part."""
    at = next(location for location, (a, b) in enumerate(zip(mine, its, strict=True)) if a != b)
    logits = model(torch.tensor([prompt + mine[:at]]))[0, -1]
    return float((logits[mine[at]] - logits[its[at]]).abs())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batch", nargs="+", type=int, choices=BARS, default=list(BARS))
    parser.add_argument("--json", type=Path, help="write every figure here")
    given = parser.parse_args()
    results = {}
    for name in given.model:
        for batch in given.batch:
            result = results[f"{name}, batch {batch}"] = measure(name, batch, given.rounds)
            ratio = result["transformers"] / result["ours"]
            rates = {way: batch * NEW / result[way] for way in ("ours", "transformers")}
            print(
                f"{name}, batch {batch}: {rates['ours']:,.0f} tokens/s / transformers "
                f"{rates['transformers']:,.0f} = {ratio:.2f} "
                f"{at_least(f'{name}, batch {batch}: ratio', ratio, BARS[batch])}; "
                f"{result['same']:.0%} of rows the same"
                + (
                    f", the others part where two logits are {result['apart']:.0e} apart"
                    if result["apart"]
                    else ""
                ),
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
