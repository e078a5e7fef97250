"""A process like srun, for a Ray cluster: it starts one guard on each of several nodes, copies its
standard input to all of them, and their lines to its standard output.

On each node an actor holds the guard at the other end of a pipe. The actor ends when this process,
its node or Ray itself does, and the guard's standard input with it. What keeps the guards from
starting is one line on standard output, {"refused": sentence, "field": of the profile}.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from assets.launch.carrier import Refused, pass_on, send
from assets.launch.guard import ADDRESS_VARIABLE, KILLED, NODE_VARIABLE

CONNECT_SECONDS = 10.0
WAIT_SECONDS = 1.0  # for nodes, between two looks at whether the starter is there


class Holder:
    """Holds the guard of one node."""

    def __init__(self, command: Sequence[str], number: int) -> None:
        address = {NODE_VARIABLE: str(number), ADDRESS_VARIABLE: ray.util.get_node_ip_address()}
        self.guard = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | address,
            start_new_session=True,  # Ray kills the group of an actor that ended
        )

    # A group has one thread: what is written keeps its order, and no line waits for it.
    @ray.method(concurrency_group="input")
    def write(self, data: bytes) -> None:
        """Nothing to write: the end of the guard's standard input."""
        assert self.guard.stdin is not None
        with suppress(OSError, ValueError):  # its end says so
            if data:
                self.guard.stdin.write(data)
            else:
                self.guard.stdin.close()

    @ray.method(concurrency_group="output")
    def lines(self) -> Iterator[bytes]:
        assert self.guard.stdout is not None
        for line in self.guard.stdout:  # noqa: UP028 (Ray sends values into the generator)
            yield line


def _connect(address: str) -> None:
    """Raises Refused where there is no cluster."""
    advice = "Build on a node of the cluster, or mend the profile's hosts.address."
    try:
        if address != "auto":  # Ray itself tries for a minute
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0].rstrip(".")
        raise Refused(
            f"No Ray cluster at {address} takes this machine: {reason}. {advice}", "hosts.address"
        ) from None


def _refuse_too_small(nodes: int, resources: Mapping[str, float]) -> None:
    """Raises Refused where the cluster does not have the nodes, busy or free."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, amount in resources.items():
        most = max((node.get(name, 0) for node in alive), default=0)
        if most < amount:
            raise Refused(
                f"No node of the Ray cluster has {name} {amount:g}: the most is {most:g}. Lower "
                f"{name} in the profile's hosts.resources, or start such nodes first.",
                "hosts.resources",
            )
    fit = [
        node
        for node in alive
        if all(node.get(name, 0) >= amount for name, amount in resources.items())
    ]
    if len(fit) < nodes:
        each = ", ".join(f"{name} {amount:g}" for name, amount in resources.items())
        raise Refused(
            f"The Ray cluster has {len(alive)} nodes, {len(fit)} of them with {each}, and the "
            f"profile's hosts.nodes is {nodes}. Lower it, or start the nodes first.",
            "hosts.nodes",
        )


def _holders(nodes: int, resources: Mapping[str, float], command: Sequence[str]) -> list[Any]:
    """An actor `Holder` on each of as many nodes, once they are free. Ends this process where the
    starter goes meanwhile.
    """
    group = placement_group([dict(resources)] * nodes, strategy="STRICT_SPREAD")
    if not group.wait(CONNECT_SECONDS):
        print("all of Ray's nodes that fit are busy", file=sys.stderr, flush=True)
    while not group.wait(WAIT_SECONDS):
        if select.select([0], [], [], 0)[0]:  # it says nothing before the guards do
            sys.exit("the starter went before Ray had the nodes")
    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    options: dict[str, Any] = {
        "num_cpus": resources.get("CPU", 0),
        "num_gpus": resources.get("GPU", 0),
        "resources": others,
        "concurrency_groups": {"input": 1, "output": 1},
    }
    actor: Any = ray.remote(**options)(Holder)
    return [
        actor.options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=number
            )
        ).remote(list(command), number)
        for number in range(nodes)
    ]


def _pass_on(holder: Any, number: int) -> None:
    """The guard's lines, until it ends. Where its actor or node is lost, a line says so."""
    try:
        for line in holder.lines.options(num_returns="streaming").remote():
            pass_on(ray.get(line))
    except ray.exceptions.RayError as error:
        print(error, file=sys.stderr, flush=True)
        send({"node": number, "killed": KILLED})


def main() -> None:
    wanted = json.loads(sys.argv[1])
    try:
        _connect(wanted["address"])
        _refuse_too_small(wanted["nodes"], wanted["resources"])
    except Refused as error:
        error.send()
        sys.exit(1)
    holders = _holders(wanted["nodes"], wanted["resources"], wanted["command"])
    readers = [
        threading.Thread(target=_pass_on, args=(holder, number), daemon=True)
        for number, holder in enumerate(holders)
    ]
    for reader in readers:
        reader.start()
    while data := os.read(0, 65536):
        for holder in holders:
            holder.write.remote(data)
    for holder in holders:
        holder.write.remote(b"")
    for reader in readers:
        reader.join()


if __name__ == "__main__":
    main()
