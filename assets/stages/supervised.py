"""Stage `supervised`: InstructGPT's first step (Ouyang et al. 2022, section 3.5): the pre-trained
model tuned on demonstrations.

Every epoch's weights are kept: validation loss is best after one, and people prefer later ones, so
which of them is used is the reward model's to say (`instructed.py`). What is trained is
`gpt_model.rlhf.sft`. Beside what `tuned.py` says:

    epochs/<n>/      the model as it was after epoch n, without the tokenizer; the last one is model/ too
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import SCRATCH, Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from assets.report.human_data import hidden, shortened
from assets.stages import tuning_io
from gpt_model.errors import UserError, about
from gpt_model.training.batching import TRAINING_TOKENS, EpochBatches

if TYPE_CHECKING:
    from gpt_model.rlhf.chat_template import ChatTemplate, EncodedDialogue
    from gpt_model.rlhf.records import Demonstration
    from gpt_model.rlhf.sft import SFTObjective
    from gpt_model.training.engine import Execution
    from gpt_model.training.loop import Outcome
    from gpt_model.transformer import GPT

HELD_OUT = 1000  # held-out dialogues at most whose loss is measured after each epoch
SAMPLES, SAMPLE_TOKENS = 3, 48


@dataclass(frozen=True)
class Dialogues:
    """Demonstrations as one model's tokens, and what could not be used whole."""

    training: Sequence[EncodedDialogue]
    held_out: Sequence[EncodedDialogue]
    asked: Sequence[Demonstration]  # held-out ones whose prompts are answered on the way
    unseen: Collection[str]  # sources whose licence does not cover their text
    counts: Mapping[str, int]


def dialogues(
    artifact: Path, template: ChatTemplate, context: int, progress: Progress
) -> Dialogues:
    """Raises UserError where none fits the context."""
    from gpt_model.rlhf.records import evenly, read_demonstrations
    from gpt_model.rlhf.sft import encode_dialogues

    training, counts = encode_dialogues(
        [one.turns for one in read_demonstrations(artifact, "training")], template, context
    )
    known = read_demonstrations(artifact, "held_out")
    held_out, _ = encode_dialogues(
        [one.turns for one in evenly(known, HELD_OUT)], template, context
    )
    if not training or not held_out:
        raise UserError(
            f"None of the {'training' if not training else 'held-out'} demonstrations fits the model's context of {context} tokens: "
            "give shorter ones, or a model with a longer context.",
            field="demonstrations",
        )
    if any(counts.values()):
        progress.log(
            f"Demonstrations that do not fit the context of {context} tokens: {counts['shortened']} lost their oldest turns, "
            f"{counts['too_long']} were left out."
        )
    return Dialogues(training, held_out, evenly(known, SAMPLES), hidden(artifact), counts)


def tune(
    gpt: GPT,
    template: ChatTemplate,
    data: Dialogues,
    objective: SFTObjective,
    section: Mapping[str, Any],
    output: Path,
    progress: Progress,
    *,
    keeping: bool,
) -> tuple[Outcome, list[float]]:
    """Train in place, held-out loss after every epoch; `keeping`: its weights, too. (outcome,
    held-out loss by epoch)
    """
    from assets.execution.training import execution_of
    from gpt_model.rlhf.sft import held_out_loss
    from gpt_model.training.engine import start
    from gpt_model.training.loop import Hook, train
    from gpt_model.training.tuning import cosine_settings, epoch_ends, save_epoch

    execution = execution_of(progress, fixed_shapes=False)
    start(execution)
    batches = objective.batches
    settings = cosine_settings(section, batches.steps)

    def after_an_epoch(step: int, model: Any) -> dict[str, float]:
        epoch = step // batches.steps_per_epoch
        found = held_out_loss(model, data.held_out, execution)
        if execution.rank == 0:
            if keeping:
                save_epoch(model, output, epoch)
            for name, text in _samples(model, template, data, section["seed"]):
                progress.text(step, name, text)
        return {"held_out/loss": found, "epoch": float(epoch)}

    outcome = train(
        gpt,
        objective,
        settings,
        execution,
        checkpoints=output / SCRATCH / "checkpoints",
        progress=progress,
        hooks=[Hook(epoch_ends(batches.steps_per_epoch, batches.epochs), after_an_epoch)],
    )
    return outcome, _losses_by_epoch(gpt, data, execution, output, section["epochs"], keeping)


