"""The event log of a build: what the worker's rank 0 appends to events.jsonl, and its readers.
Standard library only.

The worker writes here and knows no server; the orchestrator reads and delivers (`delivery.py`). One
JSON object a line:

    {"kind": "attempt",  "time": …, …}      a process began, perhaps again after one was killed
    {"kind": "metrics",  "time": …, "step": …, "values": {name: number}}
    {"kind": "system",   "time": …, "step": …, "values": {name: number}}   the machine's load
    {"kind": "text",     "time": …, "step": …, "name": …, "text": …}
    {"kind": "log",      "time": …, "message": …}
    {"kind": "advance",  "time": …, "done": …, "total": …, "unit": …}

Written with one write a line, so a kill -9 leaves at most a partial last line, which the next
attempt cuts off.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt_model.errors import CorruptFile

Event = dict[str, Any]

ADVANCE_SECONDS = (
    0.5,
    5.0,
)  # between two "advance" events: at first, and at most in a run of hours


class EventWriter:
    """The writing end. A name's step only rises, so what an earlier, killed attempt already said is
    not said twice.
    """

    def __init__(self, path: Path, attempt: Mapping[str, Any] | None = None) -> None:
        """Opens or continues `path`; `attempt` is written with the attempt's event."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._last_step: dict[tuple[str, str], int] = {}  # (kind, name) -> the last step spooled
        end = 0
        for event, end in events(path):  # noqa: B007 - `end` is where the last whole line ends
            for key in _keys(event):
                self._last_step[key] = event["step"]
        os.ftruncate(self._file, end)
        self._began = time.monotonic()
        self._advanced = float("-inf")
        self._write("attempt", **(attempt or {}))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a step; those whose name has been said at this step or a later one are
        dropped.
        """
        fresh = {
            name: float(value)
            for name, value in values.items()
            if self._is_new("metrics", name, step)
        }
        if fresh:
            self._write("metrics", step=step, values=fresh)

    def system(self, values: Mapping[str, float]) -> None:
        """The machine's load, at the step after the last of its kind."""
        last = max((self._last_step.get(("system", name), -1) for name in values), default=-1)
        self._last_step |= {("system", name): last + 1 for name in values}
        self._write("system", step=last + 1, values=dict(values))

    def text(self, step: int, name: str, text: str) -> None:
        """A sample of text at a step."""
        if self._is_new("text", name, step):
            self._write("text", step=step, name=name, text=text)

    def log(self, message: str) -> None:
        """One line for a person."""
        self._write("log", message=message)

    def advance(self, done: float, total: float, unit: str) -> None:
        """How far along; written twice a second at first and less often in a long run, so call it
        as often as is natural.
        """
        now = time.monotonic()
        low, high = ADVANCE_SECONDS
        if done >= total or now - self._advanced >= min(high, max(low, (now - self._began) / 500)):
            self._advanced = now
            self._write("advance", done=done, total=total, unit=unit)

    def close(self) -> None:
        os.close(self._file)

    def _is_new(self, kind: str, name: str, step: int) -> bool:
        new = step > self._last_step.get((kind, name), -1)
        if new:
            self._last_step[kind, name] = step
        return new

    def _write(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"kind": kind, "time": time.time(), **fields}, ensure_ascii=False) + "\n"
        os.write(self._file, line.encode(errors="replace"))  # a lone surrogate has no UTF-8


class EventReader:
    """Reads what has been appended since the last time. `offset` (bytes) is where the next reading
    begins.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset

    def __iter__(self) -> Iterator[tuple[Event, int]]:
        """The new whole lines, each with the offset behind it; none where there is no file yet."""
        for event, end in events(self.path, self.offset):
            self.offset = end
            yield event, end

    def read(self) -> list[Event]:
        """The new whole lines."""
        return [event for event, _ in self]


def events(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Every whole line from byte `offset` on, each with the offset behind it. Raises CorruptFile
    naming a damaged line.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        if (
            offset > os.fstat(file.fileno()).st_size
        ):  # power was lost before the end reached the disk: begin again
            offset = 0
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                event = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError):
                raise CorruptFile(
                    f"{path}: the line at byte {offset} is damaged. Remove {path.parent.parent} to "
                    "build it again from the start."
                ) from None
            offset += len(line)
            yield event, offset


def series(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric name → [(step, value)], in the order they were said."""
    values_by_name: dict[str, list[tuple[int, float]]] = {}
    for event, _ in events(path):
        if event["kind"] == "metrics":
            for name, value in event["values"].items():
                values_by_name.setdefault(name, []).append((event["step"], value))
    return values_by_name


def texts(path: Path) -> list[tuple[int, str, str]]:
    """(step, name, text), in the order they were said."""
    return [
        (event["step"], event["name"], event["text"])
        for event, _ in events(path)
        if event["kind"] == "text"
    ]


def attempts(path: Path) -> int:
    """How often a worker began."""
    return sum(event["kind"] == "attempt" for event, _ in events(path))


def seconds(path: Path) -> float:
    """Seconds spent building over all attempts, each from its beginning to its last sign of life;
    not the pauses between.
    """
    total, began, last = 0.0, None, 0.0
    for event, _ in events(path):
        if event["kind"] == "attempt":
            total += last - began if began is not None else 0.0
            began = event["time"]
        last = event["time"]
    return total + (last - began if began is not None else 0.0)


def _keys(event: Event) -> list[tuple[str, str]]:
    if event["kind"] in ("metrics", "system"):
        return [(event["kind"], name) for name in event["values"]]
    return [("text", event["name"])] if event["kind"] == "text" else []
