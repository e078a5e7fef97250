"""Our scores beside the published ones: the tables of the recipe's own paper, a column of ours in
each, and the public reproductions.

The numbers are `gpt_model.published`'s, each table under its source. A score of ours stands in the
row that `published` of the suite's task or of the catalogue's entry names, with the known
differences of data or protocol; all others are listed apart, without a paper's number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from pandas import DataFrame

from assets.report.columns import NOT_HERE
from assets.report.page import Section
from assets.report.scores import NotRun, Score, scaled
from assets.report.tables import Table
from gpt_model.published import Reference, Role, references

TITLES = {"gpt1": "GPT-1", "gpt2": "GPT-2", "gpt3": "GPT-3"}
HUNDREDTHS = ("%", "points")  # units of a paper in which a share of ours is multiplied by 100
NOT_REQUESTED = "not in the recipe"
DIFFERS = "; differs: "  # after what a score of ours is on, before what does
OURS = ("ours (95 % interval)", "ours on")
INTRODUCTION = (
    "The paper's numbers stand as printed, each table under its source. *Unverified*: checked "
    "against no source; *read off a plot* and *derived* (by arithmetic) say what they are. Ours "
    "stand in the row of their task and metric, with their 95 % interval, sample size and split "
    "(or the recipe's own file in its place), and *differs* says what of data or protocol is known "
    "not to be the paper's; model and training text are ours throughout, and K is what fits our "
    "context. *Not run here*: the data cannot be had on this machine, or the recipe has no task "
    "that could stand there (*not in the recipe*)."
)


class Row(NamedTuple):
    """What one row of a published table measures."""

    task: str
    metric: str
    unit: str
    shots: str | None

    @property
    def measure(self) -> str:
        """ "acc, %" """
        return ", ".join(filter(None, (self.metric.replace("_", " "), self.unit)))

    def matches(self, score: Score) -> bool:
        """Whether a score of ours stands in it. In a table without shots only what has no
        demonstrations does.
        """
        if score.published is None or (self.shots is None and score.shots not in (None, "zero")):
            return False
        shots = None if self.shots is None else score.shots or "zero"
        key = (score.published["task"], score.published["metric"], shots)
        return key == (self.task, self.metric, self.shots)


def beside_the_paper(
    generation: str, ours: str, scores: Sequence[Score], missing: Sequence[NotRun]
) -> Section:
    """The tables of a generation's paper. `ours`: our model in a phrase."""
    scores_of_paper = [score for score in scores if score.paper in (None, generation)]
    missing_of_paper = [entry for entry in missing if entry.paper in (None, generation)]
    tables = [
        _table(group, scores_of_paper, missing_of_paper)
        for group in _by_source(generation, "paper")
    ]
    return Section(
        f"{TITLES[generation]}: ours beside the paper",
        [*tables, *_unpublished(scores, missing)],
        intro=f"{INTRODUCTION} Ours: {ours}.",
        in_order=True,
    )


def reproductions(generation: str, scores: Sequence[Score]) -> Section:
    """What others made public of the same kind, ours in the row of the same task and metric."""
    return Section(
        "Public reproductions",
        [_table(group, scores, ()) for group in _by_source(generation, "reproduction")],
        in_order=True,
    )


def _by_source(generation: str, role: Role) -> list[list[Reference]]:
    """Tables of scores first, then of facts."""
    published = sorted(
        references(generation=generation, role=role),
        key=lambda reference: reference.kind != "scores",
    )
    return [list(group) for _, group in groupby(published, key=lambda reference: reference.source)]


def _table(
    published: Sequence[Reference], scores: Sequence[Score], missing: Sequence[NotRun]
) -> Table:
    """One published table, a row a task. A paper's scores always have a column of ours, other
    tables where there is one of ours.
    """
    first = published[0]
    printed: dict[Row, dict[str, str]] = {}
    for reference in published:
        row = Row(reference.task, reference.metric, reference.unit, reference.shots)
        printed.setdefault(row, {})[reference.model] = reference.printed
    models = list(dict.fromkeys(reference.model for reference in published))
    scored = first.kind == "scores"
    ours = {row: [score for score in scores if scored and row.matches(score)] for row in printed}
    with_ours = (scored and first.role == "paper") or any(ours.values())
    if not with_ours and len(models) > len(printed):
        frame = _a_row_a_model(printed, models)
    else:
        with_shots = any(row.shots for row in printed)
        frame = DataFrame(
            {
                "task": row.task,
                "metric": row.measure,
                **({"shots": row.shots or ""} if with_shots else {}),
                **(
                    dict(zip(OURS, _ours(row, ours[row], missing), strict=True))
                    if with_ours
                    else {}
                ),
                **{model: by_model.get(model, "") for model in models},
            }
            for row, by_model in printed.items()
        )
    return Table(frame, first.source, _note(published))


def _a_row_a_model(printed: dict[Row, dict[str, str]], models: Sequence[str]) -> DataFrame:
    """The table lying the other way, where it has more models than rows."""
    heads = [" ".join(filter(None, (row.task, row.measure, row.shots))) for row in printed]
    cells = [[model, *(row.get(model, "") for row in printed.values())] for model in models]
    return DataFrame(cells, columns=["", *heads])


def _ours(row: Row, scores: Iterable[Score], missing: Iterable[NotRun]) -> tuple[str, str]:
    """(value with its interval, its sample and what differs), or that there is none and why."""
    shown = [score for score in scores if score.complete]
    if not shown:
        reasons = [
            entry.short_reason
            for entry in missing
            for published in entry.published
            if (published["task"], published["metric"]) == (row.task, row.metric)
        ]
        return NOT_HERE, "; ".join(dict.fromkeys(reasons)) or NOT_REQUESTED
    values = []
    for score in shown:
        factor = 100.0 if row.unit in HUNDREDTHS and not score.scale else 1.0
        values.append(f"{scaled(score.value, factor)} ({score.interval(factor)})")
    samples = [score.sample() + _differs(score) for score in shown]
    return " · ".join(values), " · ".join(samples)


def _differs(score: Score) -> str:
    difference = (score.published or {}).get("differs")
    return f"{DIFFERS}{difference}" if difference else ""


def _note(published: Sequence[Reference]) -> str:
    first = published[0]
    notes = [
        f"{reference.model}, {reference.task}: {reference.note}"
        for reference in published
        if reference.note and reference.certainty != "memory"
    ]
    parts = [
        f"Protocol: {first.protocol}." if first.protocol else "",
        first.table_note,
        "; ".join(notes) + "." if notes else "",
    ]
    return " ".join(filter(None, parts))


def _unpublished(scores: Sequence[Score], missing: Sequence[NotRun]) -> list[Table]:
    """Scores of ours that are measured in no published way, one row for those with one note."""
    names: dict[tuple[str, str], list[str]] = {}
    for score in scores:
        if score.published is None and score.complete:
            names.setdefault((score.asset, score.note), []).append(score.name)
    for entry in missing:
        if not entry.published:
            names.setdefault((entry.asset, f"{NOT_HERE}: {entry.reason}"), []).append(entry.name)
    rows = [
        {"artifact": asset, "scores": " · ".join(names_of), "what they are": note}
        for (asset, note), names_of in names.items()
    ]
    title = "measured otherwise than any published number, so none stands beside"
    return [Table(rows, title)] if rows else []
