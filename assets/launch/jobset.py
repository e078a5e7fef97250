"""The JobSet of a build's ranks on Kubernetes: one guard in each of several pods, which are never
started again, as Dagster retries.

A JobSet, and not Kubeflow's TrainJob, which makes one of a runtime that an administrator installs,
and sets torchrun's variables: the guard starts the ranks, and the JobSet's controller is all it
needs.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.launch import guard
from assets.recipe.profile import Hosts
from gpt_model.errors import UserError

BUILD_LABEL = "lineage/build"  # the same for every attempt at one build
A_DAY = 24 * 60 * 60  # of a pod, where `pod` states no activeDeadlineSeconds
FINISHED_SECONDS = 600  # that a JobSet stays whose starter died before it removed it
# Of the pod that this process is in, as its own manifest gives them to it (the downward API).
POD_NAME, POD_UID, POD_NAMESPACE = "LINEAGE_POD_NAME", "LINEAGE_POD_UID", "LINEAGE_POD_NAMESPACE"
Manifest = Mapping[str, Any]


def jobset(
    hosts: Hosts, nodes: int, log: Path, command: Sequence[str], grace: float
) -> dict[str, Any]:
    """The manifest. `log`: of the build. `command`: of each pod; its ranks have ended `grace`
    seconds after a TERM.

    Raises UserError where the pods would not see the log.
    """
    if not log.is_relative_to(str(hosts.mount)):
        raise UserError(
            f"{log} is not below the profile's hosts.mount ({hosts.mount}), and pods see nothing "
            "else of this machine. Set LINEAGE_HOME to a folder of the claim.",
            field="hosts.mount",
        )
    build = hashlib.sha256(f"{hosts.claim}:{log}".encode()).hexdigest()[:16]
    labels = {BUILD_LABEL: build}
    container = {
        "name": "ranks",
        "image": hosts.image,
        "command": list(command),
        "env": [_from_pod(guard.ADDRESS_VARIABLE, "status.podIP")],
        "resources": {"limits": {name: str(_whole(n)) for name, n in hosts.resources.items()}},
        "volumeMounts": [
            {"name": "store", "mountPath": hosts.mount},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 # by default it has 64 MB
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    pod = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": A_DAY,
        "terminationGracePeriodSeconds": int(grace) + 10,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # else a Service named `lineage` sets variables of ours
        "containers": [merged(container, hosts.container)],
        "volumes": [
            {"name": "store", "persistentVolumeClaim": {"claimName": hosts.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }
    job = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": 0,
        "template": {"metadata": {"labels": labels}, "spec": merged(pod, hosts.pod)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": f"lineage-{build[:6]}-{secrets.token_hex(3)}",
            "labels": {**hosts.labels, **labels},
            "annotations": {"lineage/log": str(log)},
            **_owner(hosts),
        },
        "spec": {
            "failurePolicy": {"maxRestarts": 0},
            "ttlSecondsAfterFinished": FINISHED_SECONDS,
            "replicatedJobs": [{"name": "ranks", "replicas": 1, "template": {"spec": job}}],
        },
    }


def merged(base: Manifest, over: Manifest) -> dict[str, Any]:
    """`over` laid over `base`: mappings key by key, lists one behind the other."""
    result = dict(base)
    for key, value in over.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            result[key] = merged(before, value)
        elif isinstance(before, list) and isinstance(value, list):
            result[key] = [*before, *value]
        else:
            result[key] = value
    return result


def _whole(amount: float | str) -> float | str:
    """Kubernetes counts devices in integers."""
    return int(amount) if isinstance(amount, float) and amount.is_integer() else amount


def _from_pod(name: str, field: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}}


def _owner(hosts: Hosts) -> dict[str, Any]:
    """This process's pod, with which the cluster is to remove the JobSet; nothing where that is
    another cluster's or namespace's, or there is none.
    """
    name, uid = os.environ.get(POD_NAME), os.environ.get(POD_UID)
    elsewhere = hosts.namespace not in (None, os.environ.get(POD_NAMESPACE))
    if not (name and uid) or elsewhere or hosts.context:
        return {}
    return {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}]}
