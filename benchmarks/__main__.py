"""`make bench`: the figures of docs/performance.md, measured one after the other. About two and a
quarter hours on two cores, nothing beside it: one of them for `bits`.

python -m benchmarks [PART …]     all by default: demo bits speed banded generation evaluation
memory steps elastic sharded sharded-ppo plan sft reward dpo ppo; figures go to benchmarks/results/

Every part is run, whatever came of those before; the status is 1 where one failed or missed a bar,
and the last lines say which.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.bars import MISSED_FILE  # noqa: E402

RESULTS = HERE / "results"
PARTS = {
    "demo": ["demo.py", "--json", str(RESULTS / "demo.json")],
    "bits": ["bits_per_byte.py", "--json", str(RESULTS / "bits_per_byte.json")],
    "speed": ["throughput.py", "--json", str(RESULTS / "throughput.json")],
    "banded": ["banded_attention.py", "--json", str(RESULTS / "banded_attention.json")],
    "generation": ["generation_speed.py", "--json", str(RESULTS / "generation_speed.json")],
    "evaluation": ["evaluation_speed.py"],
    "memory": ["tokenize_memory.py"],
    "steps": ["same_steps.py"],
    "elastic": ["elastic.py"],
    "sharded": ["sharded_memory.py"],
    "sharded-ppo": ["sharded_memory.py", "--ppo", "--layers", "8", "--width", "512"],
    "plan": ["memory_plan.py", "--json", str(RESULTS / "memory_plan.json")],
    "sft": ["alignment_sft.py", "--json", str(RESULTS / "alignment_sft.json")],
    "reward": ["alignment_reward.py", "--json", str(RESULTS / "alignment_reward.json")],
    "dpo": ["alignment_dpo.py", "--json", str(RESULTS / "alignment_dpo.json")],
    "ppo": ["alignment_ppo.py", "--json", str(RESULTS / "alignment_ppo.json")],
}


def main() -> int:
    chosen = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        print(
            f"There is no benchmark {unknown[0]!r}; there are {', '.join(PARTS)}.", file=sys.stderr
        )
        return 2
    RESULTS.mkdir(exist_ok=True)
    return run({name: [str(HERE / PARTS[name][0]), *PARTS[name][1:]] for name in chosen})


def run(parts: Mapping[str, Sequence[str]]) -> int:
    """Run every part, then say which bars were missed and which parts failed otherwise; 1 where
    there are any.
    """
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        for name, command in parts.items():
            print(f"\n== {name} ==", flush=True)
            missed = Path(folder) / name
            status = subprocess.run(
                [sys.executable, *command],
                env={**os.environ, MISSED_FILE: str(missed)},
                check=False,
            ).returncode
            lines = missed.read_text(encoding="utf-8").splitlines() if missed.exists() else []
            wrong += [f"{name} missed: {line}" for line in lines]
            if status and not lines:
                wrong.append(f"{name} failed with status {status}")
    print("\n" + ("\n".join(wrong) or "every bar met"), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
