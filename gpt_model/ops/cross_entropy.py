"""Cross-entropy of a linear head without its logits: rows in chunks, the gradient made in the
forward pass.

The logits of a whole batch, [rows, vocabulary], are the largest tensor of a small model and live
only to be reduced to one number. Here a chunk of rows goes from states to logits to gradients while
it is in cache; what is kept is the gradient of the states and of the head. Same idea as Liger
Kernel's fused linear cross-entropy (Hsu et al. 2024), in plain torch, so it runs on any device.

On a CPU the passes over a chunk are tiled by hand. Elsewhere they are one function of plain
operators, which `compiled_passes` fuses, and the vocabulary is padded to a multiple of 128 in the
copy of the head that is multiplied: a GPU's products want rows that begin on such a boundary.
torch's `F.linear_cross_entropy` is not taken: in bfloat16 it gives the loss in three digits and
adds up the head's gradient in bfloat16.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt_model.ops.cpu_kernels import PAD, padded, product, rows_of_tile
from gpt_model.ops.sizes import BFLOAT16_CHUNK_BYTES, CHUNK_BYTES, GPU_CHUNK_BYTES, GPU_VOCABULARY
from gpt_model.ops.weight_copies import copy_of

# Logits in one elementwise pass: on a CPU they stay in cache between the passes.
TILE_ELEMENTS = 1 << 17
# exp(x) = exp2(LOG2_E * x): on an AMD core torch's exp2 takes 0.34 ns an element, its exp, which is
# MKL's, 1.08.
LOG2_E = math.log2(math.e)


def _chunks_of_logits(
    states: Tensor, weight: Tensor, chunk_bytes: int
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of states [rows, width] and their logits [chunk, vocabulary] by weight [vocabulary,
    width], in the states' precision. The next chunk reuses the memory.
    """
    vocabulary = weight.shape[0]
    rows = max(64, chunk_bytes // (vocabulary * states.element_size()))
    store = _store(states, min(rows, states.shape[0]), vocabulary)
    for start in range(0, states.shape[0], rows):
        part = slice(start, min(start + rows, states.shape[0]))
        yield part, product(states[part], weight.t(), store[: part.stop - start])


class _LogitsBuffer(threading.local):
    """The memory of a thread's last chunk of BFLOAT16_CHUNK_BYTES, which glibc would map anew each
    time: a block of over 32 MiB.
    """

    memory: Tensor | None = None


_logits_buffer = _LogitsBuffer()


def _store(like: Tensor, rows: int, vocabulary: int) -> Tensor:
    """Memory for logits [rows, vocabulary] in the precision of `like`."""
    if rows * vocabulary * like.itemsize <= CHUNK_BYTES:
        return padded(like, rows, vocabulary)
    memory, elements = _logits_buffer.memory, rows * (vocabulary + PAD)
    if memory is None or len(memory) < elements or memory.dtype != like.dtype:
        memory = _logits_buffer.memory = like.new_empty(elements)
    return memory[:elements].view(rows, -1)[:, :vocabulary]


def _exponentials_(logits: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Overwrite logits [rows, vocabulary] with exp(logits - top), made in precision `kind`; return
    top and the sum of the exponentials, each [rows, 1], of that precision.
    """
    rows = max(1, TILE_ELEMENTS // logits.shape[1])
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


def _tiled_passes(
    states: Tensor,
    weight: Tensor,
    target: Tensor,
    share: Tensor,
    states_gradient: Tensor | None,
    weight_gradient: Tensor | None,
) -> Tensor:
    """The sum [] of each row's loss times its share [rows, 1], for states [rows, width], weight
    [vocabulary, width] and target [rows, 1]; its gradients into the last two, where they are given.
    """
    kind = torch.promote_types(states.dtype, torch.float32)
    total = torch.zeros((), dtype=kind)
    head = copy_of(weight, Tensor.to, states.dtype)
    if weight_gradient is not None and not len(states):
        weight_gradient.zero_()
    added_up = weight_gradient is not None and weight.dtype != states.dtype
    chunk_bytes = BFLOAT16_CHUNK_BYTES if added_up else CHUNK_BYTES
    for part, logits in _chunks_of_logits(states, head, chunk_bytes):
        at_target = logits.gather(1, target[part]).to(kind)
        # From here on softmax = logits / mass; the division waits for a smaller tensor.
        top, mass = _exponentials_(logits, kind)
        total = total + ((mass.log() + top - at_target) * share[part]).sum()
        row = torch.arange(len(logits))
        # softmax minus the one-hot target, times mass
        logits[row, target[part, 0]] -= mass[:, 0].to(logits.dtype)
        scale = (share[part] / mass).to(states.dtype)
        if states_gradient is not None:
            product(logits, head, states_gradient[part]).mul_(scale)
        if weight_gradient is not None:
            scaled = states[part] * scale
            if weight.dtype == states.dtype:
                weight_gradient.addmm_(logits.t(), scaled, beta=1 if part.start else 0)
            elif part.start:  # reduced precision: many chunks are added up in full precision
                _add_(weight_gradient, product(logits.t(), scaled))
            else:
                weight_gradient.copy_(product(logits.t(), scaled))
    return total


def _add_(total: Tensor, more: Tensor) -> None:
    """total += more, each [rows, width], where `more` is of lower precision. torch would first copy
    all of it in the higher.
    """
    rows = rows_of_tile(total)
    tile = total.new_empty(rows, total.shape[1])
    for part, added in zip(total.split(rows), more.split(rows), strict=True):
        part.add_(tile[: len(part)].copy_(added))


def _plain_passes(
    states: Tensor,
    weight: Tensor,
    target: Tensor,
    share: Tensor,
    states_gradient: Tensor | None,
    weight_gradient: Tensor | None,
) -> Tensor:
    """`_tiled_passes` by plain operators on contiguous logits."""
    vocabulary = len(weight)
    head, loss_and_slopes = copy_of(weight, _padded_head, states.dtype), _passes.get()
    if weight_gradient is not None:
        weight_gradient.zero_()
    total = torch.zeros((), dtype=share.dtype, device=states.device)
    for part in _parts(states, head):
        logits = states[part] @ head.t()
        loss, slopes = loss_and_slopes(logits, target[part], share[part], vocabulary)
        total = total + loss
        if states_gradient is not None:
            torch.mm(slopes, head, out=states_gradient[part])
        if weight_gradient is not None:  # many chunks are added up in the weight's precision
            weight_gradient.add_((slopes.t() @ states[part])[:vocabulary])
    return total


def _by_hand(states: Tensor) -> bool:
    """Whether the passes over logits of states [rows, width] are those tiled for a CPU."""
    return states.device.type == "cpu" and _passes.get() is _loss_and_slopes


def _padded_head(weight: Tensor, kind: torch.dtype) -> Tensor:
    """A copy of weight [vocabulary, width] in precision `kind`, with rows of zeros up to a multiple
    of GPU_VOCABULARY.
    """
    return F.pad(weight.to(kind), (0, 0, 0, -len(weight) % GPU_VOCABULARY))


def _parts(states: Tensor, head: Tensor) -> Iterator[slice]:
    """The rows of states [rows, width] in chunks whose logits by head [vocabulary, width] take
    GPU_CHUNK_BYTES.
    """
    rows = max(128, GPU_CHUNK_BYTES // (len(head) * states.element_size()) // 128 * 128)
    for start in range(0, len(states), rows):
        yield slice(start, min(start + rows, len(states)))


def _loss_and_slopes(
    logits: Tensor, target: Tensor, share: Tensor, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """The sum [] of the losses of logits [rows, padded vocabulary] at target [rows, 1], each times
    its share [rows, 1]; and its gradient by the logits, in their precision.
    """
    column = torch.arange(logits.shape[1], device=logits.device)
    wide = logits.to(share.dtype).masked_fill(column >= vocabulary, -math.inf)
    top = wide.amax(1, keepdim=True)
    exponentials = (wide - top).exp()
    mass = exponentials.sum(1, keepdim=True)
    loss = ((mass.log() + top - wide.gather(1, target)) * share).sum()
    slopes = (exponentials / mass - (column == target).to(wide.dtype)) * share
    return loss, slopes.to(logits.dtype)


_passes: ContextVar[Callable[..., tuple[Tensor, Tensor]]] = ContextVar(
    "_passes", default=_loss_and_slopes
)


@contextmanager
def compiled_passes(compiler: str) -> Iterator[None]:
    """Within, the passes over a chunk's logits are one kernel of torch.compile's backend
    `compiler`, on a CPU too.
    """
    token = _passes.set(_compiled(compiler))
    try:
        yield
    finally:
        _passes.reset(token)


@cache
def _compiled(compiler: str) -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_loss_and_slopes, backend=compiler, fullgraph=True)


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
        states_gradient = torch.empty_like(states) if need_states else None
        weight_gradient = torch.empty_like(weight) if need_weight else None
        passes = _tiled_passes if _by_hand(states) else _plain_passes
        total = passes(states, weight, target, share, states_gradient, weight_gradient)
        ctx.save_for_backward(states_gradient, weight_gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """upstream [] -> gradients of states [rows, width] and weight [vocabulary, width]."""
        states_gradient, weight_gradient = (
            None if g is None else _scale_(g, upstream) for g in ctx.saved_tensors
        )
        return states_gradient, weight_gradient, None, None, None, None


def _scale_(gradient: Tensor, upstream: Tensor) -> Tensor:
    """gradient [...] *= upstream []. In place: a second pass through a retained graph is then
    refused by autograd, not answered wrongly.
    """
    # A whole pass over the head's gradient for nothing, where a step has one micro-batch
    is_one = upstream.device.type == "cpu" and float(upstream) == 1
    (gradient[:0] if is_one else gradient).mul_(upstream.to(gradient.dtype))
    return gradient


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
    if not _by_hand(states):
        head = _padded_head(weight, states.dtype)
        for part in _parts(states, head):
            wide = (states[part] @ head.t())[:, : len(weight)].float()
            losses[part] = F.cross_entropy(wide, targets[part], reduction="none")
        return losses
    for part, logits in _chunks_of_logits(states, weight.to(states.dtype), CHUNK_BYTES):
        at_target = logits.gather(1, targets[part, None])
        top, mass = _exponentials_(logits, torch.promote_types(logits.dtype, torch.float32))
        losses[part] = (mass.log() + top - at_target)[:, 0]
    return losses
