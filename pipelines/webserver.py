"""Dagster's pages over this store, for this machine: `python -m pipelines.webserver HOST PORT`.

`dagster dev` answers any page of the web: its server takes mutations by GET, from any Origin, for
any Host, and over sockets. This serves the same pages behind `LocalOnly`, with Dagster's daemon
(schedules, sensors, the queue of runs) in the same process.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg
import uvicorn
import yaml
from dagster._cli.proxy_server_manager import ProxyServerManager
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import (
    ModuleTarget,
    WorkspaceFileTarget,
    WorkspaceLoadTarget,
)
from dagster._daemon.controller import daemon_controller_from_instance
from dagster._utils.interrupts import setup_interrupt_handlers
from dagster_webserver.app import create_app_from_workspace_process_context
from dagster_webserver.version import __version__
from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from assets.lineage import dagster_history
from pipelines.executor import close_lost_runs
from pipelines.local_only import NAMES, LocalOnly

# What workspace.yaml names, imported from the folder of this code: a person may have modules of the
# same names in the current one.
DEFINITIONS = ModuleTarget(
    module_name="pipelines.definitions",
    attribute=None,
    working_directory=str(Path(__file__).resolve().parents[1]),
    location_name="gpt-lineage",
)
LEVEL = "warning"  # of what Dagster logs


class QueriesByPost:
    """ASGI middleware: refuses GraphQL by GET, which a link or a picture of any page sends without
    an Origin. Dagster's own pages send POST.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "POST" and _has_query(scope):
            answer = JSONResponse({"error": "GraphQL is answered by POST only."}, status_code=405)
            await answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _has_query(scope: Scope) -> bool:
    return bool(scope["path"].rstrip("/").endswith("/graphql")) and "query" in QueryParams(
        scope["query_string"]
    )


def serve(host: str, port: int) -> None:
    """Serve until interrupted, by Ctrl-C or SIGTERM."""
    setup_interrupt_handlers()  # SIGTERM as Ctrl-C
    os.environ["DAGSTER_IS_DEV_CLI"] = "1"  # as `dagster dev` does: the page offers a reload
    with (
        dagster_history() as instance,
        _code_servers(instance) as workspace,
        WorkspaceProcessContext(instance, workspace, version=__version__) as context,
        daemon_controller_from_instance(instance, workspace, log_level=LEVEL) as daemon,
    ):
        close_lost_runs(instance)
        app = create_app_from_workspace_process_context(context, live_data_poll_rate=2000)
        names = list(dict.fromkeys((*NAMES, host)))
        config = uvicorn.Config(
            LocalOnly(QueriesByPost(app), names),
            host=host,
            port=port,
            log_level=LEVEL,
            timeout_graceful_shutdown=2,  # open sockets would hold it for ever
        )
        server = uvicorn.Server(config)

        def stop_with_the_daemon() -> None:
            try:
                daemon.check_daemon_loop()
            finally:
                server.should_exit = True

        threading.Thread(target=stop_with_the_daemon, name="daemon check", daemon=True).start()
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again when it has ended
            server.run()


@contextmanager
def _code_servers(instance: dg.DagsterInstance) -> Iterator[WorkspaceLoadTarget]:
    """A process with our definitions, which pages and daemon share: their workspace."""
    with (
        ProxyServerManager(instance, DEFINITIONS, LEVEL) as servers,
        tempfile.TemporaryDirectory(prefix="gpt-lineage-") as folder,
    ):
        path = Path(folder, "workspace.yaml")
        path.write_text(yaml.dump({"load_from": servers.get_code_server_specs()}), encoding="utf-8")
        yield WorkspaceFileTarget([str(path)])


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
