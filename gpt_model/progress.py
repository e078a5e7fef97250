"""How running code reports: metrics, texts, log lines, progress. Consoles, the event log and tests
implement the protocol.

Every rank calls the same methods; an implementation reports for rank 0 only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """The four reports of long-running code."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a step. Steps only rise; a step that an earlier, killed attempt has reported
        is dropped.
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
