"""Runs the stage `pretrained`: trains, measures held-out text and writes samples on the way, and
judges the finished model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assets.contract import Built, Config, Inputs, Metrics, Progress, Verdict
from assets.execution.tuning import are_numbers, execution_of, tune
from assets.stages import base_model
from assets.stages.base_model import BASE
from assets.stages.pretraining import SAMPLE, batches_of, check_shared_out, check_whole, micro_batch
from gpt_model import convert, lora
from gpt_model.config import ModelConfig
from gpt_model.data.sampler import Sampler
from gpt_model.data.shards import TokenData
from gpt_model.errors import about
from gpt_model.generation import generate
from gpt_model.io import dump_json
from gpt_model.lstm import build
from gpt_model.tokenizer import Tokenizer
from gpt_model.training import measure, snapshots
from gpt_model.training.batching import MicroBatchSize
from gpt_model.training.engine import Execution, choose_product_library, start
from gpt_model.training.loop import Hook, Outcome
from gpt_model.training.optimizer import MuonSettings, TrainingSettings
from gpt_model.training.schedules import BatchSchedule, by_step, warmup_cosine
from gpt_model.training.sharded_build import build_sharded
from gpt_model.transformer import GPT, Decoder

# Of a rank's micro-batch: inputs and targets, each [sequences, context], and the number of its rows
# over the mean number of all the step's micro-batches'
MicroBatch = tuple[Tensor, Tensor, float]
PROMPT_TOKENS, SAMPLE_TOKENS = 8, 40
SAMPLE_TOP_K = 40  # GPT-2's samples


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Train, measuring on the way; resumes from output/.scratch/checkpoints. Every rank runs it,
    rank 0 writes.
    """
    section = config["pretraining"]
    data, tokenizer = TokenData(inputs["tokens"].path), Tokenizer.load(inputs["tokenizer"].path)
    shape = model_shape(config, inputs, tokenizer.vocab_size)
    check_whole(section, shape.context)
    check_shared_out(section, shape.context, progress.profile.name, progress.world_size)
    batches = batches_of(section)
    with about("model"):
        sampler = Sampler(data, shape.context, batches, section["seed"])
    execution = execution_of(progress)
    start(execution)
    # Before the peak is measured, which training is compared with
    choose_product_library()
    peak = measure.peak_flops(execution, section["precision"])
    sheet = measure.data_sheet_flops(execution, section["precision"])
    execution = replace(execution, peak_flops=peak, data_sheet_flops=sheet)
    settings = settings_of(section)

    model = initial_model(config, inputs, shape, settings, execution)
    objective = LanguageModelling(
        sampler, shape, execution, settings.steps, progress.profile.micro_batch
    )
    evaluation = Evaluation(data, section, settings.steps, execution)
    evaluations = evaluation_steps(batches, settings.steps, section["evaluations"])
    snapshot_steps = snapshots.snapshot_steps(settings.steps, section.get("snapshots", 0))
    hooks = [Hook(evaluations, evaluation, ranks="together")]
    # An LSTM, which is only compared by its loss, writes no samples.
    if section["samples"] and shape.family != "lstm":
        hooks.append(Hook(evaluations, _write_samples(data, tokenizer, section, progress), "first"))
    save = _save(output, settings.steps, tokenizer.end_of_text, adapters_of(config, inputs))
    hooks.append(Hook({*snapshot_steps, settings.steps}, save, "first"))
    outcome = tune(model, objective, settings, execution, output, progress, hooks)
    # At both ends: a machine's speed changes meanwhile
    peak = (peak + measure.peak_flops(execution, section["precision"])) / 2
    metrics = evaluation.final | _training_metrics(outcome, objective, peak, data)
    if sheet:
        flops = outcome.units_per_second * objective.flops_per_unit
        metrics |= {"data_sheet_flops": sheet, "data_sheet_utilisation": flops / sheet}
    metrics["peak_memory_bytes"] = measure.peak_memory_bytes(execution)
    if progress.rank == 0:
        if adapters_of(config, inputs):
            metrics |= lora.counted(model)
        if BASE in inputs:  # no section gives its shape
            base_model.write_shape(shape, output)
        tokenizer.save(output / "model")
        write_facts(shape, output, section, metrics)
        if snapshot_steps:
            tokens = {step: batches.tokens_before(step) for step in snapshot_steps}
            snapshots.write_index(output, tokens)
    return metrics


def settings_of(section: Mapping[str, Any]) -> TrainingSettings:
    """The recipe's section as the training loop takes it. Warm-up and cosine are counted in tokens,
    so they do not depend on the batch.
    """
    batches = batches_of(section)
    steps = batches.steps_within(section["tokens"])
    rate = warmup_cosine(
        section["learning_rate"],
        warmup=section["warmup_tokens"],
        decay=section.get("decay_tokens") or batches.tokens_before(steps),
        final=section["final_learning_rate"],
    )
    return TrainingSettings.of(section, steps, by_step(rate, batches), muon=_muon_of(section))


