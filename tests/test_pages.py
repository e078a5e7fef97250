"""The servers: nobody but this machine is obeyed, no secret of the environment is served, and no
server is left behind.
"""

from __future__ import annotations

import json
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
from dagster_graphql import DagsterGraphQLClient
from planted_secrets import FAILURE, MARK, PRINTING, environment_with_secrets, files_with_secrets

from assets.launch.launcher import LocalLauncher, Ranks
from assets.tracking.tracking import Tracking
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
    environment = environment_with_secrets(home, home.parent / "scratch", ports["mlflow"])
    environment |= {"LINEAGE_RECIPES": str(recipes), **PRINTING}
    environment.pop("PYTEST_CURRENT_TEST", None)
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
    assert "theirs" not in experiments(servers) and "mine" in experiments(servers)
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


METADATA = """metadataEntries { label description
    ... on TextMetadataEntry { text } ... on MarkdownMetadataEntry { mdStr }
    ... on JsonMetadataEntry { jsonString } ... on UrlMetadataEntry { url }
    ... on PathMetadataEntry { path } }"""
ERROR = "error { message stack errorChain { error { message stack } } }"
RUN = (
    """query($id: ID!) { runOrError(runId: $id) { ... on Run { runConfigYaml tags { key value }
    eventConnection(limit: 1000) { events { __typename ... on MessageEvent { message }
    ... on DisplayableEvent { label description """
    + METADATA
    + "} ... on ErrorEvent { "
    + ERROR
    + """} ... on LogsCapturedEvent { logKey externalUrl } } } } } }"""
)
LOGS = "query($key: [String!]!) { capturedLogs(logKey: $key) { stdout stderr } }"
LAUNCHPAD = """query($selector: PipelineSelector!) { runConfigSchemaOrError(selector: $selector) {
    ... on RunConfigSchema { rootDefaultYaml } } }"""
# what the assets say of themselves, and what is wrong with the servers
DEPLOYMENT = (
    """{ workspaceOrError { ... on Workspace { locationEntries { displayMetadata { key value }
    locationOrLoadError { ... on PythonError { message stack }
    ... on RepositoryLocation { name repositories { name } } } } } }
    assetNodes { assetKey { path } description """
    + METADATA
    + """ }
    instance { info daemonHealth { allDaemonStatuses { lastHeartbeatErrors { message stack } } } }
    }"""
)


def test_no_page_serves_a_secret_of_the_environment(servers: Servers) -> None:
    """Dagster's page launches a run whose worker prints its environment and fails with it, and
    which MLflow's page hears of.
    """
    served: dict[str, str] = {}

    def get(server: str, path: str, **more: Any) -> Any:
        reply = httpx.request("POST" if more else "GET", servers.url(server, path), **more)
        served[f"{server} {path} {len(served)}"] = f"{reply.headers}{reply.text}"
        assert reply.status_code < 500, reply.text
        return reply

    def query(text: str, **variables: Any) -> Any:
        body = {"query": text, "variables": variables}
        reply = get("ui", "/graphql", json=body).json()
        assert "errors" not in reply, reply
        return reply["data"]

    client = DagsterGraphQLClient(HOST, port_number=servers.ports["ui"])
    run_id = client.submit_job_execution("local", run_config={})
    wait_until(lambda: client.get_run_status(run_id).value == "FAILURE", servers.log("ui"))
    run = query(RUN, id=run_id)["runOrError"]
    events = run["eventConnection"]["events"]
    assert FAILURE in str(events) and "HF_TOKEN" in str(events)
    for event in events:
        if event["__typename"] == "LogsCapturedEvent":
            query(LOGS, key=event["logKey"])
    deployment = query(DEPLOYMENT)
    assert deployment["assetNodes"]
    [location] = deployment["workspaceOrError"]["locationEntries"]
    location = location["locationOrLoadError"]
    selector = {
        "pipelineName": "local",
        "repositoryName": location["repositories"][0]["name"],
        "repositoryLocationName": location["name"],
    }
    schema = query(LAUNCHPAD, selector=selector)["runConfigSchemaOrError"]
    assert "profile" in schema["rootDefaultYaml"]
    for path in ("/", f"/runs/{run_id}", "/server_info"):
        get("ui", path)

    Tracking(servers.home, servers.url("mlflow")).deliver_pending(60.0)  # what a slow machine left
    api = "/api/2.0/mlflow"
    experiments = get("mlflow", f"{api}/experiments/search", json={"max_results": 100}).json()
    ids = [experiment["experiment_id"] for experiment in experiments["experiments"]]
    runs = get("mlflow", f"{api}/runs/search", json={"experiment_ids": ids}).json()["runs"]
    [failed] = [run for run in runs if "lineage.asset" in str(run)]  # the other is its parent
    assert (failed["info"]["status"], FAILURE in str(failed)) == ("FAILED", True)
    get("mlflow", f"{api}/logged-models/search", json={"experiment_ids": ids})
    get("mlflow", f"{api}/artifacts/list?run_id={failed['info']['run_id']}")
    get("mlflow", "/")

    get("chat", "/")
    get("endpoint", "/v1/models")
    message = {"role": "user", "content": "who sees the sailor?"}
    talk = {"model": "tiny/supervised", "messages": [message], "max_tokens": 8}
    get("endpoint", "/v1/chat/completions", json=talk)
    get("endpoint", "/v1/chat/completions", json={"model": "no model"})

    assert [name for name, text in served.items() if MARK in text] == []
    assert len(served) > 15
    assert files_with_secrets(servers.home) == []  # the servers' logs among them


def test_ranks_of_one_host_listen_on_the_loopback_interface_only(tmp_path: Path) -> None:
    for ranks in (1, 2):
        script = [sys.executable, str(Path(__file__).with_name("listening_rank.py")), str(tmp_path)]
        launched = LocalLauncher().run(Ranks(script, ranks, 1, tmp_path / "worker.log"))
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
    process, before = servers.processes[name], len(servers.log(name))
    tree = psutil.Process(process.pid).children(recursive=True)
    assert tree or name == "chat"
    process.send_signal(how)
    process.wait(timeout=20)
    wait_until(lambda: not any(map(is_running, tree)), f"{tree} were left by {name}", seconds=20)
    assert "Traceback" not in servers.log(name)[before:]


def is_running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
