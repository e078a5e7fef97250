"""The store: artifacts by fingerprint under $LINEAGE_HOME, their names, locks, and publication by
one rename.

    artifacts/<fingerprint>/  artifact.json (manifest), gate.json (verdicts), files/ (hashed into
                              the digest); show/ and journal/; sums.json (sha256 of what stands
                              beside files/); names/ (the refs that name it)
    removed/<name>.<hex>      on its way out
    pulling/<fingerprint>     on its way in, from the team's mirror (`remote.py`)
    catalogue/                what that has besides (`catalogue.py`)
    building/<fingerprint>/   the same during a build, with job.json and result.json or
                              failure.json; it outlives an attempt
    refs/<recipe>/<stage>     {"fingerprint": …, "updated": …}
    recipes/<recipe>.json     where the file of a recipe is that was built from a path
    locks/<fingerprint>.lock
    store.json                {"version": 1}

`manifest.py` composes manifests. Only a person deletes from artifacts/: `removal.py`.
"""

from __future__ import annotations

import difflib
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from assets.contract import SCRATCH, Artifact, Config
from assets.store import manifest
from assets.store.home import ARTIFACTS, store_home
from assets.store.locks import locked
from assets.store.manifest import MANIFEST, Facts, Verdicts, explain_full_disk, read_json
from assets.store.refs import Refs
from gpt_model.errors import CorruptFile, UserError
from gpt_model.io import TEMPORARY, fsync, looking_again, write_json
from gpt_model.strict import dotted_location

LAYOUT = "store.json"
VERSION = 1  # of the layout; a store with a higher one was written by a newer gpt-lineage
LAYOUT_CURE = "Remove it: the next build writes it again."
SHORT = 12
LISTED = 12  # names that an error lists
SEE_SECONDS = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0)  # between looks at what another host did
_checked: set[Path] = set()  # artifacts that this process has verified


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
    def detached(self) -> Path:
        """What of a job that outlives its starter (`assets/launch/detached.py`)."""
        return self.journal / "detached.json"

    @property
    def manifest(self) -> Path:
        return self.folder / "artifact.json"

    @property
    def sums(self) -> Path:
        return self.folder / "sums.json"

    @property
    def job(self) -> Path:
        return self.folder / "job.json"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def messages(self) -> Path:
        """The worker's live messages to Dagster, by Pipes: in the store, which every host sees."""
        return self.folder / "messages.jsonl"

    @property
    def published(self) -> Path:
        """The manifest of an artifact whose files are here again, to be judged and shown anew."""
        return self.folder / "published.json"

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


_GATE = TypeAdapter(dict[str, Recorded])


