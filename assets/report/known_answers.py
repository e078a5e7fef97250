"""The check "reproduces what is known": an imported model's scores against those the same weights
are known to have by the same protocol.

Which model it is says the recipe (`evaluation.known`), the numbers are `gpt_model.published`'s,
which protocol each is of says the suite. So an evaluator is believed once it gives known answers,
before any score of one's own is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from assets.contract import Built, Verdict
from gpt_model.published import Reference, references

# The same weights on the same examples: what is left is rounding (that of the printed number, and
# 16-bit arithmetic in the old runs).
TOLERANCE = 0.005  # of the value


def reproduces_what_is_known(built: Built) -> Verdict:
    """Every known number of the model that a score of the same task and metric stands beside; one
    that is unverified decides nothing.

    Where nothing decides, nothing is known of the evaluator, and that is no pass.
    """
    model = built.config.get("known")
    if model is None:
        return Verdict(True, "The recipe names no model whose scores are known (evaluation.known).")
    rows = json.loads((built.output / "results.json").read_text(encoding="utf-8"))["rows"]
    missing = [
        f"{row['suite']}/{row['task']}: {row['not_run']}" for row in rows if "not_run" in row
    ]
    beside = [(row, one) for row in rows if (one := _known(row, model))]
    compared = [(row, one) for row, one in beside if one.sure == "verified"]
    wrong = [f"{row['task']} {row['metric']}" for row, one in compared if not _same(row, one)]
    said = "; ".join(
        f"{row['task']} {row['metric']} {row['value']:.4g}, known {one.printed}"
        for row, one in beside
    )
    told = (
        f"{len(compared) - len(wrong)} of {len(compared)} verified answers of {model} come out"
        if compared
        else f"Nothing compared: no score stands beside a verified answer of {model}, so the evaluator is not known to be right"
    )
    told += f": {said}." if said else "."
    told += f" Not these: {', '.join(wrong)}." if wrong else ""
    told += f" Not run here: {'; '.join(missing)}." if missing else ""
    return Verdict(
        bool(compared) and not wrong, told, {"compared": len(compared), "wrong": len(wrong)}
    )


def _known(row: Mapping[str, Any], model: str) -> Reference | None:
    place = row.get("published")
    if not place:
        return None
    found = references(task=place["task"], metric=place["metric"], role="reproduction")
    return min(
        (one for one in found if one.model == model),
        key=lambda one: one.sure != "verified",
        default=None,
    )


def _same(row: Mapping[str, Any], known: Reference) -> bool:
    """Within rounding; of a subset of the examples, within the score's own interval."""
    hundredths = 0.01 if known.unit == "%" else 1.0  # a share of ours stands in per cent there
    value, decimals = known.value * hundredths, len(known.text.partition(" ")[0].partition(".")[2])
    if row["examples"] < row["available"]:
        return bool(row["low"] <= value <= row["high"])
    return abs(row["value"] - value) <= 0.5 * 10.0**-decimals * hundredths + TOLERANCE * value
