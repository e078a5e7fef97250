"""Episodes: prompts, sampled answers, and what actor, reference, reward model and critic say of
them. Sampled in chunks that survive a kill. The KL penalty of each token, rewards and advantages
are `advantages.py`'s.

An action is a token of the answer, or the end-of-text with which the policy ended it: an empty
answer is that end alone. An answer that reached max_new_tokens is cut: its last action is its last
token, and the reward model reads it with an end-of-text added, as it never saw a text without one.

    answers-00003.safetensors    what an engine sampled (`rollout_engine.py`)
    chunk-00003.safetensors      the same as whole episodes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.distributed
from safetensors.torch import load_file
from torch import Tensor, nn

from gpt_model.decoding import logits_of
from gpt_model.log_probabilities import predicting_positions, token_log_probabilities
from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf.reward_model import RewardModel
from gpt_model.rlhf.rollout_engine import (
    Answers,
    Chunk,
    RolloutEngine,
    SamplingParams,
    head_values,
    holds,
    log_probs_and_entropy,
    write_tensors,
)
from gpt_model.training.batching import ROLLOUT_TOKENS, chunks, token_batches
from gpt_model.training.engine import Execution
from gpt_model.training.sharded import reading
from gpt_model.transformer import GPT

LOGIT_ROWS = 256  # of which the vocabulary's logits exist at a time


@dataclass(frozen=True)
class Episodes:
    """Some episodes, on the CPU. Action t of an answer is token `prompt length + t` of its text;
    the state before that token predicts it.
    """

    prompt_ids: Tensor  # [episodes], index of the prompt
    prompt_lengths: Tensor  # [episodes], tokens
    action_counts: Tensor  # [episodes]
    ended: Tensor  # [episodes], bool: by the policy; else the answer was cut
    rewards: Tensor  # [episodes], of the reward model alone
    tokens: Tensor  # [tokens], prompt and actions of each episode, packed
    log_probs: Tensor  # [actions], of the policy
    reference_log_probs: Tensor  # [actions]
    entropy: Tensor  # [actions], nats, of the policy before the action
    values: Tensor  # [actions], of the critic, of the state before the action

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text: [episodes]."""
        return self.prompt_lengths + self.action_counts

    def texts(self) -> list[list[int]]:
        return [text.tolist() for text in self.tokens.split(self.lengths.tolist())]

    def kl(self) -> Tensor:
        """Nats from the reference, summed over each answer: float64 [episodes]. A one-sample
        estimate, which may be negative.
        """
        log_ratios = (self.log_probs - self.reference_log_probs).double()
        return torch.stack([part.sum() for part in log_ratios.split(self.action_counts.tolist())])

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name: each [episodes], [tokens] or [actions]."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> Episodes:
        """The inverse of `tensors`, each [episodes], [tokens] or [actions]; others are ignored."""
        return Episodes(*(tensors[field.name] for field in fields(Episodes)))

    @staticmethod
    def load(paths: Sequence[Path]) -> Episodes:
        """All chunks as one, in their order."""
        chunks = [load_file(path) for path in paths]
        return Episodes.from_tensors(
            {
                field.name: torch.cat([chunk[field.name] for chunk in chunks])
                for field in fields(Episodes)
            }
        )


@dataclass(frozen=True)
class RolloutModels:
    """The models of a rollout. The critic is a reward model of its own, a head [width -> 1] on the
    policy's states, or missing.
    """

    policy: GPT
    reference: GPT
    reward: RewardModel
    critic: nn.Module | None

    @property
    def value_head(self) -> nn.Module | None:
        """The critic, where it is a head on the policy's states."""
        return None if isinstance(self.critic, RewardModel) else self.critic


@dataclass(frozen=True)
class _Reading:
    """Some answers as the models read them, each with its end-of-text."""

    rows: PackedSequences
    positions: Tensor  # [actions], of the states before them

    @staticmethod
    def batches_of(answers: Answers, end: int, device: str) -> list[_Reading]:
        texts, result = answers.texts, []
        for items in token_batches([len(text) for text in texts], ROLLOUT_TOKENS, order="given"):
            some = [texts[item] for item in items]
            rows = PackedSequences.of(
                [text if text[-1] == end else [*text, end] for text in some], device
            )
            prompts, actions = (
                lengths[items].to(device)
                for lengths in (answers.prompt_lengths, answers.action_counts)
            )
            result.append(_Reading(rows, predicting_positions(rows, prompts, actions)))
        return result


