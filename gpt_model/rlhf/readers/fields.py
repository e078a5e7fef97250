"""What stands in a row: dotted names, texts, lists of messages, transcripts; and why a row is left
out. What a form makes of it is `forms.py`'s, `judged.py`'s and `trees.py`'s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_model.data.formats import Row
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


class Unusable(Exception):
    """Why a row is left out: `reason`, a few words to count by, the same for all of its kind;
    `told`, what was found.
    """

    def __init__(self, reason: str, told: str = "") -> None:
        super().__init__(told or reason)
        self.reason, self.told = reason, told


def at(row: Row, name: str) -> Any:
    """What stands at a dotted name, a number in it being a place in a list; None where there is
    nothing.
    """
    if name in row:
        return row[name]
    found: Any = row
    for part in name.split("."):
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def value_of(source: HumanSource, row: Row, part: str) -> Any:
    """What stands in the one column of a part; None where the part is not read."""
    columns = source.column(part)
    return at(row, columns[0]) if columns else None


def text_of(source: HumanSource, row: Row, part: str, required: bool = True) -> str:
    """The texts of a part's columns, those that are not empty, with a blank line between."""
    columns, texts = source.column(part), []
    for column in columns:
        value = at(row, column)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, str | int | float)
        ):
            raise Unusable(
                f"no text in {column!r}", f"column {column!r} holds {type(value).__name__}"
            )
        if value is not None and str(value).strip():
            texts.append(str(value).strip())
    if required and not texts:
        raise Unusable(
            f"nothing in {' and '.join(map(repr, columns))}",
            f"its columns are {', '.join(map(str, row))}",
        )
    return "\n\n".join(texts)


def numbers_in(value: Any, count: int, what: str) -> list[float]:
    """`count` numbers. Raises Unusable naming `what` they are where they are not."""
    if not isinstance(value, list) or len(value) != count or not all(number(one) for one in value):
        raise Unusable(f"no {what}", f"{count} answers have {value!r}")
    return value


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def figure(value: Any) -> float | None:
    """A number, also where it is written out as in a csv file; None where it is none."""
    try:
        return (
            float(value)
            if number(value) or (isinstance(value, str) and math.isfinite(float(value)))
            else None
        )
    except ValueError:
        return None


def truth_in(value: Any, what: str) -> bool:
    """Whether it says true; empty says false. Raises Unusable where it says neither."""
    said = {"": False, "none": False, "false": False, "0": False, "true": True, "1": True}.get(
        str(value).strip().lower()
    )
    if said is None:
        raise Unusable(f"neither true nor false for a {what}", f"found {value!r}")
    return said


def broken(text: str) -> str | None:
    """Where a text has half of a surrogate pair, which JSON's escapes can spell and no encoding can
    write; None where it has none.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a lone surrogate after {error.object[max(0, error.start - 20) : error.start]!r}"
    return None


def role_in(value: Any) -> Any:
    """Our name for a role, or what stands there where it is none, which `dialogue` refuses."""
    return ROLES.get(str(value).lower(), value)


def messages_in(found: Any) -> Messages:
    """Messages as OpenAI has them (role, content) or as ShareGPT has them (from, value)."""
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise Unusable("no list of messages", f"found {type(found).__name__}")
    named = [
        (one.get("role", one.get("from")), one.get("content", one.get("value"))) for one in found
    ]
    return [{"role": role_in(role), "content": content} for role, content in named]


def spoken(text: str) -> Messages:
    """The turns of a transcript as HH-RLHF writes one: "\\n\\nHuman: …\\n\\nAssistant: …"."""
    first, *parts = SPEAKERS.split(f"\n\n{text.lstrip()}")
    if first.strip() or not parts:
        raise Unusable("no transcript", 'it does not begin with "Human:" or "Assistant:"')
    return [
        {"role": role_in(who), "content": said}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def asked_in(found: Any) -> Messages:
    """A prompt: messages, a transcript, or what the user says."""
    if isinstance(found, list):
        return messages_in(found)
    if not isinstance(found, str) or not found.strip():
        raise Unusable("no prompt", f"found {type(found).__name__}" if found is not None else "")
    return (
        spoken(found)
        if SPEAKERS.match(f"\n\n{found.lstrip()}")
        else [{"role": "user", "content": found}]
    )


def same(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two lists of messages say the same, whitespace at the ends of a turn apart."""
    return [(turn["role"], str(turn["content"]).strip()) for turn in one] == [
        (turn["role"], str(turn["content"]).strip()) for turn in other
    ]
