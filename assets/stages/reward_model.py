"""reward_model: a number for every answer, learnt from rankings, InstructGPT's second step (Ouyang
et al. 2022, section 3.5).

Model, loss and folder are gpt_model/rlhf/reward_model.py's, the loop gpt_model/training. Here: how
a recipe's section becomes a run, what is measured on held-out rankings, what must hold. The
artifact:

    model/, reward_head.safetensors, reward.json     as `gpt_model.rlhf.reward_model.load` reads them
    shape.json, training.json                        its shape; what was done and what came of it, the same on every run
    held_out.jsonl                                   of each held-out ranking: pairs (better, worse), and what was given to its responses,
                                                     by the model and, where there is one, by the baseline
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import (
    SCRATCH,
    Artifact,
    Built,
    Check,
    Config,
    Inputs,
    Metrics,
    Progress,
    Stage,
    Verdict,
)
from assets.report import reward_model
from assets.stages import base_model, tuning_io
from assets.stages.rankings import (
    BAG_OF_WORDS,
    EVALUATIONS,
    HELD_OUT,
    NO_WORDS,
    ON_THE_WAY,
    counted,
    laid_out,
    measured,
)
from assets.stages.supervised import batches_of
from gpt_model.errors import UserError, about

if TYPE_CHECKING:
    from gpt_model.rlhf.chat_template import ChatTemplate
    from gpt_model.rlhf.pairwise import Scores
    from gpt_model.rlhf.reward_model import EncodedRanking, EncodedRankings, RewardModel

DEMONSTRATIONS = 512  # the mean reward of so many is 0
ZERO = 1e-3  # what their mean may be off, being added up anew


# --- run ---


def train_reward_model(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Train, measuring held-out rankings as it goes; resumes from output/.scratch. Every rank runs
    it, rank 0 writes.
    """
    from assets.execution.training import execution_of
    from gpt_model.rlhf.records import evenly
    from gpt_model.rlhf.reward_model import RewardModel, RewardObjective
    from gpt_model.training.loop import Hook, train
    from gpt_model.training.tuning import cosine_settings, evaluation_steps

    section = config["reward_model"]
    own = (
        tuning_io.model_of(inputs["start"]) / "tokenizer.json"
    ).is_file()  # an imported one may be without
    gpt, template = tuning_io.begin(
        inputs["start"],
        None if own else inputs["tokenizer"].path,
        section["dropout"],
        section["seed"],
    )
    laid = laid_out(inputs["comparisons"], template, gpt.config.context, progress)
    training, held_out = laid["training"].encoded, laid["held_out"].encoded
    with about("reward_model"):
        batches = batches_of(
            [one.tokens for one in training],
            section["batch"],
            section,
            progress,
            gpt.config.context,
        )
    execution = execution_of(progress, fixed_shapes=False)

    model, some = RewardModel(gpt, section["seed"]), evenly(held_out, ON_THE_WAY)
    objective = RewardObjective(training, batches, execution.device)
    hooks = [
        Hook(
            evaluation_steps(batches.steps, EVALUATIONS),
            _evaluation(some, execution.device, progress.rank),
        )
    ]
    outcome = train(
        model,
        objective,
        cosine_settings(section, batches.steps),
        execution,
        checkpoints=output / SCRATCH / "checkpoints",
        progress=progress,
        hooks=hooks,
    )
    if progress.rank:
        return {}
    model.eval()
    metrics = _shifted(model, template, inputs["demonstrations"], section["seed"], execution.device)
    scores: dict[str, Scores] = {"": scores_of(model, held_out, execution.device)}
    if (baseline := _baseline(laid)) is None:
        progress.log(f"A bag of words is not run: {NO_WORDS}.")
        metrics[f"{BAG_OF_WORDS}/not_run"] = 1.0
    else:
        scores[BAG_OF_WORDS] = baseline
    metrics |= measured(scores, held_out) | counted(laid)
    metrics |= {"loss": outcome.loss, "steps": outcome.steps, "seconds": outcome.seconds}
    metrics["comparisons_per_second"] = outcome.units_per_second
    _write(model, template, output, metrics)
    _write_held_out(output, laid["held_out"], scores)
    return metrics


def scores_of(
    model: RewardModel, compared: Sequence[EncodedRanking], device: str
) -> list[list[float]]:
    """The reward of each response of each ranking. Raises UserError where one is not a number."""
    from gpt_model.rlhf.reward_model import check_finite, rewards_of

    names = [(one.source, one.id, place) for one in compared for place in range(len(one.texts))]
    found = rewards_of(model, [text for one in compared for text in one.texts], device)
    check_finite(
        found,
        lambda number: "{}, {}, response {}".format(*names[number][:2], names[number][2] + 1),
        "held-out responses",
    )
    flat = iter(found)
    return [[next(flat) for _ in one.texts] for one in compared]


def _evaluation(
    held_out: Sequence[EncodedRanking], device: str, rank: int
) -> Callable[[int, Any], Mapping[str, float]]:
    """Accuracy and log loss on some held-out rankings, as a hook of the loop."""
    from gpt_model.rlhf import pairwise

    def evaluate(step: int, model: RewardModel) -> Mapping[str, float]:
        if rank or not held_out:
            return {}
        scores, pairs = scores_of(model, held_out, device), [one.pairs for one in held_out]
        (accuracy,), _ = pairwise.accuracies([scores], pairs)
        return {
            "held_out/accuracy": accuracy.value,
            "held_out/log_loss": pairwise.log_loss(scores, pairs),
        }

    return evaluate


