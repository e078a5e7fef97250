"""Sources: what a recipe may say, every kind of file, local files tied to their bytes, the hub's
layout, the split.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from pydantic import ValidationError

from gpt_model.data import hub, local_files
from gpt_model.data.sources import NAMED, Source, open_source
from gpt_model.data.splits import bucket
from gpt_model.errors import Unreachable, UserError
from gpt_model.progress import Silent

SHA, REVISION = "a" * 64, "b" * 40


def source(**fields: object) -> Source:
    return Source.model_validate({"name": "it", **fields})


def read(base: Path, **fields: object) -> list[str]:
    return list(open_source(source(**fields), base / "downloads", base, Silent()))


class TestWhatARecipeMaySay:
    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({}, "exactly one of package, path, hub and named; found none"),
            ({"path": "a", "hub": "b/c"}, "found path and hub"),
            ({"path": "a", "named": "Wikipedia"}, "found path and hub"),
            ({"path": "a", "sha256": SHA}, "sha256 goes with package"),
            ({"path": "a", "revision": REVISION}, "revision goes with hub"),
            ({"package": "a==1", "files": "x"}, "sha256 is missing"),
            ({"package": "a==1", "sha256": SHA}, "files is missing"),
            ({"package": "a>=1", "sha256": SHA, "files": "x"}, 'write "name==version"'),
            (
                {"hub": "b/c"},
                "revision is missing: a source with hub needs it: a commit's 40 digits, or a "
                "branch such as main",
            ),
            ({"named": "Wikipaedia"}, "there are BooksCorpus, OpenWebText"),
            ({"path": "a", "group": 1}, "at least 2 rows"),
            ({"path": "a", "weight": -1.0}, "at least 0 and at most 1,000,000"),
            ({"path": "a", "textt": "x"}, "Extra inputs are not permitted"),
            ({"path": "a", "name": "../x"}, "should match pattern"),
        ],
    )
    def test_a_wrong_combination_is_refused_in_words(
        self, fields: dict[str, object], said: str
    ) -> None:
        with pytest.raises(ValidationError, match="(?s)" + said.replace("(", r"\(")):
            source(**fields)

    def test_a_named_source_fills_in_hub_column_and_licence_and_survives_being_written_down(
        self,
    ) -> None:
        for name, entry in NAMED.items():
            first = source(named=name, revision=REVISION)
            assert (first.hub, first.columns()[0], first.licence) == (
                entry["hub"],
                entry["text"],
                entry["licence"],
            )
            assert Source.model_validate(first.model_dump(mode="json")) == first

    def test_what_is_not_given_is_not_written_down(self) -> None:
        assert set(source(path="a").model_dump(mode="json")) == {
            "name",
            "weight",
            "licence",
            "path",
            "documents",
            "minimum",
        }


ROWS = [
    {"book": "I", "n": 1, "text": "In the beginning"},
    {"book": "I", "n": 2, "text": "there was naïve light"},
    {"book": "II", "n": 1, "text": "星"},
]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def parquet(rows: list[dict[str, object]] | pyarrow.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(
        rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(rows), buffer
    )
    return buffer.getvalue()


# 1501 rows, the last of which says it is text and is not
TOLD = pyarrow.table(
    {
        "id": range(1501),
        "text": pyarrow.array([*([b"fine"] * 1500), b"words \xff"]).view(pyarrow.string()),
    }
)


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("rows.jsonl", JSONL),
            ("rows.json", JSONL),
            ("rows.jsonl.gz", gzip.compress(JSONL, mtime=0)),
            ("rows.jsonl.zst", zstandard.compress(JSONL[:40]) + zstandard.compress(JSONL[40:])),
            ("rows.parquet", parquet(ROWS)),
        ],
    )
    def test_rows_read_the_same_from_every_format(
        self, tmp_path: Path, name: str, content: bytes
    ) -> None:
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path, path=name) == ["In the beginning", "there was naïve light", "星"]
        assert read(tmp_path, path=name, group=["book"]) == [
            "In the beginning\nthere was naïve light",
            "星",
        ]
        assert read(tmp_path, path=name, group=2, text="text", limit=1) == [
            "In the beginning\nthere was naïve light"
        ]
        sizes = [
            len("In the beginning"),
            len("In the beginning") + len("there was naïve light") + 1,
        ]
        for limit, count in ((1, 1), (sizes[0], 1), (sizes[1] - 1, 1), (sizes[1], 2), (1000, 3)):
            assert len(read(tmp_path, path=name, limit_gb=limit / 1e9)) == count
        with pytest.raises(UserError, match=rf"{name}.*no column 'body'.*book, n, text"):
            read(tmp_path, path=name, text="body")

    @pytest.mark.parametrize(
        ("ending", "compress"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)]
    )
    def test_text_reads_the_same_compressed_or_not(
        self, tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]
    ) -> None:
        (tmp_path / f"a.txt{ending}").write_bytes(
            compress("\ufeffone\r\ntwo\r\n\r\n three é\n".encode())
        )
        assert read(tmp_path, path="*.txt*") == ["one\ntwo\n\n three é"]
        assert read(tmp_path, path="*.txt*", documents="lines") == ["one", "two", "three é"]
        assert read(tmp_path, path="*.txt*", documents="paragraphs") == ["one\ntwo", "three é"]
        assert read(tmp_path, path="*.txt*", documents="lines", minimum=4) == ["three é"]

    def test_every_heading_with_text_under_it_opens_a_document(self, tmp_path: Path) -> None:
        (tmp_path / "play.md").write_text(
            "# Title\n\n## ACT I\n### SCENE I\n_Enter A_\n\n**A**  \nWords, 3 * 4.  \n### SCENE "
            "II\n_\\[Reads]  \n*Exeunt.*\n"
        )
        assert read(tmp_path, path="play.md", documents="headings", clean="markdown") == [
            "Title\n\nACT I\nSCENE I\nEnter A\n\nA\nWords, 3 * 4.",
            "SCENE II\n[Reads]\nExeunt.",
        ]
        scenes = read(tmp_path, path="play.md", documents="headings")
        assert (
            "\n".join(scenes).split() == (tmp_path / "play.md").read_text().split()
        )  # nothing is left out

    @pytest.mark.parametrize(
        ("separator", "text", "expected"),
        [
            (
                "<|endoftext|>",
                "one\ntwo\n<|endoftext|>\nthree<|endoftext|>four <|endoftext|>",
                ["one\ntwo", "three", "four"],
            ),
            ("\n\n\n", "one\n\ntwo\n\n\nthree\n\n\n\nfour", ["one\n\ntwo", "three", "four"]),
            ("a", "xaaya", ["x", "y"]),
            ("aa", "xaaay", ["x", "ay"]),
            ("\n%\n", "one\n%\n%\ntwo\n%\n", ["one", "%\ntwo"]),
        ],
    )
    def test_a_separator_divides_wherever_it_stands(
        self, tmp_path: Path, separator: str, text: str, expected: list[str]
    ) -> None:
        (tmp_path / "a.txt").write_text(text)
        (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
        for name in ("a.txt", "a.jsonl"):
            assert read(tmp_path, path=name, documents={"separator": separator}) == expected
        dumped = source(path="a.txt", documents={"separator": separator}).model_dump(mode="json")
        assert dumped["documents"] == {"separator": separator}

    def test_names_with_brackets_are_files_too(self, tmp_path: Path) -> None:
        (folder := tmp_path / "data [old]").mkdir()
        for name in ("notes [1].txt", "notes 1.txt", "a.txt", "b.txt", "what?.txt"):
            (folder / name).write_text(name)
        here = "data [old]"
        assert read(tmp_path, path=f"{here}/notes [1].txt") == ["notes [1].txt"]
        assert read(tmp_path, path=f"{here}/what?.txt") == ["what?.txt"]
        assert read(tmp_path, path=f"{folder}/notes [1].txt") == ["notes [1].txt"]
        assert read(tmp_path, path="*/notes [1].txt") == ["notes [1].txt"]
        assert read(tmp_path, path=f"{here}/notes*.txt") == ["notes 1.txt", "notes [1].txt"]
        assert read(folder, path="[ab].txt") == ["a.txt", "b.txt"]
        (pinned,) = local_files.pin(f"{folder}/notes [1].txt", tmp_path, tmp_path / "downloads")
        assert pinned.path == "notes [1].txt"

    def test_a_csv_file_without_a_header_is_read_by_the_names_given(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("1,one\n2,two\n")
        assert read(tmp_path, path="a.csv", header=["id", "text"]) == ["one", "two"]

    def test_a_column_that_no_row_has_is_named_before_all_rows_are_read(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 1001 + '{"text": "y"}\n' * 9)
        with pytest.raises(UserError, match=r"a\.jsonl, line 1: there is no column 'text'"):
            read(tmp_path, path="a.jsonl", malformed=1.0)

    def test_files_come_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        for name in ("b/2.txt", "a/9.txt", "c.txt", ".hidden.txt"):
            (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "t" / name).write_text(name)
        assert read(tmp_path, path="t/**/*.txt") == ["a/9.txt", "b/2.txt", "c.txt"]
        assert read(tmp_path, path=str(tmp_path / "t" / "*" / "*.txt")) == ["a/9.txt", "b/2.txt"]

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("a.txt", b"fine\nbad \xff here", r"a\.txt: byte 9 \(0xff\) is not UTF-8"),
            ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl, line 2: not JSON"),
            ("a.jsonl", b"[1]\n", r"a\.jsonl, line 1: expected a JSON object, found list"),
            (
                "a.jsonl",
                b'{"text": "x"}\n{"text": 7}\n',
                r"a\.jsonl, row 2: column 'text' holds int",
            ),
            ("a.jsonl", b'{"text": "\\ud800"}\n', "half a character"),
            (
                "a.jsonl.gz",
                gzip.compress(JSONL, mtime=0)[:-12],
                r"a\.jsonl\.gz is damaged or cut short",
            ),
            (
                "a.jsonl.zst",
                zstandard.compress(JSONL)[:-3],
                r"a\.jsonl\.zst is damaged or cut short",
            ),
            ("a.txt.zst", b"not zstd", r"a\.txt\.zst is damaged"),
            ("a.parquet", b"PAR1 no", r"a\.parquet is not a parquet file"),
            (
                "a.parquet",
                parquet(TOLD),
                r"a\.parquet, row 1501: column 'text', byte 6 \(0xff\) is not UTF-8\.",
            ),
            ("a.txt", b" \n\n ", "holds no document"),
            ("b.txt", b"x", "No file is named by"),
        ],
    )
    def test_a_bad_file_is_one_sentence_that_names_it(
        self, tmp_path: Path, name: str, content: bytes, said: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=said):
            read(tmp_path, path="a.*", malformed=0.0)

    def test_columns_asked_of_plain_text_and_a_folder_for_a_file_are_refused(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "a.txt").write_text("x")
        with pytest.raises(UserError, match="plain text without columns"):
            read(tmp_path, path="a.txt", text="body")
        (tmp_path / "folder").mkdir()
        with pytest.raises(UserError, match=r"folder/\*\*/\*\.txt"):
            read(tmp_path, path="folder")

    def test_a_text_of_200_megabytes_streams_in_little_memory(self, tmp_path: Path) -> None:
        with (tmp_path / "big.txt").open("wb") as file:
            for _ in range(200):
                file.write((b"a line of words that go on for a while " * 25 + b"\n\n") * 1074)
        script = (
            "import sys; from pathlib import Path; from gpt_model.data.sources import Source, "
            "open_source;"
            "from gpt_model.io import peak_resident_bytes as peak; from gpt_model.progress import "
            "Silent; base = Path(sys.argv[1]);"
            "before = peak();"
            "it = Source(name='big', path='big.txt', documents='paragraphs');"
            "print(sum(1 for _ in open_source(it, base / 'd', base, Silent())), peak() - before)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        )
        documents, held = map(int, done.stdout.split())
        assert documents == 200 * 1074
        assert held < 20_000_000


class TestHub:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """A data set as the hub lays it out: a card that says which files are which split of which
        configuration, and parquet.
        """
        data = tmp_path / "dataset" / "2023.en"
        data.mkdir(parents=True)
        for number in range(2):
            rows = [{"id": f"{number}-{k}", "text": f"article {number} {k}"} for k in range(3)]
            (data / f"train-0000{number}-of-00002.parquet").write_bytes(parquet(rows))
        card = (
            "---\nconfigs:\n- config_name: 2023.en\n  data_files:\n  - split: train\n    path: "
            "2023.en/train-*\n---\n"
        )
        (tmp_path / "dataset" / "README.md").write_text(card)
        return tmp_path

    def test_a_data_set_in_the_hubs_layout_is_streamed_in_order(self, folder: Path) -> None:
        fields = {"hub": "./dataset", "revision": REVISION, "config": "2023.en"}
        expected = [f"article {number} {k}" for number in range(2) for k in range(3)]
        assert read(folder, **fields) == expected
        tied = source(**fields).resolved(folder, folder / "downloads")
        assert len(tied.pinned or []) == 3
        assert (
            list(open_source(tied, folder / "downloads", folder / "elsewhere", Silent()))
            == expected
        )

    def test_a_script_is_not_run_and_what_to_pin_instead_is_said(self, folder: Path) -> None:
        (folder / "dataset" / "dataset.py").write_text("raise SystemExit('it was run')\n")
        with pytest.raises(
            UserError, match=r"\./dataset .*loading script, dataset\.py: .*refs/convert/parquet"
        ) as error:
            read(folder, hub="./dataset", revision=REVISION, config="2023.en")
        assert error.value.field == "revision"

    @pytest.mark.parametrize("name", ["BooksCorpus", "OpenWebText"])
    def test_a_named_script_based_set_is_read_from_its_converted_branch(
        self, name: str, tmp_path: Path
    ) -> None:
        """As the hub's converter lays a branch out: a folder a configuration, one a split, no card."""
        (train := tmp_path / "converted" / "plain_text" / "train").mkdir(parents=True)
        for number in range(2):
            (train / f"000{number}.parquet").write_bytes(
                parquet([{"text": f"sentence {number} {k}"} for k in range(256)])
            )
        texts = read(tmp_path, named=name, revision=REVISION, hub="./converted")
        assert "\n".join(texts) == "\n".join(
            f"sentence {number} {k}" for number in range(2) for k in range(256)
        )
        assert len(texts) == {"BooksCorpus": 2, "OpenWebText": 512}[name]

    def test_a_wrong_split_config_or_column_is_one_sentence(self, folder: Path) -> None:
        fields = {"hub": "./dataset", "revision": REVISION, "config": "2023.en"}
        with pytest.raises(UserError, match=r"(?s)dataset.*split"):
            read(folder, **fields, split="test")
        with pytest.raises(UserError, match=r"dataset.*2024\.en"):
            read(folder, **{**fields, "config": "2024.en"})
        with pytest.raises(UserError, match=r"no column 'body'\. Columns found: id, text"):
            read(folder, **fields, text="body")


