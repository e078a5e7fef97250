"""Ranks in pods of Kubernetes: manifests against published schemas and the real kubectl, the guard
that has files in place of standard input, and sentences about clusters that do not fit. The API
server and the kubelet are the tests' (kube_server.py). Two nodes, kills and digests are
test_hosts.py's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from kube_server import CLAIM, IMAGE, Settings, schema_error
from machines import missing, until
from pydantic import ValidationError
from test_unfit_hosts import specification

from assets.launch import kubernetes_carrier as carrier
from assets.launch.carrier import Refused
from assets.launch.guard import END_OF_INPUT, INPUT, OUTPUT, SharedFile
from assets.launch.hosts import GUARD, HostsLauncher
from assets.launch.jobset import BUILD_LABEL, jobset
from assets.launch.launcher import Exit, Ranks
from assets.recipe.profile import Hosts, Profile
from gpt_model.errors import UserError

Change = dict[str, Any]
LARGE: Change = {
    "namespace": "research",
    "resources": {"nvidia.com/gpu": 8.0, "memory": "200Gi", "cpu": 31.5},
    "labels": {"kueue.x-k8s.io/queue-name": "gpus"},
    "pod": {
        "nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "serviceAccountName": "trainer",
        "activeDeadlineSeconds": 604800,
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    },
    "container": {
        "envFrom": [{"secretRef": {"name": "hub"}}],
        "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
    },
}


def hosts(folder: Path, **changes: Any) -> Hosts:
    few = {"by": "kubernetes", "nodes": 1, "image": IMAGE, "claim": CLAIM, "mount": str(folder)}
    return Hosts.model_validate(few | changes)


def manifest(folder: Path, **changes: Any) -> dict[str, Any]:
    settings = hosts(folder, **changes)
    log = folder / "building" / "0123" / "journal" / "worker.log"
    return jobset(settings, settings.count(), log, [*GUARD, str(folder), "45.0"], 5.0)


def job_of(document: dict[str, Any]) -> dict[str, Any]:
    [replicated] = document["spec"]["replicatedJobs"]
    job: dict[str, Any] = replicated["template"]["spec"]
    return job


@pytest.mark.parametrize("changes", [{}, {"nodes": 16, **LARGE}])
def test_a_manifest_fits_the_published_schemas(tmp_path: Path, changes: Change) -> None:
    document = manifest(tmp_path, **changes)
    assert schema_error(document) is None
    job = job_of(document)
    assert job["completions"] == job["parallelism"] == changes.get("nodes", 1)
    assert job["backoffLimit"] == 0 and document["spec"]["failurePolicy"]["maxRestarts"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["template"]["metadata"]["labels"].items() <= document["metadata"]["labels"].items()
    job["template"]["spec"]["restartPolicie"] = "Never"
    assert "restartPolicie" in str(schema_error(document))


def test_what_a_profile_says_of_pods_is_merged_into_the_manifest(tmp_path: Path) -> None:
    document = manifest(tmp_path, **LARGE)
    pod = job_of(document)["template"]["spec"]
    [container] = pod["containers"]
    assert [volume["name"] for volume in pod["volumes"]] == ["store", "shm", "scratch"]
    assert [mount["name"] for mount in container["volumeMounts"]] == ["store", "shm", "scratch"]
    assert pod["tolerations"] == LARGE["pod"]["tolerations"]
    assert pod["activeDeadlineSeconds"] == 604800
    limits = {"nvidia.com/gpu": "8", "memory": "200Gi", "cpu": "31.5"}
    assert container["resources"] == {"limits": limits}
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"


def test_a_jobset_belongs_to_the_pod_that_creates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "ownerReferences" not in manifest(tmp_path)["metadata"]
    for name, value in {"NAME": "dagster-run-1", "UID": "0a1b", "NAMESPACE": "research"}.items():
        monkeypatch.setenv(f"LINEAGE_POD_{name}", value)
    for namespace in ({}, {"namespace": "research"}):
        document = manifest(tmp_path, **namespace)
        [owner] = document["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("Pod", "dagster-run-1", "0a1b")
        assert schema_error(document) is None
    for elsewhere in ({"namespace": "other"}, {"context": "another-cluster"}):
        assert "ownerReferences" not in manifest(tmp_path, **elsewhere)["metadata"]


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"image": None}, "needs `image`, `claim`"),
        ({"nodes": None}, "needs `nodes`"),
        ({"mount": "lineage"}, "absolute path"),
        ({"options": ["--x"]}, "`options` is of `by: ssh` and `by: slurm` alone"),
        ({"detached": True}, "`detached` is of `by: slurm` alone: ranks end with this process"),
    ],
)
def test_pods_that_a_profile_cannot_have_are_refused(
    tmp_path: Path, changes: Change, mistake: str
) -> None:
    with pytest.raises(ValidationError, match=mistake):
        hosts(tmp_path, **changes)


def test_other_transports_have_no_pods_and_gpus_are_asked_of_the_cluster(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="`image` is of `by: kubernetes` alone"):
        Hosts(by="slurm", nodes=2, image=IMAGE)
    with pytest.raises(ValidationError, match="`resources` of Ray are numbers"):
        Hosts(by="ray", nodes=2, resources={"memory": "20Gi"})
    settings = hosts(tmp_path).model_dump()
    with pytest.raises(ValidationError, match=r"nvidia\.com/gpu: 8"):
        Profile(name="p", device="cuda", processes=8, hosts=settings)
    gpus = settings | {"resources": {"nvidia.com/gpu": 8}}
    assert Profile(name="p", device="cuda", processes=8, hosts=gpus).processes_each_host() == 8


def test_a_store_that_no_pod_would_see_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "worker.log"
    with pytest.raises(UserError, match="is not below the profile") as error:
        HostsLauncher(hosts(tmp_path / "claim")).run(Ranks(["true"], 1, 1, elsewhere))
    assert error.value.field == "hosts.mount"


class Guarded:
    """A guard in a pod, without the pod: this test is its starter, by the files of a folder."""

    def __init__(self, folder: Path, silence: float) -> None:
        self.folder, self.up = folder / "pods", folder / "up"
        self.silence = silence
        self.folder.mkdir()
        (self.folder / INPUT).write_bytes(b"\n")
        self.process = subprocess.Popen(
            [*GUARD, str(self.folder), str(silence)],
            env=os.environ | {"JOB_COMPLETION_INDEX": "1"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def write(self, line: bytes) -> None:
        with (self.folder / INPUT).open("ab") as file:
            file.write(line)

    def messages(self) -> list[dict[str, Any]]:
        output = self.folder / f"{OUTPUT}.1"
        lines = output.read_text().splitlines() if output.exists() else []
        return [json.loads(line) for line in lines]

    def start(self, tmp_path: Path) -> None:
        """Up to a rank that sleeps."""
        until(lambda: len(self.messages()) == 1, "the guard was not ready")
        code = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
        work = {
            "command": [sys.executable, "-S", "-c", code, str(self.up)],
            "ranks": 1,
            "threads": 1,
            "logs": [None, None],
            "grace": 1.0,
            "watch": [],
            "release": False,
            "lock": str(tmp_path / "ranks.lock"),
            "node": None,
            "addresses": [None, "localhost"],
        }
        spec = specification(tmp_path, silence=self.silence, **work)
        self.write(json.dumps(spec).encode() + b"\n")
        until(lambda: "hello" in self.messages()[-1], "the guard did not answer")
        meeting = {"address": "127.0.0.1", "port": 1, "hosts": ["a", "b"]}
        half = json.dumps(meeting).encode() + b"\n"
        self.write(half[:10])  # a file may be read while it is written
        time.sleep(0.3)
        self.write(half[10:])
        until(self.up.exists, "the rank did not start")

    def ended(self) -> dict[str, Any]:
        self.process.wait(20)
        return self.messages()[-1]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Callable[[float], Guarded]]:
    guards: list[Guarded] = []

    def begin(silence: float) -> Guarded:
        guards.append(Guarded(tmp_path, silence))
        return guards[-1]

    yield begin
    for each in guards:
        each.process.kill()
        each.process.communicate()


@pytest.mark.slow
def test_a_guard_ends_its_ranks_when_its_starters_file_stops_growing(
    tmp_path: Path, guarded: Callable[[float], Guarded]
) -> None:
    guard = guarded(2.0)
    guard.start(tmp_path)
    for _ in range(9):  # longer than the silence, with signs of life
        time.sleep(0.25)
        guard.write(b"\n")
    assert guard.process.poll() is None
    began = time.monotonic()
    assert guard.ended()["code"] == -15 and guard.messages()[-1]["node"] == 1
    assert time.monotonic() - began > 1.2


@pytest.mark.parametrize("how", ["mark", "folder", "TERM"])
def test_a_guard_ends_its_ranks_at_once(
    tmp_path: Path, guarded: Callable[[float], Guarded], how: str
) -> None:
    guard = guarded(60)
    guard.start(tmp_path)
    if how == "mark":
        guard.write(END_OF_INPUT)
    elif how == "folder":
        shutil.rmtree(guard.folder)
    else:
        guard.process.terminate()
    guard.process.wait(20)
    if how != "folder":
        assert guard.messages()[-1]["code"] == -15


needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None or missing() is not None,
    reason=str(missing() or "no kubectl here: Debian's kubernetes-client"),
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that the claim is."""
    folder = tmp_path_factory.mktemp("cluster")
    claim = folder.parent
    settings = Settings("127.0.0.1", 0, str(folder), str(claim), [("", "127.0.0.1")])
    (folder / "settings.json").write_text(json.dumps(asdict(settings)))
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "kube_server.py"), str(folder / "settings.json")]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
        patch.setenv("HOME", str(folder))  # of kubectl's cache
        try:
            until((folder / "kubeconfig").exists, "no Kubernetes")
            yield claim
        finally:
            server.kill()
            server.wait()


