"""How many digits of a number are written into files that are hashed."""

from __future__ import annotations

from typing import overload


@overload
def rounded(value: float) -> float: ...
@overload
def rounded(value: None) -> None: ...
@overload
def rounded(value: float | None) -> float | None: ...
def rounded(value: float | None) -> float | None:
    """Six significant digits: below what the order of additions on another number of threads
    changes, above what anyone reads.
    """
    return None if value is None else float(f"{value:.6g}")
