"""The check "reproduces what is known": an imported model's scores against the known scores of the
same weights by the same protocol.

The recipe names the model (`evaluation.known`), the suite the protocol; the numbers are
`gpt_model.published`'s. An evaluator that gives known answers can be trusted with new models.
"""

from __future__ import annotations

from collections.abc import Mapping

from assets.contract import Built, Verdict
from gpt_model.evaluation.results import Results, ScoreRow
from gpt_model.published import Reference, references

# Same weights, same examples: only rounding remains, of the printed number and of 16-bit arithmetic
# in the old runs.
TOLERANCE = 0.005  # of the value


def reproduces_what_is_known(built: Built) -> Verdict:
    """Compare every known number of the model with our score of the same task and metric. An
    unverified number decides nothing.

    Where nothing decides, nothing is known of the evaluator: the check fails.
    """
    model = built.config.get("known")
    if model is None:
        return Verdict(True, "The recipe names no model whose scores are known (evaluation.known).")
    results = Results.read(built.output)
    missing = [f"{row.suite}/{row.task}: {row.reason}" for row in results.unavailable]
    beside = [
        (row, reference)
        for row in results.scores
        if (reference := _reference(row.published, model))
    ]
    compared = [(row, reference) for row, reference in beside if reference.certainty == "verified"]
    wrong = [f"{row.task} {row.metric}" for row, reference in compared if not _same(row, reference)]
    summary = (
        f"{len(compared) - len(wrong)} of {len(compared)} verified answers of {model} come out"
        if compared
        else f"Nothing compared: no score stands beside a verified answer of {model}, "
        "so the evaluator is not known to be right"
    )
    pairs = "; ".join(
        f"{row.task} {row.metric} {row.value:.4g}, known {reference.printed}"
        for row, reference in beside
    )
    summary += f": {pairs}." if pairs else "."
    summary += f" Not these: {', '.join(wrong)}." if wrong else ""
    summary += f" Not run here: {'; '.join(missing)}." if missing else ""
    return Verdict(
        bool(compared) and not wrong, summary, {"compared": len(compared), "wrong": len(wrong)}
    )


def _reference(published: Mapping[str, str] | None, model: str) -> Reference | None:
    """The model's number in the row `published`, a verified one before others."""
    if not published:
        return None
    numbers = references(task=published["task"], metric=published["metric"], role="reproduction")
    return min(
        (reference for reference in numbers if reference.model == model),
        key=lambda reference: reference.certainty != "verified",
        default=None,
    )


def _same(row: ScoreRow, known: Reference) -> bool:
    """Within rounding; of a subset of the examples, within the score's own interval."""
    hundredths = 0.01 if known.unit == "%" else 1.0  # a share of ours stands in per cent there
    value, decimals = known.value * hundredths, len(known.text.partition(" ")[0].partition(".")[2])
    if row.examples < row.available:
        return row.low is not None and row.high is not None and row.low <= value <= row.high
    return abs(row.value - value) <= 0.5 * 10.0**-decimals * hundredths + TOLERANCE * value
