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

On another host (`hosts.py`) ssh, srun or Ray carries its standard input and output, so the same
promises hold there. It then speaks first, as srun drops what it is given before every host listens;
it answers the specification with what the starter compares before any rank runs (`hello`), and
waits for a line that says where the ranks meet. Each side sends a sign of life every few
seconds: a guard that hears nothing for `silence` seconds stops, whatever became of the network.
srun and Ray tell neither side that the other's whole host died; a connection of the guard's to the
starter (`lifeline`) ends with either at once.

In a pod of Kubernetes (`kubernetes_carrier.py`) there is no standard input: the starter's lines and
signs of life are a file that grows, in a folder of the store, and the guard's are another.

Elsewhere than on Linux there is no subreaper: the tree is what `ps` shows below the guard.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

LINUX = sys.platform.startswith("linux")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
SIOCGIFADDR = 0x8915  # <linux/sockios.h>
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # of a container, cgroups(7)
POLL_SECONDS = 0.2
CONNECT_SECONDS = 2.0  # a firewall may swallow the lifeline; silence tells then
LIFE_SHARE = 1 / 9  # of the silence that means an end: the time between two signs of life
OF_SEVERAL = "of-several"  # this program's argument on several hosts
COULD_NOT_START = 127  # as a shell says it
KILLED = "the guard of its ranks was ended there"
# What `ray_carrier.py` gives a guard; srun and an indexed Job of Kubernetes have their own for the
# first.
NODE_VARIABLE, ADDRESS_VARIABLE = "LINEAGE_NODE", "LINEAGE_ADDRESS"
NODE_VARIABLES = (NODE_VARIABLE, "SLURM_NODEID", "JOB_COMPLETION_INDEX")
INPUT, OUTPUT = "in", "out"  # files of a starter's folder; the latter has the node's number behind
END_OF_INPUT = b"\x04"


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


class Starter:
    """Whoever started this process, at the other end of standard input and output.

    `silence`: seconds without a sign of life after which it counts as gone; None where it runs on
    this host, whose kernel says so. `node`: this host's number, for what is sent.
    """

    def __init__(self, node: int = 0, silence: float | None = None) -> None:
        self.gone = False
        self.peak_memory_bytes = (
            0  # of the ranks; the starter looks itself where it is on this host
        )
        self.node, self.silence = node, silence
        self._unread = b""
        self._lifeline: socket.socket | None = None
        self._heard = self._spoke = time.monotonic()

    def line(self) -> dict[str, Any]:
        """The next line that is no sign of life. Ends this process where none comes."""
        while True:
            line, end, rest = self._unread.partition(b"\n")
            if end:
                self._unread = rest
            elif self.gone:
                sys.exit(self._never_spoke())
            else:
                self._hear(None)
                continue
            if line.strip():
                message: dict[str, Any] = json.loads(line)
                return message

    def connect(self, address: tuple[str, int] | None, token: str | None) -> None:
        """Connects to the starter's lifeline; does without where that fails."""
        if address:
            with contextlib.suppress(OSError):
                self._lifeline = socket.create_connection(address, CONNECT_SECONDS)
                self._lifeline.sendall(f"{token} {self.node}\n".encode())

    def send(self, message: dict[str, Any]) -> None:
        """A line of less than 1,000 bytes: srun passes no more of one host on in one piece."""
        try:
            self._write(json.dumps({"node": self.node, **message}).encode() + b"\n")
        except OSError:
            self.gone = True

    def listen(self, wake: int | None = None) -> bool:
        """Waits a moment for a sign of life or of its end, and gives one. Returns whether `wake`, a
        file descriptor, has something to read.
        """
        woken = self._hear(wake)
        self._unread = b""
        now = time.monotonic()
        if self.silence is not None and now - self._spoke >= self.silence * LIFE_SHARE:
            self._spoke = now
            self.peak_memory_bytes = max(self.peak_memory_bytes, memory(descendants(os.getpid())))
            self.send({"memory": self.peak_memory_bytes})
        return woken

    def _hear(self, wake: int | None) -> bool:
        lifeline = self._lifeline.fileno() if self._lifeline else None
        part, ready = self._receive([each for each in (wake, lifeline) if each is not None])
        now = time.monotonic()
        if part is not None:
            self._unread += part
            self._heard = now
        silent = self.silence is not None and now - self._heard > self.silence
        # the starter sends nothing over the lifeline, so what is ready there is its end
        self.gone = self.gone or silent or part == b"" or lifeline in ready
        return wake in ready

    def _receive(self, others: Sequence[int]) -> tuple[bytes | None, list[int]]:
        """What came within a moment (b"": the end of input), and which of `others` are ready."""
        ready, _, _ = select.select([0, *others], [], [], POLL_SECONDS)
        return (os.read(0, 4096) if 0 in ready else None), ready

    def _write(self, line: bytes) -> None:
        os.write(1, line)

    def _never_spoke(self) -> str:
        return "the guard's starter went before saying what to start"


