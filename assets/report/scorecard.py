"""The scorecard: one page of what was built from what, how good it is beside baselines and
published numbers, and what it cost.

At once: the verdict, the loss curve, three samples and the scores. Folded: everything else.

Unhashed, because times and costs are in them: `show/scorecard.html` (self-contained), its twin
`show/scorecard.md`, and the data of the first parts as `show/verdict.json`, `show/headline.json`
and `show/by_shots.json`. Each stage's tables and pictures are taken from its `show/` folder, so a
new stage appears here by having one, and an experiment's are drawn from its data.

What a score is, is in `scores.py`; the sections are those of `verdict.py`, `loss_curve.py`,
`headline.py`, `published.py`, `alignment.py` and `provenance.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from assets.contract import Built, Config, Inputs
from assets.report import alignment, experiment, loss_curve, provenance, verdict
from assets.report.columns import VERDICT_FILE
from assets.report.headline import by_shots, headline
from assets.report.page import Page, Section, Text, write_page
from assets.report.published import beside_the_paper, reproductions
from assets.report.score import NotRun, Score
from assets.report.tables import code_block
from assets.stages import base_model
from assets.store.manifest import EVENTS
from assets.tracking.event_log import texts
from gpt_model.experiments.document import FILE as EXPERIMENT_FILE

FILE = "scorecard.json"
SAMPLES, LONGEST = 3, 700  # how many, and characters of each
BLANK_LINES = re.compile(r"\n\s*\n")
EXPERIMENTS, STAGES, BUILD = "Experiments", "Stages", "How it was built"
# What another recipe built is no input of the page, so this is all that it can say of it.
CALIBRATION = "`gpt-lineage run calibration` checks the evaluator against released weights"


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
    statements = verdict.statements(scores, missing, built.inputs, facts["built"])
    verdict.write(folder / VERDICT_FILE, statements)
    sentences = [statement.sentence for statement in statements]
    if any(facts["built"] in sentence for sentence in sentences):
        del facts["built"]
    page = Page(
        f"Scorecard of {recipe['name']}",
        recipe["description"],
        facts,
        {"headline": headline(scores, missing)} | ({"by_shots": shots} if shots else {}),
        list(_sections(built, scores, facts["model"])),
        sentences,
        list(_opening(built.inputs, scores)),
    )
    write_page(folder, page)


def _opening(inputs: Inputs, scores: list[Score]) -> Iterator[Section]:
    """What is open at once, above the scores: the loss curve and three samples."""
    mixture = next((score for score in scores if score.name == verdict.MIXTURE), None)
    if mixture and (curve := loss_curve.loss_curve(inputs, mixture)):
        yield loss_curve.section(curve)
    if alignment.is_in(inputs):
        yield alignment.samples(inputs, SAMPLES)
    elif samples := _samples(inputs):
        yield samples


def _samples(inputs: Inputs) -> Section | None:
    """The last texts of the pre-training; None where there are none."""
    log = inputs["pretrained"].path.parent / EVENTS if "pretrained" in inputs else None
    written = texts(log) if log and log.is_file() else []
    last = [(name, text) for step, name, text in written if step == written[-1][0]][:SAMPLES]
    if not last:
        return None
    blocks = [
        Text(
            name.lstrip("0123456789 "), code_block(BLANK_LINES.sub("\n\n", text.strip())[:LONGEST])
        )
        for name, text in last
    ]
    intro = "The final model continues the words in brackets, which begin a held-out document."
    return Section("Samples", blocks, intro=intro)


def _sections(built: Built, scores: list[Score], model: str) -> Iterator[Section]:
    """What is folded."""
    recipe, inputs = built.config["recipe"]["name"], built.inputs
    generation = provenance.family(inputs) or _published_family(built.config["recipe"])
    of_stages, of_experiments = [], []
    for name, artifact in inputs.items():
        title, caveat = f"{recipe}/{name}", base_model.caveat(artifact, inputs)
        if (artifact.path / EXPERIMENT_FILE).is_file():
            of_experiments.append(experiment.section(title, artifact.path, caveat, EXPERIMENTS))
        else:
            show_folder = artifact.path.parent / "show"
            of_stages.append(Section.of_folder(title, show_folder, caveat, STAGES))
    if alignment.is_in(inputs):
        yield alignment.section(inputs)
    yield from of_experiments
    if generation:
        for section in (beside_the_paper, reproductions):
            if (published := section(generation, model, scores)).texts:
                yield published
    yield Section("Lineage tree", [provenance.lineage(recipe, inputs)], group=BUILD)
    yield Section("Data and licences", [provenance.data(recipe, inputs)], group=BUILD)
    yield Section(
        "Time, memory and cost",
        [provenance.cost(inputs), provenance.estimates(inputs)],
        intro=base_model.caveat(built, inputs),
        in_order=True,
        group=BUILD,
    )
    checks = provenance.checks(recipe, inputs)
    yield Section("Checks", [checks], hint=provenance.checks_in_short(checks), group=BUILD)
    yield from of_stages


def _published_family(recipe: Config) -> str | None:
    """The family of the published model that the recipe names, where the model itself could not be
    had here.
    """
    known: str | None = (recipe["evaluation"] or {}).get("known")
    return known and known.partition("-")[0]
