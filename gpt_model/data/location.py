"""Where data lies: in a file of a package index, in local files, or in a data set of the Hugging
Face hub. One model of it, tied to its bytes by one function, read by one function.

A section that names data declares the fields it takes and derives from `Located`; its `location()`
is what everything here works on. How bytes become rows is `formats.py`'s, which local files a glob
names `local_files.py`'s, which commit a branch of the hub is at `hub.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from gpt_model.data import hub
from gpt_model.data.archives import open_members
from gpt_model.data.formats import Format, Reject, Row, read_rows, refuse, require_columns
from gpt_model.data.globs import require_few_wildcards
from gpt_model.data.local_files import PinnedFile, Reading, pin
from gpt_model.data.requirement import Kind, name_and_version
from gpt_model.errors import Unreachable, UserError, about
from gpt_model.progress import Progress
from gpt_model.strict import Strict


@dataclass(frozen=True)
class Location:
    """Where data lies: `package`, `path` or `hub` is given, and with it what its line names."""

    package: str | None = None  # name==version; with `kind`, `sha256` and `files`
    kind: Kind = "wheel"
    sha256: str = ""  # of the package file
    files: str | list[str] = ""  # globs in the package file
    path: str | None = None  # a glob of local files
    hub: str | None = None  # id of a data set, or ./folder; with `revision`, `config` and `split`
    revision: str = "main"
    config: str | None = None
    split: str = "train"
    pinned: list[PinnedFile] | None = None  # the local files that `path` or `hub` names
    format: Format | None = None  # where the files' names do not say it
    header: list[str] | None = None  # column names of csv and tsv files that have none

    @property
    def hub_folder(self) -> bool:
        """Whether `hub` is a folder on this machine that is laid out like a data set there."""
        return self.hub is not None and is_folder(self.hub)


def is_folder(hub_name: str) -> bool:
    """Whether a data set's name is a folder on this machine."""
    return hub_name.startswith((".", "/", "~"))


