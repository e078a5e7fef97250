"""How the bytes of a data file become lines of text or rows: one reader for every format and
compression.

The name's ending, in any case, says which it is. Where a file lies (a folder, an archive) is
`location.py`'s.
"""

from __future__ import annotations

import bz2
import codecs
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
from gpt_model.data.archives import RATIO, SMALL
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


CHUNK = 1 << 20  # bytes read at a time


class UnreadableRow(UserError):
    """A row of a file that cannot be read, or lacks what is read of it. `reason`: a few words to
    count by, the same for all of its kind; `rows`: how many rows it stands for.
    """

    def __init__(self, where: str, problem: str, reason: str, rows: int = 1) -> None:
        super().__init__(f"{where}: {problem}")
        self.where, self.problem, self.reason, self.rows = where, problem, reason, rows


class MissingColumn(UnreadableRow):
    """A file lacks a column that is read."""

    def __init__(self, where: str, column: str, row: Row) -> None:
        problem = f"there is no column {column!r}. Columns found: {', '.join(map(str, row))}."
        super().__init__(where, problem, f"no column {column!r}")
        self.column = column


Reject = Callable[[UnreadableRow], None]  # what becomes of a row that cannot be used


def refuse(row: UnreadableRow) -> None:
    """One such row refuses the whole file."""
    raise row


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


