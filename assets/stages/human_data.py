"""Stages `demonstrations`, `comparisons` and `prompts`: what people wrote and preferred, read once,
split, and stored with an account of the rows left out. Every stage of `alignment` reads these.

    training.jsonl, held_out.jsonl     `gpt_model.rlhf.records` says what a line is
    judge.jsonl                        of comparisons
    report.json                        of each source: rows, used and left out by reason, and the
                                       answers dropped of rows that are used

What the forms of their rows mean is `gpt_model.rlhf.readers`'.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from assets.contract import Check, Config, Stage, Table, deferred
from assets.recipe.task_entries import entry_named, resolved_entry
from assets.store.home import downloads_folder, store_home
from gpt_model.errors import Unreachable, about, about_all_of
from gpt_model.rlhf import votes
from gpt_model.rlhf.readers.record_readers import check_source
from gpt_model.rlhf.readers.source import HumanSource, Purpose

EXECUTION = "assets.execution.human_data"
ENOUGH = 20  # rows to train on
SPLITS: dict[Purpose, tuple[str, ...]] = {
    "demonstrations": ("training", "held_out"),
    "comparisons": ("training", "held_out", "judge"),
    "prompts": ("training", "held_out"),
}


def pin(purpose: Purpose, config: Config, base: Path) -> Config:
    """The section with local files and votes tied to their bytes and looked into for mistakes,
    branches tied to their commits, and tasks written out.
    """
    sources = []
    for number, given in enumerate(config["sources"]):
        with about(f"sources[{number}]"):
            sources.append(_pinned(HumanSource.model_validate(given), purpose, base))
    return {**config, "sources": sources}


def _pinned(source: HumanSource, purpose: Purpose, base: Path) -> dict[str, Any]:
    if source.votes:
        source = source.model_copy(update={"pinned": votes.pin(store_home())})
    elif source.task:
        written = entry_named(source.task, base, "task").model_dump(mode="json", exclude_none=True)
        with about_all_of("task"):
            entry, reason = resolved_entry(source.task, written, base, downloads_folder())
            if reason:
                raise Unreachable(
                    f"The task {source.task!r} cannot be read here: {reason}. Leave the source out."
                )
        return {**source.model_dump(mode="json"), "entry": entry}
    else:
        source = source.resolved(base, downloads_folder())
    check_source(source, purpose, downloads_folder(), store_home())
    return source.model_dump(mode="json")


CHECKS = (
    Check(
        "nothing_lost",
        True,
        "Every row is kept, or left out for a reason that is counted.",
        deferred(EXECUTION, "nothing_lost"),
    ),
    Check(
        "enough", False, f"There are at least {ENOUGH} to train on.", deferred(EXECUTION, "enough")
    ),
    Check(
        "splits_do_not_cross",
        True,
        "Nothing is in two splits.",
        deferred(EXECUTION, "splits_do_not_cross"),
    ),
)
SHOW = deferred("assets.report.data", "show_human_data")

# Columns of `gpt_model.rlhf.records`.
MESSAGES = ("array<struct<role, content>>", "the dialogue so far, the oldest turn first")
IDENTITY = {
    "source": ("string", "the source of the recipe that the row is of"),
    "id": ("string", "which row of the source"),
}
RESPONSES = ("array<struct<text, rank, rating>>", "the answers; rank 0 is the best")
FURTHER = ("array<array<int>>", "ranks of the same answers in the source's further rows")
REST = ("string", "what followed the prompt in its source")
SPLIT_ROWS = "training|held_out|judge"


def _table(**columns: tuple[str, str]) -> Table:
    return Table({**IDENTITY, "messages": MESSAGES, **columns}, rows=SPLIT_ROWS)


DEMONSTRATIONS = Stage(
    name="demonstrations",
    version="3",
    run=deferred(EXECUTION, "run_demonstrations"),
    description="Dialogues in which an assistant answers as it should.",
    kinds=("python", "jsonl"),
    table=_table(),
    checks=CHECKS,
    show=SHOW,
    pin=partial(pin, "demonstrations"),
)
COMPARISONS = Stage(
    name="comparisons",
    version="2",
    run=deferred(EXECUTION, "run_comparisons"),
    description="Answers to one prompt, ranked by people.",
    kinds=("python", "jsonl"),
    table=_table(responses=RESPONSES, further=FURTHER),
    checks=CHECKS,
    show=SHOW,
    pin=partial(pin, "comparisons"),
)
PROMPTS = Stage(
    name="prompts",
    version="2",
    run=deferred(EXECUTION, "run_prompts"),
    description="What PPO answers: prompts that are in neither demonstrations nor comparisons.",
    kinds=("python", "jsonl"),
    table=_table(rest=REST),
    checks=(
        *CHECKS,
        Check(
            "disjoint",
            True,
            "No prompt is in the demonstrations or the comparisons.",
            deferred(EXECUTION, "disjoint"),
        ),
    ),
    show=SHOW,
    pin=partial(pin, "prompts"),
)
