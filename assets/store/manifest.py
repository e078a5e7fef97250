"""An artifact's manifest: the hashes of its files, and the digest over them; and the sums of what
stands beside the files.

Not here: where artifacts lie and who may touch them (`store.py`), what machine built them
(`provenance.py`). The digest is a sha256 over "path NUL sha256 newline" lines, sorted by path, and
nothing else: no time, host or configuration. What is no part of it (the manifest, the verdicts, the
pictures, the events of the build) has a sha256 each in sums.json.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from assets.contract import SCRATCH, Check, Config, Inputs, Metrics, Verdict
from gpt_model.errors import CorruptFile, UserError
from gpt_model.io import looking_again, sha256_of, write_json
from gpt_model.strict import dotted_location, explanation

FORMAT = 2  # of artifact.json; 1 had no sums beside it
MANIFEST, GATE, SUMS = "artifact.json", "gate.json", "sums.json"
# … and everything in show/; not what changes after publication: delivery, names
EVENTS = "journal/events.jsonl"
SUMMED = (MANIFEST, GATE, EVENTS, "journal/build.json")
BUILD_AGAIN = "Run its recipe again: it is then set aside, and built anew."
FileStates = dict[str, list[int]]
FULL = (errno.ENOSPC, errno.EDQUOT)  # no space left on the disk, or none of the user's share
SQLITE_ROOM_BYTES = 1 << 20  # with less, an I/O error of SQLite is a full disk
# When an artifact was last hashed whole: {"at": seconds since 1970, "files": `file_states`}. One of
# LARGE_BYTES and more is not hashed again where these are the same, for a week.
READ_WHOLE = "journal/verified.json"
LARGE_BYTES, WEEK_SECONDS = 1 << 30, 7 * 24 * 3600.0

Verdicts = Mapping[str, tuple[Check, Verdict]]


@dataclass(frozen=True)
class Facts:
    """What is known of a build when it is published; the files speak for themselves."""

    stage: str
    version: str
    config: Config
    inputs: Inputs
    metrics: Metrics
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileEntry:
    """One hashed file: its path below `files/` with "/" between the parts, bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


class _Input(BaseModel):
    name: str
    stage: str
    fingerprint: str
    digest: str


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    path: str
    size: int
    sha256: str


class _Manifest(BaseModel):
    """The shape of artifact.json."""

    model_config = ConfigDict(strict=True)

    format: int
    stage: str
    version: str
    fingerprint: str
    digest: str
    config: dict[str, Any]
    inputs: list[_Input]
    files: list[_File]
    metrics: dict[str, float]
    provenance: dict[str, Any]


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turns the error of a full disk (or a quota) inside the block into a UserError that names
    `folder` and the bytes still free.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not disk_is_full(error, folder):
            raise
        raise UserError(full_disk(folder, getattr(error, "filename", None))) from error


def disk_is_full(error: BaseException, folder: Path) -> bool:
    """Whether `error`, or what it comes from, is a full disk's: as an OSError, or as SQLite and
    safetensors put it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return True
        if isinstance(cause, sqlite3.Error):
            code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the rest of it says where
            if code == sqlite3.SQLITE_FULL:
                return True
            # "disk I/O error", where its shared memory finds no room
            return code == sqlite3.SQLITE_IOERR and _free(folder) < SQLITE_ROOM_BYTES
        if type(cause).__name__ == "SafetensorError" and f"(os error {errno.ENOSPC})" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def full_disk(folder: Path, file: str | None = None) -> str:
    """What a person reads when the disk of `folder` is full; `file` is what met it, where that is
    known.
    """
    return (
        f"The disk is full: writing {file or folder} failed with {_free(folder):,} bytes free on "
        f"the disk of {folder}. "
        "Free some space, or point LINEAGE_HOME at a larger disk, and run again; what was built "
        "so far is kept."
    )


def _free(folder: Path) -> int:
    """Bytes free on the disk of `folder`, which need not exist."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def canonical(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, UTF-8. Raises ValueError on NaN,
    which has no JSON spelling.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def fingerprint(stage: str, version: str, config: Config, inputs: Mapping[str, str]) -> str:
    """sha256 (hex) of what identifies an artifact; `inputs` is input name → digest."""
    identity = {"stage": stage, "version": version, "config": config, "inputs": dict(inputs)}
    return hashlib.sha256(canonical(identity)).hexdigest()


