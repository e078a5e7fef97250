"""Stage `pretrained`: a GPT trained from random weights on the corpus's tokens. What is trained is
the recipe's, how fast the profile's.

The network is gpt_model/transformer.py, the loop gpt_model/training. Here: how a recipe's section
becomes steps and batches, what is measured on the way, what is written, what must hold of it. The
artifact:

    model/          a folder that `transformers` loads: config.json, generation_config.json, model.safetensors and the tokenizer's files
    training.json   what was done and what came of it, as far as it is the same on every run: no seconds
    snapshots/      where the recipe asks for them: the weights on the way, on a log schedule (gpt_model/training/snapshots.py)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import SCRATCH, Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from assets.execution import base_model
from assets.recipe.profile import Profile
from assets.report import pretrained
from gpt_model.errors import UserError, about
from gpt_model.training.batching import TRAINING_TOKENS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gpt_model.config import ModelConfig
    from gpt_model.data.sampler import Sampler
    from gpt_model.data.shards import TokenData
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.training.engine import Execution
    from gpt_model.training.loop import Outcome
    from gpt_model.training.optimizer import BatchSchedule, TrainingSettings
    from gpt_model.transformer import GPT, Decoder

PROMPT_TOKENS, SAMPLE_TOKENS = 8, 40
SAMPLE_TOP_K = 40  # GPT-2's samples


# --- run ---


def pretrain(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Train, measuring as it goes; resumes from output/.scratch/checkpoints. Every rank runs it,
    rank 0 writes.
    """
    from gpt_model.data.sampler import Sampler
    from gpt_model.data.shards import TokenData
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.training import measure, snapshots
    from gpt_model.training.engine import choose_product_library, start
    from gpt_model.training.loop import Hook, train

    section, profile = config["pretraining"], progress.profile
    data, tokenizer = TokenData(inputs["tokens"].path), Tokenizer.load(inputs["tokenizer"].path)
    shape = base_model.trained_shape(config, inputs, tokenizer.vocab_size)
    check_whole(section, shape.context)
    check_shared_out(section, shape.context, profile.name, progress.world_size)
    batches = batches_of(section)
    with about("model"):
        sampler = Sampler(data, shape.context, batches, section["seed"])
    execution = execution_of(profile, progress)
    start(execution)
    choose_product_library(
        section["precision"]
    )  # before the peak is measured, which training is held against
    peak = measure.peak_flops(execution, section["precision"])
    execution = replace(execution, peak_flops=peak)
    settings = settings_of(section)

    model = base_model.begin(config, inputs, shape, section["seed"])
    objective = LanguageModelling(sampler, profile, shape, execution)
    final: dict[str, float] = {}
    evaluate = _evaluation(data, tokenizer, section, settings.steps, execution, progress, final)
    kept = snapshots.snapshot_steps(settings.steps, section.get("snapshots", 0))
    hooks = [
        Hook(evaluation_steps(batches, settings.steps, section["evaluations"]), evaluate),
        Hook(kept[:-1], partial(_keep, output, progress.rank)),  # the last one is model/
    ]
    checkpoints = output / SCRATCH / "checkpoints"
    outcome = train(
        model,
        objective,
        settings,
        execution,
        checkpoints=checkpoints,
        progress=progress,
        hooks=hooks,
    )
    after = measure.peak_flops(
        execution, section["precision"]
    )  # a machine's speed changes meanwhile, so it is asked at both ends
    metrics = _final_metrics(outcome, final, objective, (peak + after) / 2, data)
    metrics["peak_memory_bytes"] = measure.peak_memory_bytes(execution)
    if progress.rank == 0:
        metrics |= base_model.end(model, config, inputs, output)
        _write(model, tokenizer, output, section, metrics)
        if kept:
            snapshots.write_index(output, {step: batches.tokens_before(step) for step in kept})
    return metrics


