"""Reading files out of an archive without unpacking, building or running anything in it.

An archive is a wheel or zip, or a tar (.tar, .tar.gz, .tgz, .tar.bz2, .tar.xz). Nothing is ever
written where a member's name says. Refused as a whole, before the first byte of text: names that
lead out of the archive, links and devices, and more decompressed bytes than LIMIT or RATIO allow;
the decompressor is stopped at the same bound, whatever the headers declare.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from fsspec.utils import glob_translate

from gpt_model.data.globs import require_few_wildcards
from gpt_model.errors import UserError

LIMIT = 4 * 2**30  # bytes an archive may hold, decompressed
RATIO = 200  # … and how many times its own size; text compresses 3- to 20-fold, a bomb 1000-fold
SMALL = 64 * 2**20  # … but so much is always allowed

_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    NotImplementedError,
)


@dataclass(frozen=True)
class Member:
    """A plain file in an archive: its path there and its declared size in bytes."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def open_members(archive: Path, patterns: str | Sequence[str]) -> Iterator[tuple[str, BinaryIO]]:
    """(name, readable binary file) of every file that matches, in the archive's order; the file is
    closed at the next step.

    `patterns` are globs (`*` within a folder, `**` across folders) over paths in the archive. Where
    everything lies in one folder, as in a source distribution (`name-1.0/…`), they may start below
    it. "outer.tar.gz!inner/*.txt" reads a file of an archive in the archive. Raises UserError where
    a pattern matches nothing, and for an archive that is damaged or refused.
    """
    yield from _matching(
        archive, [patterns] if isinstance(patterns, str) else list(patterns), archive.name
    )


def _matching(archive: Path, patterns: list[str], label: str) -> Iterator[tuple[str, BinaryIO]]:
    plain = [pattern for pattern in patterns if "!" not in pattern]
    nested = [pattern.split("!", 1) for pattern in patterns if "!" in pattern]
    with _opened(archive, label) as members:
        below = _common_folder([member.name for member in members])
        for pattern in (*plain, *(outer for outer, _ in nested)):
            if not any(_matches(pattern, member.name, below) for member in members):
                names = ", ".join(member.name for member in members[:5])
                raise UserError(
                    f"{label} holds no file that matches {pattern!r}. It holds {len(members)} "
                    f"files: {names}, …."
                )
        for member in members:
            if any(_matches(pattern, member.name, below) for pattern in plain):
                with _guarded(member.open, f"{label}: {member.name}", member.size) as stream:
                    yield member.name, stream
            if inner := [inner for outer, inner in nested if _matches(outer, member.name, below)]:
                with tempfile.TemporaryDirectory() as folder:
                    copy = Path(folder) / PurePosixPath(member.name).name
                    with (
                        _guarded(member.open, f"{label}: {member.name}", member.size) as stream,
                        copy.open("wb") as file,
                    ):
                        shutil.copyfileobj(stream, file)
                    for name, stream in _matching(copy, inner, f"{label}!{member.name}"):
                        yield f"{member.name}!{name}", stream


def _matches(pattern: str, name: str, below: str) -> bool:
    require_few_wildcards(pattern)
    regex, names = re.compile(glob_translate(pattern)), (name, name.removeprefix(below))
    return pattern in names or any(map(regex.match, names))


def _common_folder(names: list[str]) -> str:
    """ "name-1.0/" where every file lies in that folder, else ""."""
    tops = {name.split("/", 1)[0] for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""


@contextmanager
def _opened(archive: Path, label: str) -> Iterator[list[Member]]:
    """The plain files of an archive, after all of it was looked over."""
    size = archive.stat().st_size
    limit = min(LIMIT, max(SMALL, RATIO * size))
    with _damage_named(label):
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as file:
                yield _zip_members(file, limit, label)
        elif archive.suffix in (".tar", ".gz", ".tgz", ".bz2", ".xz"):
            with (
                _guarded(lambda: _decompressed(archive), label, limit) as stream,
                tarfile.TarFile.open(fileobj=stream, mode="r:") as tar,
            ):
                yield _tar_members(tar, limit, label)
        else:
            raise UserError(
                f"{label} is not an archive this can read: expected .whl, .zip, .tar, .tar.gz, "
                ".tar.bz2 or .tar.xz."
            )


def _decompressed(archive: Path) -> IO[bytes]:
    openers: dict[str, Any] = {
        ".gz": gzip.open,
        ".tgz": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
    }
    stream: IO[bytes] = openers.get(archive.suffix, open)(archive, "rb")
    return stream


def _zip_members(file: zipfile.ZipFile, limit: int, label: str) -> list[Member]:
    members, total = [], 0
    for info in file.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        _refuse_unsafe(info.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR), label)
        if info.flag_bits & 1:
            raise UserError(f"{label}: {info.filename} is encrypted, so it cannot be read.")
        total += info.file_size
        _refuse_large(total, limit, label)
        if not info.is_dir():
            members.append(Member(info.filename, info.file_size, partial(file.open, info)))
    return members


def _tar_members(file: tarfile.TarFile, limit: int, label: str) -> list[Member]:
    members, total = [], 0
    # one header at a time: a member too large is refused before it is decompressed
    for info in file:
        _refuse_unsafe(info.name, info.isreg() or info.isdir(), label)
        total += info.size
        _refuse_large(total, limit, label)
        if info.isreg():
            opened: Any = partial(file.extractfile, info)
            members.append(Member(info.name, info.size, opened))
    return members


def _refuse_unsafe(name: str, plain: bool, label: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"^[A-Za-z]:", name):
        raise UserError(
            f"{label} is refused: its member {name!r} leads out of the archive. Do not use this "
            "file."
        )
    if not plain:
        raise UserError(
            f"{label} is refused: its member {name!r} is a link or a device, not a plain file."
        )


def _refuse_large(size: int, limit: int, label: str) -> None:
    if size > limit:
        raise UserError(
            f"{label} is refused: it holds more than {limit:,} bytes, too many for a file of its "
            "size."
        )


@contextmanager
def _damage_named(label: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise UserError(
            f"{label} is damaged or not the archive its name says ({error}). Delete it and fetch "
            "it again."
        ) from None


@contextmanager
def _guarded(open_: Callable[[], IO[bytes]], label: str, limit: int) -> Iterator[BinaryIO]:
    with _damage_named(label):
        raw = open_()
    with raw, io.BufferedReader(_Bounded(raw, label, limit), 1 << 16) as stream:
        yield stream


class _Bounded(io.RawIOBase):
    """A readable file that names damage when it meets it and does not read past `limit` bytes."""

    def __init__(self, raw: IO[bytes], label: str, limit: int) -> None:
        self._raw, self._label, self._limit = raw, label, limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._raw.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _damage_named(self._label):
            return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with _damage_named(self._label):
            data = self._raw.read(len(buffer))
            _refuse_large(self._raw.tell(), self._limit, self._label)
        buffer[: len(data)] = data
        return len(data)
