"""A dialogue: who says what, as plain text, and the rules that make it one. Not how it becomes
tokens (`chat.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Turn:
    """What one of the two says, or what both were told before they began (system)."""

    role: Role
    text: str


Dialogue = tuple[Turn, ...]


class NoDialogue(ValueError):
    """Why turns are no dialogue. `kind`: the reason in a few words, the same for all of its kind,
    to be counted by.
    """

    def __init__(self, kind: str, told: str) -> None:
        super().__init__(told)
        self.kind = kind


def dialogue(
    messages: Sequence[Mapping[str, Any]], *, ends_with: tuple[Role, ...] = ("assistant",)
) -> Dialogue:
    """Messages {"role", "content"}, as the field has them, as a dialogue; whitespace at the ends of
    a turn is left out.

    Raises NoDialogue where there are none, a role is unknown, a turn is empty or no text, the user
    does not begin (after what the system says), the two do not take turns, or the last turn is not
    of a role in `ends_with`.
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
    said = turns[1:] if turns[0].role == "system" else turns
    for number, turn in enumerate(said):
        if turn.role != (wanted := ("user", "assistant")[number % 2]):
            place = len(turns) - len(said) + number + 1
            raise NoDialogue(
                "roles out of order",
                f"turn {place} is of role {turn.role!r} where {wanted!r} is to speak",
            )
    if not said or said[-1].role not in ends_with:
        raise NoDialogue(
            "a wrong end",
            f"it ends with {turns[-1].role!r}, and should with {' or '.join(map(repr, ends_with))}",
        )
    return tuple(turns)


def messages(turns: Dialogue) -> list[dict[str, str]]:
    """The dialogue as the field has it, and as the artifacts keep it."""
    return [{"role": turn.role, "content": turn.text} for turn in turns]
