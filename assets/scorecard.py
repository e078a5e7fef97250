"""The scorecard: one page that says what was built from what, how good it is beside baselines and published numbers, and what it cost.

Hashed: `scorecard.json`, the scores and the fingerprints they come from. Beside it, unhashed because times and costs are in
them: `show/scorecard.html` (self-contained), its twin `show/scorecard.md` and `show/headline.json`. Each stage's own tables and
pictures are taken from its `show/` folder, so a new stage appears here by having one, and an experiment's are drawn from its data. What a
score is says `scorecard_scores.py`; the page's own tables are `scorecard_tables.py`'s, those of the papers `scorecard_published.py`'s.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict
from pathlib import Path

from assets import experiment_page
from assets import scorecard_tables as tables
from assets.contract import Artifact, Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from assets.resources.store import SHORT
from assets.scorecard_page import Section, Table, Text, write_page
from assets.scorecard_published import NOT_HERE, beside_the_paper, columns_of, reproductions
from assets.scorecard_scores import NotRun, Score, collect


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    recipe = config["recipe"]["name"]
    scores, missing = collect(recipe, inputs)
    document = {
        "recipe": config["recipe"],
        "built_from": {name: {"fingerprint": a.fingerprint, "digest": a.digest} for name, a in sorted(inputs.items())},
        "scores": [asdict(score) for score in scores],
        "not_run": [asdict(one) for one in missing],
    }
    (output / "scorecard.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return {f"{score.asset.split('/', 1)[1]}/{score.name}": score.value for score in scores}


def show(built: Built, folder: Path) -> None:
    """The page and its twin, from the stages' own pictures and tables and the experiments' own data."""
    recipe, inputs = built.config["recipe"]["name"], built.inputs
    document = json.loads((built.output / "scorecard.json").read_text())
    scores, missing = [Score(**one) for one in document["scores"]], [NotRun(**one) for one in document["not_run"]]
    generation, facts = tables.family(inputs) or _known_family(built.config["recipe"]), tables.facts(inputs)
    experiments = {name: artifact for name, artifact in inputs.items() if (artifact.path / experiment_page.FILE).is_file()}
    with tempfile.TemporaryDirectory() as drawn:
        sections = [
            *([beside_the_paper(generation, facts["model"], scores, missing)] if generation else []),
            *(_experiment(f"{recipe}/{name}", artifact, Path(drawn) / name) for name, artifact in experiments.items()),
            *([reproductions(generation, scores)] if generation else []),
            Section("What was built from what", [tables.lineage(recipe, inputs), tables.data(recipe, inputs)]),
            Section("Time, memory and cost", [tables.cost(inputs), tables.forecasts(inputs)]),
            *(Section(f"{recipe}/{name}", folder=a.path.parent / "show") for name, a in inputs.items() if name not in experiments),
            Section("Checks", [tables.checks(recipe, inputs)]),
        ]
        write_page(folder, f"Scorecard of {recipe}", built.config["recipe"]["description"], facts, headline(scores, missing), sections)


def _known_family(recipe: Config) -> str | None:
    """Of a model that could not be had here: that of the published one it was to be."""
    known: str | None = (recipe["evaluation"] or {}).get("known")
    return known and known.partition("-")[0]


def _experiment(title: str, artifact: Artifact, drawn: Path) -> Section:
    """An experiment's tables and plots, from its data; the plots are drawn into `drawn`."""
    document = experiment_page.read(artifact.path)
    drawn.mkdir(parents=True)
    for number, plot in enumerate(document.plots, 1):
        experiment_page.draw(plot).savefig(drawn / f"{number}_{re.sub(r'[^0-9A-Za-z]+', '_', plot.title).strip('_')}.png", dpi=110)
    return Section(title, [Text("what was found", experiment_page.tables_markdown(document))], folder=drawn)


LEFT_TO_THE_SECTION = ("byte_perplexity", "word_perplexity")  # the same figure as bits per byte, on another scale


def headline(scores: list[Score], missing: list[NotRun]) -> Table:
    """Every score with its interval, what it stands beside, and its commands: by fingerprint, which no retraining moves.

    What has no interval, split or size is named without its number; what was not run here, with the reason.
    """
    shown = [score for score in scores if not score.name.endswith(LEFT_TO_THE_SECTION)]
    extra = columns_of(shown)
    columns = ["artifact", "score", "value", "95 % interval", "beside", "verdict", *extra, "on", "protocol", "walk it back, make it again"]
    rows = [
        [
            score.asset,
            score.name + (" ↓" if score.lower_is_better else ""),
            tables.number(score.value) if score.sure else "no interval",
            score.interval(),
            score.baseline if score.sure else "",
            score.verdict,
            *(cells[place] for cells in extra.values()),
            score.on(),
            score.note,
            _commands(score.fingerprint),
        ]
        for place, score in enumerate(shown)
    ]
    nothing = [""] * (len(extra) + 4)
    rows += [[one.asset, one.name, NOT_HERE, *nothing, one.reason, _commands(one.fingerprint)] for one in missing]
    order = list(dict.fromkeys(row[0] for row in rows))
    rows.sort(key=lambda row: order.index(row[0]))
    note = (
        "↓: lower is better. Better or worse: than the best it stands beside, interval and all; undecided: that lies in the interval. "
        "No interval: too few examples to have one, so no number. N of M examples: a seeded subset."
    )
    return Table("Scores", columns, rows, note, short=("artifact", "score", "value", "beside", "verdict"))


def _commands(fingerprint: str) -> str:
    return " ".join(f"`gpt-lineage {command} {fingerprint[:SHORT]}`" for command in ("trace", "reproduce"))


def _every_score_finite(built: Built) -> Verdict:
    document = json.loads((built.output / "scorecard.json").read_text())
    wrong = [score["name"] for score in document["scores"] if not abs(score["value"]) < float("inf")]
    return Verdict(
        not wrong, f"{len(document['scores'])} scores" + (f"; not finite: {', '.join(wrong)}" if wrong else ", every one finite")
    )


SCORECARD = Stage(
    name="scorecard",
    version="3",
    run=run,
    description="Every score beside its baselines, with its interval, its cost and the way back to the text it came from.",
    kinds=("python", "html"),
    checks=(Check("scores_finite", True, "Every score is a finite number.", _every_score_finite),),
    show=show,
)
