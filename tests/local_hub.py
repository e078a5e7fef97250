"""A server that answers as the Hugging Face hub does, of data sets and models in a folder, so that
the hub's own client and `datasets` read published recipes unchanged.

    FOLDER/datasets/OWNER/NAME/…    a data set in the hub's layout: README.md and parquet
    FOLDER/models/OWNER/NAME/…      a model in the hub's layout; the client may upload more, as owner
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow
import pyarrow.parquet

COMMIT = "c" * 40  # what every branch of every repository is at
Rows = Sequence[Mapping[str, Any]]
API = re.compile(
    r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|commit)/([^/]+)(/.*)?)?$"
)
DATA = (".parquet", ".safetensors", ".bpe")  # what is read of a data set, a model, a vocabulary
UPLOAD = re.compile(
    r"/preupload/main$|/objects/batch$|/commit/main$|/repos/create$|/validate-yaml$"
)
TOKEN = "hf_of_the_tests"  # noqa: S105 - what the server lets upload
RESOLVE = re.compile(r"(?:/(datasets))?/([^/]+/[^/]+)/resolve/[^/]+/(.+)$")


def write_dataset(folder: Path, splits: Mapping[tuple[str, str], Rows]) -> None:
    """A data set in the hub's layout: (subset, split) -> rows, as parquet, and the card that says
    which files are which split of which subset.
    """
    card: dict[str, list[str]] = {}
    for (subset, split), rows in splits.items():
        path = folder / subset / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        card.setdefault(subset, []).append(f"  - split: {split}\n    path: {subset}/{split}-*\n")
    configs = "".join(
        f'- config_name: "{subset}"\n  data_files:\n{"".join(files)}'
        for subset, files in card.items()
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")


def write_classifier(folder: Path) -> Path:
    """A BERT of random weights, in the layout of unitary/toxic-bert."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    letters = string.ascii_lowercase
    vocabulary = [*(f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")), *letters]
    vocabulary += [f"##{letter}" for letter in letters]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        id2label={0: "toxic", 1: "insult"},
        label2id={"toxic": 0, "insult": 1},
        problem_type="multi_label_classification",
        initializer_range=2.0,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


class _Handler(BaseHTTPRequestHandler):
    folder: Path
    read: set[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := RESOLVE.fullmatch(path):
            if self.command == "GET" and match[3].endswith(DATA):
                self.read.add(match[2])
            return self._file(self._repository(match[1] or "models", match[2]) / match[3])
        if not (match := API.fullmatch(path)):
            return self._send(404, b"")
        repository, action, below = self._repository(match[1], match[2]), match[3], match[5] or ""
        if not repository.is_dir():
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if action == "tree":
            top = repository / below.strip("/")
            if not top.is_dir():
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            recursive = "recursive=true" in self.path.lower()
            paths = sorted(top.rglob("*") if recursive else top.iterdir())
            return self._json([_entry(path, repository) for path in paths])
        files = [path for path in sorted(repository.rglob("*")) if path.is_file()]
        siblings = [{"rfilename": path.relative_to(repository).as_posix()} for path in files]
        return self._json({"id": match[2], "sha": COMMIT, "siblings": siblings})

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def do_POST(self) -> None:
        body = self._body().decode()
        path = unquote(urlsplit(self.path).path)
        if UPLOAD.search(path):
            allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if not allowed and not path.endswith("/validate-yaml"):
                return self._send(401, b"")
            return self._json(self._uploaded(path, body))
        match = API.fullmatch(path)
        if not (match and match[3] == "paths-info"):
            return self._send(404, b"")
        repository = self._repository(match[1], match[2])
        paths = [repository / path for path in json.loads(body)["paths"]]
        self._json([_entry(path, repository) for path in paths if path.exists()])

    def _uploaded(self, path: str, body: str) -> Any:
        """The hub's answers while its client uploads a model: a new repository, which files are
        large, where those go, and the commit, which names the large ones by their sha256.
        """
        if path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            files = [
                {"path": name, "uploadMode": mode, "shouldIgnore": False}
                for name, mode in modes.items()
            ]
            return {"files": files}
        if path.endswith("/objects/batch"):
            host = f"http://{self.headers['Host']}"
            objects = [
                {**item, "actions": {"upload": {"href": f"{host}/lfs/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return {"objects": objects, "transfer": "basic"}
        if match := API.fullmatch(path):
            repository = self._repository(match[1], match[2])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    content = base64.b64decode(value["content"])
                    (repository / value["path"]).write_bytes(content)
                elif line["key"] == "lfsFile":
                    value = line["value"]
                    shutil.move(self.folder / value["oid"], repository / value["path"])
            url = f"http://{self.headers['Host']}/{match[2]}/commit/{COMMIT}"
            return {"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None}
        if path.endswith("/create"):
            name = f"owner/{json.loads(body)['name']}"
            self._repository("models", name).mkdir(parents=True)
            return {"url": f"http://{self.headers['Host']}/{name}"}
        return {}  # the card's head is not checked

    def do_PUT(self) -> None:
        content = self._body()
        (self.folder / _sha(content)).write_bytes(content)
        self._send(200, b"")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _repository(self, kind: str, name: str) -> Path:
        return self.folder / kind / name

    def _file(self, path: Path) -> None:
        if not path.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = path.read_bytes()
        headers = {"ETag": f'"{_sha(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(span[1]), int(span[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._send(206, content[first : last + 1], headers)
        return self._send(200, content, headers)

    def _json(self, document: Any) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


def _entry(path: Path, repository: Path) -> dict[str, Any]:
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": _sha(name.encode())}
    content = path.read_bytes()
    return {"type": "file", "path": name, "size": len(content), "oid": _sha(content)}


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Hub:
    address: str
    read: set[str]  # names of the data sets and models whose data was asked for


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """A hub with what `folder` holds."""
    read: set[str] = set()
    handler = type("Handler", (_Handler,), {"folder": folder, "read": read})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Hub(f"http://127.0.0.1:{server.server_port}", read)
    finally:
        server.shutdown()
        server.server_close()
