"""How to optimise: settings, the parameter groups that say what weight decay applies to, and AdamW.

Muon is `muon.py`'s, everything that runs `engine.py`'s, learning rates and the batch ramp
`schedules.py`'s.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gpt_model.training.schedules import Schedule
from gpt_model.training.sharded import whole_shape


@dataclass(frozen=True)
class MuonSettings:
    """How Muon (Jordan et al. 2024) steps the matrices of blocks; AdamW takes the rest."""

    rate_multiplier: float  # its learning rate, as a multiple of AdamW's
    weight_decay: float
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5  # of Newton and Schulz


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
    muon: MuonSettings | None = None  # for the matrices of blocks

    @staticmethod
    def of(
        section: Mapping[str, Any],
        steps: int,
        learning_rate: Schedule,
        rate_multipliers: Mapping[str, float] | None = None,
        muon: MuonSettings | None = None,
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
            muon=muon,
        )


def parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """The groups of the parameters that require a gradient: for each rate multiplier the matrices,
    which decay, and the vectors, which do not. With Muon, the matrices of blocks are a group of
    their own, which has their names ("muon").
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    in_blocks = _matrices_of_blocks(model) if settings.muon else []

    def multiplier(name: str) -> float:
        prefixes = settings.rate_multipliers.items()
        return next((value for prefix, value in prefixes if name.startswith(prefix)), 1.0)

    groups = []
    for value in sorted({multiplier(name) for name, _ in trained}):
        group = {name: p for name, p in trained if multiplier(name) == value}
        if settings.muon and (names := [name for name in in_blocks if name in group]):
            groups.append(
                {
                    "params": [group.pop(name) for name in names],
                    "weight_decay": settings.muon.weight_decay,
                    "rate_multiplier": value * settings.muon.rate_multiplier,
                    "muon": names,
                }
            )
        for decay, parameters in (
            (settings.weight_decay, [p for p in group.values() if len(whole_shape(p)) >= 2]),
            (0.0, [p for p in group.values() if len(whole_shape(p)) < 2]),
        ):
            if parameters:
                groups.append(
                    {"params": parameters, "weight_decay": decay, "rate_multiplier": value}
                )
    return groups


def _matrices_of_blocks(model: nn.Module) -> list[str]:
    """The names of the matrices of each block (each member of a ModuleList), not of embeddings."""
    blocks = [f"{path}." for path, module in model.named_modules() if type(module) is nn.ModuleList]
    return [
        name
        for name, parameter in model.named_parameters()
        if len(whole_shape(parameter)) == 2 and name.startswith(tuple(blocks))
    ]


@dataclass(frozen=True)
class ParameterSlice:
    """Elements of one parameter that a rank steps: `name[start : start + length]`, which is
    `flat[offset : offset + length]`. Of no length where the rank has nothing of it.
    """

    name: str
    start: int
    flat: Tensor  # [elements] of one parameter or more, or at stage 0 the parameter [...]
    offset: int
    length: int

    def of(self, flat: Tensor) -> Tensor:
        """The slice [length] of a tensor that lies as `flat` does, as a view."""
        return flat.view(-1).narrow(0, self.offset, self.length)


class FusedAdamW(torch.optim.AdamW):
    """torch's fused AdamW, its two methods without the wrappers that import torch._dynamo (1 s).
    The arithmetic is torch's own.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    _step = inspect.unwrap(torch.optim.AdamW.step)

    def __init__(self, model: nn.Module, settings: TrainingSettings) -> None:
        super().__init__(
            parameter_groups(model, settings),
            lr=settings.learning_rate(0),
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )

    def connect(
        self,
        slices: Sequence[ParameterSlice],
        shapes: Mapping[str, torch.Size],
        device: str,
        backend: Any,
    ) -> None:
        """Take note of what this rank steps, of each parameter's whole shape, of the device on
        which ranks exchange, and of DeepSpeed's backend that does. Collective.
        """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        return self._step(closure)

    def moments(self, flat: Tensor) -> dict[str, Tensor]:
        """The state of a tensor [elements] that is stepped: moments [elements] and step [].

        Before the first step they are zeros, as AdamW itself would make them.
        """
        state: dict[str, Tensor] = self.state[flat]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.zeros_like(flat, memory_format=torch.preserve_format)
        return state
