"""What a person writes, read strictly, and what pydantic finds wrong with it, said in this
project's words. Files are the readers'.

An unknown key, a value of the wrong kind or one that does not fit is a mistake: nothing is
converted, nothing left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

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


def _each_once(values: list[Any]) -> list[Any]:
    if twice := [value for number, value in enumerate(values) if value in values[:number]]:
        raise ValueError(f"{shown(twice[0])} stands twice: take it out")
    return values


Each = AfterValidator(_each_once)  # of a list: no value stands twice in it


@dataclass(frozen=True)
class Bounds:
    """The numbers that a field may hold, and why no others: what is outside them is a slip of the
    keyboard, or would keep a machine busy for nothing.
    """

    least: float
    most: float
    reason: str
    above: bool = False  # `least` is none of them
    below: bool = False  # `most` is none of them
    unit: str = ""  # for the reference; "" is a plain number

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: float) -> float:
        over = value > self.least if self.above else value >= self.least
        under = value < self.most if self.below else value <= self.most
        if not (over and under):
            raise PydanticCustomError(
                "out_of_bounds", "it should be {bounds}", {"bounds": str(self)}
            )
        return value

    def __str__(self) -> str:
        """ "above 0 and at most 1 (why)" """
        low, high = ("above" if self.above else "at least"), ("below" if self.below else "at most")
        return f"{low} {self.least:,} and {high} {self.most:,} ({self.reason})"


LARGEST_RUN = "the largest published run reads 4e13 tokens"
# A description here is that of every field of the type that has none itself.
Seed = Annotated[
    int,
    Bounds(0, 2**63, "what torch's generators take", below=True),
    Field(description="of the random numbers: the same seed, the same bytes"),
]
Tokens = Annotated[int, Bounds(1, 10**15, LARGEST_RUN, unit="tokens")]
BatchTokens = Annotated[
    int, Bounds(1, 10**9, "the largest published batches hold 1e8 tokens", unit="tokens")
]
Layers = Annotated[
    int,
    Bounds(1, 2_000, "the deepest published decoders have 1,000 layers", unit="layers"),
    Field(description="blocks of attention and MLP"),
]
Width = Annotated[int, Bounds(1, 200_000, "GPT-3's is 12,288", unit="numbers")]
Heads = Annotated[int, Bounds(1, 2_000, "GPT-3 has 96", unit="heads")]
Context = Annotated[int, Bounds(2, 2**20, "attention takes time by its square", unit="tokens")]
VocabSize = Annotated[
    int, Bounds(2, 2**20, "the largest published vocabularies have a million", unit="tokens")
]
Count = Annotated[int, Bounds(1, 10**9, "no data set of these kinds has more rows", unit="count")]
TwoOrMore = Annotated[
    int, Bounds(2, 10**9, "an interval needs two, and no data set has more", unit="count")
]
Models = Annotated[int, Bounds(1, 1_000, "each is a model that is trained", unit="models")]
Epochs = Annotated[
    int,
    Bounds(1, 10_000, "published trainings take at most hundreds", unit="epochs"),
    Field(description="times that every training example is read"),
]
BatchRows = Annotated[
    int, Bounds(1, 10**6, "published batches hold at most thousands", unit="rows")
]
Times = Annotated[
    int, Bounds(1, 10_000, "each takes its time and stands in the curves", unit="times")
]
LearningRate = Annotated[
    float,
    Bounds(0, 1, "Adam moves a weight by about the rate at each step", above=True, unit="a step"),
    Field(description="AdamW's, once the warm-up is over"),
]
WeightDecay = Annotated[
    float,
    Bounds(0, 10, "published values are below 4, and the papers' at most 0.1"),
    Field(description="AdamW's, on matrices only"),
]
Memory = Annotated[
    float,
    Bounds(0, 1, "the share of an optimizer's moment that a step keeps", below=True, unit="share"),
]
Betas = Annotated[tuple[Memory, Memory], PAIR, Field(description="AdamW's β1 and β2")]
Clip = Annotated[
    float,
    Bounds(0, 10**6, "norms of gradients are about 1: more clips nothing", above=True),
    Field(description="the largest global norm of a gradient; a longer one is scaled to it"),
]
Precision = Annotated[
    Literal["float32", "bfloat16"],
    Field(description="of the factors of products; weights, moments and sums are float32"),
]
Dropout = Annotated[
    float,
    Bounds(0, 1, "the share that is set to 0", below=True, unit="share"),
    Field(description="of residuals, attention weights and embeddings, while training"),
]
Share = Annotated[
    float,
    Bounds(
        0, 1, "a share, and something is left on both sides", above=True, below=True, unit="share"
    ),
]
HeldOut = Annotated[
    float,
    Bounds(
        0,
        0.5,
        "a share: more would be kept from training than trained on",
        above=True,
        unit="share",
    ),
]
Part = Annotated[float, Bounds(0, 1, "a share, and something is left", below=True, unit="share")]
Whole = Annotated[float, Bounds(0, 1, "a share", unit="share")]
Ratio = Annotated[
    float,
    Bounds(
        0,
        10**6,
        "of tokens to parameters; published runs have at most 1e4",
        above=True,
        unit="tokens a parameter",
    ),
]
Temperature = Annotated[
    float,
    Bounds(0, 1_000, "the logits are divided by it: above 100 every token is alike", True),
    Field(description="of sampling: 1 is the model's own distribution, below 1 it is sharper"),
]
Weight = Annotated[float, Bounds(0, 10**6, "beside a weight of 1, more leaves nothing of it")]
PositiveWeight = Annotated[
    float, Bounds(0, 10**6, "beside a weight of 1, more leaves nothing of it", above=True)
]


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
