"""Runs the stage `scorecard`, and the check of its scores.

Hashed: `scorecard.json`, the scores and the fingerprints they come from. What a score is, and the
page, are `assets.report`'s.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from assets.contract import Built, Config, Inputs, Metrics, Progress, Verdict
from assets.report import alignment
from assets.report.scorecard import FILE, document_of
from assets.report.scores import collect
from gpt_model.io import dump_json


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write scorecard.json. Every score is a metric."""
    scores, missing = collect(config["recipe"]["name"], inputs)
    document = {
        "recipe": config["recipe"],
        "built_from": {
            name: {"fingerprint": artifact.fingerprint, "digest": artifact.digest}
            for name, artifact in inputs.items()
        },
        "scores": [asdict(score) for score in scores],
        "not_run": [asdict(entry) for entry in missing],
    }
    if alignment.is_in(inputs):
        document["alignment"] = alignment.statement(inputs)
    dump_json(output / FILE, document, indent=1, sort_keys=True)
    return {f"{score.asset.split('/', 1)[1]}/{score.name}": score.value for score in scores}


def every_score_is_finite(built: Built) -> Verdict:
    scores = document_of(built)["scores"]
    if wrong := [score["name"] for score in scores if not math.isfinite(score["value"])]:
        return Verdict(False, f"{len(scores)} scores; not finite: {', '.join(wrong)}")
    return Verdict(True, f"{len(scores)} scores, every one finite")
