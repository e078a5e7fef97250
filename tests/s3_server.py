"""A real S3 server on this machine: moto's, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from conftest import free_port

SECRET = "xyzzy+s3/0123456789"  # noqa: S105 # of nothing
SERVE = "import sys; from moto.server import main; main(sys.argv[1:])"


@contextmanager
def s3_server(log: Path, **settings: str) -> Iterator[dict[str, str]]:
    """Yields the environment in which a client finds it. `settings`: of moto, as variables."""
    port = free_port()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, "-H", "127.0.0.1", "-p", str(port)],
            env=os.environ | settings,
            stdout=output,
            stderr=output,
        )
        address = f"http://127.0.0.1:{port}"
        try:
            _wait(f"{address}/moto-api/", process)
            yield {
                "AWS_ENDPOINT_URL": address,
                "AWS_ACCESS_KEY_ID": "team",
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_DEFAULT_REGION": "us-east-1",
                "NO_PROXY": "127.0.0.1",
            }
        finally:
            process.terminate()
            process.wait(30)


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None
        try:
            requests.get(address, timeout=5)
            return
        except requests.ConnectionError:
            time.sleep(0.1)
    raise AssertionError(f"{address} does not answer")


def make_bucket(environment: dict[str, str], name: str) -> None:
    requests.put(f"{environment['AWS_ENDPOINT_URL']}/{name}", timeout=20).raise_for_status()