class Located(Strict):
    """Base of the sections that say where data lies. The fields themselves are the subclass's, so
    that each keeps its order and its defaults.
    """

    LOCATIONS: ClassVar[tuple[str, ...]] = ("package", "path", "hub")  # exactly one is given
    SHORTHANDS: ClassVar[tuple[str, ...]] = ()  # fields that stand for one of them
    GOES_WITH: ClassVar[Mapping[str, tuple[str, ...]]] = {  # field -> those it has a meaning beside
        **dict.fromkeys(("kind", "sha256", "files"), ("package",)),
        **dict.fromkeys(("revision", "config", "split"), ("hub",)),
        **dict.fromkeys(("format", "header"), ("package", "path")),
    }
    NEEDS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "package": ("sha256", "files"),
        "hub": ("revision",),
    }
    _WHY_NEEDED: ClassVar[Mapping[str, str]] = {
        "sha256": ", so that the same bytes are read every time",
        "revision": ": a commit's 40 digits, or a branch such as main",
    }

    @model_validator(mode="before")
    @classmethod
    def _path_and_file_are_one_word(cls, data: Any) -> Any:
        """Local files are a `path` in most sections, and a task's `file`: either is understood."""
        for word, other in (("path", "file"), ("file", "path")):
            if (
                isinstance(data, dict)
                and word in data
                and other not in data
                and word not in cls.model_fields
                and other in cls.model_fields
            ):
                data = {other if key == word else key: value for key, value in data.items()}
        return data

    @field_validator("sha256", check_fields=False)
    @classmethod
    def _sha256_is_hexadecimal(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{64}", value):
            raise ValueError(f"{value!r} is not 64 hexadecimal digits{cls._WHY_NEEDED['sha256']}")
        return value

    @model_validator(mode="after")
    def _exactly_one_location(self) -> Self:
        given = [name for name in self.LOCATIONS if self._is_given(name)]
        for name in given:
            if isinstance(text := getattr(self, name), str) and not text.strip():
                raise ValueError(f"{name} is empty: say what is read, or leave it out")
        if len(given) != 1:
            *others, last = *self.LOCATIONS, *self.SHORTHANDS
            raise ValueError(
                f"give exactly one of {', '.join(others)} and {last}; "
                f"found {' and '.join(given) or 'none'}"
            )
        for name, companions in self.GOES_WITH.items():
            if self._is_given(name) and not any(map(self._is_given, companions)):
                raise ValueError(
                    f"{name} goes with {' or '.join(companions)}, and this source has {given[0]}: "
                    f"leave {name} out"
                )
        for name, needed in self.NEEDS.items():
            for field in needed if self._is_given(name) else ():
                if field == "revision" and self.location_is_folder():
                    continue  # tied to its files' bytes
                if not getattr(self, field):
                    raise ValueError(
                        f"{field} is missing: a source with {name} needs it"
                        f"{self._WHY_NEEDED.get(field, '')}"
                    )
        if package := getattr(self, "package", None):
            name_and_version(package)
        return self

    def _is_given(self, name: str) -> bool:
        """Whether a field differs from its default."""
        field = type(self).model_fields.get(name)
        return field is not None and getattr(self, name) != field.default

    def location_is_folder(self) -> bool:
        """Whether its hub data set is a folder on this machine."""
        return is_folder(getattr(self, "hub", None) or "")

    def location(self) -> Location:
        """Where its data lies; empty for a task, votes, and data given on request."""
        values = {field.name: getattr(self, field.name, None) for field in fields(Location)}
        return Location(**{name: value for name, value in values.items() if value is not None})

    def resolved(self, base: Path, downloads: Path) -> Self:
        """This section with its location tied to bytes. See `resolve`."""
        return self.with_resolved(resolve(self.location(), base, downloads))

    def with_resolved(self, location: Location) -> Self:
        """This section with what `resolve` fills in."""
        revision = {"revision": location.revision} if getattr(self, "hub", None) else {}
        return self.model_copy(update={"pinned": location.pinned, **revision})


class SourceEntry(Located):
    """What an entry of a recipe's `sources` says of where its data lies, whatever it is read as."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$", description="letters, digits and _")
    licence: str = Field(
        default="not stated", min_length=1, description="of the text; stands in the scorecard"
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
    config: str | None = Field(default=None, description="the data set's configuration")
    split: str | None = Field(default=None, description="default: train")

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields that are None are left out, so that a field added later changes no fingerprint
        made before.
        """
        return {key: value for key, value in handler(self).items() if value is not None}


def resolve(location: Location, base: Path, downloads: Path) -> Location:
    """`location` tied to its bytes, for the fingerprint: local files, relative to `base`, to their
    sha256, and a branch on the hub to its commit. A package has its sha256 already.

    Cheap where no file changed: see `pin`. Raises UserError about `path` or `hub`, and Unreachable
    where the hub is asked and silent.
    """
    for pattern in [location.files] if isinstance(location.files, str) else location.files:
        with about("files"):
            require_few_wildcards(pattern)
    if location.path is not None:
        with about("path"):
            return replace(location, pinned=pin(location.path, base, downloads))
    if location.hub is None:
        return location
    if not location.hub_folder:
        revision = hub.commit_of(location.hub, location.revision, "dataset")
        return replace(location, revision=revision)
    with about("hub"):
        pattern = f"{location.hub.rstrip('/')}/**/*"
        return replace(location, pinned=pin(pattern, base, downloads))


def tables(
    location: Location,
    columns: Sequence[str],
    base: Path,
    downloads: Path,
    progress: Progress,
    *,
    yaml_strings: bool = False,
    reject: Reject = refuse,
) -> Iterator[tuple[str, Iterator[Row]]]:
    """(name, rows) of each file of a resolved location, or of its one split on the hub, in a fixed
    order. Every row has at least `columns`.

    `base` is where relative paths are seen from; what is pinned is found by its content from
    anywhere. `reject` is given each row that cannot be used. Raises UserError, naming the file,
    where one is missing, damaged, or of a format that nothing says.
    """
    with Reading(base, downloads) as reading:
        if location.hub is not None:
            yield location.hub, hub_rows(location, columns, reading)
            return
        for name, stream in open_files(location, reading, progress):
            yield (
                name,
                read_rows(
                    stream,
                    name,
                    columns,
                    format_=location.format,
                    header=location.header,
                    yaml_strings=yaml_strings,
                    reject=reject,
                ),
            )


def open_files(
    location: Location, reading: Reading, progress: Progress
) -> Iterator[tuple[str, BinaryIO]]:
    """(name, readable binary file) of each file of a package or of pinned local files, in order;
    each is closed at the next step.
    """
    if location.package is not None:
        # a third of a second to import, which reading a recipe does without
        from gpt_model.data.package_index import fetch_package

        archive = fetch_package(
            location.package, location.kind, location.sha256, reading.downloads, progress
        )
        with about("files"):
            yield from open_members(archive, location.files)
        return
    if location.pinned is None:
        raise UserError(
            f"{location.path} is a local file that is not tied to its bytes: resolve the location "
            "first (gpt_model.data.location.resolve)."
        )
    for file in location.pinned:
        with about("path"):
            stream = reading.open(file)
        yield file.path, stream


def hub_rows(location: Location, columns: Sequence[str], reading: Reading) -> Iterator[Row]:
    """The rows of a hub data set at its pinned revision, each with at least `columns`, streamed; so
    is a folder in the hub's layout.
    """
    import datasets  # takes a second, and most data is not the hub's

    assert location.hub is not None
    name, repository, revision = location.hub, location.hub, location.revision
    if location.hub_folder:
        repository = str(_hub_folder(location, reading))
    else:  # asked first: `datasets` would try for half a minute
        revision = hub.commit_of(name, revision, "dataset")
    try:
        rows = datasets.load_dataset(
            repository,
            location.config,
            split=location.split,
            revision=revision,
            streaming=True,
            cache_dir=str(reading.downloads / "hub"),
        )
        for number, row in enumerate(rows, start=1):
            require_columns(row, columns, f"{name}, row {number}")
            yield row
    # what `datasets` and the hub's client raise for a wrong id, config, split, …
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        if "scripts are no longer supported" in reason:
            raise UserError(
                f"{name} at revision {location.revision} is a loading script, "
                f"{reason.split()[-1]}: code, which is not run here. Pin a revision that is data "
                "and leave `config` out: the newest commit of its branch refs/convert/parquet (on "
                "the hub, in the branch menu of its files), or one in which its authors have put "
                "parquet in the script's place.",
                field="revision",
            ) from None
        kind = Unreachable if hub.silent(error) else UserError
        raise kind(
            f"{name} (revision {location.revision}) could not be read from the hub: {reason}",
            field="hub",
        ) from error


def _hub_folder(location: Location, reading: Reading) -> Path:
    """Where a folder in the hub's layout is: found by one of its pinned files, if it has some."""
    folder = Path(location.hub or "").expanduser()
    paths = [reading.locate(file) for file in location.pinned or []]
    if folder.is_absolute() or not (paths and location.pinned):
        return reading.base / folder
    depth = len(Path(location.pinned[0].path).relative_to(folder).parts)
    return paths[0].parents[depth - 1]
