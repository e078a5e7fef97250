"""Scores that are a mean over a suite's tasks: CORE (Li et al. 2024) and SuperGLUE (Wang et al.
2019).

Where one of the tasks is not run there is no score: a mean of fewer tasks is another number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from gpt_model.evaluation.results import Demonstrations, ScoreRow, UnavailableRow
from gpt_model.evaluation.suites import SuiteTask
from gpt_model.io import rounded
from gpt_model.statistics import normal_interval

CORE = "CORE"
# DCLM corrected three of its baselines in September 2025, so a score says which ones it is by.
CORE_BASELINES = {
    "v1": "DCLM's first baselines, v1",
    "v2": "DCLM's corrected baselines, v2, of which three are worked out from its own results, "
    "not read",
}
# karpathy/nanochat's CORE is by v1: the table of GPT-2 XL in its evaluation bundle has, of language
# identification, an accuracy of 0.25 as 0.174917 centred, so a baseline of 9.1 %, and of
# CommonsenseQA 0.227 as 0.03375, so one of 20 %. DCLM's own scores are by v2.
CORE_PUBLISHED = {
    "v1": {
        "task": CORE,
        "metric": "score",
        "differs": "prompts without the beginning-of-text token that nanochat puts before them",
    },
    "v2": {
        "task": "CORE by v2",
        "metric": "score",
        "differs": "demonstrations drawn as nanochat draws them, not DCLM",
    },
}
SUPERGLUE = "SuperGLUE"
# GPT-3's eleven test scores have their mean, 71.8, printed beside them (Brown et al. 2020, table
# 3.8).
SUPERGLUE_PUBLISHED = {
    "task": SUPERGLUE,
    "metric": "score",
    "differs": "BoolQ on a part of its sets; WSC written greedily, not by a beam of 4; "
    "MultiRC's demonstrations counted by the answer",
}
SHOTS = ("zero", "one", "few")


def aggregate_rows(
    tasks: Sequence[SuiteTask], rows: Sequence[ScoreRow]
) -> Iterator[ScoreRow | UnavailableRow]:
    """Every mean over `tasks`, all of one suite, that their metadata ask for, from their scores."""
    yield from core_rows(tasks, rows)
    yield from superglue_rows(tasks, rows)


def core_rows(
    tasks: Sequence[SuiteTask], rows: Sequence[ScoreRow]
) -> Iterator[ScoreRow | UnavailableRow]:
    """CORE: the mean of accuracies centred on guessing, (accuracy - baseline) / (1 - baseline).

    A row for each version of the baselines; one row that says why, where a task was not run.
    """
    centred = [task for task in tasks if task.metadata.centred]
    if not centred:
        return
    suite = centred[0].suite
    scored = {row.task: row for row in rows if row.suite == suite and row.metric == "acc"}
    if missing := [task.name for task in centred if task.name not in scored]:
        yield UnavailableRow(suite, CORE, _incomplete(len(centred), missing))
        return
    for version in centred[0].metadata.centred:
        baselines = [task.metadata.centred[version] / 100 for task in centred]
        yield _core(version, [scored[task.name] for task in centred], baselines)


def _core(version: str, accuracies: Sequence[ScoreRow], baselines: Sequence[float]) -> ScoreRow:
    pairs = list(zip(accuracies, baselines, strict=True))
    number = len(pairs)
    value = sum((row.value - baseline) / (1 - baseline) for row, baseline in pairs) / number
    error = math.sqrt(sum((row.error / (1 - baseline)) ** 2 for row, baseline in pairs)) / number
    return _mean_row(
        CORE,
        version,
        value,
        error,
        accuracies,
        f"mean of {number} accuracies centred on {CORE_BASELINES.get(version, version)}",
        baseline="guessing 0.000",
        baseline_value=0.0,
        published=CORE_PUBLISHED.get(version),
    )


def superglue_rows(
    tasks: Sequence[SuiteTask], rows: Sequence[ScoreRow]
) -> Iterator[ScoreRow | UnavailableRow]:
    """SuperGLUE: the mean over its eight tasks, each the mean of its own metrics.

    A row for each number of shots; or one that says why, where a task was not run.
    """
    averaged = [task for task in tasks if task.metadata.average]
    if not averaged:
        return
    suite = averaged[0].suite
    scored = {(row.task, row.metric): row for row in rows if row.suite == suite}
    for shots in SHOTS:
        by_task = {
            task.name: [
                scored.get((f"{task.name}_{shots}", metric)) for metric in task.metadata.average
            ]
            for task in averaged
        }
        name = f"{SUPERGLUE}_{shots}"
        if missing := [task for task, scores in by_task.items() if None in scores]:
            reason = _incomplete(len(averaged), missing)
            yield UnavailableRow(suite, name, reason, SUPERGLUE_PUBLISHED)
        else:
            yield _superglue(name, [[row for row in scores if row] for scores in by_task.values()])


def _superglue(name: str, tasks: Sequence[Sequence[ScoreRow]]) -> ScoreRow:
    """The mean over `tasks`, each the rows of its metrics.

    Metrics of one task are of the same examples, so the mean of their errors stands for the task's.
    """
    number = len(tasks)
    value = sum(_mean([row.value for row in rows]) for rows in tasks) / number
    error = math.sqrt(sum(_mean([row.error for row in rows]) ** 2 for rows in tasks)) / number
    first = [rows[0] for rows in tasks]
    shown = [row.demonstrations for row in first if row.demonstrations]
    return _mean_row(
        name,
        "score",
        value,
        error,
        first,
        f"mean of {number} tasks on the development sets, but BoolQ on a part of its sets",
        published=SUPERGLUE_PUBLISHED,
        demonstrations=Demonstrations(
            max(demonstrations.requested for demonstrations in shown),
            min(demonstrations.fewest for demonstrations in shown),
            rounded(sum(demonstrations.mean for demonstrations in shown) / number),
        ),
    )


def _mean_row(
    task: str,
    metric: str,
    value: float,
    error: float,
    of: Sequence[ScoreRow],
    description: str,
    *,
    baseline: str = "",
    baseline_value: float | None = None,
    published: Mapping[str, str] | None = None,
    demonstrations: Demonstrations | None = None,
) -> ScoreRow:
    """The row of a mean of independent scores `of` tasks, with its normal 95 % interval."""
    interval = normal_interval(value, error)
    return ScoreRow(
        of[0].suite,
        task,
        metric,
        rounded(value),
        stderr=rounded(error),
        low=rounded(interval.low),
        high=rounded(interval.high),
        baseline=baseline,
        baseline_value=baseline_value,
        examples=sum(row.examples for row in of),
        available=sum(row.available for row in of),
        too_long=sum(row.too_long for row in of),
        empty=sum(row.empty for row in of),
        cut=sum(row.cut or 0 for row in of),
        cut_tokens=max(row.cut_tokens for row in of),
        description=description,
        note=description,
        split="each task's own split",
        published=published,
        demonstrations=demonstrations,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _incomplete(number: int, missing: Sequence[str]) -> str:
    return (
        f"it is the mean of {number} tasks, and {len(missing)} of them are not run here: "
        f"{', '.join(missing)}"
    )
