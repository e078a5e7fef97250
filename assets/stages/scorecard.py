"""The scorecard stage: every score of a recipe on one page."""

from __future__ import annotations

from assets.contract import Check, Stage, deferred

EXECUTION = "assets.execution.scorecard"

SCORECARD = Stage(
    name="scorecard",
    version="9",
    run=deferred(EXECUTION, "run"),
    description="Every score beside its baselines, with its interval, its cost and the way back to "
    "the text it came from.",
    kinds=("python", "html"),
    checks=(
        Check(
            "scores_finite",
            True,
            "Every score is a finite number.",
            deferred(EXECUTION, "every_score_is_finite"),
        ),
    ),
    show=deferred("assets.report.scorecard", "show"),
)
