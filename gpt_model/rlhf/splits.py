"""Which split a dialogue, a ranking or a prompt is in: a function of its text and a seed, so that
nothing crosses. And rated single texts ranked in groups: within a split, each in one ranking, so
that no text is in two of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gpt_model.data.splits import bucket, normalised
from gpt_model.rlhf.dialogue import Dialogue
from gpt_model.rlhf.readers.parsed import ParsedRow, RowReport
from gpt_model.rlhf.records import Demonstration, Prompt, Ranking, Response, merge_rankings

MAX_RESPONSES = 64  # answers to one prompt in a ranking; the paper had 4 to 9
Shares = Mapping[str, float]  # of the splits that are held back; the rest is training


def split_of(key: str, shares: Shares, seed: int) -> str:
    position, upper = bucket(key, seed), 0.0
    for name, share in shares.items():
        upper += share
        if position < upper:
            return name
    return "training"


def demonstrations(
    source: str, rows: Sequence[ParsedRow], shares: Shares, seed: int
) -> dict[str, list[Demonstration]]:
    splits: dict[str, list[Demonstration]] = {"training": [], **{name: [] for name in shares}}
    for row in rows:
        splits[split_of(row.key, shares, seed)].append(Demonstration(source, row.id, row.turns))
    return splits


def rankings(
    source: str,
    rows: Sequence[ParsedRow],
    shares: Shares,
    seed: int,
    ranked: int,
    known: set[str],
    report: RowReport,
) -> dict[str, list[Ranking]]:
    """Rows of one prompt are one ranking. `ranked`: how many single texts make one, which have the
    instruction in common and no prompt of their own. Those left over make none, and are counted.

    `known`: the single texts of the sources before, to which these are added.
    """
    splits: dict[str, list[ParsedRow]] = {"training": [], **{name: [] for name in shares}}
    for row in rows:
        splits[split_of(row.key, shares, seed)].append(row)
    return {
        name: _rankings_of_split(source, f"{seed} {name}", members, ranked, known, report)
        for name, members in splits.items()
    }


def _rankings_of_split(
    source: str,
    seed: str,
    rows: Sequence[ParsedRow],
    ranked: int,
    known: set[str],
    report: RowReport,
) -> list[Ranking]:
    by_prompt: dict[Dialogue, list[Ranking]] = {}
    singles = []
    for row in rows:
        if len(row.answers) == 1:
            singles.append(row)
        elif row.answers:
            responses = tuple(Response(*answer) for answer in row.answers)
            ranking = Ranking(source, row.id, row.turns, responses)
            by_prompt.setdefault(row.turns, []).append(ranking)
    merged = [
        merge_rankings(batch)
        for same_prompt in by_prompt.values()
        for batch in _batches(same_prompt)
    ]
    unique = []
    for row in singles:
        text = normalised(row.answers[0].text)
        if text in known:
            report.left_out.add("a text that is there already", row.id)
        else:
            known.add(text)
            unique.append(row)
    random.Random(seed).shuffle(unique)
    if remainder := len(unique) % ranked:
        report.left_out.add("too few left to be set against", unique[-1].id, count=remainder)
    for start in range(0, len(unique) - remainder, ranked):
        merged.append(_ranking_of_singles(source, unique[start : start + ranked]))
    return merged


def _ranking_of_singles(source: str, rows: Sequence[ParsedRow]) -> Ranking:
    """Single texts ranked by their ratings."""
    answers = [row.answers[0] for row in rows]
    ratings = sorted({answer.rating or 0.0 for answer in answers}, reverse=True)
    responses = tuple(
        Response(answer.text, ratings.index(answer.rating or 0.0), answer.rating)
        for answer in answers
    )
    return Ranking(source, f"{rows[0].id} and {len(rows) - 1} others", rows[0].turns, responses)


def _batches(rankings: Sequence[Ranking]) -> Iterator[list[Ranking]]:
    """Rows of one prompt, in order, with at most MAX_RESPONSES answers together, or one row: a
    ranking goes through a model at once.
    """
    batch: list[Ranking] = []
    for ranking in rankings:
        if batch and sum(len(row.responses) for row in (*batch, ranking)) > MAX_RESPONSES:
            yield batch
            batch = []
        batch.append(ranking)
    if batch:
        yield batch


@dataclass
class SeenTexts:
    """The texts of demonstrations and comparisons, which no prompt may repeat."""

    requests: set[str] = field(default_factory=set)
    answers: set[str] = field(default_factory=set)

    def add(self, turns: Dialogue, answers: Sequence[str] = ()) -> None:
        """A dialogue: each of the user's turns, the opening words it ends with if it does, and
        every answer.
        """
        users = {prompt_identity((turn,)) for turn in turns if turn.role == "user"}
        self.requests |= users | {prompt_identity(turns)}
        self.answers |= {normalised(turn.text) for turn in turns if turn.role == "assistant"}
        self.answers |= {normalised(text) for text in answers}

    def has(self, prompt: Dialogue, rest: str | None) -> bool:
        """`rest`: where it is known, the whole text that the prompt's opening words are from is
        looked for too.
        """
        return prompt_identity(prompt) in self.requests or (
            rest is not None and normalised(prompt[-1].text + rest) in self.answers
        )


def prompt_identity(turns: Dialogue) -> str:
    """The user's last turn, and the opening words after it: equal where two prompts are one."""
    user = next((turn.text for turn in reversed(turns) if turn.role == "user"), "")
    opening = normalised(turns[-1].text) if turns[-1].role == "assistant" else ""
    return f"{normalised(user)}\0{opening}"


def prompts(
    source: str,
    rows: Sequence[ParsedRow],
    shares: Shares,
    seed: int,
    seen: SeenTexts,
    known: set[str],
    report: RowReport,
) -> dict[str, list[Prompt]]:
    """Each prompt once, and none that is in `seen`. `known`: the prompts of the sources before, to
    which these are added.
    """
    splits: dict[str, list[Prompt]] = {"training": [], **{name: [] for name in shares}}
    for row in rows:
        identity = prompt_identity(row.turns)
        if identity in known:
            report.left_out.add("a prompt that is there already", row.id)
        elif seen.has(row.turns, row.rest):
            report.left_out.add("in demonstrations or comparisons", row.id)
        else:
            known.add(identity)
            prompt = Prompt(source, row.id, row.turns, row.rest)
            splits[split_of(row.key, shares, seed)].append(prompt)
    return splits
