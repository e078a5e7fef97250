"""The servers: nobody but this machine is obeyed, and none is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from chat_store import chat_store
from conftest import ROOT, free_port, write_local_recipe

from assets.launch.launcher import LocalLauncher
from pipelines.local_only import HOST, NAMES

pytestmark = pytest.mark.slow

FOREIGN = "rebound.example"
HANDSHAKE = {  # of a web socket, RFC 6455
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@dataclass(frozen=True)
class Servers:
    """`ui`, `mlflow` and `chat --browser` over one store, started as `nohup … &` does."""

    home: Path
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]]

    def url(self, name: str, path: str = "") -> str:
        return f"http://{HOST}:{self.ports[name]}{path}"

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text()


def ignore_signals() -> None:
    """What a shell does for `nohup … &`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    home = tmp_path_factory.mktemp("servers") / "lineage"
    chat_store(home)
    recipes = home.parent / "recipes"
    recipes.mkdir()
    write_local_recipe(recipes)
    ports = {name: free_port() for name in ("ui", "mlflow", "chat", "endpoint")}
    chat = ["chat", "tiny/supervised", "--browser", "--endpoint-port", str(ports["endpoint"])]
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"
    } | {
        "LINEAGE_HOME": str(home),
        "DAGSTER_HOME": str(home / "dagster"),
        "LINEAGE_RECIPES": str(recipes),
    }
    processes = {}
    for name, command in {"ui": ["ui"], "mlflow": ["mlflow"], "chat": chat}.items():
        with (home / f"{name}.log").open("wb") as log:
            processes[name] = subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli", *command, "--port", str(ports[name])],
                env=environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                preexec_fn=ignore_signals,
            )
    servers = Servers(home, ports, processes)
    try:
        for name, path in {"ui": "/server_info", "mlflow": "/health", "chat": "/"}.items():
            wait_until(partial(answers, servers.url(name, path)), servers.log(name))
        yield servers
    finally:
        for process in processes.values():
            process.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def limits_pool(name: str) -> str:
    """A mutation of Dagster's whose effect `pools` shows."""
    return f'mutation {{ setConcurrencyLimit(concurrencyKey: "{name}", limit: 3) }}'


def pools(servers: Servers) -> set[str]:
    query = "{ instance { concurrencyLimits { concurrencyKey } } }"
    reply = httpx.post(servers.url("ui", "/graphql"), json={"query": query}).json()
    return {pool["concurrencyKey"] for pool in reply["data"]["instance"]["concurrencyLimits"]}


def experiments(servers: Servers) -> set[str]:
    url = servers.url("mlflow", "/api/2.0/mlflow/experiments/search")
    reply = httpx.post(url, json={"max_results": 100}).json()
    return {experiment["name"] for experiment in reply["experiments"]}


def foreign_headers(port: int) -> list[dict[str, str]]:
    """What a browser sends for a page of the web: its own origin, none that it would name, or a
    name that leads here.
    """
    rebound = f"{FOREIGN}:{port}"
    return [
        {"Origin": f"https://{FOREIGN}"},
        {"Origin": "null"},
        {"Host": rebound, "Origin": f"http://{rebound}"},
        {"Host": rebound},
    ]