def payload(files: Path, *, links: bool = False) -> list[Path]:
    """Every file below `files` but the scratch folder, sorted by its path's bytes; none where it is
    no folder. Raises ValueError on a link or a device, unless `links` are wanted.
    """
    paths = []
    for folder, subfolders, names in os.walk(files):
        if Path(folder) == files and SCRATCH in subfolders:
            subfolders.remove(SCRATCH)
        for name in names + [sub for sub in subfolders if Path(folder, sub).is_symlink()]:
            path = Path(folder, name)
            if not links and (path.is_symlink() or not path.is_file()):
                raise ValueError(
                    f"{path} is a link or not a plain file; a stage leaves plain files only"
                )
            paths.append(path)
    return sorted(paths, key=lambda path: path.relative_to(files).as_posix().encode())


def entries(files: Path) -> list[FileEntry]:
    """Hashes everything below `files`."""
    return [
        FileEntry(path.relative_to(files).as_posix(), path.stat().st_size, sha256_of(path))
        for path in payload(files)
    ]


def digest(files: Sequence[FileEntry]) -> str:
    """The artifact's digest, sha256 in hex."""
    return hashlib.sha256(
        b"".join(f"{entry.path}\0{entry.sha256}\n".encode() for entry in files)
    ).hexdigest()


def compose(facts: Facts, identity: str, files: Sequence[FileEntry]) -> dict[str, Any]:
    """The manifest as it stands in artifact.json."""
    return {
        "format": FORMAT,
        "stage": facts.stage,
        "version": facts.version,
        "fingerprint": identity,
        "digest": digest(files),
        "config": facts.config,
        "inputs": [
            {
                "name": name,
                "stage": artifact.stage,
                "fingerprint": artifact.fingerprint,
                "digest": artifact.digest,
            }
            for name, artifact in facts.inputs.items()
        ],
        "files": [vars(entry) for entry in files],
        "metrics": facts.metrics,
        "provenance": dict(facts.provenance),
    }


def problems(manifest: Mapping[str, Any], files: Path) -> list[str]:
    """What is not as it was published, one sentence each: changed, missing and extra files, an
    identity that does not add up, and what stands beside the files.
    """
    return file_problems(manifest, files) + sum_problems(files.parent)


def file_problems(manifest: Mapping[str, Any], files: Path) -> list[str]:
    """The same of the files and the identity alone."""
    sentences = _differences(
        {entry["path"]: entry["sha256"] for entry in manifest["files"]},
        files,
        {path.relative_to(files).as_posix() for path in payload(files, links=True)},
    )
    entries = [FileEntry(**entry) for entry in manifest["files"]]
    if (expected := digest(entries)) != manifest["digest"]:
        sentences.append(
            f"The manifest's digest {manifest['digest'][:12]}… is not that of its files, "
            f"{expected[:12]}…."
        )
    inputs = {entry["name"]: entry["digest"] for entry in manifest["inputs"]}
    if (
        expected := fingerprint(manifest["stage"], manifest["version"], manifest["config"], inputs)
    ) != manifest["fingerprint"]:
        sentences.append(
            f"The manifest's fingerprint {manifest['fingerprint'][:12]}… is not that of its "
            f"contents, {expected[:12]}…."
        )
    return sentences


def record_sums(folder: Path) -> None:
    """Writes sums.json, the sha256 of what stands beside an artifact's files."""
    write_json(folder / SUMS, {name: sha256_of(folder / name) for name in _summed(folder)})


def sum_problems(folder: Path) -> list[str]:
    """What stands beside an artifact's files and is not as it was published, one sentence each.
    Nothing where that is not recorded.
    """
    sums = read_sums(folder)
    return [] if sums is None else _differences(sums, folder, set(_summed(folder)))


def read_sums(folder: Path) -> dict[str, str] | None:
    """sums.json; None where an earlier version published the artifact, and no run has recorded
    them yet. Raises CorruptFile where they are damaged.
    """
    path = folder / SUMS
    try:
        sums = read_json(path, BUILD_AGAIN)
    except FileNotFoundError:
        return None
    if not isinstance(sums, dict) or not all(isinstance(sum_, str) for sum_ in sums.values()):
        raise CorruptFile(f"{path} is damaged: it is no list of sha256. {BUILD_AGAIN}")
    return sums


