"""Our scores beside published ones: the tables of the recipe's own paper, and the public
reproductions.

The numbers are `gpt_model.published`'s, each table under its source. A published row is shown only
where a score of ours stands in it: the row that `published` of the suite's task or of the
catalogue's entry names, with the known differences of data or protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from pandas import DataFrame

from assets.report.page import Section
from assets.report.score import Score, scaled
from assets.report.tables import Table
from gpt_model.published import Reference, Role, references

TITLES = {"gpt1": "GPT-1", "gpt2": "GPT-2", "gpt3": "GPT-3"}
GROUP = "Beside published numbers"
HUNDREDTHS = ("%", "points")  # units of a paper in which a share of ours is multiplied by 100
DIFFERS = "; differs: "  # after what a score of ours is on, before what does
OURS = ("ours (95 % interval)", "ours on")
INTRODUCTION = (
    "Each table is its source's, in its unit; of its rows those in which a score of ours stands. "
    "*Differs* names what is known to differ in data or protocol; model and training text always "
    "do. *Unverified*: checked against no source. *Read off a plot* and *derived* (by arithmetic): "
    "not printed as a number."
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
        if score.published is None or not score.complete:
            return False
        if self.shots is None and score.shots not in (None, "zero"):
            return False
        shots = None if self.shots is None else score.shots or "zero"
        key = (score.published["task"], score.published["metric"], shots)
        return key == (self.task, self.metric, self.shots)


def beside_the_paper(generation: str, ours: str, scores: Sequence[Score]) -> Section:
    """Of the tables of a generation's paper the rows with a score of ours. `ours`: our model in a
    phrase.
    """
    of_paper = [score for score in scores if score.paper in (None, generation)]
    return _section(f"{TITLES[generation]}'s paper", generation, "paper", of_paper, ours)


def reproductions(generation: str, ours: str, scores: Sequence[Score]) -> Section:
    """The same of what others made public."""
    return _section("Public reproductions", generation, "reproduction", scores, ours)


def _section(
    title: str, generation: str, role: Role, scores: Sequence[Score], ours: str
) -> Section:
    published = [
        reference
        for reference in references(generation=generation, role=role)
        if reference.kind == "scores"
    ]
    by_source = groupby(published, key=lambda reference: reference.source)
    tables = [_table(list(group), scores) for _, group in by_source]
    shown = [table for table in tables if len(table.frame)]
    return Section(
        title, shown, intro=f"{INTRODUCTION} Our model: {ours}.", in_order=True, group=GROUP
    )


def _table(published: Sequence[Reference], scores: Sequence[Score]) -> Table:
    """Those rows of one published table in which a score of ours stands."""
    ours: dict[Row, list[Score]] = {}
    printed: dict[Row, dict[str, str]] = {}
    shown = []
    for reference in published:
        row = Row(reference.task, reference.metric, reference.unit, reference.shots)
        if row not in ours:
            ours[row] = [score for score in scores if row.matches(score)]
        if ours[row]:
            printed.setdefault(row, {})[reference.model] = reference.printed
            shown.append(reference)
    models = list(dict.fromkeys(reference.model for reference in shown))
    rows = [
        {
            "task": row.task,
            "metric": row.measure,
            "shots": row.shots or "",
            **dict(zip(OURS, _ours(row, ours[row]), strict=True)),
            **{model: by_model.get(model, "") for model in models},
        }
        for row, by_model in printed.items()
    ]
    table = Table(DataFrame(rows), published[0].source, _note(shown) if shown else "")
    return table if any(row.shots for row in printed) else table.without_empty_columns()


def _ours(row: Row, scores: Iterable[Score]) -> tuple[str, str]:
    """(value with its interval, its sample and what differs)."""
    values, samples = [], []
    for score in scores:
        factor = 100.0 if row.unit in HUNDREDTHS and not score.scale else 1.0
        values.append(f"{scaled(score.value, factor)} ({score.interval(factor)})")
        samples.append(score.sample() + _differs(score))
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
