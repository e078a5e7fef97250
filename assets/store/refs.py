"""Names of artifacts: `refs/tiny/pretrained` says which fingerprint `tiny/pretrained` stands for.

A name is written twice, the same bytes: as the ref, and beside the artifact under `names/`. So a
ref that is edited, exchanged or removed is seen (`problems`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from assets.store.manifest import SUMS, explain_full_disk, read_json
from gpt_model.errors import CorruptFile
from gpt_model.io import TEMPORARY, looking_again, write_json

PINNED = "pinned"  # the first part of a person's own name, where a recipe's have the recipe's
NAMES = "names"  # an artifact's folder of the refs that name it
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
RUN_AGAIN = "Run its recipe again: that sets it right."


class Refs:
    """The names in one store, under `folder`, of the artifacts under `artifacts`."""

    def __init__(self, folder: Path, artifacts: Path) -> None:
        self.folder, self._artifacts = folder, artifacts

    @looking_again
    def set(self, name: str, fingerprint: str) -> None:
        """`name` (recipe/stage) now stands for this artifact, and for no other."""
        ref, artifact = self.folder / name, self._artifacts / fingerprint
        copy = artifact / NAMES / name
        with suppress(OSError, CorruptFile):
            if self.get(name) == fingerprint and copy.is_file():
                return
        updated = datetime.now(UTC).isoformat(timespec="seconds")
        document = {"fingerprint": fingerprint, "updated": updated}
        with explain_full_disk(ref):
            for path in (copy, ref) if artifact.is_dir() else (ref,):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, document)
        for other in self._folders():
            if other != artifact:
                (other / NAMES / name).unlink(missing_ok=True)

    def unset(self, name: str) -> None:
        """`name` stands for nothing any more."""
        for path in (self.folder / name, *(folder / NAMES / name for folder in self._folders())):
            path.unlink(missing_ok=True)

    def named(self) -> frozenset[str]:
        """The fingerprints that have a name, by the ref or by its copy. Raises CorruptFile where a
        ref is damaged.
        """
        stated = [self._stated(name) for name in self.names()]
        copies = [folder.name for folder in self._folders() if any(_names(folder / NAMES))]
        return frozenset([*stated, *copies])

    def record(self, fingerprint: str, folder: Path) -> None:
        """Writes the names that an artifact has already beside it, in `folder`: it was built again,
        or an earlier version, which did not, built it.
        """
        for name in self.names():
            with suppress(CorruptFile):
                if self._stated(name) == fingerprint:
                    copy = folder / NAMES / name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.folder / name, copy)

    @looking_again
    def get(self, name: str) -> str | None:
        """The fingerprint that `name` stands for. Raises CorruptFile where its ref is damaged, or
        is not the one that was set.
        """
        path = self.folder / name
        if not path.is_file():
            return None
        fingerprint = self._stated(name)
        artifact = self._artifacts / fingerprint
        copy = artifact / NAMES / name
        # an artifact of earlier versions has neither sums nor names beside it
        if (artifact / SUMS).is_file() and not copy.is_file():
            raise CorruptFile(
                f"{path} names {fingerprint}, which was never given that name. {RUN_AGAIN}"
            )
        if copy.is_file() and copy.read_bytes() != path.read_bytes():
            raise CorruptFile(f"{path} and {copy} are not the same any more. {RUN_AGAIN}")
        return fingerprint

    def time(self, name: str) -> str:
        """When the name was set, in ISO's form; "" where that cannot be read."""
        with suppress(OSError, CorruptFile, LookupError, TypeError):
            return str(read_json(self.folder / name)["updated"])
        return ""

    def _stated(self, name: str) -> str:
        """What the ref says, whether or not it was set so."""
        path = self.folder / name
        document = read_json(path, RUN_AGAIN)
        fingerprint = document.get("fingerprint") if isinstance(document, dict) else None
        if not isinstance(fingerprint, str) or not FINGERPRINT.fullmatch(fingerprint):
            raise CorruptFile(f"{path} is damaged: it names no fingerprint. {RUN_AGAIN}")
        return fingerprint

    def names(self) -> list[str]:
        """Every name, damaged ones too."""
        return list(_names(self.folder))

    def all(self) -> dict[str, str]:
        """Every name and the fingerprint it stands for. Damaged ones are left out: `problems` has
        them.
        """
        refs = {}
        for name in self.names():
            with suppress(CorruptFile):
                if fingerprint := self.get(name):
                    refs[name] = fingerprint
        return refs

    def problems(self) -> list[str]:
        """A sentence for each name that is damaged, gone, or not what was set."""
        sentences = []
        for name in self.names():
            try:
                fingerprint = self.get(name)
            except CorruptFile as error:
                sentences.append(str(error))
                continue
            if fingerprint and not (self._artifacts / fingerprint).is_dir():
                sentences.append(f"{name} names {fingerprint}, which is not in the store.")
        for artifact in self._folders():
            sentences += [
                f"{self.folder / name} is missing: it names {artifact.name}. {RUN_AGAIN}"
                for name in _names(artifact / NAMES)
                if not (self.folder / name).is_file()
            ]
        return sentences

    def _folders(self) -> Iterator[Path]:
        """The artifacts' folders; not those of another store, which `reproduce` links to."""
        if self._artifacts.is_dir():
            for folder in self._artifacts.iterdir():
                if not folder.is_symlink():
                    yield folder


def _names(folder: Path) -> Iterator[str]:
    """Raises OSError where a folder of them may not be read, which `Path.rglob` passes over."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    walk = os.walk(folder, onerror=refuse)
    for path in sorted(Path(parent) / name for parent, _, names in walk for name in names):
        if path.is_file() and path.suffix != TEMPORARY:
            yield path.relative_to(folder).as_posix()
