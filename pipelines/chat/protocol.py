"""OpenAI's protocol: what a request's fields mean to the engine, and its answers in OpenAI's JSON.

- What is not supported is refused by name: a field that is ignored gives another answer than the
  caller asked for. Fields at the value that asks for nothing (`tools: []`) pass.
- A message is text: a role's marker that is spelt out in it stays text. The prompt of
  `/v1/completions` is formatted by its caller: there markers are tokens.
- An answer ends at the context. Messages that do not fit are refused and not cut.

Routes and server are endpoint.py's.
"""

from __future__ import annotations

import json
import re
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gpt_model.errors import UserError
from gpt_model.rlhf.chat_template import ChatTemplate
from gpt_model.rlhf.dialogue import ROLES, Turn
from gpt_model.tokenizer.base import END_OF_TEXT
from pipelines.chat.engine import (
    REPLACEMENT,
    AnswerRequest,
    Delta,
    Engine,
    EngineFailed,
    numbered_seed,
)
from pipelines.chat.session import Sampling

# Values of OpenAI's fields that ask for nothing: clients send them unasked.
NEUTRAL: dict[str, Any] = {
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "logit_bias": {},
    "modalities": ["text"],
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "store": False,
    "suffix": "",
    "tools": [],
}
MAX_CHOICES = 128  # `n`, as OpenAI's
MAX_TOP_LOGPROBS = 20  # OpenAI's, of the chat
COMPLETION_TOKENS = 16  # OpenAI's default `max_tokens` of /v1/completions
LEAST_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which JSON has not


class Refused(Exception):
    """A request that is not answered, and OpenAI's error object for it."""

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        # a client's own words stand in it, and may hold half a character
        message = message.encode(errors="backslashreplace").decode()
        param = param and param.encode(errors="backslashreplace").decode()
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": message, "type": kind, "param": param, "code": code}
        self.body, self.status = {"error": error}, status


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False


