"""An artifact's manifest: the hashes of its files, and the digest over them.

Not here: where artifacts lie and who may touch them (`store.py`), what machine built them
(`provenance.py`). The digest is a sha256 over "path NUL sha256 newline" lines, sorted by path, and
nothing else: no time, host or configuration.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assets.contract import SCRATCH, Check, Config, Inputs, Metrics, Verdict
from gpt_model.errors import CorruptFile, UserError
from gpt_model.io import sha256_of

FORMAT = 1  # of artifact.json
FULL = (errno.ENOSPC, errno.EDQUOT)  # no space left on the disk, or none of the user's share

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


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turns "no space left" (or a quota) inside the block into a UserError that names `folder` and
    the bytes still free.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(full_disk(folder, error.filename)) from error


def full_disk(folder: Path, file: str | None = None) -> str:
    """What a person reads when the disk of `folder` is full; `file` is what met it, where that is
    known.
    """
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    return (
        f"The disk is full: writing {file or folder} failed with {free:,} bytes free on the disk "
        f"of {folder}. "
        "Free some space, or point LINEAGE_HOME at a larger disk, and run again; what was built "
        "so far is kept."
    )


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


def payload(files: Path) -> list[Path]:
    """Every file below `files` but the scratch folder, sorted by its path's bytes. Raises
    ValueError on a link or a device.
    """
    paths = []
    for folder, subfolders, names in os.walk(files):
        if Path(folder) == files and SCRATCH in subfolders:
            subfolders.remove(SCRATCH)
        for name in names + [sub for sub in subfolders if Path(folder, sub).is_symlink()]:
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file():
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
    identity that does not add up.
    """
    written = {entry["path"]: FileEntry(**entry) for entry in manifest["files"]}
    present = (
        {path.relative_to(files).as_posix(): path for path in payload(files)}
        if files.is_dir()
        else {}
    )
    sentences = [f"{files / name} is missing." for name in sorted(written.keys() - present.keys())]
    sentences += [
        f"{files / name} was not there when the artifact was published."
        for name in sorted(present.keys() - written.keys())
    ]
    for name in sorted(written.keys() & present.keys()):
        size, sha256 = present[name].stat().st_size, sha256_of(present[name])
        if sha256 != written[name].sha256:
            sentences.append(
                f"{present[name]} has sha256 {sha256[:12]}… ({size:,} bytes), published with "
                f"{written[name].sha256[:12]}… "
                f"({written[name].size:,} bytes)."
            )
    if (expected := digest(list(written.values()))) != manifest["digest"]:
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


def read_json(path: Path) -> Any:
    """A JSON file of ours. Raises CorruptFile naming it where it is not JSON, FileNotFoundError
    where it is not there.
    """
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptFile(
            f"{path} is damaged: it is not JSON ({error}). Remove its folder to build the artifact "
            "again."
        ) from None
