"""The scorecard: one page that says what was built from what, how good it is beside baselines and
published numbers, and what it cost.

Hashed: `scorecard.json`, the scores and the fingerprints they come from. Beside it, unhashed
because times and costs are in them: `show/scorecard.html` (self-contained), its twin
`show/scorecard.md`, and the first tables as `show/headline.json` and `show/by_shots.json`. Each
stage's own tables and pictures are taken from its `show/` folder, so a new stage appears here by
having one, and an experiment's are drawn from its data. What a score is says `scorecard_scores.py`;
the first tables are `scorecard_headline.py`'s, the others `scorecard_tables.py`'s, those of the
papers `scorecard_published.py`'s, those of aligned models `scorecard_alignment.py`'s.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict
from pathlib import Path

from assets.contract import (
    Artifact,
    Built,
    Check,
    Config,
    Inputs,
    Metrics,
    Progress,
    Stage,
    Verdict,
)
from assets.report import experiment, scorecard_alignment
from assets.report import scorecard_tables as tables
from assets.report.page import Section, Text, write_page
from assets.report.scorecard_headline import by_shots, headline
from assets.report.scorecard_published import beside_the_paper, reproductions
from assets.report.scores import NotRun, Score, collect
from assets.stages import base_model

# What another recipe built is no input of the page, so this much is all that it can say.
CALIBRATION = (
    "whether the evaluator reproduces what is known of released weights is not this page's to say, as it is made of its own recipe alone: "
    "gpt-lineage run prints what the calibration recipes left in the store"
)


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    recipe = config["recipe"]["name"]
    scores, missing = collect(recipe, inputs)
    document = {
        "recipe": config["recipe"],
        "built_from": {
            name: {"fingerprint": a.fingerprint, "digest": a.digest}
            for name, a in sorted(inputs.items())
        },
        "scores": [asdict(score) for score in scores],
        "not_run": [asdict(one) for one in missing],
        **(
            {"alignment": scorecard_alignment.statement(inputs)}
            if scorecard_alignment.is_in(inputs)
            else {}
        ),
    }
    (output / "scorecard.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return {f"{score.asset.split('/', 1)[1]}/{score.name}": score.value for score in scores}


def show(built: Built, folder: Path) -> None:
    """The page and its twin, from the stages' own pictures and tables and the experiments' own
    data.
    """
    recipe, inputs = built.config["recipe"]["name"], built.inputs
    document = json.loads((built.output / "scorecard.json").read_text())
    scores, missing = (
        [Score(**one) for one in document["scores"]],
        [NotRun(**one) for one in document["not_run"]],
    )
    generation, facts = (
        tables.family(inputs) or _known_family(built.config["recipe"]),
        tables.facts(inputs),
    )
    facts |= {"calibration": CALIBRATION} if "zero_shot" in inputs else {}
    experiments = {
        name: artifact
        for name, artifact in inputs.items()
        if (artifact.path / experiment.FILE).is_file()
    }
    with tempfile.TemporaryDirectory() as drawn:
        caveats = {name: base_model.caveat(artifact, inputs) for name, artifact in inputs.items()}
        caveat = base_model.caveat(built, inputs)
        sections = [
            *(
                [beside_the_paper(generation, facts["model"], scores, missing)]
                if generation
                else []
            ),
            *(
                _experiment(f"{recipe}/{name}", artifact, Path(drawn) / name, caveats[name])
                for name, artifact in experiments.items()
            ),
            *([scorecard_alignment.section(inputs)] if scorecard_alignment.is_in(inputs) else []),
            *(
                [others]
                if generation and (others := reproductions(generation, scores)).tables
                else []
            ),
            Section(
                "What was built from what",
                [tables.lineage(recipe, inputs), tables.data(recipe, inputs)],
            ),
            Section(
                "Time, memory and cost",
                [tables.cost(inputs), tables.forecasts(inputs)],
                intro=caveat,
            ),
            *(
                Section(
                    f"{recipe}/{name}", folder=artifact.path.parent / "show", intro=caveats[name]
                )
                for name, artifact in inputs.items()
                if name not in experiments
            ),
            Section("Checks", [tables.checks(recipe, inputs)]),
        ]
        first = {
            "headline": headline(scores, missing),
            **({"by_shots": shots} if (shots := by_shots(scores)) else {}),
        }
        write_page(
            folder,
            f"Scorecard of {recipe}",
            built.config["recipe"]["description"],
            facts,
            first,
            sections,
        )


def _known_family(recipe: Config) -> str | None:
    """Of a model that could not be had here: that of the published one it was to be."""
    known: str | None = (recipe["evaluation"] or {}).get("known")
    return known and known.partition("-")[0]


def _experiment(title: str, artifact: Artifact, drawn: Path, intro: str) -> Section:
    """An experiment's tables and plots, from its data; the plots are drawn into `drawn`."""
    document = experiment.read(artifact.path)
    drawn.mkdir(parents=True)
    for number, plot in enumerate(document.plots, 1):
        experiment.draw(plot).savefig(
            drawn / f"{number}_{re.sub(r'[^0-9A-Za-z]+', '_', plot.title).strip('_')}.png", dpi=110
        )
    return Section(
        title,
        [Text("what was found", experiment.tables_markdown(document))],
        folder=drawn,
        intro=intro,
    )


def _every_score_finite(built: Built) -> Verdict:
    document = json.loads((built.output / "scorecard.json").read_text())
    wrong = [
        score["name"] for score in document["scores"] if not abs(score["value"]) < float("inf")
    ]
    return Verdict(
        not wrong,
        f"{len(document['scores'])} scores"
        + (f"; not finite: {', '.join(wrong)}" if wrong else ", every one finite"),
    )


SCORECARD = Stage(
    name="scorecard",
    version="7",
    run=run,
    description="Every score beside its baselines, with its interval, its cost and the way back to the text it came from.",
    kinds=("python", "html"),
    checks=(Check("scores_finite", True, "Every score is a finite number.", _every_score_finite),),
    show=show,
)
