"""`gpt-lineage new`: what it guesses of a person's files, and that the recipe it writes builds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import run_cli, write_local_recipe, write_notes
from typer.testing import CliRunner

from assets.recipe.recipe import load_recipe
from assets.store.store import Store
from gpt_model.errors import UserError
from pipelines.cli.main import app
from pipelines.new_recipe import draft

VISITS = "".join(
    f"Arrived early on day {n} and left content.,happy\nWaited {n} hours for nothing.,unhappy\n"
    for n in range(40)
)


def guessed(folder: Path, files: dict[str, str], data: str) -> dict[str, Any]:
    """What is guessed of `data`, by key, once `files` are written."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    drafted = draft(folder / "mine.yaml", folder / data, "tiny")
    assert all(yaml.safe_load(text) for text in drafted.files.values())
    return {guess.key: guess.value for guess in drafted.guesses}


def test_rows_with_labels_are_a_classification_task(tmp_path: Path) -> None:
    guesses = guessed(tmp_path, {"visits.csv": f"note,outcome\n{VISITS}"}, "visits.csv")
    assert guesses == {"form": "classification", "columns.text": "note", "columns.label": "outcome"}


def test_a_first_line_that_is_a_row_is_no_header(tmp_path: Path) -> None:
    guesses = guessed(tmp_path, {"visits.csv": VISITS}, "visits.csv")
    assert json.loads(guesses["header"]) == ["column_1", "column_2"]
    assert guesses["columns.text"] == "column_1" and guesses["columns.label"] == "column_2"


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        (("premise", "hypothesis"), "entailment"),
        (("passage", "question"), "entailment"),
        (("sentence1", "sentence2"), "similarity"),
    ],
)
def test_two_texts_beside_labels_are_a_pair(
    columns: tuple[str, str], form: str, tmp_path: Path
) -> None:
    rows = [f"A man {n} sleeps.,He {n} is awake.,{n % 3}" for n in range(30)]
    text = "\n".join([f"{columns[0]},{columns[1]},label", *rows])
    assert guessed(tmp_path, {"pairs.csv": text}, "pairs.csv")["form"] == form


def test_options_are_a_multiple_choice_task(tmp_path: Path) -> None:
    rows = [
        {"question": f"What opens door {n}?", "options": ["a key", "a spoon"], "answer": "a key"}
        for n in range(9)
    ]
    text = "\n".join(map(json.dumps, rows))
    guesses = guessed(tmp_path, {"q.jsonl": text}, "q.jsonl")
    assert guesses["form"] == "multiple_choice" and guesses["columns.question"] == "question"


def test_rows_without_labels_are_a_corpus(tmp_path: Path) -> None:
    rows = [json.dumps({"id": n, "body": f"Story {n} of many words."}) for n in range(60)]
    guesses = guessed(tmp_path, {"s.jsonl": "\n".join(rows)}, "s.jsonl")
    assert guesses["corpus.sources[0].text"] == "body" and "form" not in guesses


@pytest.mark.parametrize(
    ("files", "documents"),
    [
        ({f"t/{n}.txt": "One.\n\nTwo.\n" for n in range(60)}, "whole"),
        ({"t/a.txt": "A first part.\n\n" * 30}, "paragraphs"),
        ({"t/a.txt": "A line.\n" * 30}, "lines"),
        ({"t/a.md": "# Title\n\nSome text.\n\n" * 30}, "headings"),
        ({"t/a.txt": "A story.<|endoftext|>" * 30}, '{"separator": "<|endoftext|>"}'),
    ],
)
def test_text_is_divided_as_it_is_written(
    files: dict[str, str], documents: str, tmp_path: Path
) -> None:
    guesses = guessed(tmp_path, files, "t")
    assert guesses["corpus.sources[0].documents"] == documents
    assert guesses["corpus.sources[0].path"] == f"t/**/*{Path(next(iter(files))).suffix}"


@pytest.mark.parametrize(
    ("files", "data", "sentence"),
    [
        ({}, "nothing", "nothing does not exist"),
        ({"a.pdf": "x"}, "a.pdf", "has no file of text or rows"),
        ({"a.csv": "note,outcome\n"}, "a.csv", "has no rows below its first line"),
        ({"a.txt": ""}, "a.txt", "is empty"),
        ({"v/a.csv": f"n,o\n{VISITS}", "v/b.csv": f"n,o\n{VISITS}"}, "v", "a task reads one"),
    ],
)
def test_what_cannot_be_guessed_is_a_sentence(
    files: dict[str, str], data: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        guessed(tmp_path, files, data)


@pytest.mark.slow
def test_new_recipes_plan_and_train(
    home: Path, downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for text, and one for rows that extends it: one build of both."""
    folder = tmp_path / "own"
    write_local_recipe(folder / "base", paragraphs=8)  # a model that seconds can train
    write_notes(folder / "texts", 80)
    (folder / "visits.csv").write_text(f"note,outcome\n{VISITS}")
    monkeypatch.chdir(folder)
    call: Callable[..., Any] = lambda *arguments: CliRunner().invoke(app, list(arguments))  # noqa: E731
    text = call("new", "mine", "texts", "--extends", "base/local.yaml")
    assert text.exit_code == 0, text.output
    assert "paragraphs" in text.stdout and "corpus.sources[0].documents" in text.stdout
    rows = call("new", "visits.yaml", "visits.csv", "--extends", "mine.yaml", "--json")
    document = json.loads(rows.stdout)
    assert document["files"] == ["visits.yaml", "visits_task.yaml"]
    assert call("new", "visits.yaml", "visits.csv").exit_code == 1  # it is not written over
    assert call("plan", "visits.yaml").exit_code == 0
    assert load_recipe("visits.yaml").name == "visits"
    done = run_cli(home, downloads, "run", "visits.yaml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "finetuned/visits_task" in json.loads(done.stdout)["artifacts"]
    artifact = Store(home).resolve("visits/finetuned/visits_task")
    assert 0 <= artifact.metrics["accuracy"] <= 1
