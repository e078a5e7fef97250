"""Files written whole or not at all, checksums, the digits of a number that are written, a model
folder as `transformers` has it, and this process's memory. No torch: `convert` reads tensors.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, overload

from gpt_model.errors import CorruptFile, UserError

TEMPORARY = ".tmp"  # what a file that is being written ends in
STALE_SECONDS = (0.0, 0.1, 0.5, 1.0, 2.0)  # before each further look

P = ParamSpec("P")
T = TypeVar("T")


def looking_again(read: Callable[P, T]) -> Callable[P, T]:
    """`read`, once more where a network file system reports ESTALE: another host has replaced a
    file after this one looked up its name.
    """

    @functools.wraps(read)
    def reads(*arguments: P.args, **options: P.kwargs) -> T:
        for pause in STALE_SECONDS:
            try:
                return read(*arguments, **options)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
            time.sleep(pause)
        return read(*arguments, **options)

    return reads


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_name(path: Path) -> Path:
    """What this thread writes before it takes the place of `path`. Hosts that share the folder have
    processes of the same number.
    """
    writer = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    return path.with_name(f"{path.name}.{writer}{TEMPORARY}")


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` in one step, on disk before it returns: a reader sees the old or the new,
    whatever dies.

    A reader may take the new file, and rename or remove its folder, before this returns: a
    checkpoint's rank 0 does.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
    folder = os.open(
        path.parent, os.O_RDONLY
    )  # under this name no longer, perhaps, once the file is there
    try:
        temporary.replace(path)
        os.fsync(folder)
    finally:
        os.close(folder)


def dump_json(path: Path, value: Any, **style: Any) -> None:
    """A file of a folder that is published whole: `write_json` is for others. `style`: of
    json.dumps, and the same for ever, as the bytes are hashed.
    """
    path.write_text(json.dumps(value, **style) + "\n", encoding="utf-8")


def write_json_lines(path: Path, rows: Iterable[Any], *, sort_keys: bool = False) -> None:
    """A JSON value a line."""
    lines = (json.dumps(row, sort_keys=sort_keys, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def read_json_lines(path: Path) -> list[Any]:
    # Not splitlines: that also ends a line at \u2028.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def fsync(path: Path) -> None:
    """Puts a file's bytes, or a folder's names, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@overload
def rounded(value: float) -> float: ...
@overload
def rounded(value: None) -> None: ...
@overload
def rounded(value: float | None) -> float | None: ...
def rounded(value: float | None) -> float | None:
    """Six significant digits: below what the order of additions on another number of threads
    changes, above what anyone reads.
    """
    return None if value is None else float(f"{value:.6g}")


CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # of a model in several files: tensor -> file
PICKLED = "pytorch_model*.bin"


def described(folder: Path) -> dict[str, Any]:
    """What config.json says. Raises UserError where there is none."""
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(
            f"{folder} is not a model folder: it has no {CONFIG}. Give a folder with {CONFIG} and "
            f"{WEIGHTS}."
        )
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFile(f"{file} is not JSON: {error}.") from error
    if not isinstance(stored, dict):
        raise CorruptFile(f"{file} is not a JSON object.")
    return stored


def weight_files(folder: Path) -> list[Path]:
    """The one file of weights, or those that an index names. Raises UserError where they are not
    there, or are pickled.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        if files := sorted(folder.glob(PICKLED)):
            raise pickled(
                str(files[0]),
                f"Give the model as safetensors: transformers' save_pretrained writes {WEIGHTS}.",
            )
        raise UserError(
            f"{folder} is not a model folder: it has no {WEIGHTS}. Give a folder with {CONFIG} and "
            f"{WEIGHTS}."
        )
    try:
        names = sorted(
            set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFile(
            f"{folder / INDEX} is not an index of weights: {error!r}. Fetch or export the model "
            "again."
        ) from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(
                f"{folder / INDEX} names the file {name!r}, which is not beside it. Fetch or "
                "export the model again."
            )
    return [folder / name for name in names]


def pickled(what: str, instead: str) -> UserError:
    """The refusal of weights that are no safetensors."""
    return UserError(
        f"{what} is pickled, and reading it could run whatever its author wrote into it. {instead}"
    )


def peak_resident_bytes() -> int:
    """The most bytes resident in this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux; its ru_maxrss also counts what the parent had before exec
        line = next(
            (
                line
                for line in status.read_text(encoding="utf-8").splitlines()
                if line.startswith("VmHWM:")
            ),
            None,
        )
        if line is not None:
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