def read_manifest(folder: Path) -> dict[str, Any]:
    """artifact.json of a published artifact. Raises FileNotFoundError where it is not there, and
    CorruptFile where it is not what was published, or no manifest.
    """
    path = folder / MANIFEST
    manifest = read_json(path, BUILD_AGAIN)
    try:
        parsed = _Manifest.model_validate(manifest)
    except ValidationError as error:
        problem = error.errors()[0]
        raise CorruptFile(
            f"{path} is damaged: `{dotted_location(problem['loc'])}` {explanation(problem)}. "
            f"{BUILD_AGAIN}"
        ) from None
    if parsed.fingerprint != folder.name.partition(".")[0]:  # it may be set aside
        raise CorruptFile(
            f"{path} is damaged: `fingerprint` is that of another artifact. {BUILD_AGAIN}"
        )
    require_published(folder, MANIFEST)
    if parsed.format > 1 and not (folder / SUMS).is_file():
        raise CorruptFile(f"{folder / SUMS} is missing. {BUILD_AGAIN}")
    return manifest


def require_published(folder: Path, name: str) -> None:
    """Raises CorruptFile where a file beside an artifact's files is not as it was published."""
    if (sums := read_sums(folder)) is not None:
        for problem in _differences({name: sums.get(name, "nothing")}, folder, {name}):
            raise CorruptFile(f"{problem} {BUILD_AGAIN}")


def _summed(folder: Path) -> list[str]:
    """The files that sums.json covers, by their names below `folder`."""
    shown = payload(folder / "show", links=True)
    names = [name for name in SUMMED if (folder / name).is_file()]
    return [*names, *(path.relative_to(folder).as_posix() for path in shown)]


def _differences(published: Mapping[str, str], folder: Path, present: set[str]) -> list[str]:
    """`published`: name below `folder` -> sha256."""
    missing, extra = published.keys() - present, present - published.keys()
    sentences = [f"{folder / name} is missing." for name in sorted(missing)]
    sentences += [
        f"{folder / name} was not there when the artifact was published." for name in sorted(extra)
    ]
    for name in sorted(published.keys() & present):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            sentences.append(f"{path} is a link or not a plain file; it was published as one.")
            continue
        try:
            sha256 = sha256_of(path)
        except OSError as error:
            sentences.append(f"{path} cannot be read ({error.strerror}).")
            continue
        if sha256 != published[name]:
            sentences.append(
                f"{path} has sha256 {sha256[:12]}… ({path.stat().st_size:,} bytes), published with "
                f"{published[name][:12]}…."
            )
    return sentences


@looking_again
def read_json(path: Path, cure: str = "") -> Any:
    """A JSON file of ours. Raises CorruptFile naming it, and `cure`, where it is not JSON;
    FileNotFoundError where it is not there.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path} is damaged: it is not JSON ({error}). {cure}".strip()) from None


def file_states(files: Path) -> FileStates:
    """Of every file below `files`, what changes with its bytes: size, times in ns and inode. The
    second time is the inode's change, which nobody can set.
    """
    states = {}
    for path in payload(files, links=True):
        stat = path.lstat()
        states[path.relative_to(files).as_posix()] = [
            *(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        ]
    return states


def record_reading(folder: Path, states: FileStates) -> None:
    """Notes that the artifact in `folder` was read whole, when its files were as in `states`."""
    (folder / READ_WHOLE).parent.mkdir(exist_ok=True)
    write_json(folder / READ_WHOLE, {"at": time.time(), "files": states})


def read_whole_at(folder: Path) -> float | None:
    """When the artifact in `folder` was last read whole, in seconds since 1970, if its files are as
    they were then and it is less than a week ago.
    """
    try:
        noted: Any = read_json(folder / READ_WHOLE, BUILD_AGAIN)
        at = float(noted["at"])
        fresh = 0 <= time.time() - at < WEEK_SECONDS
        return at if fresh and noted["files"] == file_states(folder / "files") else None
    except (OSError, CorruptFile, KeyError, TypeError, ValueError):  # read it whole, then
        return None
