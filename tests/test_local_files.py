"""Local files: which ones a recipe may name, how they are tied to their bytes, and that the bytes
which are read are those.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from gpt_model.data import local_files
from gpt_model.data.location import tables
from gpt_model.data.sources import Source, open_source
from gpt_model.errors import UserError
from gpt_model.progress import Silent

CHANGED = "is no longer the file that was pinned"


def source(**fields: object) -> Source:
    return Source.model_validate({"name": "it", **fields})


def rows(*texts: str) -> pyarrow.Table:
    return pyarrow.Table.from_pylist([{"text": text} for text in texts])


def parquet(*texts: str) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(rows(*texts), buffer)
    return buffer.getvalue()


class TestPins:
    def test_a_pin_names_files_as_the_recipe_does_and_follows_their_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_text("one")
        here = functools.partial(
            source(path="texts/*.txt").resolved, tmp_path, tmp_path / "downloads"
        )
        first = here()
        assert [file.model_dump() for file in first.pinned or []] == [
            {"path": "texts/a.txt", "sha256": hashlib.sha256(b"one").hexdigest(), "bytes": 3}
        ]
        (tmp_path / "texts" / "b.txt").write_text("two")
        assert len(here().pinned or []) == 2

        monkeypatch.setattr(
            local_files.hashlib,
            "file_digest",
            lambda *_: pytest.fail("an unchanged file was read again"),
        )
        assert here() == here()

    def test_a_file_of_the_same_size_and_time_is_another_file(self, tmp_path: Path) -> None:
        path, here = tmp_path / "a.txt", (tmp_path, tmp_path / "downloads")
        path.write_text("one")
        (before,) = local_files.pin("a.txt", *here)
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        (tmp_path / "other").write_text("two")
        (tmp_path / "other").replace(path)
        os.utime(path, ns=times)
        (after,) = local_files.pin("a.txt", *here)
        assert (after.sha256, before.bytes) == (hashlib.sha256(b"two").hexdigest(), after.bytes)

    def test_a_file_that_grows_while_it_is_pinned_is_pinned_at_one_moment(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "log.txt"
        path.write_bytes(b"a line of it\n" * 1_000_000)
        growing = (
            "import sys\nwith open(sys.argv[1], 'ab', 0) as file:\n  while True: "
            "file.write(b'one more line of it\\n')"
        )
        writer = subprocess.Popen([sys.executable, "-c", growing, str(path)])
        try:
            size = path.stat().st_size
            while path.stat().st_size == size:  # it writes
                pass
            (pin,) = local_files.pin("log.txt", tmp_path, tmp_path / "downloads")
        finally:
            writer.kill()
            writer.wait()
        assert hashlib.sha256(path.read_bytes()[: pin.bytes]).hexdigest() == pin.sha256

    def test_pinned_files_are_found_from_anywhere_and_refused_once_changed(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "a.txt").write_text("one")
        tied = source(path="a.txt").resolved(tmp_path, tmp_path / "downloads")
        elsewhere = tmp_path / "elsewhere"
        assert list(open_source(tied, tmp_path / "downloads", elsewhere, Silent())) == ["one"]
        (tmp_path / "a.txt").write_text("one, and more")
        with pytest.raises(UserError, match=rf"a\.txt {CHANGED}"):
            list(open_source(tied, tmp_path / "downloads", elsewhere, Silent()))


def guess_unchanged(path: Path, downloads: Path) -> None:
    """What is known of the file says that it looks as it does now: the first guess is wrong."""
    (note,) = (downloads / "local" / "seen").iterdir()
    status = path.stat()
    looks = f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    note.write_text(f"{looks} {note.read_text().split()[-1]}")


FORMATS: dict[str, Callable[[str], bytes]] = {
    "a.txt": lambda text: text.encode(),
    "a.txt.gz": lambda text: gzip.compress(text.encode(), 0),
    "a.jsonl": lambda text: f'{{"text": "{text}"}}\n'.encode() * 3,
    "a.csv": lambda text: f"text\n{text}\n{text}\n".encode(),
    "a.parquet": parquet,
}


class TestBytesThatAreReadAreThoseThatWerePinned:
    @pytest.mark.parametrize("name", FORMATS)
    @pytest.mark.parametrize("fields", [{}, {"limit": 1}], ids=["whole", "limit"])
    def test_a_file_whose_size_and_time_are_the_same_is_refused_as_it_is_read(
        self, tmp_path: Path, name: str, fields: dict[str, object]
    ) -> None:
        path, downloads = tmp_path / name, tmp_path / "downloads"
        path.write_bytes(FORMATS[name]("one"))
        tied = source(path=name, **fields).resolved(tmp_path, downloads)
        assert next(open_source(tied, downloads, tmp_path, Silent())) == "one"
        path.write_bytes(FORMATS[name]("two"))
        guess_unchanged(path, downloads)
        read = []
        with pytest.raises(UserError, match=CHANGED):
            read += open_source(tied, downloads, tmp_path, Silent())
        # the wrong guess is forgotten, so that the next build has the file as it is
        again = source(path=name, **fields).resolved(tmp_path, downloads)
        assert next(open_source(again, downloads, tmp_path, Silent())) == "two"

    @pytest.mark.parametrize("fields", [{}, {"limit": 3}], ids=["whole", "limit"])
    def test_a_file_that_grows_while_it_is_read_is_refused(
        self, tmp_path: Path, fields: dict[str, object]
    ) -> None:
        path, downloads = tmp_path / "log.jsonl", tmp_path / "downloads"
        path.write_bytes(b"".join(b'{"text": "line %06d of it"}\n' % n for n in range(100_000)))
        pinned = path.stat().st_size
        tied = source(path="log.jsonl", **fields).resolved(tmp_path, downloads)
        texts = open_source(tied, downloads, tmp_path, Silent())
        assert next(texts) == "line 000000 of it"
        with path.open("ab") as file:
            file.write(b'{"text": "one more and hal')
        assert tied.pinned and tied.pinned[0].bytes == pinned < path.stat().st_size
        with pytest.raises(UserError, match=CHANGED):
            list(texts)

    def test_a_folder_in_the_hubs_layout_is_refused_where_one_of_its_files_changes(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "set").mkdir()
        downloads = tmp_path / "downloads"
        for number in range(2):
            (tmp_path / "set" / f"train-{number}.parquet").write_bytes(parquet("one", "two"))
        tied = source(hub="./set", revision="b" * 40).resolved(tmp_path, downloads)
        texts = open_source(tied, downloads, tmp_path, Silent())
        assert next(texts) == "one"
        (tmp_path / "set" / "train-1.parquet").write_bytes(parquet("one", "ten"))
        with pytest.raises(UserError, match=rf"set/train-1\.parquet {CHANGED}"):
            list(texts)

    def test_rows_of_tasks_suites_and_people_are_hashed_too(self, tmp_path: Path) -> None:
        """`tables` is what all of them read by."""
        path, downloads = tmp_path / "rows.jsonl", tmp_path / "downloads"
        path.write_text('{"text": "one"}\n' * 100_000)
        location = source(path="rows.jsonl").resolved(tmp_path, downloads).location()
        reading = tables(location, ["text"], tmp_path, downloads, Silent())
        _, table = next(reading)
        assert next(table) == {"text": "one"}
        path.write_text('{"text": "two"}\n' * 100_000)
        with pytest.raises(UserError, match=CHANGED):
            list(reading)

    def test_a_library_that_reads_by_name_is_checked_when_it_has_read(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        files = local_files.pin("config.json", tmp_path, tmp_path / "downloads")
        with local_files.linked(files, tmp_path / "downloads") as folder:
            assert (folder / "config.json").read_text() == "{}"
        with (
            pytest.raises(UserError, match=CHANGED),
            local_files.linked(files, tmp_path / "downloads"),
        ):
            (tmp_path / "config.json").write_text("[]")


class TestWhatMayBeNamed:
    @pytest.mark.parametrize(
        ("pattern", "reason"),
        [
            ("", "empty"),
            (" ", "empty"),
            ("/", "root of the file system"),
            ("/**/*", "root of the file system"),
            ("/*/*.txt", "root of the file system"),
            ("../" * 40 + "**/*.txt", "root of the file system"),
            ("/usr/../**/*", "root of the file system"),
            ("/proc/self/environ", "system's own state"),
            ("/proc/s*/environ", "system's own state"),
            ("/usr/../sys/kernel/*", "system's own state"),
            ("/dev/zero", "system's own state"),
            ("link/environ", "system's own state"),
            ("l*/environ", "system's own state"),
            ("..", "is a folder"),
            ("~nobody-by-this-name/a.txt", "is no path"),
        ],
    )
    def test_the_whole_machine_and_the_systems_state_are_refused(
        self, tmp_path: Path, pattern: str, reason: str
    ) -> None:
        (tmp_path / "link").symlink_to("/proc/self")
        with pytest.raises(UserError, match=reason):
            local_files.pin(pattern, tmp_path, tmp_path / "downloads")

    @pytest.mark.parametrize("field", ["path", "hub", "package"])
    def test_a_source_says_what_it_reads(self, field: str) -> None:
        with pytest.raises(ValueError, match=f"{field} is empty"):
            source(**{field: ""})
