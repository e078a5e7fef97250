"""One model that answers several requests at once, over `gpt_model.generation`: what it reads of a
dialogue, and its answers as they are written. Terminal, page and endpoint all talk with this.

- A thread of its own runs the model. Requests that arrive meanwhile wait; then all that wait and
  sample from the same distribution (temperature, top-k, top-p) are one batch, up to `MAX_ROWS`
  rows: `generate` takes these three once a call. Seeds, lengths and stop strings are each row's.
- An answer depends on its prompt, its sampling and its seed, and not on the requests beside it.
  Requests that are equal in all these share a row.
- Text is streamed token by token. What may still become something else is held back: a part of a
  character, and the beginning of a stop string.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from gpt_model import convert
from gpt_model.errors import UserError
from gpt_model.generation import generate
from gpt_model.ops.conv1d import prepacked
from gpt_model.rlhf.dialogue import Dialogue
from gpt_model.tokenizer import Tokenizer
from pipelines.chat.session import Partner, Sampling

ANSWER_SHARE = 4  # an answer may take a quarter of the context, however long the dialogue is
MAX_ROWS = 16  # of a batch: each has keys and values of as much as the context
REPLACEMENT = "\ufffd"  # how `decode` shows the bytes of a character that is not complete
LOG = logging.getLogger(__name__)

FinishReason = Literal["stop", "length"]


class EngineFailed(RuntimeError):
    """The model failed, or was closed, before the answer was complete."""


class _BatchOver(Exception):
    """Nobody waits for a token of this batch any more."""


@dataclass(frozen=True)
class Prompt:
    """What a model reads of a dialogue: tokens, and how many of the oldest turns are left out."""

    tokens: tuple[int, ...]
    dropped_turns: int


@dataclass(frozen=True)
class AnswerRequest:
    """One answer to write. `Engine.request` makes one that fits the context."""

    prompt: tuple[int, ...]
    sampling: Sampling
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    top_logprobs: int | None = None  # likeliest tokens at each position; None: no logprobs at all


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability under the model itself, before temperature, top-k and top-p."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token, log-probability), likeliest first
    offset: int  # characters of the answer before the token


@dataclass(frozen=True)
class Delta:
    """What is added to an answer. The last one of an answer has a `finish_reason`."""

    index: int  # which of the requests
    text: str
    completion_tokens: int  # of the answer so far
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


def numbered_seed(seed: int, number: int) -> int:
    """The seed of answer `number` to one prompt: `seed` itself for the first, so that it is the
    same answer whether or not more are requested.
    """
    if not number:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8], "little")


@dataclass
class _Answer:
    """An answer while it is written."""

    request: AnswerRequest
    index: int
    tokenizer: Tokenizer
    send: Callable[[Delta | EngineFailed], None]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    sent: int = 0  # characters
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of the tokens not sent yet
    open: bool = True  # neither complete, nor has its reader left

    def append(
        self, token: int, logprob: tuple[float, tuple[tuple[int, float], ...]] | None
    ) -> None:
        """Adds a token, sends the text that can no longer change, ends the answer where it must."""
        if token == self.tokenizer.end_of_text:
            self._send(len(self.text), "stop")
            return
        if logprob is not None:
            offset = len(self.text.rstrip(REPLACEMENT))
            self.logprobs.append(TokenLogprob(token, *logprob, offset))
        self.tokens.append(token)
        self.text = self.tokenizer.decode(self.tokens)
        stops = [self.text.find(string, self.sent) for string in self.request.stop]
        if (cut := min((start for start in stops if start >= 0), default=None)) is not None:
            self._send(cut, "stop")
        elif len(self.tokens) == self.request.sampling.max_new_tokens:
            self._send(len(self.text), "length")
        else:
            complete = self.text.rstrip(REPLACEMENT)
            self._send(len(complete) - _held_back(complete, self.request.stop), None)

    def _send(self, end: int, finish_reason: FinishReason | None) -> None:
        """Sends the text as far as character `end`, and the tokens that begin before it."""
        if end <= self.sent and finish_reason is None:
            return
        all_of_it = end == len(self.text)  # then also tokens without text
        logprobs = tuple(token for token in self.logprobs if all_of_it or token.offset < end)
        del self.logprobs[: len(logprobs)]
        text, self.sent = self.text[self.sent : end], end
        if finish_reason is not None:
            self.open = False
        self.send(Delta(self.index, text, len(self.tokens), logprobs, finish_reason))

    def fail(self, error: EngineFailed) -> None:
        if self.open:
            self.open = False
            self.send(error)


def _held_back(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop string."""
    return max(
        (
            length
            for string in stop
            for length in range(1, min(len(string), len(text) + 1))
            if text.endswith(string[:length])
        ),
        default=0,
    )


