"""A store as its team sees it: what it lacks is read from the mirror, by names and manifests alone.

    catalogue/   in the store's home, a store without files: refs/, and of each artifact
                 artifact.json, gate.json and sums.json

A name that the store has stands for what the store says; the others are the mirror's. Files are
fetched by a run, and by commands that read them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from assets.contract import Artifact
from assets.store.locks import locked
from assets.store.manifest import GATE, MANIFEST, require_published
from assets.store.remote import MANIFESTS, Remote, remote_of
from assets.store.removal import input_fingerprints
from assets.store.store import Store
from gpt_model.errors import CorruptFile, UserError

FOLDER = "catalogue"  # in a store's home


class TeamStore(Store):
    """To read: the store, and beyond it the catalogue of its mirror."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._beyond = Store(self.home / FOLDER)

    def find(self, fingerprint: str) -> Artifact | None:
        return super().find(fingerprint) or self._beyond.find(fingerprint)

    def artifacts(self, damaged: Callable[[str], None] = lambda _: None) -> Iterator[Artifact]:
        here = set(super().fingerprints())
        yield from super().artifacts(damaged)
        yield from (each for each in self._beyond.artifacts() if each.fingerprint not in here)

    def fingerprints(self) -> list[str]:
        return sorted({*super().fingerprints(), *self._beyond.fingerprints()})

    def _ref(self, name: str) -> str | None:
        return super()._ref(name) or self._beyond._ref(name)

    def names(self) -> list[str]:
        return sorted({*super().names(), *self._beyond.names()})

    def refs(self) -> dict[str, str]:
        return self._beyond.refs() | super().refs()


def team_store(home: Path, say: Callable[[str], None]) -> Store:
    """The store `home` with what its mirror has by now, where it has one. `say` hears why that does
    not answer; then with what it had the last time.
    """
    if (remote := remote_of(home)) is None:
        return Store(home)
    try:
        _refresh(home, remote)
    except UserError as error:
        say(str(error))
    return TeamStore(home)


def fetched(store: Store, artifact: Artifact, say: Callable[[str], None]) -> Artifact:
    """`artifact` with its files, fetched from the mirror where the store has none; then the store
    knows it by its names there. Raises UserError where it cannot be had.
    """
    if artifact.path.is_dir():
        return artifact
    here, remote = Store(store.home), remote_of(store.home)
    fingerprint = artifact.fingerprint
    with here.lock(fingerprint):
        whole = here.find(fingerprint)
        if whole is None and remote:
            whole = remote.pull(fingerprint, here.building(fingerprint), say)
    if whole is None:
        raise UserError(
            f"{artifact.stage} {Store.short(fingerprint)} is not in {here.home}, and could not be "
            "fetched."
        )
    for name in [name for name, identity in store.refs().items() if identity == fingerprint]:
        _set_ref(here, name, fingerprint)
    return whole


def _refresh(home: Path, remote: Remote) -> None:
    """Brings the catalogue up to date."""
    refs, here, catalogue = remote.refs(), Store(home), Store(home / FOLDER)
    catalogue.home.mkdir(parents=True, exist_ok=True)
    with locked(catalogue.home / "refresh.lock"):
        waiting = {document["fingerprint"] for document in refs.values()}
        seen: set[str] = set()
        while waiting:
            seen |= waiting
            wanted = [each for each in waiting if not (here.find(each) or catalogue.find(each))]
            for fingerprint, files in remote.manifests(wanted).items():
                _add(catalogue, fingerprint, files)
            artifacts = (here.find(each) or catalogue.find(each) for each in waiting)
            inputs = [input_fingerprints(artifact) for artifact in artifacts if artifact]
            waiting = {each for several in inputs for each in several} - seen
        catalogue.unset_refs(_gone(catalogue, refs))
        for name, document in refs.items():
            if catalogue.find(document["fingerprint"]):
                _set_ref(catalogue, name, document["fingerprint"])


def _set_ref(store: Store, name: str, fingerprint: str) -> None:
    recipe, _, stage = name.partition("/")
    store.set_ref(recipe, stage, fingerprint)


def _gone(catalogue: Store, refs: Iterable[str]) -> list[str]:
    return [name for name in catalogue.names() if name not in set(refs)]


def _add(catalogue: Store, fingerprint: str, files: dict[str, bytes]) -> None:
    folder = catalogue.home / "adding" / fingerprint
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in MANIFESTS:
        (folder / name).write_bytes(files[name])
    with suppress(CorruptFile):  # a run that pulls it says so
        for name in (MANIFEST, GATE):
            require_published(folder, name)
        catalogue.artifacts_folder.mkdir(exist_ok=True)
        folder.rename(catalogue.artifacts_folder / fingerprint)
