"""A corpus on disk: documents by source and split, and their index. Where they come from is
`sources.py`'s.

    documents/<source>/training.jsonl.zst      one {"text": …} a line
    documents/<source>/held_out.jsonl.zst
    index.json                                 of each source: licence, weight, held-out share,
                                               and counts of both splits

The bytes are a function of the documents alone: keys sorted, one zstd frame a file, no time stamp.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import zstandard

from gpt_model.data.formats import decompressed
from gpt_model.errors import CorruptFile, UserError
from gpt_model.io import dump_json

Split = Literal["training", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
INDEX = "index.json"


def path_of(corpus: Path, source: str, split: Split) -> Path:
    """The file that holds one split of one source."""
    return corpus / "documents" / source / f"{split}.jsonl.zst"


class Writer:
    """Writes one split of one source, document by document, and counts what it wrote. A context
    manager.
    """

    def __init__(self, corpus: Path, source: str, split: Split) -> None:
        path = path_of(corpus, source, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = zstandard.ZstdCompressor(level=3).stream_writer(path.open("wb"))
        self._counter = _Counter()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def documents(self) -> int:
        return self._counter.documents

    def add(self, text: str) -> None:
        self._file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
        self._counter.add(text)

    def counts(self) -> dict[str, int | str]:
        """Documents, UTF-8 bytes and characters of their text, and a sha256 over the texts, each
        after its length.
        """
        return self._counter.counts()


class _Counter:
    def __init__(self) -> None:
        self.documents = self.bytes = self.characters = 0
        self._sha256 = hashlib.sha256()

    def add(self, text: str) -> None:
        encoded = text.encode()
        self._sha256.update(len(encoded).to_bytes(8, "big") + encoded)
        self.documents += 1
        self.bytes += len(encoded)
        self.characters += len(text)

    def counts(self) -> dict[str, int | str]:
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "characters": self.characters,
            "sha256": self._sha256.hexdigest(),
        }


def count(texts: Iterable[str]) -> dict[str, int | str]:
    """What `Writer.counts` says of these documents."""
    counter = _Counter()
    for text in texts:
        counter.add(text)
    return counter.counts()


def write_index(corpus: Path, sources: dict[str, dict[str, Any]]) -> None:
    dump_json(corpus / INDEX, {"sources": sources}, indent=1, ensure_ascii=False)


def index(corpus: Path) -> dict[str, dict[str, Any]]:
    """By source, in the recipe's order: licence, weight, held_out_share, dropped, and under
    "training" and "held_out" (the splits) documents, bytes, characters, sha256. Raises UserError
    where `corpus` is not one.
    """
    path = corpus / INDEX
    if not path.is_file():
        raise UserError(f"{corpus} is not a corpus: there is no {INDEX} in it.")
    sources: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["sources"]
    return sources


def read(corpus: Path, source: str, split: Split) -> Iterator[str]:
    """The documents of one split of one source, in their order, one at a time.

    Raises UserError for a source that is not there and CorruptFile for a damaged file.
    """
    path = path_of(corpus, source, split)
    if not path.is_file():
        raise UserError(
            f"{corpus} has no source {source!r}, split {split!r}. Its sources: "
            f"{', '.join(index(corpus))}."
        )
    try:
        with path.open("rb") as file:
            for line in decompressed(file, path.name):
                yield json.loads(line)["text"]
    except (zstandard.ZstdError, EOFError, ValueError, KeyError) as error:
        raise CorruptFile(
            f"{path} is damaged ({error}). Delete the artifact and build the corpus again."
        ) from None


def part(texts: Iterable[str], size: int, number: int, parts: int) -> Iterator[str]:
    """Those of `texts`, `size` bytes together, that begin in part `number` (from 0) of `parts` of
    about equal bytes. All parts, one after another, are `texts`.
    """
    before = 0
    for text in texts:
        begins_in = min(before * parts // max(1, size), parts - 1)
        if begins_in > number:
            return
        if begins_in == number:
            yield text
        before += len(text.encode())
