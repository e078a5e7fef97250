"""GPT-1, table 5: each task without the auxiliary objective, without pre-training, and with an
LSTM, beside the whole.

An LSTM is in the table where the recipe has one that is pre-trained alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from gpt_model.experiments.document import ONE_RUN, series
from gpt_model.experiments.finetuning_variants import BAG_OF_WORDS, Start, TaskScores
from gpt_model.finetuning.entry import SCORE_NAMES
from gpt_model.finetuning.objective import FineTuning
from gpt_model.finetuning.start import nothing, start_decoder
from gpt_model.published import references
from gpt_model.statistics import Bootstrap, ConfidenceInterval
from gpt_model.training.engine import Execution
from gpt_model.transformer import Decoder

SOURCE = "GPT-1, table 5"
TITLE = "What pre-training, the auxiliary objective and the Transformer are worth"
WHOLE = "whole"
NOT_RUN = "–"
NAMES = {  # of a variant, as the page has it, in the table's order
    WHOLE: "whole (with the auxiliary objective)",
    "no_pretraining": "without pre-training",
    "no_auxiliary": "without the auxiliary objective",
    "lstm": "LSTM, with the auxiliary objective",
}


def variants(gpt: Path, lstm: Path | None, execution: Execution) -> dict[str, Start]:
    """What each row of the table starts from: the folders' decoders, or one that is drawn."""

    def pretrained(folder: Path, settings: FineTuning) -> tuple[Decoder, FineTuning]:
        return start_decoder(folder, settings, execution), settings

    def no_pretraining(settings: FineTuning) -> tuple[Decoder, FineTuning]:
        return start_decoder(gpt, settings, execution, nothing), settings

    def no_auxiliary(settings: FineTuning) -> tuple[Decoder, FineTuning]:
        return pretrained(gpt, replace(settings, auxiliary_weight=0.0))

    starts: dict[str, Start] = {
        WHOLE: partial(pretrained, gpt),
        "no_pretraining": no_pretraining,
        "no_auxiliary": no_auxiliary,
    }
    if lstm is not None:
        starts["lstm"] = partial(pretrained, lstm)
    return starts


@dataclass(frozen=True)
class Ablations:
    """The table: the scores of each task, a point a variant."""

    tasks: Sequence[TaskScores]
    seeds: int
    unavailable: Sequence[str] = ()  # a sentence for each task that was not run

    @property
    def variants(self) -> list[str]:
        return list(self.tasks[0].by_seed)

    @cached_property
    def average(self) -> Bootstrap:
        """Over the tasks, each of equal weight, as the table's; their resamples are independent, as
        their examples are.
        """
        bootstraps = [task.bootstrap for task in self.tasks]
        return Bootstrap(
            np.mean([bootstrap.values for bootstrap in bootstraps], 0),
            np.mean([bootstrap.samples for bootstrap in bootstraps], 0),
        )

    def loss(self, bootstrap: Bootstrap, variant: str) -> ConfidenceInterval:
        """The score of the whole minus that of `variant`, on the same examples."""
        weights = [float(name == WHOLE) - float(name == variant) for name in self.variants]
        return bootstrap.interval(weights)

    def metrics(self) -> dict[str, float]:
        """task/variant, average/variant, and of the latter average/variant_loss with its ends."""
        metrics = {
            f"{task.task}/{variant}": float(value)
            for task in self.tasks
            for variant, value in zip(self.variants, task.bootstrap.values, strict=True)
        }
        averages = zip(self.variants, self.average.intervals(), strict=True)
        for variant, average in averages:
            metrics[f"average/{variant}"] = average.value
            if variant != WHOLE:
                loss = self.loss(self.average, variant)
                metrics |= loss.as_metrics(f"average/{variant}_loss")
        return metrics | {
            f"{task.task}/bag_of_words": task.bag_of_words.value
            for task in self.tasks
            if task.bag_of_words
        }

    def document(self) -> dict[str, Any]:
        heads = [f"{task.task} ({SCORE_NAMES[task.metric]})" for task in self.tasks]
        columns = [self.average, *(task.bootstrap for task in self.tasks)]
        scores = [
            [NAMES[variant], *(str(column.intervals()[row]) for column in columns)]
            for row, variant in enumerate(self.variants)
        ]
        baselines = [task.bag_of_words for task in self.tasks]
        if any(baselines):
            average = (
                f"{np.mean([baseline.value for baseline in baselines if baseline]):.3f}"
                if all(baselines)
                else NOT_RUN
            )
            scores.append(
                [BAG_OF_WORDS, average, *(str(baseline or NOT_RUN) for baseline in baselines)]
            )
        losses = [
            [NAMES[variant], *(f"{self.loss(column, variant):+.3f}" for column in columns)]
            for variant in self.variants
            if variant != WHOLE
        ]
        data = "; ".join(task.data for task in self.tasks)
        over = "test examples and seeds" if self.seeds > 1 else "test examples"
        return {
            "title": TITLE,
            "source": SOURCE,
            "summary": [
                *(f"{row[0].capitalize()}: {row[1]} lost on average." for row in losses),
                *self.unavailable,
                f"Intervals: 95 %, a bootstrap over {over}; of differences, in pairs.",
                ONE_RUN,
            ],
            "tables": [
                {
                    "caption": f"Scores on the test splits, means of {self.seeds} seeds. {data}.",
                    "columns": ["", "average", *heads],
                    "rows": scores,
                },
                {
                    "caption": "What is lost against the whole, on the same examples.",
                    "columns": ["", "average", *heads],
                    "rows": losses,
                },
                _published_table(),
            ],
            "plots": [self._plot(columns, ["average", *heads])],
        }

    def _plot(self, columns: Sequence[Bootstrap], heads: Sequence[str]) -> dict[str, Any]:
        """The variants side by side for each task; the average only of several."""
        first = 0 if len(self.tasks) > 1 else 1
        shown, count = columns[first:], len(self.variants)
        curves = []
        for row, variant in enumerate(self.variants):
            beside = [task + 0.12 * (row - (count - 1) / 2) for task in range(len(shown))]
            points = [column.intervals()[row] for column in shown]
            curves.append(series(NAMES[variant], beside, points))
        return {
            "title": TITLE,
            "x": "task (score)",
            "y": "score",
            "log_x": False,
            "series": curves,
            "levels": [],
            "places": list(heads[first:]),
        }


def _published_table() -> dict[str, Any]:
    rows: dict[str, dict[str, str]] = {}
    for reference in references(generation="gpt1", role="paper"):
        if reference.source.endswith("table 5"):
            column = f"{reference.task} / {reference.metric}"
            rows.setdefault(reference.model, {})[column] = reference.printed
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    return {
        "caption": "GPT-1's own table 5, in %.",
        "columns": ["", *columns],
        "rows": [
            [model, *(row.get(column, "–") for column in columns)] for model, row in rows.items()
        ],
    }
