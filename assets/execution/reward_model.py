"""Runs the stage `reward_model`: train on rankings, measure held-out ones, and shift the rewards so
that demonstrations have a mean of 0. Model and loss are `gpt_model.rlhf.reward_model`'s.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from assets.contract import Artifact, Built, Config, Inputs, Metrics, Progress, Verdict
from assets.execution import rankings, tuning
from assets.execution.tuning import joined
from assets.stages.alignment import BAG_OF_WORDS, NO_WORDS
from gpt_model import convert
from gpt_model.bag_of_words import BagOfWords
from gpt_model.errors import UserError
from gpt_model.rlhf import reward_model
from gpt_model.rlhf.chat_template import ChatTemplate
from gpt_model.rlhf.ranking_agreement import Scores
from gpt_model.rlhf.records import evenly, read_demonstrations
from gpt_model.rlhf.reward_model import (
    EncodedRanking,
    EncodedRankings,
    RewardModel,
    RewardObjective,
    check_finite,
    encode_text,
    rewards_of,
)
from gpt_model.training.engine import Execution
from gpt_model.training.loop import Hook
from gpt_model.training.sharded import reading
from gpt_model.training.tuning import cosine_settings, evaluation_steps

DEMONSTRATIONS = 512  # whose mean reward is 0
ZERO = 1e-3  # how far their mean may be off when it is computed again
TIMINGS = ("seconds", "comparisons_per_second")  # differ from run to run


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Train, measuring held-out rankings on the way; resumes from output/.scratch. Every rank runs
    it, rank 0 writes.
    """
    section, start = config["reward_model"], inputs["start"]
    # A model tuned here has its tokenizer beside it; an imported one may have none.
    has_tokenizer = (start.path / "model" / "tokenizer.json").is_file()
    tokenizer, execution = None if has_tokenizer else inputs["tokenizer"], joined(progress)
    gpt, template = tuning.start(start, tokenizer, section, execution)
    context = gpt.config.context
    splits = rankings.encode(inputs["comparisons"], template, context, execution, progress)
    training, held_out = splits["training"].encoded, splits["held_out"].encoded
    lengths = [ranking.tokens for ranking in training]
    batches = tuning.epoch_batches(lengths, section["batch"], section, progress, context)
    model = RewardModel(gpt, section["seed"])
    objective = RewardObjective(training, batches)
    evaluate = _evaluation(evenly(held_out, rankings.EVALUATED), execution)
    metrics: Metrics = {}
    scores: dict[str, Scores] = {}

    def finish(trained: RewardModel) -> None:
        seed = section["seed"]
        metrics.update(_shift(trained, template, inputs["demonstrations"], seed, execution))
        scores[""] = score_rankings(trained, held_out, execution)
        with reading(trained):
            if execution.rank == 0:
                trained.gpt.config = trained.gpt.config.model_copy(update={"dropout": 0.0})
                reward_model.save(trained, template.tokenizer, output)

    steps = evaluation_steps(batches.steps, rankings.EVALUATIONS)
    hooks = [Hook(steps, evaluate, "by part")]
    settings = cosine_settings(section, batches.steps)
    outcome = tuning.tune(
        model, objective, settings, execution, output, progress, hooks, finish=finish
    )
    if progress.rank:
        return {}
    if (baseline := _baseline(splits)) is None:
        progress.log(f"A bag of words is not run: {NO_WORDS}.")
        metrics[f"{BAG_OF_WORDS}/not_run"] = 1.0
    else:
        scores[BAG_OF_WORDS] = baseline
    metrics |= rankings.held_out_metrics(scores, held_out) | rankings.counts(splits)
    metrics |= {"loss": outcome.loss, "steps": outcome.steps, "seconds": outcome.seconds}
    metrics["comparisons_per_second"] = outcome.units_per_second
    facts = {name: round(value, 6) for name, value in metrics.items() if name not in TIMINGS}
    tuning.write_facts(output, model.gpt.config, facts)
    ratings = [
        [response.rating for response in ranking.responses]
        for ranking in splits["held_out"].rankings
    ]
    columns = {"ratings": ratings} | {name or "rewards": given for name, given in scores.items()}
    rankings.write_held_out(output, held_out, columns)
    return metrics


def score_rankings(
    model: RewardModel, encoded: Sequence[EncodedRanking], execution: Execution
) -> list[list[float]]:
    """The reward of each response of each ranking. Raises UserError where one is not a number.
    Collective.
    """
    names = [
        f"{ranking.source}, {ranking.id}, response {number}"
        for ranking in encoded
        for number in range(1, len(ranking.texts) + 1)
    ]
    rewards = rewards_of(model, [text for ranking in encoded for text in ranking.texts], execution)
    check_finite(rewards, names.__getitem__, "held-out responses")
    flat = iter(rewards)
    return [[next(flat) for _ in ranking.texts] for ranking in encoded]


def _evaluation(
    held_out: Sequence[EncodedRanking], execution: Execution
) -> Callable[[int, Any], Mapping[str, float]]:
    """A hook of the loop."""

    def evaluate(step: int, model: Any) -> Mapping[str, float]:
        if not held_out:
            return {}
        return rankings.evaluation_metrics(score_rankings(model, held_out, execution), held_out)

    return evaluate


def _shift(
    model: RewardModel,
    template: ChatTemplate,
    demonstrations: Artifact,
    seed: int,
    execution: Execution,
) -> Metrics:
    """Give the training demonstrations, or a seeded subset, a mean reward of 0 (section 3.5).
    Collective.
    """
    available = read_demonstrations(demonstrations.path, "training")
    draw = random.Random(f"{seed} demonstrations")
    subset = draw.sample(available, min(DEMONSTRATIONS, len(available)))
    context = model.gpt.config.context
    texts, names = [], []
    for demonstration in subset:
        *prompt, answer = demonstration.turns
        if (text := encode_text(template, tuple(prompt), answer.text, context)) is not None:
            texts.append(text)
            names.append(f"{demonstration.source}, {demonstration.id}")
    if not texts:
        raise UserError(
            f"None of {len(subset)} demonstrations fits the context of {context} tokens, and their "
            "mean is to be 0.",
            field="demonstrations",
        )
    rewards = rewards_of(model, texts, execution)
    check_finite(rewards, names.__getitem__, "demonstrations")
    model.shift = sum(rewards) / len(rewards)
    shifted = rewards_of(model, texts, execution)
    return {
        "demonstrations": len(texts),
        "demonstrations_mean": sum(shifted) / len(shifted),
        "shift": model.shift,
    }


def _baseline(splits: Mapping[str, EncodedRankings]) -> Scores | None:
    """The scores of a bag of words, trained on the same rankings, of the held-out responses; None
    where they have no words.
    """
    try:
        judge = BagOfWords.fit(splits["training"].rankings)
    except UserError:
        return None
    return judge.scores(splits["held_out"].rankings)


def demonstrations_mean_zero(built: Built) -> Verdict:
    mean, count = built.metrics["demonstrations_mean"], int(built.metrics["demonstrations"])
    summary = f"The mean reward of {count} demonstrations is {mean:.2e}."
    return Verdict(abs(mean) < ZERO, summary, {"mean": mean})


def model_loads(built: Built) -> Verdict:
    folder = built.output / "model"
    loads = f"It loads with {convert.shape(folder).parameters():,} parameters and a head"
    head = load_file(built.output / reward_model.HEAD)
    return tuning.usable(folder, head.values(), loads, {})
