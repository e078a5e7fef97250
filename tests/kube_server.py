"""A small Kubernetes on one machine, for the real kubectl and real pods' commands: an API server for
JobSets and pods, the JobSet and Job controllers' part of it that this project leans on, and a
kubelet that runs each pod's container in namespaces of its own (namespaces(7)) as their first
process. It is no Kubernetes: no scheduler, image or volume is real.

`python tests/kube_server.py SETTINGS.json` serves until it is killed; needs root.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil

IMAGE = "registry.example/gpt-lineage:1"
CLAIM = "lineage"  # the other claim, "empty", has nothing in it
FORBIDDEN, ABSENT = "forbidden", "absent"  # namespaces
JOBSETS = "/apis/jobset.x-k8s.io/v1alpha2"
INDEX = "batch.kubernetes.io/job-completion-index"
INSIDE = 'hostname "$0"; mount --bind "$1" "$2"; shift 2; exec "$@"'


@dataclass
class Settings:
    """`nodes`: the network namespace ("" is this one) and the address of each. `claim`: the folder
    that the claim CLAIM is.
    """

    address: str
    port: int
    folder: str
    claim: str
    nodes: list[tuple[str, str]]


@cache
def _jobset_model() -> Any:
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet  # 1 s

    return JobsetV1alpha2JobSet


def schema_error(manifest: dict[str, Any]) -> str | None:
    """What of a JobSet's manifest does not fit the schemas of its CRD and of Kubernetes, which
    Kubeflow publishes.
    """
    try:
        known = json.loads(_jobset_model().from_dict(manifest).to_json())
    except ValueError as error:
        return str(error)
    return next(_unknown(manifest, known, ""), None)


def _unknown(value: Any, known: Any, path: str) -> Any:
    """The models leave out what they do not know."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(known, dict) or key not in known:
                yield f'unknown field "{path}{key}"'
            else:
                yield from _unknown(inner, known[key], f"{path}{key}.")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _unknown(inner, known[number], f"{path}{number}.")


class Pod:
    """One pod, and the process that its container is."""

    def __init__(self, settings: Settings, jobset: dict[str, Any], index: int) -> None:
        job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
        self.spec = job["template"]["spec"]
        self.hostname = f"{jobset['metadata']['name']}-ranks-0-{index}"
        self.name, self.namespace = (
            f"{self.hostname}-{secrets.token_hex(2)}",
            jobset["metadata"]["namespace"],
        )
        self.labels = job["template"]["metadata"]["labels"]
        self.index, self.jobset = index, jobset["metadata"]["name"]
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        self.status: dict[str, Any] = {"phase": "Pending"}

    def start(self) -> None:
        [container] = self.spec["containers"]
        if "nodeSelector" in self.spec:
            message = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity."
            unfit = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            self.status["conditions"] = [{**unfit, "message": message}]
        elif container["image"] != IMAGE:
            self._waits("ImagePullBackOff", f'Back-off pulling image "{container["image"]}"')
        elif "envFrom" in container:
            self._waits("CreateContainerConfigError", 'secret "hub" not found')
        else:
            self._run(container)

    def _waits(self, reason: str, message: str) -> None:
        waiting = {"reason": reason, "message": message}
        self.status["containerStatuses"] = [{"state": {"waiting": waiting}}]

    def _run(self, container: dict[str, Any]) -> None:
        network, address = self.settings.nodes[self.index % len(self.settings.nodes)]
        fields = {"status.podIP": address, "metadata.name": self.name}
        environment = {
            entry["name"]: entry.get("value") or fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            for entry in container["env"]
        }
        volume = next(each for each in self.spec["volumes"] if each["name"] == "store")
        claim = volume["persistentVolumeClaim"]["claimName"]
        source = self.settings.claim if claim == CLAIM else f"{self.settings.folder}/empty"
        mount = next(each for each in container["volumeMounts"] if each["name"] == "store")
        log = Path(self.settings.folder, f"{self.name}.log")
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(["nsenter", f"--net={network}"] if network else []),
                    *("unshare", "--mount", "--uts", "--pid", "--mount-proc", "--fork"),
                    *("--kill-child=KILL", "sh", "-c", INSIDE, self.hostname),
                    *(source, mount["mountPath"], *container["command"]),
                ],
                env={
                    "PATH": os.environ["PATH"],
                    "JOB_COMPLETION_INDEX": str(self.index),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.status["phase"] = "Running"
        self.status["containerStatuses"] = [{"state": {"running": {}}}]

    def look(self, log_bytes: int = 2048) -> None:
        """Notes the container's end, with the end of its log, as terminationMessagePolicy says."""
        if self.status["phase"] != "Running" or not self.process or self.process.poll() is None:
            return
        code = self.process.returncode
        log = Path(self.settings.folder, f"{self.name}.log").read_bytes()[-log_bytes:].decode()
        ended = {"exitCode": code, "reason": "Error" if code else "Completed", "message": log}
        self.status["containerStatuses"] = [{"state": {"terminated": ended}}]
        self.status["phase"] = "Failed" if code else "Succeeded"

    def end(self) -> None:
        """As a kubelet does: TERM to the first process, and KILL after the grace period."""
        if self.process and self.process.poll() is None:
            try:
                for first in psutil.Process(self.process.pid).children():
                    first.terminate()
                self.process.wait(self.spec["terminationGracePeriodSeconds"])
            except psutil.Error:
                pass
            except subprocess.TimeoutExpired:
                self.process.kill()
            self.process.wait()

    def document(self) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": self.labels,
                "annotations": {INDEX: str(self.index)},
            },
            "spec": self.spec,
            "status": self.status,
        }


