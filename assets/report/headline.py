"""The scorecard's first tables, the same on the page, in its twin, in Dagster and on the terminal:
every score with its interval, its baseline, and the commands that trace and reproduce it.

A task that is run with and without demonstrations has one line, its settings side by side. What a
score is, is in `scores.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pandas import DataFrame

from assets.report.columns import (
    ARTIFACT,
    COMMANDS,
    NO_INTERVAL,
    NOT_HERE,
    PROTOCOL,
    SEEN,
    SETTINGS,
    K,
)
from assets.report.score import NotRun, Score, number
from assets.report.tables import Table
from assets.store.store import SHORT

SCORES_NOTE = (
    "↓: lower is better. **Better** or **worse**: the best baseline lies outside the 95 % "
    "interval. **Undecided**: it lies inside. *60 of 1,816 examples*: only a seeded subset is "
    "scored. *No interval*: the examples are too few for one, so the number is left out."
)
SHOTS_NOTE = (
    "In brackets: the 95 % interval. **Better** or **worse**: the baseline lies outside it. Each "
    "task is asked without a demonstration (zero-shot), with one, and with a few."
)
K_NOTE = "K: how many of the requested demonstrations fit the context, on average."
SEEN_NOTE = (
    f"*{SEEN}*: the share of a task's 8-grams that the training text has too. The section of the "
    "stage has the scores on the examples that share nothing with the training text."
)


def headline(scores: Sequence[Score], missing: Sequence[NotRun]) -> Table:
    """Every score that has no demonstrations, by fingerprint, which no retraining moves; and what
    was not run here, with the reason.

    A score without interval, split or size is named without its number.
    """
    shown = [score for score in scores if score.shots is None and not score.on_another_scale]
    with_overlap = any(score.overlap is not None for score in shown)
    columns = [
        *(ARTIFACT, "score", "value", "95 % interval", "beside", "verdict"),
        *([SEEN] if with_overlap else []),
        *("on", PROTOCOL, COMMANDS),
    ]
    rows = [
        {
            ARTIFACT: score.asset,
            "score": _name(score, score.name),
            "value": number(score.value) if score.complete else NO_INTERVAL,
            "95 % interval": score.interval(),
            "beside": score.baseline if score.complete else "",
            "verdict": score.verdict,
            SEEN: _overlap(score),
            "on": score.sample(),
            PROTOCOL: score.note,
            COMMANDS: _commands(score.fingerprint),
        }
        for score in shown
    ]
    rows += [
        {
            **dict.fromkeys(columns, ""),
            ARTIFACT: entry.asset,
            "score": entry.name,
            "value": NOT_HERE,
            PROTOCOL: entry.short_reason,
            COMMANDS: _commands(entry.fingerprint),
        }
        for entry in missing
    ]
    artifacts = list(dict.fromkeys(row[ARTIFACT] for row in rows))
    rows.sort(key=lambda row: artifacts.index(row[ARTIFACT]))
    note = f"{SCORES_NOTE} {SEEN_NOTE}" if with_overlap else SCORES_NOTE
    return Table(
        DataFrame(rows, columns=columns),
        "Scores",
        note,
        short=(ARTIFACT, "score", "value", "beside", "verdict"),
    )


def by_shots(scores: Sequence[Score]) -> Table | None:
    """A line a task and metric of what is run with no, one and a few demonstrations; None where
    nothing is.
    """
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        if score.shots is not None and not score.on_another_scale:
            groups.setdefault((score.asset, score.of_any_shots), []).append(score)
    if not groups:
        return None
    with_overlap = any(score.overlap is not None for score in scores)
    rows = []
    for (asset, name), group in groups.items():
        by_setting = {score.shots: _cell(score) for score in group}
        row = {
            ARTIFACT: asset,
            "score": _name(group[0], name),
            "beside": _joined(score.baseline for score in group if score.complete),
            **{column: by_setting.get(shots, "") for shots, column in SETTINGS.items()},
            K: ", ".join(filter(None, map(_demonstrations, group))),
            **({SEEN: _joined(map(_overlap, group))} if with_overlap else {}),
            "on examples": _joined(score.sample().replace(" examples,", ",") for score in group),
            COMMANDS: _commands(group[0].fingerprint),
        }
        rows.append(row)
    return Table(
        rows,
        "Scores by number of demonstrations",
        f"{SHOTS_NOTE} {K_NOTE}" + (f" {SEEN_NOTE}" if with_overlap else ""),
        short=(ARTIFACT, "score", "beside", *SETTINGS.values()),
    )


def _name(score: Score, name: str) -> str:
    return f"{name} ↓" if score.lower_is_better else name


def _cell(score: Score) -> str:
    """ "0.320 (0.257 – 0.417) better"; no verdict where it is undecided."""
    if not score.complete:
        return NO_INTERVAL
    verdict = "" if score.verdict == "undecided" else score.verdict
    return f"{number(score.value)} ({score.interval()}) {verdict}".rstrip()


def _demonstrations(score: Score) -> str:
    """ "6.6 of 50"; of the one-shot setting only what is not plain."""
    if score.k in ("", "1.0 of 1"):
        return ""
    return score.k if score.shots == "few" else f"one-shot {score.k}"


def _overlap(score: Score) -> str:
    return "" if score.overlap is None else f"{score.overlap:.2g} %"


def _joined(cells: Iterable[str]) -> str:
    """What the settings have in common, once; else each."""
    return " · ".join(dict.fromkeys(filter(None, cells)))


def _commands(fingerprint: str) -> str:
    return " ".join(
        f"`gpt-lineage {command} {fingerprint[:SHORT]}`" for command in ("trace", "reproduce")
    )
