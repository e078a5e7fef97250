"""Files of text: which a glob names, tying them to their bytes, and reading texts or rows out of
one by its name's ending.

.jsonl, .json and .parquet hold rows; anything else is text. Each may be compressed (.gz, .zst).
Where a file comes from (a folder, an archive) is the caller's.
"""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import zstandard

from gpt_model.errors import UserError
from gpt_model.strict import Strict

ROWS = (".jsonl", ".json", ".parquet")


class NoColumn(UserError):
    """A file lacks a column that is read."""

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message)
        self.column = column


class PinnedFile(Strict):
    """A local file tied to its bytes: its name as the recipe sees it, never an absolute path."""

    path: str
    sha256: str
    bytes: int


def find(pattern: str, base: Path) -> list[Path]:
    """The files a glob relative to `base` names, sorted, hidden ones left out. Raises UserError
    where there is none.
    """
    root, relative = _rooted(pattern, base)
    if (root / relative).is_dir():
        raise UserError(
            f"{pattern} is a folder: say which files in it, e.g. {pattern.rstrip('/')}/**/*.txt."
        )
    names = glob.glob(relative, root_dir=root, recursive=True)  # noqa: PTH207 - Path.glob would take hidden files too
    found = [path for name in sorted(names) if (path := root / name).is_file()]
    if not found:
        raise UserError(
            f"No file is named by {pattern!r}, looked for from {base}. Correct the path, or put the text there."
        )
    return found


def _rooted(pattern: str, base: Path) -> tuple[Path, str]:
    """A folder and a glob below it: the recipe's folder, or for an absolute glob the one where its
    wildcards begin.
    """
    path = Path(pattern).expanduser()
    if not path.is_absolute():
        return base, pattern
    folder = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
    return folder, str(path.relative_to(folder))


def pin(pattern: str, base: Path, downloads: Path) -> list[PinnedFile]:
    """The files a glob names, each with its sha256, which is computed again only where size or time
    of change differ.

    Leaves a note under `downloads` of where each content was seen, which `locate` reads.
    """
    root, _ = _rooted(pattern, base)
    pinned = []
    for path in find(pattern, base):
        digest, size = _digest(path, downloads)
        _write(downloads / "local" / digest, str(path.resolve()))
        pinned.append(PinnedFile(path=path.relative_to(root).as_posix(), sha256=digest, bytes=size))
    return pinned


def locate(file: PinnedFile, base: Path, downloads: Path) -> Path:
    """Where the bytes of a pinned file are. Raises UserError where they are no more."""
    note = downloads / "local" / file.sha256
    places = [
        base / file.path,
        *([Path(note.read_text(encoding="utf-8"))] if note.is_file() else []),
    ]
    for path in places:
        if path.is_file() and _digest(path, downloads)[0] == file.sha256:
            return path
    raise UserError(
        f"{file.path} is no longer the file that was pinned (sha256 {file.sha256}). Run again to use it as it is now."
    )


def _digest(path: Path, downloads: Path) -> tuple[str, int]:
    """A file's sha256, and of how many bytes it is: it may be growing."""
    status = path.stat()
    seen = f"{status.st_size} {status.st_mtime_ns}"
    note = downloads / "local" / "seen" / hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    known = note.read_text(encoding="utf-8").rpartition(" ") if note.is_file() else ("", "", "")
    if known[0] == seen:
        return known[2], status.st_size
    with path.open("rb") as file:
        digest, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    if size == status.st_size:
        _write(note, f"{seen} {digest}")
    return digest, size


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def has_rows(name: str) -> bool:
    return Path(name.removesuffix(".gz").removesuffix(".zst")).suffix in ROWS


def decompressed(stream: BinaryIO, name: str) -> BinaryIO:
    if name.endswith(".gz"):
        return cast("BinaryIO", gzip.GzipFile(fileobj=stream))
    if name.endswith(".zst"):
        return cast("BinaryIO", io.BufferedReader(_Zstd(stream), 1 << 17))
    return stream


