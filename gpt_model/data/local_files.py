"""Local files as data: which of them a glob names, and their bytes, hashed as they are read.

A file is tied to its sha256 when a build is planned (`pin`). Size and time of change are a first
guess there, so that a file which looks unchanged is not read again. Whoever reads it (`Reading`)
hashes what it reads, and a difference is an error.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Annotated, BinaryIO, Self

from gpt_model.data.globs import require_few_wildcards
from gpt_model.errors import UserError, naming_path
from gpt_model.io import sha256_of, temporary_name
from gpt_model.strict import Bounds, Strict

CHUNK = 1 << 20  # bytes
# what the kernel answers there is no data, differs at each reading, and may be a secret
NOT_DATA = tuple(map(Path, ("/proc", "/sys", "/dev")))
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of plain files


class PinnedFile(Strict):
    """A local file tied to its bytes: its name as the recipe sees it, never an absolute path."""

    path: str
    sha256: str
    bytes: Annotated[int, Bounds(0, 2**63, "what a file system holds")]


def find(pattern: str, base: Path) -> list[Path]:
    """The files a glob relative to `base` names, sorted, hidden ones left out. Raises UserError
    where there is none, and where it is empty, begins at the root of the file system or leads to
    the kernel's files.
    """
    if not pattern.strip():
        raise UserError("The path is empty: name the files that are read.")
    require_few_wildcards(pattern)
    with naming_path(pattern):
        _refuse_system_files(base / Path(pattern).expanduser(), pattern)
        root, relative = _root_of(pattern, base)
        if (root / relative).is_dir():
            raise UserError(
                f"{pattern} is a folder: say which files in it, e.g. "
                f"{pattern.rstrip('/')}/**/*.txt."
            )
        # "notes [1].txt" is a name first, and a wildcard where there is no such file
        for spelling in (glob.escape(relative), relative.replace("[", "[[]"), relative):
            # Path.glob would take hidden files too
            names = glob.glob(spelling, root_dir=root, recursive=True)  # noqa: PTH207
            if paths := [path for name in sorted(names) if (path := root / name).is_file()]:
                break
    for path in paths:
        _refuse_system_files(path, pattern)
    if not paths:
        raise UserError(
            f"No file is named by {pattern!r}, looked for from {base}. "
            "Correct the path, or put the text there."
        )
    return paths


def _refuse_system_files(path: Path, pattern: str) -> None:
    """`path`: a file, or a glob such as `pattern`, judged by where its wildcards begin."""
    resolved = _fixed(path).resolve()
    if resolved == Path(resolved.anchor):
        raise UserError(
            f"{pattern!r} begins at the root of the file system: name the folder the files are in."
        )
    if any(map(resolved.is_relative_to, NOT_DATA)) and not resolved.is_relative_to(SHARED_MEMORY):
        raise UserError(
            f"{pattern!r} leads to {resolved}, which is no file but the system's own state. "
            "Name files of data."
        )


def _root_of(pattern: str, base: Path) -> tuple[Path, str]:
    """A folder and a glob below it: the recipe's folder, or for an absolute glob the one where its
    wildcards begin.
    """
    path = Path(pattern).expanduser()
    if not path.is_absolute():
        return base, pattern
    folder = _fixed(path.parent)
    return folder, str(path.relative_to(folder))


def _fixed(path: Path) -> Path:
    """`path` up to its first wildcard; what exists as it is spelt is none."""
    fixed = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if glob.has_magic(part) and not (fixed / part).exists():
            break
        fixed /= part
    return fixed


def seen_from(path: str, base: Path, folder: Path) -> str:
    """The name that a path or glob relative to `folder` has as seen from `base`."""
    return Path(os.path.relpath(folder / Path(path).expanduser(), base)).as_posix()


def pin(pattern: str, base: Path, downloads: Path) -> list[PinnedFile]:
    """The files a glob names, each with its sha256, which is computed again only where the file
    looks changed.

    Leaves a note under `downloads` of where each content was seen, which `locate` reads.
    """
    paths = find(pattern, base)
    root, _ = _root_of(pattern, base)
    pinned = []
    for path in paths:
        digest, size = _guessed_sha256(path, downloads)
        _write(downloads / "local" / digest, str(path.resolve()))
        # a name that is no UTF-8, or is none in this locale, stands in manifests all the same
        name = os.fsencode(path.relative_to(root)).decode("utf-8", "replace")
        pinned.append(PinnedFile(path=name, sha256=digest, bytes=size))
    return pinned


def pin_files(paths: Iterable[Path], downloads: Path) -> list[PinnedFile]:
    """Files of a folder, each by its name alone."""
    return [
        pin(str(path), path.parent, downloads)[0].model_copy(update={"path": path.name})
        for path in paths
    ]


def locate(file: PinnedFile, base: Path, downloads: Path) -> Path:
    """Where the bytes of a pinned file should be, by a first guess: `Reading` makes sure. Raises
    UserError where they are no more.
    """
    note = downloads / "local" / file.sha256
    noted = [Path(os.fsdecode(note.read_bytes()))] if note.is_file() else []
    for path in (base / file.path, *noted):
        if path.is_file() and _guessed_sha256(path, downloads)[0] == file.sha256:
            return path
    raise _changed(file)


class Reading:
    """A block in which pinned files are read. At its end, every byte that was read is the byte that
    was pinned; otherwise it raises UserError.
    """

    def __init__(self, base: Path, downloads: Path) -> None:
        """`base` is where relative paths are seen from; what is pinned is found by its content from
        anywhere.
        """
        self.base, self.downloads = base, downloads
        self._current: tuple[PinnedFile, Path, io.FileIO, _HashedFile] | None = None
        self._linked: list[tuple[PinnedFile, Path]] = []

    def __enter__(self) -> Self:
        return self

    def open(self, file: PinnedFile) -> BinaryIO:
        """Its bytes. It is closed where the next one is opened, and at the end of the block."""
        self._finish()
        path = locate(file, self.base, self.downloads)
        raw = io.FileIO(path)
        self._current = file, path, raw, _HashedFile(raw)
        return io.BufferedReader(self._current[3], CHUNK)

    def locate(self, file: PinnedFile) -> Path:
        """Where it is, for a library that reads files by name: hashed at the end of the block."""
        path = locate(file, self.base, self.downloads)
        self._linked.append((file, path))
        return path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
            for file, path in self._linked:
                self._require(file, path, sha256_of(path) if path.is_file() else "")
        elif self._current:
            file, path, raw, _stream = self._current
            with raw:
                size = os.fstat(raw.fileno()).st_size
            # A file that grew may end in half a row: say so in place of what is wrong with the row.
            if isinstance(error, UserError) and size != file.bytes:
                self._require(file, path, "")

    def _finish(self) -> None:
        if self._current:
            file, path, raw, stream = self._current
            self._current = None
            with raw:
                self._require(file, path, stream.sha256())

    def _require(self, file: PinnedFile, path: Path, sha256: str) -> None:
        if sha256 != file.sha256:
            _note(path, self.downloads).unlink(missing_ok=True)  # it was a wrong guess
            raise _changed(file)


@contextmanager
def linked(
    files: Sequence[PinnedFile], downloads: Path, scratch: Path | None = None
) -> Iterator[Path]:
    """A folder, in `scratch`, with a link to each of `files`, for a library that reads a folder. At
    the end of the block they are hashed, as in `Reading`.
    """
    with TemporaryDirectory(dir=scratch) as folder, Reading(downloads, downloads) as reading:
        for file in files:
            (Path(folder) / file.path).symlink_to(reading.locate(file).resolve())
        yield Path(folder)


def read_once(kind: str, identity: str, downloads: Path, read: Callable[[], None]) -> None:
    """Calls `read`, which looks for mistakes in pinned files, unless a note under `downloads` says
    that it found none in what `identity` says of them.
    """
    note = downloads / "local" / kind / hashlib.sha256(identity.encode()).hexdigest()
    if not note.exists():
        read()
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()


class _HashedFile(io.RawIOBase):
    """A file that is hashed as it is read from start to end. Whoever reads it in another order
    makes `sha256` read it again. To close it leaves the file open.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._position = self._hashed = 0
        self._in_order = True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer)
        if self._position == self._hashed:
            self._hash.update(buffer[:count])
            self._hashed += count
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = self._file.seek(offset, whence)
        self._in_order = self._in_order and position == self._position
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def sha256(self) -> str:
        """Of all that the file holds, what nobody read included."""
        if not self._in_order:
            self._hash, self._hashed = hashlib.sha256(), 0
        self._file.seek(self._hashed)
        while chunk := self._file.read(CHUNK):
            self._hash.update(chunk)
        return self._hash.hexdigest()


def _changed(file: PinnedFile) -> UserError:
    return UserError(
        f"{file.path} is no longer the file that was pinned (sha256 {file.sha256}): it was written "
        "to, while it was read or before. Run again to use it as it is now."
    )


def _note(path: Path, downloads: Path) -> Path:
    """What is known of the file at `path`: how it looked, and its sha256 then."""
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return downloads / "local" / "seen" / name


def _guessed_sha256(path: Path, downloads: Path) -> tuple[str, int]:
    """A file's sha256, and of how many bytes it is: it may be growing. By the note of an earlier
    time where inode, size and times of change are as they were then.
    """
    status = path.stat()
    looks = f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    note = _note(path, downloads)
    known = note.read_text(encoding="utf-8").rpartition(" ") if note.is_file() else ("", "", "")
    if known[0] == looks:
        return known[2], status.st_size
    with path.open("rb") as file:
        digest, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    if size == status.st_size:
        _write(note, f"{looks} {digest}")
    return digest, size


def _write(path: Path, text: str) -> None:
    """Replaces `path` in one step. A path may be no UTF-8, so this is no JSON; and a note that is
    lost is made again, so none waits for the disk, as `write_json` does: a corpus has thousands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.write_bytes(os.fsencode(text))
    temporary.replace(path)
