"""What the stages that train a model share: how the profile executes it, the model they start from,
the training run, the files they write, and the verdicts on them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from assets.contract import SCRATCH, Artifact, Built, Progress, Verdict
from assets.stages import base_model
from assets.stages.alignment import TRAINING_FILE
from gpt_model import convert
from gpt_model.config import ModelConfig
from gpt_model.errors import UserError
from gpt_model.io import dump_json
from gpt_model.rlhf.chat_template import ChatTemplate, chat_tokenizer
from gpt_model.tokenizer import Tokenizer
from gpt_model.training import engine
from gpt_model.training.batching import EpochBatches
from gpt_model.training.engine import Execution, evaluation_precision
from gpt_model.training.loop import Hook, Objective, Outcome, train
from gpt_model.training.optimizer import TrainingSettings
from gpt_model.training.sharded import is_sharded, reading
from gpt_model.training.sharded_build import build_sharded
from gpt_model.transformer import GPT, with_rows


def execution_of(progress: Progress, *, fixed_shapes: bool = True) -> Execution:
    """The profile as the training loop takes it, for this rank.

    `fixed_shapes`: every micro-batch has the same. Otherwise nothing is compiled, as each new shape
    would be compiled anew.
    """
    profile = progress.profile
    return Execution(
        device=profile.device,
        zero_stage=profile.zero_stage,
        rank=progress.rank,
        world_size=progress.world_size,
        checkpoint_seconds=profile.checkpoint_seconds,
        compile=profile.compile and fixed_shapes,
        activation_checkpointing=profile.activation_checkpointing,
        tf32=profile.tf32,
        micro_batch_by_trial=profile.device == "cuda" and profile.micro_batch is None,
        memory_bytes=profile.memory_each(),
        communication=profile.sent(),
        deepspeed=profile.deepspeed,
    )


def joined(progress: Progress) -> Execution:
    """The profile, for rows of many lengths, once this rank has its GPU and the other ranks are
    here, if there are any.
    """
    execution = execution_of(progress, fixed_shapes=False)
    engine.choose_gpu(execution)
    if execution.world_size > 1:
        engine.start(execution)
    return execution


def loss_is_finite(built: Built) -> Verdict:
    losses = [value for _, value in built.series.get("loss", ())]
    finite = sum(math.isfinite(value) for value in losses)
    return Verdict(
        bool(losses) and finite == len(losses),
        f"{finite} of {len(losses)} reported losses are numbers.",
        {"reported": len(losses)},
    )


# Held-out text of each source that a tuned model reads, as do the models it is compared with.
HELD_OUT_TOKENS = 16_384


def start(
    artifact: Artifact, tokenizer: Artifact | None, section: Mapping[str, Any], execution: Execution
) -> tuple[GPT, ChatTemplate]:
    """The artifact's model with embeddings for the role tokens and the section's dropout; and its
    chat template. `tokenizer`: of a model whose own does not know the role tokens.
    """
    folder = base_model.require(artifact).path / "model"
    chat = chat_tokenizer(Tokenizer.load(tokenizer.path if tokenizer else folder))
    known = convert.shape(folder).vocab_size
    if chat.vocab_size < known:
        raise UserError(
            f"The model has {known:,} rows for tokens and its tokenizer {chat.vocab_size:,} "
            "tokens: they are not a pair.",
            field=".imported",
        )
    gpt = read_gpt(folder, section, execution, chat.vocab_size - known, section["dropout"])
    return gpt, ChatTemplate(chat)


def read_gpt(
    folder: Path,
    section: Mapping[str, Any],
    execution: Execution,
    rows: int = 0,
    dropout: float = 0.0,
) -> GPT:
    """The stored model with so many rows more in its vocabulary, to be trained as the section says.
    At ZeRO 3 no rank has more of it than its share and a parameter. Collective there.
    """
    if execution.zero_stage < 3:
        return with_rows(convert.load(folder), rows, dropout, section["seed"])
    shape = convert.shape(folder)
    shape = shape.model_copy(update={"vocab_size": shape.vocab_size + rows, "dropout": dropout})
    settings = TrainingSettings.of(section, 1, lambda step: 0.0)  # its precision is what counts
    gpt = build_sharded(shape, settings, execution, section["seed"], folder)
    assert isinstance(gpt, GPT)
    return gpt


def epoch_batches(
    lengths: Sequence[int],
    batch: int,
    section: Mapping[str, Any],
    progress: Progress,
    context: int,
    windows: int = 0,
) -> EpochBatches:
    """Batches of items of `lengths` tokens, with so many windows of text beside a step's."""
    return EpochBatches(
        lengths,
        batch,
        section["epochs"],
        section["seed"],
        progress.rank,
        progress.world_size,
        progress.profile.micro_batch,
        context,
        windows,
    )


