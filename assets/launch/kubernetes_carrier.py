"""A process like srun, for a Kubernetes cluster: it creates a JobSet with a guard in each pod, and
deletes it when its standard input ends. kubectl is the user's own.

Pods have no standard input that outlives a broken connection. So this process copies its own into
a file of a folder that every pod sees (`guard.StarterOfFolder`), and the lines that the guards
append to theirs to its standard output. That file grows with each sign of life: a guard that sees
no growth stops. So does one that sees the end's mark, which this process writes before it deletes
the JobSet. The API server may be down meanwhile.

What keeps the guards from starting is one line, {"refused": sentence, "field": of the profile}.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assets.launch.carrier import Refused, not_here, pass_on, send
from assets.launch.guard import END_OF_INPUT, INPUT, LIFE_SHARE, OUTPUT, POLL_SECONDS, SharedFile
from gpt_model.errors import shortened

JOBSETS = "jobsets.jobset.x-k8s.io"
LOOK_SECONDS = 2.0  # between two looks at the pods
PENDING_SECONDS = 600.0  # that a pod may wait for a node, its volume and its image
FAULTY_SECONDS = 60.0  # that it may state one of FAULTS: some mend themselves
GONE_SECONDS = 10.0  # that the pods have to be gone, at the end
REQUEST_SECONDS = 20
INDEX = "batch.kubernetes.io/job-completion-index"
# Why a container waits, where waiting does not help
FAULTS = (
    *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
)
INSTALL = "https://jobset.sigs.k8s.io/docs/installation"
LOGGED = re.compile(r"[EWI]\d{4} ")  # kubectl's log, before its error
# What kubectl complains of: a part of it, the sentence, the profile's field to mend.
COMPLAINTS = (
    (
        ('no matches for kind "JobSet"', 'resource type "jobsets"'),
        f"The cluster does not have JobSets, and the ranks' pods are one. Install them: {INSTALL}.",
        "hosts.by",
    ),
    (
        ("error validating", "is invalid", "unknown field", "denied the request", "BadRequest"),
        "The cluster refuses the JobSet. Mend the profile's hosts.pod, hosts.container, "
        "hosts.labels or hosts.resources.",
        "hosts.pod",
    ),
    (
        ("namespaces ", "is forbidden", "(Forbidden)"),
        "The cluster does not let this user or service account work in the namespace. Mend the "
        "profile's hosts.namespace, or have it given a role with create, get, list and delete of "
        f"{JOBSETS}, and get and list of pods.",
        "hosts.namespace",
    ),
    (
        ("",),
        "The cluster does not answer kubectl as it should. Try `kubectl get pods`, and mend the "
        "profile's hosts.context or kubectl's settings (KUBECONFIG).",
        "hosts.context",
    ),
)


class Cluster:
    """The pods of one build, by kubectl. `selector`: the label of every attempt at it."""

    def __init__(self, options: Sequence[str], selector: str) -> None:
        self.options, self.selector = options, selector

    def delete_all(self) -> None:
        """Every JobSet of the build; the cluster then ends their pods."""
        self._kubectl("delete", JOBSETS, f"--selector={self.selector}", "--wait=false")

    def create(self, manifest: Mapping[str, Any]) -> None:
        self._kubectl("create", "--filename=-", input=json.dumps(manifest))

    def pods(self) -> list[Pod]:
        answer = self._kubectl("get", "pods", f"--selector={self.selector}", "--output=json")
        return [Pod(item) for item in json.loads(answer)["items"]]

    def waits_for_quota(self) -> bool:
        """Whether a queue, such as Kueue's, holds the JobSet back."""
        answer = self._kubectl("get", JOBSETS, f"--selector={self.selector}", "--output=json")
        return any(item["spec"].get("suspend") for item in json.loads(answer)["items"])

    def _kubectl(self, *arguments: str, input: str = "") -> str:
        """Its output. Raises Refused where it fails."""
        command = ["kubectl", *self.options, f"--request-timeout={REQUEST_SECONDS}s", *arguments]
        try:
            done = subprocess.run(
                command,
                input=input,
                capture_output=True,
                text=True,
                check=False,
                timeout=3 * REQUEST_SECONDS,  # it may ask a person to log in
            )
        except subprocess.TimeoutExpired:
            raise _refused(f"no end of {' '.join(command)}") from None
        except FileNotFoundError:
            raise Refused(not_here("kubectl", "kubernetes"), "hosts.by") from None
        if done.returncode == 0:
            return done.stdout
        lines = [line for line in done.stderr.splitlines() if not LOGGED.match(line)]
        raise _refused(" ".join(" ".join(lines).split()))


