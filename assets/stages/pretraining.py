"""Stage `pretrained`: a GPT trained from random weights on the corpus's tokens. The recipe says
what is trained, the profile how fast.

Here: the stage's description, and how its section divides into batches, which `gpt-lineage plan`
needs too. The network is `gpt_model.transformer`'s, the loop `gpt_model.training`'s. The artifact:

    model/          a folder that `transformers` loads: config.json, generation_config.json,
                    model.safetensors and the tokenizer's files
    training.json   what was done and its results, as far as equal on every run: no seconds
    snapshots/      where the recipe asks for them: weights on the way, on a log schedule
                    (gpt_model/training/snapshots.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assets.contract import Check, Stage, deferred
from assets.recipe.profile import Profile
from assets.recipe.recipe import whole_sequences
from gpt_model.errors import UserError
from gpt_model.training.batching import MicroBatchSize
from gpt_model.training.schedules import BatchSchedule

EXECUTION = "assets.execution.pretraining"
SAMPLE = "held_out_sample"  # metrics of the beginning of the held-out text, measured on the way


def batches_of(section: Mapping[str, Any]) -> BatchSchedule:
    """Tokens of each step."""
    if ramp := section.get("batch_ramp"):
        return BatchSchedule(section["batch_tokens"], ramp["from_tokens"], ramp["over_tokens"])
    return BatchSchedule(section["batch_tokens"])


def batch_sizes(section: Mapping[str, Any]) -> dict[str, int]:
    """Field -> tokens of the batches that every other batch of the section is a multiple of: the
    full one, and the first of a ramp.
    """
    sizes = {"batch_tokens": section["batch_tokens"]}
    if ramp := section.get("batch_ramp"):
        sizes["batch_ramp.from_tokens"] = ramp["from_tokens"]
    return sizes


def check_whole(section: Mapping[str, Any], context: int) -> None:
    """Raises UserError where a batch is not whole sequences: the recipe does not give the context
    of an imported model, so it cannot be validated there.
    """
    for field, tokens in batch_sizes(section).items():
        try:
            whole_sequences(tokens, context, field)
        except ValueError as error:
            raise UserError(f"{error}.", field=f"pretraining.{field}") from None


def check_shared_out(
    section: Mapping[str, Any], context: int, profile: str, processes: int
) -> None:
    """Raises UserError where a profile has more processes than the full batch has sequences: the
    batch is the recipe's, not the profile's, and some would never have one.
    """
    sequences = section["batch_tokens"] // context
    if sequences < processes:
        raise UserError(
            f"batch_tokens {section['batch_tokens']} is {sequences} "
            f"sequence{'s' if sequences != 1 else ''} of {context} tokens, "
            f"fewer than the processes of the profile {profile!r}, {processes}: set processes to "
            f"{sequences} at most in profiles/{profile}.yaml, or enlarge the recipe's batch.",
            field="pretraining.batch_tokens",
        )


def idle_share(batches: BatchSchedule, steps: int, context: int, processes: int) -> float:
    """The share of the processes' time in which they have no sequence: a batch that does not come
    out even, or one of a ramp with fewer sequences than there are processes.
    """
    slots = 0
    for tokens, count in batches.stretches(steps):
        slots += count * -(-tokens // context // processes) * processes
    return 1 - batches.tokens_before(steps) / context / slots if slots else 0.0


def sequences_each(profile: Profile, context: int) -> int:
    """Sequences of `context` tokens in a process's micro-batch, unless a trial finds a number."""
    return MicroBatchSize(profile.micro_batch, context, step_tokens=0).sequences


def micro_batch(sequences: int, bound: int) -> int:
    """Sequences of a micro-batch: the most that divide a rank's `sequences` of a step, and are no
    more than `bound`.
    """
    return max(number for number in range(1, min(bound, sequences) + 1) if sequences % number == 0)


PRETRAINED = Stage(
    name="pretrained",
    version="6",
    run=deferred(EXECUTION, "run"),
    description=(
        "A GPT trained from random weights on the corpus's tokens, by DeepSpeed; model/ loads in "
        "transformers."
    ),
    kinds=("deepspeed", "pytorch"),
    checks=(
        Check(
            "loss_is_finite",
            True,
            "Every reported loss is a number.",
            deferred("assets.execution.tuning", "loss_is_finite"),
        ),
        Check(
            "loss_falls",
            True,
            "The loss of the last tenth of training is below that of the first.",
            deferred(EXECUTION, "loss_falls"),
        ),
        Check(
            "model_loads",
            True,
            "model/ loads, has the recipe's shape, and its weights are numbers.",
            deferred(EXECUTION, "model_loads"),
        ),
        Check(
            "better_than_uniform",
            False,
            "Held-out text takes fewer bits per byte than a uniform guess.",
            deferred(EXECUTION, "better_than_uniform"),
        ),
    ),
    show=deferred("assets.report.pretrained", "show_pretrained"),
    shared_out="each step's batch; held-out text",
    pool="training",
    model=True,
)
