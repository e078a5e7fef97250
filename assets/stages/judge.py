"""The stage `judge`: a bag of words trained on comparisons that nothing else sees, to tell which of
two answers is better.

Policies are trained against the reward model and may exploit it; the judge is another model, of
other people's comparisons.

    bag_of_words.json   the judge (`gpt_model.rlhf.bag_of_words`)
    learnt.jsonl        the rankings of judge.jsonl it was trained on: {"row", "source", "id"}
    judge.json          metrics; or {"not_run": why} alone, where there is no judge
"""

from __future__ import annotations

from assets.contract import Check, Stage, deferred

EXECUTION = "assets.execution.judge"
FACTS, TRAINED_ON = "judge.json", "learnt.jsonl"

JUDGE = Stage(
    name="judge",
    version="1",
    run=deferred(EXECUTION, "run"),
    description=(
        "An independent judge of answers: a bag of words, trained on comparisons that nothing else "
        "sees."
    ),
    kinds=("scikitlearn",),
    checks=(
        Check(
            "independent",
            True,
            "No response it was trained on is in the reward model's training or held-out part.",
            deferred(EXECUTION, "independent"),
        ),
        Check(
            "accuracy_above_half",
            False,
            "The interval of its accuracy on held-out comparisons lies above a half.",
            deferred(EXECUTION, "accuracy_above_half"),
        ),
    ),
    show=deferred("assets.report.judge", "show"),
)
