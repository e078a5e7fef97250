"""The launcher: runs a command as one or more ranks on this machine, under the guard, and waits for
their end.

Not here: what the ranks do (`assets/worker.py`), how they are kept from outliving anyone
(`guard.py`). The ranks find each other as torch.distributed expects: RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR, MASTER_PORT.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import psutil

from assets.launch import guard

POLL_SECONDS = 0.1
MEMORY_SECONDS = 0.5
LOOPBACK_INTERFACE = "lo" if sys.platform.startswith("linux") else "lo0"

# glibc gives memory back between steps and pages it in again: 1.25x on a plain training loop on two
# cores to keep it. Never mapping a block of its own is said by MMAP_MAX: a high MMAP_THRESHOLD says
# the same to glibc 2.36, but an older one drops a value above HEAP_MAX_SIZE / 2 = 32 MiB without a
# word, and then maps all above 128 KiB; at 32 MiB each larger block is mapped and faulted in again
# (10,000 faults for 40 MiB, against none).
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
# A step reads and writes more memory than a processor has addresses of pages of 4 KiB at hand.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclass(frozen=True)
class Exit:
    """How the ranks ended. `code`: 0, or the exit status of the rank that failed first (negative:
    the signal that ended it).
    """

    code: int
    failed_rank: int | None
    peak_memory_bytes: int
    log: Path  # of the failed rank, else of rank 0
    lost: str | None = None  # of a host that went with its ranks: a sentence
    threads: int = 1  # of a rank
    hosts: Sequence[str] = ("this machine",)  # each with as many ranks as the others, in order


def log_of(log: Path, rank: int) -> Path:
    """Where a rank's output goes: `worker.log` for rank 0, `worker.1.log` for rank 1."""
    return log if rank == 0 else log.with_name(f"{log.stem}.{rank}{log.suffix}")


def worker_environment(device: str, ranks: int, threads: int) -> dict[str, str]:
    """This process's environment, made fit for workers. What a person has set of it stays as they
    set it.
    """
    environment = {
        key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"
    }  # or each start compiles all
    defaults = {
        "PYTHONUNBUFFERED": "1",  # what a killed rank said last is in its log
        "PYTHONFAULTHANDLER": "1",
        "TOKENIZERS_PARALLELISM": "true",  # on as many threads as the next line says
        "RAYON_NUM_THREADS": str(threads),
        # what ranks of one host send each other passes through no other interface
        "GLOO_SOCKET_IFNAME": LOOPBACK_INTERFACE,
        "NCCL_SOCKET_IFNAME": LOOPBACK_INTERFACE,
    }
    if device == "cpu":
        defaults |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if sys.platform.startswith("linux"):
            defaults |= MALLOC | HUGE_PAGES
    return (
        defaults
        | environment
        # in UTF-8 whatever the locale, as the files and logs are
        | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": str(threads)}
        | {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    )


def module_command(python: str, module: str) -> list[str]:
    """The command that runs `module` as it would be imported here. Where this process imports
    nothing from the current folder, neither does that: a person may have a package of one of our
    names there.
    """
    from_here = {"", str(Path.cwd())} & set(sys.path)
    return [python, *([] if from_here else ["-P"]), "-m", module]


@dataclass(frozen=True)
class Ranks:
    """What a launcher runs: `count` processes of one command, with `threads` each.

    `log`: rank 0's output, and beside it the others' (`log_of`). `env`: theirs, besides this
    process's. `keep_fds` stay open until the last process of the tree is gone (the store's lock).
    """

    command: Sequence[str]
    count: int
    threads: int
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    keep_fds: Iterable[int] = ()

    def logs(self) -> list[Path]:
        """Each rank's, in a folder that is there."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        return [log_of(self.log, rank) for rank in range(self.count)]


class Launcher(Protocol):
    """Runs ranks, on this machine or on several (`hosts.py`)."""

    def run(self, ranks: Ranks) -> Exit:
        """Blocks until every rank has ended. What is raised in here, an interruption included, ends
        the ranks first and goes on.
        """
        ...


class LocalLauncher:
    """Runs ranks on this machine. They are gone when `run` returns or raises, and soon after this
    process dies in any way.
    """

    def __init__(self, device: str = "cpu", grace: float = 5.0) -> None:
        """`grace`: seconds between TERM and KILL."""
        self.device = device
        self.grace = grace

    def run(self, ranks: Ranks, on_poll: Callable[[], None] = lambda: None) -> Exit:
        """As `Launcher.run`; calls `on_poll` about ten times a second."""
        environment = (
            worker_environment(self.device, ranks.count, ranks.threads)
            | {"MASTER_PORT": str(free_port())}
            | dict(ranks.env)
        )
        logs = ranks.logs()
        with (
            ranks.log.open("ab") as errors,
            _guarded(
                ranks.command, environment, logs, self.grace, errors, ranks.keep_fds
            ) as client,
        ):
            code, failed = client.until_the_end(on_poll)
        log = logs[failed or 0]
        return Exit(code, failed, client.peak_memory_bytes, log, threads=ranks.threads)


def serve(command: Sequence[str], environment: Mapping[str, str], grace: float) -> int:
    """Run a server under a guard until it ends, or this process does in any way; its output goes to
    stderr. Returns its exit status. `grace`: seconds between TERM and KILL.
    """
    with _guarded(command, environment, [None], grace, None) as client:
        code, _ = client.until_the_end(lambda: None)
    return code


@contextmanager
def _guarded(
    command: Sequence[str],
    environment: Mapping[str, str],
    logs: Sequence[Path | None],
    grace: float,
    errors: BinaryIO | None,
    keep_fds: Iterable[int] = (),
) -> Iterator[GuardClient]:
    """`command`, once for each of `logs`, under a guard, and gone when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        pass_fds=tuple(keep_fds),
        start_new_session=True,
    )
    client = GuardClient(process)
    try:
        spec = {
            "command": list(command),
            "ranks": len(logs),
            "grace": grace,
            "logs": [str(log) if log else None for log in logs],
            "watch": watched(),
        }
        client.send(spec)
        yield client
    finally:
        client.close(grace)


