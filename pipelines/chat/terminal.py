"""The chat in a terminal, with our own decoder and its cache. With a second model both answer, and
a vote can be cast.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from gpt_model.errors import UserError
from gpt_model.rlhf.dialogue import Dialogue, Turn
from gpt_model.rlhf.votes import Answered, append, vote
from pipelines.chat.session import LEARNING, Partner, Sampling, fitted

HELP = "/reset begins anew, /settings temperature=0.7 top_p=0.9 changes how it answers, /quit ends"
VOTES = ("1", "2", "t", "")  # the last is none


class Terminal:
    """One talk. Answers go to stdout as they are written."""

    def __init__(
        self, home: Path, partners: list[Partner], sampling: Sampling, system: str
    ) -> None:
        self.home, self.partners, self.sampling = home, partners, sampling
        self.system: Dialogue = (Turn("system", system.strip()),) if system.strip() else ()
        self.turns: Dialogue = self.system
        self.told_of_dropping = False

    def talk(self) -> None:
        """Until /quit or the end of the input."""
        _say(f"You talk with {' and '.join(one.label for one in self.partners)}. {HELP}.")
        while (line := _asked("\nyou> ")) is not None and line.strip() != "/quit":
            try:
                self._take(line.strip())
            except UserError as error:
                _say(str(error))

    def _take(self, line: str) -> None:
        command, *words = line.split() or [""]
        if not line:
            _say("An empty message is not sent. Write something, or /quit.")
        elif command == "/reset":
            self.turns, self.told_of_dropping = self.system, False
            _say("The talk begins anew.")
        elif command == "/settings":
            self.sampling = self.sampling.with_words(words)
            _say(str(self.sampling))
        elif command.startswith("/"):
            _say(f"There is no command {command}: {HELP}.")
        else:
            self._exchange((*self.turns, Turn("user", line)))

    def _exchange(self, turns: Dialogue) -> None:
        prompts = [fitted(partner, turns, self.sampling) for partner in self.partners]
        if any(dropped for _, _, dropped in prompts) and not self.told_of_dropping:
            self.told_of_dropping = True
            _say(
                "(The talk is longer than the model's context: the oldest turns are not read any more.)"
            )
        answers = []
        for partner, (_, prompt, _) in zip(self.partners, prompts, strict=True):
            print(f"\n[{partner.label}] ", end="", flush=True)
            text = partner.answer(
                prompt, self.sampling, lambda part: print(part, end="", flush=True)
            )
            _say("" if text else "(it ended without a word)")
            answers.append(Answered(text, partner.fingerprint, partner.ref))
        going_on = answers[0] if len(answers) == 1 else self._voted(turns, answers[0], answers[1])
        if going_on.text:  # a turn says something: an empty answer leaves the talk where it was
            self.turns = (*turns, Turn("assistant", going_on.text))

    def _voted(self, turns: Dialogue, first: Answered, second: Answered) -> Answered:
        """The answer that the talk goes on with."""
        if not (first.text and second.text):
            return first if first.text else second
        while (
            said := (_asked("\nWhich is better? 1, 2, t for a tie, Enter for no vote> ") or "")
            .strip()
            .lower()
        ) not in VOTES:
            _say(f"{said!r} is no vote.")
        if not said:
            return first
        chosen, rejected = (second, first) if said == "2" else (first, second)
        try:
            path = append(
                self.home, vote(turns, chosen, rejected, asdict(self.sampling), tie=said == "t")
            )
            _say(f"Kept in {path}. A recipe that takes it in: {LEARNING}")
        except UserError as error:
            _say(str(error))
        _say(f"The talk goes on with {chosen.ref}'s answer.")
        return chosen


def _asked(prompt: str) -> str | None:
    """A line of the input, or None at its end."""
    print(prompt, end="", flush=True)
    line = sys.stdin.readline()
    return line if line else None


def _say(text: str) -> None:
    print(text, flush=True)
