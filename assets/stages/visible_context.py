"""Stage `visible_context`: held-out bits per byte against how many tokens a prediction sees.
GPT-1's case for a Transformer is that it uses them.
"""

from __future__ import annotations

from assets.contract import Check, Stage, deferred
from assets.stages.experiment_parts import PAGE_IS_WHOLE, SHOW

EXECUTION = "assets.execution.visible_context"

VISIBLE_CONTEXT = Stage(
    name="visible_context",
    version="3",
    run=deferred(EXECUTION, "run"),
    description="Held-out bits per byte of the pre-trained model against how many tokens before it "
    "a prediction sees.",
    kinds=("pytorch",),
    checks=(
        PAGE_IS_WHOLE,
        Check(
            "context_helps",
            False,
            "The whole context saves bits of every source, interval and all.",
            deferred(EXECUTION, "context_helps"),
        ),
    ),
    show=SHOW,
    pool="training",
)
