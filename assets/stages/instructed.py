"""instructed: of the supervised epochs the one whose answers to held-out prompts the reward model
likes best (Ouyang et al. 2022, 3.5).

The paper overfits on validation loss after one epoch and finds that more epochs help all the same;
so both are shown side by side. The artifact is as `tuned.py` says, and answers.jsonl: of every
epoch and prompt the reward and the length, no text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import (
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
from assets.stages import tuning_io
from assets.stages.base_model import require
from assets.stages.prompt_subset import drawn
from gpt_model.errors import UserError

if TYPE_CHECKING:
    from gpt_model.rlhf.answers import Answer
    from gpt_model.rlhf.records import Prompt

ANSWERS = "answers.jsonl"
SHOWN = 3  # answers of each epoch
APART = "Models are compared on none of them."
SHARED = (
    "Models are compared on the same ones, as there are only {} others: what is said of this epoch there, by the judge too, is a little "
    "too good."
)
EMPTY = 0.5  # share of answers that say nothing, from which on something is wrong


@dataclass(frozen=True)
class Epoch:
    """What the answers of one epoch's model are worth."""

    number: int  # from 1
    rewards: list[float]
    answers: list[Answer]
    held_out_loss: float | None  # of supervised tuning, after that epoch

    def told(self) -> dict[str, Any]:
        from gpt_model.statistics import mean_interval

        low = high = mean = sum(self.rewards) / len(self.rewards)
        if len(self.rewards) > 1:
            interval = mean_interval(self.rewards)
            low, high = interval.low, interval.high
        ended = sum(answer.ended for answer in self.answers) / len(self.answers)
        length = sum(len(answer.tokens) for answer in self.answers) / len(self.answers)
        counts = {
            "empty": sum(answer.empty for answer in self.answers),
            "prompts_cut": sum(answer.prompt_cut for answer in self.answers),
        }
        told = {
            "reward": mean,
            "reward_low": low,
            "reward_high": high,
            "ended": ended,
            "length": length,
            **counts,
        }
        return told if self.held_out_loss is None else {**told, "held_out_loss": self.held_out_loss}


# --- run ---


