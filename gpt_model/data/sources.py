"""A corpus's sources: what a recipe says of one, and how its files or rows become documents.

A file or row is a *text*; texts may be joined (`group`) and divided (`documents`) into documents,
then cleaned. Where the files lie is `location.py`'s, what is held out `splits.py`'s, how documents
lie on disk `documents.py`'s.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from gpt_model.data.formats import (
    ROW_ENDINGS,
    RowFormat,
    UnreadableRow,
    format_of,
    read_lines,
    read_rows,
)
from gpt_model.data.local_files import Reading
from gpt_model.data.location import Location, SourceEntry, hub_rows, open_files, resolve
from gpt_model.data.skipped_rows import LeftOut
from gpt_model.errors import UserError
from gpt_model.progress import Progress
from gpt_model.strict import Bounds, Count, HeldOut, Strict, Weight, Whole

MALFORMED = 0.001  # share of a source's rows
SYSTEMATIC = 1000  # rows from the first on that cannot be read: then the mistake is not in a row

# What the papers trained on, or its public stand-in. `datasets` refuses a commit with a loading
# script (since version 4); a script-based set's data is then on its branch refs/convert/parquet, as
# one configuration without a name.
NAMED: dict[str, dict[str, Any]] = {
    # GPT-1's; the hub's copy is one sentence a row without book boundaries, so a document is a run
    # of sentences. Script-based (bookcorpus.py), hence the branch.
    "BooksCorpus": {
        "hub": "bookcorpus/bookcorpus",
        "revision": "refs/convert/parquet",
        "text": "text",
        "group": 256,
        "licence": "unknown",
    },
    # GPT-2's WebText, rebuilt from the same links. Parquet under data/ since November 2024, but
    # openwebtext.py long stood beside it: pin a commit without that (its discussion 22 proposes
    # one). Of a set so large the converted branch may hold the beginning only.
    "OpenWebText": {
        "hub": "Skylion007/openwebtext",
        "text": "text",
        "licence": "CC0-1.0 (the collection)",
    },
    # these two are parquet: any commit of their main branch
    "FineWeb-Edu": {
        "hub": "HuggingFaceFW/fineweb-edu",
        "config": "sample-10BT",
        "text": "text",
        "licence": "ODC-By-1.0",
    },
    "Wikipedia": {
        "hub": "wikimedia/wikipedia",
        "config": "20231101.en",
        "text": "text",
        "licence": "CC-BY-SA-3.0 and GFDL",
    },
}


class Separated(Strict):
    """Documents with a mark of the text's own between them."""

    separator: str = Field(min_length=1, description='such as "<|endoftext|>"')