def _losses_by_epoch(
    gpt: GPT, data: Dialogues, execution: Execution, output: Path, epochs: int, keeping: bool
) -> list[float]:
    """Measured of the weights that are kept, as an earlier attempt's numbers are gone; of the last
    ones alone where none are.
    """
    from gpt_model import convert
    from gpt_model.rlhf.sft import held_out_loss
    from gpt_model.training.tuning import epoch_folder

    if not keeping:
        return [held_out_loss(gpt.eval(), data.held_out, execution)]
    if execution.world_size > 1:
        import torch.distributed as dist

        dist.barrier()  # rank 0 has written the last one
    folders = [epoch_folder(output, epoch) for epoch in range(1, epochs + 1)]
    return [
        held_out_loss(convert.load(folder).to(execution.device).eval(), data.held_out, execution)
        for folder in folders
    ]


def _samples(
    model: GPT, template: ChatTemplate, data: Dialogues, seed: int
) -> list[tuple[str, str]]:
    from gpt_model.rlhf.answers import sample_answers

    prompts = [one.turns[:-1] for one in data.asked]
    answers = sample_answers(
        model, template, prompts, max_new_tokens=SAMPLE_TOKENS, temperature=0.7, seed=seed
    )
    samples = []
    for number, (one, prompt, found) in enumerate(
        zip(data.asked, prompts, answers, strict=True), 1
    ):
        said = [
            f"{turn.role}: {shortened(turn.text) if one.source in data.unseen else turn.text}"
            for turn in prompt
        ]
        samples.append((f"{number} {one.source}", "\n".join([*said, f"assistant: {found.text}"])))
    return samples


def micro_tokens(progress: Progress, context: int) -> int:
    """Tokens of a rank and forward pass: the profile's bound is in sequences."""
    return (
        progress.profile.micro_batch * context if progress.profile.micro_batch else TRAINING_TOKENS
    )


def batches_of(
    sizes: Sequence[int], batch: int, section: Mapping[str, Any], progress: Progress, context: int
) -> EpochBatches:
    """What is met when, `sizes` being tokens of each. Raises UserError where a batch has fewer than
    there are processes.
    """
    how = (
        section["epochs"],
        section["seed"],
        progress.rank,
        progress.world_size,
        micro_tokens(progress, context),
    )
    try:
        return EpochBatches(sizes, batch, *how)
    except ValueError as error:
        raise UserError(
            f"Batches cannot be shared out: {error}. Give more data, raise batch, or set fewer processes in "
            f"profiles/{progress.profile.name}.yaml.",
            field="batch",
        ) from None


def _run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    from gpt_model.rlhf.sft import SFTObjective
    from gpt_model.training.tuning import best_epoch

    section = config["supervised"]
    gpt, template = tuning_io.begin(
        inputs["pretrained"], inputs["tokenizer"].path, section["dropout"], section["seed"]
    )
    shape = gpt.config
    data = dialogues(inputs["demonstrations"].path, template, shape.context, progress)
    sizes = [len(one.tokens) for one in data.training]
    with about("supervised"):
        batches = batches_of(sizes, section["batch"], section, progress, shape.context)
    objective = SFTObjective(data.training, batches, shape.flops_per_token())
    outcome, losses = tune(gpt, template, data, objective, section, output, progress, keeping=True)
    metrics = metrics_of(outcome, data, sizes)
    metrics |= {
        "held_out_loss": losses[-1],
        "best_epoch_by_loss": float(best_epoch([-loss for loss in losses])),
    }
    if progress.rank == 0:
        epochs = [
            {"epoch": n, "held_out_loss": round(loss, 6)} for n, loss in enumerate(losses, start=1)
        ]
        tuning_io.write(
            output,
            gpt,
            template.tokenizer,
            {**facts_of(data, sizes, outcome.steps), "epochs": epochs},
        )
    return metrics


