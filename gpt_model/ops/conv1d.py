"""x @ weight + bias, and weights packed for a CPU that multiplies them many times by few rows.

Decoding reads every weight for every token. From a weight as it is stored, torch's products of 2 to
16 rows reach a quarter of the memory's bandwidth on a CPU (6 to 8 of 32 GB/s on two cores), the
output head's product of one row a third. From oneDNN's blocks they reach most of it (15 to 30
GB/s): torch's compiler multiplies by frozen weights in the same way. The numbers are equal but for
the order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 8  # for which oneDNN chooses the blocks; they serve any number


class Conv1D(nn.Module):
    """x @ weight + bias, the weight stored [in, out] as in GPT-2's released checkpoints
    (`transformers`' Conv1D).
    """

    bias: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.register_parameter("bias", nn.Parameter(torch.empty(outputs)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        if (blocks := _blocks_of(self.weight)) is not None:
            return _multiply_blocks(x, blocks, self.bias)
        rows = x.reshape(-1, x.shape[-1])
        y = rows @ self.weight if self.bias is None else torch.addmm(self.bias, rows, self.weight)
        return y.view(*x.shape[:-1], -1)


def output_head(states: Tensor, weight: Tensor) -> Tensor:
    """Logits [..., vocabulary] of states [..., width] by the embeddings [vocabulary, width]."""
    blocks = _blocks_of(weight)
    return F.linear(states, weight) if blocks is None else _multiply_blocks(states, blocks, None)


@contextmanager
def prepacked(model: nn.Module, embedding: nn.Embedding) -> Iterator[None]:
    """Within, and without gradient, the products of `model` and of `embedding` as its output head
    take their weights in blocks, made here: as much memory again as the weights, and the time of 10
    to 20 tokens.

    For float32 on a CPU, of a model that is all there: where blocks are gathered one by one (ZeRO
    3), memory is short. Else nothing happens. Weights must not change within. May be nested.
    """
    # each parameter, and the same as [out, in]
    weights = [(embedding.weight, embedding.weight)]
    weights += [
        (module.weight, module.weight.t())
        for module in model.modules()
        if isinstance(module, Conv1D)
    ]
    packed = []
    try:
        for weight, outputs_first in weights if all(_packable(each) for each, _ in weights) else ():
            if not hasattr(weight, "blocks"):
                blocks = torch.ops.mkldnn._reorder_linear_weight(outputs_first.detach(), ROWS)
                weight.blocks = blocks  # type: ignore[attr-defined]
                packed.append(weight)
        yield
    finally:
        for weight in packed:
            del weight.blocks  # type: ignore[attr-defined]


def _packable(weight: Tensor) -> bool:
    """Whether oneDNN can block the weight [in, out]."""
    if (
        weight.device.type != "cpu"
        or weight.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
    ):
        return False
    # DeepSpeed's ZeRO 3 leaves no element of a weight that is not in use.
    return torch.backends.mkldnn.is_available() and weight.numel() > 0


def _blocks_of(weight: Tensor) -> Tensor | None:
    """The blocks of weight [in, out], where they are packed and no gradient is asked for."""
    return None if torch.is_grad_enabled() else getattr(weight, "blocks", None)


def _multiply_blocks(x: Tensor, blocks: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] @ weight [in, out] + bias [out], the weight in blocks: [..., out]."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocks, bias, "none", [], "")
    return product
