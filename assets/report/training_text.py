"""The table of what of the evaluated text stands in the training text, and of how many
demonstrations fitted.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt_model.evaluation.results import Demonstrations, ScoreRow, SubsetScore

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


def table(rows: Sequence[ScoreRow]) -> str:
    """Markdown, a line for each score whose examples were looked up in the training text."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|---|---|--:|--:|--:|---|---|---|"]
    for row in rows:
        if (overlap := row.overlap) is None:
            continue
        clean = f"{overlap.clean_percent:.3g} %" + (
            f", {overlap.too_short:,} too short to say" if overlap.too_short else ""
        )
        cells = [
            row.suite,
            row.task,
            row.metric,
            _shots(row.demonstrations),
            f"{overlap.ngrams:,}",
            "–" if overlap.percent is None else f"{overlap.percent:.3g} %",
            str(overlap.run),
            clean,
            _score(overlap.clean),
            _score(overlap.dirty),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", NOTES]) + "\n"


def _shots(used: Demonstrations | None) -> str:
    if used is None:
        return "–"
    if not used.requested:
        return "0"
    return f"{used.mean:.1f} of {used.requested} (≥ {used.fewest})"


def _score(part: SubsetScore | None) -> str:
    if part is None:
        return "–"
    interval = "" if part.low is None else f" ({part.low:.4g} to {part.high:.4g})"
    return f"{part.value:.4g}{interval}, {part.examples:,} examples"


NOTES = (
    "K: demonstrations before a question, on average, and at least; as many of those asked for as "
    "fit the context. 8-grams: GPT-2's overlap (Radford et al. 2019, section 4), without its Bloom "
    "filter's false positives. Dirty: an example that shares N words in a row with a training "
    "document; N is the 5th percentile of the examples' lengths, 8 to 13 (Brown et al. 2020, "
    "appendix C). In brackets: 95 % interval."
)
