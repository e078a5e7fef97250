"""The launcher on several machines: a guard on each, reached by ssh, srun, Ray or Kubernetes, which
carry its standard input and output.

What a guard promises on this machine holds there too: its input ends when this process, or what
carries it, does, and its ranks with it. Where a cable is pulled nothing ends, so both sides send
signs of life. Every host sees the store, the code and Python at the same paths; each says so before
a rank runs (`refuse_unfit`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import select
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from assets.launch import guard
from assets.launch.carrier import not_here
from assets.launch.jobset import BUILD_LABEL, jobset
from assets.launch.launcher import (
    POLL_SECONDS,
    Exit,
    Ranks,
    module_command,
    watched,
    worker_environment,
)
from assets.recipe.profile import Hosts
from assets.store.home import ROOT
from gpt_model.errors import UserError, shortened
from gpt_model.io import TEMPORARY
from gpt_model.redaction import secret

SILENCE_SECONDS = 45.0  # without a sign of life a host, or its starter, counts as gone
REPORT_SECONDS = 2.0  # that a guard's last line may need longer than its lifeline's end
POD_SECONDS = 10.0  # that Kubernetes may need to say how a pod ended
ANSWER_SECONDS = 60.0  # from ssh's start to a host's first word
CLOCKS_APART_SECONDS = 60.0  # at most: events and checkpoints carry times
LEAST_FREE_BYTES = 256 << 20  # of a host's temporary folder
GUARD = [sys.executable, "-I", "-S", guard.__file__, guard.OF_SEVERAL]
# A day, where `options` do not say: an allocation that nobody holds must end.
TIME_LIMIT = "--time=1-00:00:00"
# What a rank on another host gets of this process's environment.
CARRIED = (
    *("LINEAGE_", "DAGSTER_PIPES_", "HF_", "NCCL_", "GLOO_", "PYTHON", "TOKENIZERS_", "MALLOC_"),
    *("DS_", "WORLD_SIZE", "CUDA_", "TORCH_", "PIP_", "http_proxy", "https_proxy", "no_proxy"),
    *("LC_", "LANG", "XDG_"),
)
LOCAL_TO_A_HOST = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "CUDA_VISIBLE_DEVICES")

Say = Callable[[str], None]


@dataclass
class Carrier:
    """A process that carries the standard input and output of the guards of `nodes`."""

    process: subprocess.Popen[bytes]
    nodes: range
    errors: Path  # its standard error
    output: bytes = b""
    open: bool = True
    ready: int = 0  # guards that listen
    silent: bool = True  # they have no specification yet

    @property
    def stdout(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):  # its end says so
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def complaint(self) -> str:
        """The end of what it wrote to its standard error."""
        return shortened(self.errors.read_text(encoding="utf-8", errors="replace").strip())


@dataclass
class Node:
    """What is known of one host."""

    name: str
    hello: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    killed: str = ""  # how its guard ended there, where it gave no report
    ended: float | None = None  # when its guard's lifeline did
    memory: int = 0
    heard: float = field(default_factory=time.monotonic)


class Lifeline:
    """A connection of each guard's to this process, so that each side hears at once of the end of
    the other's whole host, which srun and Ray do not tell.

    `address`: where it listens, that of this host's name; None where others cannot reach that.
    Silence alone tells then. `token`: what a guard shows, and its number, and no more.
    """

    def __init__(self) -> None:
        self.token = secrets.token_hex()
        self.address: tuple[str, int] | None = None
        self._server: socket.socket | None = None
        self._connections: dict[socket.socket, bytes] = {}  # what came through each

    def __enter__(self) -> Self:
        with suppress(OSError):
            number = socket.gethostbyname(socket.gethostname())
            if not number.startswith("127."):
                self._server = socket.create_server((number, 0), backlog=1024)
                self._server.setblocking(False)
                self.address = self._server.getsockname()
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (self._server, *self._connections):
            if connection:
                connection.close()

    def ended(self) -> set[int]:
        """The numbers of the guards whose connection ended since the last call."""
        with suppress(BlockingIOError):
            while self._server:
                connection, _ = self._server.accept()
                connection.setblocking(False)
                self._connections[connection] = b""
        numbers = set()
        for connection, shown in list(self._connections.items()):
            try:
                part = connection.recv(1024)
            except BlockingIOError:
                continue
            except OSError:
                part = b""
            shown = self._connections[connection] = shown + part
            stranger = not shown.startswith(self.token.encode()[: len(shown)])
            if stranger or not part:
                del self._connections[connection]
                connection.close()
                token, _, number = shown.decode(errors="replace").strip().partition(" ")
                if token == self.token:
                    numbers.add(int(number))
        return numbers


class HostsLauncher:
    """Runs ranks on the hosts of a profile, as `LocalLauncher` does on this machine.

    `threads`: of each rank where a host has several; default: its cores shared out evenly. `say`:
    a sentence for a person who waits. `grace`: seconds between TERM and KILL. `silence`: seconds
    without a sign of life after which a host, or for it this process, counts as gone.
    """

    def __init__(
        self,
        hosts: Hosts,
        device: str = "cpu",
        threads: int | None = None,
        say: Say = lambda message: None,
        grace: float = 5.0,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        self.hosts, self.device, self.threads = hosts, device, threads
        self.say, self.grace, self.silence = say, grace, silence

    def run(self, ranks: Ranks) -> Exit:
        """As `Launcher.run`. The log is in the store, as are the lock of each host beside it, and a
        token by which a host shows that it sees the same store.

        Raises UserError where a host does not answer or is unfit, before any rank runs.
        """
        log, logs = ranks.log, ranks.logs()
        nodes = 1 if ranks.count == 1 else self.hosts.count()
        names = self._names(nodes)
        lock = log.with_name("ranks.lock")
        addresses: list[str | None] = [name.rpartition("@")[2] for name in names]
        packages_folder = Path(sysconfig.get_path("purelib"))
        with (
            tempfile.NamedTemporaryFile(dir=log.parent, suffix=TEMPORARY) as token,
            Lifeline() as lifeline,
        ):
            token.write(lifeline.token.encode())
            token.flush()
            spec = {
                "command": list(ranks.command),
                "ranks": ranks.count // nodes,
                "threads": ranks.threads if self.threads else None,
                "logs": [str(path) for path in logs],
                "grace": self.grace,
                "watch": [],
                "silence": self.silence,
                "lifeline": lifeline.address,
                "release": self.hosts.by == "slurm" and "SLURM_JOB_ID" not in os.environ,
                "environment": self._environment(ranks),
                "addresses": addresses or [None] * nodes,  # None: by its own name
                "folder": str(Path.cwd()),
                "root": str(ROOT),
                "packages_folder": str(packages_folder),
                "packages": guard.packages(packages_folder),
                "token": token.name,
                "lock": str(lock),
            }
            with self._carried(self._commands(names, nodes, log), ranks) as carriers:
                labels = names or [f"node {number}" for number in range(nodes)]
                watch = Watch(carriers, labels, self.hosts, self.silence, lifeline)
                watch.greet(spec, self.say)
                refuse_unfit(watch.nodes, Path(token.name), spec)
                watch.go()
                exit = watch.until_the_end(logs)
        if exit.code == 0:
            complaints = log.parent.glob("host.*.log")
            empty = [path for path in complaints if path.stat().st_size == 0]
            for path in (*log.parent.glob(f"{lock.name}.*"), *empty):
                path.unlink()
        return exit

    def _environment(self, ranks: Ranks) -> dict[str, str]:
        in_a_file = self.hosts.by == "kubernetes"  # of the store, which holds no secret
        environment = {
            key: value
            for key, value in worker_environment(self.device, ranks.count, 1).items()
            if key.startswith(CARRIED) and not (in_a_file and secret(key, value))
        }
        for key in LOCAL_TO_A_HOST:
            if self.device == "cuda" or key != "CUDA_VISIBLE_DEVICES":
                environment.pop(key, None)
        return environment | dict(ranks.env) | dict(self.hosts.environment)

    def _names(self, nodes: int) -> list[str]:
        """The hosts that ssh is to reach: with spares the first that answer, in the file's order.
        Where too few do, the first of all, so that the one that does not answer is named.
        """
        names = list(self.hosts.names)
        if len(names) <= nodes or self.hosts.nodes is None:
            return names[:nodes]
        with Path(os.devnull).open("wb") as nowhere:
            probes = [
                _started(_ssh(name, self.hosts.options, ["true"]), nowhere, (), self.hosts.by)
                for name in names
            ]
        for probe in probes:
            probe.communicate()
        up = [name for name, probe in zip(names, probes, strict=True) if probe.returncode == 0]
        if silent := [name for name in names[:nodes] if name not in up]:
            self.say(f"{', '.join(silent)} does not answer; spares: {', '.join(names[nodes:])}")
        return up[:nodes] if len(up) >= nodes else names[:nodes]

    def _commands(
        self, names: Sequence[str], nodes: int, log: Path
    ) -> list[tuple[list[str], range]]:
        options = self.hosts.options
        if self.hosts.by == "ssh":
            return [
                (_ssh(name, options, GUARD), range(number, number + 1))
                for number, name in enumerate(names)
            ]
        if self.hosts.by == "ray":
            return [(_ray(nodes, self.hosts), range(nodes))]
        if self.hosts.by == "kubernetes":
            return [(self._kubernetes(nodes, log), range(nodes))]
        return [(_srun(nodes, options), range(nodes))]

    def _kubernetes(self, nodes: int, log: Path) -> list[str]:
        folder = log.with_name(f"{secrets.token_hex(4)}.pods")
        command = [*GUARD, str(folder), str(self.silence)]
        manifest = jobset(self.hosts, nodes, log, command, self.grace)
        wanted = {
            "manifest": manifest,
            "selector": f"{BUILD_LABEL}={manifest['metadata']['labels'][BUILD_LABEL]}",
            "nodes": nodes,
            "folder": str(folder),
            "silence": self.silence,
            "kubectl": [
                f"--{name}={value}"
                for name in ("context", "namespace")
                if (value := getattr(self.hosts, name))
            ],
        }
        return [
            *module_command(sys.executable, "assets.launch.kubernetes_carrier"),
            json.dumps(wanted),
        ]

    @contextmanager
    def _carried(
        self, commands: Sequence[tuple[list[str], range]], ranks: Ranks
    ) -> Iterator[list[Carrier]]:
        """A carrier for each command, and their ends: when the block is over, none is left."""
        carriers: list[Carrier] = []
        try:
            for number, (command, range_) in enumerate(commands):
                errors = ranks.log.with_name(f"host.{number}.log")
                with errors.open("wb") as file:
                    process = _started(command, file, ranks.keep_fds, self.hosts.by)
                carriers.append(Carrier(process, range_, errors))
            yield carriers
        finally:
            _end(carriers, self.grace)


def _started(
    command: Sequence[str], errors: BinaryIO, keep_fds: Iterable[int], by: str
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            pass_fds=tuple(keep_fds),
            start_new_session=True,
        )
    except FileNotFoundError:
        raise UserError(not_here(command[0], by), field="hosts.by") from None


def _ssh(host: str, options: Sequence[str], command: Sequence[str]) -> list[str]:
    quiet = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "LogLevel=ERROR"]
    alive = ["-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"]
    return ["ssh", "-T", *options, *quiet, *alive, host, shlex.join(command)]


def time_limit(options: Sequence[str]) -> list[str]:
    """Slurm's option that ends an allocation, where `options` have none."""
    return [] if any(option.startswith(("--time", "-t")) for option in options) else [TIME_LIMIT]


