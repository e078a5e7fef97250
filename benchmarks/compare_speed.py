"""How fast two commits train, generate and evaluate, measured in turn in one run.

    python benchmarks/compare_speed.py BEFORE AFTER [--rounds 5]

BEFORE and AFTER are commits, or "." for the working tree. Each round runs both, in a process of its
own each, in alternating order. The figure is the median over rounds of AFTER's rate over BEFORE's;
the status is 1 where one is below the bar of 0.98.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.compare_commits import checkout, python

BAR = 0.98

# Runs inside each commit, so it names only what both have. Rates are tokens a second.
MEASURE = """
import json, time
import torch
from gpt_model import GPT, ModelConfig
from gpt_model.generation import generate

torch.manual_seed(0)
model = GPT(ModelConfig(layers=4, width=192, heads=3, context=256, vocab_size=8192))
tokens = torch.randint(8192, (8, 257))
inputs, targets = tokens[:, :-1], tokens[:, 1:]
optimizer = torch.optim.AdamW(model.parameters(), fused=True)

def train():
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(inputs, targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

def rate(act, tokens, repeats):
    act()
    began = time.perf_counter()
    for _ in range(repeats):
        act()
    return tokens * repeats / (time.perf_counter() - began)

prompts = [list(range(1, 17))] * 8
rates = {
    "training": rate(train, inputs.numel(), 15),
    "generation": rate(lambda: generate(model, prompts, 96, seed=1), 8 * 96, 3),
    "evaluation": rate(lambda: model.loss_by_token(inputs, targets), inputs.numel(), 20),
}
print(json.dumps(rates))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="compare-speed-") as folder:
        trees = [
            checkout(commit, Path(folder) / name)
            for commit, name in ((given.before, "before"), (given.after, "after"))
        ]
        for number in range(given.rounds):
            rates: list[dict[str, float]] = [{}, {}]
            for side in (0, 1) if number % 2 else (1, 0):
                rates[side] = json.loads(python(trees[side], "-c", MEASURE).stdout)
            for name, before in rates[0].items():
                ratios.setdefault(name, []).append(rates[1][name] / before)
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    for name, median in medians.items():
        rounds = ", ".join(f"{ratio:.3f}" for ratio in ratios[name])
        print(f"{name}: {median:.3f} of before, bar {BAR} (rounds: {rounds})")
    return 1 if min(medians.values()) < BAR else 0


if __name__ == "__main__":
    sys.exit(main())