class Store:
    """Everything under one home. Cheap to make; writes nothing before it has to."""

    def __init__(self, home: Path) -> None:
        """Raises UserError where a newer version wrote the store, CorruptFile where store.json is
        damaged.
        """
        self.home = home.expanduser().absolute()
        self.artifacts_folder = self.home / ARTIFACTS
        self._buildings = self.home / "building"
        self._refs = Refs(self.home / "refs", self.artifacts_folder)
        with suppress(FileNotFoundError):
            try:
                document = read_json(self.home / LAYOUT, LAYOUT_CURE)
            except NotADirectoryError:
                raise UserError(
                    f"{self.home} cannot be a store: it, or what it is in, is a file. Set "
                    "LINEAGE_HOME to a folder."
                ) from None
            if not isinstance(document, dict) or not isinstance(document.get("version"), int):
                raise CorruptFile(
                    f'{self.home / LAYOUT} is damaged: expected {{"version": {VERSION}}}, '
                    f"found {document!r}. {LAYOUT_CURE}"
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
        """See `store_home`."""
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
        """The published artifact, its files unverified. Raises CorruptFile where its manifest is
        not what was published, or cannot be read.
        """
        folder = self.artifacts_folder / fingerprint
        try:
            facts = manifest.read_manifest(folder)
        except (FileNotFoundError, NotADirectoryError):
            if folder.exists():
                raise CorruptFile(
                    f"{folder / MANIFEST} is missing. {manifest.BUILD_AGAIN}"
                ) from None
            return None
        return Artifact(
            path=folder / "files",
            stage=facts["stage"],
            fingerprint=facts["fingerprint"],
            digest=facts["digest"],
            config=facts["config"],
            metrics=facts["metrics"],
            manifest=facts,
        )

    def artifacts(self, damaged: Callable[[str], None] = lambda _: None) -> Iterator[Artifact]:
        """Every published artifact, oldest first. One whose manifest is not what was published is
        left out, and `damaged` gets the sentence.
        """
        for folder in sorted(self._folders(), key=lambda entry: entry.stat().st_mtime):
            try:
                artifact = self.find(folder.name)
            except CorruptFile as error:
                damaged(str(error))
                continue
            if artifact:
                yield artifact

    def misnamed(self) -> list[str]:
        """A sentence for each name that does not lead where it was set, and store.json where it is
        gone.
        """
        sentences = self._refs.problems()
        if self._folders() and not (self.home / LAYOUT).is_file():
            sentences.append(f"{self.home / LAYOUT} is missing: the next build writes it again.")
        return sentences

    def fingerprints(self) -> list[str]:
        """Of every published artifact, damaged ones too."""
        return [folder.name for folder in self._folders()]

    def folder_of(self, fingerprint: str) -> Path:
        """Of a published artifact: its files and all that stands beside them."""
        return self.artifacts_folder / fingerprint

    def _folders(self) -> list[Path]:
        if not self.artifacts_folder.is_dir():
            return []
        return sorted(self.artifacts_folder.iterdir())

    def verify(self, artifact: Artifact) -> list[str]:
        """Recomputes every checksum. Returns one sentence for each file that changed, is missing or
        is extra; [] is as published.
        """
        problems = manifest.problems(artifact.manifest, artifact.path)
        if not problems:
            try:
                self.gate(artifact)
            except CorruptFile as error:  # of an artifact without sums
                problems.append(str(error))
        return problems

    def check(self, artifact: Artifact, *, again: bool = False) -> Artifact:
        """`artifact`, verified before anything is read of it: once a process, unless `again`. A
        large one is read whole once a week (`manifest.LARGE_BYTES`). Raises CorruptFile where it is
        not what was published.
        """
        if again or artifact.path not in _checked:
            if problems := self._problems(artifact):
                raise CorruptFile(
                    f"{artifact.stage} {artifact.fingerprint[:SHORT]} is not what was published: "
                    f"{problems[0]} {manifest.BUILD_AGAIN}"
                )
            _checked.add(artifact.path)
        return artifact

    def _problems(self, artifact: Artifact) -> list[str]:
        folder = artifact.path.parent
        if artifact.size < manifest.LARGE_BYTES:
            return self.verify(artifact)
        if manifest.read_whole_at(folder) is not None:
            self.gate(artifact)
            return manifest.sum_problems(folder)
        states = manifest.file_states(artifact.path)
        problems = self.verify(artifact)
        if not problems:
            with suppress(OSError):  # of a store that is only read: each time, then
                manifest.record_reading(folder, states)
        return problems

    def read_whole_at(self, artifact: Artifact) -> float | None:
        """When a large artifact's bytes were last read whole, in seconds since 1970; None for one
        that is read whole each time.
        """
        if artifact.size < manifest.LARGE_BYTES:
            return None
        return manifest.read_whole_at(artifact.path.parent)

    def is_summed(self, artifact: Artifact) -> bool:
        """Whether there are sums of what stands beside its files. An earlier version wrote none;
        the next run that comes by the artifact does.
        """
        return (artifact.path.parent / manifest.SUMS).is_file()

    def record_sums(self, artifact: Artifact) -> None:
        """Writes the sums, and the names beside the artifact, where an earlier version did not."""
        if not self.is_summed(artifact):
            self._refs.record(artifact.fingerprint, artifact.path.parent)
            manifest.record_sums(artifact.path.parent)

    def gate(self, artifact: Artifact) -> dict[str, Recorded]:
        """The verdicts of the artifact's checks, by name. Raises CorruptFile where they are not
        those that were published.
        """
        path = artifact.path.parent / manifest.GATE
        try:
            verdicts = read_json(path, manifest.BUILD_AGAIN)
            manifest.require_published(path.parent, manifest.GATE)
            return _GATE.validate_python(verdicts)
        except FileNotFoundError:
            problem = "is missing."
        except ValidationError as error:
            problem = f"is damaged: `{dotted_location(error.errors()[0]['loc'])}` is no verdict."
        raise CorruptFile(f"{path} {problem} {manifest.BUILD_AGAIN}")

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
        with locked(self._lock_file(fingerprint), waiting=waiting) as handle:
            self._see(fingerprint)
            building = self._building(fingerprint)
            if building.sums.is_file():  # killed between its last write and its rename
                self._rename(building)
            yield handle

    @contextmanager
    def idle(self, fingerprint: str) -> Iterator[bool]:
        """Whether nobody builds `fingerprint`; where so, nobody can begin to inside the block."""
        with ExitStack() as held:
            try:
                held.enter_context(locked(self._lock_file(fingerprint), patience=0))
            except TimeoutError:
                yield False
                return
            self._see(fingerprint)
            yield True

    def _see(self, fingerprint: str) -> None:
        """Waits until this host sees what another did while it had the lock. A network file system
        may answer from memory whether a name is there; it lists a folder anew.
        """
        for pause in SEE_SECONDS:
            if all(
                _is_listed(folder, fingerprint) == _is_there(folder / fingerprint)
                for folder in (self._buildings, self.artifacts_folder)
            ):
                return
            time.sleep(pause)

    def _lock_file(self, fingerprint: str) -> Path:
        return self._ready("locks") / f"{fingerprint}.lock"

    def building(self, fingerprint: str) -> Building:
        """Where `fingerprint` is built, with what an earlier attempt left in it. Hold its lock."""
        self._ready("building")
        building = self._building(fingerprint)
        with explain_full_disk(building.folder):
            for folder in (building.files, building.show, building.journal):
                folder.mkdir(parents=True, exist_ok=True)
        if not building.detached.exists():  # its job writes on
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
            write_json(building.folder / manifest.GATE, gate)
            for folder in (building.files, building.show):
                for path in (folder, *folder.rglob("*")):
                    if SCRATCH not in path.parts:
                        fsync(path)
            write_json(building.manifest, manifest.compose(facts, building.fingerprint, entries))
            manifest.record_sums(building.folder)  # last: it says that all is there
            self._rename(building)
        artifact = self.find(building.fingerprint)
        assert artifact is not None
        _checked.add(artifact.path)
        return artifact

    def _building(self, fingerprint: str) -> Building:
        return Building(self._buildings / fingerprint, fingerprint)

    def _rename(self, building: Building) -> None:
        """The end of a publication, which the next holder of the lock repeats where it was
        interrupted.
        """
        target = self._ready(ARTIFACTS) / building.fingerprint
        if target.exists():
            self.discard(building)
            return
        shutil.rmtree(building.files / SCRATCH, ignore_errors=True)
        for path in (
            building.job,
            building.result,
            building.failure,
            building.messages,
            building.published,
        ):
            path.unlink(missing_ok=True)
        self._refs.record(building.fingerprint, building.folder)
        building.folder.rename(target)
        fsync(target.parent)

    def admit(self, folder: Path, fingerprint: str) -> Artifact:
        """Makes `folder`, which was fetched from elsewhere, the artifact by one rename, once it
        verifies. Raises CorruptFile where it does not. Hold its lock.
        """
        if problems := manifest.problems(manifest.read_manifest(folder), folder / "files"):
            raise CorruptFile(problems[0])
        for path in (*folder.rglob("*"), folder):
            fsync(path)
        target = self._ready(ARTIFACTS) / fingerprint
        self._refs.record(fingerprint, folder)
        folder.rename(target)
        fsync(target.parent)
        self.discard(self._building(fingerprint))
        artifact = self.find(fingerprint)
        assert artifact is not None
        _checked.add(artifact.path)
        return artifact

    def buildings(self) -> list[Building]:
        """Every build that is under way, or was killed."""
        folders = sorted(self._buildings.iterdir()) if self._buildings.is_dir() else []
        return [self._building(folder.name) for folder in folders]

    def discard(self, building: Building) -> None:
        """Throws away what was built so far."""
        self.throw_away(building.folder)

    def throw_away(self, folder: Path) -> None:
        """Removes a folder of the store, where it is there, by another name: a network file system
        may still have this one for the folder that another host has just published from it.
        """
        with suppress(FileNotFoundError):
            shutil.rmtree(self._moved_aside(folder), ignore_errors=True)

    def _moved_aside(self, folder: Path) -> Path:
        return folder.rename(self._ready("removed") / f"{folder.name}.{secrets.token_hex(4)}")

    def quarantine(self, fingerprint: str) -> Path:
        """Moves an artifact that does not verify to corrupt/, so that it can be built again.
        Returns where it now is.
        """
        folder = self._ready("corrupt")
        _checked.discard(self.artifacts_folder / fingerprint / "files")
        number = sum(1 for _ in folder.glob(f"{fingerprint}.*"))
        return (self.artifacts_folder / fingerprint).rename(folder / f"{fingerprint}.{number}")

    def set_aside(self, fingerprint: str) -> Path:
        """Moves an artifact to removed/, by one rename. Returns where it now is. Hold its lock."""
        _checked.discard(self.artifacts_folder / fingerprint / "files")
        return self._moved_aside(self.artifacts_folder / fingerprint)

    def put_back(self, aside: Path, fingerprint: str) -> None:
        """The opposite of `set_aside`."""
        aside.rename(self.artifacts_folder / fingerprint)

    def take_back(self, aside: Path, building: Building) -> bool:
        """Moves the files and events of a quarantined artifact into `building`, where they and the
        manifest are as published: then only its verdicts and pictures are made again.
        """
        try:
            facts = manifest.read_manifest(aside)
            manifest.require_published(aside, manifest.EVENTS)
        except (OSError, CorruptFile):
            return False
        if manifest.file_problems(facts, aside / "files"):
            return False
        write_json(building.published, facts)
        for name in ("journal", "files"):
            shutil.rmtree(building.folder / name)
            (aside / name).rename(building.folder / name)
        return True

    def published(self, building: Building) -> dict[str, Any] | None:
        """The manifest of the artifact whose files `take_back` moved here, all of them; else None.
        Hold its lock.
        """
        if not building.published.is_file():
            return None
        facts: dict[str, Any] = read_json(building.published)
        if not manifest.file_problems(facts, building.files):
            return facts
        building.published.unlink()  # killed between the moves
        shutil.rmtree(building.files)
        building.files.mkdir()
        return None

    # Names

    def set_ref(self, recipe: str, stage: str, fingerprint: str) -> None:
        """`recipe/stage` now names this artifact."""
        self._ready("refs")
        with locked(self._ready("locks") / "names.lock"):
            self._refs.set(f"{recipe}/{stage}", fingerprint)

    def unset_refs(self, names: Iterable[str]) -> None:
        """These names stand for nothing any more."""
        with locked(self._ready("locks") / "names.lock"):
            for name in names:
                self._refs.unset(name)

    def named(self) -> frozenset[str]:
        """The fingerprints that have a name. Raises CorruptFile where a name is damaged."""
        return self._refs.named()

    def get_ref(self, recipe: str, stage: str) -> str | None:
        """The fingerprint that `recipe/stage` names. Raises CorruptFile where the ref cannot be
        read.
        """
        return self._ref(f"{recipe}/{stage}")

    def _ref(self, name: str) -> str | None:
        return self._refs.get(name)

    def ref_time(self, name: str) -> str:
        """When the name was set, in ISO's form."""
        return self._refs.time(name)

    def names(self) -> list[str]:
        """Every name, damaged ones too."""
        return self._refs.names()

    def refs(self) -> dict[str, str]:
        """Every name and the fingerprint it stands for; damaged ones left out."""
        return self._refs.all()

    def resolve(self, text: str) -> Artifact:
        """The artifact a person means by `recipe/stage` or by the start of a fingerprint. Raises
        UserError with what there is.
        """
        text = text.strip().strip("/")
        if text in self.names():
            fingerprint = self._ref(text) or ""
            artifact = self.find(fingerprint)
            if artifact is None:
                raise UserError(
                    f"{text} names {fingerprint[:SHORT]}, which is not in {self.artifacts_folder}. "
                    "Build it again."
                )
            return artifact
        matches = (
            [name for name in self.fingerprints() if name.startswith(text.lower())] if text else []
        )
        if len(matches) == 1 and (artifact := self.find(matches[0])):
            return artifact
        if matches:
            shown = ", ".join(name[:SHORT] for name in matches[:8])
            raise UserError(
                f"{text!r} is the start of {len(matches)} fingerprints ({shown}): give more of it."
            )
        refs = self.refs()
        near = difflib.get_close_matches(text, refs, n=3, cutoff=0.6)
        recipe = text.removesuffix(".yaml").partition("/")[0]
        listed = [name for name in refs if name.startswith(f"{recipe}/")] or list(refs)
        hint = (
            f"Did you mean {' or '.join(near)}?"
            if near and "/" in text
            else f"There are: {', '.join(listed[:LISTED]) or 'none yet; build a recipe first'}"
            f"{', …' if len(listed) > LISTED else ''}."
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
            if not (self.home / LAYOUT).exists():
                write_json(self.home / LAYOUT, {"version": VERSION})
        return path


@looking_again
def _is_there(path: Path) -> bool:
    return path.exists()


def _is_listed(folder: Path, name: str) -> bool:
    return folder.is_dir() and any(entry.name == name for entry in folder.iterdir())
