"""How the bytes of a data file become lines of text or rows: one reader for every format and
compression.

The name's ending, in any case, says which it is. Where a file lies (a folder, an archive) is
`location.py`'s.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import PurePath
from typing import Any, BinaryIO, Literal

import zstandard

from gpt_model import yaml_reader
from gpt_model.errors import UserError

Row = Mapping[str, Any]
RowFormat = Literal["jsonl", "csv", "tsv", "yaml", "parquet"]
Format = Literal["text", "json", RowFormat]

ENDINGS: dict[str, Format] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",  # one list of objects, or an object a line
    ".csv": "csv",
    ".tsv": "tsv",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".parquet": "parquet",
}
ROW_ENDINGS = ", ".join(ending for ending, format_ in ENDINGS.items() if format_ != "text")

csv.field_size_limit(2**31 - 1)  # a field may be a whole document; the default is 128 KiB


class MissingColumn(UserError):
    """A file lacks a column that is read."""

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message)
        self.column = column


def format_from_ending(name: str) -> Format | None:
    """The format that a file's name says, compression apart; None where it says none."""
    return ENDINGS.get(_endings(name)[0])


def format_of(name: str, declared: Format | None = None) -> Format:
    """`declared`, else what the name says. Raises UserError where it says none."""
    format_ = format_from_ending(name)
    if declared == "jsonl" and format_ == "json":
        return "json"
    if declared or format_:
        return declared or format_  # type: ignore[return-value]
    ending = _endings(name)[0]
    problem = f"ends in {ending}" if ending else "has no ending"
    raise UserError(
        f"The name {PurePath(name).name} {problem}, which does not say how the file is written. "
        f"Names that end in {', '.join(ENDINGS)} are read, also with {', '.join(_OPENERS)} behind: "
        "rename the file, or add `format` where the source takes one.",
        field="format",
    )


def _endings(name: str) -> tuple[str, str]:
    """(ending of the format, ending of the compression), in lower case; "" where there is none."""
    path = PurePath(name.lower())
    if path.suffix in _OPENERS:
        return PurePath(path.stem).suffix, path.suffix
    return path.suffix, ""


def decompressed(stream: BinaryIO, name: str) -> BinaryIO:
    """`stream` without the compression that the name says."""
    opener = _OPENERS.get(_endings(name)[1])
    return opener(stream) if opener else stream


class _Zstd(io.RawIOBase):
    """The contents of a .zst file of one or more frames. zstandard's reader takes a file cut short
    for one that ends there.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready = b""
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


_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".zst": lambda stream: io.BufferedReader(_Zstd(stream), 1 << 17),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise UserError(
            f"{name} is damaged or cut short ({error}). Put a whole copy in its place."
        ) from None


def _contents(stream: BinaryIO, name: str) -> bytes:
    with _damage_named(name):
        return decompressed(stream, name).read()


def read_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines of a text file, each with its "\\n". Raises UserError at a byte that is not UTF-8,
    naming file and offset.
    """
    offset = 0
    with _damage_named(name):
        for raw in decompressed(stream, name):
            try:
                text = raw.decode("utf-8-sig" if offset == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{name}: byte {offset + error.start} (0x{raw[error.start]:02x}) is not UTF-8. "
                    "Convert the file to UTF-8."
                ) from None
            offset += len(raw)
            yield text.replace("\r\n", "\n")


def read_rows(
    stream: BinaryIO,
    name: str,
    columns: Sequence[str] = (),
    *,
    format_: Format | None = None,
    header: Sequence[str] | None = None,
    yaml_strings: bool = False,
) -> Iterator[Row]:
    """The rows of a file, each with at least `columns`. Plain text has a row a line, of the only
    column.

    `format_`: where the name does not say it. `header`: the column names of a csv or tsv file whose
    first line is a row. `yaml_strings`: a YAML scalar such as Yes or 42 stays a string. Raises
    UserError naming file, line and column.
    """
    format_ = format_of(name, format_)
    if header is not None and format_ not in ("csv", "tsv"):
        raise UserError(
            f"{name} is {format_}, which names its own columns: leave `header` out.", field="header"
        )
    if format_ == "text":
        if len(columns) != 1:
            raise UserError(
                f"{name} is plain text, which has no columns. Give a file of rows "
                f"({ROW_ENDINGS}), or add `format`, which says how its rows are written.",
                field="format",
            )
        yield from ({columns[0]: line.removesuffix("\n")} for line in read_lines(stream, name))
    elif format_ == "parquet":
        yield from _parquet_rows(stream, name, columns)
    elif format_ in ("csv", "tsv"):
        yield from _delimited_rows(stream, name, columns, format_, header)
    elif format_ == "yaml":
        yield from _yaml_rows(stream, name, columns, yaml_strings)
    else:
        yield from _json_rows(stream, name, columns, format_)