class TestSplit:
    def test_buckets_are_even_and_a_function_of_words_and_seed_alone(self) -> None:
        places = [bucket(f"document {n}", seed=0) for n in range(20_000)]
        assert all(0 <= place < 1 for place in places)
        assert sum(place < 0.1 for place in places) / len(places) == pytest.approx(0.1, abs=0.008)
        assert bucket(" a\n b ", 0) == bucket("a b", 0) != bucket("a b", 1)
        assert bucket("a b", 0) == pytest.approx(
            int(hashlib.sha256(b"0\0a b").hexdigest()[:16], 16) / 2**64
        )

    def test_excerpts_under_one_title_share_a_bucket(self) -> None:
        assert (
            bucket("Kiwi -- It is a bird.", 3, before=" -- ")
            == bucket("Kiwi -- It does not fly.", 3, before=" -- ")
            == bucket("Kiwi", 3)
        )


class TestABranchOfTheHub:
    """Against the hub's own client and a server that answers as the hub does."""

    @pytest.fixture
    def endpoint(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        class Hub(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.path.startswith("/api/datasets/some/text/revision/main")
                body = json.dumps(
                    {"id": "some/text", "sha": REVISION} if known else {"error": "no"}
                ).encode()
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                if not known:
                    self.send_header(
                        "X-Error-Code",
                        "RevisionNotFound" if "some/text" in self.path else "RepoNotFound",
                    )
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(hub, "_silent_since", float("-inf"))
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()

    def test_a_branch_is_tied_to_its_commit_when_a_build_is_planned(
        self, endpoint: str, tmp_path: Path
    ) -> None:
        planned = source(hub="some/text", revision="main").resolved(tmp_path, tmp_path)
        assert planned.revision == REVISION

    def test_an_unknown_branch_or_data_set_is_told_from_a_hub_that_does_not_answer(
        self, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(UserError, match="has no revision 'mian'") as wrong:
            source(hub="some/text", revision="mian").resolved(tmp_path, tmp_path)
        assert wrong.value.field == "revision" and not isinstance(wrong.value, Unreachable)
        with pytest.raises(UserError, match="The hub has no dataset other/text"):
            source(hub="other/text", revision="main").resolved(tmp_path, tmp_path)
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
        for _ in range(2):  # the second time it is not even asked
            with pytest.raises(
                Unreachable, match="could not be asked which commit 'main' of some/text is"
            ):
                source(hub="some/text", revision="main").resolved(tmp_path, tmp_path)
