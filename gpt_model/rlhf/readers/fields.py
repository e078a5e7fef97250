"""The parts of a row: values at dotted names, texts, numbers, lists of messages, transcripts. What
a form makes of them is `record_readers.py`'s, `preferences.py`'s and `oasst_trees.py`'s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_model.data.formats import Row
from gpt_model.rlhf.readers.parsed import UnusableRow
from gpt_model.rlhf.readers.source import HumanSource

Messages = list[dict[str, Any]]

SPEAKERS = re.compile(r"\n\n(Human|Assistant):")  # of Bai et al. 2022's files (HH-RLHF)
ROLES = {  # what collections call the roles: HH-RLHF, OpenAssistant, ShareGPT, and our own names
    "human": "user",
    "prompter": "user",
    "user": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def value_at(row: Row, name: str) -> Any:
    """The value at a dotted name, in which a number is an index of a list; None where there is
    none.
    """
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def value_of(source: HumanSource, row: Row, part: str) -> Any:
    """The value in the one column of a part of the form; None where the part is not read."""
    columns = source.column(part)
    return value_at(row, columns[0]) if columns else None


def text_of(source: HumanSource, row: Row, part: str, required: bool = True) -> str:
    """The texts of a part's columns, those that are not empty, with a blank line between."""
    columns, texts = source.column(part), []
    for column in columns:
        value = value_at(row, column)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, str | int | float)
        ):
            raise UnusableRow(
                f"no text in {column!r}", f"column {column!r} holds {type(value).__name__}"
            )
        if value is not None and str(value).strip():
            texts.append(str(value).strip())
    if required and not texts:
        raise UnusableRow(
            f"nothing in {' and '.join(map(repr, columns))}",
            f"its columns are {', '.join(map(str, row))}",
        )
    return "\n\n".join(texts)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def parse_numbers(value: Any, count: int, part: str) -> list[float]:
    """A list of `count` numbers. Raises UnusableRow, naming the part, where it is none."""
    if not isinstance(value, list) or len(value) != count or not all(map(is_number, value)):
        raise UnusableRow(f"no {part}", f"{count} answers have {value!r}")
    return value


def parse_number(value: Any) -> float | None:
    """A number, also where it is written out as in a csv file; None where it is none."""
    try:
        number = float(value) if is_number(value) or isinstance(value, str) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def parse_bool(value: Any, part: str) -> bool:
    """A truth value; empty is false. Raises UnusableRow where it is neither."""
    values = {"": False, "none": False, "false": False, "0": False, "true": True, "1": True}
    truth = values.get(str(value).strip().lower())
    if truth is None:
        raise UnusableRow(f"neither true nor false for a {part}", f"found {value!r}")
    return truth


def lone_surrogate(text: str) -> str | None:
    """Where a text has half of a surrogate pair, which JSON's escapes can spell and no encoding can
    write; None where it has none.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a lone surrogate after {error.object[max(0, error.start - 20) : error.start]!r}"
    return None


def parse_role(value: Any) -> Any:
    """Our name for a role, or `value` where it is none, which `dialogue` refuses."""
    return ROLES.get(str(value).lower(), value)


def parse_messages(value: Any) -> Messages:
    """Messages as OpenAI has them (role, content) or as ShareGPT has them (from, value)."""
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise UnusableRow("no list of messages", f"found {type(value).__name__}")
    return [
        {
            "role": parse_role(item.get("role", item.get("from"))),
            "content": item.get("content", item.get("value")),
        }
        for item in value
    ]


def parse_transcript(text: str) -> Messages:
    """The turns of a transcript as HH-RLHF writes one: "\\n\\nHuman: …\\n\\nAssistant: …"."""
    first, *parts = SPEAKERS.split(f"\n\n{text.lstrip()}")
    if first.strip() or not parts:
        raise UnusableRow("no transcript", 'it does not begin with "Human:" or "Assistant:"')
    return [
        {"role": parse_role(speaker), "content": content}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def parse_prompt(value: Any) -> Messages:
    """A prompt: messages, a transcript, or the user's turn."""
    if isinstance(value, list):
        return parse_messages(value)
    if not isinstance(value, str) or not value.strip():
        raise UnusableRow("no prompt", f"found {type(value).__name__}" if value is not None else "")
    if SPEAKERS.match(f"\n\n{value.lstrip()}"):
        return parse_transcript(value)
    return [{"role": "user", "content": value}]


def same_turns(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two lists of messages are equal, whitespace at the ends of a turn apart."""

    def turns(messages: Sequence[Mapping[str, Any]]) -> list[tuple[Any, str]]:
        return [(message["role"], str(message["content"]).strip()) for message in messages]

    return turns(a) == turns(b)