def kubectl(*arguments: str, input: str | None = None) -> str:
    return subprocess.run(
        ["kubectl", *arguments], input=input, capture_output=True, text=True, check=True
    ).stdout


def no_objects() -> bool:
    return not kubectl("get", "jobsets,pods", "--output=name")


def nothing_is_left(folder: Path) -> bool:
    return no_objects() and not list(folder.rglob("*.pods"))


@needs_kubectl
@pytest.mark.parametrize("changes", [{}, {"nodes": 16, **LARGE}])
def test_kubectl_takes_the_manifest(cluster: Path, changes: Change) -> None:
    document = manifest(cluster, **changes)
    done = kubectl("create", "--dry-run=client", "--filename=-", input=json.dumps(document))
    assert done == f"jobset.jobset.x-k8s.io/{document['metadata']['name']} created (dry run)\n"
    assert no_objects()  # the claim has other tests' folders too


@needs_kubectl
@pytest.mark.slow
def test_ranks_in_a_pod_end_as_they_do_here_and_see_no_secret(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "xyzzy-token-of-the-hub")
    monkeypatch.setenv("LINEAGE_DAGSTER_DB", "postgresql://team:xyzzy-password@db/dagster")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    log = tmp_path / "journal" / "worker.log"
    code = (
        "import os, pathlib, sys; print(dict(os.environ)); "
        "print([p.read_text() for p in pathlib.Path(sys.argv[1]).rglob('*/in')]); sys.exit(int(sys.argv[2]))"
    )

    def run(status: int) -> Exit:
        command = [sys.executable, "-S", "-c", code, str(tmp_path), str(status)]
        return HostsLauncher(hosts(cluster), silence=10.0).run(Ranks(command, 2, 1, log))

    assert run(0).code == 0
    printed = log.read_text()
    assert "'WORLD_SIZE': '2'" in printed and "'HF_HUB_OFFLINE': '1'" in printed
    assert "packages_folder" in printed, "what the guard was given was looked at"
    assert "xyzzy" not in printed
    assert nothing_is_left(tmp_path) and not list(tmp_path.rglob("*.lock.*"))
    failed = run(3)
    assert (failed.code, failed.lost) == (3, None) and failed.failed_rank in (0, 1)
    assert nothing_is_left(tmp_path)