class SharedFile:
    """A file that one host appends to and another reads. It is opened anew each time, as only that
    asks a network file system for its latest state.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def append(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)

    def read(self) -> bytes:
        """What came since the last time. A file that is gone again has ended."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return END_OF_INPUT if self.offset else b""
        except OSError:
            return b""  # the file system is away for a moment; silence has its limit
        self.offset += len(data)
        return data


class StarterOfFolder(Starter):
    """A starter that shares a folder with this process, and no pipe: each appends to a file that
    the other reads.
    """

    def __init__(self, folder: Path, silence: float) -> None:
        super().__init__(_node_number(), silence)
        self._input = SharedFile(folder / INPUT)
        self._output = SharedFile(folder / f"{OUTPUT}.{self.node}")

    def _receive(self, others: Sequence[int]) -> tuple[bytes | None, list[int]]:
        ready, _, _ = select.select(others, [], [], POLL_SECONDS)
        part = self._input.read()
        return (b"" if END_OF_INPUT in part else part or None), ready

    def _write(self, line: bytes) -> None:
        self._output.append(line)

    def _never_spoke(self) -> str:
        if self._input.offset:
            return super()._never_spoke()
        return (
            f"{self._input.path.parent} is not in this pod: the store has to be the same folder at "
            "the same path there. Mend the profile's hosts.claim or hosts.mount"
        )


class Guard:
    """Starts the ranks of one specification and sees them to their end."""

    def __init__(self, spec: dict[str, Any], starter: Starter) -> None:
        self.spec = spec
        self.starter = starter
        self.running: dict[int, int] = {}  # process → rank
        self.failed: tuple[int, int] | None = None  # rank, exit status (negative: signal)
        self.asked_to_stop = False
        self.wake = self._signals()

    def run(self) -> dict[str, Any]:
        """Starts the ranks; returns {"rank", "code"} when every process below this one is gone."""
        for local_rank in range(self.spec["ranks"]):
            self._start(local_rank)
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

    def _start(self, local_rank: int) -> None:
        rank = self.spec.get("first_rank", 0) + local_rank
        log = self.spec["logs"][rank]
        environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(local_rank)}
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
        if self.starter.listen(self.wake):
            with contextlib.suppress(BlockingIOError):
                os.read(self.wake, 4096)
        if self.starter.gone or not self._watched_run(self.spec["watch"]):
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


def memory(pids: Iterable[int]) -> int:
    """Bytes resident in these processes, proc(5); pages they share are counted once, as the largest
    share of one. 0 elsewhere than on Linux.
    """
    private, shared, page = 0, 0, os.sysconf("SC_PAGE_SIZE")
    for pid in pids:
        with contextlib.suppress(OSError):
            pages = Path("/proc", str(pid), "statm").read_bytes().split()
            private += (int(pages[1]) - int(pages[2])) * page
            shared = max(shared, int(pages[2]) * page)
    return private + shared