class _Zstd(io.RawIOBase):
    """The contents of a .zst file of one or more frames. zstandard's own reader takes a file cut
    short for one that ends there.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._frame, self._ready = (
            stream,
            zstandard.ZstdDecompressor().decompressobj(),
            b"",
        )
        self._begun = False  # is a frame open?

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            compressed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._begun = zstandard.ZstdDecompressor().decompressobj(), False
            compressed = compressed or self._stream.read(1 << 14)
            if not compressed:
                if self._begun:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            self._begun = True
            self._ready = self._frame.decompress(compressed)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines of a text file, each with its "\\n". Raises UserError at a byte that is not UTF-8,
    naming file and offset.
    """
    offset = 0
    try:
        for raw in decompressed(stream, name):
            try:
                text = raw.decode("utf-8-sig" if offset == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{name}: byte {offset + error.start} (0x{raw[error.start]:02x}) is not UTF-8. Convert the file to UTF-8."
                ) from None
            offset += len(raw)
            yield text.replace("\r\n", "\n")
    except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise UserError(
            f"{name} is damaged or cut short ({error}). Put a whole copy in its place."
        ) from None


def rows(stream: BinaryIO, name: str, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of a JSON-lines or parquet file, each with at least `columns`. Raises UserError
    naming file, line and column.
    """
    bare = name.removesuffix(".gz").removesuffix(".zst")
    if bare.endswith(".parquet"):
        yield from _parquet_rows(decompressed(stream, name), name, columns)
        return
    for number, line in enumerate(lines(stream, name), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{name}, line {number}: not JSON ({error}). Expected one JSON object a line."
            ) from None
        if not isinstance(row, dict):
            raise UserError(
                f"{name}, line {number}: expected a JSON object, found {type(row).__name__}."
            )
        require(row, columns, f"{name}, line {number}")
        yield row


def delimited(
    stream: BinaryIO, name: str, tabbed: bool, header: Sequence[str] | None = None
) -> Iterator[Mapping[str, Any]]:
    """The rows of a csv file, or of a tsv file, which has no quoting: a tab always ends a field.

    `header`: the columns' names, where the first line is a row.
    """
    quoting: Literal[0, 3] = csv.QUOTE_NONE if tabbed else csv.QUOTE_MINIMAL
    reader = csv.DictReader(
        lines(stream, name), header, delimiter="\t" if tabbed else ",", quoting=quoting, strict=True
    )
    try:
        for number, row in enumerate(reader, 1):
            if None in row:
                found = len(reader.fieldnames or [])
                raise UserError(
                    f"{name}, row {number}: more fields than the {found} columns. Mend the row, or `header`."
                )
            yield row
    except csv.Error as error:
        kind = "tsv" if tabbed else "csv"
        raise UserError(
            f"{name}, line {reader.line_num}: this is not valid {kind} ({error})."
        ) from None


def _parquet_rows(
    stream: BinaryIO, name: str, columns: Sequence[str]
) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(
            stream if stream.seekable() else io.BytesIO(stream.read())
        )
        require(dict.fromkeys(file.schema_arrow.names), columns, name)
        before = 0
        for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                raise UserError(
                    f"{name}, {_not_utf8(batch, before)} is not UTF-8. Write the file again with its text in UTF-8."
                ) from None
            yield from rows
            before += len(rows)
    except pyarrow.ArrowException as error:
        raise UserError(f"{name} is not a parquet file that can be read ({error}).") from None


def _not_utf8(batch: Any, before: int) -> str:
    """Where a parquet batch's text is not UTF-8; `before`: rows of the file that come before it."""
    for column, values in zip(batch.schema.names, batch.columns, strict=True):
        for row, value in enumerate(values, start=before + 1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                return f"row {row}: column {column!r}, byte {error.start} (0x{error.object[error.start]:02x})"
    raise AssertionError("one of its values could not be decoded")


def require(row: Mapping[str, Any], columns: Sequence[str], where: str) -> None:
    for column in columns:
        if column not in row:
            raise NoColumn(
                f"{where}: there is no column {column!r}. Columns found: {', '.join(row)}.", column
            )
