"""The reward model: a decoder with a scalar head, trained on rankings (Ouyang et al. 2022, section
3.5, equation 1).

The reward of prompt and response is the head's output at the text's end-of-text. The loss compares
rewards, so their mean is free: `shift` makes the demonstrations' 0. The folder:

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
from gpt_model.io import dump_json
from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf.answers import encode_shortened
from gpt_model.rlhf.chat_template import ChatTemplate
from gpt_model.rlhf.dialogue import Dialogue
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.batching import (
    ENCODED_ROWS,
    EpochBatches,
    Idle,
    chunks,
    collated,
    token_batches,
)
from gpt_model.training.engine import ALONE, Execution
from gpt_model.training.sharded import is_sharded
from gpt_model.training.shared_batches import results_of_items
from gpt_model.transformer import GPT

if TYPE_CHECKING:
    from gpt_model.rlhf.records import Ranking

HEAD, FACTS = "reward_head.safetensors", "reward.json"


class RewardModel(nn.Module):
    """`shift` is subtracted from every output of the head."""

    def __init__(self, gpt: GPT, seed: int = 0) -> None:
        """The head's weights are drawn from N(0, 1/(width + 1)), its bias is 0 (Stiennon et al.
        2020, appendix B.1).
        """
        super().__init__()
        self.gpt, self.shift = gpt, 0.0
        self.head = nn.Linear(gpt.config.width, 1)
        generator = torch.Generator("cpu").manual_seed(seed)
        with torch.no_grad():
            std = 1 / math.sqrt(gpt.config.width + 1)
            weight = torch.normal(0.0, std, self.head.weight.shape, generator=generator)
            self.head.weight.copy_(weight)
            self.head.bias.zero_()

    def rewards(self, rows: PackedSequences) -> Tensor:
        """The reward of each text, read at its last token, which is end-of-text: [texts]."""
        return self._scalar(self.gpt.states_of(rows)[rows.last])

    def values(self, rows: PackedSequences) -> Tensor:
        """The head's output at every token: [tokens]. PPO's critic starts from it."""
        return self._scalar(self.gpt.states_of(rows))

    def _scalar(self, states: Tensor) -> Tensor:
        """[states, width] -> [states], float32: rewards differ by less than bfloat16 resolves."""
        with torch.autocast(states.device.type, enabled=False):
            scalars: Tensor = self.head(states.float())[:, 0] - self.shift
        return scalars


def save(model: RewardModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder that `load` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    convert.save(model.gpt, folder / "model", tokenizer.end_of_text)
    tokenizer.save(folder / "model")
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.head.state_dict().items()
    }
    save_file(weights, folder / HEAD)
    dump_json(folder / FACTS, {"shift": model.shift})


def load(folder: Path, read: Callable[[Path], GPT] = convert.load) -> RewardModel:
    """A reward model that `save` wrote, in evaluation mode; `read` reads the decoder. Raises
    UserError where the folder is no reward model's.
    """
    if not (folder / FACTS).is_file():
        raise UserError(
            f"{folder} is not a reward model: it has no {FACTS}. Give the folder of a reward_model "
            "artifact."
        )
    model = RewardModel(read(folder / "model"))
    model.head.load_state_dict(load_file(folder / HEAD))
    model.shift = float(json.loads((folder / FACTS).read_text(encoding="utf-8"))["shift"])
    return model.eval()


def check_vocabulary(reward: Tokenizer, policy: Tokenizer) -> None:
    """Raises UserError where the reward model reads other tokens than the policy writes."""
    if reward.style != policy.style or reward.vocab_size != policy.vocab_size:
        raise UserError(
            f"The reward model's vocabulary is {reward.vocab_size} tokens of style "
            f"{reward.style!r}, and the policy's {policy.vocab_size} of style {policy.style!r}: "
            "they must be the same. Train the reward model with the policy's tokenizer.",
            field="reward_model",
        )
    for token, (ours, theirs) in enumerate(zip(reward.tokens(), policy.tokens(), strict=True)):
        if ours != theirs:
            raise UserError(
                f"The reward model has another vocabulary than the policy: token {token} is "
                f"{ours!r} to it and {theirs!r} to the policy. Train the reward model with the "
                "policy's tokenizer.",
                field="reward_model",
            )


def encode_text(
    template: ChatTemplate, prompt: Dialogue, response: str, context: int
) -> list[int] | None:
    """Prompt and response in at most `context` tokens: the prompt's oldest exchanges are dropped.
    None where its last turn and the response are too long together.
    """
    answer = template.encode_response(prompt, response)
    question = encode_shortened(template, prompt, context - len(answer))
    return None if question is None else [*question, *answer]


@torch.no_grad()
def score(
    model: RewardModel,
    template: ChatTemplate,
    texts: Sequence[tuple[Dialogue, str]],
    execution: Execution = ALONE,
) -> list[float]:
    """The reward of each (prompt, response). A text that is too long however it is shortened is
    read from its end. Collective where there are several ranks.

    A reward that is not a number is returned as it is: the caller counts those (`not_finite`).
    """
    context = model.gpt.config.context
    rows = [
        encode_text(template, prompt, text, context)
        or [*template.encode_prompt(prompt), *template.encode_response(prompt, text)][-context:]
        for prompt, text in texts
    ]
    return rewards_of(model, rows, execution)


@torch.no_grad()
def rewards_of(
    model: RewardModel, rows: Sequence[Sequence[int]], execution: Execution = ALONE
) -> list[float]:
    """The reward of each row of tokens. The model stays on the device, in the mode it was in.
    Collective where there are several ranks.
    """
    training = model.training
    if not is_sharded(model):
        model.to(execution.device)
    model.eval()

    def read(indices: Sequence[int]) -> list[float]:
        batch = PackedSequences.of([rows[index] for index in indices], execution.device)
        rewards: list[float] = model.rewards(batch).tolist()
        return rewards

    rewards = results_of_items(read, token_batches([len(row) for row in rows]), execution, model)
    model.train(training)
    return rewards


def not_finite(rewards: Sequence[float]) -> list[int]:
    """Indices of the rewards that are not numbers."""
    return [index for index, reward in enumerate(rewards) if not math.isfinite(reward)]


def check_finite(rewards: Sequence[float], name: Callable[[int], str], scored: str) -> None:
    """Raises UserError where rewards are not numbers: how many, and the name of the first. `scored`
    is what the rewards are of, in the plural.
    """
    if broken := not_finite(rewards):
        raise UserError(
            f"The reward of {len(broken)} of {len(rewards)} {scored} is not a number, the first of "
            f"{name(broken[0])}: the reward model is broken. Lower reward_model.learning_rate or "
            "gradient_clip, and build it again.",
            field="reward_model.learning_rate",
        )


@dataclass(frozen=True)
class EncodedRanking:
    """A prompt with its K responses, each encoded once.

    `pairs` are (better, worse) indices of responses, once for each person who said so; responses of
    equal rank make none.
    """

    source: str
    id: str
    texts: list[list[int]]  # prompt and response
    response_lengths: list[int]  # tokens of the response at the end of each text
    pairs: list[tuple[int, int]]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.texts))


def full_ranking(responses: int, context: int) -> EncodedRanking:
    """One as large as can be, for a trial of memory."""
    texts, lengths = [[0] * context] * responses, [context - 1] * responses
    return EncodedRanking("", "", texts, lengths, [(0, responses - 1)])


@dataclass(frozen=True)
class EncodedRankings:
    """The rankings that a model can train or be measured on, and what was left out."""

    encoded: list[EncodedRanking]
    rankings: list[Ranking]  # the rankings they are of, without responses that are too long
    without_pairs: int  # rankings whose responses are all of equal rank
    too_long: list[str]  # names of responses longer than the context with the prompt's last turn
    lost: int  # rankings that have no pair without these

    @property
    def pairs(self) -> int:
        return sum(len(ranking.pairs) for ranking in self.encoded)

    def summary(self, split: str) -> str:
        first = f" (the first: {self.too_long[0]})" if self.too_long else ""
        return (
            f"{split}: {len(self.encoded)} rankings with {self.pairs} comparisons; left out: "
            f"{self.without_pairs} without a better and a worse response; {len(self.too_long)} "
            f"responses longer than the context{first}, and {self.lost} rankings that without them "
            "compare nothing."
        )


def encode_rankings(
    template: ChatTemplate, rankings: Sequence[Ranking], context: int, execution: Execution = ALONE
) -> EncodedRankings:
    """Each ranking that compares something, as tokens. Collective where there are several ranks."""
    compared = [ranking for ranking in rankings if ranking.pairs()]

    def encode(items: Sequence[int]) -> list[tuple[list[list[int] | None], list[int]]]:
        """Each response after its prompt, and the tokens of its own."""
        return [
            (
                [encode_text(template, prompt, text, context) for text in texts],
                [len(template.encode_response(prompt, text)) for text in texts],
            )
            for item in items
            for prompt in [compared[item].prompt]
            for texts in [[response.text for response in compared[item].responses]]
        ]

    result, lost = EncodedRankings([], [], 0, [], 0), 0
    rows = chunks(len(compared), ENCODED_ROWS)
    for whole, (texts, lengths) in zip(
        compared, results_of_items(encode, rows, execution), strict=True
    ):
        fitting = {index: text for index, text in enumerate(texts) if text is not None}
        result.too_long.extend(
            f"{whole.source}, {whole.id}, response {index + 1}"
            for index in range(len(texts))
            if index not in fitting
        )
        ranking = whole.only(list(fitting))
        if not (pairs := ranking.pairs()):
            lost += 1
            continue
        result.encoded.append(
            EncodedRanking(
                ranking.source,
                ranking.id,
                list(fitting.values()),
                [lengths[index] for index in fitting],
                pairs,
            )
        )
        result.rankings.append(ranking)
    return replace(result, without_pairs=len(rankings) - len(compared), lost=lost)


def texts_and_pairs(
    rankings: Sequence[EncodedRanking],
) -> tuple[list[list[int]], list[int], list[int]]:
    """All texts of some rankings, and of each pair the index of the better and the worse text."""
    texts: list[list[int]] = []
    better, worse = [], []
    for ranking in rankings:
        better += [len(texts) + index for index, _ in ranking.pairs]
        worse += [len(texts) + index for _, index in ranking.pairs]
        texts += ranking.texts
    return texts, better, worse


@dataclass(frozen=True)
class RankingMicroBatch:
    """Some prompts with all their responses."""

    rows: PackedSequences
    better: Tensor  # [pairs], index of a text
    worse: Tensor  # [pairs], index of a text
    weights: Tensor  # [pairs], in the loss


def _collate(rankings: Sequence[EncodedRanking], scale: float) -> RankingMicroBatch:
    """`scale`: of a prompt in the loss."""
    texts, better, worse = texts_and_pairs(rankings)
    weights = [scale / len(ranking.pairs) for ranking in rankings for _ in ranking.pairs]
    return RankingMicroBatch(
        PackedSequences.of(texts), *map(torch.tensor, (better, worse, weights))
    )


class RewardObjective:
    """−1/(K choose 2) · Σ log σ(r_better − r_worse) of a prompt, a mean over the prompts of a step
    (equation 1).

    Each response goes through the model once, and all pairs of a prompt are in one micro-batch: the
    paper found that shuffled pairs overfit in one epoch. Pairs of equal rank are left out of
    K choose 2.
    """

    unit, flops_per_unit = "comparisons", 0.0  # lengths differ too much for one figure

    def __init__(self, rankings: Sequence[EncodedRanking], batches: EpochBatches) -> None:
        self.rankings, self.batches, self.size = rankings, batches, batches.size
        pairs = (
            sum(len(rankings[item].pairs) for item in batches.items(step))
            for step in range(batches.steps)
        )
        self._pairs_before = [0, *accumulate(pairs)]

    def units_before(self, step: int) -> int:
        return self._pairs_before[step]

    def full_micro_batch(self, sequences: int) -> RankingMicroBatch:
        """One ranking of so many responses."""
        return _collate([full_ranking(sequences, self.size.context)], 1.0)

    def micro_batches(self, step: int) -> list[RankingMicroBatch | Idle[RankingMicroBatch]]:
        # The loop takes the mean over micro-batches and ranks; the loss is their sum.
        scale = len(self.batches.partition(step)) / len(self.batches.items(step))
        return collated(
            self.batches.micro_batches(step),
            lambda items: _collate([self.rankings[item] for item in items], scale),
            stand_in=self.batches.items(step)[:1],
        )

    def loss(
        self, model: nn.Module, micro_batch: RankingMicroBatch
    ) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
        """The micro-batch's loss [], and metrics as (sum, count)."""
        assert isinstance(model, RewardModel)
        rewards = model.rewards(micro_batch.rows)  # [texts]
        gaps = rewards[micro_batch.better] - rewards[micro_batch.worse]  # [pairs]
        metrics = {
            "training_accuracy": ((gaps > 0).sum(), len(gaps)),
            "margin": (gaps.detach().sum(), len(gaps)),
        }
        return -(F.logsigmoid(gaps) * micro_batch.weights).sum(), metrics
