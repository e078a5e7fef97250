"""The stages: a file describes one, or a few that share a section. No torch, no drawing.

What a stage runs is in `assets/execution/`, what a person sees of it in `assets/report/`.
"""

from __future__ import annotations

import importlib

from assets.contract import Stage

# Where each stage is described, by the name that artifacts record.
STAGES = {
    "corpus": "corpus:CORPUS",
    "tokenizer": "tokenizer:TOKENIZER",
    "tokens": "tokenizer:TOKENS",
    "pretrained": "pretraining:PRETRAINED",
    "imported": "imported:IMPORTED",
    "finetuned": "finetuning:FINETUNED",
    "zero_shot": "zero_shot:ZERO_SHOT",
    "scorecard": "scorecard:SCORECARD",
    "demonstrations": "human_data:DEMONSTRATIONS",
    "comparisons": "human_data:COMPARISONS",
    "prompts": "human_data:PROMPTS",
    "supervised": "alignment:SUPERVISED",
    "policy_init": "alignment:POLICY_INIT",
    "reward_model": "alignment:REWARD_MODEL",
    "judge": "alignment:JUDGE",
    "instructed": "alignment:INSTRUCTED",
    "aligned": "alignment:ALIGNED",
    "dpo": "alignment:DPO",
    "preferences": "alignment:PREFERENCES",
    "ablations": "experiments:ABLATIONS",
    "depth": "experiments:DEPTH",
    "layers_transferred": "experiments:LAYERS_TRANSFERRED",
    "visible_context": "experiments:VISIBLE_CONTEXT",
    "zero_shot_dynamics": "experiments:ZERO_SHOT_DYNAMICS",
    "scaling_prediction": "experiments:PREDICTION",
    "scaling": "experiments:SCALING",
}


def stage_named(name: str) -> Stage:
    """The stage that artifacts record as `name`. Raises KeyError."""
    module, attribute = STAGES[name].split(":")
    stage: Stage = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    return stage
