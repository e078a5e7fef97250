"""Token shards on disk: written in constant memory, read as memory maps. Which tokens a step trains
on is sampler.py's.

A folder of tokens:

    index.json                  number type, shards and counts of each source and split, weights
    byte_lengths.npy            bytes of (normalised) text that each id stands for: [vocabulary]
    <source>/<split>-00000.bin  ids, little-endian, nothing else; at most `SHARD_TOKENS` a file
    <source>/<split>.idx        where each document ends, in tokens from the start of the split:
                                little-endian uint64

A split ("training" or "held_out") is its documents one after another, each followed by end-of-text,
as GPT-2 and GPT-3 delimit them. Its bytes are those of the text as the tokenizer normalises it,
each end-of-text with what it stands for: all that its tokens spell.
"""

from __future__ import annotations

import json
import shutil
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from gpt_model.data.documents import SPLITS
from gpt_model.errors import CorruptFile, UserError
from gpt_model.io import dump_json
from gpt_model.progress import Progress, Silent
from gpt_model.tokenizer import Encoded, Tokenizer

INDEX, BYTE_LENGTHS = "index.json", "byte_lengths.npy"
SHARD_TOKENS = 1 << 26  # tokens a file: 128 MiB of uint16
MAPPED = 128  # files that a process maps at once: each map holds a descriptor; macOS allows 256
ENDS = 1 << 20  # documents' ends in memory at once, where folders are joined


@dataclass(frozen=True)
class SourceTexts:
    """What `write` needs to know of a source: its share of the mixture, and its documents by split,
    read once.
    """

    weight: float
    documents: Mapping[str, Iterable[str]]
    bytes: int = 0  # of all splits, UTF-8; only to say how far along


def write(
    folder: Path,
    sources: Mapping[str, SourceTexts],
    tokenizer: Tokenizer,
    progress: Progress | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> dict[str, Any]:
    """Tokenize every split of every source into `folder`. Returns what index.json says.

    Memory does not grow with the text: documents are streamed, long ones in pieces. The same text
    gives the same bytes on disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    byte_lengths = tokenizer.byte_lengths()
    np.save(folder / BYTE_LENGTHS, byte_lengths)
    end = tokenizer.end_of_text, int(byte_lengths[tokenizer.end_of_text])
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    done, total = 0, sum(source.bytes for source in sources.values())
    described: dict[str, Any] = {}
    for name, source in sources.items():
        splits = {}
        for split in SPLITS:
            with _SplitWriter(folder, name, split, dtype, shard_tokens) as writer:
                for batch in tokenizer.encode_documents(source.documents[split]):
                    writer.add(batch, *end)
                    done += sum(piece.read for piece in batch)
                    (progress or Silent()).advance(done, max(total, done), "bytes")
            splits[split] = writer.described()
        described[name] = {"weight": source.weight, "splits": splits}
    index = {
        "dtype": dtype.str,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "sources": described,
    }
    dump_json(folder / INDEX, index, indent=2)
    return index


def join(parts: Sequence[Path], folder: Path, shard_tokens: int = SHARD_TOKENS) -> None:
    """Write into `folder` what `write` would have written of all documents, where each of `parts`
    is what it has written of some: those of a split, one part after another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(parts[0] / BYTE_LENGTHS, folder / BYTE_LENGTHS)
    index = _read_index(parts[0])
    for name, described in index["sources"].items():
        for split in SPLITS:
            with _SplitWriter(
                folder, name, split, np.dtype(index["dtype"]), shard_tokens
            ) as writer:
                for part in parts:
                    writer.extend(Shards(part, name, split))
            described["splits"][split] = writer.described()
    dump_json(folder / INDEX, index, indent=2)


class _SplitWriter:
    """Appends one split's tokens to its shards. Each is opened when the one before is full."""

    def __init__(
        self, folder: Path, source: str, split: str, dtype: np.dtype[Any], shard_tokens: int
    ) -> None:
        self._folder, self._stem, self._dtype, self._shard_tokens = (
            folder,
            f"{source}/{split}",
            dtype,
            shard_tokens,
        )
        self._shard: BinaryIO | None = None
        self._shards: list[int] = []  # tokens of each
        self.tokens = self.documents = self.bytes = 0

    def __enter__(self) -> _SplitWriter:
        path = self._folder / f"{self._stem}.idx"
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f"{path.stem}-*.bin"):  # of an attempt that was killed
            stale.unlink()
        self._ends = path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()
        if self._shard:
            self._shard.close()

    def add(self, batch: list[Encoded], end_of_text: int, bytes_of_it: int) -> None:
        ends = []
        for piece in batch:
            ids = np.append(piece.ids, np.uint32(end_of_text)) if piece.last else piece.ids
            self._append(ids.astype(self._dtype))
            self.bytes += piece.bytes + (bytes_of_it if piece.last else 0)
            if piece.last:
                ends.append(self.tokens)
        self._ends.write(np.array(ends, dtype="<u8").tobytes())
        self.documents += len(ends)

    def extend(self, tokens: Shards) -> None:
        """Append the documents of another folder's split."""
        for start in range(0, tokens.documents, ENDS):
            ends = tokens.ends[start : start + ENDS] + np.uint64(self.tokens)
            self._ends.write(ends.astype("<u8").tobytes())
        self.documents += tokens.documents
        self.bytes += tokens.bytes
        for ids in tokens.parts():
            self._append(ids)

    def _append(self, ids: NDArray[Any]) -> None:
        while len(ids):
            if not self._shards or self._shards[-1] == self._shard_tokens:
                if self._shard:
                    self._shard.close()
                self._shard = (self._folder / f"{self._stem}-{len(self._shards):05d}.bin").open(
                    "wb"
                )
                self._shards.append(0)
            assert self._shard is not None
            now, ids = np.split(ids, [self._shard_tokens - self._shards[-1]])
            self._shard.write(now.tobytes())
            self._shards[-1] += len(now)
            self.tokens += len(now)

    def described(self) -> dict[str, Any]:
        shards = [
            {"file": f"{self._stem}-{number:05d}.bin", "tokens": tokens}
            for number, tokens in enumerate(self._shards)
        ]
        return {
            "shards": shards,
            "tokens": self.tokens,
            "documents": self.documents,
            "bytes": self.bytes,
        }


