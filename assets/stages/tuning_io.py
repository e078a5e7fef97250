"""The files and checks of every stage that tunes a model.

model/           a folder that `transformers` loads, with a chat tokenizer and its template
shape.json       the whole ModelConfig
training.json    what was done and what came of it, as far as it is the same on every run
"""

from __future__ import annotations

from assets.contract import Check, deferred

EXECUTION = "assets.execution.tuning_io"
FACTS = "training.json"

LOSS_IS_FINITE = Check(
    "loss_is_finite",
    True,
    "Every reported loss is a number.",
    deferred("assets.execution.training", "loss_is_finite"),
)
LOSS_FALLS = Check(
    "loss_falls",
    False,
    "Of demonstrations, the loss of the last third of training is below that of the first.",
    deferred(EXECUTION, "loss_falls"),
)
MODEL_LOADS = Check(
    "model_loads",
    True,
    "model/ loads, its weights are numbers, and its tokenizer has the roles' markers.",
    deferred(EXECUTION, "model_loads"),
)
