"""Runs the stages `supervised` and `policy_init`: supervised fine-tuning on demonstrations, the
held-out loss after every epoch. What is trained is `gpt_model.rlhf.sft`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed
from transformers import AutoTokenizer

from assets.contract import Artifact, Built, Config, Inputs, Metrics, Progress, Verdict
from assets.execution import tuning
from assets.execution.tuning import joined
from gpt_model import convert
from gpt_model.data.sampler import Sampler
from gpt_model.data.shards import TokenData
from gpt_model.errors import UserError, about_all_of
from gpt_model.rlhf.answers import sample_answers
from gpt_model.rlhf.chat_template import ChatTemplate, EncodedDialogue
from gpt_model.rlhf.dialogue import Dialogue, messages
from gpt_model.rlhf.records import (
    Demonstration,
    evenly,
    excerpt,
    read_demonstrations,
    unlicensed_sources,
)
from gpt_model.rlhf.sft import SFTObjective, encode_dialogues, held_out_loss
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.engine import Execution
from gpt_model.training.loop import Hook, Outcome
from gpt_model.training.schedules import BatchSchedule
from gpt_model.training.sharded import is_sharded, reading
from gpt_model.training.sharded_build import fill_shares
from gpt_model.training.tuning import (
    best_epoch,
    cosine_settings,
    epoch_ends,
    epoch_folder,
    save_epoch,
)
from gpt_model.transformer import GPT

HELD_OUT_DIALOGUES = 1000  # held-out dialogues at most that the loss after an epoch is measured on
SHOWN_DIALOGUES, SAMPLE_TOKENS = 3, 48
COMPARED_DIALOGUES = 100  # with the tokens that transformers gives them


@dataclass(frozen=True)
class Demonstrations:
    """Demonstrations as a model's tokens."""

    training: Sequence[EncodedDialogue]
    held_out: Sequence[EncodedDialogue]
    samples: Sequence[Demonstration]  # held-out ones whose prompts are answered on the way
    unlicensed: Collection[str]  # sources whose licence does not cover their text
    counts: Mapping[str, int]  # shortened, too_long

    @property
    def lengths(self) -> list[int]:
        """Tokens of each training dialogue."""
        return [len(dialogue.tokens) for dialogue in self.training]


def read(
    folder: Path, template: ChatTemplate, context: int, execution: Execution, progress: Progress
) -> Demonstrations:
    """Raises UserError where no demonstration fits the context. Collective."""
    held_out = read_demonstrations(folder, "held_out")
    training, counts = encode_dialogues(
        _dialogues(read_demonstrations(folder, "training")), template, context, execution
    )
    measured, _ = encode_dialogues(
        _dialogues(evenly(held_out, HELD_OUT_DIALOGUES)), template, context, execution
    )
    if not training or not measured:
        raise UserError(
            f"None of the {'training' if not training else 'held-out'} demonstrations fits the "
            f"model's context of {context} tokens: give shorter ones, or a model with a longer "
            "context.",
            field="demonstrations",
        )
    if any(counts.values()):
        progress.log(
            f"Demonstrations that do not fit the context of {context} tokens: "
            f"{counts['shortened']} lost their oldest turns, {counts['too_long']} were left out."
        )
    return Demonstrations(
        training, measured, evenly(held_out, SHOWN_DIALOGUES), unlicensed_sources(folder), counts
    )


def _dialogues(demonstrations: Sequence[Demonstration]) -> list[Dialogue]:
    return [demonstration.turns for demonstration in demonstrations]


