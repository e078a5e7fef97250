"""Fetching a package file from the user's own package index, pinned by sha256. It is never
installed, built or run.

The index is the one pip would use: PIP_* variables, then pip's configuration files, else the public
one (pypi-simple's default). Read from it: index-url, extra-index-url, no-index, find-links, cert,
trusted-host, proxy. What a file holds is `archives.py`'s.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pypi_simple import (
    PYPI_SIMPLE_ENDPOINT,
    DigestMismatchError,
    DistributionPackage,
    NoSuchProjectError,
    PyPISimple,
    UnparsableFilenameError,
    UnsupportedContentTypeError,
    parse_filename,
)
from requests.adapters import BaseAdapter

from gpt_model.data.requirement import Kind, name_and_version
from gpt_model.errors import UserError
from gpt_model.io import sha256_of, temporary_name
from gpt_model.progress import Progress
from gpt_model.redaction import redacted

ATTEMPTS = 5
FIRST_WAIT = 0.5  # seconds before the second attempt; doubled for each one after it
TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between bytes


def fetch_package(
    requirement: str, kind: Kind, sha256: str, downloads: Path, progress: Progress
) -> Path:
    """The package file on disk, its bytes verified against `sha256`: from `downloads`, else from
    the index, which is then asked.

    Raises UserError, about `sha256` where the bytes are others than pinned, about `package` where
    no index has it or none answers.
    """
    folder = downloads / "packages"
    for cached in sorted(folder.glob(f"{sha256[:16]}-*")):
        if sha256_of(cached) == sha256:
            return cached
        progress.log(f"{cached.name} in {folder} is damaged; fetching it again.")
    folder.mkdir(parents=True, exist_ok=True)
    name, version = name_and_version(requirement)
    wanted = _Wanted(name, version, kind, sha256)
    reasons: list[str] = []
    field = "package"
    for where, fetch in _locations(wanted, progress):
        part = temporary_name(folder / f".{sha256[:16]}")
        try:
            filename = _with_retries(partial(fetch, part), progress)
            if filename is None:
                reasons.append(f"{where} does not have it")
                continue
            actual = sha256_of(part)
            if actual != sha256:
                field = "sha256"
                reasons.append(f"{where} has {filename} with sha256 {actual}, expected {sha256}")
                continue
            target = folder / f"{sha256[:16]}-{filename}"
            part.replace(target)  # atomic: whoever else fetches the same file writes the same bytes
            return target
        except (
            requests.RequestException,
            DigestMismatchError,
            UnsupportedContentTypeError,
        ) as error:
            reasons.append(f"{where} failed: {redacted(str(error))}")
        finally:
            part.unlink(missing_ok=True)
    raise UserError(
        f"The {kind} of {requirement} could not be fetched: "
        f"{'; '.join(reasons) or 'pip is set to use no index'}. "
        "Check the connection, name, version and sha256, and pip's index settings "
        "(PIP_INDEX_URL, pip config).",
        field=field,
    )


@dataclass(frozen=True)
class _Wanted:
    name: str
    version: Version
    kind: Kind
    sha256: str

    def chosen(self, packages: list[DistributionPackage]) -> DistributionPackage | None:
        """The file with the pinned digest, else the first of the right version and kind: its
        bytes are then compared.
        """
        right = [
            p
            for p in packages
            if p.version and _version(p.version) == self.version and p.package_type == self.kind
        ]
        return next(
            (p for p in right if p.digests.get("sha256") == self.sha256),
            right[0] if right else None,
        )


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


# writes the file to a path and returns its name; None where the index does not have it
Fetch = Callable[[Path], "str | None"]


def _locations(wanted: _Wanted, progress: Progress) -> Iterator[tuple[str, Fetch]]:
    """Where pip searches, in its order: local folders, the index, the extra indexes."""
    settings = _Settings.of_the_user()
    for folder in settings.folders:
        yield str(folder), partial(_from_folder, folder, wanted)
    for url in settings.indexes:
        yield (redacted(url), partial(_from_index, url, settings, wanted, progress=progress))


def _from_folder(folder: Path, wanted: _Wanted, part: Path) -> str | None:
    for path in sorted(folder.glob("*")):
        try:
            project, version, kind = parse_filename(path.name, wanted.name)
        except UnparsableFilenameError:
            continue
        if (canonicalize_name(project), _version(version), kind) == (
            canonicalize_name(wanted.name),
            wanted.version,
            wanted.kind,
        ):
            shutil.copyfile(path, part)
            return path.name
    return None


def _from_index(
    url: str, settings: _Settings, wanted: _Wanted, part: Path, progress: Progress
) -> str | None:
    with PyPISimple(url, session=settings.session(url)) as client:
        try:
            page = client.get_project_page(wanted.name, timeout=TIMEOUT)
        except NoSuchProjectError:
            return None
        package = wanted.chosen(page.packages)
        if package is None:
            return None
        report = _Report(package.filename, progress)
        client.download_package(
            package, part, verify=bool(package.digests), progress=report.sized, timeout=TIMEOUT
        )
        return package.filename


def _with_retries(fetch: Callable[[], str | None], progress: Progress) -> str | None:
    """`fetch()`, again after a growing wait where the failure may be temporary."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return fetch()
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
            DigestMismatchError,
        ) as error:
            problem: Exception = error
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code not in (
                408,
                425,
                429,
                500,
                502,
                503,
                504,
            ):
                raise
            problem = error
        if attempt == ATTEMPTS:
            raise problem
        wait = FIRST_WAIT * 2 ** (attempt - 1)
        progress.log(
            f"{redacted(str(problem))}; trying again in {wait:g} s ({attempt} of "
            f"{ATTEMPTS} attempts)."
        )
        time.sleep(wait)
    raise AssertionError("unreachable")


