"""Runs the stage `dpo`. The loss is `gpt_model.rlhf.dpo`'s."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.contract import SCRATCH, Config, Inputs, Metrics, Progress
from assets.execution import rankings, tuning
from assets.execution.tuning import joined
from gpt_model.errors import UserError
from gpt_model.rlhf import dpo, ranking_agreement
from gpt_model.rlhf.dpo import LogProbabilities
from gpt_model.rlhf.records import evenly
from gpt_model.rlhf.reward_model import EncodedRanking
from gpt_model.training.engine import Execution, start
from gpt_model.training.loop import Hook
from gpt_model.training.tuning import cosine_settings, evaluation_steps
from gpt_model.transformer import GPT


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Train, measuring held-out rankings on the way; resumes from output/.scratch. Every rank runs
    it, rank 0 writes.
    """
    section, precision = config["dpo"], config["dpo"]["precision"]
    execution = joined(progress)
    gpt, template = tuning.start(inputs["policy_init"], None, section, execution)
    context = gpt.config.context
    splits = rankings.encode(inputs["comparisons"], template, context, execution, progress)
    training, held_out = splits["training"].encoded, splits["held_out"].encoded
    prompts = dpo.prompts_per_step(section["batch"], training)
    lengths = [ranking.tokens for ranking in training]
    batches = tuning.epoch_batches(lengths, prompts, section, progress, context)
    start(execution)
    reference = dpo.reference_log_probabilities(
        gpt, [*training, *held_out], output / SCRATCH / "reference", execution, precision
    )
    reference, held_out_reference = reference[: len(training)], reference[len(training) :]
    objective = dpo.DPOObjective(training, reference, section["beta"], batches)
    evaluated = evenly(range(len(held_out)), rankings.EVALUATED)
    evaluate = _evaluation(
        [held_out[index] for index in evaluated],
        [held_out_reference[index] for index in evaluated],
        section,
        execution,
    )
    policy: LogProbabilities = []

    def finish(model: GPT) -> None:
        policy.extend(dpo.ranking_log_probabilities(model, held_out, precision, execution))
        tuning.save_model(output, model, template.tokenizer, execution.rank)

    steps = evaluation_steps(batches.steps, rankings.EVALUATIONS)
    hooks = [Hook(steps, evaluate, "by part")]
    settings = cosine_settings(section, batches.steps)
    outcome = tuning.tune(
        gpt, objective, settings, execution, output, progress, hooks, finish=finish
    )
    if progress.rank:
        return {}
    rewards = dpo.implicit_rewards(policy, held_out_reference, section["beta"])
    check_finite(rewards, held_out)
    metrics = rankings.held_out_metrics({"": rewards}, held_out)
    metrics |= _gained(policy, held_out_reference, held_out) | rankings.counts(splits)
    metrics |= {
        "loss": outcome.loss,
        "steps": outcome.steps,
        "prompts_a_step": len(training) / batches.steps_per_epoch,
    }
    facts = {name: round(value, 6) for name, value in metrics.items()}
    tuning.write_facts(output, gpt.config, facts)
    rankings.write_held_out(output, held_out, {"rewards": rewards})
    return {**metrics, "seconds": outcome.seconds, "pairs_per_second": outcome.units_per_second}


def check_finite(rewards: LogProbabilities, encoded: Sequence[EncodedRanking]) -> None:
    """Raises UserError where the trained model's probabilities are not numbers."""
    broken = [
        ranking
        for ranking, responses in zip(encoded, rewards, strict=True)
        if not all(map(math.isfinite, responses))
    ]
    if broken:
        raise UserError(
            f"After training the log-probabilities of {len(broken)} of {len(encoded)} held-out "
            f"rankings are not numbers, the first of {broken[0].source}, {broken[0].id}. Lower "
            "dpo.learning_rate, and build again.",
            field="dpo.learning_rate",
        )


def _evaluation(
    held_out: Sequence[EncodedRanking],
    reference: LogProbabilities,
    section: Mapping[str, Any],
    execution: Execution,
) -> Callable[[int, Any], Mapping[str, float]]:
    """A hook of the loop, collective: accuracy, log loss and margin of the implicit reward."""

    def evaluate(step: int, model: Any) -> Mapping[str, float]:
        if not held_out:
            return {}
        policy = dpo.ranking_log_probabilities(model, held_out, section["precision"], execution)
        rewards = dpo.implicit_rewards(policy, reference, section["beta"])
        by_ranking = ranking_agreement.gaps(rewards, [ranking.pairs for ranking in held_out])
        gaps = [gap for ranking in by_ranking for gap in ranking]
        margin = {"held_out/margin": float(sum(gaps) / len(gaps))}
        return rankings.evaluation_metrics(rewards, held_out) | margin

    return evaluate


def _gained(
    policy: LogProbabilities, reference: LogProbabilities, held_out: Sequence[EncodedRanking]
) -> Metrics:
    """Mean nats that better and worse responses have gained, over comparisons. Training sees their
    difference alone: both may fall.
    """
    if not held_out:
        return {}
    better, worse = [], []
    for ranking, after, before in zip(held_out, policy, reference, strict=True):
        better += [after[index] - before[index] for index, _ in ranking.pairs]
        worse += [after[index] - before[index] for _, index in ranking.pairs]
    return {
        "nats_gained/better": sum(better) / len(better),
        "nats_gained/worse": sum(worse) / len(worse),
    }
