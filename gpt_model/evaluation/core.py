"""CORE: the mean over 22 tasks of accuracy centred on what guessing gives, (accuracy - baseline) /
(1 - baseline) (Li et al. 2024).

DCLM corrected three of its baselines in September 2025; scores by the first (v1) and the corrected
ones (v2) differ, so each is named, and how the three are known stands with every mean by them.
Where one of a suite's tasks is not run there is no score: a mean of fewer tasks is another number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpt_model.evaluation.metrics import Z, error_of
from gpt_model.evaluation.suites import SuiteTask
from gpt_model.rounding import rounded

NAME = "CORE"
BASELINES = {
    "v1": "DCLM's first baselines, v1",
    "v2": "DCLM's corrected baselines, v2, of which three are worked out from its own results, not read",
}
# karpathy/nanochat's CORE is by v1: the table of GPT-2 XL in its evaluation bundle has, of language
# identification, an accuracy of 0.25 as 0.174917 centred, so a baseline of 9.1 %, and of
# CommonsenseQA 0.227 as 0.03375, so one of 20 %. DCLM's own scores are by v2.
PUBLISHED = {
    "v1": {
        "task": NAME,
        "metric": "score",
        "differs": "prompts without the beginning-of-text token that nanochat puts before them",
    },
    "v2": {
        "task": "CORE by v2",
        "metric": "score",
        "differs": "demonstrations drawn as nanochat draws them, not DCLM",
    },
}


def centred_means(
    tasks: Sequence[SuiteTask], rows: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A row for each version of the baselines that `tasks`, all of one suite, have; one row that
    says why, where a task was not run.
    """
    centred = [task for task in tasks if task.metadata.centred]
    if not centred:
        return
    suite = centred[0].suite
    scored = {
        row["task"]: row for row in rows if row["suite"] == suite and row.get("metric") == "acc"
    }
    if missing := [task.name for task in centred if task.name not in scored]:
        told = f"it is the mean of {len(centred)} tasks, and {len(missing)} of them are not run here: {', '.join(missing)}"
        yield {"suite": suite, "task": NAME, "not_run": told}
        return
    for version in centred[0].metadata.centred:
        yield _mean(
            suite,
            version,
            [(scored[task.name], task.metadata.centred[version] / 100) for task in centred],
        )


def _mean(
    suite: str, version: str, accuracies: Sequence[tuple[Mapping[str, Any], float]]
) -> dict[str, Any]:
    number = len(accuracies)
    value = sum((row["value"] - guessing) / (1 - guessing) for row, guessing in accuracies) / number
    error = (
        math.sqrt(sum((error_of(row) / (1 - guessing)) ** 2 for row, guessing in accuracies))
        / number
    )
    examples, available = (
        sum(row[name] for row, _ in accuracies) for name in ("examples", "available")
    )
    description = f"mean of {number} accuracies centred on {BASELINES.get(version, version)}"
    return {
        "suite": suite,
        "task": NAME,
        "metric": version,
        "value": rounded(value),
        "stderr": rounded(error),
        "low": rounded(value - Z * error),
        "high": rounded(value + Z * error),
        "baseline": "guessing 0.000",
        "baseline_value": 0.0,
        "lower_is_better": False,
        "examples": examples,
        "available": available,
        "too_long": sum(row["too_long"] for row, _ in accuracies),
        "description": description,
        "note": description,
        "split": "each task's own split",
        **({"published": PUBLISHED[version]} if version in PUBLISHED else {}),
    }
