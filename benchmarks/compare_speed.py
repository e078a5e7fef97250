"""How fast two commits are, step by step in turns: training with DeepSpeed on two ranks and without
it, supervised tuning, reward model, DPO, PPO, generation and evaluation.

    python benchmarks/compare_speed.py BEFORE AFTER [--parts pretrained dpo …] [--steps 40]

BEFORE and AFTER are commits, or "." for the working tree. Both sides of a part run at the same
time, in different processes, but only one of them computes: the other waits before its next step.
Both take equal steps, so a minute in which the machine is slow slows both. The figure is the median
over steps of BEFORE's seconds over AFTER's; the status is 1 where one is below the bar of 0.98.
The interval is a bootstrap's over steps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from assets.launch.launcher import free_port, worker_environment
from assets.recipe.profile import load_profile
from benchmarks import throughput
from benchmarks.bars import at_least, verdict
from benchmarks.compare_commits import checkout, python

BAR = 0.98
SKIPPED_STEPS = 3

# The code of each part runs inside each commit, so it names only what both have. `turn()` stands
# before each step: it does what throughput's `wait_for_turn` does, which one of them may lack.
TURNS = f"""
import os, sys, time
from pathlib import Path
def turn():
    print("\\n{throughput.STEP}" + str(time.process_time()), flush=True)
    if not sys.stdin.readline():
        os._exit(0)
def turns_of_training():
    from gpt_model.training.engine import Engine
    step = Engine.step
    def in_turn(*values, **named):
        turn()
        return step(*values, **named)
    Engine.step = in_turn
def repeat(act):
    while True:
        turn()
        act()
folder, steps, shared = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
"""

MODEL = """
import torch
from gpt_model import GPT, ModelConfig
torch.manual_seed(0)
model = GPT(ModelConfig(layers=4, width=192, heads=3, context=256, vocab_size=8192))
tokens = torch.randint(8192, (8, 257))
inputs, targets = tokens[:, :-1], tokens[:, 1:]
"""
PARTS = {
    "pretrained": """
turns_of_training()
from benchmarks import throughput
throughput.wait_for_turn = lambda: None  # the turns are this benchmark's
throughput.pipeline_rank(folder / "job.json")
""",
    "plain training": MODEL
    + """
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
def step():
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(inputs, targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
repeat(step)
""",
    "generation": MODEL
    + """
from gpt_model.generation import generate
prompts = [list(range(1, 17))] * 8
repeat(lambda: generate(model, prompts, 96, seed=1))
""",
    "evaluation": MODEL + "repeat(lambda: model.loss_by_token(inputs, targets))",
    "sft": """
turns_of_training()
from benchmarks.alignment_sft import run_ours
run_ours(shared, steps + 9)
""",
    "reward": """
turns_of_training()
from benchmarks.alignment_reward import run_ours
run_ours(shared, steps + 9)
""",
    "dpo": """
turns_of_training()
from benchmarks.alignment_dpo import run_ours
run_ours(shared, steps + 9)
""",
    "ppo": """
turns_of_training()
from benchmarks.alignment_ppo import run_ours
run_ours(shared, "shared trunk", steps)
""",
}
PREFERENCES = "from benchmarks.alignment_reward import make_inputs; make_inputs(shared, steps + 9)"
INPUTS = {
    "sft": "from benchmarks.alignment_sft import make_inputs; make_inputs(shared, steps + 9)",
    "reward": PREFERENCES,
    "dpo": PREFERENCES,
    "ppo": "from benchmarks.alignment_ppo import make_inputs; make_inputs(shared)",
}


def started(tree: Path, part: str, folder: Path, steps: int, shared: Path) -> throughput.InTurns:
    """One commit's processes of a part."""
    folder.mkdir()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    environments = [environment]
    if part == "pretrained":
        profile = load_profile("cpu")
        environment |= worker_environment("cpu", profile.processes, profile.threads_each())
        environment["MASTER_PORT"] = str(free_port())
        ranks = map(str, range(profile.processes))
        environments = [environment | {"RANK": rank, "LOCAL_RANK": rank} for rank in ranks]
        job = {**json.loads((shared / "job.json").read_text()), "output": str(folder)}
        (folder / "job.json").write_text(json.dumps(job))
    return throughput.InTurns(
        ["-c", TURNS + PARTS[part], str(folder), str(steps), str(shared)],
        [each | {"PYTHONPATH": str(tree)} for each in environments],
        tree,
    )


def make_inputs(part: str, tree: Path, steps: int, shared: Path) -> None:
    """What both sides of a part read, made by one of them."""
    shared.mkdir()
    if part == "pretrained":
        case = throughput.cases({"tiny": steps + 9, "6x384": steps})["tiny"]
        throughput.make_inputs(shared, case["vocab_size"])
        profile = load_profile("cpu").model_dump(mode="json", exclude_unset=True)
        job = {"inputs": str(shared), "case": case, "profile": profile}
        (shared / "job.json").write_text(json.dumps(job))
    elif part in INPUTS:
        python(tree, "-c", TURNS + INPUTS[part], str(shared), str(steps), str(shared))


def compare(part: str, trees: Sequence[Path], steps: int, folder: Path) -> list[float]:
    """BEFORE's seconds over AFTER's, step by step."""
    folder.mkdir()
    make_inputs(part, trees[1], steps, folder / "inputs")
    with ExitStack() as stack:
        sides = []
        for name, tree in zip(("before", "after"), trees, strict=True):
            sides.append(started(tree, part, folder / name, steps, folder / "inputs"))
            stack.callback(sides[-1].stop)
        for step in range(SKIPPED_STEPS + steps):
            for side in sides if step % 2 else sides[::-1]:
                side.step()
        before, after = ([wall for wall, _ in side.steps[SKIPPED_STEPS:]] for side in sides)
    return [seconds / fewer for seconds, fewer in zip(before, after, strict=True)]


def interval(ratios: Sequence[float], resamples: int = 2000) -> tuple[float, float]:
    """95 % of the medians of as many steps drawn from these."""
    draw = random.Random(0)
    medians = sorted(
        statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(resamples)
    )
    return medians[resamples // 40], medians[-resamples // 40]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="compare-speed-") as scratch:
        folder = Path(scratch)
        trees = [
            checkout(commit, folder / name)
            for commit, name in ((given.before, "before"), (given.after, "after"))
        ]
        for part in given.parts:
            ratios = compare(part, trees, given.steps, folder / part)
            median, (low, high) = statistics.median(ratios), interval(ratios)
            print(
                f"{part}: {median:.3f} ({low:.3f} to {high:.3f}) of before, {len(ratios)} steps "
                f"{at_least(part, median, BAR)}",
                flush=True,
            )
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
