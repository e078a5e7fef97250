"""Runs the stage `instructed`: every supervised epoch answers the same prompts, and the epoch with
the best mean reward becomes the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from assets.contract import Artifact, Built, Config, Inputs, Metrics, Progress, Verdict
from assets.execution import tuning
from assets.execution.stored_models import StoredModels, join_to_evaluate
from assets.stages import base_model
from assets.stages.alignment import EMPTY
from assets.stages.base_model import require
from gpt_model import convert
from gpt_model.errors import UserError
from gpt_model.io import read_json_lines, write_json_lines
from gpt_model.rlhf import reward_model
from gpt_model.rlhf.answers import Answer, sample_answers
from gpt_model.rlhf.chat_template import ChatTemplate
from gpt_model.rlhf.records import Prompt
from gpt_model.rlhf.sft_selection import Epoch, prompt_subset
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.engine import evaluation_precision
from gpt_model.training.tuning import EPOCHS, best_epoch, epoch_folder

ANSWERS_FILE = "answers.jsonl"
SHOWN_ANSWERS = 3  # answers of each epoch that are shown


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Every rank runs it, and answers and reads a share of each epoch's batches; rank 0 writes."""
    supervised, section = require(inputs["supervised"]), config["instructed"]
    scorer = inputs["reward_model"]
    tokenizer = Tokenizer.load(supervised.path / "model")
    reward_tokenizer = Tokenizer.load(scorer.path / "model")
    reward_model.check_vocabulary(reward_tokenizer, tokenizer)
    subset = prompt_subset(inputs["prompts"].path, section)
    prompts = subset.choosing
    if not prompts:
        raise UserError(
            "There is no held-out prompt to choose an epoch by: make prompts.held_out larger.",
            field="prompts.held_out",
        )
    losses, folders = losses_by_epoch(supervised), epoch_folders(supervised)
    stored = [folder for _, folder in folders]
    models = join_to_evaluate("instructed", [*stored, scorer.path / "model"], progress)
    epochs: list[Epoch] = []
    for number, folder in folders:
        answers, rewards = _answer(
            models, supervised, folder, ChatTemplate(tokenizer), prompts, scorer, section
        )
        reward_model.check_finite(
            rewards,
            lambda index: f"{prompts[index].source}, {prompts[index].id}",
            f"answers of epoch {number}",
        )
        epochs.append(Epoch(number, rewards, answers, losses.get(number)))
        reported = {name: float(value) for name, value in epochs[-1].metrics().items()}
        progress.metrics(number, reported)
        for index, answer in enumerate(answers[:SHOWN_ANSWERS]):
            progress.text(number, f"{index + 1} {prompts[index].source}", answer.text)
        progress.advance(len(epochs), len(folders), "epochs")
    if progress.rank:
        return {}
    best = epochs[best_epoch([epoch.reward for epoch in epochs]) - 1]
    metrics = best.metrics()
    facts = {
        "best_epoch": best.number,
        "prompts": len(prompts),
        "apart": subset.apart,
        "left": subset.left,
        "epochs": [
            {
                "epoch": epoch.number,
                **{name: round(value, 6) for name, value in epoch.metrics().items()},
            }
            for epoch in epochs
        ],
    }
    folder = dict(folders)[best.number]
    tuning.copy_model(folder, output, tokenizer)
    tuning.write_facts(output, convert.shape(folder), facts)
    _write_answers(output, prompts, epochs)
    lowest = {"epoch_of_lowest_loss": min(losses, key=lambda n: (losses[n], n))} if losses else {}
    return {
        "epochs": len(epochs),
        "best_epoch": best.number,
        "prompts": len(prompts),
        **metrics,
        "reward_of_last_epoch": epochs[-1].reward,
        "empty_share": metrics["empty"] / len(prompts),
        **lowest,
    }


def _answer(
    models: StoredModels,
    supervised: Artifact,
    folder: Path,
    template: ChatTemplate,
    prompts: Sequence[Prompt],
    scorer: Artifact,
    section: Config,
) -> tuple[list[Answer], list[float]]:
    """An epoch's answers, and their rewards. Collective."""
    execution, dialogues = models.execution, [prompt.turns for prompt in prompts]
    with evaluation_precision(execution, base_model.precision(supervised)):
        answers = sample_answers(
            models.gpt(folder),
            template,
            dialogues,
            max_new_tokens=section["max_new_tokens"],
            temperature=section["temperature"],
            seed=section["seed"],
            execution=execution,
        )
    texts = [(turns, answer.text) for turns, answer in zip(dialogues, answers, strict=True)]
    with evaluation_precision(execution, base_model.precision(scorer)):
        model = models.reward_model(scorer.path)
        return answers, reward_model.score(model, template, texts, execution)


def epoch_folders(supervised: Artifact) -> list[tuple[int, Path]]:
    """(epoch, its model's folder), in order. Raises UserError where there are none."""
    paths = (supervised.path / EPOCHS).glob("*")
    folders = sorted((int(path.name), path) for path in paths if path.name.isdigit())
    if not folders:
        raise UserError(
            f"{supervised.path} keeps no epochs to choose among: build supervised again.",
            field="supervised",
        )
    return folders


def losses_by_epoch(supervised: Artifact) -> dict[int, float]:
    """Loss on held-out demonstrations after each epoch that supervised fine-tuning recorded one
    of.
    """
    rows = tuning.facts_of(supervised).get("epochs", [])
    return {
        int(row["epoch"]): float(row["held_out_loss"])
        for row in rows
        if isinstance(row, dict) and row.get("held_out_loss") is not None
    }


def _write_answers(output: Path, prompts: Sequence[Prompt], epochs: Sequence[Epoch]) -> None:
    rows = [
        {
            "epoch": epoch.number,
            "source": prompt.source,
            "id": prompt.id,
            "reward": reward,
            "tokens": len(answer.tokens),
            "ended": answer.ended,
            "empty": answer.empty,
        }
        for epoch in epochs
        for prompt, reward, answer in zip(prompts, epoch.rewards, epoch.answers, strict=True)
    ]
    write_json_lines(output / ANSWERS_FILE, rows)


def best_is_kept(built: Built) -> Verdict:
    """Compares model/ with the epoch of the highest mean reward in answers.jsonl."""
    rewards: dict[int, list[float]] = {}
    for row in read_json_lines(built.output / ANSWERS_FILE):
        rewards.setdefault(row["epoch"], []).append(row["reward"])
    means = {epoch: sum(values) / len(values) for epoch, values in rewards.items()}
    best = max(means, key=lambda epoch: (means[epoch], -epoch))
    folders = built.output / "model", epoch_folder(built.inputs["supervised"].path, best)
    retained, expected = ((folder / "model.safetensors").read_bytes() for folder in folders)
    same = retained == expected
    return Verdict(
        same,
        f"Epoch {best} of {len(means)} has the best mean reward, {means[best]:.3f}; model/ "
        f"{'is' if same else 'is not'} it.",
    )


def answers_say_something(built: Built) -> Verdict:
    share, prompts = built.metrics["empty_share"], int(built.metrics["prompts"])
    summary = f"{share:.0%} of its answers to {prompts} prompts say nothing."
    return Verdict(share < EMPTY, summary, {"empty": share})
