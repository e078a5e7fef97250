"""Copies of weights in the precision of a product's factors, made once a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

Make = Callable[[Tensor, torch.dtype], Tensor]
# By the weight's id, how and in what precision it was copied, and whether gradients go through it
Key = tuple[int, Make, torch.dtype, bool]
_copies: ContextVar[dict[Key, tuple[Tensor, Tensor]] | None] = ContextVar("_copies", default=None)


@contextmanager
def shared_copies() -> Iterator[None]:
    """Within, weights do not change, and a copy of one serves all of a step's micro-batches:
    autocast's, which last to the end of the outermost autocast, and those of `copy_of`.
    """
    token = _copies.set({})
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        _copies.reset(token)
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


def forget_copies() -> None:
    """Before the step's last backward pass, which then gives each copy back."""
    torch.clear_autocast_cache()
    if (copies := _copies.get()) is not None:
        copies.clear()


def copy_of(weight: Tensor, make: Make, kind: torch.dtype) -> Tensor:
    """`make(weight, kind)`, within `shared_copies` once for each parameter."""
    copies, key = _copies.get(), (id(weight), make, kind, torch.is_grad_enabled())
    if copies is None or not isinstance(weight, nn.Parameter):
        return make(weight, kind)
    if key not in copies:
        copies[key] = weight, make(weight, kind)  # the weight too, so that its id stays its own
    return copies[key][1]
