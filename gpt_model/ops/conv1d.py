"""x @ weight + bias, and weights laid out for a CPU that is about to multiply them many times by
few rows.

Decoding reads every weight for every token. Given a weight as it is stored, torch's products of 2
to 16 rows reach a quarter of the memory's bandwidth on a CPU (6 to 8 of 32 GB/s on two cores), and
the output head's product of one row a third; given it in oneDNN's blocks, most of it (15 to 30
GB/s). It is how torch's compiler multiplies by frozen weights. The numbers are equal but for the
order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from gpt_model.decoder import Decoder

ROWS = 8  # for which oneDNN chooses the blocks; they serve any number


class Projection(nn.Module):
    """x @ weight + bias, the weight stored [in, out] as in GPT-2's released checkpoints
    (`transformers`' Conv1D).
    """

    bias: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.register_parameter("bias", nn.Parameter(torch.empty(outputs)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        if (blocks := _blocks_of(self.weight)) is not None:
            return _by_blocks(x, blocks, self.bias)
        rows = x.reshape(-1, x.shape[-1])
        y = rows @ self.weight if self.bias is None else torch.addmm(self.bias, rows, self.weight)
        return y.view(*x.shape[:-1], -1)


def head(states: Tensor, weight: Tensor) -> Tensor:
    """Logits [..., vocabulary] of states [..., width] by the embedding matrix [vocabulary, width]."""
    blocks = _blocks_of(weight)
    return F.linear(states, weight) if blocks is None else _by_blocks(states, blocks, None)


@contextmanager
def laid_out(model: Decoder) -> Iterator[None]:
    """Within, and without gradient, the model's products take their weights in blocks, made here:
    as much memory again as the weights, and the time of 10 to 20 tokens. For float32 on a CPU; else
    nothing happens. Weights must not change within. It may be nested.
    """
    weights = [(model.wte.weight, model.wte.weight)]  # the parameter, and the same [out, in]
    weights += [
        (module.weight, module.weight.t())
        for module in model.modules()
        if isinstance(module, Projection)
    ]
    mine = []
    try:
        for weight, outputs_first in weights:
            if _fits(weight) and not hasattr(weight, "blocks"):
                blocks = torch.ops.mkldnn._reorder_linear_weight(outputs_first.detach(), ROWS)
                weight.blocks = blocks  # type: ignore[attr-defined]
                mine.append(weight)
        yield
    finally:
        for weight in mine:
            del weight.blocks  # type: ignore[attr-defined]


def _fits(weight: Tensor) -> bool:
    if (
        weight.device.type != "cpu"
        or weight.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
    ):
        return False
    return (
        torch.backends.mkldnn.is_available() and weight.numel() > 0
    )  # DeepSpeed's ZeRO 3 leaves none of a weight that is not in use


def _blocks_of(weight: Tensor) -> Tensor | None:
    return None if torch.is_grad_enabled() else getattr(weight, "blocks", None)


def _by_blocks(x: Tensor, blocks: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocks, bias, "none", [], "")
    return product
