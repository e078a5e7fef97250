"""The store's mirror for a team: LINEAGE_REMOTE, an address that fsspec reads (s3://bucket/prefix).

    artifacts/<fingerprint>/sums.json    written last: its sha256 names the folder of all else
    artifacts/<fingerprint>/<sha256>/    artifact.json, gate.json, files/, show/, journal/
    refs/<recipe>/<stage>                as in the store; who sets a name last has it

What is built is pushed in the background, and a run waits for that at its end. What was not pushed,
whatever died, the next run pushes: an artifact without `PUSHED` is on its list. What is pulled is
verified before it is an artifact. Names follow their artifacts; `catalogue.py` reads them. Pins and
the paths of recipes stay a store's own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from assets.contract import Artifact
from assets.store.locks import locked
from assets.store.manifest import GATE, MANIFEST, SUMS, read_json, read_manifest, read_sums
from assets.store.refs import FINGERPRINT, PINNED
from assets.store.store import Building, Store
from gpt_model.errors import CorruptFile, UserError, shortened
from gpt_model.io import write_json
from gpt_model.redaction import redacted

VARIABLE = "LINEAGE_REMOTE"
PUSHED = "journal/remote.json"  # beside an artifact: {"address": where it is} or {"replace": true}
PULLING = "pulling"  # in the store
MANIFESTS = (SUMS, MANIFEST, GATE)  # what is read of an artifact without its files
PAUSE_SECONDS = 300.0  # without a look at a remote that did not answer
# Of the backends whose defaults do not do: by fsspec's own, no folder is made, a wrong host holds
# each request for minutes, and ten parts of 50 MB of a file are in memory at once.
OPTIONS: dict[str, dict[str, Any]] = {
    "file": {"auto_mkdir": True},
    "s3": {
        "max_concurrency": 2,
        "config_kwargs": {"connect_timeout": 5, "retries": {"max_attempts": 1}},
    },
}

Say = Callable[[str], None]


def remote_of(home: Path) -> Remote | None:
    """The mirror of the store `home`, where LINEAGE_REMOTE names one. Raises UserError where that
    cannot be one.
    """
    address = os.environ.get(VARIABLE, "").strip().rstrip("/")
    return _remote(home, address) if address else None


def finish_pushes() -> list[str]:
    """Waits until the remotes of this process have what was built, or do not answer. Returns a
    sentence for each that lacks something.
    """
    return [sentence for remote in list(_remotes) if (sentence := remote.finish())]


class Remote:
    """A mirror of a store. One a process: it remembers that its server does not answer."""

    def __init__(self, home: Path, address: str) -> None:
        self.address = redacted(address)
        self._store = Store(home)
        self._files, self._root = _file_system(address)
        self._problem = ""  # a sentence, while something is not pushed
        self._quiet_until = {"read": 0.0, "write": 0.0}  # monotonic seconds
        self._say: Say = lambda sentence: None
        self._lock = threading.Lock()
        self._requested = False
        self._just_set: set[str] = set()  # names, by this process, which the remote lacks
        self._compared = False  # all names with the remote's
        self._thread: threading.Thread | None = None

    # Pulling

    def digest(self, fingerprint: str) -> str | None:
        """The digest of an artifact that could be pulled; None where there is none. Raises
        UserError where the remote does not answer.
        """
        with self._explained("read"):
            if (sums := self._sums(fingerprint)) is None:
                return None
            content = self._files.cat_file(f"{self._folder(fingerprint, sums)}/{MANIFEST}")
            if hashlib.sha256(content).hexdigest() != json.loads(sums).get(MANIFEST):
                return None
            return str(json.loads(content)["digest"])

    def refs(self) -> dict[str, dict[str, str]]:
        """Every name, and what the store that set it last says of it. Damaged ones are left out.
        Raises UserError where the remote does not answer.
        """
        folder = f"{self._root}/refs"
        with self._explained("read"):
            self._files.invalidate_cache(folder)
            try:
                contents = self._files.cat(self._files.find(folder), on_error="omit")
            except FileNotFoundError:
                contents = {}
        refs = {}
        for path, content in contents.items():
            name = str(path).removeprefix(f"{folder}/")
            document: Any = None
            with suppress(ValueError):
                document = json.loads(content)
            if _is_name(name) and _is_ref(document):
                refs[name] = document
        return refs

    def manifests(self, fingerprints: Iterable[str]) -> dict[str, dict[str, bytes]]:
        """Of each artifact that is there artifact.json, gate.json and sums.json, all at once."""
        pointers = {self._pointer(each): each for each in fingerprints}
        with self._explained("read"):
            if not pointers or not (sums := self._files.cat([*pointers], on_error="omit")):
                return {}
            files = {pointers[path]: {SUMS: content} for path, content in sums.items()}
            paths = {
                f"{self._folder(fingerprint, entry[SUMS])}/{name}": (fingerprint, name)
                for fingerprint, entry in files.items()
                for name in (MANIFEST, GATE)
            }
            for path, content in self._files.cat([*paths], on_error="omit").items():
                fingerprint, name = paths[path]
                files[fingerprint][name] = content
        return {each: entry for each, entry in files.items() if len(entry) == len(MANIFESTS)}

    def pull(self, fingerprint: str, building: Building, say: Say) -> Artifact | None:
        """The artifact, fetched and verified; None where the remote has none that is whole, or does
        not answer, and `say` hears why. Hold its lock.
        """
        if self._is_quiet("read") or building.detached.exists():
            return None
        folder = self._store.home / PULLING / fingerprint
        try:
            with self._explained("read"):
                if (sums := self._sums(fingerprint)) is None:
                    return None
                say(f"{Store.short(fingerprint)} is in {self.address}: it is fetched from there")
                self._fetch(fingerprint, sums, folder)
            write_json(folder / PUSHED, {"address": self.address})
            return self._store.admit(folder, fingerprint)
        except CorruptFile as error:
            self._store.throw_away(folder)
            write_json(building.folder / PUSHED, {"replace": True})
            say(f"What {self.address} has of {Store.short(fingerprint)} is damaged: {error}")
        except UserError as error:
            self._report("read", str(error), say)
        return None

    def _fetch(self, fingerprint: str, sums: bytes, folder: Path) -> None:
        """Into `folder`, which may have files of an earlier try: those are whole."""
        source = self._folder(fingerprint, sums)
        if folder.exists() and sums != (folder / SUMS).read_bytes():  # of another build
            self._store.throw_away(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMS).write_bytes(sums)
        self._get(source, folder, list(read_sums(folder) or ()))
        files = read_manifest(folder)["files"]
        self._get(source, folder, [f"files/{entry['path']}" for entry in files])

    def _get(self, source: str, folder: Path, names: list[str]) -> None:
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise CorruptFile(f"It names a file outside its folder, {shortened(name)}.")
            target = folder / path
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f"{target.name}.partial")
                try:
                    self._files.get_file(f"{source}/{name}", str(partial))
                except FileNotFoundError:
                    raise CorruptFile(f"{source}/{name} is missing.") from None
                partial.rename(target)

    # Pushing

    def request(self, say: Say, name: str | None = None) -> None:
        """There may be something to push, and `name` was set just now; `say` hears once of what
        keeps it from that.
        """
        self._say = say
        with self._lock:
            self._just_set |= {name} if name else set()
            self._requested = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="remote", daemon=True)
                self._thread.start()

    def finish(self) -> str:
        """Waits for the thread. Returns what keeps the remote from having everything."""
        if thread := self._thread:
            thread.join()
        return self._problem

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._requested:
                    self._thread = None
                    return
                self._requested = False
            if not self._is_quiet("write"):
                try:
                    self._push_all()
                    self._problem = ""
                except (UserError, OSError) as error:
                    self._report("write", str(error), self._say)

    def _push_all(self) -> None:
        locks = self._store.home / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with locked(locks / "remote.lock"):  # two processes would push the same
            for fingerprint in self._store.fingerprints():
                folder = self._store.folder_of(fingerprint)
                mark = _mark(folder)
                if folder.is_symlink() or mark.get("address") == self.address:
                    continue
                try:
                    self._push(fingerprint, folder, replace=bool(mark.get("replace")))
                except CorruptFile as error:
                    self._say(f"{error} It is not pushed.")
            self._push_refs()

    def _push(self, fingerprint: str, folder: Path, *, replace: bool) -> None:
        """The first of two builds of one artifact stays, unless it is damaged."""
        artifact = self._store.find(fingerprint)
        if artifact is None or not self._store.is_summed(artifact):
            return  # removed meanwhile, or of an earlier version: a run that finds it sums it
        self._store.check(artifact)
        with self._explained("write"):
            if replace or self._sums(fingerprint) is None:
                sums = (folder / SUMS).read_bytes()
                names = list(json.loads(sums))
                names += [f"files/{entry['path']}" for entry in artifact.manifest["files"]]
                target = self._folder(fingerprint, sums)
                for name in names:
                    self._files.put_file(str(folder / name), f"{target}/{name}")
                self._write(self._pointer(fingerprint), sums)
        with suppress(FileNotFoundError):  # removed from the store meanwhile
            write_json(folder / PUSHED, {"address": self.address})

    def _push_refs(self) -> None:
        """Those set just now; of all others, once a process, those that the remote lacks or has
        from an earlier time.
        """
        with self._lock:
            just_set = set(self._just_set)
        mine = {
            name: fingerprint
            for name, fingerprint in self._store.refs().items()
            if name in just_set or not self._compared
        }
        theirs = self.refs() if mine else {}
        for name, fingerprint in mine.items():
            known = theirs.get(name, {"fingerprint": "", "updated": ""})
            set_at = _now() if name in just_set else self._store.ref_time(name)
            pushed = _mark(self._store.folder_of(fingerprint)).get("address") == self.address
            is_later = name in just_set or set_at > known["updated"]
            if pushed and is_later and known["fingerprint"] != fingerprint and _is_name(name):
                with self._explained("write"):
                    document = {"fingerprint": fingerprint, "updated": set_at}
                    self._write(f"{self._root}/refs/{name}", json.dumps(document).encode())
        self._compared = True
        with self._lock:
            self._just_set -= just_set

    # What both do

    def _write(self, path: str, content: bytes) -> None:
        """At once: a reader sees the old or the new."""
        with self._files.transaction, self._files.open(path, "wb") as file:
            file.write(content)

    def _pointer(self, fingerprint: str) -> str:
        return f"{self._root}/artifacts/{fingerprint}/{SUMS}"

    def _folder(self, fingerprint: str, sums: bytes) -> str:
        return f"{self._root}/artifacts/{fingerprint}/{hashlib.sha256(sums).hexdigest()}"

    def _sums(self, fingerprint: str) -> bytes | None:
        try:
            content: bytes = self._files.cat_file(self._pointer(fingerprint))
        except FileNotFoundError:
            return None
        return content

    def _is_quiet(self, what: str) -> bool:
        return time.monotonic() < self._quiet_until[what]

    def _report(self, what: str, sentence: str, say: Say) -> None:
        """The remote is left alone for a while: who may not write there may read."""
        self._quiet_until[what] = time.monotonic() + PAUSE_SECONDS
        if not self._problem:
            with suppress(Exception):  # the run is over, and its log closed
                say(sentence)
        self._problem = sentence

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """What a backend raises, which may be anything, as a sentence."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = shortened(redacted(str(error)).strip().partition("\n")[0]) or "no reason given"
            cure = "Check that it answers and that its address and endpoint are right."
            if isinstance(error, PermissionError) or "credentials" in str(error).lower():
                cure = f"Give it credentials that may {what} there."
            elif isinstance(error, FileNotFoundError):
                cure = "Make the bucket or folder, or name another."
            raise UserError(
                f"{VARIABLE} {self.address} cannot be {'read' if what == 'read' else 'written'} "
                f"({type(error).__name__}: {reason}). {cure} Builds go on without it, and the next "
                "run pushes what it lacks."
            ) from error


