"""One talk on the chat's page: messages, their answers while they are written, votes. It outlives
the page that shows it, so that a reload finds it as it stands.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from nicegui import binding

from gpt_model.errors import UserError
from gpt_model.rlhf.dialogue import Dialogue, Turn
from gpt_model.rlhf.votes import Answered, append, vote
from pipelines.chat.engine import Engine, EngineFailed, Prompt, numbered_seed
from pipelines.chat.session import Sampling, votes_recipe

NAMES = ("A", "B")
EMPTY = "(it ended without a word)"

State = Literal["writing", "complete", "stopped", "failed"]
Choice = Literal["A", "B", "tie"]


@dataclass
class Settings:
    """How the next answers are sampled, as the page's controls have it."""

    system: str
    temperature: float
    top_p: float
    max_new_tokens: float | None  # None: the field is empty
    blind: bool = False


@binding.bindable_dataclass(bindable_fields=["text"], eq=False)
class Answer:  # type: ignore[call-arg]  # of NiceGUI's type
    """What a model has written so far."""

    engine: Engine
    text: str = ""
    state: State = "writing"
    reason: str = ""  # why it failed


@dataclass(eq=False)
class Exchange:
    """A message and its answers, in the order in which they stand on the page."""

    message: str
    prompt: Dialogue  # what the models answer: the system's turn, the talk so far, the message
    sampling: Sampling
    answers: list[Answer]
    blind: bool
    attempt: int
    drops_turns: bool  # for the first time in this talk
    choice: Choice | None = None  # the vote
    note: str = ""  # what became of the vote
    continued: int | None = None  # the answer that the talk continues with

    @property
    def is_hidden(self) -> bool:
        """Whether the answers' names are not shown yet: until the vote, or until there is none."""
        failed = any(answer.state == "failed" for answer in self.answers)
        mute = any(answer.state == "complete" and not answer.text for answer in self.answers)
        return self.blind and self.choice is None and not failed and not mute

    @property
    def can_be_voted_on(self) -> bool:
        complete = all(answer.state == "complete" and answer.text for answer in self.answers)
        return len(self.answers) == 2 and complete and self.choice is None


