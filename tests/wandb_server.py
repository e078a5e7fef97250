"""A server that answers the client of Weights & Biases, and remembers what it sends: the client is
the real one, and its rows, offsets and retries are what is tested.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HISTORY = "wandb-history.jsonl"


class WandbServer(ThreadingHTTPServer):
    """`runs`: id -> the fields of its last upsert; `history`: id -> its rows; `received`: how many
    rows came, with those that came again; `exit_codes`: of the runs that ended.
    """

    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """The client was killed."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.received: dict[str, int] = {}
        self.exit_codes: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
        match operation:
            case "RunResumeStatus":
                return {"model": {**project, "bucket": self._bucket(variables["name"])}}
            case "UpsertBucket":
                fields = {name: value for name, value in variables.items() if value is not None}
                self.runs.setdefault(variables["name"], {}).update(fields)
                bucket = self._bucket(variables["name"])
                return {
                    "upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}
                }
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": self.url} for name in variables["files"]]
                created = {"runID": variables["run"], "uploadHeaders": [], "files": files}
                return {"createRunFiles": created}
        return {}

    def _bucket(self, run: str) -> dict[str, Any] | None:
        if run not in self.runs:
            return None
        history = self.history.get(run, [])
        return {
            "id": run,
            "name": run,
            "historyLineCount": len(history),
            "historyTail": json.dumps([json.dumps(row) for row in history[-1:]]),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "eventsTail": "[]",
            "summaryMetrics": "{}",
            "config": "{}",
            "wandbConfig": json.dumps({"t": 1}),  # without it the client takes the run for new
        }

    def stream(self, run: str, content: dict[str, Any]) -> None:
        if HISTORY in content.get("files", {}):
            part = content["files"][HISTORY]
            rows = [json.loads(line) for line in part["content"]]
            self.history.setdefault(run, [])[part["offset"] :] = rows
            self.received[run] = self.received.get(run, 0) + len(rows)
        if content.get("complete"):
            self.exit_codes[run] = content["exitcode"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            request = json.loads(body)
            answer = {"data": self.server.answer(request["operationName"], request["variables"])}
        elif self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(body))
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_PUT(self) -> None:
        self.do_POST()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""


@contextmanager
def serving(port: int = 0) -> Iterator[WandbServer]:
    with WandbServer(port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
