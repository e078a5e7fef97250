"""The corpus stage: documents split and counted, nothing held out is trained on, the same bytes
every time.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from assets.contract import SCRATCH, Built, Progress, Verdict
from assets.execution.corpus import Seen
from assets.recipe.profile import Profile
from assets.recipe.recipe import CorpusSection
from assets.stages.corpus import CORPUS
from assets.worker import sentence
from gpt_model.data import documents, splits
from gpt_model.errors import CorruptFile, UserError
from gpt_model.evaluation.contamination import count_mostly_seen
from gpt_model.progress import Silent
from gpt_model.tokenizer import END_OF_TEXT


class OneProcess(Silent):
    rank, world_size, profile = 0, 1, Profile(name="test")


PROGRESS: Progress = OneProcess()


@pytest.fixture(autouse=True)
def _downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINEAGE_DOWNLOADS", str(tmp_path / "downloads"))


def write(folder: Path, name: str, texts: list[str]) -> None:
    (folder / f"{name}.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )


def config(folder: Path, *sources: dict[str, Any], held_out: float = 0.1, seed: int = 0) -> Any:
    entries = [{"path": f"{source['name']}.jsonl", **source} for source in sources]
    section = CorpusSection.model_validate({"sources": entries, "held_out": held_out, "seed": seed})
    return CORPUS.pin(section.model_dump(mode="json"), folder)


def build(folder: Path, *sources: dict[str, Any], output: str = "out", **options: Any) -> Built:
    section = config(folder, *sources, **options)
    metrics = CORPUS.run(section, {}, folder / output, PROGRESS)
    return Built(section, {}, folder / output, metrics, {}, ())


def verdicts(built: Built) -> dict[str, Verdict]:
    return {check.name: check.verdict(built) for check in CORPUS.checks}


def files_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and SCRATCH not in path.parts
    }


TEXTS = [f"Document {n} says naïvely: {n * n}." for n in range(500)]


class TestSplitting:
    def test_a_document_is_held_out_exactly_when_its_bucket_is_below_the_share(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path, "a", TEXTS)
        write(tmp_path, "b", [text.upper() for text in TEXTS])
        built = build(
            tmp_path,
            {"name": "a", "licence": "CC0"},
            {"name": "b", "held_out": 0.3, "weight": 2.0},
            seed=7,
        )
        for source, share, texts in (
            ("a", 0.1, TEXTS),
            ("b", 0.3, [text.upper() for text in TEXTS]),
        ):
            held_out = [text for text in texts if splits.bucket(text, 7) < share]
            assert list(documents.read(built.output, source, "held_out")) == held_out
            assert list(documents.read(built.output, source, "training")) == [
                text for text in texts if text not in held_out
            ]
            entry = documents.index(built.output)[source]
            assert entry["held_out"] == documents.count(held_out)
            assert entry["training"]["bytes"] == sum(
                len(text.encode()) for text in texts if text not in held_out
            )
            assert built.metrics[f"{source}/held_out/documents"] == len(held_out)
        assert documents.index(built.output)["a"]["licence"] == "CC0"
        assert [entry["weight"] for entry in documents.index(built.output).values()] == [1.0, 2.0]

    def test_the_same_text_makes_the_same_bytes_also_over_the_leavings_of_a_killed_attempt(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path, "a", TEXTS)
        first = build(tmp_path, {"name": "a"})
        (tmp_path / "again" / "documents" / "a").mkdir(parents=True)
        (tmp_path / "again" / "documents" / "a" / "training.jsonl.zst").write_bytes(b"half")
        (tmp_path / "again" / "documents" / "old").mkdir()
        second = build(tmp_path, {"name": "a"}, output="again")
        assert files_of(first.output) == files_of(second.output)
        assert set(files_of(first.output)) == {
            "index.json",
            "documents/a/training.jsonl.zst",
            "documents/a/held_out.jsonl.zst",
        }

    def test_duplicates_within_a_source_are_dropped_and_counted_whitespace_apart(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path, "a", [*TEXTS, TEXTS[0], " " + TEXTS[1].replace(" ", "\n"), TEXTS[2]])
        built = build(tmp_path, {"name": "a"})
        entry = documents.index(built.output)["a"]
        assert entry["training"]["documents"] + entry["held_out"]["documents"] == len(TEXTS)
        assert entry["dropped"]["twice"] == 3

    def test_what_one_source_holds_out_no_other_source_trains_on(self, tmp_path: Path) -> None:
        write(tmp_path, "small", TEXTS)
        write(tmp_path, "large", [text.replace(" ", "  ") for text in TEXTS])
        built = build(
            tmp_path, {"name": "small", "held_out": 0.05}, {"name": "large", "held_out": 0.5}
        )
        dropped = sum(0.05 <= splits.bucket(text, 0) < 0.5 for text in TEXTS)
        assert (
            documents.index(built.output)["small"]["dropped"]["on_the_other_side_elsewhere"]
            == dropped
            > 100
        )
        assert verdicts(built)["nothing_held_out_is_trained_on"].passed

    def test_excerpts_of_one_article_stay_on_one_side(self, tmp_path: Path) -> None:
        excerpts = [f"Article {n // 3} -- part {n % 3}" for n in range(300)]
        write(tmp_path, "a", excerpts)
        built = build(tmp_path, {"name": "a", "together": " -- "}, held_out=0.3)
        titles = {
            split: {text.split(" -- ")[0] for text in documents.read(built.output, "a", split)}
            for split in documents.SPLITS
        }
        assert len(titles["training"]) + len(titles["held_out"]) == 100
        assert not titles["training"] & titles["held_out"]

    @pytest.mark.parametrize(
        ("texts", "said"),
        [(["only one"], "makes none of them a training document"), ([], "holds no document")],
    )
    def test_a_source_too_small_to_split_is_one_sentence(
        self, tmp_path: Path, texts: list[str], said: str
    ) -> None:
        write(tmp_path, "a", texts)
        with pytest.raises(UserError, match=said):
            build(tmp_path, {"name": "a"})


class TestPinning:
    def test_a_grown_local_file_makes_another_config_and_an_unchanged_one_the_same(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path, "a", TEXTS)
        first = config(tmp_path, {"name": "a"})
        assert config(tmp_path, {"name": "a"}) == first
        assert str(tmp_path) not in json.dumps(first)
        write(tmp_path, "a", [*TEXTS, "new text"])
        grown = config(tmp_path, {"name": "a"})
        assert (
            grown["sources"][0]["pinned"][0]["sha256"] != first["sources"][0]["pinned"][0]["sha256"]
        )
        assert CORPUS.pin(json.loads(json.dumps(grown)), tmp_path) == grown


class TestChecks:
    def test_a_good_corpus_passes_every_check_and_is_shown(self, tmp_path: Path) -> None:
        write(tmp_path, "a", [f"# {text}" for text in TEXTS])
        built = build(tmp_path, {"name": "a", "licence": "CC0"})
        assert {name: verdict.passed for name, verdict in verdicts(built).items()} == dict.fromkeys(
            (
                "files_are_whole",
                "nothing_held_out_is_trained_on",
                "held_out_is_new_text",
                "nothing_unusual",
            ),
            True,
        )
        (tmp_path / "show").mkdir()
        CORPUS.show(built, tmp_path / "show")
        assert {path.name for path in (tmp_path / "show").iterdir()} == {
            "sources.md",
            "sources.png",
            "sources.svg",
            "samples.md",
        }
        assert "| a | 4" in (tmp_path / "show" / "sources.md").read_text()
        assert "CC0" in (tmp_path / "show" / "sources.md").read_text()
        assert "```text\n# " in (tmp_path / "show" / "samples.md").read_text()  # no heading

    def test_a_leaked_document_and_a_damaged_file_fail_their_blocking_checks(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path, "a", TEXTS)
        built = build(tmp_path, {"name": "a"})
        leaked = next(documents.read(built.output, "a", "held_out"))
        retained = list(documents.read(built.output, "a", "training"))
        with documents.Writer(built.output, "a", "training") as writer:
            for text in [*retained, leaked.replace(" ", "\t")]:
                writer.add(text)
        result = verdicts(built)
        assert result["nothing_held_out_is_trained_on"].figures["a"] == 1
        assert not result["nothing_held_out_is_trained_on"].passed
        assert not result["files_are_whole"].passed
        path = documents.path_of(built.output, "a", "held_out")
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(CorruptFile, match=r"held_out\.jsonl\.zst is damaged"):
            list(documents.read(built.output, "a", "held_out"))
        assert {check.name: check.blocking for check in CORPUS.checks}["files_are_whole"]

    def test_what_is_unusual_is_left_out_or_counted_and_warned_of(self, tmp_path: Path) -> None:
        rows: list[Any] = [{"text": text} for text in TEXTS] + [
            {"text": None},
            {"text": 7},
            {"body": "another column"},
            {"text": "  "},
            {"text": "UTF-16".encode("utf-16-le").decode()},
            {"text": f"one{END_OF_TEXT}two"},
            {"text": "a rare <unk> word"},
            {"text": "ACGT" * 20_000},
        ]
        lines = [json.dumps(row) for row in rows]
        lines.insert(3, '{"text": "cut sh')
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        built = build(tmp_path, {"name": "a", "malformed": 0.007})
        entry = documents.index(built.output)["a"]
        assert {reason: known["count"] for reason, known in entry["left_out"].items()} == {
            "not JSON": 1,
            "no text": 1,
            "not text": 1,
            "no column 'text'": 1,
        }
        assert entry["left_out"]["no text"]["first"].startswith("a.jsonl, row 502: column 'text'")
        assert entry["training"]["documents"] + entry["held_out"]["documents"] == len(TEXTS) + 4
        assert {
            name: count
            for name, count in built.metrics.items()
            if "row" in name or "documents_with" in name
        } == {
            "a/rows_left_out": 4,
            "a/blank_rows": 1,
            "a/documents_with/nul": 1,
            "a/documents_with/end_of_text": 1,
            "a/documents_with/unk": 1,
            "a/documents_with/long_word": 1,
        }
        verdict = verdicts(built)["nothing_unusual"]
        assert not verdict.passed and "4 rows of a left out" in verdict.summary
        assert "1 documents of a hold NUL characters" in verdict.summary
        (tmp_path / "show").mkdir()
        CORPUS.show(built, tmp_path / "show")
        assert "not JSON: 1 (first: a.jsonl, line 4" in (tmp_path / "show/sources.md").read_text()
        with pytest.raises(UserError, match=r"4 of 509 rows cannot be used.*0\.005") as error:
            build(tmp_path, {"name": "a", "malformed": 0.005})
        assert error.value.field == "sources[0].malformed"

    def test_near_copies_are_measured(self) -> None:
        words = [f"considerably{n * n}" for n in range(200)]
        training = [" ".join(words)]
        assert (
            count_mostly_seen(
                [" ".join(words[20:80]), " ".join(reversed(words)), "short text"], training
            )
            == 1
        )


def test_the_stage_is_known_without_importing_torch_dagster_mlflow_or_datasets() -> None:
    script = (
        "import sys, assets.stages.corpus; print(sorted({'torch', 'dagster', 'mlflow', "
        "'datasets', 'pyarrow', 'matplotlib'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_a_full_disk_is_one_sentence_where_sqlite_meets_it(tmp_path: Path) -> None:
    with Seen(tmp_path) as seen, pytest.raises(sqlite3.OperationalError) as met:
        seen._database.execute("PRAGMA max_page_count = 8")
        for number in range(10_000):
            seen.add(f"text {number}", "a", held_out=False)
    assert (sentence(met.value, tmp_path / "building") or "").startswith("The disk is full: ")


def test_an_unknown_source_and_a_folder_that_is_no_corpus_are_sentences(tmp_path: Path) -> None:
    write(tmp_path, "a", TEXTS)
    built = build(tmp_path, {"name": "a"})
    with pytest.raises(UserError, match=r"no source 'b'.*Its sources: a"):
        list(documents.read(built.output, "b", "training"))
    with pytest.raises(UserError, match="is not a corpus"):
        documents.index(tmp_path)
