"""The OpenAI-compatible endpoint: `transformers serve` (`chat_endpoint.py`) on exported
checkpoints, a child that ends with this process.

It finds models in a hub cache. We lay one out, of links to the exported folders, in which a model
is called as its artifact is and its revision is the fingerprint: so the endpoint lists artifacts by
their names and needs no way out.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assets.store.locks import locked
from assets.store.store import Store
from gpt_model.errors import UserError
from pipelines.chat.session import Partner
from pipelines.models import export

HOST = "127.0.0.1"
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
PATIENCE = 180.0  # seconds until the server answers, and until a model is in memory


def check_free(port: int, option: str) -> None:
    """Raises UserError where something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"Port {port} of {HOST} is taken ({error.strerror}): give another with {option}."
            ) from None


def name_of(partner: Partner) -> str:
    """The model's name at the endpoint: a hub's name has one slash."""
    owner, slash, rest = partner.ref.partition("/")
    return f"{owner}{slash}{rest.replace('/', '.')}"


@contextmanager
def serving(store: Store, partners: list[Partner], port: int) -> Iterator[str]:
    """The endpoint's address, while it serves these models. Raises UserError where it does not
    start.
    """
    check_free(port, "--endpoint-port")
    folder = store.home / "chat"
    folder.mkdir(parents=True, exist_ok=True)
    exported = {partner: _exported(store, partner, folder) for partner in partners}
    with (
        tempfile.TemporaryDirectory(prefix="endpoint-", dir=folder) as cache,
        (folder / "endpoint.log").open("w") as log,
    ):
        for partner, there in exported.items():
            _lay_out(Path(cache), partner, there)
        server = _start(port, Path(cache), log.fileno())
        try:
            base = f"http://{HOST}:{port}"
            _await(server, f"{base}/health", folder / "endpoint.log")
            for partner in partners:
                _load(base, name_of(partner), folder / "endpoint.log")
            yield f"{base}/v1"
        finally:
            _stop(server)


def _exported(store: Store, partner: Partner, folder: Path) -> Path:
    """The checkpoint as `transformers` loads it, at chat/<fingerprint>; made where it is not there
    whole.
    """
    target = folder / partner.fingerprint
    with locked(folder / f"{partner.fingerprint}.lock"):
        if (target / "complete").is_file():
            return target
        export(store, store.resolve(partner.fingerprint), target, replace=True)
        path = target / "generation_config.json"
        # The server takes what a request does not say from here, and a request cannot say that
        # tokens are to be drawn, or top-k.
        drawn = {
            **json.loads(path.read_text(encoding="utf-8")),
            "do_sample": True,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
        }
        path.write_text(json.dumps(drawn, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (target / "complete").touch()
    return target


def _lay_out(cache: Path, partner: Partner, exported: Path) -> None:
    """The hub's cache with this model in it."""
    model = cache / f"models--{name_of(partner).replace('/', '--')}"
    revision = partner.fingerprint[:40]
    (model / "refs").mkdir(parents=True, exist_ok=True)
    (model / "refs" / "main").write_text(revision)
    snapshot = model / "snapshots" / revision
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in exported.iterdir():
        if not (snapshot / file.name).exists():
            (snapshot / file.name).symlink_to(file.resolve())


def _start(port: int, cache: Path, log: int) -> subprocess.Popen[bytes]:
    # By its path, and from the cache: a folder named as a model is, in the folder that we run in,
    # would be taken for the model.
    command = [
        sys.executable,
        "-P",
        str(Path(__file__).with_name("endpoint.py")),
        "--host",
        HOST,
        "--port",
        str(port),
    ]
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    end_with_us = _end_with_parent if sys.platform == "linux" else None
    return subprocess.Popen(
        command,
        env=environment,
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        cwd=cache,
        preexec_fn=end_with_us,
    )


def _end_with_parent() -> None:
    os.setpgrp()  # Ctrl-C is ours to hear
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _await(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as reply:  # noqa: S310 - a loopback address
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if server.poll() is not None or time.monotonic() > deadline:
            raise UserError(
                f"The endpoint (transformers serve) did not start. Its last words, of {log}:\n{log.read_text()[-1500:]}"
            )
        time.sleep(0.2)


def _load(base: str, name: str, log: Path) -> None:
    """The model into memory, so that the first answer does not wait for it."""
    request = urllib.request.Request(  # noqa: S310 - a loopback address
        f"{base}/load_model",
        json.dumps({"model": name}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:  # noqa: S310
        told = reply.read().decode()
    if '"ready"' not in told:
        raise UserError(f"The endpoint could not load {name}: {told.strip()[-500:]} (see {log})")
