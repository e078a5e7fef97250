"""dpo: the same comparisons without a reward model (Rafailov et al. 2023), from policy_init, which
is the reference too.

The loss is gpt_model/rlhf/dpo.py's, the loop gpt_model/training. The artifact is as `tuned.py`
says, and held_out.jsonl: of each held-out ranking what its responses' implicit rewards are, β times
what they have gained in log-probability.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import SCRATCH, Built, Check, Config, Inputs, Metrics, Progress, Stage
from assets.report.reward_model import accuracies
from assets.stages import tuning_io
from assets.stages.rankings import EVALUATIONS, HELD_OUT, ON_THE_WAY, counted, laid_out, measured
from assets.stages.reward_model import accuracy_above_half
from assets.stages.supervised import batches_of
from gpt_model.errors import UserError, about

if TYPE_CHECKING:
    from gpt_model.rlhf.dpo import LogProbabilities
    from gpt_model.rlhf.reward_model import EncodedRanking
    from gpt_model.transformer import GPT


# --- run ---


def prefer(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Train, measuring held-out rankings as it goes; resumes from output/.scratch. Every rank runs
    it, rank 0 writes.
    """
    from assets.execution.training import execution_of
    from gpt_model.rlhf import dpo
    from gpt_model.rlhf.records import evenly
    from gpt_model.training.engine import start
    from gpt_model.training.loop import Hook, train
    from gpt_model.training.tuning import cosine_settings, evaluation_steps

    section, scratch = config["dpo"], output / SCRATCH
    gpt, template = tuning_io.begin(
        inputs["policy_init"], None, section["dropout"], section["seed"]
    )
    laid = laid_out(inputs["comparisons"], template, gpt.config.context, progress)
    training, held_out = laid["training"].encoded, laid["held_out"].encoded
    prompts = dpo.prompts_per_step(section["batch"], training)
    with about("dpo"):
        batches = batches_of(
            [one.tokens for one in training], prompts, section, progress, gpt.config.context
        )
    execution = execution_of(progress, fixed_shapes=False)
    start(execution)
    before = dpo.reference_log_probabilities(
        gpt, [*training, *held_out], scratch / "reference", execution, section["precision"]
    )
    then = before[len(training) :]

    objective = dpo.DPOObjective(
        training, before[: len(training)], section["beta"], batches, execution.device
    )
    some = evenly(range(len(held_out)), ON_THE_WAY)
    evaluate = _evaluation(
        [held_out[place] for place in some], [then[place] for place in some], section, progress.rank
    )
    outcome = train(
        gpt,
        objective,
        cosine_settings(section, batches.steps),
        execution,
        checkpoints=scratch / "checkpoints",
        progress=progress,
        hooks=[Hook(evaluation_steps(batches.steps, EVALUATIONS), evaluate)],
    )
    if progress.rank:
        return {}
    gpt.eval()
    now = dpo.ranking_log_probabilities(gpt, held_out, section["precision"])
    rewards = dpo.implicit_rewards(now, then, section["beta"])
    _check_numbers(rewards, held_out)
    metrics = measured({"": rewards}, held_out) | _moved(now, then, held_out) | counted(laid)
    metrics |= {
        "loss": outcome.loss,
        "steps": outcome.steps,
        "prompts_a_step": len(training) / batches.steps_per_epoch,
    }
    facts = {name: round(value, 6) for name, value in metrics.items()}
    gpt.to("cpu")
    tuning_io.write(output, gpt, template.tokenizer, facts)
    rows = [
        {"source": one.source, "id": one.id, "pairs": one.pairs, "rewards": own}
        for one, own in zip(held_out, rewards, strict=True)
    ]
    (output / HELD_OUT).write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return {**metrics, "seconds": outcome.seconds, "pairs_per_second": outcome.units_per_second}


def _check_numbers(rewards: LogProbabilities, compared: Sequence[EncodedRanking]) -> None:
    """Raises UserError where training has left a model whose probabilities are no numbers."""
    bad = [
        one for one, own in zip(compared, rewards, strict=True) if not all(map(math.isfinite, own))
    ]
    if bad:
        raise UserError(
            f"After training the log-probabilities of {len(bad)} of {len(compared)} held-out rankings are not numbers, the first of "
            f"{bad[0].source}, {bad[0].id}. Lower dpo.learning_rate, and build again.",
            field="dpo.learning_rate",
        )


def _evaluation(
    held_out: Sequence[EncodedRanking],
    before: LogProbabilities,
    section: Mapping[str, Any],
    rank: int,
) -> Callable[[int, Any], Mapping[str, float]]:
    """Accuracy, log loss and margin of the implicit reward on some held-out rankings, as a hook of
    the loop.
    """
    from gpt_model.rlhf import dpo, pairwise

    def evaluate(step: int, model: GPT) -> Mapping[str, float]:
        if rank or not held_out:
            return {}
        rewards = dpo.implicit_rewards(
            dpo.ranking_log_probabilities(model, held_out, section["precision"]),
            before,
            section["beta"],
        )
        pairs = [one.pairs for one in held_out]
        (accuracy,), _ = pairwise.accuracies([rewards], pairs)
        gaps = [gap for one in pairwise.gaps(rewards, pairs) for gap in one]
        return {
            "held_out/accuracy": accuracy.value,
            "held_out/log_loss": pairwise.log_loss(rewards, pairs),
            "held_out/margin": float(sum(gaps) / len(gaps)),
        }

    return evaluate


def _moved(
    now: LogProbabilities, then: LogProbabilities, held_out: Sequence[EncodedRanking]
) -> Metrics:
    """Nats by which better and worse responses have become likelier, a mean over comparisons. Only
    the gap is trained: both may fall.
    """
    if not held_out:
        return {}
    better, worse = [], []
    for one, own, its in zip(held_out, now, then, strict=True):
        better += [own[place] - its[place] for place, _ in one.pairs]
        worse += [own[place] - its[place] for _, place in one.pairs]
    return {
        "nats_gained/better": sum(better) / len(better),
        "nats_gained/worse": sum(worse) / len(worse),
    }


# --- what is shown ---


def show(built: Built, folder: Path) -> None:
    """figures.md and training.png."""
    m, series = built.metrics, built.series
    text = accuracies(m, {"": "implicit reward"})
    if "nats_gained/better" in m:
        text += (
            f"\nOn held-out comparisons the better response has gained {m['nats_gained/better']:+.2f} nats and the worse one "
            f"{m['nats_gained/worse']:+.2f}: DPO trains the difference, and both may fall.\n"
        )
    (folder / "figures.md").write_text(text, encoding="utf-8")
    panels = {
        "loss of a step": ("loss",),
        "accuracy of the implicit reward": ("training_accuracy", "held_out/accuracy"),
        "implicit reward, training": ("better_reward", "worse_reward"),
        "better minus worse": ("margin", "held_out/margin"),
    }
    tuning_io.curves(
        [
            (
                title,
                "optimizer steps",
                [(name, series.get(name, ())) for name in names if name in series],
            )
            for title, names in panels.items()
        ],
        folder / "training.png",
    )


DPO = Stage(
    name="dpo",
    version="2",
    run=prefer,
    description="policy_init tuned on comparisons directly (DPO), for comparison with the reward model and PPO.",
    kinds=("deepspeed", "pytorch"),
    checks=(
        tuning_io.LOSS_IS_FINITE,
        tuning_io.MODEL_LOADS,
        Check(
            "accuracy_above_half",
            False,
            "The interval of the implicit reward's held-out accuracy lies above a half.",
            accuracy_above_half,
        ),
    ),
    show=show,
    ranks="profile",
    pool="training",
    model=True,
)
