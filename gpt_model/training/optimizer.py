"""How to optimise: settings, and the parameter groups that say what weight decay applies to.

AdamW itself and everything that runs are `engine.py`'s, learning rates and the batch ramp
`schedules.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from gpt_model.training.schedules import Schedule
from gpt_model.training.sharded import whole_shape


@dataclass(frozen=True)
class TrainingSettings:
    """How to optimise, with AdamW (Loshchilov & Hutter 2019). They come from the recipe and change
    the result; what does not is `engine.Execution`.
    """

    steps: int
    learning_rate: Schedule
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    # decoupled, on matrices only (rank ≥ 2, embeddings too), as in GPT-1's released opt.py
    weight_decay: float = 0.01
    gradient_clip: float = 1.0  # global norm
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 1  # of dropout
    # Prefix of a parameter's name -> its learning rate, as a multiple of the others'. The first
    # match counts.
    rate_multipliers: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of(
        section: Mapping[str, Any],
        steps: int,
        learning_rate: Schedule,
        rate_multipliers: Mapping[str, float] | None = None,
    ) -> TrainingSettings:
        """The optimizer's keys of a recipe section, which are the same in every one that trains."""
        return TrainingSettings(
            steps=steps,
            learning_rate=learning_rate,
            betas=tuple(section["betas"]),
            weight_decay=section["weight_decay"],
            gradient_clip=section["gradient_clip"],
            precision=section["precision"],
            seed=section["seed"],
            rate_multipliers=rate_multipliers or {},
        )


def parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """AdamW's groups of the parameters that require a gradient: for each rate multiplier the
    matrices, which decay, and the vectors, which do not.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    def multiplier(name: str) -> float:
        prefixes = settings.rate_multipliers.items()
        return next((value for prefix, value in prefixes if name.startswith(prefix)), 1.0)

    groups = []
    for value in sorted({multiplier(name) for name, _ in trained}):
        group = [p for name, p in trained if multiplier(name) == value]
        for decay, parameters in (
            (settings.weight_decay, [p for p in group if len(whole_shape(p)) >= 2]),
            (0.0, [p for p in group if len(whole_shape(p)) < 2]),
        ):
            if parameters:
                groups.append(
                    {"params": parameters, "weight_decay": decay, "rate_multiplier": value}
                )
    return groups
