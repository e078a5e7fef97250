"""How a model's blocks are called in training: compiled, recomputed in the backward pass, with this
step's copies of their matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt_model.ops.conv1d import Conv1D
from gpt_model.ops.weight_copies import copy_of

Forward = Callable[..., Tensor]


def prepare_blocks(
    model: nn.Module, *, compiler: str | None, checkpointing: bool, zero_stage: int
) -> list[Any]:
    """Compile each block (each member of a ModuleList) by torch.compile's backend `compiler`, and
    have it keep its inputs alone, computing the rest again in the backward pass. Returns the blocks
    changed.

    Block by block, since ZeRO 3 gathers weights between blocks, in hooks that no compiler sees
    through: a block is gathered whole, outside of what is compiled. Blocks of one shape share one
    compiled graph.
    """
    if not (compiler or checkpointing):
        return []
    blocks: list[Any] = [
        block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module
    ]
    for block in blocks:
        prepared = block.forward
        if compiler:
            prepared = torch.compile(prepared, backend=compiler)
            block._z3_leaf = zero_stage == 3  # deepspeed.utils.set_z3_leaf_modules
            # Where weights are short of memory, they are copied in each pass and given back
            if zero_stage < 3 and not checkpointing:
                prepared = _with_copies(block, prepared)
        if checkpointing:
            prepared = functools.partial(checkpoint, prepared, use_reentrant=False)
        block.forward = _in_training(block, prepared)
    return blocks


def _with_copies(block: nn.Module, compiled: Forward) -> Forward:
    """Under autocast `compiled` has copies of the block's matrices in their place: of its own it
    would make one in each call.
    """
    matrices = [
        (layer._parameters, name)
        for layer in block.modules()
        if isinstance(layer, Conv1D)
        for name in layer._parameters
    ]

    def forward(x: Tensor, *args: Any, **keywords: Any) -> Tensor:
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return compiled(x, *args, **keywords)
        weights, kind = [layer[name] for layer, name in matrices], torch.get_autocast_dtype(device)
        try:
            for (layer, name), weight in zip(matrices, weights, strict=True):
                if weight is not None:
                    layer[name] = copy_of(weight, torch.Tensor.to, kind)  # type: ignore[assignment]
            return compiled(x, *args, **keywords)
        finally:
            for (layer, name), weight in zip(matrices, weights, strict=True):
                layer[name] = weight

    return forward


def _in_training(block: Any, prepared: Forward) -> Forward:
    """`prepared` as the block's forward pass in training, its own in evaluation: there shapes
    change with each call, a cache is written, and no random state may be asked for while a step is
    captured.
    """
    plain = block.forward

    def forward(*args: Any, **keywords: Any) -> Tensor:
        """The block's states [batch, time, width]."""
        result: Tensor = (prepared if block.training else plain)(*args, **keywords)
        return result

    return forward