def test_no_foreign_page_host_or_socket_is_obeyed(servers: Servers, tmp_path: Path) -> None:
    chat = {"model": "tiny/supervised", "messages": [{"role": "user", "content": "who?"}]}
    text = {"Content-Type": "text/plain"}  # which a browser sends without asking first
    requests: list[tuple[str, str, str, dict[str, Any]]] = [
        ("ui", "POST", "/graphql", {"json": {"query": limits_pool("theirs")}}),
        ("ui", "POST", "/graphql", {"params": {"query": limits_pool("theirs")}, "headers": text}),
        ("ui", "GET", "/graphql", {"params": {"query": limits_pool("theirs")}}),
        ("ui", "POST", "/report_asset_materialization/local/corpus", {"json": {}}),
        ("ui", "GET", "/locations", {}),
        ("mlflow", "POST", "/api/2.0/mlflow/experiments/create", {"json": {"name": "theirs"}}),
        ("mlflow", "POST", "/ajax-api/2.0/mlflow/experiments/create", {"json": {"name": "theirs"}}),
        (
            "mlflow",
            "POST",
            "/api/2.0/mlflow/experiments/create",
            {"content": '{"name": "theirs"}', "headers": text},
        ),
        ("chat", "GET", "/", {}),
        ("endpoint", "POST", "/v1/chat/completions", {"json": chat}),
        ("endpoint", "GET", "/v1/models", {}),
    ]
    asked, obeyed = 0, []
    for server, method, path, content in requests:
        for headers in foreign_headers(servers.ports[server]):
            sent = {**content, "headers": {**content.get("headers", {}), **headers}}
            status = httpx.request(method, servers.url(server, path), **sent).status_code
            asked += 1
            if status != 403:
                obeyed.append((server, method, path, headers, status))
    # a link or a picture: no Origin, and the right Host
    query = {"query": limits_pool("theirs")}
    for method in ("GET", "HEAD"):
        assert httpx.request(method, servers.url("ui", "/graphql"), params=query).status_code == 405
    for server, path in {"ui": "/graphql", "chat": "/_nicegui_ws/socket.io/"}.items():
        for headers in foreign_headers(servers.ports[server]):
            url = servers.url(server, f"{path}?EIO=4&transport=websocket")
            assert httpx.get(url, headers=HANDSHAKE | headers).status_code == 403
            asked += 1
    assert obeyed == []
    assert asked == 52

    # what is refused above is what is obeyed from here
    own = {"Origin": servers.url("ui")}
    mine = {"query": limits_pool("mine")}
    assert httpx.post(servers.url("ui", "/graphql"), json=mine, headers=own).status_code == 200
    create = servers.url("mlflow", "/api/2.0/mlflow/experiments/create")
    assert httpx.post(create, json={"name": "mine"}).status_code == 200
    assert "theirs" not in pools(servers) and "mine" in pools(servers)
    assert experiments(servers) == {"Default", "mine"}
    page = httpx.get(servers.url("ui"))
    assert page.headers["x-frame-options"] == "SAMEORIGIN"

    assert {
        address for process in servers.processes.values() for address in listening(process)
    } <= {*NAMES}


def listening(process: subprocess.Popen[bytes]) -> set[str]:
    """The addresses on which a process and its children listen."""
    parent = psutil.Process(process.pid)
    return {
        connection.laddr.ip
        for child in (parent, *parent.children(recursive=True))
        for connection in child.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_ranks_of_one_host_listen_on_the_loopback_interface_only(tmp_path: Path) -> None:
    for ranks in (1, 2):
        script = [sys.executable, str(Path(__file__).with_name("listening_rank.py")), str(tmp_path)]
        launched = LocalLauncher().run(script, ranks=ranks, threads=1, log=tmp_path / "worker.log")
        assert launched.code == 0, launched.log.read_text()
        for rank in range(ranks):
            outcome = json.loads((tmp_path / f"{rank}.json").read_text())
            assert outcome["sum"] == ranks  # they have met
            assert set(outcome["listening"]) == {HOST}


@pytest.mark.parametrize(
    ("name", "how"), [("ui", signal.SIGKILL), ("mlflow", signal.SIGTERM), ("chat", signal.SIGTERM)]
)
def test_a_server_that_ignores_interrupts_ends_and_leaves_no_process(
    servers: Servers, name: str, how: signal.Signals
) -> None:
    process = servers.processes[name]
    tree = psutil.Process(process.pid).children(recursive=True)
    assert tree or name == "chat"
    process.send_signal(how)
    process.wait(timeout=20)
    wait_until(lambda: not any(map(is_running, tree)), f"{tree} were left by {name}", seconds=20)
    assert "Traceback" not in servers.log(name)


def is_running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