class Shards:
    """One split of a source as one long row of ids, [tokens], whatever number of files it lies in.
    Slices come back as arrays. A process maps at most `MAPPED` files at once, those read last,
    whatever number of splits it has open. `bytes`: as `TokenData.bytes`.
    """

    # Which files are mapped, the one read last at the end: (id of its `Shards`, its number there)
    _order: ClassVar[OrderedDict[tuple[int, int], weakref.ref[Shards]]] = OrderedDict()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, folder: Path, source: str, split: str) -> None:
        index = _read_index(folder)
        described = index["sources"][source]["splits"][split]
        dtype = self.dtype = np.dtype(index["dtype"])
        self.documents: int = described["documents"]
        self.bytes: int = described["bytes"]
        counts = [shard["tokens"] for shard in described["shards"]]
        self._starts = np.cumsum([0, *counts])
        self._files = [
            (folder / shard["file"], dtype, shard["tokens"]) for shard in described["shards"]
        ]
        ends = folder / source / f"{split}.idx", np.dtype("<u8"), self.documents
        self._files.append(ends)
        for file, kind, count in self._files:
            _require_size(file, count * kind.itemsize)
        self._maps: dict[int, NDArray[Any]] = {}  # by their number in `_files`

    @property
    def ends(self) -> NDArray[np.uint64]:
        """Where each document ends, in tokens from the start of the split: [documents]."""
        return self._map(len(self._files) - 1)

    def _map(self, number: int) -> NDArray[Any]:
        """What is in a file. The map read longest ago is given up for it, whosever it is."""
        with self._lock:
            if number not in self._maps:
                self._maps[number] = _map(*self._files[number])
                self._order[id(self), number] = weakref.ref(self)
            self._order.move_to_end((id(self), number))
            while len(self._order) > MAPPED:
                (_, oldest), owner = self._order.popitem(last=False)
                if (shards := owner()) is not None:
                    shards._maps.pop(oldest, None)
            return self._maps[number]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, where: slice) -> NDArray[Any]:
        start, stop, stride = where.indices(len(self))
        if stride != 1:
            raise ValueError("a slice of shards has stride 1")
        return self.read(start, max(0, stop - start))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def read(self, start: int, count: int) -> NDArray[Any]:
        """`count` ids from `start`, all within the split: a view where they lie in one file, else a
        copy.
        """
        first = (
            int(np.searchsorted(self._starts, start, side="right")) - 1
            if len(self._starts) > 2
            else 0
        )
        parts = []
        while count and first < len(self._starts) - 1:
            part = self._map(first)[start - self._starts[first] :][:count]
            parts.append(part)
            start, count, first = start + len(part), count - len(part), first + 1
        return (
            parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype=self.dtype), *parts])
        )

    def parts(self, count: int = 1 << 20) -> Iterator[NDArray[Any]]:
        """All of it in order, at most `count` ids at a time."""
        for start in range(0, len(self), count):
            yield self[start : start + count]

    def document(self, number: int) -> NDArray[Any]:
        """Ids of one document, without its end-of-text."""
        start = int(self.ends[number - 1]) if number else 0
        return self.read(start, int(self.ends[number]) - start - 1)


