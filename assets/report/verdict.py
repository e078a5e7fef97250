"""The scorecard's first lines: what its scores say, in three plain sentences.

Counts are of scores whose 95 % interval lies wholly on one side of their best baseline.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from assets.contract import Inputs
from assets.report.score import NotRun, Score, number
from assets.stages.base_model import BITS_PER_BYTE
from gpt_model.rlhf.model_comparison import ALIGNED, REFERENCE

SENTENCES = 3
MIXTURE = "bits per byte, by mixture"
WIN_RATE = ", win rate"
BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"
LISTED = 6  # names in a sentence


@dataclass(frozen=True)
class Statement:
    """One sentence, and the names of the scores or tasks it counts by their verdict."""

    about: str  # text, alignment, fine-tuning, zero-shot, few-shot or build
    sentence: str
    better: Sequence[str] = ()
    worse: Sequence[str] = ()
    undecided: Sequence[str] = ()


def statements(
    scores: Sequence[Score], missing: Sequence[NotRun], inputs: Inputs, build: str
) -> list[Statement]:
    """The first three of what there is to say. `build`: when and on what it was built."""
    return list(_all(scores, missing, inputs, build))[:SENTENCES]


def write(path: Path, verdict: Sequence[Statement]) -> None:
    """As a table that Dagster shows, with the statements themselves beside it."""
    document = {
        "columns": ["about", "verdict"],
        "rows": [[statement.about, statement.sentence] for statement in verdict],
        "short": ["verdict"],
        "statements": [asdict(statement) for statement in verdict],
    }
    path.write_text(json.dumps(document), encoding="utf-8")


def _all(
    scores: Sequence[Score], missing: Sequence[NotRun], inputs: Inputs, build: str
) -> Iterator[Statement]:
    named = {score.name: score for score in reversed(scores)}  # the first of a name
    if MIXTURE in named:
        yield _of_text(named[MIXTURE])
    if wins := [score for score in scores if score.name.endswith(WIN_RATE)]:
        yield _of_preferences(wins)
    first_of_task = {
        score.asset: score for score in reversed(scores) if _stage(score) == "finetuned"
    }
    if first_of_task:
        yield _of_tasks(list(first_of_task.values())[::-1])
    suites = [
        score
        for score in scores
        if _stage(score) == "zero_shot" and score.verdict and not score.name.endswith(BITS_PER_BYTE)
    ]
    if suites:
        yield _of_suites(suites)
        if prompted := list(_by_shots(suites)):
            yield _of_demonstrations(prompted)
    scores_word = "score" if len(missing) == 1 else "scores"
    not_run = f" {len(missing)} {scores_word} could not be measured here." if missing else ""
    yield Statement("build", f"Built {build}.{not_run}")


def _stage(score: Score) -> str:
    """ "finetuned" of tiny/finetuned/boolq."""
    return score.asset.split("/")[1]


def _of_text(score: Score) -> Statement:
    """Bits per byte of held-out text beside xz, or a uniform guess where xz is no fair one."""
    baseline = score.baseline.partition(",")[0]
    name, _, value = baseline.rpartition(" ")
    name = "a uniform guess" if name == "uniform" else name
    against = f"{name} ({value} bits per byte)"
    relation = {BETTER: f"**better** than {against}", WORSE: f"**worse** than {against}"}.get(
        score.verdict, f"**no different** from {against}, whose value lies in the interval"
    )
    sentence = (
        f"Held-out text takes the model {number(score.value)} bits per byte (95 % interval "
        f"{score.interval()}): {relation}."
    )
    return _counted("text", sentence, [score])


def _of_tasks(scores: Sequence[Score]) -> Statement:
    names = [score.asset.rpartition("/")[2] for score in scores]
    counted = _counted("fine-tuning", "", scores, names)
    of, tail = _share(counted.better, scores, "task"), _rest(counted, " than the best of them")
    sentence = (
        f"Fine-tuned, it is **better than every baseline on {of}**{_names(counted.better)}{tail}."
    )
    return _counted("fine-tuning", sentence, scores, names)


def _of_suites(scores: Sequence[Score]) -> Statement:
    counted = _counted("zero-shot", "", scores)
    prompted = any(score.shots not in (None, "zero") for score in scores)
    how = "With at most a few examples in its prompt" if prompted else "Without fine-tuning"
    of, tail = _share(counted.better, scores, "score"), _rest(counted)
    sentence = f"{how}, it is **better than guessing on {of}**{_names(counted.better)}{tail}."
    return _counted("zero-shot", sentence, scores)


def _by_shots(scores: Sequence[Score]) -> Iterator[tuple[Score, Score]]:
    """Each score without examples in the prompt, and the same one with the most of them."""
    settings: dict[tuple[str, str], dict[str | None, Score]] = {}
    for score in scores:
        settings.setdefault((score.asset, score.of_any_shots), {})[score.shots] = score
    for by_shots in settings.values():
        most = by_shots.get("few") or by_shots.get("one")
        if most and "zero" in by_shots:
            yield by_shots["zero"], most


def _of_demonstrations(pairs: Sequence[tuple[Score, Score]]) -> Statement:
    """Whether examples in the prompt help, as GPT-3's paper asks: where the two intervals, which a
    score with a verdict has, lie apart.
    """
    by_effect: dict[str, list[str]] = {BETTER: [], WORSE: [], UNDECIDED: []}
    for without, shown in pairs:
        apart = (shown.low or 0) > (without.high or 0) or (shown.high or 0) < (without.low or 0)
        helps = (shown.value < without.value) == shown.lower_is_better
        effect = (BETTER if helps else WORSE) if apart else UNDECIDED
        by_effect[effect].append(shown.of_any_shots)
    counted = Statement("few-shot", "", *by_effect.values())
    tasks = f"{len(pairs)} score{'s' if len(pairs) > 1 else ''}"
    sentence = (
        f"Examples in its prompt **help on {len(counted.better) or 'none'} of {tasks}**"
        f"{_names(counted.better)}"
    )
    if counted.worse:
        sentence += f"; they hurt on {len(counted.worse)}{_names(counted.worse)}"
    if counted.undecided:
        sentence += f"; on {len(counted.undecided)} the intervals overlap"
    return replace(counted, sentence=f"{sentence}.")


def _of_preferences(scores: Sequence[Score]) -> Statement:
    """By the judge: whether the aligned model's answers are preferred to those of the model that
    it was aligned from. Of a recipe without that step its last one.
    """
    steps = {score.name.removesuffix(WIN_RATE): score for score in scores}
    step = f"{ALIGNED} over {REFERENCE.replace('_', ' ')}"
    step, score = (step, steps[step]) if step in steps else list(steps.items())[-1]
    model, _, other = step.partition(" over ")
    relation = {
        BETTER: f"**{model} is better than {other}**",
        WORSE: f"**{model} is worse than {other}**",
    }.get(score.verdict, f"**{model} and {other} cannot be told apart**")
    sentence = (
        f"By a judge that no model was trained to please, {relation}: it wins on "
        f"{score.value:.0%} of {score.examples:,} held-out prompts (95 % interval "
        f"{score.low or 0:.0%} – {score.high or 0:.0%})."
    )
    return _counted("alignment", sentence, scores)


def _counted(
    about: str, sentence: str, scores: Sequence[Score], names: Sequence[str] = ()
) -> Statement:
    names = names or [score.name for score in scores]
    by_verdict: Mapping[str, list[str]] = {BETTER: [], WORSE: [], UNDECIDED: []}
    for name, score in zip(names, scores, strict=True):
        if score.verdict:
            by_verdict[score.verdict].append(name)
    return Statement(about, sentence, *(by_verdict[key] for key in (BETTER, WORSE, UNDECIDED)))


def _names(names: Sequence[str]) -> str:
    """ " (boolq, piqa)", where they are few."""
    return f" ({', '.join(names)})" if 0 < len(names) <= LISTED else ""


def _share(better: Sequence[str], scores: Sequence[Score], noun: str) -> str:
    """ "3 of 4 tasks", "none of 4 tasks"."""
    return f"{len(better) or 'none'} of {len(scores)} {noun}{'s' if len(scores) > 1 else ''}"


def _rest(counted: Statement, than: str = "") -> str:
    """ "; worse on 1 (boolq); on 3 the interval leaves it open": what is not better."""
    worse, open_on = len(counted.worse), len(counted.undecided)
    text = f"; worse{than} on {worse}{_names(counted.worse)}" if worse else ""
    return text + (f"; on {open_on} the interval leaves it open" if open_on else "")