@binding.bindable_dataclass(bindable_fields=["busy", "announcement"], eq=False)
class Conversation:  # type: ignore[call-arg]  # of NiceGUI's type
    """A talk with one or two models. `views`: what draws it anew, one for each page that shows
    it.
    """

    home: Path
    engines: Sequence[Engine]
    sampling: Sampling
    settings: Settings
    exchanges: list[Exchange] = field(default_factory=list)
    busy: bool = False
    announcement: str = ""  # what a screen reader speaks
    views: set[Callable[[], None]] = field(default_factory=set)
    _writing: asyncio.Task[None] | None = None

    def ask(self, message: str, at: int | None = None) -> None:
        """Every model answers `message`: the next one, or in the stead of message `at` and all
        after it. Raises UserError where it cannot be sent. Does nothing while answers are written.
        """
        if self.busy:
            return
        at = len(self.exchanges) if at is None else at
        replaced = self.exchanges[at] if at < len(self.exchanges) else None
        message = message.strip()
        if not message:
            raise UserError("An empty message is not sent: write something.")
        before = self._turns(at)
        attempt = replaced.attempt + 1 if replaced else 0
        sampling = self._sampling(len(before), attempt)
        prompt = (*self._system(), *before, Turn("user", message))
        prompts = {engine: engine.fit(prompt, sampling.max_new_tokens) for engine in self.engines}
        drops = any(prompt.dropped_turns for prompt in prompts.values())
        announced = any(exchange.drops_turns for exchange in self.exchanges[:at])
        blind = self.settings.blind and len(self.engines) == 2
        order = list(self.engines)
        if blind:
            random.shuffle(order)
        exchange = Exchange(
            message,
            prompt,
            sampling,
            [Answer(engine) for engine in order],
            blind,
            attempt,
            drops and not announced,
        )
        self.exchanges[at:] = [exchange]
        self.busy, self.announcement = True, "The answer is being written."
        self._draw()
        self._writing = asyncio.create_task(self._write(exchange, prompts))

    def regenerate(self) -> None:
        """Other answers to the last message."""
        self.ask(self.exchanges[-1].message, len(self.exchanges) - 1)

    def stop(self) -> None:
        """End the answers where they stand; what is written of them stays."""
        if self._writing:
            self._writing.cancel()

    def reset(self) -> None:
        """Begin anew; answers that are being written end."""
        self.stop()
        self.exchanges.clear()
        self.announcement = "A new talk."
        self._draw()

    def vote(self, exchange: Exchange, choice: Choice) -> None:
        """Adds the vote to the store's; the talk continues with the better answer, unless it has
        gone on. Raises UserError where it cannot be written.
        """
        better = NAMES.index("A" if choice == "tie" else choice)
        answers = [
            Answered(answer.text, answer.engine.partner.fingerprint, answer.engine.partner.ref)
            for answer in exchange.answers
        ]
        cast = vote(
            exchange.prompt,
            answers[better],
            answers[1 - better],
            asdict(exchange.sampling),
            tie=choice == "tie",
        )
        append(self.home, cast)
        exchange.choice = choice
        result = "a tie" if choice == "tie" else f"{choice}, {answers[better].ref}, is better"
        exchange.note = f"Vote kept: {result}. {votes_recipe([answer.ref for answer in answers])}"
        if exchange is self.exchanges[-1]:
            exchange.continued = better
        self.announcement = exchange.note
        self._draw()

    def _draw(self) -> None:
        for view in tuple(self.views):
            view()

    def _system(self) -> Dialogue:
        system = (self.settings.system or "").strip()
        return (Turn("system", system),) if system else ()

    def _turns(self, end: int) -> Dialogue:
        """The talk before message `end`. A message that nothing was written to is not in it."""
        turns: list[Turn] = []
        for exchange in self.exchanges[:end]:
            if exchange.continued is not None:
                answer = exchange.answers[exchange.continued].text
                turns += [Turn("user", exchange.message), Turn("assistant", answer)]
        return tuple(turns)

    def _sampling(self, turns: int, attempt: int) -> Sampling:
        """How the next answers are sampled: every exchange and every attempt has another seed."""
        settings = self.settings
        if settings.max_new_tokens is None:
            raise UserError("New tokens at most is empty: write a number from 1 on.")
        return replace(
            self.sampling,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=int(settings.max_new_tokens),
            seed=numbered_seed(self.sampling.seed + turns, attempt),
        )

    async def _write(self, exchange: Exchange, prompts: dict[Engine, Prompt]) -> None:
        """All answers of the exchange, until they are complete or `stop` ends them."""
        with suppress(asyncio.CancelledError):
            await asyncio.gather(
                *(
                    _write_answer(answer, prompts[answer.engine], exchange.sampling)
                    for answer in exchange.answers
                )
            )
        for answer in exchange.answers:
            answer.text = answer.text.rstrip()
            if answer.state == "writing":
                answer.state = "stopped"
        exchange.continued = next(
            (
                index
                for index, answer in enumerate(exchange.answers)
                if answer.text and answer.state != "failed"
            ),
            None,
        )
        self.busy, self._writing = False, None
        if exchange in self.exchanges:
            self.announcement = " ".join(
                f"{'Answer' if len(exchange.answers) == 1 else name}: {_spoken(answer)}"
                for name, answer in zip(NAMES, exchange.answers, strict=False)
            )
        self._draw()


async def _write_answer(answer: Answer, prompt: Prompt, sampling: Sampling) -> None:
    engine = answer.engine
    try:
        async for delta in engine.stream([engine.request(prompt.tokens, sampling)]):
            answer.text = (answer.text + delta.text).lstrip()
    except EngineFailed as error:
        answer.state = "failed"
        answer.reason = (
            f"The model gave no whole answer ({error}). The terminal of the chat says more."
        )
    else:
        answer.state = "complete"


def _spoken(answer: Answer) -> str:
    text = answer.text or ("" if answer.reason else EMPTY)
    return f"{text} {'Stopped.' if answer.state == 'stopped' else answer.reason}".strip()