@torch.no_grad()
def completed(
    models: RolloutModels, answered: Sequence[Answers], sampling: SamplingParams, device: str
) -> list[Episodes]:
    """Each chunk with what the models say of its answers, one model after the other; the policy, of
    those whose engine left it out. Collective at ZeRO 3, where ranks may have different chunks.
    """
    batches = [_Reading.batches_of(answers, sampling.end_of_text, device) for answers in answered]

    def read(model: nn.Module, values: Callable[[_Reading], Tensor]) -> list[Tensor]:
        """Values by `model`, in the order of each chunk."""
        with reading(model):
            return [torch.cat([values(part) for part in parts]).float().cpu() for parts in batches]

    policy = _by_policy(models, answered, batches, sampling)
    reference = read(
        models.reference,
        lambda part: token_log_probabilities(
            models.reference, part.rows, part.positions, sampling.temperature
        ),
    )
    critic = models.critic
    values = [of_head for _, _, of_head in policy]
    if isinstance(critic, RewardModel):
        values = read(critic, lambda part: critic.values(part.rows)[part.positions])
    rewards = read(models.reward, lambda part: models.reward.rewards(part.rows))
    return [
        Episodes(
            answers.prompt_ids,
            answers.prompt_lengths,
            answers.action_counts,
            answers.ended,
            rewards[number],
            answers.tokens,
            policy[number][0],
            reference[number],
            policy[number][1],
            values[number],
        )
        for number, answers in enumerate(answered)
    ]


def _by_policy(
    models: RolloutModels,
    answered: Sequence[Answers],
    batches: Sequence[Sequence[_Reading]],
    sampling: SamplingParams,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each chunk log-probabilities, entropies and the head's values, each [actions]: the
    engine's where it has left them, else computed here.
    """
    result = []
    head = models.value_head
    with reading(models.policy), nullcontext() if head is None else reading(head):
        for answers, parts in zip(answered, batches, strict=True):
            if answers.log_probs is None or answers.entropy is None or answers.values is None:
                columns = [_recomputed(models, part, sampling.temperature) for part in parts]
                log_probs, entropy, values = (
                    torch.cat(column).cpu() for column in zip(*columns, strict=True)
                )
                result.append((log_probs, entropy, values))
            else:
                result.append((answers.log_probs, answers.entropy, answers.values))
    return result


def _recomputed(
    models: RolloutModels, part: _Reading, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The policy's log-probabilities and entropies and the head's values, each [actions]."""
    states = models.policy.states_of(part.rows)[part.positions]
    tokens, weight = part.rows.tokens[part.positions + 1], models.policy.wte.weight
    log_probs, entropy = zip(
        *(
            log_probs_and_entropy(logits_of(some, weight) / temperature, chosen)
            for some, chosen in zip(states.split(LOGIT_ROWS), tokens.split(LOGIT_ROWS), strict=True)
        ),
        strict=True,
    )
    return torch.cat(log_probs), torch.cat(entropy), head_values(models.value_head, states)


def critic_values(critic: nn.Module, rows: PackedSequences, states: Tensor) -> Tensor:
    """The value of each state of the texts, [tokens]: by a model of its own, or by a head on the
    policy's `states` [tokens, width].
    """
    return critic.values(rows) if isinstance(critic, RewardModel) else head_values(critic, states)


def roll_out(
    engine: RolloutEngine,
    models: RolloutModels,
    prompts: Sequence[Sequence[int]],
    prompt_ids: Sequence[int],
    sampling: SamplingParams,
    seed: int,
    folder: Path,
    size: int,
    execution: Execution,
) -> list[Path]:
    """Answer the prompts `prompt_ids` in chunks of `size`, each written to `folder` when it is
    complete and not sampled again. The ranks share the chunks; the answers depend on neither chunk
    nor rank. Returns every chunk's path, all ranks'. Collective.
    """
    requests = []
    for number, items in enumerate(chunks(len(prompt_ids), size)):
        ids = [prompt_ids[item] for item in items]
        path = folder / f"answers-{number:05d}.safetensors"
        seeds = [seed + item for item in items]
        requests.append(Chunk(path, ids, [prompts[n] for n in ids], seeds))
    engine.answer(models.policy, models.value_head, requests, sampling, execution)
    torch.distributed.barrier()  # an engine may have left them to another rank
    paths = [folder / f"chunk-{number:05d}.safetensors" for number in range(len(requests))]
    share = slice(execution.rank, None, execution.world_size)
    mine = [
        (chunk, path)
        for chunk, path in zip(requests[share], paths[share], strict=True)
        if not holds(path, chunk.prompt_ids)
    ]
    answers = [Answers.load(chunk.path) for chunk, _ in mine]
    episodes = completed(models, answers, sampling, execution.device)
    for (_, path), complete in zip(mine, episodes, strict=True):
        write_tensors(complete.tensors(), path)
    torch.distributed.barrier()
    return paths
