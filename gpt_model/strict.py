"""What a person writes, read strictly, and what pydantic finds wrong with it, said in this
project's words. Files are the readers'.

An unknown key, a value of the wrong kind or one that does not fit is a mistake: nothing is
converted, nothing left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from gpt_model.errors import shortened

Location = tuple[str | int, ...]
KINDS = {  # pydantic's errors for a value of the wrong kind: what was expected
    "string_type": "text",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list, in brackets",
    "tuple_type": "a list, in brackets",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


class Strict(BaseModel):
    """The base of all that is read from a file that a person writes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# YAML has lists and no tuples: Annotated[tuple[float, float], PAIR]
PAIR = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


class Misfit(ValueError):
    """What a validator of several keys together finds wrong, and which of them, seen from where it
    stands, to mend.
    """

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


def sentence(problem: Any, name: str, message: str = "") -> str:
    """One of pydantic's errors about the field `name`. `told`: what is wrong, where more is known
    of it than pydantic tells.
    """
    kind = problem["type"]
    if kind in ("extra_forbidden", "invalid_key"):
        return f"`{name}` is not a key here."
    if kind == "missing":
        return f"`{name}` is missing."
    message = message or explanation(problem)
    about = f"`{name}`" if name else "it"
    if kind in ("value_error", "assertion_error"):
        return f"{f'{about}: ' if name else ''}{message}."
    if kind == "union_tag_not_found":
        return f"{about} {message}."
    return (
        f"{about} is {shown(problem.get('input'))}: {message}{'' if message.endswith('?') else '.'}"
    )


def explanation(problem: Any, description: str = "") -> str:
    """What pydantic finds wrong with a value, as a person says it. `description`: of the field,
    what is expected before its semicolon.
    """
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in KINDS:
        return f"it should be {KINDS[kind]}"
    if kind in ("too_short", "string_too_short"):
        of = "values" if kind == "too_short" else "characters"
        return (
            "it should not be empty"
            if context["min_length"] == 1
            else f"it should hold {context['min_length']} {of} or more"
        )
    if kind == "too_long":
        return f"it should hold no more than {context['max_length']} values"
    if kind == "union_tag_invalid":
        return (
            f"its {unquoted(context['discriminator'])} should be one of "
            f"{unquoted(context['expected_tags'])}, not {context['tag']}"
        )
    if kind == "union_tag_not_found":
        return f"says no {unquoted(context['discriminator'])}"
    if kind == "string_pattern_mismatch":
        near = re.sub(r"\W", "_", problem["input"])
        hint = f". Did you mean {near!r}?" if re.fullmatch(context["pattern"], near) else ""
        expected = description.split(";")[0] or f"as {context['pattern']} has it"
        return f"it should be {expected}{hint}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message.replace("Input should be", "it should be").replace(
        "Input should", "it should"
    )
    return (
        f"{message[0].lower()}{message[1:]}"
        if problem["loc"] or kind not in ("value_error", "assertion_error")
        else message
    )


def unquoted(text: str) -> str:
    return text.replace("'", "")


def location_of(data: Any, problem: Any) -> Location:
    """Where `data` has the problem: without the names that pydantic gives the alternatives of a
    union, and functions.
    """
    location: list[str | int] = []
    for part in problem["loc"]:
        if (isinstance(data, Mapping) and part in data) or (
            isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)
        ):
            location, data = [*location, part], data[part]
    if problem["type"] == "missing":
        location.append(problem["loc"][-1])
    field = getattr(problem.get("ctx", {}).get("error"), "field", None)
    return (*location, *(field.split(".") if field else ()))


def dotted_location(location: Location) -> str:
    """ "corpus.sources[0].path" """
    text = ""
    for part in location:
        name = f"[{part}]" if isinstance(part, int) else shortened(part)
        text += f".{name}" if text and isinstance(part, str) else name
    return text


def shown(value: Any) -> str:
    """A value as it stands in YAML, not all of it where it is long."""
    if value is None or isinstance(value, bool):
        return "empty" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
