"""What a figure is held against, in words. A missed bar is printed as missed, and the benchmark
ends with status 1: `verdict`.

Nothing is rounded towards a bar, and what is not a number has missed it.
"""

from __future__ import annotations

import os
from pathlib import Path

# the environment's variable: a file to which `verdict` adds what was missed
MISSED_FILE = "BENCHMARKS_MISSED"
_missed: list[str] = []  # of this process, in the order they were said


def at_most(figure: str, value: float, bar: float, unit: str = "") -> str:
    return _said(figure, value, "≤", bar, unit, value <= bar)


def at_least(figure: str, value: float, bar: float, unit: str = "") -> str:
    return _said(figure, value, "≥", bar, unit, value >= bar)


def below(figure: str, value: float, bar: float, unit: str = "") -> str:
    return _said(figure, value, "<", bar, unit, value < bar)


def _said(figure: str, value: float, sign: str, bar: float, unit: str, met: bool) -> str:
    unit = unit and f" {unit}"
    if not met:
        _missed.append(f"{figure} {value:.4g}{unit}, bar {sign} {bar:.4g}{unit}")
    return f"(bar {sign} {bar:.4g}{unit}: {'met' if met else 'MISSED'})"


def verdict() -> int:
    """The status to end with; every bar that this process missed is printed, and written where
    `python -m benchmarks` reads it.
    """
    for line in _missed:
        print(f"missed: {line}", flush=True)
    if _missed and (file := os.environ.get(MISSED_FILE)):
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.writelines(f"{line}\n" for line in _missed)
    return 1 if _missed else 0
