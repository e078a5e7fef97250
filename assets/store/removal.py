"""Removing artifacts from a store in which others may be building: what needs which, and the order
of steps that keeps both safe.

Whoever removes moves the artifact away first and looks once more who needs it. A build writes down
what it reads (job.json) first and looks once more whether that is there. So one of the two sees the
other.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.contract import Artifact
from assets.store.manifest import read_json
from assets.store.store import Building, Store
from gpt_model.errors import CorruptFile


@dataclass(frozen=True)
class Unfinished:
    """A build that has not ended: it is under way, or was killed and the next run resumes it."""

    building: Building
    asset: str  # recipe/stage
    inputs: Mapping[str, str]  # name -> fingerprint


def unfinished(store: Store) -> Iterator[Unfinished]:
    """Every build that has not ended."""
    for building in store.buildings():
        job: Any = {}
        with suppress(OSError, CorruptFile):
            job = read_json(building.job)
        yield Unfinished(building, job.get("asset", "a build"), job.get("inputs") or {})


class Needed:
    """What names, pins and unfinished builds lead to, with everything that was built from."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._inputs: dict[str, list[str]] = {}  # of artifacts, which do not change

    def __call__(self) -> set[str]:
        """The fingerprints, as things are now. Raises CorruptFile where a name, or the manifest of
        what is needed, is damaged: what else is needed is then not known.
        """
        waiting = [
            *self._store.named(),
            *(
                fingerprint
                for build in unfinished(self._store)
                for fingerprint in build.inputs.values()
            ),
        ]
        needed: set[str] = set()
        while waiting:
            if (fingerprint := waiting.pop()) not in needed:
                needed.add(fingerprint)
                waiting += self._inputs_of(fingerprint)
        return needed

    def _inputs_of(self, fingerprint: str) -> list[str]:
        if fingerprint not in self._inputs:
            if (artifact := self._store.find(fingerprint)) is None:
                return []
            self._inputs[fingerprint] = input_fingerprints(artifact)
        return self._inputs[fingerprint]


def input_fingerprints(artifact: Artifact) -> list[str]:
    return [entry["fingerprint"] for entry in artifact.manifest["inputs"]]


def built_from(store: Store, fingerprint: str) -> list[Artifact]:
    """Every artifact that was built from this one, directly or not, oldest first."""
    above = {fingerprint}
    artifacts = list(store.artifacts())
    grown = True
    while grown:
        grown = False
        for artifact in artifacts:
            if artifact.fingerprint not in above and above & set(input_fingerprints(artifact)):
                above.add(artifact.fingerprint)
                grown = True
    return [each for each in artifacts if each.fingerprint in above - {fingerprint}]


def remove(
    store: Store,
    fingerprint: str,
    needed: Callable[[], bool],
    waiting: Callable[[str], None] | None = None,
) -> bool:
    """Removes an artifact, once whoever builds or finds it just now is done; `waiting` hears who
    that is. False, and nothing is removed, where it is `needed` by then.
    """
    with store.lock(fingerprint, waiting):
        if needed():
            return False
        aside = store.set_aside(fingerprint)
        if needed():
            store.put_back(aside, fingerprint)
            return False
    shutil.rmtree(aside)
    return True


def size(path: Path) -> int:
    """Bytes of a file, or of the files below a folder, links not followed."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() or file.is_symlink())