def tune(
    model: nn.Module,
    objective: Objective,
    settings: TrainingSettings,
    execution: Execution,
    output: Path,
    progress: Progress,
    hooks: Sequence[Hook],
    finish: Callable[[Any], None] | None = None,
) -> Outcome:
    """Train in place; resumes from the checkpoints in output/.scratch. Every rank calls it.
    `finish` gets the trained model, in evaluation mode and within `evaluation_precision`: whole, or
    where it was built sharded as a hook "by part" does.
    """

    def after_last_step(step: int, trained: nn.Module) -> Mapping[str, float]:
        if finish:
            with evaluation_precision(execution, settings.precision):
                finish(trained)
        return {}

    sharded = is_sharded(model)
    if sharded:
        hooks = [*hooks, Hook([settings.steps], after_last_step, "by part")]
    outcome = train(
        model,
        objective,
        settings,
        execution,
        checkpoints=output / SCRATCH / "checkpoints",
        progress=progress,
        hooks=hooks,
    )
    if not sharded:
        after_last_step(settings.steps, model.eval())
    return outcome


def save_model(output: Path, model: GPT, tokenizer: Tokenizer, rank: int = 0) -> None:
    """The finished model, without dropout; rank 0 writes. Collective."""
    model.config = model.config.model_copy(update={"dropout": 0.0})
    with reading(model):
        if rank == 0:
            convert.save(model, output / "model", tokenizer.end_of_text)
            tokenizer.save(output / "model")


def copy_model(stored: Path, output: Path, tokenizer: Tokenizer) -> None:
    """What `save_model` writes of a stored model that nobody has to read for it."""
    config = convert.shape(stored).model_copy(update={"dropout": 0.0})
    convert.save_again(stored, output / "model", config, tokenizer.end_of_text)
    tokenizer.save(output / "model")


def write_facts(output: Path, config: ModelConfig, facts: Mapping[str, Any]) -> None:
    """The finished model's shape, and training.json: what is the same on every run."""
    base_model.write_shape(config.model_copy(update={"dropout": 0.0}), output)
    dump_json(output / TRAINING_FILE, facts, indent=2, sort_keys=True)


def facts_of(artifact: Artifact) -> dict[str, Any]:
    """Its training.json."""
    facts: dict[str, Any] = json.loads((artifact.path / TRAINING_FILE).read_text(encoding="utf-8"))
    return facts


def loss_falls(built: Built) -> Verdict:
    losses = [value for _, value in built.series.get("nats", ())]
    if len(losses) < 4:
        return Verdict(True, f"{len(losses)} losses were reported: too few to say.")
    third = max(1, len(losses) // 3)
    first, last = sum(losses[:third]) / third, sum(losses[-third:]) / third
    summary = (
        f"Mean nats a token of the assistant's: {first:.3f} in the first third, {last:.3f} in the "
        "last."
    )
    return Verdict(last < first, summary, {"first": first, "last": last})


def model_loads(built: Built) -> Verdict:
    folder = built.output / "model"
    parameters = convert.shape(folder).parameters()
    loads = f"model/ loads with {parameters:,} parameters"
    return usable(folder, [], loads, {"parameters": parameters})


def usable(
    folder: Path, others: Iterable[Tensor], loads: str, values: Mapping[str, float | int | str]
) -> Verdict:
    """Whether all weights of the stored model, read one by one, and `others`, each [...], are
    numbers, and its tokenizer is a chat tokenizer of its size.
    """
    tokenizer = Tokenizer.load(folder)
    stored = (weight for _, weight in convert.weights(folder))
    finite, broken = are_numbers(itertools.chain(stored, others))
    fits = convert.shape(folder).vocab_size == tokenizer.vocab_size and bool(tokenizer.markers)
    summary = loads + broken + ("." if fits else "; its tokenizer does not fit it.")
    return Verdict(finite and fits, summary, values)


def are_numbers(weights: Iterable[Tensor]) -> tuple[bool, str]:
    """Whether weights [...] are, and what a summary that ends with their count goes on with if
    not.
    """
    finite = all(bool(weight.isfinite().all()) for weight in weights)
    return finite, "" if finite else ", some of which are not numbers"
