"""From a source's rows to dialogues and rankings: what each form means, and which rows are left
out, counted by reason. No tokens.

A row that is no dialogue, or compares nothing, is left out and named, and reading goes on:
collections of this kind always hold some. A source none of whose rows can be used is a mistake.
Rankings are `preferences.py`'s, trees `oasst_trees.py`'s; which split a row is in is
`rlhf/splits.py`'s.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from gpt_model.data.formats import Row, UnreadableRow, read_rows
from gpt_model.data.local_files import read_once
from gpt_model.data.location import tables
from gpt_model.data.splits import bucket
from gpt_model.errors import UserError, about_all_of
from gpt_model.progress import Progress, Silent
from gpt_model.rlhf import votes
from gpt_model.rlhf.dialogue import Dialogue, NoDialogue, Turn, dialogue
from gpt_model.rlhf.readers.fields import (
    Messages,
    lone_surrogate,
    parse_messages,
    parse_transcript,
    text_of,
    value_of,
)
from gpt_model.rlhf.readers.instructions import demonstrations_of_task
from gpt_model.rlhf.readers.oasst_trees import Tree
from gpt_model.rlhf.readers.parsed import ParsedRow, RowReport, UnusableRow, split_key
from gpt_model.rlhf.readers.preferences import (
    parse_pair,
    parse_ranking,
    parse_rated,
    prompt_of_pair,
    prompt_of_ranking,
)
from gpt_model.rlhf.readers.source import HumanSource, Purpose

# of `part`: the same for every source, so that shares that do not overlap have no text in common
PART_SEED = 0x9A27
FIRST_ROWS = 100  # of each local file, which `plan` looks into


def read_source(
    source: HumanSource,
    purpose: Purpose,
    downloads: Path,
    home: Path,
    progress: Progress,
    seed: int,
) -> tuple[list[ParsedRow], RowReport]:
    """Every row of `source` that can be used for that purpose. Raises UserError where there is
    none, and where a file is missing, damaged or of an unknown format.

    `home`: the store's folder, where votes lie. `seed`: of a task's splits, and of the rows that
    are taken where there is a limit.
    """
    rows, report = _usable_rows(source, purpose, downloads, home, progress, seed)
    if not (rows or source.votes):
        raise no_usable_rows(source, purpose, report)
    return rows, report


def check_source(source: HumanSource, purpose: Purpose, downloads: Path, home: Path) -> None:
    """Raises UserError as `read_source` does, for local files: after the first rows of each, or,
    where none of these can be used, after all. Data that is no local file is not read.
    """
    files = source.pinned or []
    parts = (
        [source] if source.hub else [source.model_copy(update={"pinned": [file]}) for file in files]
    )

    def read() -> None:
        given = (purpose, downloads, home, Silent(), 0)
        usable = [bool(_usable_rows(part, *given, first=FIRST_ROWS)[0]) for part in parts]
        if not any(usable):
            read_source(source, *given)

    if files:
        read_once("human", f"{purpose} {source.model_dump_json()}", downloads, read)


def _usable_rows(
    source: HumanSource,
    purpose: Purpose,
    downloads: Path,
    home: Path,
    progress: Progress,
    seed: int,
    first: int | None = None,
) -> tuple[list[ParsedRow], RowReport]:
    """The rows that can be used, of all or of the `first` so many, and what became of each."""
    report, rows, dialogues = RowReport(), list[ParsedRow](), set[Dialogue]()
    parsers = _row_parsers(source, purpose, downloads, home, progress, seed, report, first)
    for row_id, parse in parsers:
        report.rows += 1
        try:
            row = replace(_checked(source, parse()), id=row_id)
            if purpose == "demonstrations" and row.turns in dialogues:
                raise UnusableRow("a dialogue that is there already")
            dialogues.add(row.turns)
            rows.append(row)
        except NoDialogue as error:
            report.left_out.add(error.kind, row_id, str(error))
        except UnusableRow as error:
            report.left_out.add(error.reason, row_id, error.detail)
    if source.limit and len(rows) > source.limit:
        chosen = set(random.Random(seed).sample(range(len(rows)), source.limit))
        beyond = [row for number, row in enumerate(rows) if number not in chosen]
        report.left_out.add("beyond the limit", beyond[0].id, count=len(beyond))
        rows = [row for number, row in enumerate(rows) if number in chosen]
    report.shortened = sum(row.shortened for row in rows)
    for row in rows:
        for reason, detail in row.dropped:
            report.dropped.add(reason, row.id, detail)
    return rows, report


def no_usable_rows(source: HumanSource, purpose: Purpose, report: RowReport) -> UserError:
    if not report.rows:
        return UserError(
            f"Source {source.name!r} has no rows, so there are no {purpose}: "
            "check which files it names."
        )
    return UserError(
        f"Source {source.name!r}: none of its {report.rows} rows can be used for {purpose}. "
        f"Left out: {report.left_out.reasons()}."
    )


# which row, and a function that parses it or raises why it cannot be used
RowParser = tuple[str, Callable[[], ParsedRow]]


def _row_parsers(
    source: HumanSource,
    purpose: Purpose,
    downloads: Path,
    home: Path,
    progress: Progress,
    seed: int,
    report: RowReport,
    first: int | None,
) -> Iterator[RowParser]:
    if source.task:
        with about_all_of("task"):
            for row_id, parsed in demonstrations_of_task(source, downloads, progress, seed):
                yield row_id, lambda parsed=parsed: parsed  # type: ignore[misc]
        return
    rows = islice(_rows(source, downloads, home, progress, report), first)
    if source.form == "tree":
        every_row = list(rows)
        tree = Tree(source, [row for _, row in every_row])
        for row_id, row in every_row:
            yield row_id, partial(tree.parse, row, purpose)
    elif source.form == "conversations":
        for row_id, row in rows:
            for suffix, lines in _conversations(source, row):
                yield f"{row_id}{suffix}", partial(_parse_conversation, lines, purpose)
    else:
        for row_id, row in rows:
            yield row_id, partial(_parse_row, source, row, purpose)


def _rows(
    source: HumanSource, downloads: Path, home: Path, progress: Progress, report: RowReport
) -> Iterator[tuple[str, Row]]:
    """(which row, the row) of all its files, or of its split on the hub, in a fixed order; those
    that cannot be read are left out.
    """
    unreadable = 0  # of the file at hand

    def reject(row: UnreadableRow) -> None:
        nonlocal unreadable
        unreadable += row.rows
        report.rows += row.rows
        report.left_out.add(row.reason, row.where, row.problem, row.rows)

    if source.votes:
        named: Iterable[tuple[str, Iterator[Row]]] = (
            (file.path, read_rows(votes.open_pinned(file, home), file.path, reject=reject))
            for file in source.pinned or []
        )
    else:
        # in a conversation a line such as Yes or 42 is a turn's text
        strings = source.form == "conversations"
        named = tables(
            source.location(), [], Path(), downloads, progress, yaml_strings=strings, reject=reject
        )
    for name, table in named:
        unreadable = 0
        for number, row in enumerate(table, start=1):
            yield f"{name}, row {number + unreadable}", row


def _parse_row(source: HumanSource, row: Row, purpose: Purpose) -> ParsedRow:
    compares = purpose == "comparisons"
    if source.form == "rated":
        return parse_rated(source, row)
    if source.form == "text":
        return _parse_text(source, row, purpose)
    if source.votes or source.form == "pairs":
        return parse_pair(source, row) if compares else _prompt(prompt_of_pair(source, row))
    if source.form == "rankings":
        return parse_ranking(source, row) if compares else _prompt(prompt_of_ranking(source, row))
    return _parse_dialogue(_messages(source, row), purpose)


def _checked(source: HumanSource, row: ParsedRow) -> ParsedRow:
    """The row, where its text can be written and it is in the source's part."""
    if surrogate := lone_surrogate("".join(row.texts())):
        raise UnusableRow("half a character", surrogate)
    if source.part and not source.part[0] <= bucket(row.key, PART_SEED) < source.part[1]:
        raise UnusableRow("of another part")
    return row


