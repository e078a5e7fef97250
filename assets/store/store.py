"""The store: artifacts by fingerprint under $LINEAGE_HOME, their names, locks, and publication by
one rename.

    artifacts/<fingerprint>/  artifact.json (manifest), gate.json (verdicts), files/ (hashed);
                              show/ and journal/ (not hashed)
    building/<fingerprint>/   the same during a build, with job.json and result.json or
                              failure.json; it outlives an attempt
    refs/<recipe>/<stage>     {"fingerprint": …, "updated": …}
    locks/<fingerprint>.lock
    store.json                {"version": 1}

`manifest.py` composes manifests. Only a person deletes from artifacts/.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assets.contract import SCRATCH, Artifact, Config
from assets.store import manifest
from assets.store.home import store_home
from assets.store.locks import locked
from assets.store.manifest import Facts, Verdicts, explain_full_disk, read_json
from gpt_model.errors import CorruptFile, UserError
from gpt_model.io import TEMPORARY, fsync, write_json

VERSION = 1  # of the layout; a store with a higher one was written by a newer gpt-lineage
SHORT = 12


@dataclass(frozen=True)
class Building:
    """Where one artifact is being built. The folder outlives a killed attempt, and becomes the
    artifact by one rename.
    """

    folder: Path
    fingerprint: str

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def show(self) -> Path:
        return self.folder / "show"

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def events(self) -> Path:
        return self.journal / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.journal / "worker.log"

    @property
    def manifest(self) -> Path:
        return self.folder / "artifact.json"

    @property
    def job(self) -> Path:
        return self.folder / "job.json"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def failure(self) -> Path:
        """What the first rank to fail says of it."""
        return self.folder / "failure.json"


@dataclass(frozen=True)
class Recorded:
    """A check's verdict as it stands beside the artifact. Where a blocking one failed, no stage may
    read the artifact.
    """

    passed: bool
    blocking: bool
    summary: str
    figures: Mapping[str, float | int | str] = field(default_factory=dict)


class Store:
    """Everything under one home. Cheap to make; writes nothing before it has to."""

    def __init__(self, home: Path) -> None:
        """Raises UserError where a newer version wrote the store, CorruptFile where store.json is
        damaged.
        """
        self.home = home.expanduser().absolute()
        self.artifacts_folder = self.home / "artifacts"
        self._buildings = self.home / "building"
        self._refs = self.home / "refs"
        with suppress(FileNotFoundError):
            try:
                document = read_json(self.home / "store.json")
            except NotADirectoryError:
                raise UserError(
                    f"{self.home} cannot be a store: it, or what it is in, is a file. Set "
                    "LINEAGE_HOME to a folder."
                ) from None
            if not isinstance(document, dict) or not isinstance(document.get("version"), int):
                raise CorruptFile(
                    f'{self.home / "store.json"} is damaged: expected {{"version": {VERSION}}}, '
                    f"found {document!r}."
                )
            if document["version"] > VERSION:
                raise UserError(
                    f"The store {self.home} has version {document['version']} (store.json), "
                    "written "
                    "by a newer gpt-lineage; "
                    f"this one reads version {VERSION}. Update gpt-lineage, or point LINEAGE_HOME "
                    "at another folder."
                )

    @staticmethod
    def default_home() -> Path:
        """$LINEAGE_HOME, else ./lineage; absolute."""
        return store_home()

    # Identity

    @staticmethod
    def fingerprint(
        stage: str, version: str, config: Config, input_digests: Mapping[str, str]
    ) -> str:
        """What identifies an artifact: sha256 in hex, 64 characters."""
        return manifest.fingerprint(stage, version, config, input_digests)

    @staticmethod
    def short(fingerprint: str) -> str:
        return fingerprint[:SHORT]

    # Reading

    def find(self, fingerprint: str) -> Artifact | None:
        """The published artifact, its files unverified. Raises CorruptFile where its manifest
        cannot be read.
        """
        folder = self.artifacts_folder / fingerprint
        path = folder / "artifact.json"
        try:
            facts = read_json(path)
        except FileNotFoundError:
            if folder.is_dir():
                raise CorruptFile(
                    f"{path} is missing. Remove {folder} to build the artifact again."
                ) from None
            return None
        try:
            return Artifact(
                path=folder / "files",
                stage=facts["stage"],
                fingerprint=facts["fingerprint"],
                digest=facts["digest"],
                config=facts["config"],
                metrics=facts["metrics"],
                manifest=facts,
            )
        except (KeyError, TypeError) as error:
            raise CorruptFile(
                f"{path} is damaged: {error} is missing. Remove {folder} to build the artifact "
                "again."
            ) from None

    def artifacts(self, damaged: Callable[[str], None] | None = None) -> Iterator[Artifact]:
        """Every published artifact, oldest first. One whose manifest cannot be read is left out,
        and `damaged` gets the sentence; without `damaged` that is a CorruptFile.
        """
        folders = (
            [entry for entry in self.artifacts_folder.iterdir() if entry.is_dir()]
            if self.artifacts_folder.is_dir()
            else []
        )
        for folder in sorted(folders, key=lambda entry: entry.stat().st_mtime):
            try:
                artifact = self.find(folder.name)
            except CorruptFile as error:
                if damaged is None:
                    raise
                damaged(str(error))
                continue
            if artifact:
                yield artifact

    def verify(self, artifact: Artifact) -> list[str]:
        """Recomputes every checksum. Returns one sentence for each file that changed, is missing or
        is extra; [] is as published.
        """
        return manifest.problems(artifact.manifest, artifact.path)

    def gate(self, artifact: Artifact) -> dict[str, Recorded]:
        """The verdicts of the artifact's checks, by name."""
        return {
            name: Recorded(**verdict)
            for name, verdict in read_json(artifact.path.parent / "gate.json").items()
        }

    def failed_checks(self, artifact: Artifact, *, blocking: bool) -> list[str]:
        """The names of the artifact's blocking checks that failed, or of the others (warnings)."""
        return [
            name
            for name, verdict in self.gate(artifact).items()
            if verdict.blocking == blocking and not verdict.passed
        ]

    def show(self, artifact: Artifact) -> Path:
        return artifact.path.parent / "show"

    def lineage(self, artifact: Artifact) -> dict[str, Any]:
        """The artifact and, below "inputs", all it was made from back to the sources; "missing"
        marks what is no longer here.
        """
        names = {fingerprint: name for name, fingerprint in self.refs().items()}
        known: dict[str, Artifact | None] = {artifact.fingerprint: artifact}

        def node(fingerprint: str, stage: str, digest: str, name: str | None) -> dict[str, Any]:
            if fingerprint not in known:
                known[fingerprint] = self.find(fingerprint)
            artifact_below = known[fingerprint]
            inputs = artifact_below.manifest["inputs"] if artifact_below else []
            below = [
                node(entry["fingerprint"], entry["stage"], entry["digest"], entry["name"])
                for entry in inputs
            ]
            return {
                "stage": stage,
                "input": name,
                "ref": names.get(fingerprint),
                "fingerprint": fingerprint,
                "digest": digest,
                "missing": artifact_below is None,
                "inputs": below,
            }

        return node(artifact.fingerprint, artifact.stage, artifact.digest, None)

    # Building

    @contextmanager
    def lock(self, fingerprint: str, waiting: Callable[[str], None] | None = None) -> Iterator[int]:
        """Holds the right to build `fingerprint`; waits for another holder, calling `waiting(who)`
        once a second.

        Yields a file descriptor for the guard to inherit: the lock is on the open file, so it is
        held until the last process that has it is gone, even when this one is killed. Look with
        `find` once inside: the other may have built it.
        """
        path = self._ready("locks") / f"{fingerprint}.lock"
        with locked(path, waiting=waiting) as handle:
            building = self._building(fingerprint)
            if building.manifest.is_file():  # killed between its last write and its rename
                self._rename(building)
            yield handle

    def building(self, fingerprint: str) -> Building:
        """Where `fingerprint` is built, with what an earlier attempt left in it. Hold its lock."""
        self._ready("building")
        building = self._building(fingerprint)
        with explain_full_disk(building.folder):
            for folder in (building.files, building.show, building.journal):
                folder.mkdir(parents=True, exist_ok=True)
        for path in building.folder.rglob(f"*{TEMPORARY}"):
            if path.parent in (building.folder, building.journal):
                path.unlink(missing_ok=True)
        return building

    def publish(self, building: Building, facts: Facts, verdicts: Verdicts) -> Artifact:
        """Makes the building an artifact, by one rename once all is on disk. One that is there
        already stays as it is.

        Raises UserError where the disk is full (the building stays, to be resumed), ValueError
        where files/ holds a link.
        """
        with explain_full_disk(building.folder):
            entries = manifest.entries(building.files)
            gate = {
                name: {
                    "passed": v.passed,
                    "blocking": check.blocking,
                    "summary": v.summary,
                    "figures": dict(v.figures),
                }
                for name, (check, v) in verdicts.items()
            }
            write_json(building.folder / "gate.json", gate)
            for folder in (building.files, building.show):
                for path in (folder, *folder.rglob("*")):
                    if SCRATCH not in path.parts:
                        fsync(path)
            write_json(
                building.manifest, manifest.compose(facts, building.fingerprint, entries)
            )  # last: it says that all is there
            self._rename(building)
        artifact = self.find(building.fingerprint)
        assert artifact is not None
        return artifact

    def _building(self, fingerprint: str) -> Building:
        return Building(self._buildings / fingerprint, fingerprint)

    def _rename(self, building: Building) -> None:
        """The end of a publication, which the next holder of the lock repeats where it was
        interrupted.
        """
        target = self._ready("artifacts") / building.fingerprint
        if target.exists():
            self.discard(building)
            return
        shutil.rmtree(building.files / SCRATCH, ignore_errors=True)
        for path in (building.job, building.result, building.failure):
            path.unlink(missing_ok=True)
        building.folder.rename(target)
        fsync(target.parent)

    def discard(self, building: Building) -> None:
        """Throws away what was built so far."""
        shutil.rmtree(building.folder, ignore_errors=True)

    def quarantine(self, artifact: Artifact) -> Path:
        """Moves an artifact that does not verify to corrupt/, so that it can be built again.
        Returns where it now is.
        """
        folder = self._ready("corrupt")
        number = sum(1 for _ in folder.glob(f"{artifact.fingerprint}.*"))
        return artifact.path.parent.rename(folder / f"{artifact.fingerprint}.{number}")

    # Names

    def set_ref(self, recipe: str, stage: str, fingerprint: str) -> None:
        """`recipe/stage` now names this artifact."""
        path = self._ready("refs") / recipe / stage
        with explain_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(
                path,
                {
                    "fingerprint": fingerprint,
                    "updated": datetime.now(UTC).isoformat(timespec="seconds"),
                },
            )

    def get_ref(self, recipe: str, stage: str) -> str | None:
        """The fingerprint that `recipe/stage` names. Raises CorruptFile where the ref cannot be
        read.
        """
        path = self._refs / recipe / stage
        return str(read_json(path)["fingerprint"]) if path.is_file() else None

    def refs(self) -> dict[str, str]:
        """Every name and the fingerprint it stands for."""
        paths = sorted(
            path for path in self._refs.rglob("*") if path.is_file() and path.suffix != TEMPORARY
        )
        return {
            path.relative_to(self._refs).as_posix(): str(read_json(path)["fingerprint"])
            for path in paths
        }

    def resolve(self, text: str) -> Artifact:
        """The artifact a person means by `recipe/stage` or by the start of a fingerprint. Raises
        UserError with what there is.
        """
        refs = self.refs()
        text = text.strip().strip("/")
        if text in refs:
            artifact = self.find(refs[text])
            if artifact is None:
                raise UserError(
                    f"{text} names {refs[text][:SHORT]}, which is not in {self.artifacts_folder}. "
                    "Build it again."
                )
            return artifact
        fingerprints = (
            sorted(entry.name for entry in self.artifacts_folder.iterdir())
            if self.artifacts_folder.is_dir()
            else []
        )
        matches = [name for name in fingerprints if name.startswith(text.lower())] if text else []
        if len(matches) == 1 and (artifact := self.find(matches[0])):
            return artifact
        if matches:
            shown = ", ".join(name[:SHORT] for name in matches[:8])
            raise UserError(
                f"{text!r} is the start of {len(matches)} fingerprints ({shown}): give more of it."
            )
        near = difflib.get_close_matches(text, refs, n=3, cutoff=0.4)
        hint = (
            f"Did you mean {' or '.join(near)}?"
            if near
            else f"There are: {', '.join(refs) or 'none yet; build a recipe first'}."
        )
        raise UserError(
            f"There is no artifact {text!r} in {self.home}: not a recipe/stage and not the start "
            f"of a fingerprint. {hint}"
        )

    def _ready(self, folder: str) -> Path:
        """A folder of the store, made when first written to, with the store's version beside it."""
        path = self.home / folder
        with explain_full_disk(path):
            path.mkdir(parents=True, exist_ok=True)
            if not (self.home / "store.json").exists():
                write_json(self.home / "store.json", {"version": VERSION})
        return path
