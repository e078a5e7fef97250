"""What the next step needs, prepared in a thread while a GPU computes this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """`ahead(step)` is `function(step)`, a pure function; that of the next of `steps` is begun."""

    def __init__(
        self, function: Callable[[int], T], steps: int, prepare: Callable[[], None] | None = None
    ) -> None:
        """`prepare` is called in the thread, once, before anything else there."""
        self._function, self._steps = function, steps
        self._thread = ThreadPoolExecutor(1, "ahead", prepare)
        self._next: tuple[int, Future[T]] | None = None

    def __call__(self, step: int) -> T:
        """Raises what the function raised, in the thread too."""
        if self._next and self._next[0] == step:
            value = self._next[1].result()
        else:
            value = self._function(step)
        self._next = None
        if step + 1 < self._steps:
            self._next = step + 1, self._thread.submit(self._function, step + 1)
        return value
