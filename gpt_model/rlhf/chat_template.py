"""A dialogue as tokens: the chat template, and which tokens carry loss.

    <|user|>What is a sonnet?<|endoftext|><|assistant|>A poem of fourteen lines.<|endoftext|>

A turn is its role's special token, its text, and end-of-text. Documents end with the same token in
pre-training, so the model need not learn a new stop. A role token has no text
(`Tokenizer.with_markers`). The template is saved in Jinja beside the tokenizer, so that
`transformers` encodes a dialogue alike (a test holds that). They differ where a turn spells a
special token out: we read text, `transformers` the token.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_model.errors import UserError
from gpt_model.rlhf.dialogue import ROLES, Dialogue, Turn
from gpt_model.tokenizer import Tokenizer

ROLE_TOKENS = tuple(f"<|{role}|>" for role in ROLES)

# `generation` marks the assistant's tokens for tools that ask which those are. The role token
# before them belongs to the prompt.
JINJA = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] | trim + eos_token -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] | trim + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def chat_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with role tokens and template; unchanged where it has them."""
    return tokenizer if tokenizer.markers else tokenizer.with_markers(ROLE_TOKENS, JINJA)


@dataclass(frozen=True)
class EncodedDialogue:
    """`loss_mask[i]`: whether token i is the assistant's (its text or the end after it), and so is
    predicted.
    """

    tokens: list[int]
    loss_mask: list[bool]


class ChatTemplate:
    """Encodes dialogues with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises UserError for a tokenizer without role tokens."""
        if missing := [token for token in ROLE_TOKENS if token not in tokenizer.markers]:
            raise UserError(
                f"The tokenizer has no token {missing[0]}, which a dialogue is laid out with: this "
                "model only continues text. Take one that was tuned on demonstrations: supervised, "
                "instructed, policy_init or aligned."
            )
        self.tokenizer, self.end_of_text = tokenizer, tokenizer.end_of_text

    def role_token(self, role: str) -> int:
        return self.tokenizer.markers[f"<|{role}|>"]

    def encode(self, turns: Dialogue) -> EncodedDialogue:
        """A whole dialogue, its end among the tokens."""
        tokens: list[int] = []
        loss_mask: list[bool] = []
        for turn in turns:
            text = self.tokenizer.encode(turn.text)
            tokens += [self.role_token(turn.role), *text, self.end_of_text]
            loss_mask += [False, *[turn.role == "assistant"] * (len(text) + 1)]
        return EncodedDialogue(tokens, loss_mask)

    def encode_prompt(self, turns: Dialogue) -> list[int]:
        """What an answer follows: a dialogue that ends with the user, or whose last turn is the
        answer's opening words.
        """
        opening = turns[-1] if turns[-1].role == "assistant" else Turn("assistant", "")
        before = turns[:-1] if opening.text else turns
        return [
            *self.encode(before).tokens,
            self.role_token("assistant"),
            *self.tokenizer.encode(opening.text),
        ]

    def encode_response(self, prompt: Dialogue, text: str) -> list[int]:
        """The tokens of an answer after that prompt, its end among them. After opening words it is
        what follows them, its leading space kept.
        """
        continues = prompt[-1].role == "assistant" and text[:1].isspace()
        text = f" {text.strip()}" if continues else text.strip()
        return [*self.tokenizer.encode(text), self.end_of_text]