class Body(BaseModel):
    """What both routes take. `top_k` is ours: OpenAI's protocol has none."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt_field: ClassVar[str]
    model: str
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None  # None: another one each time
    stop: str | list[str] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None  # says who asks: no answer depends on it

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {
            name: value
            for name, value in fields.items()
            if value is not None and (name not in NEUTRAL or value != NEUTRAL[name])
        }

    def requests(
        self, engine: Engine, prompts: Sequence[Sequence[int]], limit: int, top: int | None
    ) -> list[AnswerRequest]:
        """`n` requests a prompt, each of at most `limit` new tokens; `top`: logprobs a position.
        Raises Refused or UserError.
        """
        if self.stream_options and not self.stream:
            raise Refused("stream_options is for stream: true only.", "stream_options")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        if not all(stop):
            raise Refused("stop has an empty string, which every text contains.", "stop")
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed
        sampling = Sampling(self.temperature, self.top_p, self.top_k, limit, seed)
        try:
            return [
                engine.request(
                    prompt, replace(sampling, seed=numbered_seed(seed, number)), stop, top
                )
                for prompt in prompts
                for number in range(self.n)
            ]
        except UserError as error:
            raise Refused(str(error), self.prompt_field, "context_length_exceeded") from None


class ChatBody(Body):
    prompt_field = "messages"
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)  # the newer name of max_tokens
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    def answer_requests(self, engine: Engine) -> list[AnswerRequest]:
        """Raises Refused or UserError."""
        if self.top_logprobs is not None and not self.logprobs:
            raise Refused("top_logprobs is for logprobs: true only.", "top_logprobs")
        if self.max_tokens and self.max_completion_tokens:
            raise Refused("max_tokens and max_completion_tokens are one: give one.", "max_tokens")
        turns = tuple(
            _turn(message, f"messages[{number}]") for number, message in enumerate(self.messages)
        )
        limit = self.max_completion_tokens or self.max_tokens or engine.context
        top = (self.top_logprobs or 0) if self.logprobs else None
        return self.requests(engine, [engine.partner.template.encode_prompt(turns)], limit, top)


class CompletionBody(Body):
    prompt_field = "prompt"
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    def answer_requests(self, engine: Engine) -> list[AnswerRequest]:
        """Raises Refused or UserError."""
        template = engine.partner.template
        single = isinstance(self.prompt, str) or all(isinstance(t, int) for t in self.prompt)
        given: Any = [self.prompt] if single else self.prompt
        prompts = [
            (_encode_formatted(prompt, template) if isinstance(prompt, str) else prompt)
            or [template.end_of_text]  # an empty prompt begins a document
            for prompt in given
        ]
        size = template.tokenizer.vocab_size
        for token in (token for prompt in prompts for token in prompt):
            if not 0 <= token < size:
                raise Refused(
                    f"There is no token {token}: there are {size:,}, from 0 on.", "prompt"
                )
        return self.requests(engine, prompts, self.max_tokens or COMPLETION_TOKENS, self.logprobs)


def _turn(message: dict[str, Any], param: str) -> Turn:
    """Raises Refused for a message that is more than a role and text."""
    for name, value in message.items():
        if name not in ("role", "content") and value not in (None, []):
            raise _unsupported(f"{param}.{name}", "A message has a role and content.")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise Refused(
            f"A message is of role {role!r}, and there are {', '.join(ROLES)}.", f"{param}.role"
        )
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise Refused(f"{param}.content is no text.", f"{param}.content")
    text = ""
    for number, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise _unsupported(f"{param}.content[{number}]", f"It is of type {kind!r}.")
        if not isinstance(part.get("text"), str):
            raise Refused(f"{param}.content[{number}].text is no text.", f"{param}.content")
        text += part["text"]
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise Refused(f"{param}.content has half a surrogate pair.", f"{param}.content")
    return Turn(role, text.strip())


def _encode_formatted(text: str, template: ChatTemplate) -> list[int]:
    """Tokens of a text in which markers and end-of-text that are spelt out are those tokens."""
    special = {**template.tokenizer.markers, END_OF_TEXT: template.end_of_text}
    tokens: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, special))})", text):
        tokens += [special[part]] if part in special else template.tokenizer.encode(part)
    return tokens


class Reply:
    """The answers to a client's request, whole or as events. Subclasses are the two formats."""

    kind: ClassVar[str]  # OpenAI's `object`
    chunk_kind: ClassVar[str]
    id_prefix: ClassVar[str]
    opening: ClassVar[dict[str, Any]] = {}  # sent of each answer before it begins

    def __init__(self, engine: Engine, body: ChatBody | CompletionBody) -> None:
        """Raises Refused or UserError where the request cannot be answered."""
        self.engine = engine
        markers = engine.partner.template.tokenizer.markers
        self.markers = {token: marker for marker, token in markers.items()}
        self.requests = body.answer_requests(engine)
        self.prompt_tokens = sum(len(request.prompt) for request in self.requests[:: body.n])
        self.with_usage = bool(body.stream_options and body.stream_options.include_usage)
        self.head = {
            "id": f"{self.id_prefix}{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": engine.partner.ref,
            "system_fingerprint": engine.partner.fingerprint,
        }

    def choice(self, delta: Delta) -> dict[str, Any]:
        """A whole answer, without index and reason."""
        raise NotImplementedError

    def chunk(self, delta: Delta) -> dict[str, Any]:
        """A part of an answer, without index and reason."""
        raise NotImplementedError

    async def whole(self) -> dict[str, Any]:
        """Raises EngineFailed."""
        answers: list[list[Delta]] = [[] for _ in self.requests]
        async for delta in self.engine.stream(self.requests):
            answers[delta.index].append(delta)
        choices = []
        for deltas in answers:
            text = "".join(delta.text for delta in deltas)
            logprobs = tuple(token for delta in deltas for token in delta.logprobs)
            answer = replace(deltas[-1], text=text, logprobs=logprobs)
            choices.append(_numbered(answer, self.choice(answer)))
        usage = self._usage([deltas[-1].completion_tokens for deltas in answers])
        return {**self.head, "object": self.kind, "choices": choices, "usage": usage}

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events, [DONE] at the end; an error in place of the rest where the engine
        fails.
        """
        head = {**self.head, "object": self.chunk_kind}
        if self.with_usage:
            head["usage"] = None
        counts = [0] * len(self.requests)
        for index in range(len(self.requests)) if self.opening else ():
            choice = {"index": index, **self.opening, "finish_reason": None}
            yield _event({**head, "choices": [choice]})
        try:
            async for delta in self.engine.stream(self.requests):
                counts[delta.index] = delta.completion_tokens
                yield _event({**head, "choices": [_numbered(delta, self.chunk(delta))]})
        except EngineFailed as error:
            yield _event(Refused(str(error), status=500).body)
            return
        if self.with_usage:
            yield _event({**head, "choices": [], "usage": self._usage(counts)})
        yield "data: [DONE]\n\n"

    def _usage(self, completion_tokens: Sequence[int]) -> dict[str, int]:
        written = sum(completion_tokens)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    def spell(self, token: int) -> str:
        """The token as text; a part of a character is U+FFFD."""
        return self.markers.get(token) or self.engine.partner.template.tokenizer.decode([token])


class ChatReply(Reply):
    kind, chunk_kind, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"
    opening: ClassVar[dict[str, Any]] = {
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
    }

    def choice(self, delta: Delta) -> dict[str, Any]:
        message = {"role": "assistant", "content": delta.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(delta)}

    def chunk(self, delta: Delta) -> dict[str, Any]:
        content = {"content": delta.text} if delta.text else {}
        return {"delta": content, "logprobs": self._logprobs(delta)}

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if self.requests[delta.index].top_logprobs is None:
            return None
        content = [
            {
                **self._token(entry.token, entry.logprob),
                "top_logprobs": [self._token(token, logprob) for token, logprob in entry.top],
            }
            for entry in delta.logprobs
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.spell(token)
        in_bytes = None if REPLACEMENT in text else list(text.encode())
        return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": in_bytes}


class CompletionReply(Reply):
    kind, chunk_kind, id_prefix = "text_completion", "text_completion", "cmpl-"

    def choice(self, delta: Delta) -> dict[str, Any]:
        return {"text": delta.text, "logprobs": self._logprobs(delta)}

    chunk = choice

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if self.requests[delta.index].top_logprobs is None:
            return None
        entries = delta.logprobs
        return {
            "tokens": [self.spell(entry.token) for entry in entries],
            "token_logprobs": [max(entry.logprob, LEAST_LOGPROB) for entry in entries],
            "top_logprobs": [
                {
                    self.spell(token): max(logprob, LEAST_LOGPROB)
                    for token, logprob in (*entry.top, (entry.token, entry.logprob))
                }
                for entry in entries
            ],
            "text_offset": [entry.offset for entry in entries],
        }


def _numbered(delta: Delta, choice: dict[str, Any]) -> dict[str, Any]:
    return {"index": delta.index, **choice, "finish_reason": delta.finish_reason}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def invalid(errors: Sequence[Any]) -> Refused:
    """The error object for what pydantic found wrong first."""
    location = errors[0]["loc"]
    if len(location) < 2 or errors[0]["type"] == "json_invalid":
        return Refused("The body should be a JSON object.")
    param, context, value = str(location[1]), errors[0].get("ctx", {}), errors[0].get("input")
    match errors[0]["type"]:
        case "extra_forbidden":
            return _unsupported(".".join(map(str, location[1:])))
        case "missing":
            return Refused(f"{param} is missing.", param, "missing_required_parameter")
        case "greater_than_equal":
            message = f"{param} is {value}, and should be {context['ge']} or more."
        case "less_than_equal":
            message = f"{param} is {value}, and should be {context['le']} or less."
        case _:
            reasons = dict.fromkeys(e["msg"] for e in errors if e["loc"][1:2] == (param,))
            message = f"{param} is {value!r}: {', or '.join(reasons)}."
    return Refused(message, param, "invalid_value")


def _unsupported(param: str, reason: str = "") -> Refused:
    message = f"{param} is not supported here: leave it out. {reason}"
    return Refused(message.strip(), param, "unsupported_parameter")
