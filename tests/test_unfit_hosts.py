"""What a host says of itself before a rank runs there, and the sentences about one that does not
fit. Real hosts are test_hosts.py's.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from machines import until
from pydantic import ValidationError

from assets.launch import guard
from assets.launch.hosts import GUARD, HostsLauncher, Lifeline, Node, refuse_unfit
from assets.launch.launcher import Ranks
from assets.recipe.profile import Hosts, Profile
from assets.store.home import ROOT
from gpt_model.errors import UserError


def specification(folder: Path, **changes: Any) -> dict[str, Any]:
    """Of a guard on this machine."""
    token = folder / "token"
    token.write_text("seen")
    packages = sysconfig.get_path("purelib")
    return {
        "node": 0,
        "addresses": ["localhost"],
        "token": str(token),
        "packages_folder": packages,
        "packages": guard.packages(Path(packages)),
        "root": str(ROOT),
        "environment": {},
        "folder": str(folder),
        "silence": 5.0,
        "lifeline": None,
    } | changes


def hello(folder: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The specification of a guard on this machine, and what it answers."""
    spec = specification(folder, **changes)
    process = subprocess.run(
        GUARD, input=json.dumps(spec) + "\n", capture_output=True, text=True, check=False
    )
    ready, answer = process.stdout.splitlines()
    assert json.loads(ready)["ready"] and len(answer) < 1000, "srun passes no longer line in one"
    return spec, json.loads(answer)["hello"] | {"came": time.time()}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_host_like_this_machine_fits(tmp_path: Path) -> None:
    spec, facts = hello(tmp_path)
    refuse_unfit([Node("n1", facts)], Path(spec["token"]), spec)
    assert facts["number"] == "127.0.0.1" and 0 < facts["port"] < 65536


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"token": None}, "does not see the store's folder"),
        ({"token": "another store's"}, "does not see the store's folder"),
        ({"python": [3, 12, 1]}, "has Python 3.12.1"),
        ({"code": "0" * 64}, "has other code than this machine"),
        ({"different_packages": ["torch-2.12.0"]}, "other packages .*torch-2.12.0"),
        ({"clock": 1.0}, "clock is"),
        ({"free_bytes": 1 << 20}, "has 1 MB free"),
    ],
)
def test_a_host_that_does_not_fit_is_named(
    tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    spec, facts = hello(tmp_path)
    with pytest.raises(UserError, match=f"Host n2.*{sentence}") as error:
        refuse_unfit([Node("n2", facts | changed)], Path(spec["token"]), spec)
    assert error.value.field == "hosts"


def test_several_hosts_have_to_reach_each_other(tmp_path: Path) -> None:
    spec, facts = hello(tmp_path)
    with pytest.raises(UserError, match=r"Host n1 cannot be reached.*localhost is 127.0.0.1"):
        refuse_unfit([Node("n1", facts), Node("n2", facts)], Path(spec["token"]), spec)
    spec, facts = hello(tmp_path, addresses=["no-such-host.invalid"])
    with pytest.raises(UserError, match=r"Host n1 cannot be reached.*no-such-host.invalid"):
        refuse_unfit([Node("n1", facts), Node("n2", facts)], Path(spec["token"]), spec)


def test_other_packages_on_a_host_are_listed(tmp_path: Path) -> None:
    _, facts = hello(tmp_path, packages=["only-here-1.0"])
    assert 0 < len(facts["different_packages"]) <= 5


@pytest.mark.parametrize(
    ("hosts", "mistake"),
    [
        ({"by": "ssh"}, "needs `names`"),
        ({"by": "ssh", "names": ["a"], "nodes": 2}, "`nodes: 2` are more than `names`, 1"),
        ({"by": "slurm", "names": ["a"]}, "needs `nodes`"),
        ({"by": "ssh", "names": ["-oProxyCommand=x"]}, "is no name of a host"),
        ({"by": "ssh", "names": ["a", "a"]}, "stands twice"),
        ({"by": "ssh", "names": ["a"], "detached": True}, "of `by: slurm` alone"),
        ({"by": "ray", "names": ["a"]}, "needs `nodes`"),
        ({"by": "ray", "nodes": 2, "address": "ray://head:10001"}, "neither `auto` nor host:port"),
        (
            {"by": "ray", "nodes": 2, "options": ["--x"]},
            "`options` is of `by: ssh` and `by: slurm` alone",
        ),
        ({"by": "ray", "nodes": 2, "resources": {"GPU": 0}}, "resources"),
        ({"by": "slurm", "nodes": 2, "resources": {"GPU": 8}}, "of `by: ray` and `by: kubernetes`"),
    ],
)
def test_hosts_that_a_profile_cannot_have_are_refused(hosts: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ValidationError, match=mistake):
        Hosts.model_validate(hosts)


def test_ranks_that_hosts_cannot_share_are_refused() -> None:
    hosts = {"by": "ssh", "names": ["a", "b"]}
    assert Profile.model_validate({"name": "x", "processes": 4, "hosts": hosts})
    with pytest.raises(ValidationError, match="cannot be shared evenly by 2 hosts"):
        Profile.model_validate({"name": "x", "processes": 3, "hosts": hosts})


def test_a_rank_that_does_not_come_is_named_with_its_host() -> None:
    code = (
        "from datetime import timedelta\n"
        "from gpt_model.training import engine\n"
        "engine.MEETING = timedelta(seconds=1)\n"
        "try:\n    next(engine._rendezvous('', timedelta(hours=2)))\n"
        "except engine.UserError as error:\n    print(error)\n"
    )
    environment = {
        "RANK": "0",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "LINEAGE_HOSTS": "n1,n2",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Ranks 1, 2, 3 of 4 did not come" in done.stdout, done.stdout + done.stderr
    assert "They are on n1, n2: see whether" in done.stdout


def test_ray_gives_a_gpu_to_each_rank_of_a_node() -> None:
    ray = {"by": "ray", "nodes": 2}
    with pytest.raises(ValidationError, match="GPU: 8"):
        Profile(name="p", device="cuda", processes=16, hosts=ray)
    fits = ray | {"resources": {"GPU": 8}}
    assert Profile(name="p", device="cuda", processes=16, hosts=fits).processes_each_host() == 8


def test_where_ray_is_not_installed_a_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    launcher = HostsLauncher(Hosts(by="ray", nodes=1))
    with pytest.raises(UserError, match="Ray is not installed here") as refused:
        launcher.run(Ranks(["true"], 1, 1, tmp_path / "worker.log"))
    assert refused.value.field == "hosts.by"


def test_the_end_of_a_guards_lifeline_is_heard_and_a_strangers_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    if not numbers:
        pytest.skip("this machine has no network but its loopback")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: numbers[0])
    with Lifeline() as lifeline:
        assert lifeline.address is not None
        guards = [guard.Starter(node) for node in range(3)]
        for each in guards:
            each.connect(lifeline.address, lifeline.token if each is not guards[2] else "another")
        assert lifeline.ended() == set()
        stranger = guards[2]._lifeline
        assert stranger is not None
        stranger.setblocking(False)

        def is_cut_off() -> bool:
            assert lifeline.ended() == set()
            try:
                return stranger.recv(1) == b""
            except BlockingIOError:
                return False

        until(is_cut_off, "the stranger was not cut off")
        for each in guards[1:]:
            assert each._lifeline is not None
            each._lifeline.close()
        until(lambda: lifeline.ended() == {1}, "the end was not heard")
        assert lifeline.ended() == set()


def test_a_host_whose_name_is_its_loopbacks_has_no_lifeline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    with Lifeline() as lifeline:
        assert lifeline.address is None and lifeline.ended() == set()