def _muon_of(section: Mapping[str, Any]) -> MuonSettings | None:
    """Muon's settings, AdamW's where it has none itself; None where AdamW steps everything."""
    if (muon := section.get("muon")) is None:
        return None
    rate, decay = muon["learning_rate"], muon["weight_decay"]
    return MuonSettings(
        rate_multiplier=1.0 if rate is None else rate / section["learning_rate"],
        weight_decay=section["weight_decay"] if decay is None else decay,
        momentum=muon["momentum"],
        nesterov=muon["nesterov"],
        ns_steps=muon["ns_steps"],
    )


def evaluation_steps(batches: BatchSchedule, steps: int, evaluations: int) -> list[int]:
    """After which steps held-out text is measured, evenly spaced in tokens; the last is the end."""
    tokens = batches.tokens_before(steps)
    return sorted(
        {
            max(1, batches.nearest_step(tokens * number / evaluations))
            for number in range(1, evaluations + 1)
        }
    )


def model_shape(config: Config, inputs: Inputs, vocab_size: int) -> ModelConfig:
    """The recipe's shape, or that of the model it goes on from, with the tokenizer's vocabulary."""
    if BASE in inputs:
        shape = base_model.shape(base_model.require(inputs[BASE]))
    else:
        shape = config["model"]
    return ModelConfig(**shape, vocab_size=vocab_size)


def initial_model(
    config: Config,
    inputs: Inputs,
    shape: ModelConfig,
    settings: TrainingSettings,
    execution: Execution,
) -> Decoder:
    """Fresh weights, or the model that training goes on from; where the recipe has `lora`, with
    adapters beside its weights. At ZeRO 3 no rank has more of them than its share and a parameter.
    """
    adapters = adapters_of(config, inputs)
    if execution.zero_stage == 3:
        base = inputs[BASE].path / "model" if BASE in inputs else None
        seed = settings.seed
        return build_sharded(shape, settings, execution, seed, base, adapters=adapters)
    if BASE not in inputs:
        return build(shape, settings.seed)
    gpt = convert.load(inputs[BASE].path / "model")
    if adapters:
        lora.adapt(gpt, adapters, settings.seed)
    return gpt


def adapters_of(config: Config, inputs: Inputs) -> lora.LoRA | None:
    """Those that are trained beside the model that training goes on from, if any are."""
    return lora.LoRA(**config["lora"]) if BASE in inputs and "lora" in config else None


