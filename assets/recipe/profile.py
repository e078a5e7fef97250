"""Profile: WHERE a recipe is built. Processes, threads, ZeRO stage, memory. Never identifies an
artifact.

One YAML file a kind of machine under profiles/. Precision is not here: it changes results, so it is
the recipe's.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from assets.recipe.yaml_file import here_and, load_strict
from gpt_model.strict import BatchRows, Bounds, Each, Strict

PROFILES = Path(__file__).resolve().parents[2] / "profiles"


# Keys of `hosts` that not every transport has.
OF_SOME = {
    "options": ("ssh", "slurm"),
    "detached": ("slurm",),
    "address": ("ray",),
    "resources": ("ray", "kubernetes"),
    **dict.fromkeys(
        ("context", "namespace", "image", "claim", "mount", "labels", "pod", "container"),
        ("kubernetes",),
    ),
}
Nodes = Annotated[int, Bounds(1, 100_000, "the largest clusters have as many", unit="nodes")]


class Hosts(Strict):
    """Several machines that see the store, the code and Python at the same paths, and how they are
    reached.
    """

    by: Literal["ssh", "slurm", "ray", "kubernetes"] = Field(
        description="ssh to each of `names`; srun, on `nodes` of a Slurm cluster; actors, on "
        "`nodes` of a Ray cluster; or a JobSet of `nodes` pods on a Kubernetes cluster"
    )
    names: Annotated[list[str], Each] = Field(
        default_factory=list,
        description="ssh: each host, as ssh is given it; the ranks meet at the first",
    )
    nodes: Nodes | None = Field(
        default=None,
        description="slurm, ray, kubernetes: how many; of kubernetes a pod is one; ssh: of `names` "
        "the first so many that answer, the others are spares; default: all",
    )
    address: str | None = Field(
        default=None,
        description="ray: the cluster's, host:port; default: auto, the cluster that this machine "
        "is a node of",
    )
    resources: dict[
        str, Annotated[float, Bounds(0, 10**6, "no node has more", above=True, unit="a node")] | str
    ] = Field(
        default_factory=dict,
        description="ray: what the ranks take of each node, {CPU: 8, GPU: 8}; default: {CPU: 1}; "
        "kubernetes: limits of each pod, {nvidia.com/gpu: 8, memory: 200Gi}",
    )
    context: str | None = Field(
        default=None, description="kubernetes: of kubectl's settings; default: the current one"
    )
    namespace: str | None = Field(
        default=None, description="kubernetes: of the pods; default: kubectl's current one"
    )
    image: str | None = Field(
        default=None,
        description="kubernetes: of the pods; it has code and Python at this machine's paths",
    )
    claim: str | None = Field(
        default=None,
        description="kubernetes: the persistent volume claim that holds the store, ReadWriteMany",
    )
    mount: str | None = Field(
        default=None, description="kubernetes: where the claim is mounted, here and in the pods"
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="kubernetes: of the JobSet, {kueue.x-k8s.io/queue-name: gpus}",
    )
    pod: dict[str, Any] = Field(
        default_factory=dict,
        description="kubernetes: merged into the pods' specification, {nodeSelector: {…}, "
        "tolerations: […], serviceAccountName: …}",
    )
    container: dict[str, Any] = Field(
        default_factory=dict,
        description="kubernetes: merged into the pods' container, {envFrom: […], securityContext: "
        "{…}}",
    )
    options: list[str] = Field(
        default_factory=list,
        description="of ssh or srun, as they are: --partition=gpu, --gpus-per-node=8",
    )
    detached: bool = Field(
        default=False,
        description="slurm: the job goes on where the process that submitted it dies, and is found "
        "again at the next start",
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="of the ranks: NCCL_SOCKET_IFNAME, NCCL_IB_HCA, …"
    )

    @model_validator(mode="after")
    def _fits(self) -> Hosts:
        if self.by == "ssh" and not self.names:
            raise ValueError("`by: ssh` needs `names`, the hosts")
        if self.by == "ssh" and self.count() > len(self.names):
            raise ValueError(
                f"`nodes: {self.nodes}` are more than `names`, {len(self.names)}: they are of them"
            )
        if self.by != "ssh" and (self.names or self.nodes is None):
            raise ValueError(f"`by: {self.by}` needs `nodes`, how many, and has no `names`")
        for name, transports in OF_SOME.items():
            if getattr(self, name) and self.by not in transports:
                raise ValueError(
                    f"`{name}` is of `by: {'` and `by: '.join(transports)}` alone"
                    + (": ranks end with this process" if name == "detached" else "")
                )
        if self.address and not re.fullmatch(r"auto|[^\s:/]+:[0-9]{1,5}", self.address):
            raise ValueError(
                f"`address: {self.address}` is neither `auto` nor host:port of a Ray cluster; "
                "Ray Client's ray://… does not do: build on a node of the cluster"
            )
        if self.by == "kubernetes" and not (self.image and self.claim and self.mount):
            raise ValueError(
                "`by: kubernetes` needs `image`, `claim` (of the volume that holds the store) and "
                "`mount` (the path where that stands)"
            )
        if self.mount and not Path(self.mount).is_absolute():
            raise ValueError(f"`mount: {self.mount}` should be an absolute path")
        if self.by == "ray" and any(isinstance(value, str) for value in self.resources.values()):
            raise ValueError("`resources` of Ray are numbers")
        if dashed := [name for name in self.names if name.startswith("-") or not name.strip()]:
            raise ValueError(f"{dashed[0]!r} is no name of a host")
        return self

    def count(self) -> int:
        """How many machines."""
        return self.nodes or len(self.names)


class Profile(Strict):
    """How many processes, with what, on which device."""

    name: str = Field(description="for `--profile`; the file's name without .yaml")
    description: str = Field(default="", description="for people")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="of every process")
    processes: Annotated[
        int, Bounds(1, 100_000, "the largest clusters have as many", unit="processes")
    ] = Field(
        default=1,
        description="ranks of a stage that shares its work out, of all hosts together; a GPU each",
    )
    threads: (
        Annotated[int, Bounds(1, 10_000, "no machine has more cores", unit="threads")] | None
    ) = Field(default=None, description="threads a process; default: the cores shared out evenly")
    hosts: Hosts | None = Field(
        default=None,
        description="on which machines; default: this one",
        exclude_if=lambda hosts: hosts is None,
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1,
        description="of DeepSpeed: what the ranks share out among them (1: optimizer, 2: gradients "
        "too, 3: weights too)",
    )
    communication: Literal["float32", "bfloat16"] | None = Field(
        default=None,
        description="of a bfloat16 training's gradients between ranks, and of its weights at ZeRO "
        "3; default: bfloat16 on GPUs, float32 on CPUs",
        exclude_if=lambda value: value is None,
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        description="DeepSpeed's own configuration, for what no key here names: offload to the "
        "CPU's memory or to NVMe, hpZ, buckets. What would change results is refused, and a "
        "value that DeepSpeed does not take",
        exclude_if=lambda settings: not settings,
    )
    micro_batch: BatchRows | None = Field(
        default=None,
        description="sequences a process and forward pass; default: of 2,048 tokens, and in "
        "training on a GPU as many as fit, by trial",
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="compute activations again in the backward pass: less memory, more time",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile of each block, in pre-training; needs a C compiler",
    )
    tf32: bool = Field(
        default=False,
        description="of a GPU, where the recipe's precision is float32: products in TF32, several "
        "times faster, their factors rounded to 10 bits of fraction",
        exclude_if=lambda tf32: not tf32,
    )
    checkpoint_seconds: Annotated[
        float,
        Bounds(0, 10**6, "more than a week of work would be lost", above=True, unit="seconds"),
    ] = Field(
        default=30.0, description="seconds between checkpoints; work lost at most when killed"
    )

    memory_gb: (
        Annotated[float, Bounds(0, 10**6, "no device has more", above=True, unit="GB")] | None
    ) = Field(
        default=None,
        description="10^9 bytes that one process may fill: of its GPU; default on a CPU: the "
        "machine's, shared out evenly",
    )
    peak_tflops: (
        Annotated[float, Bounds(0, 10**6, "no device is faster", above=True, unit="TFLOP/s")] | None
    ) = Field(
        default=None,
        description="10^12 FLOP/s of one process's device, of matrix products in the precision "
        "that is trained in",
    )
    price_per_hour: (
        Annotated[float, Bounds(0, 10**6, "no device costs more", unit="an hour")] | None
    ) = Field(default=None, description="of one process's device, in whatever you pay in")

    @model_validator(mode="after")
    def _hosts_share_the_ranks(self) -> Profile:
        if self.hosts and self.processes % self.hosts.count():
            raise ValueError(
                f"`processes: {self.processes}` cannot be shared evenly by {self.hosts.count()} "
                "hosts: make it a multiple of their number"
            )
        return self

    @field_validator("deepspeed")
    @classmethod
    def _deepspeed_changes_no_result(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if settings:
            # for the few profiles that have it; others need not load it
            from assets.recipe.deepspeed_settings import check_deepspeed

            check_deepspeed(settings)
        return settings

    @model_validator(mode="after")
    def _nvme_is_of_zero_3(self) -> Profile:
        zero = self.deepspeed.get("zero_optimization", {})
        for name in ("offload_optimizer", "offload_param"):
            if (zero.get(name) or {}).get("device") == "nvme" and self.zero_stage != 3:
                raise ValueError(
                    f"`deepspeed.zero_optimization.{name}.device: nvme` is of ZeRO 3, and "
                    f"`zero_stage` is {self.zero_stage}: set `zero_stage: 3`, or the device to "
                    "`cpu`"
                )
        return self

    @model_validator(mode="after")
    def _cluster_gives_the_devices(self) -> Profile:
        if not self.hosts or self.device != "cuda":
            return self
        each, resources = self.processes_each_host(), self.hosts.resources
        if self.hosts.by == "ray" and float(resources.get("GPU", 0)) < each:
            raise ValueError(
                f"{each} ranks a node need as many GPUs of Ray: set `hosts.resources: "
                f"{{GPU: {each}}}`"
            )
        # a vendor's device has a name with a slash; a claim of DRA stands in `pod`
        if (
            self.hosts.by == "kubernetes"
            and not any("/" in name for name in resources)
            and "resourceClaims" not in self.hosts.pod
        ):
            raise ValueError(
                f"{each} ranks a pod need as many GPUs of Kubernetes: set `hosts.resources: "
                f"{{nvidia.com/gpu: {each}}}`"
            )
        return self

    def processes_each_host(self) -> int:
        """Ranks of a training on one machine."""
        return self.processes // (self.hosts.count() if self.hosts else 1)

    def sent(self) -> Literal["float32", "bfloat16"]:
        """In what a bfloat16 training's gradients go from rank to rank."""
        # On one machine's CPUs float32 costs little: it is memory
        return self.communication or ("bfloat16" if self.device == "cuda" else "float32")

    def memory_each(self) -> float | None:
        """Bytes that one process may fill; None where it is not known."""
        if self.memory_gb is not None:
            return self.memory_gb * 1e9
        if self.device == "cuda" or not math.isfinite(_memory()):
            return None
        return _memory() / self.processes_each_host()

    def threads_each(self) -> int:
        """Threads for each of the processes, cores shared out evenly unless the file says
        otherwise. A host is taken to have as many cores as this machine.
        """
        return self.threads or max(1, _cores() // self.processes_each_host())

    def stages_at_once(self) -> int:
        """How many stages of a run this machine has room for, by the threads and the memory of one.
        A stage has all of it, where the file does not state both, and every GPU.
        """
        if self.hosts or self.device == "cuda" or self.threads is None or self.memory_gb is None:
            return 1
        by_cores = _cores() // (self.processes * self.threads)
        by_memory = _memory() // (self.processes * self.memory_gb * 1e9)
        return max(1, int(min(by_cores, by_memory)))


def _cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> float:
    """Bytes of this machine; infinite where it does not say."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return math.inf
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def load_profile(name_or_path: str) -> Profile:
    """A profile by its name under profiles/ (here, or ours) or by path. Raises UserError naming
    file, field and
    line.
    """
    return load_strict(Profile, name_or_path, here_and(PROFILES), what="profile")