def _srun(nodes: int, options: Sequence[str]) -> list[str]:
    inside = "SLURM_JOB_ID" in os.environ
    return [
        "srun",
        *([] if inside else time_limit(options)),
        *options,
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        "--input=all",
        "--kill-on-bad-exit=0",
        *(["--overlap"] if inside else []),
        *GUARD,
    ]


def _ray(nodes: int, hosts: Hosts) -> list[str]:
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "Ray is not installed here, and the profile's hosts are Ray's. Install it on every "
            "node: `pip install 'gpt-lineage[ray]'`.",
            field="hosts.by",
        )
    cluster = {"address": hosts.address or "auto", "resources": {"CPU": 1, **hosts.resources}}
    wanted = {**cluster, "nodes": nodes, "command": GUARD}
    return [*module_command(sys.executable, "assets.launch.ray_carrier"), json.dumps(wanted)]


def _end(carriers: Sequence[Carrier], grace: float) -> None:
    """Ends the input of every carrier, and with it the guards; then the carriers."""
    for carrier in carriers:
        assert carrier.process.stdin is not None
        with suppress(OSError, ValueError):
            carrier.process.stdin.close()
    for carrier in carriers:
        assert carrier.process.stdout is not None
        try:
            carrier.process.wait(grace + 10)
        except subprocess.TimeoutExpired:
            carrier.process.terminate()
            try:
                carrier.process.wait(grace)
            except subprocess.TimeoutExpired:
                carrier.process.kill()
                carrier.process.wait()
        finally:
            carrier.process.stdout.close()


