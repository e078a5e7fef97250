"""Our scores beside the published ones: the tables of the recipe's own paper, a column of ours in
each, and the public reproductions.

The numbers are `gpt_model.published`'s, each table under its source. A score of ours stands in the
row that `published` of the suite's task or of the catalogue's entry names, with what of data or
protocol is known to differ; all others are named apart, without a paper's number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from assets.report.page import Section, Table
from assets.report.scores import NotRun, Score, scaled
from gpt_model.published import Reference, Role, references

TITLES = {"gpt1": "GPT-1", "gpt2": "GPT-2", "gpt3": "GPT-3"}
HUNDREDTHS = ("%", "points")  # units of a paper in which a share of ours is multiplied by 100
NOT_HERE, NOT_ASKED = "not run here", "not in the recipe"
DIFFERS = "; differs: "  # before what does, after what a score of ours is on
OURS = ("ours (95 % interval)", "ours on")
READING = (
    "The paper's numbers stand as printed, each table under its source. *Unverified*: checked against no source; *read off a plot* and "
    "*derived* (by arithmetic) say what they are. Ours stand in the row of their task and metric, with their 95 % interval, sample size "
    "and split (or the recipe's own file in its place), and *differs* says what of data or protocol is known not to be the paper's; model "
    "and training text are ours throughout, and K is what fits our context. *Not run here*: the data cannot be had on this machine, or the "
    "recipe has no task that could stand there (*not in the recipe*)."
)

Key = tuple[str, str, str | None]  # task, metric, shots


def beside_the_paper(
    generation: str, ours: str, scores: Sequence[Score], missing: Sequence[NotRun]
) -> Section:
    """The page of a generation. `ours`: our model in a phrase."""
    fitting = [score for score in scores if score.paper in (None, generation)]
    lacking = [one for one in missing if one.paper in (None, generation)]
    made = [_table(group, fitting, lacking) for group in _by_source(generation, "paper")]
    shown = [*made, *_without_one(scores, missing)]
    return Section(
        f"{TITLES[generation]}: ours beside the paper",
        shown,
        intro=f"{READING} Ours: {ours}.",
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
    found = sorted(
        references(generation=generation, role=role), key=lambda one: one.kind != "scores"
    )
    return [list(group) for _, group in groupby(found, key=lambda one: one.source)]


def _table(
    published: Sequence[Reference], scores: Sequence[Score], missing: Sequence[NotRun]
) -> Table:
    """One published table. A paper's scores have a row a task and always a column of ours; others
    have one where there is one of ours.
    """
    first = published[0]
    scored = first.kind == "scores"
    rows = list(dict.fromkeys((one.task, one.metric, one.unit, one.shots) for one in published))
    models = list(dict.fromkeys(one.model for one in published))
    cells = {(one.task, one.metric, one.shots, one.model): one.printed for one in published}
    found = {
        row: [
            score for score in scores if scored and _key(score, row[3]) == (row[0], row[1], row[3])
        ]
        for row in rows
    }
    with_ours = (scored and first.role == "paper") or any(found.values())
    shots = ["shots"] if any(row[3] for row in rows) else []
    if not with_ours and len(models) > len(rows):  # lies the other way
        heads = [
            " ".join(filter(None, (task, _measure(metric, unit), word)))
            for task, metric, unit, word in rows
        ]
        body = [
            [model, *(cells.get((t, m, w, model), "") for t, m, _, w in rows)] for model in models
        ]
        return Table(first.source, ["", *heads], body, _note(published))
    body = []
    for row in rows:
        task, metric, unit, word = row
        ours = list(_ours(row, found[row], missing)) if with_ours else []
        body.append(
            [
                task,
                _measure(metric, unit),
                *([word or ""] if shots else []),
                *ours,
                *(cells.get((task, metric, word, m), "") for m in models),
            ]
        )
    return Table(
        first.source,
        ["task", "metric", *shots, *(OURS if with_ours else ()), *models],
        body,
        _note(published),
    )


def _measure(metric: str, unit: str) -> str:
    return ", ".join(filter(None, (metric.replace("_", " "), unit)))


def _key(score: Score, asked: str | None) -> Key | None:
    """A score's place; where the table says nothing of shots, only what has no demonstrations
    stands in it.
    """
    if score.published is None or (asked is None and score.shots not in (None, "zero")):
        return None
    return (
        score.published["task"],
        score.published["metric"],
        None if asked is None else score.shots or "zero",
    )


def _ours(
    row: tuple[str, str, str, str | None], found: Iterable[Score], missing: Iterable[NotRun]
) -> tuple[str, str]:
    """(value with its interval, what it was measured on and what differs), or that there is none
    and why.
    """
    shown = [score for score in found if score.sure]
    if not shown:
        reasons = [
            one.short_reason
            for one in missing
            for place in one.published
            if (place["task"], place["metric"]) == row[:2]
        ]
        return NOT_HERE, "; ".join(dict.fromkeys(reasons)) or NOT_ASKED
    factors = [100.0 if row[2] in HUNDREDTHS and not score.scale else 1.0 for score in shown]
    values = [
        f"{scaled(s.value, f)} ({s.interval(f)})" for s, f in zip(shown, factors, strict=True)
    ]
    return " · ".join(values), " · ".join(score.on() + _differs(score) for score in shown)


def _differs(score: Score) -> str:
    told = (score.published or {}).get("differs")
    return f"{DIFFERS}{told}" if told else ""


def _note(published: Sequence[Reference]) -> str:
    first = published[0]
    notes = [
        f"{one.model}, {one.task}: {one.note}"
        for one in published
        if one.note and one.sure != "memory"
    ]
    told = [
        f"Protocol: {first.protocol}." if first.protocol else "",
        first.table_note,
        "; ".join(notes) + "." if notes else "",
    ]
    return " ".join(filter(None, told))


def _without_one(scores: Sequence[Score], missing: Sequence[NotRun]) -> list[Table]:
    """Scores of ours that are measured in no published way, by what is said of them."""
    told = [
        ((one.asset, one.note), one.name) for one in scores if one.published is None and one.sure
    ]
    told += [
        ((one.asset, f"{NOT_HERE}: {one.reason}"), one.name) for one in missing if not one.published
    ]
    rows = [
        [asset, " · ".join(name for key, name in told if key == (asset, note)), note]
        for asset, note in dict.fromkeys(key for key, _ in told)
    ]
    title = "measured otherwise than any published number, so none stands beside"
    return [Table(title, ["artifact", "scores", "what they are"], rows)] if rows else []