@dataclass
class _Report:
    """A pypi-simple progress tracker that reports to a `Progress`."""

    filename: str
    progress: Progress
    total: int = 0
    done: int = field(default=0, init=False)

    def sized(self, total: int | None) -> _Report:
        self.total, self.done = total or 0, 0
        return self

    def __enter__(self) -> _Report:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, increment: int) -> None:
        self.done += increment
        self.progress.advance(self.done, max(self.total, self.done), f"bytes of {self.filename}")


@dataclass(frozen=True)
class _Settings:
    """pip's settings about indexes, from PIP_* variables or its configuration files."""

    indexes: tuple[str, ...]
    folders: tuple[Path, ...]
    certificates: str | None
    trusted: tuple[str, ...]
    proxy: str | None

    @classmethod
    def of_the_user(cls) -> _Settings:
        setting = _pip_settings()
        lists = {
            name: setting(name).split()
            for name in ("extra-index-url", "find-links", "trusted-host")
        }
        indexes = [setting("index-url") or PYPI_SIMPLE_ENDPOINT, *lists["extra-index-url"]]
        folders = [
            Path(unquote(urlsplit(link).path) if link.startswith("file:") else link)
            for link in lists["find-links"]
        ]
        return cls(
            indexes=()
            if setting("no-index").lower() in ("1", "true", "yes", "on")
            else tuple(indexes),
            folders=tuple(folder for folder in folders if folder.is_dir()),
            certificates=setting("cert") or None,
            trusted=tuple(lists["trusted-host"]),
            proxy=setting("proxy") or None,
        )

    def session(self, index: str) -> requests.Session:
        session = requests.Session()
        session.mount("file://", _FileAdapter())
        parts = urlsplit(index)
        if parts.hostname in self.trusted or parts.netloc.rpartition("@")[2] in self.trusted:
            session.verify = False
        elif self.certificates:
            session.verify = self.certificates
        if self.proxy:
            session.proxies = {"http": self.proxy, "https": self.proxy}
        if parts.username:
            session.auth = _SameHost(
                parts.hostname, unquote(parts.username), unquote(parts.password or "")
            )
        return session


def _pip_settings() -> Callable[[str], str]:
    """A function from a pip option's name to its value, "" where it is not set."""
    listed = dict(line.split("=", 1) for line in _pip_config_list().splitlines() if "=" in line)

    def setting(name: str) -> str:
        variable = os.environ.get("PIP_" + name.upper().replace("-", "_"))
        if variable is not None:
            return variable
        keys = (f"{section}.{name}" for section in ("download", "install", "global"))
        return next(
            (str(ast.literal_eval(listed[key])).strip() for key in keys if key in listed), ""
        )

    return setting


def _pip_config_list() -> str:
    """What `pip config list` prints, key='value' a line: pip itself knows which of its files wins.
    Nothing where this Python has no pip.

    (`pip config get` of pip 23.2 denies keys that `list` shows.)
    """
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else ""


class _SameHost(requests.auth.AuthBase):
    """Name and password for the index's own host, and for no other host its links lead to."""

    def __init__(self, host: str | None, user: str, password: str) -> None:
        self._host, self._basic = host, requests.auth.HTTPBasicAuth(user, password)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return (
            self._basic(request) if urlsplit(request.url or "").hostname == self._host else request
        )


class _FileAdapter(BaseAdapter):
    """An index that is a folder (file:///…/simple), which requests does not read by itself."""

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        path = Path(unquote(urlsplit(request.url or "").path))
        path = path / "index.html" if path.is_dir() else path
        response = requests.Response()
        response.request, response.url = request, request.url or ""
        response.status_code = 200 if path.is_file() else 404
        if path.is_file():
            response.raw = path.open("rb")
            response.headers["Content-Type"] = (
                "text/html" if path.suffix == ".html" else "application/octet-stream"
            )
        return response

    def close(self) -> None:
        return None
