"""How much memory training takes on each rank, by ZeRO stage: arithmetic, no torch. What really was
used stands in the manifest.

State: Rajbhandari et al. 2020 ("ZeRO"), section 3.1 and figure 1, with this engine's float32
weights, gradients and two moments (16 bytes a parameter), and from stage 1 on the flat float32 copy
of a rank's share that DeepSpeed's optimizer keeps. Activations: Korthikanti et al. 2022 ("Reducing
Activation Recomputation"), equation 2 without the attention scores, which fused attention does not
keep: 17 values a token, layer and unit of width. The loss is made in chunks and keeps no logits.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_model.config import ModelConfig

VALUE_BYTES = 4  # float32
ACTIVATIONS = 17  # values kept for the backward pass, a token, layer and unit of width


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def memory_per_rank(
    config: ModelConfig,
    zero_stage: int,
    world_size: int,
    micro_batch: int,
    *,
    activation_checkpointing: bool = False,
) -> Memory:
    """Bytes on each rank; `micro_batch` is sequences a rank and forward pass. Raises ValueError for
    a stage that is not 0-3.
    """
    if zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"zero_stage is {zero_stage}, not 0, 1, 2 or 3")
    parameters = config.parameters() * VALUE_BYTES
    shared = 1 / world_size
    copy = 1 if zero_stage else 0
    return Memory(
        weights=parameters * (shared if zero_stage == 3 else 1),
        gradients=parameters * (shared if zero_stage >= 2 else 1),
        optimizer=parameters * (2 + copy) * (shared if zero_stage >= 1 else 1),
        activations=activation_bytes(config, micro_batch, activation_checkpointing),
    )


def activation_bytes(config: ModelConfig, micro_batch: int, checkpointing: bool = False) -> float:
    """Bytes kept between forward and backward: every layer's, or with checkpointing each layer's
    input and one whole layer.
    """
    a_layer = micro_batch * config.context * config.width * VALUE_BYTES
    if checkpointing:
        return a_layer * (config.layers + ACTIVATIONS)
    return a_layer * (ACTIVATIONS * config.layers + 2)
