"""What of the evaluated text stands in the training text: GPT-2's overlap and GPT-3's clean and
dirty examples, for each task.

The corpus's training documents of the sources that are trained on are read once, as a stream,
whatever their size; what is held in memory is the evaluated text's runs, 9 bytes each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_model.data import documents
from gpt_model.evaluation import contamination, ngrams
from gpt_model.evaluation.examples import TaskRows
from gpt_model.evaluation.settings import texts_of
from gpt_model.evaluation.suites import Arithmetic, Scramble
from gpt_model.rounding import rounded


@dataclass(frozen=True)
class Seen:
    """Of one task's examples."""

    overlap: ngrams.Overlap
    run: int  # words of a run that makes an example dirty
    dirty: list[bool | None]  # each example, in order; None: too short to say

    def of_metric(self, metric: str, aggregation: str, values: Sequence[Any]) -> dict[str, Any]:
        """What stands beside a score: percent of 8-grams found, and the score on the clean and on
        the dirty examples.
        """
        split = contamination.split_score(metric, aggregation, values, self.dirty)
        return {
            "overlap_percent": rounded(self.overlap.percent),
            "ngrams": self.overlap.ngrams,
            "contamination": {"run": self.run, **split},
        }


def seen_in_training(tasks: Sequence[TaskRows], corpus: Path) -> dict[str, Seen]:
    """By a task's full name. Tasks of the same examples, in other settings, are looked up once."""
    trained_on = [
        source for source, entry in documents.index(corpus).items() if entry.get("weight", 1.0) > 0
    ]

    def training() -> Iterator[str]:
        return (
            text for source in trained_on for text in documents.read(corpus, source, "training")
        )

    texts = {task.full_name: tuple(texts_of(task)) for task in tasks if task.scored}
    made_up = {
        task.full_name: isinstance(task.task.metadata.data, (Arithmetic, Scramble))
        for task in tasks
    }
    names = {
        (made_up[name], own): name for name, own in texts.items()
    }  # one for all that have these texts
    examples = {
        name: contamination.Examples(own, made_up[name]) for (_, own), name in names.items()
    }
    found = ngrams.shared(contamination.wanted(examples.values()), training())
    seen = {
        name: Seen(
            ngrams.overlap(found[ngrams.WORDS], one.texts),
            one.length,
            contamination.marked(one, found),
        )
        for name, one in examples.items()
    }
    return {name: seen[names[made_up[name], own]] for name, own in texts.items()}


def sentence(row: Mapping[str, Any]) -> str:
    """A score row's overlap in words; "" where it was not looked for."""
    if "contamination" not in row:
        return ""
    parts = (
        []
        if row["overlap_percent"] is None
        else [f"{row['overlap_percent']:.3g} % of its 8-grams stand in the training text"]
    )
    found = row["contamination"]
    if found["dirty"] and found["clean"]:
        value = f"{found['clean']['value']:.4g} on the {found['clean_percent']:.3g} % of examples"
        parts.append(f"{value} that share no {found['run']} words in a row with it")
    return "; ".join(parts)