def metrics_of(outcome: Outcome, data: Dialogues, sizes: Sequence[int]) -> Metrics:
    return {
        "loss": outcome.loss,
        "steps": float(outcome.steps),
        "dialogues": float(len(data.training)),
        "tokens_an_epoch": float(sum(sizes)),
        **{name: float(count) for name, count in data.counts.items()},
        "seconds": outcome.seconds,
        "dialogues_per_second": outcome.units_per_second,
        "checkpoint_stall_seconds": outcome.checkpoint_stall_seconds,
    }


def facts_of(data: Dialogues, sizes: Sequence[int], steps: int) -> dict[str, Any]:
    learnt = sum(sum(one.loss_mask) for one in data.training)
    return {
        "dialogues": len(data.training),
        "tokens": sum(sizes),
        "learnt_tokens": learnt,
        "steps": steps,
        **data.counts,
    }


# --- checks and pictures ---


def _alike_in_transformers(built: Built) -> Verdict:
    from transformers import AutoTokenizer

    from gpt_model.rlhf.chat_template import ChatTemplate
    from gpt_model.rlhf.dialogue import messages
    from gpt_model.rlhf.records import read_demonstrations
    from gpt_model.tokenizer import Tokenizer

    folder = built.output / "model"
    template = ChatTemplate(Tokenizer.load(folder))
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    known = read_demonstrations(built.inputs["demonstrations"].path, "held_out")[:100]
    alike = sum(
        theirs.apply_chat_template(messages(one.turns), tokenize=True)["input_ids"]
        == template.encode(one.turns).tokens
        for one in known
    )
    return Verdict(
        alike == len(known),
        f"transformers lays {alike} of {len(known)} held-out dialogues out as we do.",
        {"alike": alike},
    )


def _held_out_falls(built: Built) -> Verdict:
    losses = [value for _, value in built.series.get("held_out/loss", ())]
    if len(losses) < 2:
        return Verdict(True, "There was one epoch, and so nothing to compare.")
    told = f"Held-out nats a token: {losses[0]:.3f} after the first epoch, {min(losses):.3f} at best, {losses[-1]:.3f} after the last."
    return Verdict(
        min(losses) < losses[0], told, {"first": losses[0], "best": min(losses), "last": losses[-1]}
    )


def panels(series: Mapping[str, Sequence[tuple[int, float]]]) -> list[tuning_io.Panel]:
    """What tuning.png has."""
    training, held_out = series.get("nats", ()), series.get("held_out/loss", ())
    found: list[tuning_io.Panel] = [
        (
            "nats a token of the assistant's",
            "step",
            [("training", training), ("held out, after each epoch", held_out)],
        )
    ]
    if "text_nats" in series:
        found.append(("nats a token of pre-training text", "step", [("", series["text_nats"])]))
    return [*found, ("learning rate", "step", [("", series.get("learning_rate", ()))])]


def show(built: Built, folder: Path) -> None:
    """tuning.png (training and held-out loss, that of pre-training text where some is mixed in,
    learning rate) and samples.md.
    """
    tuning_io.curves(panels(built.series), folder / "tuning.png")
    (folder / "samples.md").write_text(
        tuning_io.last_texts(built, "Held-out prompts, answered after the last epoch."),
        encoding="utf-8",
    )


LAID_OUT = Check(
    "laid_out_alike",
    False,
    "transformers' chat template gives the tokens that training saw.",
    _alike_in_transformers,
)

SUPERVISED = Stage(
    name="supervised",
    version="2",
    run=_run,
    description="The pre-trained model tuned on demonstrations (InstructGPT's first step), every epoch kept.",
    kinds=("pytorch", "deepspeed"),
    checks=(
        tuning_io.LOSS_IS_FINITE,
        tuning_io.MODEL_LOADS,
        tuning_io.LOSS_FALLS,
        LAID_OUT,
        Check(
            "held_out_falls",
            False,
            "Held-out loss is lower after some epoch than after the first.",
            _held_out_falls,
        ),
    ),
    show=show,
    ranks="profile",
    pool="training",
    model=True,
)
