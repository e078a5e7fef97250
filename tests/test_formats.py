"""Formats: every ending and compression gives the same rows or lines; an unknown ending is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
import zstandard

from gpt_model.data.formats import UnreadableRow, read_lines, read_rows
from gpt_model.data.sources import Source, open_source
from gpt_model.errors import UserError
from gpt_model.progress import Silent

ROWS = [{"id": "1", "text": "naïve, light"}, {"id": "2", "text": 'a "quoted" 星'}]


def parquet(table: pyarrow.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CONTENT: dict[str, bytes] = {
    "jsonl": LINES,
    "ndjson": LINES.replace(b"\n", b"\r\n") + b"\n",
    "json": json.dumps(ROWS, indent=1).encode(),
    "csv": 'id,text\n1,"naïve, light"\n2,"a ""quoted"" 星"\n'.encode(),
    "tsv": 'id\ttext\n1\tnaïve, light\n2\ta "quoted" 星\n'.encode(),
    "yaml": yaml.safe_dump(ROWS, allow_unicode=True).encode(),
    "yml": yaml.safe_dump(ROWS).encode(),
    "parquet": parquet(pyarrow.Table.from_pylist(ROWS)),
}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ending", CONTENT)
def test_rows_are_the_same_in_every_format_and_compression(ending: str, compression: str) -> None:
    content = COMPRESS[compression](CONTENT[ending])
    name = f"folder.txt/rows.{ending}{compression}"
    for spelling in (name, name.upper()):
        assert list(read_rows(io.BytesIO(content), spelling)) == ROWS
        assert [row["text"] for row in read_rows(io.BytesIO(content), spelling, ["text"])] == [
            row["text"] for row in ROWS
        ]


@pytest.mark.parametrize("compression", COMPRESS)
def test_lines_are_the_same_in_every_compression(compression: str) -> None:
    content = COMPRESS[compression]("\ufeffone\r\ntwo é".encode())
    for name in (f"a.txt{compression}", f"A.MD{compression.upper()}"):
        assert list(read_lines(io.BytesIO(content), name)) == ["one\n", "two é"]
    assert list(read_rows(io.BytesIO(content), f"a.txt{compression}", ["line"])) == [
        {"line": "one"},
        {"line": "two é"},
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.JSONL", CONTENT["jsonl"]),
        ("a.ndjson", CONTENT["ndjson"]),
        ("a.json", CONTENT["json"]),
        ("a.csv", CONTENT["csv"]),
        ("a.tsv.gz", gzip.compress(CONTENT["tsv"], mtime=0)),
        ("a.csv.xz", lzma.compress(CONTENT["csv"])),
        ("a.yml", CONTENT["yml"]),
    ],
)
def test_a_corpus_of_rows_is_read_as_rows(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    source = Source(name="it", path=name)
    documents = list(open_source(source, tmp_path / "downloads", tmp_path, Silent()))
    assert documents == [row["text"] for row in ROWS]


def test_a_csv_field_may_be_a_whole_document() -> None:
    text = "words " * 100_000
    (row,) = read_rows(io.BytesIO(f"text\n{text}\n".encode()), "a.csv")
    assert row == {"text": text}


def test_an_unknown_ending_is_refused_by_name_unless_the_format_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.dat.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    fields = {"name": "it", "path": "a.dat.gz", "documents": "lines"}

    def documents(**more: str) -> list[str]:
        source = Source.model_validate({**fields, **more})
        return list(open_source(source, tmp_path / "downloads", tmp_path, Silent()))

    with pytest.raises(
        UserError, match=r"a\.dat\.gz ends in \.dat, which.*\.txt, \.md, \.jsonl.*\.gz.*rename"
    ) as error:
        documents()
    assert error.value.field == "format"
    assert documents(format="text") == ["one", "two"]
    (tmp_path / "LICENCE").write_text("one")
    with pytest.raises(UserError, match="LICENCE has no ending"):
        documents(path="LICENCE")


@pytest.mark.parametrize(("ending", "compression"), [("csv", ".bz2"), ("parquet", ".xz")])
def test_a_compressed_file_cut_short_is_named(ending: str, compression: str) -> None:
    content = COMPRESS[compression](CONTENT[ending])[:-8]
    name = f"rows.{ending}{compression}"
    with pytest.raises(UserError, match=rf"rows\.{ending}\{compression} is damaged or cut short"):
        list(read_rows(io.BytesIO(content), name))


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_every_line_end_is_one(
    ending: str, chunk: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gpt_model.data.formats.CHUNK", chunk)
    lines = ["one", "", "é two", "星"]
    text = io.BytesIO(ending.join(lines).encode())
    assert "".join(read_lines(text, "a.txt")) == "\n".join(lines)
    contents = {
        "a.txt": f"one{ending}two".encode(),
        "a.jsonl": json.dumps({"text": f"one{ending}two"}).encode(),
        "a.csv": f'text{ending}"one{ending}two"{ending}'.encode(),
    }
    contents["a.parquet"] = parquet(pyarrow.Table.from_pylist([{"text": f"one{ending}two"}]))
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        source = Source(name="it", path=name)
        assert list(open_source(source, tmp_path / "d", tmp_path, Silent())) == ["one\ntwo"]


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"text": "x", "n": ' + DEEP + b"}", "a.jsonl, line 1: .*nested too deep"),
        ("a.json", DEEP, "a.json is not JSON.*nested too deep"),
        ("a.jsonl", b"7" * 5000, "a.jsonl, line 1: expected a JSON object"),
        ("a.csv", b'text\n"fine"\n"open\nmore\n', "a.csv, line 3: a quote that begins"),
        ("a.txt", "one".encode("utf-16"), "byte 0 .*It begins as UTF-16 does. Convert"),
        ("a.txt.gz", gzip.compress(bytes(80 << 20), 1), "refused: it holds more than 200 times"),
        ("a.yaml.xz", lzma.compress(bytes(80 << 20), preset=0), "refused: it holds more than 200"),
    ],
)
def test_what_would_crash_or_fill_the_memory_is_a_sentence(
    name: str, content: bytes, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        list(read_rows(io.BytesIO(content), name, ["text"]))


def test_an_integer_of_5000_digits_harms_nobody_who_does_not_read_it() -> None:
    content = b'{"text": "x", "n": -' + b"7" * 5000 + b', "id": 2}'
    (row,) = read_rows(io.BytesIO(content), "a.jsonl", ["text"])
    assert (row["text"], row["id"]) == ("x", 2) and isinstance(row["id"], int)


def test_a_damaged_parquet_file_is_a_sentence() -> None:
    """1,200 other flips were tried by hand: 433 sentences, no traceback."""
    whole, draw = CONTENT["parquet"], random.Random(1)
    sentences = 0
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        try:
            list(read_rows(io.BytesIO(bytes(flipped)), "a.parquet", ["text"], reject=list().append))
        except UserError as error:
            assert "a.parquet" in str(error)
            sentences += 1
    assert sentences > 20


@pytest.mark.parametrize(
    ("name", "content", "reasons"),
    [
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": \n[1]\n{"body": 1}\n{"text": "b", "n": "\xff"}\n',
            ["not JSON", "no JSON object", "no column 'text'"],
        ),
        ("a.json", b'[{"text": "a"}, 3, {}, {"text": "b"}]', ["no mapping", "no column 'text'"]),
        (
            "a.csv",
            b'text,n\na,1\nx,1,2\n"x" y,1\nb\n',
            ["more fields than columns", "not valid csv"],
        ),
        ("a.yaml", b"- text: a\n- 3\n- text: b\n", ["no mapping"]),
        (
            "a.parquet",
            # the second says that it is text and is not
            parquet(
                pyarrow.table({"text": pyarrow.array([b"a", b"\xff", b"b"]).view(pyarrow.string())})
            ),
            ["not UTF-8"],
        ),
    ],
)
def test_rows_that_cannot_be_used_may_be_left_out_and_the_others_are_read(
    name: str, content: bytes, reasons: list[str]
) -> None:
    left_out: list[UnreadableRow] = []
    rows = list(read_rows(io.BytesIO(content), name, ["text"], reject=left_out.append))
    assert [row["text"] for row in rows] == ["a", "b"]
    assert [row.reason for row in left_out] == reasons
    with pytest.raises(UnreadableRow) if name != "a.jsonl" else pytest.raises(UserError):
        list(read_rows(io.BytesIO(content), name, ["text"]))