def address_of(folder: Path) -> str | None:
    """Where the artifact in `folder` was pushed to, or pulled from."""
    return _mark(folder).get("address")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_name(name: str) -> bool:
    """Whether it is recipe/stage, and may be a path below refs/."""
    parts = name.split("/")
    return len(parts) > 1 and parts[0] != PINNED and not {"", ".", ".."} & set(parts)


def _is_ref(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and all(isinstance(document.get(key), str) for key in ("fingerprint", "updated"))
        and bool(FINGERPRINT.fullmatch(document["fingerprint"]))
    )


def _mark(folder: Path) -> dict[str, Any]:
    with suppress(OSError, CorruptFile):
        mark = read_json(folder / PUSHED)
        return mark if isinstance(mark, dict) else {}
    return {}


def _file_system(address: str) -> tuple[Any, str]:
    # for whoever has a remote: fsspec and a backend take half a second
    import fsspec

    if "://" not in address:
        address = Path(address).expanduser().absolute().as_uri()
    protocol = address.partition("://")[0]
    try:
        files, root = fsspec.core.url_to_fs(address, **OPTIONS.get(protocol, {}))
    except ImportError as error:
        raise UserError(
            f"{VARIABLE} {redacted(address)} needs a package that is not installed here ({error}). "
            "For S3: pip install 'gpt-lineage[remote]' -c constraints.txt"
        ) from None
    except Exception as error:
        raise UserError(
            f"{VARIABLE} {redacted(address)} is no address that fsspec reads ({error}). Expected "
            "one such as s3://bucket/prefix."
        ) from None
    return files, str(root).rstrip("/")


@functools.cache
def _remote(home: Path, address: str) -> Remote:
    remote = Remote(home, address)
    _remotes.append(remote)
    return remote


_remotes: list[Remote] = []
