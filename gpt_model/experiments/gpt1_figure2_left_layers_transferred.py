"""GPT-1, figure 2 (left): a task's score against how many of the pre-trained layers are
transferred, from none to all (section 5).

At 0 the embeddings alone are transferred, as in the released code (train.py, `n_transfer`); a model
that keeps nothing is a level beside the curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gpt_model.experiments.document import series
from gpt_model.experiments.finetuning_variants import BAG_OF_WORDS, Start, TaskScores
from gpt_model.finetuning.entry import SCORE_NAMES
from gpt_model.finetuning.objective import FineTuning
from gpt_model.finetuning.start import start_decoder
from gpt_model.published import references
from gpt_model.statistics import ConfidenceInterval, slope_weights
from gpt_model.training.engine import Execution
from gpt_model.transformer import Decoder

SOURCE = "GPT-1, figure 2 (left)"
TITLE = "What each transferred layer is worth"
NOTHING = -1  # layers: not even the embeddings


def transferred(layers: int, of: int) -> Callable[[str], bool]:
    """Which parameters are transferred, by name: the embeddings and the lower `layers` blocks `of`
    a GPT's. All above are drawn.

    0 keeps the embeddings of tokens and positions alone, -1 keeps nothing. The final norm, where
    there is one, is above the last block and kept with it.
    """
    prefixes = ["wte.", "wpe."] if layers >= 0 else []
    prefixes += [f"h.{layer}." for layer in range(layers)]
    prefixes += ["ln_f."] if layers == of else []
    return lambda name: name.startswith(tuple(prefixes))


def variants(
    pretrained: Path, layers: Sequence[int], of: int, execution: Execution
) -> dict[str, Start]:
    """What each point of the curve starts from, that of nothing transferred first. `pretrained`:
    the folder of a GPT `of` so many layers.
    """

    def start(count: int, settings: FineTuning) -> tuple[Decoder, FineTuning]:
        return start_decoder(pretrained, settings, execution, transferred(count, of)), settings

    return {name_of(count): partial(start, count) for count in (NOTHING, *layers)}


def name_of(layers: int) -> str:
    return "nothing" if layers < 0 else "embeddings" if layers == 0 else f"embeddings and {layers}"


@dataclass(frozen=True)
class LayersTransferred:
    """The curve: a point of `scores` for nothing, then one for each of `layers`."""

    scores: TaskScores
    layers: Sequence[int]
    seeds: int

    @property
    def slope(self) -> ConfidenceInterval:
        """The score by layers, least squares."""
        return self.scores.bootstrap.interval([0.0, *slope_weights(self.layers)])

    @property
    def gain(self) -> ConfidenceInterval:
        """The score with the most layers minus that with the fewest."""
        weights = [0.0, -1.0, *[0.0] * (len(self.layers) - 2), 1.0]
        return self.scores.bootstrap.interval(weights)

    def metrics(self) -> dict[str, float]:
        nothing, *curve = self.scores.bootstrap.intervals()
        points = zip(self.layers, curve, strict=True)
        return {
            **{f"{layers}/{self.scores.metric}": point.value for layers, point in points},
            "nothing": nothing.value,
            **({"bag_of_words": baseline.value} if (baseline := self.scores.bag_of_words) else {}),
            **self.slope.as_metrics("slope"),
            **self.gain.as_metrics("gain"),
            "test_examples": float(self.scores.test_examples),
        }

    def document(self) -> dict[str, Any]:
        scores, layers = self.scores, list(self.layers)
        nothing, *curve = scores.bootstrap.intervals()
        score = SCORE_NAMES[scores.metric]
        over = "seeds" if self.seeds > 1 else "not over seeds, as there is one"
        rows = [
            [name, str(point), ", ".join(f"{value:.3f}" for value in scores.by_seed[name])]
            for name, point in zip(scores.by_seed, (nothing, *curve), strict=True)
        ]
        levels = [{"label": "nothing transferred", "y": nothing.value}]
        if baseline := scores.bag_of_words:
            rows.append([BAG_OF_WORDS, str(baseline), f"{baseline.value:.3f}"])
            levels.append({"label": BAG_OF_WORDS, "y": baseline.value})
        return {
            "title": TITLE,
            "source": SOURCE,
            "summary": [
                f"{scores.task}: each transferred layer is worth {self.slope:+.4f} in {score} "
                f"(slope over {layers[0]} to {layers[-1]} layers); all of them are worth "
                f"{self.gain:+.4f} over {name_of(layers[0])} alone.",
                *_published_sentences(),
                f"Intervals: 95 %, a bootstrap over test examples and {over}.",
            ],
            "tables": [
                {
                    "caption": f"{score.capitalize()} on the test split by what is transferred; "
                    f"{self.seeds} seeds. {scores.data}.",
                    "columns": ["transferred", score, "each seed"],
                    "rows": rows,
                }
            ],
            "plots": [
                {
                    "title": scores.task,
                    "x": "layers transferred, beside the embeddings",
                    "y": score,
                    "log_x": False,
                    "series": [series(scores.task, layers, curve)],
                    "levels": levels,
                }
            ],
        }


def _published_sentences() -> list[str]:
    return [
        f"{number.source}: {number.task}, {number.model}: {number.printed} {number.unit}"
        f"{f', {number.note}' if number.note else ''}."
        for number in references(generation="gpt1", role="paper")
        if "transferred" in number.task or "transferring" in number.task
    ]
