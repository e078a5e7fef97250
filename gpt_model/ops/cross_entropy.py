"""Cross-entropy of a linear head without its logits: rows in chunks, the gradient made in the
forward pass.

The logits of a whole batch, [rows, vocabulary], are the largest tensor of a small model and live
only to be reduced to one number. Here a chunk of rows goes from states to logits to gradients while
it is in cache; what is kept is the gradient of the states and of the head. Same idea as Liger
Kernel's fused linear cross-entropy (Hsu et al. 2024), in plain torch, so it runs on any device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt_model.ops.cpu_kernels import padded, product

# Of logits in a chunk: enough rows for an efficient matrix product, few enough for a CPU's last
# cache.
CHUNK_BYTES = 1 << 24
# Logits in one elementwise pass: on a CPU they stay in cache between the passes.
TILE_ELEMENTS = 1 << 17
# exp(x) = exp2(LOG2_E * x): on an AMD core torch's exp2 takes 0.34 ns an element, its exp, which is
# MKL's, 1.08.
LOG2_E = math.log2(math.e)


def _chunks_of_logits(states: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of states [rows, width] and their logits [chunk, vocabulary] by weight [vocabulary,
    width], in the states' precision. The next chunk reuses the memory.
    """
    vocabulary = weight.shape[0]
    rows = max(
        64,
        (CHUNK_BYTES if states.device.type == "cpu" else 16 * CHUNK_BYTES)
        // (vocabulary * states.element_size()),
    )
    store = padded(states, min(rows, states.shape[0]), vocabulary)
    for start in range(0, states.shape[0], rows):
        part = slice(start, min(start + rows, states.shape[0]))
        yield part, product(states[part], weight.t(), store[: part.stop - start])


def _exponentials_(logits: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Overwrite logits [rows, vocabulary] with exp(logits - top), made in precision `kind`; return
    top and the sum of the exponentials, each [rows, 1], of that precision.
    """
    rows = (
        max(1, TILE_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else logits.shape[0]
    )
    tops, masses = [], []
    for stored in logits.split(rows):
        tile = stored.to(kind)  # itself where that is its precision
        top = tile.amax(1, keepdim=True)
        torch.add(top * -LOG2_E, tile, alpha=LOG2_E, out=tile).exp2_()
        masses.append(tile.sum(1, keepdim=True))
        tops.append(top)
        if tile is not stored:
            stored.copy_(tile)
    return torch.cat(tops), torch.cat(masses)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        targets: Tensor,
        ignored: int,
        keep: bool,
        shares: Tensor | None,
    ) -> Tensor:
        """states [rows, width], weight [vocabulary, width], targets [rows], shares [rows] -> [].
        With `keep`, the gradients of states and weight are made on the way.
        """
        need_states, need_weight = (keep and needed for needed in ctx.needs_input_grad[:2])
        valid = (targets != ignored)[:, None]
        kind = torch.promote_types(states.dtype, torch.float32)
        share = valid.to(kind)  # [rows, 1], each row's part of the sum
        share = share / valid.sum().clamp(min=1) if shares is None else share * shares[:, None]
        target = torch.where(valid[:, 0], targets, 0)[:, None]
        total = torch.zeros((), dtype=kind, device=states.device)
        states_gradient = torch.empty_like(states) if need_states else None
        weight_gradient = torch.zeros_like(weight) if need_weight else None
        head = weight.to(states.dtype)
        for part, logits in _chunks_of_logits(states, head):
            at_target = logits.gather(1, target[part]).to(kind)
            # From here on softmax = logits / mass; the division waits for a smaller tensor.
            top, mass = _exponentials_(logits, kind)
            total = total + ((mass.log() + top - at_target) * share[part]).sum()
            row = torch.arange(len(logits), device=logits.device)
            # softmax minus the one-hot target, times mass
            logits[row, target[part, 0]] -= mass[:, 0].to(logits.dtype)
            scale = (share[part] / mass).to(states.dtype)
            if states_gradient is not None:
                product(logits, head, states_gradient[part]).mul_(scale)
            if weight_gradient is not None:
                if weight.dtype == states.dtype:
                    weight_gradient.addmm_(logits.t(), states[part] * scale)
                else:  # reduced precision: many chunks are added up in full precision
                    weight_gradient.add_(product(logits.t(), states[part] * scale))
        ctx.save_for_backward(states_gradient, weight_gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """upstream [] -> gradients of states [rows, width] and weight [vocabulary, width]."""
        # In place: a second pass through a retained graph is then refused by autograd, not answered
        # wrongly.
        states_gradient, weight_gradient = (
            None if g is None else g.mul_(upstream.to(g.dtype)) for g in ctx.saved_tensors
        )
        return states_gradient, weight_gradient, None, None, None, None


def linear_cross_entropy(
    states: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignored: int = -100,
    shares: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy in nats of states [rows, width] through a head [vocabulary, width] over
    the targets [rows] that are not `ignored`.

    Equals `F.cross_entropy(states @ weight.T, targets, ignore_index=ignored)`, and 0 where every
    target is ignored. Differentiable once. `shares` [rows]: the sum of each row's loss times its
    share, instead of the mean.
    """
    if torch.is_autocast_enabled(states.device.type):
        states = states.to(torch.get_autocast_dtype(states.device.type))
    return _LinearCrossEntropy.apply(
        states, weight, targets, ignored, torch.is_grad_enabled(), shares
    )


def linear_cross_entropy_by_row(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of each row of states [rows, width] through a head [vocabulary, width]:
    [rows]. No gradient.
    """
    losses = torch.empty(states.shape[0], dtype=torch.float32, device=states.device)
    for part, logits in _chunks_of_logits(states, weight.to(states.dtype)):
        at_target = logits.gather(1, targets[part, None])
        top, mass = _exponentials_(logits, torch.promote_types(logits.dtype, torch.float32))
        losses[part] = (mass.log() + top - at_target)[:, 0]
    return losses
