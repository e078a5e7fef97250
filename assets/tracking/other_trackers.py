"""Trackers beside MLflow, off by default: Weights & Biases where LINEAGE_WANDB names a project,
TensorBoard files where LINEAGE_TENSORBOARD names a folder.

Each has a process of its own (`follower.py`), which reads what is on disk as MLflow's delivery
does. So a tracker that hangs or dies takes nothing from a build, and its client's threads, signals
and memory are not this process's.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from assets.launch.launcher import module_command
from assets.tracking.outbox import Say
from gpt_model.errors import UserError

VARIABLES = {"wandb": "LINEAGE_WANDB", "tensorboard": "LINEAGE_TENSORBOARD"}
TITLES = {"wandb": "Weights & Biases", "tensorboard": "TensorBoard"}
# At this process's end: for the last stage's numbers, and where the tracker does not answer.
LAST_SECONDS, TROUBLED_SECONDS = 10.0, 1.0


def configured() -> dict[str, str]:
    """Those that are on, each with its project or folder. Raises UserError for one that cannot
    work here.
    """
    targets = {}
    for kind, variable in VARIABLES.items():
        if target := os.environ.get(variable, "").strip():
            _require_installed(kind, variable)
            targets[kind] = _writable(target, variable) if kind == "tensorboard" else target
    return targets


def _require_installed(kind: str, variable: str) -> None:
    spec = importlib.util.find_spec(kind)
    if spec is None or spec.origin is None:  # a folder of that name is here, and no package
        raise UserError(
            f"--{kind} ({variable}) needs the package {kind}, not installed here: "
            f"pip install 'gpt-lineage[{kind}]' -c constraints.txt"
        )


def _writable(target: str, variable: str) -> str:
    folder = Path(target).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UserError(
            f"--tensorboard ({variable}) names {folder}, where no file can be written "
            f"({error.strerror}). Name a folder that you may write to."
        ) from error
    return str(folder)


def follow(home: Path, say: Say) -> None:
    """From now until this process ends, the trackers that are on follow what is built in `home`.
    `say` hears of what keeps one from it; nothing is raised.
    """
    try:
        targets = configured()
    except UserError as error:
        if str(error) not in _reported:
            _reported.add(str(error))
            say(f"{error} The build goes on without it.")
        return
    for kind, target in targets.items():
        key = (kind, target, home)
        with suppress(OSError):  # this machine starts no process more
            if key not in _followers or not _followers[key].is_alive:
                _followers[key] = _Follower(kind, target, home)
            _followers[key].say = say


def finish() -> list[str]:
    """Waits for the last numbers, but not long. Returns a sentence for each tracker that does not
    have everything; what it lacks is sent by the next run.
    """
    problems = [follower.stop() for follower in _followers.values()]
    _followers.clear()
    return [problem for problem in problems if problem]


class _Follower:
    """The process of one tracker. It ends with this process."""

    def __init__(self, kind: str, target: str, home: Path) -> None:
        self.say: Say = lambda sentence: None
        self._problem, self._title = "", f"{TITLES[kind]} ({target})"
        self._process = subprocess.Popen(
            [*module_command(sys.executable, "assets.tracking.follower"), kind, target, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which ends it in good order
        )
        self._listener = threading.Thread(target=self._listen, name=f"{kind} problems", daemon=True)
        self._listener.start()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def _listen(self) -> None:
        """A line is a sentence for the run's log; an empty one says that all is well again."""
        assert self._process.stdout
        for line in self._process.stdout:
            self._problem = line.strip()
            if self._problem:
                with suppress(Exception):  # the run is over, and its log closed
                    self.say(self._problem)

    def stop(self) -> str:
        """Returns what keeps the tracker from having everything, if anything does."""
        assert self._process.stdin
        with suppress(OSError):
            self._process.stdin.close()
        began = time.monotonic()
        while self.is_alive:
            waited = time.monotonic() - began
            if waited > (TROUBLED_SECONDS if self._problem else LAST_SECONDS):
                self._problem = self._problem or (
                    f"{self._title} has not taken the last numbers within {LAST_SECONDS:g} s; the "
                    "next run sends them."
                )
                os.killpg(self._process.pid, signal.SIGKILL)
                break
            time.sleep(0.05)
        self._listener.join(1.0)
        if self._process.wait() > 0 and not self._problem:
            return f"What follows the builds for {self._title} died; the next run sends the rest."
        return self._problem


_reported: set[str] = set()  # each once a process
_followers: dict[tuple[str, str, Path], _Follower] = {}
atexit.register(finish)
