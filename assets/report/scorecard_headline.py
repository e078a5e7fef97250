"""The scorecard's first tables, the same on the page, in its twin, in Dagster and on the terminal:
every score with its interval, what it stands beside, and the commands that walk it back and make it
again.

A task that is asked with and without demonstrations has one line, its settings side by side. What a
score is says `scorecard_scores.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from assets.report import scorecard_tables as tables
from assets.report.page import Table
from assets.report.scorecard_published import NOT_HERE
from assets.report.scores import NotRun, Score
from assets.store.store import SHORT

ARTIFACT, PROTOCOL, COMMANDS = "artifact", "protocol", "walk it back, make it again"
SEEN, K = "8-grams seen", "K"
FIRST = ("headline", "by_shots")  # the tables' names
SETTINGS = {"zero": "zero-shot", "one": "one-shot", "few": "few-shot"}  # of `Score.shots` -> column
NO_INTERVAL = "no interval"
LEFT_TO_THE_SECTION = (
    "byte_perplexity",
    "word_perplexity",
)  # the same figure as bits per byte, on another scale
VERDICTS = "Better or worse: than the best it stands beside, interval and all; undecided: that lies in the interval."
SHOTS_NOTE = (
    "In brackets: 95 % interval; better or worse: interval and all, than what stands beside. K: demonstrations that fit the context, on "
    "average, of those asked for; a one-shot example has one where nothing else is said. What each task is, and its scores on examples "
    "that share nothing with the training text: under the artifact."
)


def headline(scores: Sequence[Score], missing: Sequence[NotRun]) -> Table:
    """Every score that is asked in one way, by fingerprint, which no retraining moves; and what was
    not run here, with the reason.

    What has no interval, split or size is named without its number.
    """
    shown = [
        score
        for score in scores
        if score.shots is None and not score.name.endswith(LEFT_TO_THE_SECTION)
    ]
    seen = [SEEN] if any(score.overlap is not None for score in shown) else []
    columns = [
        ARTIFACT,
        "score",
        "value",
        "95 % interval",
        "beside",
        "verdict",
        *seen,
        "on",
        PROTOCOL,
        COMMANDS,
    ]
    rows = [
        [
            score.asset,
            score.name + (" ↓" if score.lower_is_better else ""),
            tables.number(score.value) if score.sure else NO_INTERVAL,
            score.interval(),
            score.baseline if score.sure else "",
            score.verdict,
            *([_seen(score)] if seen else []),
            score.on(),
            score.note,
            _commands(score.fingerprint),
        ]
        for score in shown
    ]
    nothing = [""] * (len(seen) + 4)
    rows += [
        [one.asset, one.name, NOT_HERE, *nothing, one.short_reason, _commands(one.fingerprint)]
        for one in missing
    ]
    order = list(dict.fromkeys(row[0] for row in rows))
    rows.sort(key=lambda row: order.index(row[0]))
    note = f"↓: lower is better. {VERDICTS} No interval: too few examples to have one, so no number. N of M examples: a seeded subset."
    if seen:
        note += f" {SEEN}: those that stand in the training text; the scores of the examples that share nothing with it: under the artifact."
    return Table(
        "Scores", columns, rows, note, short=(ARTIFACT, "score", "value", "beside", "verdict")
    )


def by_shots(scores: Sequence[Score]) -> Table | None:
    """A line a task and metric of what is asked after no, one and a few demonstrations; None where
    nothing is.
    """
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        if score.shots is not None and not score.name.endswith(LEFT_TO_THE_SECTION):
            task, _, metric = score.name.rpartition(" ")
            groups.setdefault(
                (score.asset, task.removesuffix(f"_{score.shots}"), metric), []
            ).append(score)
    if not groups:
        return None
    seen = [SEEN] if any(score.overlap is not None for score in scores) else []
    columns = [ARTIFACT, "score", "beside", *SETTINGS.values(), K, *seen, "on examples", COMMANDS]
    rows = []
    for (asset, task, metric), settings in groups.items():
        found, first = {str(score.shots): score for score in settings}, settings[0]
        rows.append(
            [
                asset,
                f"{task} {metric}" + (" ↓" if first.lower_is_better else ""),
                _told(score.baseline for score in settings if score.sure),
                *(_in_a_cell(found[shots]) if shots in found else "" for shots in SETTINGS),
                _demonstrations(settings),
                *([_told(map(_seen, settings))] if seen else []),
                _told(score.on().replace(" examples,", ",") for score in settings),
                _commands(first.fingerprint),
            ]
        )
    return Table(
        "Scores by number of demonstrations",
        columns,
        rows,
        SHOTS_NOTE,
        short=(ARTIFACT, "score", "beside", *SETTINGS.values()),
    )


def _in_a_cell(score: Score) -> str:
    """ "0.320 (0.257 – 0.417) better"; no word where it is undecided."""
    if not score.sure:
        return NO_INTERVAL
    return f"{tables.number(score.value)} ({score.interval()}) {score.verdict.replace('undecided', '')}".rstrip()


def _demonstrations(settings: Sequence[Score]) -> str:
    """ "6.6 of 50", and of the one-shot setting what is not plain."""
    told = [
        score.k if score.shots == "few" else f"one-shot {score.k}"
        for score in settings
        if score.k not in ("", "1.0 of 1")
    ]
    return ", ".join(told)


def _seen(score: Score) -> str:
    return "" if score.overlap is None else f"{score.overlap:.2g} %"


def _told(cells: Iterable[str]) -> str:
    """What the settings have in common, once; else each."""
    return " · ".join(dict.fromkeys(filter(None, cells)))


def _commands(fingerprint: str) -> str:
    return " ".join(
        f"`gpt-lineage {command} {fingerprint[:SHORT]}`" for command in ("trace", "reproduce")
    )
