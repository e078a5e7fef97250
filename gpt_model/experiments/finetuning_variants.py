"""One task fine-tuned in several ways and from several seeds: what GPT-1's table 5 and figure 2
(left) have in common.

What a seed decides (fresh weights, specials, head, order, dropout) differs between the models of a
variant. Their data is the same, and so is every setting that the variant does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpt_model.finetuning.entry import Metric
from gpt_model.finetuning.input_forms import EncodedExample
from gpt_model.finetuning.metrics import Scoring
from gpt_model.finetuning.objective import FineTuned, FineTuning
from gpt_model.statistics import Bootstrap, ConfidenceInterval, cluster_bootstrap
from gpt_model.transformer import Decoder

# The decoder and the settings that a model starts from, given the recipe's settings with a seed.
Start = Callable[[FineTuning], tuple[Decoder, FineTuning]]
# Fine-tunes one decoder: its name ("sentiment/lstm/2"), its number from 0, what it starts from.
FineTune = Callable[[str, int, Decoder, FineTuning], FineTuned]


BAG_OF_WORDS = "a bag of words of the same rows"  # as the pages have it


@dataclass(frozen=True)
class TaskScores:
    """The test scores of one task, a point of `bootstrap` a variant."""

    task: str
    metric: Metric
    bootstrap: Bootstrap
    by_seed: Mapping[str, Sequence[float]]  # of each variant
    data: str  # how many examples it was trained and tested on, in words
    test_examples: int
    bag_of_words: ConfidenceInterval | None  # on the same rows; None where they have no words


def score_variants(
    task: str,
    variants: Mapping[str, Start],
    settings: FineTuning,
    seeds: int,
    test: Sequence[EncodedExample],
    scoring: Scoring,
    fine_tune: FineTune,
    *,
    data: str,
    bag_of_words: Sequence[Sequence[float]] | None,
    bootstrap_seed: int,
    log: Callable[[str], None],
) -> TaskScores:
    """Fine-tune `seeds` models of each variant and score their answers to `test`, and those of the
    bag of words [test, classes].
    """
    parts, by_seed, number = [], {}, 0
    for variant, start in variants.items():
        models = []
        for seed in range(seeds):
            decoder, changed = start(replace(settings, seed=settings.seed + seed))
            result = fine_tune(f"{task}/{variant}/{seed + 1}", number, decoder, changed)
            models.append(scoring.parts(test, result.test_logits))
            number += 1
        parts.append(models)
        by_seed[variant] = [scoring.of_parts(model) for model in models]
        values = ", ".join(f"{value:.3f}" for value in by_seed[variant])
        log(f"{task}, {variant}: {scoring.metric} {values}")
    groups = [example.group for example in test]
    bootstrap = cluster_bootstrap(parts, scoring.statistic, groups, bootstrap_seed)
    baseline = None
    if bag_of_words is not None:
        answers = [[scoring.parts(test, bag_of_words)]]
        [baseline] = cluster_bootstrap(
            answers, scoring.statistic, groups, bootstrap_seed
        ).intervals()
    return TaskScores(task, scoring.metric, bootstrap, by_seed, data, len(test), baseline)