@needs_kubectl
@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        ({"context": "nowhere"}, "hosts.context", "The cluster does not answer kubectl"),
        ({"context": "none"}, "hosts.context", "kubectl: .*context.*none"),
        ({"context": "bare"}, "hosts.by", "The cluster does not have JobSets"),
        ({"namespace": "forbidden"}, "hosts.namespace", "have it given a role"),
        ({"namespace": "absent"}, "hosts.namespace", 'namespaces "absent" not found'),
        ({"pod": {"toleration": []}}, "hosts.pod", 'unknown field ".*toleration"'),
        (
            {"claim": "empty"},
            "hosts.image",
            "The ranks' pod lineage-.*: Error: .*in this pod: the store has to be the same folder",
        ),
    ],
)
def test_a_cluster_that_does_not_fit_is_a_sentence(
    cluster: Path, tmp_path: Path, changes: Change, field: str, sentence: str
) -> None:
    launcher = HostsLauncher(hosts(cluster, **changes), silence=1.0)
    with pytest.raises(UserError, match=sentence) as error:
        launcher.run(Ranks(["true"], 1, 1, tmp_path / "journal" / "worker.log"))
    assert error.value.field == field
    assert nothing_is_left(tmp_path)


def test_where_there_is_no_kubectl_a_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="kubectl is not on this machine") as error:
        HostsLauncher(hosts(tmp_path)).run(Ranks(["true"], 1, 1, tmp_path / "worker.log"))
    assert error.value.field == "hosts.by"


@needs_kubectl
@pytest.mark.parametrize(
    ("changes", "late", "field", "sentence"),
    [
        (
            {"image": "registry.example/none:1"},
            False,
            "hosts.image",
            'pod lineage-.*: ImagePullBackOff: Back-off pulling image "registry.example/none:1"',
        ),
        (
            {"container": {"envFrom": [{"secretRef": {"name": "hub"}}]}},
            False,
            "hosts.container",
            'CreateContainerConfigError: secret "hub" not found',
        ),
        (
            {"pod": {"nodeSelector": {"gpu": "h100"}}},
            True,
            "hosts.resources",
            "Unschedulable: 0/2 nodes are available: .* Its guard does not answer after",
        ),
    ],
)
def test_a_pod_that_does_not_start_is_a_sentence_with_its_reason(
    cluster: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: Change,
    late: bool,
    field: str,
    sentence: str,
) -> None:
    document = manifest(cluster, **changes)
    of_build = carrier.Cluster([], f"{BUILD_LABEL}={document['metadata']['labels'][BUILD_LABEL]}")
    of_build.create(document)
    try:
        looks = carrier.Looks(of_build, [carrier.Lines(SharedFile(cluster / f"{OUTPUT}.0"))])
        looks.look()  # it waits at first
        monkeypatch.setattr(carrier, "PENDING_SECONDS" if late else "FAULTY_SECONDS", 0.0)
        with pytest.raises(Refused, match=sentence) as refused:
            looks.look()
        assert refused.value.field == field
    finally:
        carrier.remove(of_build)
    assert no_objects()  # the claim has other tests' folders too
