"""What a person is shown of the evaluated text that stands in the training text, and of how many
demonstrations fitted: one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = (
    "suite",
    "task",
    "metric",
    "K",
    "8-grams",
    "of them in training",
    "N",
    "clean examples",
    "score on them",
    "score on the dirty",
)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a line a score of `results.json`."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|---|---|--:|--:|--:|---|---|---|"]
    for row in rows:
        found = row["contamination"]
        percent = "–" if row["overlap_percent"] is None else f"{row['overlap_percent']:.3g} %"
        clean = f"{found['clean_percent']:.3g} %" + (
            f", {found['too_short']:,} too short to say" if found["too_short"] else ""
        )
        cells = [
            row["suite"],
            row["task"],
            row["metric"],
            _shots(row),
            f"{row['ngrams']:,}",
            percent,
            str(found["run"]),
            clean,
            _score(found["clean"]),
            _score(found["dirty"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", NOTES]) + "\n"


def _shots(row: Mapping[str, Any]) -> str:
    if "demonstrations" not in row:
        return "–"
    used = row["demonstrations"]
    return f"{used['mean']:.1f} of {used['asked']} (≥ {used['fewest']})" if used["asked"] else "0"


def _score(part: Mapping[str, Any] | None) -> str:
    if part is None:
        return "–"
    interval = "" if part["low"] is None else f" ({part['low']:.4g} to {part['high']:.4g})"
    return f"{part['value']:.4g}{interval}, {part['examples']:,} examples"


NOTES = (
    "K: demonstrations before a question, on average, and at least; as many of those asked for as fit the context. 8-grams: GPT-2's "
    "overlap (Radford et al. 2019, section 4), without its Bloom filter's false positives. Dirty: an example that shares N words in a row "
    "with a training document; N is the 5th percentile of the examples' lengths, 8 to 13 (Brown et al. 2020, appendix C). In brackets: "
    "95 % interval."
)
