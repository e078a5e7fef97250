"""The reward model: a decoder with one number for a head, trained on rankings (Ouyang et al. 2022,
section 3.5, equation 1).

A text is a prompt and a response, its end-of-text among them; its reward is the head's number
there. What is compared is a difference, so a constant is free: it is chosen so that demonstrations
have a mean of 0 (`shift`). The folder:

    model/                      the decoder and the tokenizer, as of any model
    reward_head.safetensors     the head
    reward.json                 the shift
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt_model import convert
from gpt_model.errors import UserError
from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf.chat_template import Layout
from gpt_model.rlhf.dialogue import Dialogue
from gpt_model.rlhf.responses import shortened
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.batching import EpochBatches, token_batches
from gpt_model.transformer import GPT

if TYPE_CHECKING:
    from gpt_model.rlhf.records import Ranking

HEAD, FACTS = "reward_head.safetensors", "reward.json"


class RewardModel(nn.Module):
    """`shift`: what is taken off every number of the head."""

    def __init__(self, gpt: GPT, seed: int = 0) -> None:
        """The head is drawn from N(0, 1/(width + 1)) with bias 0 (Stiennon et al. 2020, appendix
        B.1).
        """
        super().__init__()
        self.gpt, self.shift = gpt, 0.0
        self.head = nn.Linear(gpt.config.width, 1)
        generator = torch.Generator("cpu").manual_seed(seed)
        with torch.no_grad():
            spread = 1 / math.sqrt(gpt.config.width + 1)
            self.head.weight.copy_(
                torch.normal(0.0, spread, self.head.weight.shape, generator=generator)
            )
            self.head.bias.zero_()

    def rewards(self, rows: PackedSequences) -> Tensor:
        """Of each text, read at its last token, which is its end-of-text: [texts]."""
        return self._number(self.gpt.states_of(rows)[rows.last])

    def values(self, rows: PackedSequences) -> Tensor:
        """The head's number at every token: [tokens]. PPO's value function starts from it."""
        return self._number(self.gpt.states_of(rows))

    def _number(self, states: Tensor) -> Tensor:
        """In full precision whatever the decoder's: rewards differ by less than bfloat16 tells
        apart.
        """
        with torch.autocast(states.device.type, enabled=False):
            found: Tensor = self.head(states.float())[:, 0] - self.shift
        return found


# --- its folder ---


def save(model: RewardModel, tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    convert.save(model.gpt, folder / "model", tokenizer.end_of_text)
    tokenizer.save(folder / "model")
    save_file(
        {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in model.head.state_dict().items()
        },
        folder / HEAD,
    )
    (folder / FACTS).write_text(json.dumps({"shift": model.shift}) + "\n", encoding="utf-8")


def load(folder: Path) -> RewardModel:
    """A reward model that `save` wrote, in evaluation mode. Raises UserError where the folder is no
    reward model's.
    """
    if not (folder / FACTS).is_file():
        raise UserError(
            f"{folder} is not a reward model: it has no {FACTS}. Give the folder of a reward_model artifact."
        )
    model = RewardModel(convert.load(folder / "model"))
    model.head.load_state_dict(load_file(folder / HEAD))
    model.shift = float(json.loads((folder / FACTS).read_text(encoding="utf-8"))["shift"])
    return model.eval()


def check_vocabulary(reward: Tokenizer, policy: Tokenizer) -> None:
    """Raises UserError where the reward model reads other tokens than the policy writes."""
    if reward.style != policy.style or reward.vocab_size != policy.vocab_size:
        raise UserError(
            f"The reward model's vocabulary is {reward.vocab_size} tokens of style {reward.style!r}, and the policy's {policy.vocab_size} "
            f"of style {policy.style!r}: they must be the same. Train the reward model with the policy's tokenizer.",
            field="reward_model",
        )
    for number, (own, other) in enumerate(zip(reward.tokens(), policy.tokens(), strict=True)):
        if own != other:
            raise UserError(
                f"The reward model has another vocabulary than the policy: token {number} is {own!r} to it and {other!r} to the policy. "
                "Train the reward model with the policy's tokenizer.",
                field="reward_model",
            )


# --- texts as it reads them ---


def text_of(layout: Layout, prompt: Dialogue, text: str, context: int) -> list[int] | None:
    """Prompt and response in at most `context` tokens: the prompt's first turns give way. None
    where the last one and the response are too long together.
    """
    response = layout.response(prompt, text)
    before = shortened(layout, prompt, context - len(response))
    return None if before is None else [*before, *response]


@torch.no_grad()
def score(
    model: RewardModel, layout: Layout, texts: Sequence[tuple[Dialogue, str]], device: str = "cpu"
) -> list[float]:
    """The reward of each (prompt, response), texts of like length read together. Of one that is too
    long whatever is left out, its end.

    A reward that is no number is handed back as it is: whoever asks counts those (`not_numbers`).
    """
    context = model.gpt.config.context
    rows = [
        text_of(layout, prompt, text, context)
        or [*layout.prompt(prompt), *layout.response(prompt, text)][-context:]
        for prompt, text in texts
    ]
    return rewards_of(model, rows, device)


@torch.no_grad()
def rewards_of(
    model: RewardModel, rows: Sequence[Sequence[int]], device: str = "cpu"
) -> list[float]:
    """The reward of each text of tokens. The model is left on `device`, in the mode it was in."""
    training = model.training
    model.to(device).eval()
    found = [0.0] * len(rows)
    for part in token_batches([len(row) for row in rows]):
        rewards = model.rewards(
            PackedSequences.of([rows[number] for number in part], device)
        ).tolist()
        for number, reward in zip(part, rewards, strict=True):
            found[number] = reward
    model.train(training)
    return found


def not_numbers(rewards: Sequence[float]) -> list[int]:
    """Which rewards are no numbers."""
    return [number for number, reward in enumerate(rewards) if not math.isfinite(reward)]


def check_numbers(rewards: Sequence[float], named: Callable[[int], str], of: str) -> None:
    """Raises UserError where rewards are no numbers: how many, and the first by its name. `of`:
    what was scored.
    """
    if bad := not_numbers(rewards):
        raise UserError(
            f"The reward of {len(bad)} of {len(rewards)} {of} is not a number, the first of {named(bad[0])}: the reward model is broken. "
            "Lower reward_model.learning_rate or gradient_clip, and build it again.",
            field="reward_model.learning_rate",
        )


# --- rankings as tokens ---


@dataclass(frozen=True)
class Compared:
    """A prompt with its K responses, each laid out once. `pairs`: (better, worse) places among
    them, those of equal rank left out, and as often as people said so.
    """

    source: str
    id: str
    texts: list[list[int]]
    responses: list[int]  # tokens of each response, at the end of its text
    pairs: list[tuple[int, int]]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.texts))


@dataclass(frozen=True)
class Laid:
    """Rankings that can be learnt from or measured on, and what cannot."""

    compared: list[Compared]
    rankings: list[Ranking]  # what each of these is of, without the responses that are too long
    without_pairs: int  # rankings whose responses are all of equal rank
    too_long: list[
        str
    ]  # responses that do not fit the context with their prompt's last turn, by name
    lost: int  # rankings that without these have no better and worse response

    @property
    def pairs(self) -> int:
        return sum(len(one.pairs) for one in self.compared)

    def told(self, what: str) -> str:
        first = f" (the first: {self.too_long[0]})" if self.too_long else ""
        return (
            f"{what}: {len(self.compared)} rankings with {self.pairs} comparisons; left out: {self.without_pairs} without a better and a "
            f"worse response; {len(self.too_long)} responses longer than the context{first}, and {self.lost} rankings that without them "
            "compare nothing."
        )


def lay_out(layout: Layout, rankings: Sequence[Ranking], context: int) -> Laid:
    """Rankings as tokens."""
    laid = Laid([], [], 0, [], 0)
    without_pairs, lost = 0, 0
    for whole in rankings:
        if not whole.pairs():
            without_pairs += 1
            continue
        texts = [
            text_of(layout, whole.prompt, response.text, context) for response in whole.responses
        ]
        fitting = {place: text for place, text in enumerate(texts) if text is not None}
        laid.too_long.extend(
            f"{whole.source}, {whole.id}, response {place + 1}"
            for place in range(len(texts))
            if place not in fitting
        )
        ranking = whole.only(list(fitting))
        if not (pairs := ranking.pairs()):
            lost += 1
            continue
        sizes = [
            len(layout.response(ranking.prompt, response.text)) for response in ranking.responses
        ]
        laid.compared.append(
            Compared(ranking.source, ranking.id, list(fitting.values()), sizes, pairs)
        )
        laid.rankings.append(ranking)
    return replace(laid, without_pairs=without_pairs, lost=lost)


# --- what is learnt ---


@dataclass(frozen=True)
class Part:
    """Some prompts with all their responses: a micro-batch."""

    rows: PackedSequences
    better: Tensor  # [pairs], which text
    worse: Tensor  # [pairs]
    share: Tensor  # [pairs], of each in the loss


class Comparing:
    """The objective: −1/(K choose 2) · Σ log σ(r_better − r_worse) of a prompt, a mean over the
    prompts of a step.

    Each response goes through the model once, and all pairs of a prompt are in one micro-batch, as
    the paper found that shuffled pairs are overfitted in one epoch; so are those of several
    people's rankings. Of K choose 2 those of equal rank are left out.
    """

    unit, flops_per_unit = "comparisons", 0.0  # lengths differ too much for one figure

    def __init__(
        self, compared: Sequence[Compared], batches: EpochBatches, device: str = "cpu"
    ) -> None:
        self.compared, self.batches, self.device = compared, batches, device
        each = (
            sum(len(compared[item].pairs) for item in batches.items(step))
            for step in range(batches.steps)
        )
        self._before = [0, *accumulate(each)]

    def units_before(self, step: int) -> int:
        return self._before[step]

    def micro_batches(self, step: int) -> list[Part]:
        # The loop takes the mean over micro-batches and ranks; a sum over them is meant.
        scale = len(self.batches.partition(step)) / len(self.batches.items(step))
        return [self._part(items, scale) for items in self.batches.micro_batches(step)]

    def _part(self, items: Sequence[int], scale: float) -> Part:
        texts: list[list[int]] = []
        better, worse, share = [], [], []
        for one in (self.compared[item] for item in items):
            better += [len(texts) + place for place, _ in one.pairs]
            worse += [len(texts) + place for _, place in one.pairs]
            share += [scale / len(one.pairs)] * len(one.pairs)
            texts += one.texts
        there = (torch.tensor(better), torch.tensor(worse), torch.tensor(share))
        return Part(PackedSequences.of(texts, self.device), *(one.to(self.device) for one in there))

    def loss(
        self, model: nn.Module, micro_batch: Part
    ) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
        assert isinstance(model, RewardModel)
        rewards = model.rewards(micro_batch.rows)
        gaps = rewards[micro_batch.better] - rewards[micro_batch.worse]  # [pairs]
        figures = {
            "training_accuracy": ((gaps > 0).sum(), len(gaps)),
            "margin": (gaps.detach().sum(), len(gaps)),
        }
        return -(F.logsigmoid(gaps) * micro_batch.share).sum(), figures
