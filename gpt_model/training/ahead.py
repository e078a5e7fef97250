"""What the next step needs, prepared in a thread and sent while a GPU computes this one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from gpt_model.ops.varlen import PackedSequences

T = TypeVar("T")


class Ahead(Generic[T]):
    """`ahead(step)` is `function(step)`, a pure function; that of the next step is begun."""

    def __init__(
        self,
        function: Callable[[int], T],
        may_begin: Callable[[int], bool],
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """`may_begin`: whether a step's is known while the one before it is computed. `prepare` is
        called in the thread, once, before anything else there.
        """
        self._function, self._may_begin = function, may_begin
        self._thread = ThreadPoolExecutor(1, "ahead", prepare)  # begun when it is needed
        self._next: tuple[int, Future[T]] | None = None

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._next = None

    def __call__(self, step: int) -> T:
        """Raises what the function raised, in the thread too."""
        if self._next and self._next[0] == step:
            value = self._next[1].result()
        else:
            value = self._function(step)
        self._next = None
        if self._may_begin(step + 1):
            self._next = step + 1, self._thread.submit(self._function, step + 1)
        return value


def on_device(batch: T, device: torch.device | str) -> T:
    """The batch with every tensor in it on the device. To a GPU they go from pinned memory: it goes
    on computing meanwhile.
    """
    sent: Any = batch
    if torch.device(device).type == "cpu":
        return batch
    if isinstance(batch, Tensor):
        sent = batch.contiguous().pin_memory().to(device, non_blocking=True)
    elif isinstance(batch, (list, tuple)):
        sent = type(batch)(on_device(part, device) for part in batch)
    elif dataclasses.is_dataclass(batch):
        if isinstance(batch, PackedSequences):
            batch.sizes  # noqa: B018 - of what it works out, all that a GPU would have to ask for
        sent = copy.copy(batch)
        vars(sent).update({name: on_device(part, device) for name, part in vars(batch).items()})
    return sent
