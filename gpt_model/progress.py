"""What running code says while it runs. Not where it goes: a console, a spool file and a test each
have their own.

Every rank calls the same methods; an implementation lets only rank 0's words out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """The four things long-running code has to say."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a step. Steps only rise; a step already said by an earlier, killed attempt is
        dropped.
        """

    def text(self, step: int, name: str, text: str) -> None:
        """A sample of text at a step, e.g. what the model writes."""

    def log(self, message: str) -> None:
        """One line for a person."""

    def advance(self, done: float, total: float, unit: str) -> None:
        """How far along: `done` of `total` `unit`s ("tokens", "documents"). Cheap; call it as often
        as is natural.
        """


class Silent:
    """A `Progress` that says nothing: for library use and small tests."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def text(self, step: int, name: str, text: str) -> None: ...
    def log(self, message: str) -> None: ...
    def advance(self, done: float, total: float, unit: str) -> None: ...
