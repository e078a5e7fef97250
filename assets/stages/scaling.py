"""Stages `scaling_prediction` and `scaling` (GPT-3, figure 3.1): what a ladder of models predicts
of its largest, and the laws through all of it.

The prediction is an artifact of its own, made from the smaller models alone: its fingerprint is a
hash over their digests and the largest one's planned size, and knows nothing of what became of
that.

    scaling_prediction    prediction.json: the law through the smaller models, the loss it gives the
                          largest, its 90 % interval
    scaling               experiment.json · fit.json: the laws through all, with their draws ·
                          rules.yaml: for `depth: {rules: …}`
"""

from __future__ import annotations

from assets.contract import Check, Stage, deferred
from assets.stages.experiments import SHOW

EXECUTION = "assets.execution.scaling"
LEVEL = 0.9  # of the intervals of laws and of the prediction
PREDICTED, FIT, RULES = "prediction.json", "fit.json", "rules.yaml"

PREDICTION = Stage(
    name="scaling_prediction",
    version="2",
    run=deferred(EXECUTION, "run_prediction"),
    description="What the smaller models of the ladder foretell of the largest, before that is "
    "trained.",
    checks=(
        Check(
            "interval_is_finite",
            True,
            "The prediction has an interval.",
            deferred(EXECUTION, "interval_is_finite"),
        ),
    ),
    show=deferred("assets.report.scaling", "show_prediction"),
)

SCALING = Stage(
    name="scaling",
    version="2",
    run=deferred(EXECUTION, "run"),
    description="Loss of a ladder of models against compute, parameters and data; the largest "
    "predicted before it was trained.",
    checks=(
        Check(
            "largest_inside",
            False,
            "The largest model lands inside the interval that was predicted of it.",
            deferred(EXECUTION, "largest_inside"),
        ),
        Check(
            "predicted_before",
            False,
            "The prediction was published before the largest model's training began.",
            deferred(EXECUTION, "predicted_before"),
        ),
    ),
    show=SHOW,
)
