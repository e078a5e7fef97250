"""Stage `depth`: held-out bits per byte of models of fewer and more layers, each trained from the
start and alike.

GPT-1's figure 2 (left) varies how many layers of one model are transferred; this varies how many
there are. The models are assets of their own, `depth/layers_<number>` or one a seed of each, of the
pre-training stage.
"""

from __future__ import annotations

from assets.contract import Check, Stage, deferred
from assets.stages.experiment_parts import PAGE_IS_WHOLE, SHOW

EXECUTION = "assets.execution.depth"

DEPTH = Stage(
    name="depth",
    version="3",
    run=deferred(EXECUTION, "run"),
    description="Held-out bits per byte of models of fewer and more layers, trained alike.",
    kinds=("pytorch",),
    checks=(
        PAGE_IS_WHOLE,
        Check(
            "deeper_is_better",
            False,
            "The deepest model takes fewer bits of every source than the shallowest, interval and "
            "all.",
            deferred(EXECUTION, "deeper_is_better"),
        ),
    ),
    show=SHOW,
    pool="training",
)