class GuardClient:
    """The starter's end of one guard."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.peak_memory_bytes = 0
        self._tree: dict[int, str] = {}

    def send(self, spec: Mapping[str, object]) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # killed already: its silence says so
            self.process.stdin.write(json.dumps(spec).encode() + b"\n")
            self.process.stdin.flush()

    def until_the_end(self, on_poll: Callable[[], None]) -> tuple[int, int | None]:
        """The guard's report: exit status, failed rank. Where the guard itself was killed: that
        signal.
        """
        assert self.process.stdout is not None
        output, next_look = b"", 0.0
        while True:
            ready, _, _ = select.select([self.process.stdout], [], [], POLL_SECONDS)
            if ready:
                part = os.read(self.process.stdout.fileno(), 4096)
                if not part:
                    if not output.endswith(b"\n"):
                        return -signal.SIGKILL, None
                    report = json.loads(output)
                    return report["code"], report["rank"]
                output += part
            if time.monotonic() >= next_look:
                self._look()
                next_look = time.monotonic() + MEMORY_SECONDS
            on_poll()

    def close(self, grace: float) -> None:
        """Sees to it that nothing is left, whatever happened. Quick where the guard has already
        ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(grace + 5.0)
        except subprocess.TimeoutExpired:
            self._look()
            self.process.kill()
            self.process.wait()
        finally:
            self.process.stdout.close()
            for pid, start in self._tree.items():  # only a killed guard leaves any
                if self.process.returncode != 0 and guard.started(pid) == start:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _look(self) -> None:
        tree = guard.descendants(self.process.pid)
        if tree or self.process.poll() is None:
            self._tree |= tree
        self.peak_memory_bytes = max(self.peak_memory_bytes, _memory(tree))


def _memory(pids: Iterable[int]) -> int:
    """Bytes resident in these processes. Pages they share (libraries, files) are counted once, as
    the largest share of one.
    """
    private, shared = 0, 0
    for pid in pids:
        with suppress(psutil.Error):
            memory = psutil.Process(pid).memory_info()
            process_shared = getattr(memory, "shared", 0)
            private += memory.rss - process_shared
            shared = max(shared, process_shared)
    return private + shared


def watched() -> list[tuple[int, str]]:
    """This process and, where it is a step process of Dagster's multiprocess executor, the run
    process it belongs to.
    """
    parent = multiprocessing.parent_process()
    pids = [os.getpid()] + ([parent.pid] if parent and parent.pid else [])
    return [(pid, start) for pid in pids if (start := guard.started(pid))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def name_of_signal(code: int) -> str:
    """An exit status for a person: "exit status 3", "killed by SIGKILL"."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
