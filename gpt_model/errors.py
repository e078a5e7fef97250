"""The one kind of error a person is meant to read, without secrets of the environment.

A `UserError` is a sentence for the person who can act: which file and field, what was found, what
was expected, what to do. Everything that reports errors (the command line, the Dagster run, the
worker) prints its text and no traceback. Any other exception is a defect of ours and keeps its
traceback.

An error may know which setting it is about: `field`, dotted, as whoever raises it is told its
settings (`vocab_size`). Whoever passes a part of its own settings on puts that part's name before
it (`about`), until somebody knows the file they stand in, and says so.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt_model.redaction import redacted

# of an OSError that whoever owns the files can mend, and that is no defect of ours
MENDABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EIO,
    errno.EMFILE,
    errno.ENOSPC,
    errno.EDQUOT,
)
SHOWN = 200  # characters of a value or a path that a sentence shows


class UserError(Exception):
    """Something outside the code is wrong, and the message says what and where and what to do."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        """`field`: the setting to mend; "" where it is all of them together, None where it is none.

        One that begins with a dot is no part of the settings at hand: it is counted from the recipe
        itself.
        """
        super().__init__(redacted(message))
        self.field = field


class CorruptFile(UserError):
    """A file's bytes are not the bytes that were written (its checksum differs)."""


class Unavailable(UserError):
    """What a stage needs cannot be had on this machine, such as a data set on request from its
    authors: no mistake of anybody's. The build goes on, with an artifact that says why.

    The message is a clause without a full stop: it stands after "Not run here:".
    """


class Unreachable(UserError):
    """A place outside this machine did not answer, such as the hub: nothing is wrong with what was
    asked of it.
    """


def dotted(*parts: str | None) -> str:
    """The parts of a field's name with dots between; those that are empty left out."""
    return ".".join(part for part in parts if part)


@contextmanager
def about(part: str) -> Iterator[None]:
    """What goes wrong in here is about `part` of the settings: `part.field` where the error knows
    the field, else `part` itself.
    """
    try:
        yield
    except UserError as error:
        error.field = dotted(part, error.field)
        raise


@contextmanager
def about_all_of(part: str) -> Iterator[None]:
    """What goes wrong in here is about `part` of the settings, and no deeper: it names another
    file, whose own settings those are.
    """
    try:
        yield
    except UserError as error:
        error.field = part
        raise


@contextmanager
def naming_path(path: Path | str) -> Iterator[None]:
    """What the file system says in here of `path`, which a person wrote, as a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(refused(error, path)) from None
    # a NUL byte; the home of a user that there is not
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{shortened(str(path))} is no path: {error}.") from None


def refused(error: OSError, path: Path | str | None = None) -> str:
    """What the file system refuses, as a sentence. `path`: where the error does not name it."""
    name = shortened(str(error.filename or path or "A file"))
    return f"{name} cannot be read or written: {error.strerror or error}."


def sentence_of(error: BaseException) -> str | None:
    """What a person should read of `error`, where it is theirs to act on; None for a defect of
    ours.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in MENDABLE:
        return refused(error)
    return None


def shortened(text: str) -> str:
    """`text`, not all of it where it is long."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}…"
