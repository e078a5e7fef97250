"""Which split a dialogue, a ranking or a prompt is in: a function of what it says and a seed, so
that nothing crosses. And rated singles set against each other: within a split, each in one ranking,
so that no sentence is in two of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gpt_model.data.splits import bucket, normalised
from gpt_model.rlhf.dialogue import Dialogue
from gpt_model.rlhf.readers.candidate import Candidate, Report
from gpt_model.rlhf.records import Demonstration, Prompt, Ranking, Response, together

MOST = 64  # answers to one prompt in a ranking; the paper had 4 to 9
Shares = Mapping[str, float]  # of the splits that are held back; the rest is training


def split_of(key: str, shares: Shares, seed: int) -> str:
    place, upto = bucket(key, seed), 0.0
    for name, share in shares.items():
        upto += share
        if place < upto:
            return name
    return "training"


def demonstrations(
    source: str, found: Sequence[Candidate], shares: Shares, seed: int
) -> dict[str, list[Demonstration]]:
    splits: dict[str, list[Demonstration]] = {"training": [], **{name: [] for name in shares}}
    for one in found:
        splits[split_of(one.key, shares, seed)].append(Demonstration(source, one.id, one.turns))
    return splits


def rankings(
    source: str,
    found: Sequence[Candidate],
    shares: Shares,
    seed: int,
    ranked: int,
    known: set[str],
    report: Report,
) -> dict[str, list[Ranking]]:
    """Rows of one prompt are one ranking. `ranked`: how many singles are set against each other,
    which have the instruction in common and no prompt of their own. What is left over of them makes
    no ranking, and is counted.

    `known`: the singles of the sources before, to which these are added.
    """
    splits: dict[str, list[Candidate]] = {"training": [], **{name: [] for name in shares}}
    for one in found:
        splits[split_of(one.key, shares, seed)].append(one)
    return {
        name: _grouped(source, f"{seed} {name}", chosen, ranked, known, report)
        for name, chosen in splits.items()
    }


def _grouped(
    source: str, seed: str, found: Sequence[Candidate], ranked: int, known: set[str], report: Report
) -> list[Ranking]:
    by_prompt: dict[Dialogue, list[Ranking]] = {}
    for one in found:
        if len(one.answers) > 1:
            row = Ranking(
                source, one.id, one.turns, tuple(Response(*answer) for answer in one.answers)
            )
            by_prompt.setdefault(one.turns, []).append(row)
    whole = [together(part) for rows in by_prompt.values() for part in _parts(rows)]
    singles = [one for one in found if len(one.answers) == 1]
    each_once = []
    for one in singles:
        text = normalised(one.answers[0].text)
        if text in known:
            report.leave_out("a text that is there already", one.id)
        else:
            known.add(text)
            each_once.append(one)
    random.Random(seed).shuffle(each_once)
    if left := len(each_once) % ranked:
        report.leave_out("too few left to be set against", each_once[-1].id, count=left)
    for start in range(0, len(each_once) - left, ranked):
        group = each_once[start : start + ranked]
        ratings = sorted({one.answers[0].rating or 0.0 for one in group}, reverse=True)
        responses = tuple(
            Response(text, ratings.index(rating or 0.0), rating)
            for one in group
            for text, _, rating in one.answers
        )
        whole.append(
            Ranking(source, f"{group[0].id} and {ranked - 1} others", group[0].turns, responses)
        )
    return whole


def _parts(rows: Sequence[Ranking]) -> Iterator[list[Ranking]]:
    """Rows of one prompt, in order, with at most MOST answers together, or one row: a ranking goes
    through a model at once.
    """
    part: list[Ranking] = []
    for row in rows:
        if part and sum(len(one.responses) for one in (*part, row)) > MOST:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


@dataclass
class Said:
    """What demonstrations and comparisons say, which no prompt may repeat."""

    asked: set[str] = field(default_factory=set)
    answers: set[str] = field(default_factory=set)

    def add(self, turns: Dialogue, answers: Sequence[str] = ()) -> None:
        """A dialogue: each thing that the user says in it, the opening words it ends with if it
        does, and every answer.
        """
        self.asked |= {asked((turn,)) for turn in turns if turn.role == "user"} | {asked(turns)}
        self.answers |= {normalised(turn.text) for turn in turns if turn.role == "assistant"} | {
            normalised(text) for text in answers
        }

    def has(self, prompt: Dialogue, rest: str | None) -> bool:
        """`rest`: where it is known, the whole text that the prompt's opening words are from is
        looked for too.
        """
        return asked(prompt) in self.asked or (
            rest is not None and normalised(prompt[-1].text + rest) in self.answers
        )


def asked(turns: Dialogue) -> str:
    """What a prompt is told apart by: what the user says last, and the opening words after it."""
    user = next((turn.text for turn in reversed(turns) if turn.role == "user"), "")
    return (
        f"{normalised(user)}\0{normalised(turns[-1].text) if turns[-1].role == 'assistant' else ''}"
    )


def prompts(
    source: str,
    found: Sequence[Candidate],
    shares: Shares,
    seed: int,
    said: Said,
    known: set[str],
    report: Report,
) -> dict[str, list[Prompt]]:
    """Each prompt once, and none that was said. `known`: the prompts of the sources before, to
    which these are added.
    """
    splits: dict[str, list[Prompt]] = {"training": [], **{name: [] for name in shares}}
    for one in found:
        own = asked(one.turns)
        if own in known:
            report.leave_out("a prompt that is there already", one.id)
        elif said.has(one.turns, one.rest):
            report.leave_out("in demonstrations or comparisons", one.id)
        else:
            known.add(own)
            splits[split_of(one.key, shares, seed)].append(
                Prompt(source, one.id, one.turns, one.rest)
            )
    return splits