def code_digest(root: Path) -> str:
    """SHA-256 of the code that ranks run: every module of the folders `assets` and `gpt_model`."""
    digest = hashlib.sha256()
    for folder in ("assets", "gpt_model"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def packages(folder: Path) -> list[str]:
    """What is installed in a folder of packages, with versions."""
    return sorted(path.name.removesuffix(".dist-info") for path in folder.glob("*.dist-info"))


def cores(limit: Path = CPU_LIMIT) -> int:
    """That this process may use, those of a container's limit rounded down."""
    count = len(os.sched_getaffinity(0)) if LINUX else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        quota, period = map(int, limit.read_bytes().split())
        count = min(count, max(1, quota // period))
    return count


def hello(spec: dict[str, Any]) -> dict[str, Any]:
    """What the starter compares with its own machine and the other hosts, before a rank runs."""
    token = Path(spec["token"])
    address = (
        spec["addresses"][spec["node"]] or os.environ.get(ADDRESS_VARIABLE) or socket.gethostname()
    )
    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "address": address,
        "python": list(sys.version_info[:3]),
        "different_packages": sorted(
            set(packages(Path(spec["packages_folder"]))) ^ set(spec["packages"])
        )[:5],
        "code": code_digest(Path(spec["root"])),
        "token": token.read_bytes().decode() if token.is_file() else None,
        "clock": time.time(),
        "free_bytes": shutil.disk_usage(tempfile.gettempdir()).free,
        "cores": cores(),
        "interface": None,
    }
    try:
        number = socket.gethostbyname(address)
        with socket.create_server((number, 0)) as server:
            facts |= {"number": number, "port": server.getsockname()[1]}
        facts["interface"] = _interface(number)
    except OSError as error:
        facts["unreachable"] = f"{address}: {error}"
    return facts


def _interface(number: str) -> str | None:
    """The network interface that has the IPv4 address `number`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == number:
                    return name
    return None


def _on_this_host(spec: dict[str, Any], starter: Starter) -> dict[str, Any]:
    """The specification with what holds on this host: says hello, and waits for where the ranks
    meet. The environment of this process becomes that of the ranks.
    """
    os.environ |= spec["environment"]
    if Path(spec["folder"]).is_dir():
        os.chdir(spec["folder"])
    facts = hello(spec)
    starter.connect(spec["lifeline"], facts["token"])
    starter.send({"hello": facts})
    meeting = starter.line()
    threads = spec["threads"] or max(1, facts["cores"] // spec["ranks"])
    environment = {
        "MASTER_ADDR": meeting["address"],
        "MASTER_PORT": str(meeting["port"]),
        "LINEAGE_HOSTS": ",".join(meeting["hosts"]),
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": facts["interface"] or "",
        "NCCL_SOCKET_IFNAME": facts["interface"] or "",
    }
    os.environ |= {
        name: value
        for name, value in environment.items()
        if value and name not in spec["environment"]
    }
    return spec | {"first_rank": spec["ranks"] * spec["node"]}


@contextlib.contextmanager
def _alone(path: str, starter: Starter) -> Iterator[None]:
    """Holds a lock of this host while ranks run here: those of an earlier attempt, whose starter
    died, are gone before the next ones start.
    """
    handle = os.open(f"{path}.{socket.gethostname()}", os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(handle, True)  # a process that outlives a killed guard holds it too
    try:
        while not starter.gone:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield
                return
            starter.listen()
        sys.exit("the guard's starter went while another attempt's ranks were ending")
    finally:
        os.close(handle)


def _guard_of_several(spec: dict[str, Any], starter: Starter) -> None:
    """The guard of one of several hosts. A specification is for all of them where one carrier
    reaches them all.
    """
    node = spec.get("node")
    spec["node"] = starter.node = _node_number() if node is None else node
    starter.silence = spec["silence"]
    spec = _on_this_host(spec, starter)
    with _alone(spec["lock"], starter):
        report = Guard(spec, starter).run()
    threads = int(os.environ["OMP_NUM_THREADS"])
    starter.send({**report, "memory": starter.peak_memory_bytes, "threads": threads})
    if starter.gone and spec["release"] and spec["node"] == 0:
        # Slurm keeps the allocation of an srun that was killed for ever, by default.
        subprocess.run(["scancel", os.environ["SLURM_JOB_ID"]], check=False)


def _node_number() -> int:
    """Of this host, among those that one carrier reaches."""
    return next((int(os.environ[name]) for name in NODE_VARIABLES if name in os.environ), 0)


def _become_watched(starter: Starter) -> None:
    """Forks: the child goes on, and this process waits for it, adopts what a killed one leaves and
    ends it. On the starter's host that is the starter's part. Where this process is killed, the
    child has a TERM; where this process has one, it passes it on, as a pod's first process has to.
    """
    watcher = os.getpid()
    if (child := os.fork()) == 0:
        if LINUX:
            prctl = ctypes.CDLL(None, use_errno=True).prctl
            prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != watcher:
            os._exit(1)
        return
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    _, status = os.waitpid(child, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while tree := descendants(watcher):
        for pid in tree:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)
    if os.waitstatus_to_exitcode(status) < 0:  # ssh's end says so too; srun and Ray go on
        starter.node = _node_number()
        starter.send({"killed": KILLED})
    os._exit(max(os.waitstatus_to_exitcode(status), 0))


def main() -> None:
    if LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    several, folder = sys.argv[1:2] == [OF_SEVERAL], sys.argv[2:]
    starter = StarterOfFolder(Path(folder[0]), float(folder[1])) if folder else Starter()
    if several:
        _become_watched(starter)
        starter.send({"ready": True})
        _guard_of_several(starter.line(), starter)
    else:
        starter.send(Guard(starter.line(), starter).run())  # nobody may be left to hear it


if __name__ == "__main__":
    main()
