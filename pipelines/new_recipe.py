"""A first recipe for a person's own files: what they hold is guessed, and each guess is written
down with the key that changes it.

Text becomes a corpus; rows with a column of labels become a task. The recipe extends another, from
which the model and all that is not guessed are.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assets.recipe.yaml_file import is_path
from gpt_model.data.formats import Row, format_from_ending, read_rows
from gpt_model.errors import UserError, naming_path

ROWS_READ = 2_000  # of a file, to guess from
BYTES_READ = 1 << 20  # of a text
LABELS = range(2, 21)  # different values of a column of labels, as tasks infer them
ROWS_A_LABEL = 3  # on average at least; a column of fewer is an identifier, not a label
LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment", "outcome", "answer")
TEXT_NAMES = ("text", "content", "body", "document", "sentence", "review", "note", "message")
# form -> the pairs of column names that say it, in the order of its segments
PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "entailment": (("premise", "hypothesis"), ("passage", "question"), ("context", "question")),
    "similarity": (
        ("first", "second"),
        ("sentence1", "sentence2"),
        ("text1", "text2"),
        ("question1", "question2"),
    ),
}
SEGMENTS = {"entailment": ("premise", "hypothesis"), "similarity": ("first", "second")}
OPTIONS = ("options", "choices")  # a column that holds a list
SEPARATOR = "<|endoftext|>"
# Of a corpus: how often it is gone through, at least and at most so many tokens.
EPOCHS, LEAST_TOKENS, MOST_TOKENS, BATCH_TOKENS = 8, 40_960, 1_400_000, 2_048
BYTES_A_TOKEN = 4
# Repetitive text supports no more merges; the least are the bytes and <|endoftext|>.
BYTES_A_MERGE, LEAST_VOCABULARY, MOST_VOCABULARY = 250, 257, 16_384
MANY_FILES = 50  # from which on each is a document
FEW_DOCUMENTS = 40  # below which more of them are held out, so that there is one


@dataclass(frozen=True)
class Guess:
    """`key` of the recipe or task, what was guessed for it, and why."""

    key: str
    value: str
    reason: str


@dataclass
class Draft:
    """The files to write, the recipe first, and what was guessed."""

    files: dict[Path, str] = field(default_factory=dict)
    guesses: list[Guess] = field(default_factory=list)

    def guess(self, key: str, value: Any, reason: str) -> Any:
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        self.guesses.append(Guess(key, shown, reason))
        return value


def draft(target: Path, data: Path, extends: str) -> Draft:
    """A recipe at `target` for `data`, a file or a folder. Raises UserError where nothing in it can
    be read.
    """
    files = _data_files(data)
    result = Draft()
    if is_path(extends):
        extends = _seen_from(Path(extends).expanduser(), target)
    first = files[0]
    if format_from_ending(first.name) == "text":
        _corpus(result, target, data, files, extends, None)
        return result
    rows, header = _rows(first)
    label = _label(rows)
    if label is None:
        _corpus(result, target, data, files, extends, (rows, header))
    elif len(files) > 1:
        raise UserError(
            f"{data} has {len(files)} files with labels, and a task reads one: give one of them, "
            f"such as {first}."
        )
    else:
        _task(result, target, first, rows, header, label, extends)
    return result


def _data_files(data: Path) -> list[Path]:
    """`data`, or the files in it of the format that has most bytes, largest first."""
    with naming_path(data):
        if data.is_file():
            files = [data]
        else:
            paths = sorted(data.rglob("*")) if data.is_dir() else []
            files = [path for path in paths if path.is_file() and format_from_ending(path.name)]
        by_ending = Counter[str]()
        for path in files:
            by_ending["".join(path.suffixes[-1:])] += path.stat().st_size
    if not files or format_from_ending(files[0].name) is None:
        what = "has no file of text or rows" if data.exists() else "does not exist"
        raise UserError(
            f"{data} {what}. Give a folder of .txt or .md files, or a .csv, .tsv, .jsonl or "
            ".parquet file."
        )
    ending = by_ending.most_common(1)[0][0]
    chosen = [path for path in files if path.suffix == ending and path.stat().st_size]
    if not chosen:
        raise UserError(f"{data} is empty: there is nothing to guess from.")
    return sorted(chosen, key=lambda path: (-path.stat().st_size, path))


def _rows(path: Path) -> tuple[list[Row], list[str] | None]:
    """The first rows, and the column names of a file whose first line is no header."""

    def read(header: Sequence[str] | None) -> list[Row]:
        with naming_path(path), path.open("rb") as stream:
            rows = read_rows(stream, path.name, header=header)
            return list(itertools.islice(rows, ROWS_READ))

    rows = read(None)
    if not rows:
        raise UserError(f"{path} has no rows below its first line: there is nothing to guess from.")
    names = [str(name) for name in rows[0]]
    if format_from_ending(path.name) not in ("csv", "tsv") or _is_header(names, rows):
        return rows, None
    header = [f"column_{number}" for number in range(1, len(names) + 1)]
    return read(header), header


def _is_header(names: Sequence[str], rows: Sequence[Row]) -> bool:
    """Whether a first line has names: short, no numbers, and none stands again in its column."""
    for name in names:
        again = any(str(row[name]).strip() == name.strip() for row in rows)
        if again or not name.strip() or len(name) > 40 or re.fullmatch(r"[\d.,+-]+", name.strip()):
            return False
    return True


def _texts(rows: Sequence[Row], column: str) -> list[str]:
    return [str(row[column]) for row in rows if row.get(column) not in (None, "")]


def _label(rows: Sequence[Row]) -> str | None:
    """The column of labels: one of few different short values; by its name where there are more."""
    candidates = []
    for column in rows[0]:
        values = _texts(rows, column)
        different = set(values)
        few = len(different) in LABELS and len(values) >= ROWS_A_LABEL * len(different)
        if few and max(map(len, different)) <= 60:
            candidates.append(column)
        elif column.lower() in LABEL_NAMES and any(name in rows[0] for name in OPTIONS):
            return column
    named = [column for column in candidates if column.lower() in LABEL_NAMES]
    return next(iter([*named, *reversed(candidates)]), None)  # labels often stand last


def _text_column(rows: Sequence[Row], taken: Sequence[str]) -> tuple[str, str]:
    """The column of text, and why it is that one."""
    columns = [column for column in rows[0] if column not in taken]
    if not columns:
        raise UserError(f"Beside {', '.join(taken)} there is no column that could be a text.")
    for column in columns:
        if column.lower() in TEXT_NAMES:
            return column, "by its name"
    longest = max(columns, key=lambda column: sum(map(len, _texts(rows, column))))
    return longest, "the longest text"


def _recipe_name(target: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", target.stem)


def _seen_from(path: Path, target: Path) -> str:
    return Path(os.path.relpath(path.absolute(), target.absolute().parent)).as_posix()


def _task(
    result: Draft,
    target: Path,
    path: Path,
    rows: Sequence[Row],
    header: list[str] | None,
    label: str,
    extends: str,
) -> None:
    task = target.with_name(f"{_recipe_name(target)}_task.yaml")
    if header:
        result.guess("header", header, "the first line holds a row, not names")
    form, columns = _form(result, rows, label)
    lines = [
        f"# Guessed from {path.name} by `gpt-lineage new`.",
        "# docs/tutorials/own-task.md explains the keys.",
        f"description: rows of {path.name}",
        "licence: unknown # of the text; stands in the scorecard",
        f"source: {{path: {json.dumps(_seen_from(path, task), ensure_ascii=False)}}}",
        *([f"header: {json.dumps(header)}"] if header else []),
        f"form: {form}",
        f"columns: {json.dumps(columns, ensure_ascii=False)}",
    ]
    recipe = [
        f"# Written by `gpt-lineage new`. Everything that is not here is {extends}'s.",
        f"extends: {extends}",
        f"name: {_recipe_name(target)}",
        f"description: {extends} fine-tuned on {path.name}",
        f"finetuning: {{tasks: [{task.name}]}}",
        "experiments: null",
        "scaling: null",
        "alignment: null",
    ]
    result.files[target] = "\n".join(recipe) + "\n"
    result.files[task] = "\n".join(lines) + "\n"


def _form(result: Draft, rows: Sequence[Row], label: str) -> tuple[str, Mapping[str, Any]]:
    """The form of the task and its columns."""
    names = {column.lower(): column for column in rows[0]}
    if options := next((names[name] for name in OPTIONS if name in names), None):
        question, why = _text_column(rows, [label, options])
        form = result.guess("form", "multiple_choice", f"column {options} holds the options")
        result.guess("columns.question", question, why)
        result.guess("columns.label", label, "the right option")
        return form, {"question": question, "options": options, "label": label}
    values = Counter(_texts(rows, label))
    counts = ", ".join(f"{value} {count}" for value, count in values.most_common(6))
    for form, pairs in PAIRS.items():
        for pair in pairs:
            if all(name in names for name in pair):
                columns = dict(zip(SEGMENTS[form], (names[name] for name in pair), strict=True))
                result.guess("form", form, f"columns {pair[0]} and {pair[1]} beside labels")
                result.guess("columns.label", label, f"{len(values)} different values: {counts}")
                return form, {**columns, "label": label}
    text, why = _text_column(rows, [label])
    result.guess("form", "classification", "one text beside labels")
    result.guess("columns.text", text, why)
    result.guess("columns.label", label, f"{len(values)} different values: {counts}")
    return "classification", {"text": text, "label": label}


def _corpus(
    result: Draft,
    target: Path,
    data: Path,
    files: Sequence[Path],
    extends: str,
    table: tuple[Sequence[Row], list[str] | None] | None,
) -> None:
    size = sum(path.stat().st_size for path in files)
    pattern = _seen_from(data, target)
    if data.is_dir():
        pattern = f"{pattern}/**/*{files[0].suffix}"
    many = "s" * (len(files) > 1)
    result.guess("corpus.sources[0].path", pattern, f"{len(files)} file{many}, {size:,} bytes")
    source: dict[str, Any] = {"name": _recipe_name(target), "path": pattern}
    if table is not None:
        rows, header = table
        source["text"], why = _text_column(rows, [])
        result.guess("corpus.sources[0].text", source["text"], f"{why}; no column has labels")
        documents = len(rows)
        if header:
            source["header"] = result.guess("corpus.sources[0].header", header, "no line of names")
    else:
        documents = _documents(result, source, files)
    few = documents < FEW_DOCUMENTS
    why = f"about {documents:,} documents" + (", so that some are held out" if few else "")
    held_out = result.guess("corpus.held_out", 0.2 if few else 0.05, why)
    batches = EPOCHS * size // BYTES_A_TOKEN // BATCH_TOKENS
    tokens = min(max(batches * BATCH_TOKENS, LEAST_TOKENS), MOST_TOKENS)
    result.guess("pretraining.tokens", tokens, f"{EPOCHS} times the text, at most {MOST_TOKENS:,}")
    vocab = min(LEAST_VOCABULARY + size // BYTES_A_MERGE, MOST_VOCABULARY)
    result.guess("tokenizer.vocab_size", vocab, f"one merge for each {BYTES_A_MERGE} bytes of text")
    lines = [
        f"# Written by `gpt-lineage new`. Everything that is not here is {extends}'s.",
        f"extends: {extends}",
        f"name: {_recipe_name(target)}",
        f"description: a model of {data.name}",
        "corpus:",
        "  sources:",
        "    # licence: of the text; stands in the scorecard",
        f"    - {json.dumps(source | {'licence': 'unknown'}, ensure_ascii=False)}",
        f"  held_out: {held_out} # share of the documents that nothing trains on",
        f"tokenizer: {{style: gpt2, vocab_size: {vocab}}}",
        f"pretraining: {{tokens: {tokens:_}, batch_tokens: {BATCH_TOKENS}, "
        f"warmup_tokens: {tokens // 20:_}}}",
        "finetuning: null",
        "evaluation: {suites: [held_out]}",
        "experiments: null",
        "scaling: null",
        "alignment: null",
    ]
    result.files[target] = "\n".join(lines) + "\n"


def _documents(result: Draft, source: dict[str, Any], files: Sequence[Path]) -> int:
    """How the files are divided, written to `source`; about how many documents that makes."""
    with naming_path(files[0]), files[0].open("rb") as file:
        text = file.read(BYTES_READ).decode("utf-8", errors="replace")
    size = files[0].stat().st_size
    all_files = sum(path.stat().st_size for path in files) / min(size, BYTES_READ)
    counts = {
        "headings": len(re.findall(r"^#{1,6} ", text, re.M)) * (files[0].suffix == ".md"),
        "paragraphs": len([part for part in re.split(r"\n\s*\n", text) if part.strip()]),
        "lines": len([line for line in text.splitlines() if line.strip()]),
    }
    key = "corpus.sources[0].documents"
    if SEPARATOR in text:
        source["documents"] = {"separator": SEPARATOR}
        result.guess(key, source["documents"], f"{files[0].name} has {SEPARATOR} between them")
        return int(text.count(SEPARATOR) * all_files)
    if len(files) >= MANY_FILES:
        source["documents"] = result.guess(key, "whole", f"each of the {len(files)} files is one")
        return len(files)
    for kind, least in (("headings", 5), ("paragraphs", 10), ("lines", 1)):
        if counts[kind] >= least:
            part = "the first megabyte of " if size > BYTES_READ else ""
            why = f"{counts[kind]:,} of them in {part}{files[0].name}"
            source["documents"] = result.guess(key, kind, why)
            return int(counts[kind] * all_files)
    raise UserError(f"{files[0]} holds no text: there is nothing to guess from.")