class Engine:
    """A partner's model at work, in memory. Its thread runs while it is entered as a context."""

    def __init__(self, partner: Partner) -> None:
        self.partner = partner
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = convert.load(partner.folder).to(device).eval()
        self.context = self._model.config.context  # tokens, the answer's among them
        self.parameters = self._model.config.parameters()
        self._waiting: list[_Answer] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"chat {partner.ref}", daemon=True)

    def __enter__(self) -> Engine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def fit(self, turns: Dialogue, max_new_tokens: int) -> Prompt:
        """The prompt for the next answer: the oldest exchanges are left out until the answer has
        room, the system's turn stays.

        Raises UserError where the last message alone is too long.
        """
        system = turns[:1] if turns[0].role == "system" else ()
        exchanges = turns[len(system) :]
        limit = self.context - min(max_new_tokens, max(1, self.context // ANSWER_SHARE))
        for dropped in range(0, len(exchanges), 2):  # a question goes with its answer
            tokens = self.partner.template.encode_prompt((*system, *exchanges[dropped:]))
            if len(tokens) <= limit:
                return Prompt(tuple(tokens), dropped)
        raise UserError(
            f"The message is too long for {self.partner.ref}: {len(tokens):,} tokens with its "
            f"markers, and it reads {self.context:,}, of which {self.context - limit:,} are for "
            "the answer. Shorten it."
        )

    def request(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        stop: Sequence[str] = (),
        top_logprobs: int | None = None,
    ) -> AnswerRequest:
        """A request whose answer ends at the context at the latest. Raises UserError where the
        prompt leaves no room for one.
        """
        room = self.context - len(prompt)
        if room < 1:
            raise UserError(
                f"The prompt is {len(prompt):,} tokens with its markers, and the model reads "
                f"{self.context:,}, its answer included: shorten it."
            )
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        return AnswerRequest(tuple(prompt), sampling, tuple(stop), top_logprobs)

    async def stream(self, requests: Sequence[AnswerRequest]) -> AsyncIterator[Delta]:
        """The answers to `requests`, as they are written. A reader that stops early frees the
        model. Raises EngineFailed.
        """
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[Delta | EngineFailed] = asyncio.Queue()

        def send(delta: Delta | EngineFailed) -> None:
            with suppress(RuntimeError):  # the loop is closed: its reader has left
                loop.call_soon_threadsafe(deltas.put_nowait, delta)

        tokenizer = self.partner.template.tokenizer
        answers = [
            _Answer(request, index, tokenizer, send) for index, request in enumerate(requests)
        ]
        with self._changed:
            if self._closed:
                raise EngineFailed("the chat has ended")
            self._waiting += answers
            self._changed.notify()
        try:
            unfinished = len(answers)
            while unfinished:
                delta = await deltas.get()
                if isinstance(delta, EngineFailed):
                    raise delta
                unfinished -= delta.finish_reason is not None
                yield delta
        finally:
            for answer in answers:
                answer.open = False

    def _work(self) -> None:
        """The thread: batch after batch until the engine is closed."""
        with prepacked(self._model, self._model.wte):
            while batch := self._next_batch():
                try:
                    self._run(batch)
                except Exception as error:  # whatever it is, those who wait must hear of it
                    LOG.exception("%s failed", self.partner.label)
                    for answer in batch:
                        answer.fail(EngineFailed(f"{type(error).__name__}: {error}"))
        for answer in self._waiting:
            answer.fail(EngineFailed("the chat has ended"))

    def _next_batch(self) -> list[_Answer]:
        """The oldest waiting answer, and those that sample from the same distribution. Blocks until
        there is one; empty where the engine is closed.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return []
                self._waiting = [answer for answer in self._waiting if answer.open]
                if self._waiting:
                    break
            distribution = _distribution(self._waiting[0].request.sampling)
            rows: set[tuple[tuple[int, ...], int]] = set()
            batch, later = [], []
            for answer in self._waiting:
                fits = len(rows) < MAX_ROWS or _row(answer.request) in rows
                if fits and _distribution(answer.request.sampling) == distribution:
                    rows.add(_row(answer.request))
                    batch.append(answer)
                else:
                    later.append(answer)
            self._waiting = later
            return batch

    def _run(self, batch: list[_Answer]) -> None:
        by_row: dict[tuple[tuple[int, ...], int], list[_Answer]] = {}
        for answer in batch:
            by_row.setdefault(_row(answer.request), []).append(answer)
        readers = list(by_row.values())

        def on_choice(numbers: Tensor, _: Tensor, logits: Tensor, chosen: Tensor) -> None:
            """The next token of every row that has not ended. numbers, of the prompts: [rows],
            logits: [rows, vocabulary], chosen: [rows].
            """
            rows = zip(numbers.tolist(), chosen.tolist(), logits, strict=True)
            for number, token, row_logits in rows:
                for answer in readers[number]:
                    if answer.open:
                        answer.append(token, _logprob(row_logits, token, answer.request))
            if self._closed or not any(answer.open for answer in batch):
                raise _BatchOver

        temperature, top_k, top_p = _distribution(batch[0].request.sampling)
        with suppress(_BatchOver):
            generate(
                self._model,
                [prompt for prompt, _ in by_row],
                max(answer.request.sampling.max_new_tokens for answer in batch),
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=[seed for _, seed in by_row],
                stop=[self.partner.template.end_of_text],
                on_choice=on_choice,
            )
        for answer in batch:
            answer.fail(EngineFailed("the chat has ended"))  # closed before it was complete


@contextmanager
def running(partners: Sequence[Partner]) -> Iterator[list[Engine]]:
    """An engine for each partner, until the block ends."""
    with ExitStack() as stack:
        yield [stack.enter_context(Engine(partner)) for partner in partners]


def _row(request: AnswerRequest) -> tuple[tuple[int, ...], int]:
    """What a row of a batch is computed from, besides the batch's distribution."""
    return request.prompt, request.sampling.seed


def _distribution(sampling: Sampling) -> tuple[float, int | None, float | None]:
    """(temperature, top_k, top_p) as `generate` takes them, once a call."""
    return (
        sampling.temperature,
        sampling.top_k or None,
        sampling.top_p if sampling.top_p < 1 else None,
    )


def _logprob(
    logits: Tensor, token: int, request: AnswerRequest
) -> tuple[float, tuple[tuple[int, float], ...]] | None:
    """(the token's log-probability, the likeliest tokens with theirs) by logits [vocabulary]; None
    where the request wants neither.
    """
    if request.top_logprobs is None:
        return None
    logprobs = logits.float().log_softmax(-1)
    top = logprobs.topk(min(request.top_logprobs, len(logprobs)))
    return float(logprobs[token]), tuple(
        zip(top.indices.tolist(), top.values.tolist(), strict=True)
    )
