"""A dialogue as plain text: turns of roles, and the rules they keep.

`chat_template.py` turns it into tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Turn:
    """What the user or the assistant says, or the instructions before them (system)."""

    role: Role
    text: str


Dialogue = tuple[Turn, ...]


class NoDialogue(ValueError):
    """Why turns are no dialogue. `kind`: a few words that reports count reasons by."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def dialogue(
    messages: Sequence[Mapping[str, Any]], *, ends_with: tuple[Role, ...] = ("assistant",)
) -> Dialogue:
    """Messages {"role", "content"}, as chat APIs have them, as a dialogue; each turn is stripped.

    Raises NoDialogue where there are no messages, a role is unknown, a turn is empty or not text,
    the user does not begin (after the system), user and assistant do not alternate, or the last
    role is not in `ends_with`.
    """
    turns = []
    for number, message in enumerate(messages, start=1):
        role, text = message.get("role"), message.get("content")
        if role not in ROLES:
            raise NoDialogue(
                "an unknown role",
                f"turn {number} is of role {role!r}, and there are {', '.join(ROLES)}",
            )
        if not isinstance(text, str) or not text.strip():
            raise NoDialogue("an empty turn", f"turn {number} ({role}) says nothing")
        turns.append(Turn(role, text.strip()))
    if not turns:
        raise NoDialogue("no turns", "it has no turns")
    system_turns = int(turns[0].role == "system")
    for number, turn in enumerate(turns[system_turns:]):
        if turn.role != (wanted := ("user", "assistant")[number % 2]):
            position = system_turns + number + 1
            raise NoDialogue(
                "roles out of order",
                f"turn {position} is of role {turn.role!r} where {wanted!r} is to speak",
            )
    if len(turns) == system_turns or turns[-1].role not in ends_with:
        raise NoDialogue(
            "a wrong end",
            f"it ends with {turns[-1].role!r}, and should with {' or '.join(map(repr, ends_with))}",
        )
    return tuple(turns)


def messages(turns: Dialogue) -> list[dict[str, str]]:
    """The dialogue as chat APIs and our artifacts have it: {"role", "content"}."""
    return [{"role": turn.role, "content": turn.text} for turn in turns]