class TokenData:
    """What a folder of tokens holds. Opening it checks that every file is there at its full length;
    raises CorruptFile where not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._index = _read_index(self.folder)
        self.vocab_size: int = self._index["vocab_size"]
        self.end_of_text: int = self._index["end_of_text"]
        self.sources: list[str] = list(self._index["sources"])  # in the recipe's order
        self.weights: dict[str, float] = {
            name: self._index["sources"][name]["weight"] for name in self.sources
        }
        self.byte_lengths: NDArray[np.uint32] = np.load(self.folder / BYTE_LENGTHS)
        self._shards: dict[tuple[str, str], Shards] = {
            (name, split): Shards(self.folder, name, split)
            for name in self.sources
            for split in SPLITS
        }

    def tokens(self, source: str, split: str) -> Shards:
        """Ids of a split, documents delimited by end-of-text."""
        return self._shards[source, split]

    def documents(self, source: str, split: str) -> int:
        """How many documents a split has."""
        return int(self._split(source, split)["documents"])

    def bytes(self, source: str, split: str) -> int:
        """UTF-8 bytes of a split's normalised text: the denominator of bits per byte."""
        return int(self._split(source, split)["bytes"])

    def _split(self, source: str, split: str) -> dict[str, Any]:
        described: dict[str, Any] = self._index["sources"][source]["splits"][split]
        return described


def held_out_windows(
    data: TokenData,
    source: str,
    context: int,
    stride: int,
    limit_tokens: int | None = None,
    sequences: int = 16,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Windows that predict every held-out token of `source` exactly once: (inputs, targets), each
    [≤ sequences, context].

    A window predicts `stride` tokens (1 … context), and has context - stride tokens of text before
    them wherever there are so many; other targets are -100. The first token of all follows an
    end-of-text. A short window is filled up on the right with end-of-text as input. `limit_tokens`:
    only the first so many tokens.
    """
    tokens = data.tokens(source, "held_out")
    count = len(tokens) if limit_tokens is None else min(limit_tokens, len(tokens))
    for batch in range(0, count, sequences * stride):
        starts = range(batch, min(count, batch + sequences * stride), stride)
        inputs = np.full((len(starts), context), data.end_of_text, dtype=np.int64)
        targets = np.full((len(starts), context), -100, dtype=np.int64)
        for row, start in enumerate(starts):
            end = min(count, start + stride)
            begin = max(0, start + stride - context)
            length = end - begin
            inputs[row, 1 if begin == 0 else 0 : length] = tokens[max(0, begin - 1) : end - 1]
            targets[row, start - begin : length] = tokens[start:end]
        yield inputs, targets


def _read_index(folder: Path) -> dict[str, Any]:
    path = Path(folder) / INDEX
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: {folder} is not a folder of tokens. Give the folder of a "
            "`tokens` artifact."
        ) from None
    except ValueError:
        raise CorruptFile(f"{path} is not JSON any more. Build the tokens again.") from None
    return index


def _map(path: Path, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """`count` numbers in a file, mapped read-only. An empty file cannot be mapped."""
    _require_size(path, count * dtype.itemsize)
    if not count:
        return np.zeros(0, dtype=dtype)
    mapped = np.memmap(path, dtype=dtype, mode="r")
    return mapped.view(np.ndarray)  # a slice of it takes a tenth of the time


def _require_size(path: Path, expected: int) -> None:
    """Raises CorruptFile where the file does not have `expected` bytes."""
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        what = "is missing" if size is None else f"has {size} bytes"
        raise CorruptFile(f"{path} {what}, and index.json says {expected}. Build the tokens again.")
