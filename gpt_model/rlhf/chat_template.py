"""A dialogue as tokens: the template, and which of its tokens are a response's.

    <|user|>What is a sonnet?<|endoftext|><|assistant|>A poem of fourteen lines.<|endoftext|>

Each turn is its role's marker, its text, and end-of-text, with which a document ends in
pre-training too: so where to stop is nothing new to learn. Markers are tokens of no text
(`Tokenizer.with_markers`). The same template in Jinja is saved beside the tokenizer, so
`transformers` and whatever builds on it lay a dialogue out alike (a test holds that), unless a turn
spells a marker out: to us that is text, to `transformers` the token. So nobody may say one to a
model (`check_spells_none`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from gpt_model.errors import UserError
from gpt_model.rlhf.dialogue import ROLES, Dialogue, Turn
from gpt_model.tokenizer import Tokenizer

MARKERS = tuple(f"<|{role}|>" for role in ROLES)

# `generation` marks what an assistant says, for tools that ask which tokens those are; the marker
# before it is the prompt's.
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] | trim + eos_token -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] | trim + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def chat_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the roles' markers and the template; itself where it has them."""
    return tokenizer if tokenizer.markers else tokenizer.with_markers(MARKERS, TEMPLATE)


def check_spells_none(turns: Dialogue, reserved: Collection[str]) -> None:
    """Raises UserError where a turn spells out one of `reserved`, with which it could end itself
    and speak as another.
    """
    for turn in turns:
        if found := [token for token in reserved if token in turn.text]:
            cure = (
                "Begin a new talk."
                if turn.role == "assistant"
                else "Write it in another way, for instance with a space in it."
            )
            first = min(found, key=turn.text.index)
            raise UserError(
                f"What the {turn.role} says spells {first!r}, which is a token to the model and not text. {cure}"
            )


@dataclass(frozen=True)
class Laid:
    """Tokens of a dialogue. `learnt[i]`: whether token i is the assistant's (its text or the end
    after it), and so to be predicted.
    """

    tokens: list[int]
    learnt: list[bool]


class Layout:
    """Dialogues as tokens, by one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises UserError for a tokenizer without the roles' markers."""
        if missing := [marker for marker in MARKERS if marker not in tokenizer.markers]:
            raise UserError(
                f"The tokenizer has no token {missing[0]}, which a dialogue is laid out with: this model only continues text. "
                "Take one that was tuned on demonstrations: supervised, instructed, policy_init or aligned."
            )
        self.tokenizer, self.end = tokenizer, tokenizer.end_of_text

    @cached_property
    def reserved(self) -> tuple[str, ...]:
        """How the tokens are spelt that `transformers` finds in text too: markers, end-of-text, and
        the unknown one where there is one.
        """
        spelt = self.tokenizer.tokens()
        return (
            *self.tokenizer.markers,
            *(spelt[token] for token in (self.end, self.tokenizer.unknown) if token is not None),
        )

    def marker(self, role: str) -> int:
        return self.tokenizer.markers[f"<|{role}|>"]

    def whole(self, turns: Dialogue) -> Laid:
        """A dialogue that has ended."""
        tokens: list[int] = []
        learnt: list[bool] = []
        for turn in turns:
            text = self.tokenizer.encode(turn.text)
            tokens += [self.marker(turn.role), *text, self.end]
            learnt += [False, *[turn.role == "assistant"] * (len(text) + 1)]
        return Laid(tokens, learnt)

    def prompt(self, turns: Dialogue) -> list[int]:
        """What an answer is to follow: a dialogue that ends with the user, or whose last turn is
        the answer's opening words.
        """
        opening = turns[-1] if turns[-1].role == "assistant" else Turn("assistant", "")
        before = turns[:-1] if opening.text else turns
        return [
            *self.whole(before).tokens,
            self.marker("assistant"),
            *self.tokenizer.encode(opening.text),
        ]

    def response(self, prompt: Dialogue, text: str) -> list[int]:
        """The tokens of an answer after that prompt, its end among them. After opening words it is
        what follows them, space and all.
        """
        opened = prompt[-1].role == "assistant"
        return [
            *self.tokenizer.encode(
                f" {text.strip()}" if opened and text[:1].isspace() else text.strip()
            ),
            self.end,
        ]