def choose(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Have every epoch answer the same prompts, and keep the one with the best mean reward; the
    first of equals.
    """
    from gpt_model import convert
    from gpt_model.rlhf import reward_model as reward
    from gpt_model.rlhf.chat_template import ChatTemplate
    from gpt_model.tokenizer import Tokenizer

    supervised, section = require(inputs, "supervised"), config["instructed"]
    tokenizer = Tokenizer.load(supervised.path / "model")
    reward.check_vocabulary(Tokenizer.load(inputs["reward_model"].path / "model"), tokenizer)
    asked = drawn(inputs["prompts"].path, section)
    prompts = asked.choosing
    if not prompts:
        raise UserError(
            "There is no held-out prompt to choose an epoch by: make prompts.held_out larger.",
            field="prompts.held_out",
        )
    losses = losses_by_epoch(supervised)
    folders = epoch_folders(supervised)
    epochs = []
    for done, (number, folder) in enumerate(folders):
        answers, rewards = _answered(
            folder,
            ChatTemplate(tokenizer),
            prompts,
            inputs["reward_model"],
            section,
            progress.profile.device,
        )
        reward.check_finite(
            rewards,
            lambda at: f"{prompts[at].source}, {prompts[at].id}",
            f"answers of epoch {number}",
        )
        epochs.append(Epoch(number, rewards, answers, losses.get(number)))
        progress.metrics(number, {name: float(value) for name, value in epochs[-1].told().items()})
        for place, answer in enumerate(answers[:SHOWN]):
            progress.text(number, f"{place + 1} {prompts[place].source}", answer.text)
        progress.advance(done + 1, len(folders), "epochs")
    best = max(epochs, key=lambda epoch: (epoch.told()["reward"], -epoch.number))
    facts = {
        "best_epoch": best.number,
        "prompts": len(prompts),
        "apart": asked.apart,
        "left": asked.left,
        "epochs": [
            {"epoch": one.number, **{name: round(value, 6) for name, value in one.told().items()}}
            for one in epochs
        ],
    }
    tuning_io.write(output, convert.load(dict(folders)[best.number]), tokenizer, facts)
    _write_answers(output, prompts, epochs)
    told, last = best.told(), epochs[-1].told()
    return {
        "epochs": len(epochs),
        "best_epoch": best.number,
        "prompts": len(prompts),
        **told,
        "reward_of_last_epoch": last["reward"],
        "empty_share": told["empty"] / len(prompts),
        **(
            {"epoch_of_lowest_loss": min(losses, key=lambda number: (losses[number], number))}
            if losses
            else {}
        ),
    }


def _answered(
    folder: Path,
    template: Any,
    prompts: Sequence[Prompt],
    scorer: Artifact,
    section: Config,
    device: str,
) -> tuple[list[Answer], list[float]]:
    """One epoch's answers, and their rewards."""
    from gpt_model import convert
    from gpt_model.rlhf import reward_model as reward
    from gpt_model.rlhf.answers import sample_answers

    model, dialogues = convert.load(folder).to(device).eval(), [prompt.turns for prompt in prompts]
    answers = sample_answers(
        model,
        template,
        dialogues,
        max_new_tokens=section["max_new_tokens"],
        temperature=section["temperature"],
        seed=section["seed"],
    )
    texts = [(turns, one.text) for turns, one in zip(dialogues, answers, strict=True)]
    return answers, reward.score(reward.load(scorer.path), template, texts, device)


def epoch_folders(supervised: Artifact) -> list[tuple[int, Path]]:
    """(epoch, its model's folder), in order. Raises UserError where there are none."""
    found = sorted(
        (int(path.name), path)
        for path in (supervised.path / "epochs").glob("*")
        if path.name.isdigit()
    )
    if not found:
        raise UserError(
            f"{supervised.path} keeps no epochs to choose among: build supervised again.",
            field="supervised",
        )
    return found


def losses_by_epoch(supervised: Artifact) -> dict[int, float]:
    """Loss on held-out demonstrations after each epoch, as supervised tuning has left it; of those
    it says nothing of, none.
    """
    rows = tuning_io.facts_of(supervised).get("epochs", [])
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
    (output / ANSWERS).write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


# --- checks and what is shown ---


def _best_is_kept(built: Built) -> Verdict:
    """model/ has the weights of the epoch with the highest mean in answers.jsonl."""
    rewards: dict[int, list[float]] = {}
    for row in map(
        json.loads, (built.output / ANSWERS).read_text(encoding="utf-8").split("\n")[:-1]
    ):
        rewards.setdefault(row["epoch"], []).append(row["reward"])
    means = {epoch: sum(own) / len(own) for epoch, own in rewards.items()}
    best = max(means, key=lambda epoch: (means[epoch], -epoch))
    kept = (built.output / "model" / "model.safetensors").read_bytes()
    same = (
        kept
        == (
            built.inputs["supervised"].path / "epochs" / str(best) / "model.safetensors"
        ).read_bytes()
    )
    return Verdict(
        same,
        f"Epoch {best} of {len(means)} has the best mean reward, {means[best]:.3f}; model/ {'is' if same else 'is not'} it.",
    )


def _answers_say_something(built: Built) -> Verdict:
    share = built.metrics["empty_share"]
    return Verdict(
        share < EMPTY,
        f"{share:.0%} of its answers to {int(built.metrics['prompts'])} prompts say nothing.",
        {"empty": share},
    )


def show(built: Built, folder: Path) -> None:
    """epochs.png (reward by epoch, validation loss beside it), epochs.md and samples.md."""
    names = ("reward", "reward_low", "reward_high")
    reward, low, high = (built.series.get(name, ()) for name in names)
    panels = [
        (
            "reward on held-out prompts",
            "epoch",
            [("mean", reward), ("95 % interval, low", low), ("95 % interval, high", high)],
        ),
        (
            "loss on held-out demonstrations",
            "epoch",
            [("nats a token", built.series.get("held_out_loss", ()))],
        ),
    ]
    tuning_io.curves(panels, folder / "epochs.png")
    facts = json.loads((built.output / tuning_io.FACTS).read_text(encoding="utf-8"))
    lines = [
        "| epoch | reward (95 % interval) | held-out loss | tokens | ended | say nothing |",
        "|---|---|---|---|---|---|",
    ]
    for row in facts["epochs"]:
        loss = f"{row['held_out_loss']:.3f}" if "held_out_loss" in row else "–"
        mark = " (kept)" if row["epoch"] == facts["best_epoch"] else ""
        lines.append(
            f"| {row['epoch']}{mark} | {row['reward']:.3f} ({row['reward_low']:.3f} to {row['reward_high']:.3f}) | {loss} "
            f"| {row['length']:.1f} | {row['ended']:.0%} | {row['empty']} |"
        )
    said = f"{facts['prompts']} held-out prompts, the same for every epoch. The best mean reward is kept; loss has no say in it. "
    said += APART if facts["apart"] else SHARED.format(facts["left"])
    (folder / "epochs.md").write_text("\n".join(lines) + f"\n\n{said}\n", encoding="utf-8")
    if built.texts:
        (folder / "samples.md").write_text(
            tuning_io.last_texts(built, "Answers of the last epoch to held-out prompts."),
            encoding="utf-8",
        )


INSTRUCTED = Stage(
    name="instructed",
    version="2",
    run=choose,
    description="The supervised epoch whose answers to held-out prompts have the best mean reward.",
    kinds=("pytorch",),
    checks=(
        tuning_io.MODEL_LOADS,
        Check(
            "best_is_kept", True, "model/ is the epoch with the best mean reward.", _best_is_kept
        ),
        Check(
            "answers_say_something",
            False,
            f"Fewer than {EMPTY:.0%} of the answers are empty.",
            _answers_say_something,
        ),
    ),
    show=show,
    pool="training",
    model=True,
)