class Watch:
    """This machine's end of all guards."""

    def __init__(
        self,
        carriers: Sequence[Carrier],
        names: Sequence[str],
        hosts: Hosts,
        silence: float,
        lifeline: Lifeline,
    ) -> None:
        self.carriers, self.hosts, self.silence = carriers, hosts, silence
        self.lifeline = lifeline
        self.nodes = [Node(name) for name in names]
        self._next_life = 0.0
        self._watched = watched()
        self._refused: UserError | None = None  # by a carrier, before there were guards

    def greet(self, spec: Mapping[str, Any], say: Say) -> None:
        """Gives every host the specification once it listens, and waits for what it says of itself.
        Raises UserError naming the one that does not answer.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        waiting = False
        while missing := [node for node in self.nodes if node.hello is None]:
            self._turn()
            if self._refused:
                raise self._refused
            for carrier in self.carriers:
                if carrier.silent and carrier.ready == len(carrier.nodes):
                    carrier.silent = False
                    node = carrier.nodes[0] if len(carrier.nodes) == 1 else None  # else each knows
                    carrier.send(json.dumps({**spec, "node": node}).encode() + b"\n")
                silent = [self.nodes[number].name for number in carrier.nodes]
                if not carrier.open and any(self.nodes[n].hello is None for n in carrier.nodes):
                    raise self._no_answer(", ".join(silent), carrier.complaint())
            if time.monotonic() <= deadline:
                continue
            if self.hosts.by == "ssh":
                carrier = self.carriers[self.nodes.index(missing[0])]
                raise self._no_answer(missing[0].name, f"nothing within {ANSWER_SECONDS:g} s")
            if not waiting:  # in a queue, for nodes: it may take days
                say(f"waiting for {len(self.nodes)} nodes: {self.carriers[0].complaint()}")
                waiting = True

    def _no_answer(self, host: str, reason: str) -> UserError:
        if self.hosts.by == "ssh":
            return UserError(
                f"Host {host} does not answer by ssh: {reason or 'it said nothing'}. Try "
                f"`ssh {shlex.join([*self.hosts.options, host])} true`, and mend the profile's "
                "hosts.names or hosts.options.",
                field="hosts.names",
            )
        field = {"ray": "hosts.address", "slurm": "hosts.options"}.get(self.hosts.by, "hosts")
        return UserError(
            f"{self.hosts.by} gave no nodes: {reason or 'it said nothing'}. Mend the profile's "
            f"{field}.",
            field=field,
        )

    def go(self) -> None:
        """Tells every host where the ranks meet."""
        first = self.nodes[0].hello
        assert first is not None
        meeting = {
            "address": first["number"],
            "port": first["port"],
            "hosts": [node.name for node in self.nodes],
        }
        for carrier in self.carriers:
            carrier.send(json.dumps(meeting).encode() + b"\n")

    def until_the_end(self, logs: Sequence[Path]) -> Exit:
        """How the ranks ended, when every guard has reported or is lost."""
        failed, lost = None, None
        while not (failed or lost) and any(node.report is None for node in self.nodes):
            self._turn()
            failed = next(
                (
                    node.report
                    for node in self.nodes
                    if node.report and node.report["rank"] is not None
                ),
                None,
            )
            lost = self._lost()
        memory = sum(node.memory for node in self.nodes)
        threads = max((node.report or {}).get("threads", 1) for node in self.nodes)
        if failed:
            hosts = [node.name for node in self.nodes]
            return Exit(failed["code"], failed["rank"], memory, logs[failed["rank"]], hosts=hosts)
        if lost:
            return Exit(-signal.SIGKILL, None, memory, logs[0], lost)
        return Exit(0, None, memory, logs[0], threads=threads)

    def _lost(self) -> str | None:
        """Which host ended or fell silent without a report, as a sentence; or that the run did."""
        if any(guard.started(pid) != start for pid, start in self._watched):
            return "The Dagster run that this step belongs to ended."
        now = time.monotonic()
        report = POD_SECONDS if self.hosts.by == "kubernetes" else REPORT_SECONDS
        for carrier in self.carriers:
            for number in carrier.nodes:
                node = self.nodes[number]
                if node.report is not None and node.report["code"] == 0:
                    continue
                if node.killed or node.report is not None:
                    return f"Host {node.name} was lost: {node.killed or guard.KILLED}."
                if not carrier.open:
                    return f"Host {node.name} was lost: {carrier.complaint() or 'no reason given'}."
                if node.ended and now - node.ended > report:
                    return f"Host {node.name} was lost: nothing that was started there runs."
                if now - node.heard > self.silence:
                    return f"Host {node.name} was silent for {self.silence:g} s."
        return None

    def _turn(self) -> None:
        """Reads what came, and gives a sign of life now and then."""
        listening = [carrier for carrier in self.carriers if carrier.open]
        ready, _, _ = select.select([c.stdout for c in listening], [], [], POLL_SECONDS)
        for carrier in listening:
            if carrier.stdout not in ready:
                continue
            part = os.read(carrier.stdout, 65536)
            carrier.open = bool(part)
            *lines, carrier.output = (carrier.output + part).split(b"\n")
            for line in lines:
                self._hear(carrier, line)
        for number in self.lifeline.ended():
            self.nodes[number].ended = time.monotonic()
        if time.monotonic() >= self._next_life:  # to those who listen
            self._next_life = time.monotonic() + self.silence * guard.LIFE_SHARE
            for carrier in listening:
                if not carrier.silent:
                    carrier.send(b"\n")

    def _hear(self, carrier: Carrier, line: bytes) -> None:
        try:
            message = json.loads(line)
            if "refused" in message:
                self._refused = UserError(message["refused"], field=message["field"])
                return
            node = self.nodes[message["node"]]
        except (ValueError, TypeError, KeyError, IndexError):
            return  # a host's greeting, or Slurm's own words
        if "ready" in message:  # it has no number yet
            carrier.ready += 1
            return
        node.heard = time.monotonic()
        node.memory = max(node.memory, message.get("memory", 0))
        if "hello" in message:
            node.hello = message["hello"] | {"came": time.time()}
            if self.hosts.by != "ssh":
                node.name = node.hello["host"]
        elif "code" in message:
            node.report = message
        elif "killed" in message and self.hosts.by != "ssh":
            node.killed = message["killed"]


def refuse_unfit(nodes: Sequence[Node], token: Path, spec: Mapping[str, Any]) -> None:
    """Raises UserError naming the host, and what of it does not fit this machine or the others."""
    here: dict[str, Any] = {"python": list(sys.version_info[:3]), "code": guard.code_digest(ROOT)}
    for node in nodes:
        hello = node.hello
        assert hello is not None
        if hello["token"] != token.read_text(encoding="utf-8"):
            raise UserError(
                f"Host {node.name} does not see the store's folder {token.parent.parent}: it has "
                "to be the same folder at the same path on every host (NFS, Lustre, …).",
                field="hosts",
            )
        if hello["python"] != here["python"]:
            raise UserError(
                f"Host {node.name} has Python {_version(hello['python'])} at {sys.executable}, and "
                f"this machine {_version(here['python'])}. Give every host the same.",
                field="hosts",
            )
        if hello["code"] != here["code"]:
            raise UserError(
                f"Host {node.name} has other code than this machine in {ROOT}: another commit, or "
                "files that were changed. Give every host the same.",
                field="hosts",
            )
        if hello["different_packages"]:
            raise UserError(
                f"Host {node.name} has other packages than this machine in "
                f"{spec['packages_folder']}: {', '.join(hello['different_packages'])}. Install the "
                "same on every host.",
                field="hosts",
            )
        if (apart := abs(hello["clock"] - hello["came"])) > CLOCKS_APART_SECONDS:
            raise UserError(
                f"Host {node.name}'s clock is {apart:.0f} s from this machine's, and at most "
                f"{CLOCKS_APART_SECONDS:g} s are allowed: events and checkpoints carry times. Set "
                "it (NTP, chrony).",
                field="hosts",
            )
        if hello["free_bytes"] < LEAST_FREE_BYTES:
            raise UserError(
                f"Host {node.name} has {hello['free_bytes'] / 1e6:.0f} MB free in its temporary "
                f"folder, and at least {LEAST_FREE_BYTES / 1e6:.0f} MB are needed. Make room.",
                field="hosts",
            )
        if len(nodes) > 1 and (
            "unreachable" in hello or hello["number"].startswith("127.") or not hello["interface"]
        ):
            where = hello.get("unreachable") or f"{hello['address']} is {hello['number']} there"
            raise UserError(
                f"Host {node.name} cannot be reached by the others under its name: {where}. Each "
                "host has to resolve its own name to an address of its network (/etc/hosts).",
                field="hosts.names",
            )


def _version(numbers: Sequence[int]) -> str:
    return ".".join(map(str, numbers))
