"""Several machines on one: each has namespaces of its own for network, name, processes and mounts
(namespaces(7)), joined by a bridge, with a real sshd, a real Slurm, a real Ray or the
small Kubernetes of kube_server.py. They share all files, as hosts with a network file system do; or they have one, GlusterFS.

Needs root and Debian's openssh-server, slurm-wlm and munge; `missing()` says what is not there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from kube_server import Settings

ROOT = Path(__file__).resolve().parent.parent
HEAD = "head"
PATIENCE_SECONDS = 60.0
RAY_ADDRESS = "10.77.0.11:6379"  # the first machine's
GLUSTER = ("/var/lib/glusterd", "/var/log/glusterfs", "/run/gluster")  # where it writes
SLURM = """\
ClusterName=lineage
SlurmctldHost=head(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SwitchType=switch/none
KillWait=5
SlurmctldTimeout=30
SlurmdTimeout=30
TmpFS={folder}
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""
SSHD = """\
Port 22
HostKey {folder}/hostkey
AuthorizedKeysFile {folder}/key.pub
PermitRootLogin prohibit-password
StrictModes no
PasswordAuthentication no
UsePAM no
PidFile none
MaxStartups 100
"""
SSH = """\
Host *
  User root
  IdentityFile {folder}/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
"""


def missing() -> str | None:
    """Why there can be no machines here; None where there can."""
    if os.geteuid() != 0:
        return "machines on one need root"
    tools = (
        "ip",
        "nsenter",
        "unshare",
        "setpriv",
        "sshd",
        "slurmctld",
        "slurmd",
        "munged",
        "ssh-keygen",
    )
    path = f"{os.environ['PATH']}:/usr/sbin"
    if absent := [tool for tool in tools if not shutil.which(tool, path=path)]:
        return f"{', '.join(absent)} not installed (openssh-server, slurm-wlm, munge, iproute2)"
    probes = (
        ["unshare", "--net", "--mount", "--pid", "--fork", "true"],
        ["ip", "netns", "add", f"probe{os.getpid()}"],
        ["ip", "netns", "del", f"probe{os.getpid()}"],
    )
    done = [subprocess.run(probe, capture_output=True, check=False) for probe in probes]
    return "namespaces cannot be made here" if any(each.returncode for each in done) else None


class Machines:
    """A head and `names`, up while the block runs. `folder`: for their settings and logs."""

    def __init__(self, folder: Path, names: Sequence[str] = ("n1", "n2")) -> None:
        self.folder, self.names = folder, list(names)
        self._daemons: dict[tuple[str, str], subprocess.Popen[bytes]] = {}  # machine, program
        self._ray_folder: Path | None = None
        self.ray: dict[str, subprocess.Popen[bytes]] = {}  # each machine's
        self._tag = f"gl{os.getpid()}"
        self._slurm: dict[str, str] = {}  # the environment of its commands

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        addresses = {HEAD: "10.77.0.1"}
        addresses |= {name: f"10.77.0.{11 + n}" for n, name in enumerate(self.names)}
        lines = ["127.0.0.1 localhost", *(f"{ip} {name}" for name, ip in addresses.items())]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        try:
            for name in addresses:
                _ip("netns", "add", self._namespace(name))
                _ip("-n", self._namespace(name), "link", "set", "lo", "up")
            head = self._namespace(HEAD)
            _ip("-n", head, "link", "add", "br0", "type", "bridge")
            _ip("-n", head, "addr", "add", "10.77.0.1/24", "dev", "br0")
            _ip("-n", head, "link", "set", "br0", "up")
            for name in self.names:
                namespace, cable = self._namespace(name), f"v{name}"
                peer = ["peer", "name", "eth0", "netns", namespace]
                _ip("-n", head, "link", "add", cable, "type", "veth", *peer)
                _ip("-n", head, "link", "set", cable, "master", "br0", "up")
                _ip("-n", namespace, "addr", "add", f"{addresses[name]}/24", "dev", "eth0")
                _ip("-n", namespace, "link", "set", "eth0", "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for daemon in reversed(self._daemons.values()):
            daemon.kill()  # and with `unshare` all that it forked
            daemon.wait()
        self._end_ray()
        for name in (HEAD, *self.names):
            subprocess.run(
                ["ip", "netns", "del", self._namespace(name)], capture_output=True, check=False
            )

    def _namespace(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def on(self, name: str, command: Sequence[str]) -> list[str]:
        """The command that runs `command` on a machine; killed, it ends all that it began there.
        What a killed `command` leaves has a few seconds to end by itself.
        """
        inside = (
            f"mount --bind {self.folder}/hosts /etc/hosts; hostname {name}; "
            '"$@"; code=$?; test $code -lt 128 || { exec >&- 2>&-; sleep 5; }; exit $code'
        )
        return [
            *("nsenter", f"--net=/run/netns/{self._namespace(name)}"),
            *("unshare", "--mount", "--uts", "--pid", "--mount-proc", "--fork"),
            *("--kill-child=KILL", "sh", "-c", inside, "sh", *command),
        ]

    def beside(self, daemon: subprocess.Popen[bytes], command: Sequence[str]) -> list[str]:
        """The command that runs `command` on the machine of a daemon, as a process that it sees;
        killed, it ends `command` too.
        """
        first = psutil.Process(daemon.pid)
        until(lambda: bool(first.children()), "the machine did not start")
        [inside] = first.children()
        return [
            *("nsenter", f"--target={inside.pid}", "--net", "--uts", "--mount", "--pid"),
            *("setpriv", "--pdeathsig", "KILL", *command),
        ]

    def start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """A daemon on a machine, which ends with the block."""
        with (self.folder / f"{Path(command[0]).name}.{name}.out").open("ab") as output:
            daemon = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.on(name, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._daemons[name, Path(command[0]).name] = daemon
        return daemon

    def lose(self, name: str, program: str) -> None:
        """Kills a daemon of a machine and all that it began there, as a crash does, and starts the
        daemon again.
        """
        daemon = self._daemons[name, program]
        command = psutil.Process(daemon.pid).cmdline()
        daemon.kill()
        daemon.wait()
        self.start(name, command[command.index("sh", command.index("-c") + 2) + 1 :])

    def start_gluster(self, brick: Path) -> None:
        """A volume of GlusterFS on the head, whose files lie in `brick`."""
        daemon = self.start(HEAD, _hiding(GLUSTER, ["glusterd", "--no-daemon"]))

        def gluster(*arguments: str) -> bool:
            command = self.beside(daemon, ["gluster", "--mode=script", "volume", *arguments])
            return subprocess.run(command, capture_output=True, check=False).returncode == 0

        until(lambda: gluster("list"), "glusterd did not start")
        assert gluster("create", "team", f"{HEAD}:{brick}", "force")
        assert gluster("start", "team")
        # the volume is started before its brick's server answers
        probe = self.mounting(self.folder, ["true"])
        until(lambda: self._answers(probe), "the volume cannot be mounted")

    def mounting(self, folder: Path, command: Sequence[str]) -> list[str]:
        """The command that runs `command` with the volume at `folder`, by a client of its own."""
        mount = f'mount -t glusterfs {HEAD}:/team "{folder}" && exec "$@"'
        return _hiding(GLUSTER, ["sh", "-c", mount, "sh", *command])

    def pull_cable(self, name: str) -> None:
        _ip("-n", self._namespace(HEAD), "link", "set", f"v{name}", "down")

    def plug_cable(self, name: str) -> None:
        _ip("-n", self._namespace(HEAD), "link", "set", f"v{name}", "up")

    def start_ssh(self) -> Path:
        """An sshd on every machine. Returns the settings for ssh's -F."""
        for key in ("hostkey", "key"):
            path = str(self.folder / key)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        (self.folder / "sshd_config").write_text(SSHD.format(folder=self.folder))
        settings = self.folder / "ssh_config"
        settings.write_text(SSH.format(folder=self.folder))
        for name in self.names:
            self.start(name, ["/usr/sbin/sshd", "-D", "-e", "-f", f"{self.folder}/sshd_config"])
        for name in self.names:
            until(
                lambda name=name: self._answers(["ssh", "-F", str(settings), name, "true"]),
                f"no sshd on {name}",
            )
        return settings

    def start_slurm(self) -> dict[str, str]:
        """A Slurm cluster of the machines. Returns the environment of its commands."""
        nodes = "\n".join(
            f"NodeName={name} NodeAddr=10.77.0.{11 + n} CPUs=2 RealMemory=8000"
            for n, name in enumerate(self.names)
        )
        settings = self.folder / "slurm.conf"
        settings.write_text(
            SLURM.format(folder=self.folder, nodes=nodes, names=",".join(self.names))
        )
        (self.folder / "state").mkdir(exist_ok=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        self.start(
            HEAD,
            [
                *("/usr/sbin/munged", "--foreground", "--force", f"--key-file={key}"),
                *(f"--socket={self.folder}/munge.socket", f"--pid-file={self.folder}/munge.pid"),
                *(f"--log-file={self.folder}/munge.log", f"--seed-file={self.folder}/munge.seed"),
            ],
        )
        until((self.folder / "munge.socket").exists, "munged did not start")
        self.start(HEAD, ["/usr/sbin/slurmctld", "-D", "-f", str(settings)])
        for name in self.names:
            self.start(name, ["/usr/sbin/slurmd", "-D", "-N", name, "-f", str(settings)])
        environment = {"SLURM_CONF": str(settings)}
        self._slurm = environment
        until(self.slurm_is_idle, "Slurm's nodes did not come up")
        return environment

    def slurm_is_idle(self) -> bool:
        """Whether every node is up and has no job."""
        idle = ["sh", "-c", f'test "$(sinfo -h -t idle -o %D)" = {len(self.names)}']
        return self._answers(idle, self._slurm)

    def start_ray(self) -> str:
        """A Ray cluster of the machines, in place of an earlier one. Returns its address."""
        self._end_ray()
        self._ray_folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # names of sockets
        for name in self.names:
            self.join_ray(name)
        return RAY_ADDRESS

    def _end_ray(self) -> None:
        for daemon in self.ray.values():
            daemon.kill()
            daemon.wait()
        if self._ray_folder:
            shutil.rmtree(self._ray_folder, ignore_errors=True)

    def join_ray(self, name: str) -> None:
        """Start a machine's Ray, as after its restart: the first one's is the cluster's head."""
        number, output = self.names.index(name), self.folder / f"ray.{name}.out"
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=2"]
        command += ["--disable-usage-stats", "--object-store-memory=80000000"]
        command += [f"--temp-dir={self._ray_folder}", f"--node-ip-address=10.77.0.{11 + number}"]
        if number == 0:
            command += ["--head", "--port=6379", "--include-dashboard=false"]
        else:
            command += [f"--address={RAY_ADDRESS}"]
        output.unlink(missing_ok=True)
        self.ray[name] = self.start(name, command)
        until(lambda: "Ray runtime started" in output.read_text(), f"no Ray on {name}")

    def start_kubernetes(self) -> dict[str, str]:
        """A cluster whose nodes are the machines, and whose claim is the folder of all tests.
        Returns the environment of kubectl.
        """
        folder = self.folder / "kubernetes"
        folder.mkdir()
        nodes = [
            (f"/run/netns/{self._namespace(name)}", f"10.77.0.{11 + number}")
            for number, name in enumerate(self.names)
        ]
        settings = Settings("10.77.0.1", 6443, str(folder), str(self.folder.parent), nodes)
        (folder / "settings.json").write_text(json.dumps(asdict(settings)))
        server = [sys.executable, str(ROOT / "tests" / "kube_server.py")]
        self.start(HEAD, [*server, str(folder / "settings.json")])
        environment = {"KUBECONFIG": str(folder / "kubeconfig")}
        until(lambda: self._answers(["kubectl", "get", "pods"], environment), "no Kubernetes")
        return environment

    def _answers(self, command: Sequence[str], environment: dict[str, str] | None = None) -> bool:
        done = subprocess.run(
            self.on(HEAD, command),
            env=os.environ | (environment or {}),
            capture_output=True,
            check=False,
        )
        return done.returncode == 0


def _hiding(folders: Sequence[str], command: Sequence[str]) -> list[str]:
    """The command that runs `command` with empty folders in place of `folders`."""
    each = "; ".join(f"mkdir -p {folder} && mount -t tmpfs none {folder}" for folder in folders)
    return ["sh", "-c", f'{each}; exec "$@"', "sh", *command]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> float:
    """Seconds until `condition` held."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, what
        time.sleep(0.05)
    return time.monotonic() - began