def execution_of(profile: Profile, progress: Progress) -> Execution:
    """The profile as the loop takes it, for this rank."""
    from gpt_model.training.engine import Execution

    return Execution(
        device=profile.device,
        zero_stage=profile.zero_stage,
        rank=progress.rank,
        world_size=progress.world_size,
        checkpoint_seconds=profile.checkpoint_seconds,
        compile=profile.compile,
        activation_checkpointing=profile.activation_checkpointing,
    )


def settings_of(section: Mapping[str, Any]) -> TrainingSettings:
    """The recipe's section as the loop takes it. Warm-up and cosine are counted in tokens, so they
    do not depend on the batch.
    """
    from gpt_model.training.optimizer import TrainingSettings, by_step, warmup_cosine

    batches = batches_of(section)
    steps = batches.steps_within(section["tokens"])
    rate = warmup_cosine(
        section["learning_rate"],
        warmup=section["warmup_tokens"],
        decay=section.get("decay_tokens") or batches.tokens_before(steps),
        final=section["final_learning_rate"],
    )
    return TrainingSettings.of(section, steps, by_step(rate, batches))


def batches_of(section: Mapping[str, Any]) -> BatchSchedule:
    """The batch of each step, as the recipe's section has it."""
    from gpt_model.training.optimizer import BatchSchedule

    ramp = section.get("batch_ramp")
    return (
        BatchSchedule(section["batch_tokens"], ramp["from_tokens"], ramp["over_tokens"])
        if ramp
        else BatchSchedule(section["batch_tokens"])
    )


def check_whole(section: Mapping[str, Any], context: int) -> None:
    """Raises UserError where a batch is not whole sequences: of an imported model, whose context no
    recipe says.
    """
    from assets.recipe.recipe import whole_sequences

    sizes = {"batch_tokens": section["batch_tokens"]}
    if ramp := section.get("batch_ramp"):
        sizes["batch_ramp.from_tokens"] = ramp["from_tokens"]
    for field, tokens in sizes.items():
        try:
            whole_sequences(tokens, context, field)
        except ValueError as error:
            raise UserError(f"{error}.", field=f"pretraining.{field}") from None