def _shifted(
    model: RewardModel, template: ChatTemplate, demonstrations: Artifact, seed: int, device: str
) -> Metrics:
    """Have the training demonstrations, or a seeded subset, a mean reward of 0 (section 3.5)."""
    from gpt_model.rlhf.records import read_demonstrations
    from gpt_model.rlhf.reward_model import check_finite, encode_text, rewards_of

    given = read_demonstrations(demonstrations.path, "training")
    chosen = random.Random(f"{seed} demonstrations").sample(given, min(DEMONSTRATIONS, len(given)))
    laid = [
        (one, encode_text(template, one.turns[:-1], one.turns[-1].text, model.gpt.config.context))
        for one in chosen
    ]
    fitting = [(one, text) for one, text in laid if text is not None]
    if not fitting:
        raise UserError(
            f"None of {len(chosen)} demonstrations fits the context of {model.gpt.config.context} tokens, and their mean is to be 0.",
            field="demonstrations",
        )
    texts = [text for _, text in fitting]
    rewards = rewards_of(model, texts, device)
    check_finite(
        rewards,
        lambda number: f"{fitting[number][0].source}, {fitting[number][0].id}",
        "demonstrations",
    )
    model.shift = sum(rewards) / len(rewards)
    again = rewards_of(model, texts, device)
    return {
        "demonstrations": len(texts),
        "demonstrations_mean": sum(again) / len(again),
        "shift": model.shift,
    }


def _baseline(laid: Mapping[str, EncodedRankings]) -> Scores | None:
    """What a bag of words, trained on the same rankings, gives the held-out responses; None where
    they have no words.
    """
    from gpt_model.rlhf.bag_of_words import BagOfWords

    try:
        return BagOfWords.fit(laid["training"].rankings).scores(laid["held_out"].rankings)
    except UserError:
        return None


def _write(model: RewardModel, template: ChatTemplate, output: Path, metrics: Metrics) -> None:
    from gpt_model.rlhf import reward_model

    model.to("cpu")
    model.gpt.config = model.gpt.config.model_copy(update={"dropout": 0.0})
    reward_model.save(model, template.tokenizer, output)
    base_model.write_shape(model.gpt.config, output)
    left_out = ("seconds", "comparisons_per_second")  # which differ from run to run
    facts = {name: round(value, 6) for name, value in metrics.items() if name not in left_out}
    (output / tuning_io.FACTS).write_text(
        json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def _write_held_out(output: Path, held_out: EncodedRankings, scores: Mapping[str, Scores]) -> None:
    """Ids and numbers, no text: who may not be shown is not copied."""
    rows = [
        {
            "source": one.source,
            "id": one.id,
            "pairs": one.pairs,
            "ratings": [response.rating for response in ranking.responses],
            **{name or "rewards": given[place] for name, given in scores.items()},
        }
        for place, (ranking, one) in enumerate(
            zip(held_out.rankings, held_out.encoded, strict=True)
        )
    ]
    (output / HELD_OUT).write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


# --- checks ---


def accuracy_above_half(built: Built) -> Verdict:
    m = built.metrics
    if "accuracy" not in m:
        return Verdict(
            False,
            "No held-out ranking has a better and a worse response: give more comparisons, or a larger held_out.",
        )
    said = f"{m['accuracy']:.3f} [{m['accuracy_low']:.3f}, {m['accuracy_high']:.3f}] of {int(m['comparisons'])} held-out comparisons are right"
    if f"{BAG_OF_WORDS}/accuracy" in m:
        low, high = m[f"{BAG_OF_WORDS}/accuracy_low"], m[f"{BAG_OF_WORDS}/accuracy_high"]
        said += f"; a bag of words has {m[f'{BAG_OF_WORDS}/accuracy']:.3f} [{low:.3f}, {high:.3f}]"
    if f"{BAG_OF_WORDS}/not_run" in m:
        said += f"; a bag of words is not run: {NO_WORDS}"
    return Verdict(
        m["accuracy_low"] > 0.5,
        said + ".",
        {"accuracy": m["accuracy"], "accuracy_low": m["accuracy_low"]},
    )


def _demonstrations_mean_zero(built: Built) -> Verdict:
    mean, count = built.metrics["demonstrations_mean"], int(built.metrics["demonstrations"])
    return Verdict(
        abs(mean) < ZERO,
        f"The mean reward of {count} demonstrations is {mean:.2e}.",
        {"mean": mean},
    )


def _model_loads(built: Built) -> Verdict:
    from gpt_model.rlhf import reward_model
    from gpt_model.tokenizer import Tokenizer

    model, tokenizer = reward_model.load(built.output), Tokenizer.load(built.output / "model")
    numbers = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    fits = model.gpt.config.vocab_size == tokenizer.vocab_size and bool(tokenizer.markers)
    told = f"It loads with {model.gpt.config.parameters():,} parameters and a head"
    told += "" if numbers else ", some of which are not numbers"
    return Verdict(numbers and fits, told + ("." if fits else "; its tokenizer does not fit it."))


REWARD_MODEL = Stage(
    name="reward_model",
    version="2",
    run=train_reward_model,
    description="A model that gives every answer a number, learnt from rankings, beside a bag of words learnt from the same.",
    kinds=("deepspeed", "pytorch"),
    checks=(
        tuning_io.LOSS_IS_FINITE,
        Check(
            "demonstrations_mean_zero",
            True,
            "The mean reward of the demonstrations is 0.",
            _demonstrations_mean_zero,
        ),
        Check(
            "model_loads",
            True,
            "It loads, its weights are numbers, and its tokenizer has the roles' markers.",
            _model_loads,
        ),
        Check(
            "accuracy_above_half",
            False,
            "The interval of held-out accuracy lies above a half.",
            accuracy_above_half,
        ),
    ),
    show=reward_model.show,
    ranks="profile",
    pool="training",
)
