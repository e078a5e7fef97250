"""The outbox: how long a run waits for its MLflow server, and the thread that delivers the rest.

There is one for each server and process: a server that kept one stage waiting in vain would keep
the next one waiting too. `delivery.py` says what is delivered, `tracking.py` what is left over.
"""

from __future__ import annotations

import getpass
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.launch import guard
from assets.store.locks import is_held, process_lock

PATIENCE_SECONDS = 20.0  # that a run waits for its server, all told
# an answer within them costs no patience: a long chain of stages waits for a healthy server at each
PROMPT_SECONDS = 2.0
PAUSES = (
    2.0,
    60.0,
)  # seconds between two tries while a server does not answer: the first, and the longest

LOCKS = "locks"  # in a store's home

Say = Callable[[str], None]


@dataclass(frozen=True)
class Delivered:
    """How far a build's delivery came. `problem`: a sentence where it is not complete and should
    be.
    """

    run_id: str | None
    complete: bool
    problem: str | None = None


def this_process(home: Path) -> dict[str, Any]:
    """Who builds in the store `home`: host, user and process, told apart from a later one of the
    same number, and the lock that it holds.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's process without a name
        user = str(os.getuid())
    pid, locks = os.getpid(), home / LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    return {
        "user": user,
        "host": socket.gethostname(),
        "pid": pid,
        "process_started": guard.started(pid),
        "lock": process_lock(locks),
    }


def is_alive(attempt: Mapping[str, Any], home: Path) -> bool:
    """Whether the process of an attempt still runs, on whichever host: whether it holds its lock in
    the store `home`. Without one, of an earlier version, it is taken to on another host.
    """
    if lock := attempt.get("lock"):
        return is_held(home / LOCKS / lock)
    return (
        attempt["host"] != socket.gethostname()
        or guard.started(attempt["pid"]) == attempt["process_started"]
    )


def next_pause(pause: float) -> float:
    """The pause after another try in vain: twice the last one."""
    first, longest = PAUSES
    return min(max(pause * 2, first), longest)


class Outbox:
    """Patience, and a background thread that calls `deliver` when it is asked to, again and again
    while problems are left.
    """

    def __init__(self, deliver: Callable[[], Sequence[str]]) -> None:
        """`deliver` delivers what is left and returns a sentence for each problem."""
        self._deliver = deliver
        self._patience = PATIENCE_SECONDS
        self._run: str | None = ""
        self._say: Say = lambda sentence: None
        self._reported = True
        self._requested = threading.Event()
        self._thread: threading.Thread | None = None

    def patience(self, at_most: float) -> float:
        """Seconds that are still waited for the server; 0 once it was waited for in vain."""
        return min(at_most, self._patience)

    def waited(self, began: float, in_vain: bool = False) -> None:
        """Counts a wait since `began` (monotonic seconds)."""
        spent = max(0.0, time.monotonic() - began - PROMPT_SECONDS)
        self._patience = 0.0 if in_vain else max(0.0, self._patience - spent)

    def serve(self, run: str | None, say: Say) -> None:
        """From now on for `run`, whose log `say` writes to; at a run's beginning it looks for what
        earlier ones left.
        """
        if run != self._run:
            self._run, self._say, self._reported, self._patience = run, say, False, PATIENCE_SECONDS
            self.request()

    def request(self) -> None:
        """There is something to deliver."""
        self._requested.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow outbox", daemon=True)
            self._thread.start()

    def report(self, sentence: str, always: bool = False) -> None:
        """Says it in the run's log, which hears of one problem only, as it is the same for every
        stage, but for what is said `always`.
        """
        if always or not self._reported:
            self._reported = self._reported or not always
            with suppress(Exception):  # the run is over, and its log closed
                self._say(sentence)

    def _work(self) -> None:
        pause = 0.0
        while self._requested.wait():
            self._requested.clear()
            problems = self._deliver()
            pause = next_pause(pause) if problems else 0.0
            if problems:
                self.report(problems[0])
                time.sleep(pause)
                self._requested.set()