class Source(SourceEntry):
    """One entry of a recipe's `corpus.sources`: exactly one of `package`, `path`, `hub` or `named`,
    and how it becomes documents.
    """

    SHORTHANDS: ClassVar = ("named",)

    weight: Weight = Field(
        default=1.0, description="share of the training tokens, relative to the other sources'"
    )
    held_out: HeldOut | None = Field(
        default=None, description="share of documents; default: the corpus's"
    )

    format: Literal["text", RowFormat] | None = Field(
        default=None, description="how its files are written, where their names do not end in it"
    )
    header: list[str] | None = Field(
        default=None, description="column names, for a csv or tsv file whose first line is a row"
    )

    named: str | None = Field(
        default=None, description=f"one of {', '.join(NAMED)}: fills in hub, config, text, licence"
    )

    text: str | None = Field(
        default=None,
        description="the column that holds the text, where there are rows; default: text",
    )
    group: Count | list[str] | None = Field(
        default=None,
        description="rows joined to one text: so many, or while these columns stay the same",
    )
    malformed: Whole | None = Field(
        default=None,
        description="share of rows, rounded up to a row, that may be no text and are left out; "
        f"default: {MALFORMED:g}",
    )
    documents: Literal["whole", "lines", "paragraphs", "headings"] | Separated = Field(
        default="whole", description="how a text is divided"
    )
    clean: Literal["markdown"] | None = Field(
        default=None, description="markup taken out of each document"
    )
    together: str | None = Field(
        default=None,
        min_length=1,
        description="documents alike up to this mark stay on one side of the split",
    )
    minimum: Count = Field(default=1, description="characters; shorter documents are left out")
    limit: Count | None = Field(default=None, description="documents; the first so many")
    limit_gb: (
        Annotated[float, Bounds(0, 10**6, "no collection is larger", above=True, unit="GB")] | None
    ) = Field(
        default=None,
        description="10^9 bytes of text (UTF-8): the first documents of at most so many, so that a "
        "mixture need not store what it never draws",
        exclude_if=lambda limit: limit is None,
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_named(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("named") is None:
            return data
        if not isinstance(data["named"], str):
            return data  # the field's own check says so
        if data["named"] not in NAMED:
            raise ValueError(f"named {data['named']!r} is not known; there are {', '.join(NAMED)}")
        return {**NAMED[data["named"]], **data}

    @model_validator(mode="after")
    def _groups_hold_rows(self) -> Source:
        if isinstance(self.group, int) and self.group < 2:
            raise ValueError(f"group is {self.group}: give at least 2 rows, or leave it out")
        return self

    @property
    def local(self) -> bool:
        """Whether it is files on this machine, which are pinned by their bytes and may grow."""
        return self.path is not None or self.location_is_folder()

    def columns(self) -> list[str]:
        """The columns its rows must have: the text's first."""
        return [self.text or "text", *(self.group if isinstance(self.group, list) else [])]


@dataclass
class SourceReport:
    """What became of a source's rows."""

    rows: int = 0
    blank: int = 0  # texts of whitespace alone: no document
    left_out: LeftOut = field(default_factory=LeftOut)
    first: UserError | None = None  # what is wrong with the first that was left out

    def reject(self, row: UnreadableRow) -> None:
        """Leaves a row out. Raises it where no row before it could be read either."""
        self.rows += row.rows
        self.first = self.first or row
        self.left_out.add(row.reason, row.where, row.problem, row.rows)
        if self.rows >= SYSTEMATIC:
            self._raise_if_none_is_left()

    def check(self, allowed: float) -> None:
        """Raises UserError where more than the `allowed` share was left out."""
        self._raise_if_none_is_left()
        left_out = self.left_out.total()
        if left_out > math.ceil(allowed * self.rows):
            raise UserError(
                f"{left_out:,} of {self.rows:,} rows cannot be used, more than the share of "
                f"{allowed:g} that `malformed` allows: {self.left_out.reasons()}. Mend them, or "
                "allow more.",
                field="malformed",
            )

    def _raise_if_none_is_left(self) -> None:
        if self.first and self.left_out.total() == self.rows:
            raise self.first


def open_source(
    source: Source,
    downloads: Path,
    base: Path,
    progress: Progress,
    report: SourceReport | None = None,
) -> Iterator[str]:
    """The documents of a source, one at a time and in a fixed order, without whitespace at their
    ends. Rows that are no text are left out, and counted in `report`.

    Raises UserError, naming the file, where one is missing, damaged, not UTF-8 or lacks a column,
    where more rows than `malformed` allows are left out, and where there is no document.
    """
    report = report or SourceReport()
    location = source.location()
    if location.path is not None and location.pinned is None:
        location = resolve(location, base, downloads)
    with Reading(base, downloads) as reading:
        documents = (
            _clean(document, source.clean)
            for text in _texts(source, location, reading, progress, report)
            for document in _divided(text, source.documents)
        )
        long_enough = (document for document in documents if len(document) >= source.minimum)
        first = next(long_enough, None)
        if first is None:
            report.check(1.0)
            raise UserError(
                f"Source {source.name!r} holds no document of {source.minimum} characters or more: "
                "check its files and `minimum`."
            )
        read = islice(chain([first], long_enough), source.limit)
        yield from read if source.limit_gb is None else _within(read, source.limit_gb * 1e9)
        report.check(MALFORMED if source.malformed is None else source.malformed)


def _within(documents: Iterable[str], limit: float) -> Iterator[str]:
    """The first documents of at most `limit` bytes together, and at least one."""
    size = 0
    for document in documents:
        more = len(document.encode())
        if size and size + more > limit:
            return
        size += more
        yield document


# one text as its lines, each with its "\n", so that a file is never held whole unless it is one
# document
Text = Iterable[str]


def _texts(
    source: Source, location: Location, reading: Reading, progress: Progress, report: SourceReport
) -> Iterator[Text]:
    columns = source.columns()
    if location.hub is not None:
        rows = hub_rows(location, columns, reading)
        yield from _grouped(rows, source, location.hub, report)
        return
    for name, stream in open_files(location, reading, progress):
        if format_of(name, location.format) != "text":
            rows = read_rows(
                stream,
                name,
                columns,
                format_=location.format,
                header=location.header,
                reject=report.reject,
            )
            yield from _grouped(rows, source, name, report)
        elif source.text is not None or source.group is not None:
            raise UserError(
                f"{name} is plain text without columns: leave `text` and `group` out, or name a "
                f"{ROW_ENDINGS} file."
            )
        else:
            yield read_lines(stream, name)


def _grouped(
    rows: Iterable[Mapping[str, Any]], source: Source, name: str, report: SourceReport
) -> Iterator[Text]:
    """The text column of `rows`; where rows go together, theirs with a line break between."""
    texts = _rows_with_text(rows, source.columns()[0], name, report)
    if source.group is None:
        yield from (io.StringIO(text) for _, text in texts)
    elif isinstance(source.group, int):
        while group := list(islice(texts, source.group)):
            yield io.StringIO("\n".join(text for _, text in group))
    else:
        keys = source.group
        for _, same_keys in groupby(texts, key=lambda pair: [pair[0][key] for key in keys]):
            yield io.StringIO("\n".join(text for _, text in same_keys))


def _rows_with_text(
    rows: Iterable[Mapping[str, Any]], column: str, name: str, report: SourceReport
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """(row, its text, each line ended by "\n") of the rows that have one."""
    rows_before = report.rows
    for row in rows:
        try:
            text = _text_of(row, column, f"{name}, row {report.rows - rows_before + 1}")
        except UnreadableRow as problem:
            report.reject(problem)
            continue
        report.rows += 1
        report.blank += not text or text.isspace()
        yield row, text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _text_of(row: Mapping[str, Any], column: str, where: str) -> str:
    """The text in a column. Raises UnreadableRow where there is none that can be written."""
    text = row[column]
    if text is None:
        raise UnreadableRow(where, f"column {column!r} is empty, expected text.", "no text")
    if not isinstance(text, str):
        problem = f"column {column!r} holds {type(text).__name__}, expected text."
        raise UnreadableRow(where, problem, "not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # A byte that is not UTF-8 (`formats.py`), or JSON's escapes, which can spell half of a pair
        byte = ord(text[error.start]) - 0xDC00
        what, reason = (
            (f"a byte (0x{byte:02x}) that is not UTF-8", "not UTF-8")
            if 0x80 <= byte <= 0xFF
            else ("half a character (a lone surrogate)", "half a character")
        )
        problem = f"column {column!r} holds {what} at {error.start}."
        raise UnreadableRow(where, problem, reason) from None
    return text


def _divided(text: Text, how: str | Separated) -> Iterator[str]:
    """A text's documents, in order and with nothing left out but blank lines and separators."""
    if isinstance(how, Separated):
        yield from _by_separator(text, how.separator)
    elif how == "whole":
        yield "".join(text)
    elif how == "lines":
        yield from text
    elif how == "paragraphs":
        for blank, paragraph in groupby(text, key=lambda line: not line.strip()):
            if not blank:
                yield "".join(paragraph)
    else:
        yield from _by_heading(text)


def _by_heading(text: Text) -> Iterator[str]:
    """Each Markdown heading opens a document; headings with nothing between them (title, act,
    scene) stand over the same one.
    """
    document: list[str] = []
    body = False
    for line in text:
        heading = _HEADING.match(line) is not None
        if heading and body:
            yield "".join(document)
            document, body = [], False
        document.append(line)
        body = body or not (heading or line.isspace())
    if document:
        yield "".join(document)


def _by_separator(text: Text, separator: str) -> Iterator[str]:
    """What stands between two separators, which may begin and end within a line, or be several."""
    document: list[str] = []
    seen = ""  # the end of the text so far, in which a separator may have begun
    for line in text:
        document.append(line)
        seen += line
        if separator in seen:
            *whole, seen = "".join(document).split(separator)
            yield from whole
            document = [seen]
        seen = seen[len(seen) - len(separator) + 1 :] if len(seen) >= len(separator) else seen
    yield "".join(document)


_HEADING = re.compile(r"#{1,6}\s")
# emphasis within a line, a lone mark at its start (stage directions over several lines), heading
# marks, escapes, hard breaks
_MARKUP = [
    (re.compile(r"^#{1,6}\s+", re.M), ""),
    (re.compile(r"(?<!\\)(\*{1,2})(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<![\w\\])_|(?<!\\)_(?!\w)"), ""),
    (re.compile(r"\\([\[\]._*#-])"), r"\1"),
    (re.compile(r"[ \t]+$", re.M), ""),
]


def _clean(document: str, markup: str | None) -> str:
    if markup == "markdown":
        for pattern, replacement in _MARKUP:
            document = pattern.sub(replacement, document)
    return document.strip()
