"""What a person sees while a recipe is built: a bar for each asset on a terminal, a line now and
then elsewhere (CI, a file).

The worker writes its progress into the build's journal (`assets/tracking/event_log.py`), which a
thread here reads. Whoever runs the build (`runs.py`) calls `began` and `ended`. No Dagster.
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
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from assets.tracking.event_log import EventReader
from gpt_model.errors import CorruptFile

# A line by its first word: found, built, failed, a check that warns.
STYLES = {"=": "dim", "+": "green", "!": "bold red", "warning:": "yellow"}
POLL_SECONDS = 0.5
LINE_SECONDS = 15.0  # between two lines about the same build, where there is no terminal
SHOWN_METRICS = ("loss", "bpb", "accuracy")  # last parts of the metrics shown beside the bar


class _Amount(ProgressColumn):
    """`1.2M/1.5M tokens`, empty until the worker has reported the total."""

    def render(self, task: Task) -> Text:
        known = task.total is not None
        text = amount(task.completed, task.total or 0, task.fields["unit"]) if known else ""
        return Text(text, style="progress.download")


def amount(done: float, total: float, unit: str) -> str:
    return f"{human(done)}/{human(total)} {unit}"


def human(number: float, digits: int = 3) -> str:
    """A number by its significant digits and a unit: 1500000 -> "1.5M"."""
    for limit, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.{digits}g}{suffix}"
    return f"{number:.{digits}g}"


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
            TextColumn("{task.fields[metric]}"),
            console=console,
            transient=True,
            disable=not console.is_interactive,
        )
        self._lock = threading.RLock()
        self._current: dict[str, _Current] = {}  # by asset
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
            style = STYLES.get(message.strip().partition(" ")[0])
            self._console.print(escape(message), style=style, highlight=False, soft_wrap=True)

    def began(self, asset: str) -> None:
        with self._lock:
            self._drop(asset)
            task = self._bars.add_task(escape(asset), total=None, unit="", metric="")
            self._current[asset] = _Current(asset, task)

    def ended(self, asset: str, line: str) -> None:
        """The build of `asset` is over: its bar goes, `line` stays."""
        with self._lock:
            self._drop(asset)
            self.say(line)

    def _drop(self, asset: str) -> None:
        if current := self._current.pop(asset, None):
            self._bars.remove_task(current.task)

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            with self._lock:
                for current in self._current.values():
                    try:
                        for event in current.events(self._buildings):
                            self._show(current, event)
                    except (OSError, CorruptFile):
                        current.journal = None  # published or moved aside: look for it again
                    self._line(current)

    def _show(self, current: _Current, event: dict[str, Any]) -> None:
        if event["kind"] == "advance":
            current.advance = amount(event["done"], event["total"], event["unit"])
            counts = {"completed": event["done"], "total": event["total"]}
            self._bars.update(current.task, **counts, unit=event["unit"])
        elif event["kind"] == "metrics":
            values = event["values"]
            if names := [name for name in values if name.rsplit("/", 1)[-1] in SHOWN_METRICS]:
                name = min(names, key=len)
                current.metric = f"{name} {values[name]:.4g}"
                self._bars.update(current.task, metric=escape(current.metric))
        elif event["kind"] == "log" and event["time"] >= current.began:
            self.say(f"  {current.asset}: {event['message']}")

    def _line(self, current: _Current) -> None:
        """A line about the build, where there are no bars and the last line is long ago."""
        now = time.monotonic()
        due = current.advance and now - current.last_line >= LINE_SECONDS
        if due and not self._console.is_interactive:
            current.last_line = now
            parts = [current.advance, current.metric, duration(time.time() - current.began)]
            self.say(f"  {current.asset}: {', '.join(filter(None, parts))}")


class _Current:
    """The build that is going on, and the reader of its journal."""

    def __init__(self, asset: str, task: TaskID) -> None:
        self.asset, self.task = asset, task
        self.began, self.last_line = time.time(), time.monotonic()
        self.advance = self.metric = ""
        self.journal: EventReader | None = None

    def events(self, buildings: Path) -> list[dict[str, Any]]:
        """The events since the last call."""
        if self.journal is None:
            jobs = filter(self._is_mine, buildings.glob("*/job.json"))
            if job := next(jobs, None):
                self.journal = EventReader(job.parent / "journal" / "events.jsonl")
        return self.journal.read() if self.journal else []

    def _is_mine(self, job: Path) -> bool:
        """Whether `job` was written for this build, not left by a killed build of other text."""
        try:
            recent = job.stat().st_mtime >= self.began - 1
            return recent and json.loads(job.read_text(encoding="utf-8"))["asset"] == self.asset
        except (OSError, json.JSONDecodeError, KeyError):
            return False
