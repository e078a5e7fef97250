"""From a source's rows to dialogues and rankings: what each form means, and what is left out,
counted by its reason. No tokens.

A row that is no dialogue, or compares nothing, is left out and named, and reading goes on:
collections of this kind always hold some. A source none of whose rows can be used is a mistake.
Rows that people judged are `judged.py`'s, trees `trees.py`'s; which split what is in is
`splitting.py`'s.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gpt_model.data.formats import Row, read_rows
from gpt_model.data.location import tables
from gpt_model.data.splits import bucket
from gpt_model.errors import UserError, about_all_of
from gpt_model.progress import Progress
from gpt_model.rlhf import votes
from gpt_model.rlhf.dialogue import Dialogue, NoDialogue, Turn, dialogue
from gpt_model.rlhf.readers.candidate import Candidate, Report, key_of
from gpt_model.rlhf.readers.fields import (
    Messages,
    Unusable,
    broken,
    messages_in,
    spoken,
    text_of,
    value_of,
)
from gpt_model.rlhf.readers.instructions import of_task
from gpt_model.rlhf.readers.oasst_trees import Tree
from gpt_model.rlhf.readers.preferences import (
    of_pair,
    of_ranking,
    of_rated,
    prompt_of_pair,
    prompt_of_ranking,
)
from gpt_model.rlhf.readers.source import HumanSource, Purpose

# of `part`: the same for every source, so that shares that do not overlap have no text in common
PART_SEED = 0x9A27


def candidates(
    source: HumanSource,
    purpose: Purpose,
    downloads: Path,
    home: Path,
    progress: Progress,
    seed: int,
) -> tuple[list[Candidate], Report]:
    """All that `source` has for that purpose. Raises UserError where that is nothing, and where a
    file is missing, damaged or of an unknown format.

    `home`: the store's folder, where votes lie. `seed`: of a task's splits, and of what is taken
    where there is a limit.
    """
    report, found, shown = Report(), list[Candidate](), set[Dialogue]()
    for where, made in _each(source, purpose, downloads, home, progress, seed):
        report.rows += 1
        try:
            one = replace(_in_part(source, _writable(made())), id=where)
            if purpose == "demonstrations" and one.turns in shown:
                raise Unusable("a dialogue that is there already")
            shown.add(one.turns)
            found.append(one)
        except NoDialogue as error:
            report.leave_out(error.kind, where, str(error))
        except Unusable as error:
            report.leave_out(error.reason, where, error.told)
    if source.limit and len(found) > source.limit:
        chosen = set(random.Random(seed).sample(range(len(found)), source.limit))
        beyond = [one for place, one in enumerate(found) if place not in chosen]
        report.leave_out("beyond the limit", beyond[0].id, count=len(beyond))
        found = [one for place, one in enumerate(found) if place in chosen]
    report.shortened = sum(one.shortened for one in found)
    for one in found:
        for reason, told in one.dropped:
            report.drop(reason, one.id, told)
    if not (found or source.votes):
        raise nothing_left(source, purpose, report)
    return found, report


def nothing_left(source: HumanSource, purpose: Purpose, report: Report) -> UserError:
    if not report.rows:
        return UserError(
            f"Source {source.name!r} has no rows, so there are no {purpose}: check which files it names."
        )
    return UserError(
        f"Source {source.name!r}: none of its {report.rows} rows can be used for {purpose}. Left out: {report.reasons()}."
    )


Made = tuple[
    str, Callable[[], Candidate]
]  # which row, and what makes a candidate of it or raises why not


def _each(
    source: HumanSource,
    purpose: Purpose,
    downloads: Path,
    home: Path,
    progress: Progress,
    seed: int,
) -> Iterator[Made]:
    if source.task:
        with about_all_of("task"):
            for where, one in of_task(source, downloads, progress, seed):
                yield where, lambda one=one: one  # type: ignore[misc]
        return
    opened = _rows(source, downloads, home, progress)
    if source.form == "tree":
        everything = list(opened)
        tree = Tree(source, [row for _, row in everything])
        for where, row in everything:
            yield where, partial(tree.made, row, purpose)
    elif source.form == "conversations":
        for where, row in opened:
            for place, lines in _conversations(source, row):
                yield f"{where}{place}", partial(_conversation, lines, purpose)
    else:
        for where, row in opened:
            yield where, partial(_made, source, row, purpose)


def _rows(
    source: HumanSource, downloads: Path, home: Path, progress: Progress
) -> Iterator[tuple[str, Row]]:
    """(which row, the row) of all its files, or its split on the hub, in a fixed order."""
    if source.votes:
        named: Iterable[tuple[str, Iterator[Row]]] = (
            (file.path, read_rows(votes.open_pinned(file, home), file.path))
            for file in source.pinned or []
        )
    else:
        # a line such as Yes or 42 is what somebody says
        strings = source.form == "conversations"
        named = tables(source.location(), [], Path(), downloads, progress, yaml_strings=strings)
    for name, table in named:
        for number, row in enumerate(table, start=1):
            yield f"{name}, row {number}", row


def _made(source: HumanSource, row: Row, purpose: Purpose) -> Candidate:
    if source.form == "rated":
        return of_rated(source, row)
    if source.form == "text":
        return _of_text(source, row, purpose)
    if source.votes or source.form == "pairs":
        return (
            of_pair(source, row)
            if purpose == "comparisons"
            else _asked(prompt_of_pair(source, row))
        )
    if source.form == "rankings":
        return (
            of_ranking(source, row)
            if purpose == "comparisons"
            else _asked(prompt_of_ranking(source, row))
        )
    return _dialogue_of(_messages(source, row), purpose)


def _in_part(source: HumanSource, one: Candidate) -> Candidate:
    if source.part and not source.part[0] <= bucket(one.key, PART_SEED) < source.part[1]:
        raise Unusable("of another part")
    return one


def _writable(one: Candidate) -> Candidate:
    if told := broken("".join(one.texts())):
        raise Unusable("half a character", told)
    return one


# --- dialogues ---


def _messages(source: HumanSource, row: Row) -> Messages:
    """The row's messages, as the form has them."""
    if source.form == "transcript":
        return spoken(text_of(source, row, "text"))
    if source.form == "messages":
        return messages_in(value_of(source, row, "messages"))
    asked = [text_of(source, row, "prompt"), text_of(source, row, "input", required=False)]
    said = [{"role": "user", "content": "\n\n".join(filter(None, asked))}]
    answer = text_of(source, row, "response", required=False)
    return [*said, {"role": "assistant", "content": answer}] if answer else said


