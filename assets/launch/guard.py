"""The guard: a small process between whoever starts ranks and the ranks, so that none outlives its
reason.

Started by `launcher.py` as `python -I -S guard.py`; standard library only, so it is up in tens of
milliseconds and has one thread. It reads one line of JSON from standard input, starts the ranks,
and answers with one line on standard output when all are gone.

* It leads a session of its own and is a child subreaper (prctl(2)): a descendant whose parent dies
  becomes its child, whatever session or group it has made for itself, so its tree under /proc is
  always whole.
* Standard input stays open as long as the starter lives. End of file, or the end of a watched
  process, means: stop everything.
* Stopping is TERM to the whole tree, then KILL after the grace period, until nothing is left.
* A rank dies with the guard (PR_SET_PDEATHSIG), so that not even killing the guard leaves one.
* A rank's output goes to a file, never to a pipe that could fill and block it; a server's goes
  where this process's standard error goes.

Elsewhere than on Linux there is no subreaper: the tree is what `ps` shows below the guard.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

LINUX = sys.platform.startswith("linux")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
POLL_SECONDS = 0.2
COULD_NOT_START = 127  # as a shell says it


def processes() -> Iterator[tuple[int, int, str]]:
    """(process, its parent, when it started) of all that run, zombies left out. The start time
    tells a reused number apart.
    """
    if LINUX:
        numbers = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
        yield from (process for pid in numbers if (process := _stat(pid)))
        return
    listing = ["ps", "-A", "-o", "pid=,ppid=,stat=,lstart="]
    for line in subprocess.run(
        listing, capture_output=True, text=True, check=True
    ).stdout.splitlines():
        pid, parent, state, start = line.split(None, 3)
        if not state.startswith("Z"):
            yield int(pid), int(parent), start.strip()


def _stat(pid: int) -> tuple[int, int, str] | None:
    """One process from /proc/<pid>/stat, proc(5); None where it no longer runs."""
    try:
        stat = Path("/proc", str(pid), "stat").read_bytes()
    except OSError:
        return None
    state, parent, *rest = stat[
        stat.rindex(b")") + 2 :
    ].split()  # behind the name, which may hold anything
    return None if state in (b"Z", b"X") else (pid, int(parent), rest[17].decode())


def started(pid: int) -> str | None:
    """When the process `pid` started, in the kernel's terms; None where it no longer runs."""
    process = (
        _stat(pid) if LINUX else next((entry for entry in processes() if entry[0] == pid), None)
    )
    return process[2] if process else None


def descendants(root: int) -> dict[int, str]:
    """Everything that runs below `root`: process → when it started."""
    children: dict[int, list[tuple[int, str]]] = {}
    for pid, parent, start in processes():
        children.setdefault(parent, []).append((pid, start))
    tree: dict[int, str] = {}
    todo = [root]
    while todo:
        for pid, start in children.get(todo.pop(), []):
            if pid not in tree:
                tree[pid] = start
                todo.append(pid)
    return tree


class Guard:
    """Starts the ranks of one specification and sees them to their end."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.running: dict[int, int] = {}  # process → rank
        self.failed: tuple[int, int] | None = None  # rank, exit status (negative: signal)
        self.asked_to_stop = False
        self.wake = self._signals()

    def run(self) -> dict[str, Any]:
        """Starts the ranks; returns {"rank", "code"} when every process below this one is gone."""
        for rank in range(self.spec["ranks"]):
            self._start(rank)
        while self.running and not self.failed and not self.asked_to_stop:
            self._wait()
            self._reap()
        self._stop_tree()
        if self.failed:
            return {"rank": self.failed[0], "code": self.failed[1]}
        return {"rank": None, "code": -signal.SIGTERM if self.asked_to_stop else 0}

    def _signals(self) -> int:
        """Signals only wake the loop: what to do is decided in one place."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_stop_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        return read

    def _on_stop_signal(self, *_: object) -> None:
        self.asked_to_stop = True

    def _start(self, rank: int) -> None:
        log = self.spec["logs"][rank]
        environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with Path(log).open("ab") if log else os.fdopen(os.dup(2), "ab") as output:
            try:
                process = subprocess.Popen(
                    self.spec["command"],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_dies_with(os.getpid()),  # safe: this process has one thread
                )
            except OSError as error:
                output.write(f"{self.spec['command'][0]} cannot be started: {error}\n".encode())
                self.failed = self.failed or (rank, COULD_NOT_START)
                return
        process.returncode = 0  # reaped below, by number; Popen is not to wait for it
        self.running[process.pid] = rank

    def _wait(self) -> None:
        ready, _, _ = select.select([0, self.wake], [], [], POLL_SECONDS)
        if self.wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self.wake, 4096)
        starter_gone = 0 in ready and not os.read(0, 4096)
        if starter_gone or not self._watched_run(self.spec["watch"]):
            self.asked_to_stop = True

    def _watched_run(self, watched: Iterable[tuple[int, str]]) -> bool:
        return all(started(pid) == start for pid, start in watched)

    def _reap(self) -> None:
        """Buries every child that ended, ranks and adopted ones. Of ranks that failed at once, one
        a signal ended is the cause.
        """
        failures = []
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                rank, code = self.running.pop(pid, None), os.waitstatus_to_exitcode(status)
                if rank is not None and code != 0:
                    failures.append((rank, code))
        if failures and not self.failed:
            self.failed = min(failures, key=lambda failure: (failure[1] > 0, failure[0]))

    def _stop_tree(self) -> None:
        """TERM to each descendant once, KILL to whatever is left after the grace period, until
        there is none.
        """
        deadline = time.monotonic() + self.spec["grace"]
        signalled: set[int] = set()
        while tree := descendants(os.getpid()):
            late = time.monotonic() >= deadline
            for pid in tree if late else tree.keys() - signalled:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                signalled.add(pid)
            time.sleep(0.02)
            self._reap_quietly()

    def _reap_quietly(self) -> None:
        cause = self.failed
        self._reap()
        if cause or self.asked_to_stop:
            self.failed = cause  # what dies now was told to


def _dies_with(guard: int) -> Callable[[], None] | None:
    """For the child between fork and exec: the kernel is to KILL it when the guard dies."""
    if not LINUX:
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:
            os._exit(1)

    return ask


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        if not (part := os.read(0, 65536)):
            sys.exit("the guard's starter went before saying what to start")
        line += part
    return line


def main() -> None:
    if LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    report = Guard(json.loads(_first_line())).run()
    with contextlib.suppress(OSError):  # nobody may be left to hear it
        os.write(1, json.dumps(report).encode() + b"\n")


if __name__ == "__main__":
    main()