def check_shared_out(
    section: Mapping[str, Any], context: int, profile: str, processes: int
) -> None:
    """Raises UserError where a profile cannot share out each step's sequences evenly: the batch is
    the recipe's, not the profile's.

    Every batch of a ramp is the first one or a multiple of it, or the full one, so those two are
    looked at.
    """
    sizes = {"batch_tokens": section["batch_tokens"]}
    if ramp := section.get("batch_ramp"):
        sizes["batch_ramp.from_tokens"] = ramp["from_tokens"]
    for field, tokens in sizes.items():
        sequences = tokens // context
        if sequences % processes:
            fitting = max(
                number
                for number in range(1, processes)
                if all(size // context % number == 0 for size in sizes.values())
            )
            raise UserError(
                f"{field} {tokens} is {sequences} sequences of {context} tokens, which the profile {profile!r} cannot "
                f"share out evenly among its processes, {processes}: set processes to {fitting} in profiles/{profile}.yaml, "
                "or change the recipe's batch.",
                field=f"pretraining.{field}",
            )


def micro_batch(sequences: int, context: int, profile: Profile) -> int:
    """Sequences a forward pass of one rank: the most that divide its `sequences` and are within the
    profile's bound (or the default).
    """
    bound = profile.micro_batch or max(1, TRAINING_TOKENS // context)
    return max(number for number in range(1, min(bound, sequences) + 1) if sequences % number == 0)


def evaluation_steps(batches: BatchSchedule, steps: int, evaluations: int) -> list[int]:
    """After which steps held-out text is measured, evenly spaced in tokens; the last is the end."""
    tokens = batches.tokens_before(steps)
    return sorted(
        {
            max(1, batches.nearest_step(tokens * number / evaluations))
            for number in range(1, evaluations + 1)
        }
    )


class LanguageModelling:
    """The objective: predict each next token, batches by the sampler (Radford et al. 2018, equation
    1).
    """

    unit = "tokens"

    def __init__(
        self, sampler: Sampler, profile: Profile, shape: ModelConfig, execution: Execution
    ) -> None:
        self.sampler, self.profile, self.execution = sampler, profile, execution
        self.flops_per_unit = shape.flops_per_token()

    def units_before(self, step: int) -> int:
        return self.sampler.batches.tokens_before(step)

    def micro_batches(self, step: int) -> Sequence[tuple[Tensor, Tensor]]:
        """This rank's rows of a step: (inputs, targets), each [micro-batch, context]."""
        import torch

        inputs, targets, _ = self.sampler.batch(
            step, self.execution.rank, self.execution.world_size
        )
        rows = micro_batch(len(inputs), self.sampler.context, self.profile)
        there = [
            torch.from_numpy(tokens).to(self.execution.device).split(rows)
            for tokens in (inputs, targets)
        ]
        return list(zip(*there, strict=True))

    def loss(
        self, model: nn.Module, micro_batch: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
        return model(*micro_batch), {}


def _evaluation(
    data: TokenData,
    tokenizer: Tokenizer,
    section: Mapping[str, Any],
    steps: int,
    execution: Execution,
    progress: Progress,
    final: dict[str, float],
) -> Callable[[int, Any], dict[str, float]]:
    """What is done at each evaluation: held-out text is measured, samples are written. At the end
    all of it, left in `final`.
    """
    from gpt_model.training import measure
    from gpt_model.transformer import GPT

    def evaluate(step: int, model: Decoder) -> dict[str, float]:
        limit = None if step == steps else section["evaluation_tokens"]
        held_out = measure.held_out(model, data, execution, limit)
        found = measure.held_out_metrics(held_out, data.weights)
        if step == steps:
            final.update(found | measure.held_out_intervals(held_out))
        if (
            execution.rank == 0 and section["samples"] and isinstance(model, GPT)
        ):  # an LSTM, only measured against, does not write here
            for name, text in samples(model, data, tokenizer, section["samples"], section["seed"]):
                progress.text(step, name, text)
        return found

    return evaluate


def _keep(output: Path, rank: int, step: int, model: Decoder) -> dict[str, float]:
    """A snapshot, as a hook of the loop."""
    from gpt_model.training import snapshots

    if rank == 0:
        snapshots.save_snapshot(model, output, step)
    return {}


def samples(
    model: GPT, data: TokenData, tokenizer: Tokenizer, count: int, seed: int
) -> list[tuple[str, str]]:
    """(name, text): what the model writes after the first words of held-out documents, a source
    after the other; prompts in brackets.
    """
    from gpt_model.generation import generate

    prompts = []
    sources = [source for source in data.sources if data.documents(source, "held_out")]
    for number in range(count if sources else 0):
        source = sources[number % len(sources)]
        document = data.tokens(source, "held_out").document(
            (number // len(sources)) % data.documents(source, "held_out")
        )
        prompts.append((source, [data.end_of_text, *map(int, document[:PROMPT_TOKENS])]))
    written = generate(
        model,
        [ids for _, ids in prompts],
        SAMPLE_TOKENS,
        top_k=SAMPLE_TOP_K,
        seed=seed,
        stop=(data.end_of_text,),
    )
    return [
        (f"{number + 1} {source}", f"[{tokenizer.decode(ids[1:])}]{tokenizer.decode(new)}")
        for number, ((source, ids), new) in enumerate(zip(prompts, written, strict=True))
    ]


def _final_metrics(
    outcome: Outcome,
    final: Mapping[str, float],
    objective: LanguageModelling,
    peak_flops: float,
    data: TokenData,
) -> Metrics:
    rate = outcome.units_per_second
    bits = math.log2(data.vocab_size)
    held_out_bytes = sum(data.bytes(source, "held_out") for source in data.sources)
    held_out_tokens = sum(len(data.tokens(source, "held_out")) for source in data.sources)
    return {
        **final,
        "uniform_bpb": bits
        * held_out_tokens
        / max(1, held_out_bytes),  # what a model that knows nothing takes
        "loss": outcome.loss,
        "steps": outcome.steps,
        "tokens": objective.units_before(outcome.steps),
        **{
            f"epochs/{source}": epochs
            for source, epochs in objective.sampler.epochs(outcome.steps).items()
        },
        "seconds": outcome.seconds,
        "tokens_per_second": rate,
        "peak_flops": peak_flops,
        "model_flops_utilisation": rate * objective.flops_per_unit / peak_flops,
        "checkpoint_stall_seconds": outcome.checkpoint_stall_seconds,
    }


def _write(
    model: Decoder, tokenizer: Tokenizer, output: Path, section: Mapping[str, Any], metrics: Metrics
) -> None:
    from gpt_model import convert

    convert.save(model, output / "model", tokenizer.end_of_text)
    tokenizer.save(output / "model")
    facts = {
        "parameters": model.config.parameters(),
        "steps": int(metrics["steps"]),
        "batch_tokens": section["batch_tokens"],
        "batch_ramp": section.get("batch_ramp"),
        "tokens": int(metrics["tokens"]),
        "epochs": {
            name.removeprefix("epochs/"): round(value, 4)
            for name, value in metrics.items()
            if name.startswith("epochs/")
        },
        "held_out": {
            name: round(value, 4) for name, value in metrics.items() if name.startswith("held_out/")
        },
    }
    (output / "training.json").write_text(
        json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


# --- checks ---


def _loss_is_finite(built: Built) -> Verdict:
    losses = [value for _, value in built.series.get("loss", ())]
    finite = sum(math.isfinite(value) for value in losses)
    return Verdict(
        bool(losses) and finite == len(losses),
        f"{finite} of {len(losses)} reported losses are numbers.",
        {"reported": len(losses)},
    )


def _loss_falls(built: Built) -> Verdict:
    losses = [value for _, value in built.series.get("loss", ())]
    if len(losses) < 2:
        return Verdict(False, f"{len(losses)} losses were reported: too few to say.")
    tenth = max(1, len(losses) // 10)
    first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    return Verdict(
        last < first,
        f"Mean loss of the first tenth {first:.3f}, of the last {last:.3f} nats a token.",
        {"first": first, "last": last},
    )


def _model_loads(built: Built) -> Verdict:
    from gpt_model import convert
    from gpt_model.tokenizer import Tokenizer

    folder = built.output / "model"
    expected = base_model.trained_shape(
        built.config, built.inputs, Tokenizer.load(folder).vocab_size
    )
    model = convert.load_decoder(folder)
    numbers = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    return Verdict(
        model.config == expected and numbers,
        f"model/ loads as {model.config.layers} layers of width {model.config.width}, {model.config.parameters():,} parameters"
        + ("." if numbers else ", some of which are not numbers."),
        {"parameters": model.config.parameters()},
    )


def _better_than_uniform(built: Built) -> Verdict:
    found, uniform = built.metrics["held_out/total_bpb"], built.metrics["uniform_bpb"]
    return Verdict(
        found < uniform,
        f"Held-out text takes {found:.3f} bits per byte; a uniform guess takes {uniform:.3f}.",
        {"bpb": found, "uniform": uniform},
    )


PRETRAINED = Stage(
    name="pretrained",
    version="4",
    run=pretrain,
    description="A GPT trained from random weights on the corpus's tokens, by DeepSpeed; model/ loads in transformers.",
    kinds=("deepspeed", "pytorch"),
    checks=(
        Check("loss_is_finite", True, "Every reported loss is a number.", _loss_is_finite),
        Check(
            "loss_falls",
            True,
            "The loss of the last tenth of training is below that of the first.",
            _loss_falls,
        ),
        Check(
            "model_loads",
            True,
            "model/ loads, has the recipe's shape, and its weights are numbers.",
            _model_loads,
        ),
        Check(
            "better_than_uniform",
            False,
            "Held-out text takes fewer bits per byte than a uniform guess.",
            _better_than_uniform,
        ),
    ),
    show=pretrained.show,
    ranks="profile",
    pool="training",
    model=True,
)