def _messages(source: HumanSource, row: Row) -> Messages:
    """The row's messages, as the form has them."""
    if source.form == "transcript":
        return parse_transcript(text_of(source, row, "text"))
    if source.form == "messages":
        return parse_messages(value_of(source, row, "messages"))
    request = [text_of(source, row, "prompt"), text_of(source, row, "input", required=False)]
    messages = [{"role": "user", "content": "\n\n".join(filter(None, request))}]
    answer = text_of(source, row, "response", required=False)
    return [*messages, {"role": "assistant", "content": answer}] if answer else messages


def _conversations(source: HumanSource, row: Row) -> Iterator[tuple[str, Any]]:
    """Each conversation of a row, with which one it is; where there is no list of them, the value
    that stands there, which is none.
    """
    conversations = value_of(source, row, "conversations")
    if not isinstance(conversations, list) or not conversations:
        yield "", conversations
        return
    for number, lines in enumerate(conversations, start=1):
        yield f", conversation {number}", lines


def _parse_conversation(lines: Any, purpose: Purpose) -> ParsedRow:
    """Lines of the user and the assistant in turn."""
    if not isinstance(lines, list):
        raise UnusableRow("no list of turns", f"a conversation is {type(lines).__name__}")
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": _as_text(line)}
        for number, line in enumerate(lines)
    ]
    return _parse_dialogue(messages, purpose)


def _as_text(line: Any) -> Any:
    """A line such as 42, which JSON may hold as a number."""
    return str(line) if isinstance(line, int | float) and not isinstance(line, bool) else line


def _parse_dialogue(messages: Messages, purpose: Purpose) -> ParsedRow:
    return _prompt(messages) if purpose == "prompts" else _demonstration(messages)


def _demonstration(messages: Messages) -> ParsedRow:
    """The dialogue, without a last turn of the user that nobody answered."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        raise UnusableRow("no answer", "it is one turn, the user's")
    unanswered = bool(messages) and messages[-1]["role"] == "user"
    turns = dialogue(messages[:-1] if unanswered else messages)
    return ParsedRow("", turns, split_key(turns), shortened=unanswered)


def _prompt(messages: Messages) -> ParsedRow:
    """The dialogue up to the user's last turn."""
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    turns = dialogue(messages, ends_with=("user",))
    return ParsedRow("", turns, split_key(turns))


def _parse_text(source: HumanSource, row: Row, purpose: Purpose) -> ParsedRow:
    """The user's turn is the same everywhere; a prompt ends with the text's first words, for the
    assistant to go on from.
    """
    text, request = text_of(source, row, "text"), Turn("user", source.instruction or "")
    if purpose == "demonstrations":
        return ParsedRow("", (request, Turn("assistant", text)), text)
    assert source.opening, "HumanSource.check_serves requires it"
    opening = re.match(rf"(?:\S+\s+){{{source.opening - 1}}}\S+(?=\s+\S)", text)
    if opening is None:
        raise UnusableRow(
            "too short to be gone on with",
            f"{text[:40]!r} has no word after its first {source.opening}",
        )
    turns = (request, Turn("assistant", opening[0]))
    return ParsedRow("", turns, text, rest=text[opening.end() :])
