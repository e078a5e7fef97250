"""The stage `preferences`: every model of the recipe answers the same held-out prompts. Which model
answers better, how far it moved, and what it cost.

Two judges score the answers: the reward model, which the policies were trained to please, and a
judge that never saw what the reward model was trained on. Files as `gpt_model.rlhf.comparison` has
them.
"""

from __future__ import annotations

from assets.contract import Check, Stage, deferred

EXECUTION = "assets.execution.preferences"

PREFERENCES = Stage(
    name="preferences",
    version="2",
    run=deferred(EXECUTION, "run"),
    description=(
        "Every model answers the same held-out prompts: win rates by two judges, KL, held-out "
        "text, and how the texts drift."
    ),
    kinds=("pytorch",),
    checks=(
        Check(
            "judged_apart",
            True,
            "The judge learnt from no text that the reward model was shown.",
            deferred(EXECUTION, "judged_apart"),
        ),
        Check(
            "aligned_wins",
            False,
            "The judge prefers aligned to policy_init, interval and all.",
            deferred(EXECUTION, "aligned_wins"),
        ),
        Check(
            "text_kept",
            False,
            "Held-out text takes at most 3 % more bits per byte than policy_init needs.",
            deferred(EXECUTION, "text_kept"),
        ),
        Check(
            "within_reference",
            False,
            "Distinct-2, repetition and length lie within policy_init's interval.",
            deferred(EXECUTION, "within_reference"),
        ),
        Check(
            "reward_hacking",
            False,
            "The reward model sees not much more of a gain than the judge.",
            deferred(EXECUTION, "reward_hacking"),
        ),
    ),
    show=deferred("assets.report.preferences", "show"),
    pool="training",
)
