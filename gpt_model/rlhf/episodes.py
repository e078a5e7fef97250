"""Episodes: prompts, sampled answers, and what actor, reference, reward model and critic say of
them. Sampled in chunks that survive a kill. The KL penalty of each token, rewards and advantages
are `advantages.py`'s.

An action is a token of the answer, or the end-of-text with which the policy ended it: an empty
answer is that end alone. An answer that reached max_new_tokens is cut: its last action is its last
token, and the reward model reads it with an end-of-text added, as it never saw a text without one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt_model.generation import generate
from gpt_model.io import fsync, temporary_name
from gpt_model.log_probabilities import predicting_positions, token_log_probabilities
from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf.reward_model import RewardModel
from gpt_model.training.batching import ROLLOUT_TOKENS, token_batches
from gpt_model.transformer import GPT


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


@dataclass(frozen=True)
class SamplingParams:
    """How answers are sampled."""

    end_of_text: int
    max_new_tokens: int
    temperature: float


@torch.no_grad()
def sample_episodes(
    models: RolloutModels,
    prompts: Sequence[Sequence[int]],
    prompt_ids: Sequence[int],
    sampling: SamplingParams,
    seeds: Sequence[int],
) -> Episodes:
    """An episode for each of `prompts`, each with its own seed. The policy's log-probabilities are
    recorded while it samples, so it does not read its answers again.
    """
    recorder = _ActionRecorder(models.critic, sampling.temperature)
    sampled = generate(
        models.policy,
        prompts,
        sampling.max_new_tokens,
        sampling.temperature,
        seed=seeds,
        stop=(sampling.end_of_text,),
        on_choice=recorder,
    )
    ended = [len(tokens) < sampling.max_new_tokens for tokens in sampled]
    actions = [
        [*tokens, sampling.end_of_text] if done else tokens
        for tokens, done in zip(sampled, ended, strict=True)
    ]
    texts = [[*prompt, *answer] for prompt, answer in zip(prompts, actions, strict=True)]
    scores = [
        _score(models, [texts[n] for n in batch], [len(actions[n]) for n in batch], sampling)
        for batch in token_batches([len(text) for text in texts], ROLLOUT_TOKENS, order="given")
    ]
    log_probs, entropy, head_values = recorder.by_prompt()
    reference_log_probs, model_values, rewards = (
        torch.cat(column).float().cpu() for column in zip(*scores, strict=True)
    )
    return Episodes(
        prompt_ids=torch.tensor(prompt_ids),
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
        action_counts=torch.tensor([len(answer) for answer in actions]),
        ended=torch.tensor(ended),
        rewards=rewards,
        tokens=torch.tensor([token for text in texts for token in text]),
        log_probs=log_probs,
        reference_log_probs=reference_log_probs,
        entropy=entropy,
        values=model_values if isinstance(models.critic, RewardModel) else head_values,
    )


class _ActionRecorder:
    """Log-probability, entropy and the head's value of each action as it is sampled."""

    def __init__(self, critic: nn.Module | None, temperature: float) -> None:
        self.head = None if isinstance(critic, RewardModel) else critic
        self.temperature = temperature
        self.prompts: list[Tensor] = []  # a step each: [active], index of the prompt
        self.records: list[Tensor] = []  # a step each: [3, active]

    def __call__(self, prompts: Tensor, states: Tensor, logits: Tensor, tokens: Tensor) -> None:
        """`prompts`, `tokens` [active], `states` [active, width], `logits` [active, vocabulary]."""
        log_probs, entropy = log_probs_and_entropy(logits / self.temperature, tokens)
        values = (
            torch.zeros_like(log_probs) if self.head is None else head_values(self.head, states)
        )
        self.prompts.append(prompts)
        self.records.append(torch.stack([log_probs, entropy, values]))

    def by_prompt(self) -> Tensor:
        """Log-probabilities, entropies, values, a prompt's actions side by side: [3, actions]."""
        order = torch.cat(self.prompts).argsort(stable=True)
        return torch.cat(self.records, 1)[:, order].cpu()


def _score(
    models: RolloutModels,
    texts: list[list[int]],
    action_counts: list[int],
    sampling: SamplingParams,
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference's log-probabilities [actions], the critic's values [actions] and the rewards
    [texts]. Each text goes through each model once.
    """
    device, end = models.policy.wte.weight.device, sampling.end_of_text
    rows = PackedSequences.of([text if text[-1] == end else [*text, end] for text in texts], device)
    prompt_lengths = [len(text) - n for text, n in zip(texts, action_counts, strict=True)]
    positions = predicting_positions(
        rows,
        torch.tensor(prompt_lengths, device=device),
        torch.tensor(action_counts, device=device),
    )
    reference = token_log_probabilities(models.reference, rows, positions, sampling.temperature)
    values = (
        models.critic.values(rows)[positions]
        if isinstance(models.critic, RewardModel)
        else torch.zeros_like(reference)
    )
    return reference, values, models.reward.rewards(rows)


def critic_values(critic: nn.Module, rows: PackedSequences, states: Tensor) -> Tensor:
    """The value of each state of the texts, [tokens]: by a model of its own, or by a head on the
    policy's `states` [tokens, width].
    """
    return critic.values(rows) if isinstance(critic, RewardModel) else head_values(critic, states)


def head_values(head: nn.Module, states: Tensor) -> Tensor:
    """[states, width] -> [states], in float32 like a reward model's."""
    with torch.autocast(states.device.type, enabled=False):
        values: Tensor = head(states.float())[:, 0]
    return values


def log_probs_and_entropy(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of `tokens` [rows] by `logits` [rows, vocabulary], and the distribution's
    entropy, both in nats: [rows].
    """
    log_probs = logits.float().log_softmax(1)
    return log_probs.gather(1, tokens[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(1)


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Replaces `path` in one step, on disk before it returns. Tensors [...] of any shape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def sample_in_chunks(
    models: RolloutModels,
    prompts: Sequence[Sequence[int]],
    prompt_ids: Sequence[int],
    sampling: SamplingParams,
    seed: int,
    folder: Path,
    chunk: int,
    rank: int,
    ranks: int,
) -> Iterator[Path]:
    """Answer the prompts `prompt_ids` in chunks of `chunk`, each written to `folder` when it is
    complete and not sampled again. Every rank samples its own chunks; the answers depend on neither
    chunk nor rank. Yields every chunk's path, all ranks'.
    """
    for number, first in enumerate(range(0, len(prompt_ids), chunk)):
        path = folder / f"chunk-{number:05d}.safetensors"
        ids = list(prompt_ids[first : first + chunk])
        if number % ranks == rank and not _holds(path, ids):
            seeds = range(seed + first, seed + first + len(ids))
            episodes = sample_episodes(models, [prompts[n] for n in ids], ids, sampling, seeds)
            write_tensors(episodes.tensors(), path)
        yield path


def _holds(path: Path, prompt_ids: list[int]) -> bool:
    """Whether the chunk is there and of these prompts: another number of ranks left others."""
    return path.is_file() and load_file(path)["prompt_ids"].tolist() == prompt_ids
