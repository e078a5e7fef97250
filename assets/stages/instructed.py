"""The stage `instructed`: the supervised epoch whose answers to held-out prompts the reward model
scores highest (Ouyang et al. 2022, section 3.5).

The paper's models overfit on validation loss after one epoch, and more epochs help all the same; so
both are shown side by side. Beside the files in `tuning_io.py`, answers.jsonl: of every epoch and
prompt the reward and the length, no text.
"""

from __future__ import annotations

from assets.contract import Check, Stage, deferred
from assets.stages.tuning_io import MODEL_LOADS

EXECUTION = "assets.execution.instructed"
EMPTY = 0.5  # share of empty answers from which on something is wrong

INSTRUCTED = Stage(
    name="instructed",
    version="2",
    run=deferred(EXECUTION, "run"),
    description="The supervised epoch whose answers to held-out prompts have the best mean reward.",
    kinds=("pytorch",),
    checks=(
        MODEL_LOADS,
        Check(
            "best_is_kept",
            True,
            "model/ is the epoch with the best mean reward.",
            deferred(EXECUTION, "best_is_kept"),
        ),
        Check(
            "answers_say_something",
            False,
            f"Fewer than {EMPTY:.0%} of the answers are empty.",
            deferred(EXECUTION, "answers_say_something"),
        ),
    ),
    show=deferred("assets.report.instructed", "show"),
    pool="training",
    model=True,
)