def run_supervised(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Train, and save every epoch's weights; resumes from output/.scratch."""
    section, execution = config["supervised"], joined(progress)
    gpt, template = tuning.start(inputs["pretrained"], inputs["tokenizer"], section, execution)
    context = gpt.config.context
    data = read(inputs["demonstrations"].path, template, context, execution, progress)
    batches = tuning.epoch_batches(data.lengths, section["batch"], section, progress, context)
    objective = SFTObjective(data.training, batches, gpt.config.flops_per_token())
    outcome, losses = _tune(
        gpt, template, data, objective, section, output, execution, progress, save_epochs=True
    )
    if progress.rank == 0:
        epochs = [
            {"epoch": n, "held_out_loss": round(loss, 6)} for n, loss in enumerate(losses, start=1)
        ]
        facts = {**_facts(data, outcome), "epochs": epochs}
        tuning.write_facts(output, gpt.config, facts)
    return _metrics(data, outcome) | {
        "held_out_loss": losses[-1],
        "best_epoch_by_loss": float(best_epoch([-loss for loss in losses])),
    }


def run_policy_init(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Train with pre-training text mixed in; resumes from output/.scratch."""
    section, execution = config["policy_init"], joined(progress)
    gpt, template = tuning.start(inputs["pretrained"], inputs["tokenizer"], section, execution)
    context, share = gpt.config.context, section["pretraining_share"]
    data = read(inputs["demonstrations"].path, template, context, execution, progress)
    # `batch` counts dialogues and windows together.
    mixed = max(1, round(section["batch"] * share)) if share else 0
    dialogues = max(1, section["batch"] - mixed)
    batches = tuning.epoch_batches(data.lengths, dialogues, section, progress, context, mixed)
    # An imported model's context cannot be changed, so an error points at the text.
    with about_all_of(".corpus"):
        windows = windows_of(inputs["tokens"], context, mixed, section["seed"]) if mixed else None
    flops = gpt.config.flops_per_token()
    objective = SFTObjective(data.training, batches, flops, mixed, windows, share)
    outcome, losses = _tune(
        gpt, template, data, objective, section, output, execution, progress, save_epochs=False
    )
    if progress.rank == 0:
        facts = {**_facts(data, outcome), "mixed": mixed, "held_out_loss": round(losses[-1], 6)}
        tuning.write_facts(output, gpt.config, facts)
    return _metrics(data, outcome) | {
        "held_out_loss": losses[-1],
        "pretraining_sequences_a_batch": float(mixed),
    }


def windows_of(
    tokens: Artifact, context: int, per_step: int, seed: int
) -> Callable[[int, int], Sequence[Sequence[int]]]:
    """Windows of the corpus's training text, `per_step` a step, as long as the context: a pure
    function of the step.
    """
    batches = BatchSchedule(per_step * (context - 1))
    sampler = Sampler(TokenData(tokens.path), context - 1, batches, seed)

    def windows(step: int, count: int) -> Sequence[Sequence[int]]:
        inputs, targets, _ = sampler.batch(step)
        rows: list[list[int]] = np.concatenate([inputs, targets[:, -1:]], axis=1)[:count].tolist()
        return rows

    return windows


def _tune(
    gpt: GPT,
    template: ChatTemplate,
    data: Demonstrations,
    objective: SFTObjective,
    section: Mapping[str, Any],
    output: Path,
    execution: Execution,
    progress: Progress,
    *,
    save_epochs: bool,
) -> tuple[Outcome, list[float]]:
    """Train in place, and save the model. Returns the held-out losses, of every epoch with
    `save_epochs`, else of the last.
    """
    batches, losses = objective.batches, list[float]()

    def after_epoch(step: int, model: Any) -> dict[str, float]:
        epoch = step // batches.steps_per_epoch
        loss = held_out_loss(model, data.held_out, execution)
        with reading(model):
            if execution.rank == 0:
                if save_epochs:
                    save_epoch(model, output, epoch)
                for name, text in _samples(model, template, data, section["seed"]):
                    progress.text(step, name, text)
        return {"held_out/loss": loss, "epoch": float(epoch)}

    def finish(model: GPT) -> None:
        if save_epochs:
            losses.extend(_epoch_losses(model, data, execution, output, section["epochs"]))
        else:
            losses.append(held_out_loss(model, data.held_out, execution))
        tuning.save_model(output, model, template.tokenizer, execution.rank)

    hooks = [Hook(epoch_ends(batches.steps_per_epoch, batches.epochs), after_epoch, "by part")]
    settings = cosine_settings(section, batches.steps)
    outcome = tuning.tune(
        gpt, objective, settings, execution, output, progress, hooks, finish=finish
    )
    return outcome, losses


def _epoch_losses(
    model: GPT, data: Demonstrations, execution: Execution, output: Path, epochs: int
) -> list[float]:
    """The held-out loss of every saved epoch, measured anew: a killed attempt's losses are gone.
    `model` is the last one's, and is so again afterwards.
    """
    if execution.world_size > 1:
        torch.distributed.barrier()  # rank 0 has written the last epoch
    losses = []
    for epoch in range(1, epochs + 1):
        folder, measured = epoch_folder(output, epoch), model
        if is_sharded(model):
            fill_shares(model, folder)
        else:
            measured = convert.load(folder).to(execution.device).eval()
        losses.append(held_out_loss(measured, data.held_out, execution))
        torch.clear_autocast_cache()  # of this epoch's weights
    return losses


def _samples(
    model: GPT, template: ChatTemplate, data: Demonstrations, seed: int
) -> list[tuple[str, str]]:
    """(name, text) of a few held-out prompts with the model's answers."""
    prompts = [demonstration.turns[:-1] for demonstration in data.samples]
    answers = sample_answers(
        model, template, prompts, max_new_tokens=SAMPLE_TOKENS, temperature=0.7, seed=seed
    )
    samples = []
    for number, (demonstration, prompt, answer) in enumerate(
        zip(data.samples, prompts, answers, strict=True), 1
    ):
        show = excerpt if demonstration.source in data.unlicensed else str
        lines = [f"{turn.role}: {show(turn.text)}" for turn in prompt]
        lines.append(f"assistant: {answer.text}")
        samples.append((f"{number} {demonstration.source}", "\n".join(lines)))
    return samples


def _metrics(data: Demonstrations, outcome: Outcome) -> Metrics:
    return {
        "loss": outcome.loss,
        "steps": float(outcome.steps),
        "dialogues": float(len(data.training)),
        "tokens_an_epoch": float(sum(data.lengths)),
        **{name: float(count) for name, count in data.counts.items()},
        "seconds": outcome.seconds,
        "dialogues_per_second": outcome.units_per_second,
        "checkpoint_stall_seconds": outcome.checkpoint_stall_seconds,
    }


def _facts(data: Demonstrations, outcome: Outcome) -> dict[str, Any]:
    return {
        "dialogues": len(data.training),
        "tokens": sum(data.lengths),
        "learnt_tokens": sum(sum(dialogue.loss_mask) for dialogue in data.training),
        "steps": outcome.steps,
        **data.counts,
    }


def alike_in_transformers(built: Built) -> Verdict:
    folder = built.output / "model"
    template = ChatTemplate(Tokenizer.load(folder))
    transformers_tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    demonstrations = read_demonstrations(built.inputs["demonstrations"].path, "held_out")
    compared = _dialogues(demonstrations[:COMPARED_DIALOGUES])
    alike = sum(
        transformers_tokenizer.apply_chat_template(messages(turns), tokenize=True)["input_ids"]
        == template.encode(turns).tokens
        for turns in compared
    )
    summary = f"transformers lays {alike} of {len(compared)} held-out dialogues out as we do."
    return Verdict(alike == len(compared), summary, {"alike": alike})


def held_out_loss_falls(built: Built) -> Verdict:
    losses = [value for _, value in built.series.get("held_out/loss", ())]
    if len(losses) < 2:
        return Verdict(True, "There was one epoch, and so nothing to compare.")
    first, best, last = losses[0], min(losses), losses[-1]
    summary = (
        f"Held-out nats a token: {first:.3f} after the first epoch, {best:.3f} at best, "
        f"{last:.3f} after the last."
    )
    return Verdict(best < first, summary, {"first": first, "best": best, "last": last})