class LanguageModelling:
    """The objective: predict each next token, batches by the sampler (Radford et al. 2018, equation
    1).
    """

    unit = "tokens"

    def __init__(
        self,
        sampler: Sampler,
        shape: ModelConfig,
        execution: Execution,
        steps: int,
        sequences: int | None,
    ) -> None:
        """`sequences` of a micro-batch, as the profile has it."""
        self.sampler, self.execution = sampler, execution
        step_tokens = sampler.batches.tokens_of(steps - 1)
        self.size = MicroBatchSize(sequences, sampler.context, step_tokens)
        self.flops_per_unit, self.vocab_size = shape.flops_per_token(), shape.vocab_size

    def units_before(self, step: int) -> int:
        return self.sampler.batches.tokens_before(step)

    def full_micro_batch(self, sequences: int) -> MicroBatch:
        """Of tokens at random."""
        tokens = torch.randint(0, self.vocab_size, (sequences, self.size.context + 1))
        return tokens[:, :-1], tokens[:, 1:], 1.0

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This rank's rows of a step, as many micro-batches as every rank has."""
        ranks, context = self.execution.world_size, self.sampler.context
        inputs, targets, _ = self.sampler.batch(step, self.execution.rank, ranks)
        sequences = self.sampler.batches.tokens_of(step) // context
        most = -(-sequences // ranks)  # rows of a rank; others may have one less, or none
        rows = micro_batch(most, self.size.sequences)
        count = most // rows
        # What a rank without a row computes, to weigh nothing: every rank takes part in each
        # exchange. It is as long as any other, so that compiled blocks keep their shapes.
        idle = np.zeros((1, context), dtype=np.int64)
        parts: list[MicroBatch] = []
        for first in range(0, most, rows):
            part = slice(first, first + rows)
            share = len(inputs[part]) * ranks * count / sequences
            here = (inputs[part], targets[part]) if share else (idle, idle)
            read, predicted = map(torch.from_numpy, here)
            parts.append((read, predicted, share))
        return parts

    def loss(
        self, model: nn.Module, micro_batch: MicroBatch
    ) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
        """The loss is a scalar. Times its share, its mean over micro-batches and ranks is the mean
        over the step's rows.
        """
        inputs, targets, share = micro_batch
        loss = model(inputs, targets)
        return (loss if share == 1 else loss * share), {}


class Evaluation:
    """A hook: measures the same beginning of the held-out text each time. After the last step all
    held-out text is measured, into `final`.
    """

    def __init__(
        self, data: TokenData, section: Mapping[str, Any], steps: int, execution: Execution
    ) -> None:
        self.data, self.section, self.steps, self.execution = data, section, steps, execution
        self.final: Metrics = {}

    def __call__(self, step: int, model: nn.Module) -> Metrics:
        assert isinstance(model, Decoder)
        stride = max(1, model.config.context // 2)  # of whole windows, the last one's too
        limit = -(-self.section["evaluation_tokens"] // stride) * stride
        last = step == self.steps
        held_out = measure.held_out(model, self.data, self.execution, None if last else limit)
        if last:
            self.final = measure.held_out_metrics(held_out, self.data.weights)
            self.final |= measure.held_out_intervals(held_out)
        sample = {source: text.first(limit) for source, text in held_out.items()}
        return measure.held_out_metrics(sample, self.data.weights, SAMPLE)


def _write_samples(
    data: TokenData, tokenizer: Tokenizer, section: Mapping[str, Any], progress: Progress
) -> Callable[[int, Any], Metrics]:
    """A hook that writes samples."""

    def write(step: int, model: GPT) -> Metrics:
        for name, text in samples(model, data, tokenizer, section["samples"], section["seed"]):
            progress.text(step, name, text)
        return {}

    return write


def _save(
    output: Path, steps: int, end_of_text: int, adapters: lora.LoRA | None
) -> Callable[[int, Any], Metrics]:
    """A hook that saves a snapshot, and after the last step the model, merged with its adapters,
    which are saved too.
    """

    def save(step: int, model: Any) -> Metrics:
        if step < steps:
            snapshots.save_snapshot(model, output, step)
            return {}
        if adapters:
            lora.save(model, adapters, output / base_model.ADAPTERS)
        snapshots.save_model(lora.merged(model), output / snapshots.MODEL, end_of_text)
        return {}

    return save


def samples(
    model: GPT, data: TokenData, tokenizer: Tokenizer, count: int, seed: int
) -> list[tuple[str, str]]:
    """(name, text): what the model writes after the beginnings of held-out documents, sources in
    turn; prompts in brackets.
    """
    prompts = []
    sources = [source for source in data.sources if data.documents(source, "held_out")]
    for number in range(count if sources else 0):
        source = sources[number % len(sources)]
        document = data.tokens(source, "held_out").document(
            (number // len(sources)) % data.documents(source, "held_out")
        )
        prompts.append((source, [data.end_of_text, *map(int, document[:PROMPT_TOKENS])]))
    continuations = generate(
        model,
        [ids for _, ids in prompts],
        SAMPLE_TOKENS,
        top_k=SAMPLE_TOP_K,
        seed=seed,
        stop=(data.end_of_text,),
    )
    return [
        (f"{number} {source}", f"[{tokenizer.decode(ids[1:])}]{tokenizer.decode(continuation)}")
        for number, ((source, ids), continuation) in enumerate(
            zip(prompts, continuations, strict=True), 1
        )
    ]


def _training_metrics(
    outcome: Outcome, objective: LanguageModelling, peak_flops: float, data: TokenData
) -> Metrics:
    rate = outcome.units_per_second
    held_out_bytes = sum(data.bytes(source, "held_out") for source in data.sources)
    held_out_tokens = sum(len(data.tokens(source, "held_out")) for source in data.sources)
    epochs = objective.sampler.epochs(outcome.steps)
    return {
        # of a model that gives every token the same probability
        "uniform_bpb": math.log2(data.vocab_size) * held_out_tokens / max(1, held_out_bytes),
        "loss": outcome.loss,
        "steps": outcome.steps,
        "tokens": objective.units_before(outcome.steps),
        **{f"epochs/{source}": number for source, number in epochs.items()},
        "seconds": outcome.seconds,
        "tokens_per_second": rate,
        "peak_flops": peak_flops,
        "model_flops_utilisation": rate * objective.flops_per_unit / peak_flops,
        "checkpoint_stall_seconds": outcome.checkpoint_stall_seconds,
    }


def write_facts(
    shape: ModelConfig, output: Path, section: Mapping[str, Any], metrics: Metrics
) -> None:
    """training.json: what is the same on every run."""
    facts = {
        "parameters": shape.parameters(),
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
    dump_json(output / "training.json", facts, indent=2, sort_keys=True)


def loss_falls(built: Built) -> Verdict:
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


def model_loads(built: Built) -> Verdict:
    folder = built.output / "model"
    expected = model_shape(built.config, built.inputs, Tokenizer.load(folder).vocab_size)
    config = convert.shape(folder)
    finite, broken = are_numbers(weight for _, weight in convert.weights(folder))
    return Verdict(
        config == expected and finite,
        f"model/ loads as {config.layers} layers of width {config.width}, "
        f"{config.parameters():,} parameters{broken}.",
        {"parameters": config.parameters()},
    )


def better_than_uniform(built: Built) -> Verdict:
    bpb, uniform = built.metrics["held_out/total_bpb"], built.metrics["uniform_bpb"]
    return Verdict(
        bpb < uniform,
        f"Held-out text takes {bpb:.3f} bits per byte; a uniform guess takes {uniform:.3f}.",
        {"bpb": bpb, "uniform": uniform},
    )
