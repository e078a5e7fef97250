"""The chat in a terminal. With a second model both answer, and the person may vote."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gpt_model.errors import UserError
from gpt_model.rlhf.dialogue import Dialogue, Turn
from gpt_model.rlhf.votes import Answered, append, vote
from pipelines.chat.engine import Engine, Prompt, running
from pipelines.chat.session import Partner, Sampling, votes_recipe

HELP = "/reset begins anew, /settings temperature=0.7 top_p=0.9 changes how it answers, /quit ends"
VOTES = ("1", "2", "t", "")  # the last is none


def talk(home: Path, partners: Sequence[Partner], sampling: Sampling, system: str) -> None:
    """A conversation on stdin and stdout, until /quit or the end of the input."""
    with running(partners) as engines:
        Terminal(home, engines, sampling, system).talk()


class Terminal:
    """One conversation. Answers go to stdout as they are written."""

    def __init__(
        self, home: Path, engines: Sequence[Engine], sampling: Sampling, system: str
    ) -> None:
        self.home, self.engines, self.sampling = home, engines, sampling
        self.system: Dialogue = (Turn("system", system.strip()),) if system.strip() else ()
        self.turns: Dialogue = self.system
        self.dropping_announced = False

    def talk(self) -> None:
        labels = " and ".join(engine.partner.label for engine in self.engines)
        _print(f"You talk with {labels}. {HELP}.")
        while (line := _read_line("\nyou> ")) is not None and line.strip() != "/quit":
            try:
                self._handle(line.strip())
            except UserError as error:
                _print(str(error))

    def _handle(self, line: str) -> None:
        command, *assignments = line.split() or [""]
        if not line:
            _print("An empty message is not sent. Write something, or /quit.")
        elif command == "/reset":
            self.turns, self.dropping_announced = self.system, False
            _print("The talk begins anew.")
        elif command == "/settings":
            self.sampling = self.sampling.updated(assignments)
            _print(str(self.sampling))
        elif command.startswith("/"):
            _print(f"There is no command {command}: {HELP}.")
        else:
            self._exchange((*self.turns, Turn("user", line)))

    def _exchange(self, turns: Dialogue) -> None:
        prompts = [engine.fit(turns, self.sampling.max_new_tokens) for engine in self.engines]
        if any(prompt.dropped_turns for prompt in prompts) and not self.dropping_announced:
            self.dropping_announced = True
            _print(
                "(The talk is longer than the model's context: "
                "the oldest turns are not read any more.)"
            )
        answers = []
        for engine, prompt in zip(self.engines, prompts, strict=True):
            partner = engine.partner
            print(f"\n[{partner.label}] ", end="", flush=True)
            text = asyncio.run(_print_answer(engine, prompt, self.sampling))
            _print("" if text else "(it ended without a word)")
            answers.append(Answered(text, partner.fingerprint, partner.ref))
        chosen = answers[0] if len(answers) == 1 else self._vote(turns, answers[0], answers[1])
        if chosen.text:  # a turn has text: an empty answer leaves the talk where it was
            self.turns = (*turns, Turn("assistant", chosen.text))

    def _vote(self, turns: Dialogue, first: Answered, second: Answered) -> Answered:
        """The answer that the talk continues with."""
        if not (first.text and second.text):
            return first if first.text else second
        question = "\nWhich is better? 1, 2, t for a tie, Enter for no vote> "
        while (choice := (_read_line(question) or "").strip().lower()) not in VOTES:
            _print(f"{choice!r} is no vote.")
        if not choice:
            return first
        chosen, rejected = (second, first) if choice == "2" else (first, second)
        try:
            path = append(
                self.home, vote(turns, chosen, rejected, asdict(self.sampling), tie=choice == "t")
            )
            refs = [engine.partner.ref for engine in self.engines]
            _print(f"Kept in {path}. {votes_recipe(refs)}")
        except UserError as error:
            _print(str(error))
        _print(f"The talk goes on with {chosen.ref}'s answer.")
        return chosen


async def _print_answer(engine: Engine, prompt: Prompt, sampling: Sampling) -> str:
    """Prints the answer as it is written, and returns it whole."""
    text = ""
    async for delta in engine.stream([engine.request(prompt.tokens, sampling)]):
        print(delta.text if text.strip() else delta.text.lstrip(), end="", flush=True)
        text += delta.text
    return text.strip()


def _read_line(prompt: str) -> str | None:
    """A line of the input, or None at its end."""
    print(prompt, end="", flush=True)
    line = sys.stdin.readline()
    return line if line else None


def _print(text: str) -> None:
    print(text, flush=True)