def _chunks(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """The contents, decompressed, a chunk at a time. Raises UserError at damage, and where they are
    so many times the file's own size that it is made to fill a memory.
    """
    compressed, size = bool(_endings(name)[1]), 0
    with _damage_named(name):
        contents = decompressed(stream, name)
        while chunk := contents.read(CHUNK):
            size += len(chunk)
            if compressed and size > max(SMALL, RATIO * stream.tell()):
                raise UserError(
                    f"{name} is refused: it holds more than {RATIO} times its own size. Text is "
                    "compressed 3 to 20 times; decompress the file where it is what it should be."
                )
            yield chunk


def _contents(stream: BinaryIO, name: str) -> bytes:
    return b"".join(_chunks(stream, name))


def read_lines(stream: BinaryIO, name: str, errors: str = "strict") -> Iterator[str]:
    """The lines of a text file, each with its "\n", whichever of "\r\n", "\r" and "\n" ends them.
    Raises UserError at a byte that is not UTF-8, naming file and offset, unless `errors`, as of
    `bytes.decode`, asks otherwise.
    """
    utf8: Any = codecs.getincrementaldecoder("utf-8-sig")(errors)
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    offset, begun = 0, []  # `begun`: the parts of a line that goes on
    for chunk in chain(_chunks(stream, name), [b""]):
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            position = offset + len(chunk) - len(error.object) + error.start
            utf16 = error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            raise UserError(
                f"{name}: byte {position} (0x{error.object[error.start]:02x}) is not UTF-8. "
                f"{'It begins as UTF-16 does. ' if utf16 and not position else ''}"
                "Convert the file to UTF-8."
            ) from None
        offset += len(chunk)
        head, newline, rest = text.partition("\n")
        begun.append(head)
        if newline:
            yield f"{''.join(begun)}\n"
            whole, newline, last = rest.rpartition("\n")
            yield from io.StringIO(whole + newline)
            begun = [last]
    if line := "".join(begun):
        yield line


def read_rows(
    stream: BinaryIO,
    name: str,
    columns: Sequence[str] = (),
    *,
    format_: Format | None = None,
    header: Sequence[str] | None = None,
    yaml_strings: bool = False,
    reject: Reject = refuse,
) -> Iterator[Row]:
    """The rows of a file, each with at least `columns`. Plain text has a row a line, of the only
    column.

    `format_`: where the name does not say it. `header`: the column names of a csv or tsv file whose
    first line is a row. `yaml_strings`: a YAML scalar such as Yes or 42 stays a string. `reject` is
    given each row that cannot be used, in its turn. Raises UserError naming file, line and column.
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
        yield from _parquet_rows(stream, name, columns, reject)
    elif format_ in ("csv", "tsv"):
        yield from _delimited_rows(stream, name, columns, format_, header, reject)
    elif format_ == "yaml":
        yield from _yaml_rows(stream, name, columns, yaml_strings, reject)
    else:
        yield from _json_rows(stream, name, columns, format_, reject)


def _lines_of_rows(stream: BinaryIO, name: str, reject: Reject) -> Iterator[str]:
    """The lines of a file of rows. Where bad rows are left out, a byte that is not UTF-8 is bad for
    its row alone: it becomes half a surrogate pair, which no text may hold.
    """
    return read_lines(stream, name, "strict" if reject is refuse else "surrogateescape")


def _json_rows(
    stream: BinaryIO, name: str, columns: Sequence[str], format_: Format, reject: Reject
) -> Iterator[Row]:
    """An object a line. A .json file may be one list of them, which is then held whole."""
    lines = enumerate(_lines_of_rows(stream, name, reject), 1)
    first = next(((number, line) for number, line in lines if line.strip()), (1, ""))
    if format_ == "json" and first[1].lstrip().startswith("["):
        try:
            objects = _json(first[1] + "".join(line for _, line in lines))
        except ValueError as error:
            raise UserError(
                f"{name} is not JSON ({error}). Expected a list of objects, or one object a line."
            ) from None
        yield from _mappings(objects, name, columns, reject)
        return
    for number, line in chain([first], lines):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = _json(line)
        except ValueError as error:
            problem = f"not JSON ({error}). Expected one JSON object a line."
            reject(UnreadableRow(where, problem, "not JSON"))
            continue
        if isinstance(row, dict):
            yield from _with_columns(row, columns, where, reject)
        else:
            problem = f"expected a JSON object, found {type(row).__name__}."
            reject(UnreadableRow(where, problem, "no JSON object"))


def _json(text: str) -> Any:
    """`text`, parsed. Raises ValueError where it is not JSON, or nested too deep for anybody."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError:  # an integer of more digits than Python converts
        return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> float:
    """An integer; one of thousands of digits, which no column that is read holds, as infinity."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def _yaml_rows(
    stream: BinaryIO, name: str, columns: Sequence[str], strings: bool, reject: Reject
) -> Iterator[Row]:
    """A list of mappings, or one mapping, which is one row."""
    try:
        text = _contents(stream, name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: byte {error.start} is not UTF-8. Convert it to UTF-8.") from None
    content = yaml_reader.load_rows(text, name, strings=strings)
    rows = content if isinstance(content, list) else [content]
    yield from _mappings(rows, name, columns, reject)


def _mappings(rows: list[Any], name: str, columns: Sequence[str], reject: Reject) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        where = f"{name}, row {number}"
        if isinstance(row, dict):
            yield from _with_columns(row, columns, where, reject)
        else:
            problem = f"expected a mapping, found {type(row).__name__}."
            reject(UnreadableRow(where, problem, "no mapping"))


def _with_columns(row: Row, columns: Sequence[str], where: str, reject: Reject) -> Iterator[Row]:
    """`row`, where it has the columns."""
    try:
        require_columns(row, columns, where)
    except MissingColumn as problem:
        reject(problem)
    else:
        yield row


def _delimited_rows(
    stream: BinaryIO,
    name: str,
    columns: Sequence[str],
    format_: Format,
    header: Sequence[str] | None,
    reject: Reject,
) -> Iterator[Row]:
    """A tsv file has no quoting: a tab always ends a field."""
    tabs = format_ == "tsv"
    reader = csv.DictReader(
        _lines_of_rows(stream, name, reject),
        header,
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    try:
        width = len(reader.fieldnames or [])
    except csv.Error as error:
        raise UserError(f"{name}, line 1: this is not valid {format_} ({error}).") from None
    number = 0
    while True:
        number, lines_before = number + 1, reader.reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"this is not valid {format_} ({error})."
            if "unexpected end" in str(error):  # all that follows a quote is in this row
                raise UserError(
                    f"{name}, line {lines_before + 1}: a quote that begins in this row is not "
                    "closed. Close it, or double it where it is text."
                ) from None
            line = reader.reader.line_num
            where, lines = f"{name}, line {line}", line - lines_before
            reject(UnreadableRow(where, problem, f"not valid {format_}", lines))
            continue
        where = f"{name}, row {number}"
        if None in row:
            problem = f"more fields than the {width} columns. Mend the row, or `header`."
            reject(UnreadableRow(where, problem, "more fields than columns"))
        else:
            yield from _with_columns(row, columns, where, reject)


def _parquet_rows(
    stream: BinaryIO, name: str, columns: Sequence[str], reject: Reject
) -> Iterator[Row]:
    """With no `columns`, all there are."""
    import pyarrow.parquet  # slow to import, and most files are not parquet

    if _endings(name)[1] or not stream.seekable():
        stream = io.BytesIO(_contents(stream, name))
    try:
        file = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
        require_columns(dict.fromkeys(file.schema_arrow.names), columns, name)
        rows_before = 0
        for batch in file.iter_batches(batch_size=1024, columns=list(columns) or None):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                yield from _rows_in_utf8(batch, name, rows_before, reject)
            else:
                yield from rows
            rows_before += batch.num_rows
    except UserError:
        raise
    # what pyarrow raises for damage has no common base: its own errors, OSError, KeyError, …
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{name} is not a parquet file that can be read ({reason}). Put a whole copy in its "
            "place."
        ) from None


def _rows_in_utf8(batch: Any, name: str, rows_before: int, reject: Reject) -> Iterator[Row]:
    """The rows of a parquet batch whose text is UTF-8. `rows_before`: of the file, before it."""
    for index in range(batch.num_rows):
        row = {}
        for column, values in zip(batch.schema.names, batch.columns, strict=True):
            try:
                row[column] = values[index].as_py()
            except UnicodeDecodeError as error:
                byte = f"byte {error.start} (0x{error.object[error.start]:02x})"
                problem = (
                    f"column {column!r}, {byte} is not UTF-8. Write the file again with its text "
                    "in UTF-8."
                )
                where = f"{name}, row {rows_before + index + 1}"
                reject(UnreadableRow(where, problem, "not UTF-8"))
                break
        else:
            yield row


def require_columns(row: Row, columns: Sequence[str], where: str) -> None:
    """Raises MissingColumn where `row` lacks one. `where`: file and line, for the message."""
    for column in columns:
        if column not in row:
            raise MissingColumn(where, column, row)
