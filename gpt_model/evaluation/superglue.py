"""SuperGLUE's score: the mean over its eight tasks, each the mean of its own metrics (Wang et al.
2019), for each number of shots.

So GPT-3's is made too: its eleven test scores (Brown et al. 2020, table 3.8) have the mean printed
beside them, 71.8. Where one of the tasks is not run there is no score: a mean of fewer tasks is
another number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gpt_model.evaluation.metrics import Z, error_of
from gpt_model.evaluation.suites import SuiteTask
from gpt_model.rounding import rounded

NAME = "SuperGLUE"
PUBLISHED = {
    "task": "SuperGLUE",
    "metric": "score",
    "differs": "BoolQ on a part of its sets; WSC written greedily, not by a beam of 4; MultiRC's demonstrations counted by the answer",
}
SETTINGS = ("zero", "one", "few")


def averages(
    tasks: Sequence[SuiteTask], rows: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A row for each setting that `tasks`, all of one suite, are scored in; or one that says why,
    where a task was not run.
    """
    averaged = [task for task in tasks if task.metadata.average]
    if not averaged:
        return
    suite = averaged[0].suite
    found = {
        (row["task"], row["metric"]): row
        for row in rows
        if row["suite"] == suite and "value" in row
    }
    for setting in SETTINGS:
        scored = {
            task.name: [
                found.get((f"{task.name}_{setting}", metric)) for metric in task.metadata.average
            ]
            for task in averaged
        }
        if missing := [name for name, its in scored.items() if None in its]:
            told = f"it is the mean of {len(averaged)} tasks, and {len(missing)} of them are not run here: {', '.join(missing)}"
            yield {
                "suite": suite,
                "task": f"{NAME}_{setting}",
                "not_run": told,
                "published": PUBLISHED,
            }
        else:
            yield _mean(suite, setting, [[row for row in its if row] for its in scored.values()])


def _mean(suite: str, setting: str, tasks: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """`tasks`: the rows of each one's metrics, which are of the same examples, so that the mean of
    their errors stands for the task's.
    """
    value = sum(_of_task(its, lambda row: float(row["value"])) for its in tasks) / len(tasks)
    error = math.sqrt(sum(_of_task(its, error_of) ** 2 for its in tasks)) / len(tasks)
    shown = [its[0]["demonstrations"] for its in tasks]
    description = (
        f"mean of {len(tasks)} tasks on the development sets, but BoolQ on a part of its sets"
    )
    return {
        "suite": suite,
        "task": f"{NAME}_{setting}",
        "metric": "score",
        "value": rounded(value),
        "stderr": rounded(error),
        "low": rounded(value - Z * error),
        "high": rounded(value + Z * error),
        "baseline": "",
        "baseline_value": None,
        "lower_is_better": False,
        "examples": sum(its[0]["examples"] for its in tasks),
        "available": sum(its[0]["available"] for its in tasks),
        "too_long": sum(its[0]["too_long"] for its in tasks),
        "description": description,
        "note": description,
        "split": "each task's own split",
        "published": PUBLISHED,
        "shots": setting,
        "demonstrations": {
            "asked": max(one["asked"] for one in shown),
            "fewest": min(one["fewest"] for one in shown),
            "mean": rounded(sum(one["mean"] for one in shown) / len(tasks)),
        },
    }


def _of_task(rows: Sequence[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], float]) -> float:
    return sum(of(row) for row in rows) / len(rows)
