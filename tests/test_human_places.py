"""Where what people wrote comes from: every kind of file, the schema's refusals, and the rows that
docs/papers/alignment-data.md shows.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from pydantic import ValidationError

from gpt_model.errors import UserError
from gpt_model.progress import Silent
from gpt_model.rlhf.readers import record_readers
from gpt_model.rlhf.readers.parsed import ParsedRow
from gpt_model.rlhf.readers.source import COLUMNS, HumanSource, Purpose

PAGE = Path(__file__).parent.parent / "docs" / "papers" / "alignment-data.md"


def read(folder: Path, purpose: Purpose = "demonstrations", **fields: Any) -> list[ParsedRow]:
    source = HumanSource.model_validate({"name": "it", **fields})
    source.check_serves(purpose)
    return record_readers.read_source(
        source.resolved(folder, folder / "downloads"),
        purpose,
        folder / "downloads",
        folder,
        Silent(),
        0,
    )[0]


def test_every_row_of_the_page_about_the_forms_is_read_as_it_says(tmp_path: Path) -> None:
    read_forms = set()
    for section in PAGE.read_text().split("\n### ")[1:]:
        served = [
            purpose for purpose in get_args(Purpose) if purpose in section.partition(".")[0].lower()
        ]
        for written, rows in re.findall(r"```yaml\n(.*?)```\n```json\n(.*?)```", section, re.S):
            given = yaml.safe_load(written)
            (tmp_path / "rows.jsonl").write_text(rows)
            for purpose in served or get_args(Purpose):  # "All three."
                assert read(tmp_path, purpose, path="rows.jsonl", **given), (given, purpose)
            read_forms.add(given["form"])
    assert read_forms == set(COLUMNS)


def test_files_of_every_kind_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n}.", "response": f"It is {n}."} for n in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.json").write_text(lines)
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "a.csv").write_text(
        "instruction,response\n" + "".join(f"Say {n}.,It is {n}.\n" for n in range(3))
    )
    (tmp_path / "bare.tsv").write_text("".join(f"Say {n}.\tIt is {n}.\n" for n in range(3)))
    (tmp_path / "a.yml").write_text(
        "".join(f"- {{instruction: Say {n}., response: It is {n}.}}\n" for n in range(3))
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "plain").write_text(lines)
    values: dict[str, dict[str, Any]] = {
        "bare.tsv": {"header": ["instruction", "response"]},
        "plain": {"format": "jsonl"},
    }
    for name in (
        "a.jsonl.gz",
        "a.json",
        "list.json",
        "a.csv",
        "bare.tsv",
        "a.yml",
        "a.parquet",
        "plain",
    ):
        result = read(tmp_path, path=name, form="instruction", **values.get(name, {}))
        assert [item.turns[1].text for item in result] == ["It is 0.", "It is 1.", "It is 2."], name
        assert result[2].id == f"{name}, row 3"


@pytest.mark.parametrize(
    ("name", "content", "fields", "said"),
    [
        ("a.txt", b"x", {}, r"a\.txt is plain text, which has no columns.* add `format`"),
        ("a.jsonl", b"{}\nno\n", {}, r"a\.jsonl, line 2: not JSON"),
        ("a.json", b"[{}, 3]", {}, r"a\.json, row 2: expected a mapping, found int"),
        ("a.json", b"[{}", {}, r"a\.json is not JSON"),
        ("a.yml", b"a: [", {}, r"a\.yml, line 2: this is not valid YAML"),
        ("a.parquet", b"x", {}, r"a\.parquet is not a parquet file"),
        (
            "a.jsonl",
            b"{}\n",
            {"header": ["a"]},
            r"a\.jsonl is jsonl, which names its own columns: leave `header` out",
        ),
        ("a.jsonl", b"", {}, r"'it' has no rows, so there are no demonstrations"),
    ],
)
def test_a_file_that_holds_no_rows_is_named(
    tmp_path: Path, name: str, content: bytes, fields: Any, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read(tmp_path, path=name, form="messages", **fields)


@pytest.mark.parametrize(
    ("purpose", "fields", "said"),
    [
        ("demonstrations", {}, "`form` is missing"),
        (
            "demonstrations",
            {"form": "messages", "hub": "a/b", "revision": "main"},
            "exactly one of package, path, hub, task and votes",
        ),
        (
            "demonstrations",
            {"form": "messages", "sha256": "a" * 64},
            "sha256 goes with package, and this source has path",
        ),
        (
            "demonstrations",
            {"form": "messages", "path": None, "package": "a==1"},
            "sha256 is missing: a source with package needs it, so that the same bytes are read",
        ),
        (
            "demonstrations",
            {"form": "messages", "path": None, "hub": "a/b"},
            "revision is missing: a source with hub needs it",
        ),
        (
            "demonstrations",
            {"form": "messages", "path": None, "hub": "./a", "header": ["a"]},
            "header goes with package or path",
        ),
        ("demonstrations", {"form": "text"}, "`instruction` is missing"),
        (
            "demonstrations",
            {"form": "messages", "instruction": "Say."},
            "form messages reads none: it goes with text, rated, rankings",
        ),
        (
            "demonstrations",
            {"form": "messages", "columns": {"text": "t"}},
            "form messages has no part 'text': it has messages",
        ),
        (
            "demonstrations",
            {"form": "messages", "columns": {"messages": ["a", "b"]}},
            "'messages' is in one column",
        ),
        (
            "demonstrations",
            {"form": "instruction", "columns": {"prompt": ""}},
            "'prompt' names no column",
        ),
        ("demonstrations", {"form": "messages", "part": [0.5, 0.5]}, "is no part"),
        (
            "demonstrations",
            {"form": "rated", "instruction": "Say."},
            "form rated, which makes no demonstrations",
        ),
        (
            "comparisons",
            {"form": "rankings"},
            "exactly one of ranks, scores, choice, which says what is better; found none",
        ),
        (
            "comparisons",
            {"form": "messages"},
            "form messages, which makes no comparisons: there are pairs, rankings, rated, tree",
        ),
        (
            "comparisons",
            {"path": None, "task": "boolq"},
            "is a task, which makes demonstrations, not comparisons",
        ),
        (
            "comparisons",
            {"path": None, "votes": True, "columns": {"chosen": "a"}},
            "a task and votes have their own",
        ),
        (
            "prompts",
            {"form": "text", "instruction": "Say."},
            "makes prompts of texts: add `opening`",
        ),
        ("prompts", {"path": None, "votes": True}, "is votes, which make comparisons, not prompts"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_in_a_sentence(
    purpose: Purpose, fields: Any, said: str
) -> None:
    given = {
        key: value
        for key, value in {"name": "it", "path": "a.jsonl", **fields}.items()
        if value is not None
    }
    with pytest.raises((ValidationError, ValueError), match=said):
        HumanSource.model_validate(given).check_serves(purpose)


def test_a_source_written_out_reads_as_itself() -> None:
    for fields in ({"form": "rated", "instruction": "Say.", "part": [0.1, 0.5]}, {"form": "tree"}):
        source = HumanSource.model_validate({"name": "it", "path": "a.jsonl", **fields})
        assert (
            HumanSource.model_validate(json.loads(json.dumps(source.model_dump(mode="json"))))
            == source
        )
