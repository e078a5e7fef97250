"""Text without the passwords, tokens and keys of this process's environment, for whatever is
printed, logged or stored. Standard library only.

Two kinds are left out: the user and password of an address, whoever wrote it, and the values of
environment variables that hold a secret by their name, alone or inside an address.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import TextIO
from urllib.parse import unquote, urlsplit

SECRET_NAME = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|COOKIE|CONNECTION_STRING)S?$"
    r"|(^|_)((API)?KEY|PASS|AUTH|SIG|SIGNATURE)$"
)
SHORTEST = 6  # characters; a shorter value ("true", "1") stands in too many harmless texts
USER_AND_PASSWORD = re.compile(r"(?<=://)[^\s/?#'\"<>\\]+@")
HIDDEN = "***"


def redacted(text: str) -> str:
    """`text` with every secret of the environment replaced by ***, and with no user or password in
    an address.
    """
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return USER_AND_PASSWORD.sub("", text)


def secret(name: str, value: str) -> bool:
    """Whether an environment variable holds a secret."""
    return any(_secrets({name: value}))


def _secrets(environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    for name, value in environment.items():
        if SECRET_NAME.search(name.upper()):
            yield from _spellings(value)
        if "://" in value:
            yield from _of_address(value)


def _of_address(value: str) -> Iterator[str]:
    """The password of an address (its user, where that stands alone: a token), and parameters that
    hold a secret by their name.
    """
    try:
        parts = urlsplit(value)
        user_and_password = parts.netloc.rpartition("@")[0]
    except ValueError:
        return
    yield from _spellings(user_and_password.partition(":")[2] or user_and_password)
    for parameter in parts.query.split("&"):
        name, _, secret = parameter.partition("=")
        if SECRET_NAME.search(name.upper()):
            yield from _spellings(secret)


def _spellings(secret: str) -> Iterator[str]:
    """As it stands, and with its percent signs decoded."""
    for spelling in (secret.strip(), unquote(secret.strip())):
        if len(spelling) >= SHORTEST:
            yield spelling


class RedactedStream(io.TextIOBase):
    """A text stream that writes `redacted` text to another: for the stdout or stderr of a process
    whose output is kept.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors


def redact_output() -> None:
    """From now on this process prints no secret; for those whose output is kept in a log."""
    if not isinstance(sys.stderr, RedactedStream):
        sys.stdout, sys.stderr = RedactedStream(sys.stdout), RedactedStream(sys.stderr)
