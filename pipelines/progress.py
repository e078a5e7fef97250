"""What a person sees while a recipe is built: a bar an asset on a terminal, a line now and then
elsewhere (CI, a file).

How far a build is stands in its journal, which the worker writes (`assets/tracking/event_log.py`);
a thread here reads it. What begins and ends is told by whoever runs the build (`runs.py`). No
Dagster concept and no import of it.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from assets.tracking.event_log import EventReader
from gpt_model.errors import CorruptFile

POLL_SECONDS = 0.5
LINE_SECONDS = 15.0  # between two lines about the same build, where there is no terminal
SHOWN_METRICS = (
    "loss",
    "bpb",
    "accuracy",
)  # a metric whose last part is one of these stands beside the bar


class _Amount(ProgressColumn):
    """`1.2M/1.5M tokens`, empty until the worker has said how much there is."""

    def render(self, task: Task) -> Text:
        return Text(
            "" if task.total is None else amount(task.completed, task.total, task.fields["unit"]),
            style="progress.download",
        )


def amount(done: float, total: float, unit: str) -> str:
    return f"{human(done)}/{human(total)} {unit}"


def human(number: float, figures: int = 3) -> str:
    """Three figures, or so many, and a unit: 1500000 -> "1.5M"."""
    for limit, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.{figures}g}{suffix}"
    return f"{number:.{figures}g}"


def duration(seconds: float) -> str:
    """As a person says it: "0.4 s", "3 min 20 s", "2 h 5 min", "3 d 4 h", "50,600 years"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for small, large, names in ((60, 3600, ("min", "s")), (3600, 86400, ("h", "min"))):
        if seconds < large:
            rest = {60: 1, 3600: 60}[small]
            return f"{int(seconds // small)} {names[0]} {int(seconds % small // rest)} {names[1]}"
    if seconds < 365 * 86400:
        return f"{int(seconds // 86400)} d {int(seconds % 86400 // 3600)} h"
    return f"{float(f'{seconds / (365.25 * 86400):.3g}'):,.15g} years"


class BuildDisplay:
    """Shows builds as they go on `console`. A context manager; its methods may be called from any
    thread.
    """

    def __init__(self, home: Path, console: Console) -> None:
        self._buildings, self._console = home / "building", console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _Amount(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
            disable=not console.is_interactive,
        )
        self._lock = threading.RLock()
        self._current: _Current | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="build display", daemon=True)

    def __enter__(self) -> BuildDisplay:
        self._bars.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        self._bars.stop()

    def say(self, message: str) -> None:
        """One line, above the bars."""
        with self._lock:
            self._console.print(escape(message), highlight=False, soft_wrap=True)

    def began(self, asset: str) -> None:
        with self._lock:
            self._drop()
            self._current = _Current(
                asset, self._bars.add_task(escape(asset), total=None, unit="", figures="")
            )

    def ended(self, asset: str, line: str) -> None:
        """The build of `asset` is over: its bar goes, `line` stays."""
        with self._lock:
            self._drop()
            self.say(line)

    def _drop(self) -> None:
        if self._current is not None:
            self._bars.remove_task(self._current.task)
            self._current = None

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            with self._lock:
                if self._current is None:
                    continue
                try:
                    for event in self._current.events(self._buildings):
                        self._tell(self._current, event)
                except (OSError, CorruptFile):
                    self._current.tail = (
                        None  # published or moved aside under our eyes: look for it again
                    )
                self._line(self._current)

    def _tell(self, current: _Current, event: dict[str, Any]) -> None:
        if event["kind"] == "advance":
            current.advance = amount(event["done"], event["total"], event["unit"])
            self._bars.update(
                current.task, completed=event["done"], total=event["total"], unit=event["unit"]
            )
        elif event["kind"] == "metrics":
            shown = {
                name: value
                for name, value in event["values"].items()
                if name.rsplit("/", 1)[-1] in SHOWN_METRICS
            }
            if shown:
                name = min(shown, key=len)
                current.figures = f"{name} {shown[name]:.4g}"
                self._bars.update(current.task, figures=escape(current.figures))
        elif event["kind"] == "log" and event["time"] >= current.began:
            self.say(f"  {current.asset}: {event['message']}")

    def _line(self, current: _Current) -> None:
        now = time.monotonic()
        if (
            not self._console.is_interactive
            and current.advance
            and now - current.spoken >= LINE_SECONDS
        ):
            current.spoken = now
            said = [current.advance, current.figures, duration(time.time() - current.began)]
            self.say(f"  {current.asset}: {', '.join(part for part in said if part)}")


class _Current:
    """The build that is going on, and where its journal is read from."""

    def __init__(self, asset: str, task: Any) -> None:
        self.asset, self.task = asset, task
        self.began, self.spoken = time.time(), time.monotonic()
        self.advance = self.figures = ""
        self.tail: EventReader | None = None

    def events(self, buildings: Path) -> list[dict[str, Any]]:
        if self.tail is None:
            self.tail = next(
                (
                    EventReader(job.parent / "journal" / "events.jsonl")
                    for job in buildings.glob("*/job.json")
                    if self._is_mine(job)
                ),
                None,
            )
        return self.tail.read() if self.tail else []

    def _is_mine(self, job: Path) -> bool:
        """Whether `job` was written for this build, and not left behind by a killed one whose text
        has changed since.
        """
        try:
            return (
                job.stat().st_mtime >= self.began - 1
                and json.loads(job.read_text())["asset"] == self.asset
            )
        except (OSError, json.JSONDecodeError, KeyError):
            return False