def _json_rows(
    stream: BinaryIO, name: str, columns: Sequence[str], format_: Format
) -> Iterator[Row]:
    """An object a line. A .json file may be one list of them, which is then held whole."""
    lines = enumerate(read_lines(stream, name), 1)
    first = next(((number, line) for number, line in lines if line.strip()), (1, ""))
    if format_ == "json" and first[1].lstrip().startswith("["):
        try:
            objects = json.loads(first[1] + "".join(line for _, line in lines))
        except ValueError as error:
            raise UserError(
                f"{name} is not JSON ({error}). Expected a list of objects, or one object a line."
            ) from None
        yield from _mappings(objects, name, columns)
        return
    for number, line in chain([first], lines):
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
        require_columns(row, columns, f"{name}, line {number}")
        yield row


def _yaml_rows(stream: BinaryIO, name: str, columns: Sequence[str], strings: bool) -> Iterator[Row]:
    """A list of mappings, or one mapping, which is one row."""
    try:
        text = _contents(stream, name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: byte {error.start} is not UTF-8. Convert it to UTF-8.") from None
    content = yaml_reader.load_rows(text, name, strings=strings)
    yield from _mappings(content if isinstance(content, list) else [content], name, columns)


def _mappings(rows: list[Any], name: str, columns: Sequence[str]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{name}, row {number}: expected a mapping, found {type(row).__name__}."
            )
        require_columns(row, columns, f"{name}, row {number}")
        yield row


def _delimited_rows(
    stream: BinaryIO,
    name: str,
    columns: Sequence[str],
    format_: Format,
    header: Sequence[str] | None,
) -> Iterator[Row]:
    """A tsv file has no quoting: a tab always ends a field."""
    tabs = format_ == "tsv"
    reader = csv.DictReader(
        read_lines(stream, name),
        header,
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    try:
        for number, row in enumerate(reader, 1):
            if None in row:
                width = len(reader.fieldnames or [])
                raise UserError(
                    f"{name}, row {number}: more fields than the {width} columns. "
                    "Mend the row, or `header`."
                )
            require_columns(row, columns, f"{name}, row {number}")
            yield row
    except csv.Error as error:
        raise UserError(
            f"{name}, line {reader.line_num}: this is not valid {format_} ({error})."
        ) from None


def _parquet_rows(stream: BinaryIO, name: str, columns: Sequence[str]) -> Iterator[Row]:
    """With no `columns`, all there are."""
    import pyarrow  # slow to import, and most files are not parquet
    import pyarrow.parquet

    if _endings(name)[1] or not stream.seekable():
        stream = io.BytesIO(_contents(stream, name))
    try:
        file = pyarrow.parquet.ParquetFile(stream)
        require_columns(dict.fromkeys(file.schema_arrow.names), columns, name)
        rows_before = 0
        for batch in file.iter_batches(batch_size=1024, columns=list(columns) or None):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                raise UserError(
                    f"{name}, {_not_utf8(batch, rows_before)} is not UTF-8. "
                    "Write the file again with its text in UTF-8."
                ) from None
            yield from rows
            rows_before += len(rows)
    except pyarrow.ArrowException as error:
        raise UserError(f"{name} is not a parquet file that can be read ({error}).") from None


def _not_utf8(batch: Any, rows_before: int) -> str:
    """Where a parquet batch's text is not UTF-8. `rows_before`: of the file, before this batch."""
    for column, values in zip(batch.schema.names, batch.columns, strict=True):
        for row, value in enumerate(values, start=rows_before + 1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                return f"row {row}: column {column!r}, byte {error.start} (0x{byte:02x})"
    raise AssertionError("one of its values could not be decoded")


def require_columns(row: Row, columns: Sequence[str], where: str) -> None:
    """Raises MissingColumn where `row` lacks one. `where`: file and line, for the message."""
    for column in columns:
        if column not in row:
            raise MissingColumn(
                f"{where}: there is no column {column!r}. Columns found: {', '.join(row)}.", column
            )