def _conversations(source: HumanSource, row: Row) -> Iterator[tuple[str, Any]]:
    """Each conversation of a row, with which one it is; where there is no list of them, what stands
    there, which is none.
    """
    found = value_of(source, row, "conversations")
    if not isinstance(found, list) or not found:
        yield "", found
        return
    for place, lines in enumerate(found, start=1):
        yield f", conversation {place}", lines


def _conversation(lines: Any, purpose: Purpose) -> Candidate:
    return _dialogue_of(_alternating(lines), purpose)


def _alternating(lines: Any) -> Messages:
    if not isinstance(lines, list):
        raise Unusable("no list of turns", f"a conversation is {type(lines).__name__}")
    return [
        {"role": ("user", "assistant")[place % 2], "content": _plain(line)}
        for place, line in enumerate(lines)
    ]


def _plain(line: Any) -> Any:
    """A line such as 42, which JSON may hold as a number."""
    return str(line) if isinstance(line, int | float) and not isinstance(line, bool) else line


def _dialogue_of(said: Messages, purpose: Purpose) -> Candidate:
    return _asked(said) if purpose == "prompts" else _demonstrated(said)


def _demonstrated(said: Messages) -> Candidate:
    """The dialogue, without what the user said last where nobody answered it."""
    if len(said) == 1 and said[0]["role"] == "user":
        raise Unusable("no answer", "it is one turn, the user's")
    unanswered = bool(said) and said[-1]["role"] == "user"
    turns = dialogue(said[:-1] if unanswered else said)
    return Candidate("", turns, key_of(turns), shortened=unanswered)


def _asked(said: Messages) -> Candidate:
    """The dialogue up to what the user said last."""
    if said and said[-1]["role"] == "assistant":
        said = said[:-1]
    turns = dialogue(said, ends_with=("user",))
    return Candidate("", turns, key_of(turns))


def _of_text(source: HumanSource, row: Row, purpose: Purpose) -> Candidate:
    """What the user says is the same everywhere; a prompt ends with the text's first words, for the
    assistant to go on from.
    """
    text, asked = text_of(source, row, "text"), Turn("user", source.instruction or "")
    if purpose == "demonstrations":
        return Candidate("", (asked, Turn("assistant", text)), text)
    assert source.opening, "HumanSource.check_serves saw to it"
    words = re.match(rf"(?:\S+\s+){{{source.opening - 1}}}\S+(?=\s+\S)", text)
    if words is None:
        raise Unusable(
            "too short to be gone on with",
            f"{text[:40]!r} has no word after its first {source.opening}",
        )
    return Candidate("", (asked, Turn("assistant", words[0])), text, rest=text[words.end() :])
