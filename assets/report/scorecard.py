"""The scorecard: one page of what was built from what, how good it is beside baselines and
published numbers, and what it cost.

Unhashed, because times and costs are in them: `show/scorecard.html` (self-contained), its twin
`show/scorecard.md`, and the first tables as `show/headline.json` and `show/by_shots.json`. Each
stage's tables and pictures are taken from its `show/` folder, so a new stage appears here by having
one, and an experiment's are drawn from its data.

What a score is, is in `scores.py`; the sections are those of `headline.py`, `published.py`,
`alignment.py` and `provenance.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from assets.contract import Built, Config
from assets.report import alignment, experiment, provenance
from assets.report.headline import by_shots, headline
from assets.report.page import Page, Section, write_page
from assets.report.published import beside_the_paper, reproductions
from assets.report.scores import NotRun, Score
from assets.stages import base_model
from gpt_model.experiments.document import FILE as EXPERIMENT_FILE

FILE = "scorecard.json"
# What another recipe built is no input of the page, so this is all that it can say of it.
CALIBRATION = (
    "whether the evaluator reproduces what is known of released weights is not this page's to say, "
    "as it is made of its own recipe alone: gpt-lineage run prints what the calibration recipes "
    "left in the store"
)


def document_of(built: Built) -> Mapping[str, Any]:
    """Its scorecard.json."""
    document: Mapping[str, Any] = json.loads((built.output / FILE).read_text(encoding="utf-8"))
    return document


def show(built: Built, folder: Path) -> None:
    """scorecard.html, scorecard.md, pictures/, headline.json and by_shots.json."""
    document, recipe = document_of(built), built.config["recipe"]
    scores = [Score(**score) for score in document["scores"]]
    missing = [NotRun(**entry) for entry in document["not_run"]]
    shots = by_shots(scores)
    facts = provenance.facts(built.inputs)
    if "zero_shot" in built.inputs:
        facts["calibration"] = CALIBRATION
    page = Page(
        f"Scorecard of {recipe['name']}",
        recipe["description"],
        facts,
        {"headline": headline(scores, missing)} | ({"by_shots": shots} if shots else {}),
        list(_sections(built, scores, missing, facts["model"])),
    )
    write_page(folder, page)


def _sections(
    built: Built, scores: list[Score], missing: list[NotRun], model: str
) -> Iterator[Section]:
    recipe, inputs = built.config["recipe"]["name"], built.inputs
    generation = provenance.family(inputs) or _published_family(built.config["recipe"])
    of_stages, of_experiments = [], []
    for name, artifact in inputs.items():
        title, caveat = f"{recipe}/{name}", base_model.caveat(artifact, inputs)
        if (artifact.path / EXPERIMENT_FILE).is_file():
            of_experiments.append(experiment.section(title, artifact.path, caveat))
        else:
            show_folder = artifact.path.parent / "show"
            of_stages.append(Section.of_folder(title, show_folder, caveat))
    if generation:
        yield beside_the_paper(generation, model, scores, missing)
    yield from of_experiments
    if alignment.is_in(inputs):
        yield alignment.section(inputs)
    if generation and (others := reproductions(generation, scores)).texts:
        yield others
    yield Section(
        "What was built from what",
        [provenance.lineage(recipe, inputs), provenance.data(recipe, inputs)],
    )
    yield Section(
        "Time, memory and cost",
        [provenance.cost(inputs), provenance.estimates(inputs)],
        intro=base_model.caveat(built, inputs),
    )
    yield from of_stages
    yield Section("Checks", [provenance.checks(recipe, inputs)])


def _published_family(recipe: Config) -> str | None:
    """The family of the published model that the recipe names, where the model itself could not be
    had here.
    """
    known: str | None = (recipe["evaluation"] or {}).get("known")
    return known and known.partition("-")[0]
