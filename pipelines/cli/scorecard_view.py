"""What `gpt-lineage run` prints of a built recipe: verdict, scores and what to do next,
for people and for scripts.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from assets.report.columns import NO_INTERVAL, NOT_HERE, VERDICT_FILE
from assets.report.score import Score, number
from assets.stages.zero_shot import REPRODUCES, ZERO_SHOT
from assets.store.store import SHORT, Store
from gpt_model.errors import CorruptFile

WIDTH = 80
COLUMN_TITLES = ("score", "value (95 % interval)", "best baseline", "verdict")
COLOURS = {"better": "green", "worse": "red"}
CALIBRATION = "calibration"


def as_values(store: Store, recipe: str) -> dict[str, Any]:
    """For scripts: every score, the artifacts, the path of the page, and the evaluator's
    calibration.
    """
    artifact = store.check(store.resolve(f"{recipe}/scorecard"))
    document = json.loads((artifact.path / "scorecard.json").read_text(encoding="utf-8"))
    artifacts = {
        **document["built_from"],
        "scorecard": {"fingerprint": artifact.fingerprint, "digest": artifact.digest},
    }
    return {
        "scores": document["scores"],
        "not_run": document["not_run"],
        "artifacts": artifacts,
        "scorecard": str(store.show(artifact) / "scorecard.html"),
        CALIBRATION: calibrated(store),
    }


def calibrated(store: Store) -> dict[str, dict[str, int]]:
    """How many known answers of each released model the evaluator has compared, and how many it
    gets wrong: {model: {"compared", "wrong"}}.

    Only evaluations by the evaluator's present version count. No page shows this: it depends on the
    store, and a page is a function of what its recipe built.
    """
    counts: dict[str, dict[str, int]] = {}
    for artifact in store.artifacts():  # oldest first: the newest counts
        model, version = artifact.config.get("known"), artifact.manifest["version"]
        if (artifact.stage, version) == (ZERO_SHOT.name, ZERO_SHOT.version) and model:
            with suppress(CorruptFile):
                figures = store.gate(artifact)[REPRODUCES].figures
                counts[model] = {name: int(figures[name]) for name in ("compared", "wrong")}
    return counts


def calibration_line(counts: Mapping[str, Mapping[str, int]]) -> str:
    """The counts of `calibrated`, in a line."""
    parts = []
    for model, count in counts.items():
        compared, wrong = count["compared"], count["wrong"]
        if wrong:
            parts.append(f"{model} failed, {wrong} of {compared} known answers do not come out")
        elif compared:
            parts.append(f"{model} reproduced, {compared} of {compared} known answers")
    hint = f"{NOT_HERE}; gpt-lineage run calibration tests the evaluation on a released GPT-2"
    return "; ".join(parts) or hint


def announce(store: Store, recipe: str, show: Callable[[Any], None]) -> None:
    """Show the verdict, the scores by artifact, and what to do next: at most 80 columns wide."""
    artifact = store.check(store.resolve(f"{recipe}/scorecard"))
    folder = store.show(artifact)
    for sentence in _verdict(folder):
        show(Text("\n".join(textwrap.wrap(sentence, WIDTH))))
    document = json.loads((artifact.path / "scorecard.json").read_text(encoding="utf-8"))
    scores = [Score(**score) for score in document["scores"]]
    _show_scores([score for score in scores if not score.on_another_scale], show)
    if not_run := [entry["name"] for entry in document["not_run"]]:
        line = f"{NOT_HERE}: {', '.join(not_run)}; the scorecard says why"
        show(Text("\n" + "\n".join(textwrap.wrap(line, WIDTH)), style="dim"))
    show(Text(""))
    headline = json.loads((folder / "headline.json").read_text(encoding="utf-8"))
    facts = {**headline["facts"], CALIBRATION: calibration_line(calibrated(store))}
    for fact, value in facts.items():
        show(Text("\n".join(textwrap.wrap(f"{fact:<11} {value}", WIDTH)), style="dim"))
    built = document["built_from"]
    stage = next((stage for stage in ("pretrained", "imported") if stage in built), "scorecard")
    fingerprint = built[stage]["fingerprint"] if stage in built else artifact.fingerprint
    name = f"{recipe}/{stage}"
    text = f'its text       gpt-lineage generate {name} "It was"\n' if stage in built else ""
    show(
        f"\nscorecard      {folder / 'scorecard.html'}\n"
        f"as Markdown    {folder / 'scorecard.md'}\n"
        f"to the bytes   gpt-lineage trace {fingerprint[:SHORT]}    where {name} comes from\n"
        f"{text}"
        "asset graph    gpt-lineage ui        http://127.0.0.1:3000\n"
        "all metrics    gpt-lineage mlflow    http://127.0.0.1:5000"
    )


def _verdict(folder: Path) -> list[str]:
    """The scorecard's first sentences, without the marks of bold text."""
    document = json.loads((folder / VERDICT_FILE).read_text(encoding="utf-8"))
    return [statement["sentence"].replace("**", "") for statement in document["statements"]]


def _show_scores(scores: Sequence[Score], show: Callable[[Any], None]) -> None:
    """A line a score under its artifact's name and fingerprint: value and interval, the best of
    what it stands beside, verdict.
    """
    lines = [(score, _line(score)) for score in scores]
    cells = zip(COLUMN_TITLES, *(line for _, line in lines), strict=True)
    widths = [max(map(len, column)) for column in cells]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - (len(widths) - 1))
    show(Text(""))
    show(_table(widths, [COLUMN_TITLES], style="dim"))
    for (name, fingerprint), group in groupby(
        lines, key=lambda pair: (pair[0].asset, pair[0].fingerprint)
    ):
        show(Text.assemble((name, "bold"), "   ", (fingerprint[:SHORT], "cyan")))
        show(_table(widths, [line for _, line in group]))


def _line(score: Score) -> tuple[str, str, str, str]:
    """Name, value and interval, best baseline, verdict; of a score without interval no number."""
    name = f"{score.name} \N{DOWNWARDS ARROW}" if score.lower_is_better else score.name
    if not score.complete:
        return name, NO_INTERVAL, "", ""
    interval = score.interval().replace(" – ", "–")
    return name, f"{number(score.value)} ({interval})", score.best_baseline, score.verdict


def _table(widths: list[int], rows: Sequence[Sequence[str]], style: str = "") -> Table:
    """Rows in columns of exactly these widths, so that several tables align; long names are
    folded.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False, style=style)
    for width in widths:
        table.add_column(width=width, overflow="fold")
    for *cells, verdict in rows:
        table.add_row(*cells, Text(verdict, style=COLOURS.get(verdict, "")))
    return table
