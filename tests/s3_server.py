"""A real S3 server on this machine: moto's, as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import requests
from conftest import free_port

SECRET = "xyzzy+s3/0123456789"  # noqa: S105 # of nothing
SERVE = "import sys; from moto.server import main; main(sys.argv[1:])"


@contextmanager
def s3_server(
    log: Path, host: str = "127.0.0.1", on: Callable[[list[str]], list[str]] = list, **settings: str
) -> Iterator[dict[str, str]]:
    """Yields the environment in which a client finds it. `on`: the command that runs a command on
    the machine that has the address `host`. `settings`: of moto, as variables.
    """
    port = free_port()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            on([sys.executable, "-c", SERVE, "-H", host, "-p", str(port)]),
            env=os.environ | settings,
            stdout=output,
            stderr=output,
        )
        try:
            _wait(log, process)
            yield {
                "AWS_ENDPOINT_URL": f"http://{host}:{port}",
                "AWS_ACCESS_KEY_ID": "team",
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_DEFAULT_REGION": "us-east-1",
                "NO_PROXY": host,
            }
        finally:
            end(process, signal.SIGTERM)


def end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Ends a server by a signal, on a machine of `machines.py` too, whose first process has none."""
    for each in (*psutil.Process(process.pid).children(recursive=True), process):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            each.send_signal(number)
    process.wait(30)


def _wait(log: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None
        if "Running on" in log.read_text(encoding="utf-8"):
            return
        time.sleep(0.1)
    raise AssertionError(f"the server does not answer: {log.read_text(encoding='utf-8')}")


def make_bucket(environment: dict[str, str], name: str) -> None:
    requests.put(f"{environment['AWS_ENDPOINT_URL']}/{name}", timeout=20).raise_for_status()
