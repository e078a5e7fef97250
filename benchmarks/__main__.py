"""`make bench`: every figure of docs/performance.md, measured one after the other. About 40 minutes on two cores, nothing beside it.

python -m benchmarks [PART …]     all by default: demo bits speed banded generation evaluation memory; figures go to benchmarks/results/
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PARTS = {
    "demo": ["demo.py", "--json", str(RESULTS / "demo.json")],
    "bits": ["bits_per_byte.py", "--json", str(RESULTS / "bits_per_byte.json")],
    "speed": ["throughput.py", "--json", str(RESULTS / "throughput.json")],
    "banded": ["banded_attention.py", "--json", str(RESULTS / "banded_attention.json")],
    "generation": ["generation_speed.py", "--json", str(RESULTS / "generation_speed.json")],
    "evaluation": ["evaluation_speed.py"],
    "memory": ["tokenize_memory.py"],
}


def main() -> int:
    chosen = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        print(f"There is no benchmark {unknown[0]!r}; there are {', '.join(PARTS)}.", file=sys.stderr)
        return 2
    RESULTS.mkdir(exist_ok=True)
    failed = []
    for name in chosen:
        script, *arguments = PARTS[name]
        print(f"\n== {name} ==", flush=True)
        if subprocess.run([sys.executable, str(HERE / script), *arguments], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
