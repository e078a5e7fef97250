"""Formats: every ending and compression gives the same rows or lines; an unknown ending is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
import zstandard

from gpt_model.data.formats import read_lines, read_rows
from gpt_model.data.sources import Source, open_source
from gpt_model.errors import UserError
from gpt_model.progress import Silent

ROWS = [{"id": "1", "text": "naïve, light"}, {"id": "2", "text": 'a "quoted" 星'}]


def parquet() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), buffer)
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
    "parquet": parquet(),
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