class Cluster:
    """What the server has in memory."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.jobsets: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, Pod] = {}
        self.lock = threading.Lock()
        Path(settings.folder, "empty").mkdir(parents=True, exist_ok=True)

    def create(self, jobset: dict[str, Any], namespace: str) -> None:
        jobset["metadata"] |= {"namespace": namespace, "uid": secrets.token_hex(8)}
        job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
        with self.lock:
            self.jobsets[jobset["metadata"]["name"]] = jobset
            for index in range(job["completions"]):
                pod = Pod(self.settings, jobset, index)
                self.pods[pod.name] = pod
                pod.start()

    def look(self) -> None:
        """The kubelet's and the Job controller's round: with `backoffLimit: 0`, a pod that failed
        ends the others.
        """
        with self.lock:
            for pod in self.pods.values():
                pod.look()
            failed = {pod.jobset for pod in self.pods.values() if pod.status["phase"] == "Failed"}
            for pod in self.pods.values():
                if pod.jobset in failed and pod.status["phase"] == "Running":
                    threading.Thread(target=pod.end).start()

    def delete(self, name: str) -> None:
        """Its pods go on until they have ended."""
        with self.lock:
            self.jobsets.pop(name)
            for pod in self.pods.values():
                if pod.jobset == name:
                    threading.Thread(target=self._remove, args=(pod,)).start()

    def _remove(self, pod: Pod) -> None:
        pod.end()
        with self.lock:
            self.pods.pop(pod.name, None)


def resources(group: str, *entries: tuple[str, str, str]) -> dict[str, Any]:
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group,
        "resources": [
            {
                "name": name,
                "singularName": singular,
                "namespaced": True,
                "kind": kind,
                "verbs": ["create", "delete", "get", "list"],
            }
            for name, singular, kind in entries
        ],
    }


VERSION = {"groupVersion": "jobset.x-k8s.io/v1alpha2", "version": "v1alpha2"}
GROUP = {"name": "jobset.x-k8s.io", "versions": [VERSION], "preferredVersion": VERSION}
DISCOVERY = {
    "/version": {"major": "1", "minor": "32", "gitVersion": "v1.32.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": resources("v1", ("pods", "pod", "Pod")),
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [GROUP]},
    JOBSETS: resources("jobset.x-k8s.io/v1alpha2", ("jobsets", "jobset", "JobSet")),
    "/openapi/v3": {"paths": {}},
}
# An address under /bare is of a cluster without JobSets.
BARE = {"/apis": DISCOVERY["/apis"] | {"groups": []}}


class Handler(BaseHTTPRequestHandler):
    cluster: Cluster
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = url.path.removeprefix("/bare")
        if path != url.path and path in BARE:
            return self._answer(BARE[path])
        if path in DISCOVERY and not (path != url.path and path == JOBSETS):
            return self._answer(DISCOVERY[path])
        if path == "/openapi/v2":  # in protobuf: an empty one
            return self._send(b"", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
        namespace, kind, name = self._target(path)
        if namespace == FORBIDDEN:
            return self._refuse(403, "Forbidden", self._forbidden(kind))
        if name or kind not in ("pods", "jobsets"):
            return self._refuse(404, "NotFound", f"{path} not found")
        self.cluster.look()
        labels = parse_qs(url.query).get("labelSelector", [""])[0]
        with self.cluster.lock:
            items = (
                [pod.document() for pod in self.cluster.pods.values()]
                if kind == "pods"
                else list(self.cluster.jobsets.values())
            )
        matching = [
            item
            for item in items
            if item["metadata"]["namespace"] == namespace and _matches(item, labels)
        ]
        version, list_kind = (
            ("v1", "PodList") if kind == "pods" else ("jobset.x-k8s.io/v1alpha2", "JobSetList")
        )
        self._answer({"kind": list_kind, "apiVersion": version, "metadata": {}, "items": matching})

    def do_POST(self) -> None:
        namespace, kind, _ = self._target(urlsplit(self.path).path)
        manifest = json.loads(self._body())
        if namespace in (FORBIDDEN, ABSENT):
            if namespace == ABSENT:
                return self._refuse(404, "NotFound", 'namespaces "absent" not found')
            return self._refuse(403, "Forbidden", self._forbidden(kind))
        if error := schema_error(manifest):
            return self._refuse(400, "BadRequest", f"strict decoding error: {error}")
        self.cluster.create(manifest, namespace)
        self._answer(manifest, 201)

    def do_DELETE(self) -> None:
        self._body()
        _, _, name = self._target(urlsplit(self.path).path)
        if name not in self.cluster.jobsets:
            return self._refuse(404, "NotFound", f'jobsets "{name}" not found')
        self.cluster.delete(name)
        self._answer({"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _target(self, path: str) -> tuple[str, str, str]:
        """The namespace, the kind and the name ("" of none) that a path is about."""
        rest = path.partition("/namespaces/")[2].split("/")
        return rest[0], (rest[1:2] or [""])[0], (rest[2:3] or [""])[0]

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _forbidden(self, kind: str) -> str:
        return (
            f'{kind}.jobset.x-k8s.io is forbidden: User "someone" cannot list resource "{kind}" in '
            f'API group "jobset.x-k8s.io" in the namespace "{FORBIDDEN}"'
        )

    def _refuse(self, code: int, reason: str, message: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        self._answer({**status, "reason": reason, "message": message}, code)

    def _answer(self, document: Any, code: int = 200) -> None:
        self._send(json.dumps(document).encode(), "application/json", code)

    def _send(self, body: bytes, kind: str, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _matches(item: dict[str, Any], selector: str) -> bool:
    labels = item["metadata"].get("labels", {})
    pairs = (pair.partition("=") for pair in selector.split(",") if pair)
    return all(labels.get(key) == value for key, _, value in pairs)


def write_kubeconfig(path: Path, address: str, port: int) -> None:
    """Contexts: `test`, the current one; `bare`, without JobSets; `nowhere`, where nothing answers."""
    servers = {
        "test": f"http://{address}:{port}",
        "bare": f"http://{address}:{port}/bare",
        "nowhere": "http://127.0.0.1:1",
    }
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": name, "cluster": {"server": url}} for name, url in servers.items()],
        "contexts": [
            {"name": name, "context": {"cluster": name, "user": "someone", "namespace": "default"}}
            for name in servers
        ],
        "users": [{"name": "someone", "user": {}}],
    }
    path.write_text(json.dumps(document), encoding="utf-8")


def serve(settings: Settings) -> None:
    Handler.cluster = Cluster(settings)
    server = ThreadingHTTPServer((settings.address, settings.port), Handler)
    server.daemon_threads = True
    threading.Thread(target=_round, args=(Handler.cluster,), daemon=True).start()
    write_kubeconfig(
        Path(settings.folder, "kubeconfig"), settings.address, server.server_address[1]
    )
    server.serve_forever()


def _round(cluster: Cluster) -> None:
    while True:
        cluster.look()
        time.sleep(0.2)


if __name__ == "__main__":
    serve(Settings(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