def _refused(complaint: str) -> Refused:
    """What kubectl complains of, for a person."""
    sentence, name = next(
        (sentence, name)
        for parts, sentence, name in COMPLAINTS
        if any(part in complaint for part in parts)
    )
    return Refused(f"{sentence} kubectl: {shortened(complaint)}", name)


class Pod:
    """What the cluster says of one pod."""

    def __init__(self, item: Mapping[str, Any]) -> None:
        self.name: str = item["metadata"]["name"]
        self.node = int(item["metadata"].get("annotations", {}).get(INDEX, 0))
        status = item.get("status", {})
        self.phase: str = status.get("phase", "Pending")
        containers = [
            *status.get("initContainerStatuses", ()),
            *status.get("containerStatuses", ()),
        ]
        waiting = [state for each in containers if (state := each["state"].get("waiting"))]
        ended = [
            state
            for each in containers
            if (state := each["state"].get("terminated")) and state.get("exitCode")
        ]
        conditions = [each for each in status.get("conditions", ()) if each["status"] == "False"]
        # the first that gives a reason says the most
        causes = [status, *ended] if self.phase == "Failed" else [*waiting, *conditions]
        cause = next((each for each in causes if each.get("reason")), {"reason": self.phase})
        self.reason: str = cause["reason"]
        self.message = shortened(" ".join(str(cause.get("message", "")).split()).rstrip("."))

    @property
    def ended(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    def __str__(self) -> str:
        return f"pod {self.name}: {self.reason}" + (f": {self.message}" if self.message else "")


@dataclass
class Lines:
    """What the guard of one node writes."""

    file: SharedFile
    unread: bytes = b""
    answered: bool = False  # said hello
    reported: bool = False  # said how it ended

    def pass_on(self) -> None:
        *lines, self.unread = (self.unread + self.file.read()).split(b"\n")
        for line in lines:
            self.answered = self.answered or b'"hello"' in line
            self.reported = self.reported or b'"code"' in line or b'"killed"' in line
            pass_on(line + b"\n")


@dataclass
class Looks:
    """What looks at the pods make of them, while the guards do the work."""

    cluster: Cluster
    lines: Sequence[Lines]
    began: float = field(default_factory=time.monotonic)
    faulty: dict[str, float] = field(default_factory=dict)  # pod -> since when
    absent: set[int] = field(default_factory=set)  # nodes without a pod that runs, at the last look
    shown: set[str] = field(default_factory=set)
    all_run: bool = False

    def look(self) -> None:
        """Says which guard was lost with its pod. Raises Refused where one will not answer."""
        try:
            pods = {pod.node: pod for pod in self.cluster.pods()}
            if not pods and self.cluster.waits_for_quota():
                self.began = time.monotonic()
                self._show("the JobSet waits in a queue")
        except Refused as error:  # the guards do not need the cluster's API
            self._show(str(error))
            return
        if all(lines.answered for lines in self.lines):
            self._look_for_lost(pods)
        else:
            self._look_for_unfit(pods)

    def _look_for_unfit(self, pods: Mapping[int, Pod]) -> None:
        now = time.monotonic()
        for pod in pods.values():
            if pod.phase != "Running":
                self._show(str(pod))
            if pod.reason in FAULTS:
                since = self.faulty.setdefault(pod.name, now)
            else:
                self.faulty.pop(pod.name, None)
                since = now
            if pod.ended or now - since >= FAULTY_SECONDS:
                raise _unfit(pod)
        if not self.all_run and len(pods) == len(self.lines):
            self.all_run = all(pod.phase == "Running" for pod in pods.values())
            self.began = now if self.all_run else self.began  # their guards have as long again
        if now - self.began >= PENDING_SECONDS:
            late = [pod for pod in pods.values() if not self.lines[pod.node].answered]
            if late:
                raise _unfit(late[0])
            raise Refused(
                f"The cluster made no pod of the JobSet within {PENDING_SECONDS / 60:g} minutes. "
                "Does JobSet's controller run, and has the namespace a quota? See `kubectl "
                f"describe {JOBSETS},jobs --selector={self.cluster.selector}`.",
                "hosts.namespace",
            )

    def _look_for_lost(self, pods: Mapping[int, Pod]) -> None:
        """At the second look: the report of a guard that has ended may be seen later than that."""
        absent = {
            node
            for node, lines in enumerate(self.lines)
            if not lines.reported and (node not in pods or pods[node].ended)
        }
        for node in absent & self.absent:
            reason = str(pods[node]) if node in pods else "its pod was deleted"
            self.lines[node].reported = True
            send({"node": node, "killed": reason})
        self.absent = absent

    def _show(self, line: str) -> None:
        """To standard error, which is what a person who waits is shown."""
        if line not in self.shown:
            self.shown.add(line)
            print(line, file=sys.stderr, flush=True)


def _unfit(pod: Pod) -> Refused:
    if pod.ended:
        return Refused(
            f"The ranks' {pod}. It ended before its guard answered. Mend the profile's "
            "hosts.image, which has to have this machine's Python and code at the same paths, or "
            "hosts.claim.",
            "hosts.image",
        )
    if pod.reason in FAULTS:
        secret = pod.reason == "CreateContainerConfigError"
        name = "hosts.container" if secret else "hosts.image"
        return Refused(f"The ranks' {pod}. Mend the profile's {name}.", name)
    return Refused(
        f"The ranks' {pod}. Its guard does not answer after {PENDING_SECONDS / 60:g} minutes. Mend "
        "the profile's hosts.resources, hosts.nodes, hosts.claim or hosts.pod (tolerations, "
        f"nodeSelector), or wait for room in the cluster: `kubectl describe pod {pod.name}`.",
        "hosts.resources",
    )


def starter_is_gone(seconds: float) -> bool:
    """Waits as long for a word of the starter, which says nothing before the guards do."""
    return bool(select.select([0], [], [], seconds)[0])


def pause(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def wait_until_gone(cluster: Cluster, seconds: float, stop: Callable[[float], bool]) -> list[Pod]:
    """The pods that are left after as long, or when `stop`, which waits a moment, returns True."""
    deadline = time.monotonic() + seconds
    while (pods := cluster.pods()) and time.monotonic() < deadline and not stop(LOOK_SECONDS / 4):
        pass
    return pods


def end_earlier_attempts(cluster: Cluster) -> None:
    """Their ranks would write what this attempt's do. Raises Refused where their pods stay."""
    cluster.delete_all()
    if pods := wait_until_gone(cluster, PENDING_SECONDS, starter_is_gone):
        raise Refused(
            f"Pods of an earlier attempt do not end: {', '.join(pod.name for pod in pods)}. Is "
            "their node lost? Once you know that they run no more: `kubectl delete pod --force "
            f"--selector={cluster.selector}`.",
            "hosts",
        )


def carry(cluster: Cluster, folder: Path, guards: SharedFile, nodes: int, silence: float) -> None:
    """Until standard input ends. Raises Refused where no guard will answer."""
    lines = [Lines(SharedFile(folder / f"{OUTPUT}.{node}")) for node in range(nodes)]
    looks = Looks(cluster, lines)
    refused: list[Refused] = []

    def look_at_pods() -> None:
        while not refused:
            time.sleep(LOOK_SECONDS)
            try:
                looks.look()
            except Refused as error:
                refused.append(error)

    threading.Thread(target=look_at_pods, daemon=True).start()
    starter_spoke, next_life = False, 0.0
    while not refused:
        if select.select([0], [], [], POLL_SECONDS)[0]:
            if not (data := os.read(0, 65536)):
                return
            guards.append(data)
            starter_spoke = True
        elif not starter_spoke and time.monotonic() >= next_life:  # for guards that wait for others
            guards.append(b"\n")
            next_life = time.monotonic() + silence * LIFE_SHARE
        for each in lines:
            each.pass_on()
    raise refused[0]


def remove(cluster: Cluster) -> None:
    """Removes the JobSet. Where the cluster does not answer, its time to live does."""
    try:
        cluster.delete_all()
        wait_until_gone(cluster, GONE_SECONDS, pause)
    except Refused as error:
        print(error, file=sys.stderr, flush=True)


def main() -> None:
    wanted = json.loads(sys.argv[1])
    folder, cluster = Path(wanted["folder"]), Cluster(wanted["kubectl"], wanted["selector"])
    try:
        end_earlier_attempts(cluster)
        for left in folder.parent.glob(f"*{folder.suffix}"):
            shutil.rmtree(left, ignore_errors=True)
        folder.mkdir()
        guards = SharedFile(folder / INPUT)
        guards.append(b"\n")
        try:
            cluster.create(wanted["manifest"])
            carry(cluster, folder, guards, wanted["nodes"], wanted["silence"])
        finally:
            guards.append(END_OF_INPUT)
            remove(cluster)
            shutil.rmtree(folder, ignore_errors=True)
    except Refused as error:
        error.send()
        sys.exit(1)


if __name__ == "__main__":
    main()
