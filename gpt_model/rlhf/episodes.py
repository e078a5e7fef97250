"""Episodes: a prompt, the answer that a policy gave it, and what each token and the whole is worth.
How they are made, and kept on disk.

An episode is one action a token: the answer's tokens, and the end-of-text with which the policy
ended it. An answer that says nothing is that end alone. One that reached its longest is cut: its
last action is its last token, and the reward model reads it with an end after it, as it has never
seen a text without one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt_model.disk import TEMPORARY, fsync
from gpt_model.generation import generate
from gpt_model.ops.cross_entropy import linear_cross_entropy_by_row
from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf.reward_model import RewardModel
from gpt_model.training.batching import ROLLOUT_TOKENS, token_batches
from gpt_model.transformer import GPT


@dataclass(frozen=True)
class Episodes:
    """Some episodes, on the CPU. An answer's action t is token `before + t` of its text, and is
    predicted from the state before it.
    """

    asked: Tensor  # [episodes], which prompt it was
    before: Tensor  # [episodes], tokens of the prompt
    actions: Tensor  # [episodes], how many
    ended: Tensor  # [episodes], bool: by the policy; else it was cut
    rewards: Tensor  # [episodes], of the reward model alone
    tokens: Tensor  # [all tokens], prompt and actions of an episode after another's
    policy: Tensor  # [all actions], log-probability
    reference: Tensor  # [all actions], the same of the reference
    entropy: Tensor  # [all actions], nats, of the policy where the action was chosen
    values: Tensor  # [all actions], of the state before it

    def __len__(self) -> int:
        return len(self.asked)

    @property
    def lengths(self) -> Tensor:
        return self.before + self.actions

    def texts(self) -> list[list[int]]:
        return [text.tolist() for text in self.tokens.split(self.lengths.tolist())]

    def kl(self) -> Tensor:
        """Nats from the reference, summed over each answer: [episodes]. One sample of it, which may
        be below 0.
        """
        return torch.stack(
            [
                part.sum()
                for part in (self.policy - self.reference).double().split(self.actions.tolist())
            ]
        )

    @staticmethod
    def together(parts: Sequence[Episodes]) -> Episodes:
        return Episodes(
            *(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(Episodes))
        )

    def tensors(self) -> dict[str, Tensor]:
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @staticmethod
    def of(tensors: dict[str, Tensor]) -> Episodes:
        return Episodes(*(tensors[one.name] for one in fields(Episodes)))


@dataclass(frozen=True)
class Cast:
    """Who takes part. `valued` says what each state of a text is worth."""

    policy: GPT
    reference: GPT
    reward: RewardModel
    valued: nn.Module | None  # a RewardModel, a head [width -> 1] on the policy's states, or nobody


@dataclass(frozen=True)
class Asking:
    """How prompts are answered. `end`: end-of-text."""

    end: int
    max_new_tokens: int
    temperature: float


@torch.no_grad()
def make(
    cast: Cast,
    prompts: Sequence[Sequence[int]],
    asked: Sequence[int],
    how: Asking,
    seeds: Sequence[int],
) -> Episodes:
    """An episode for each of `prompts`, which are numbered `asked`, each drawn with its own seed.
    What the policy thinks of its tokens is noted as it writes them: it does not read them again.
    """
    noted = _Noted(cast.valued, how.temperature)
    written = generate(
        cast.policy,
        prompts,
        how.max_new_tokens,
        how.temperature,
        seed=seeds,
        stop=(how.end,),
        on_choice=noted,
    )
    ended = [len(tokens) < how.max_new_tokens for tokens in written]
    actions = [tokens + [how.end] * done for tokens, done in zip(written, ended, strict=True)]
    texts = [[*prompt, *own] for prompt, own in zip(prompts, actions, strict=True)]
    parts = token_batches([len(text) for text in texts], ROLLOUT_TOKENS, order="given")
    read = [
        _read(cast, [texts[one] for one in part], [len(actions[one]) for one in part], how)
        for part in parts
    ]
    policy, entropy, noted_values = noted.by_prompt()
    reference, by_model, rewards = (
        torch.cat(column).float().cpu() for column in zip(*read, strict=True)
    )
    return Episodes(
        asked=torch.tensor(asked),
        before=torch.tensor([len(prompt) for prompt in prompts]),
        actions=torch.tensor([len(own) for own in actions]),
        ended=torch.tensor(ended),
        rewards=rewards,
        tokens=torch.tensor([token for text in texts for token in text]),
        policy=policy,
        reference=reference,
        entropy=entropy,
        values=by_model if isinstance(cast.valued, RewardModel) else noted_values,
    )


class _Noted:
    """What is known of each action as it is chosen: its log-probability, the entropy, and the value
    that a head on the states gives.
    """

    def __init__(self, valued: nn.Module | None, temperature: float) -> None:
        self.valued = None if isinstance(valued, RewardModel) else valued
        self.temperature = temperature
        self.numbers: list[Tensor] = []  # of the prompts, [rows] a token
        self.found: list[Tensor] = []  # [3, rows] a token

    def __call__(self, numbers: Tensor, states: Tensor, logits: Tensor, tokens: Tensor) -> None:
        log, entropy = chosen(logits / self.temperature, tokens)
        value = torch.zeros_like(log) if self.valued is None else by_head(self.valued, states)
        self.numbers.append(numbers)
        self.found.append(torch.stack([log, entropy, value]))

    def by_prompt(self) -> Tensor:
        """All of them, a prompt's actions after another's: [3, all actions]."""
        order = torch.cat(self.numbers).argsort(stable=True)
        return torch.cat(self.found, 1)[:, order].cpu()


def _read(
    cast: Cast, texts: list[list[int]], actions: list[int], how: Asking
) -> tuple[Tensor, Tensor, Tensor]:
    """What the others say of a few texts, each of which goes through each model once: the
    reference's log-probabilities and the value model's values [actions], and rewards [texts].
    """
    device = cast.policy.wte.weight.device
    whole = PackedSequences.of(
        [text if text[-1] == how.end else [*text, how.end] for text in texts], device
    )
    before = torch.tensor(
        [len(text) - own for text, own in zip(texts, actions, strict=True)], device=device
    )
    chosen_at = places(whole.starts, before, torch.tensor(actions, device=device))
    theirs = cast.reference.states_of(whole)[chosen_at] / how.temperature
    reference = -linear_cross_entropy_by_row(
        theirs, cast.reference.wte.weight, whole.tokens[chosen_at + 1]
    )
    values = (
        cast.valued.values(whole)[chosen_at]
        if isinstance(cast.valued, RewardModel)
        else torch.zeros_like(reference)
    )
    return reference, values, cast.reward.rewards(whole)


def places(starts: Tensor, before: Tensor, actions: Tensor) -> Tensor:
    """Where the states stand that actions are chosen from, of texts that begin at `starts`: [all
    actions].
    """
    first = (starts + before - 1).repeat_interleave(actions)
    ends = actions.cumsum(0)
    return (
        first
        + torch.arange(int(ends[-1]), device=starts.device)
        - (ends - actions).repeat_interleave(actions)
    )


def values_of(valued: nn.Module, rows: PackedSequences, states: Tensor) -> Tensor:
    """The worth of each state of the texts, [tokens]: by a model of its own, or by a head on the
    policy's `states`.
    """
    return valued.values(rows) if isinstance(valued, RewardModel) else by_head(valued, states)


def by_head(head: nn.Module, states: Tensor) -> Tensor:
    """In full precision, as a reward model's: [states]."""
    with torch.autocast(states.device.type, enabled=False):
        found: Tensor = head(states.float())[:, 0]
    return found


def chosen(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each token [rows] by logits [rows, vocabulary], and the entropy it was
    chosen with, in nats: [rows].
    """
    logs = logits.float().log_softmax(1)
    return logs.gather(1, tokens[:, None])[:, 0], -(logs.exp() * logs).sum(1)


# --- on disk ---


def keep(tensors: dict[str, Tensor], path: Path) -> None:
    """Replaces `path` in one step, on disk before it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def roll_out(
    cast: Cast,
    prompts: Sequence[Sequence[int]],
    asked: Sequence[int],
    how: Asking,
    seed: int,
    folder: Path,
    share: tuple[int, int, int],
) -> Iterator[Path]:
    """Answer `asked` of the prompts in chunks, each kept in `folder` as soon as it is there; those
    that are there already are not made again. `share`: (chunk size, rank, ranks), of which every
    rank makes its own chunks; what is drawn does not depend on it. Gives each chunk's path, all
    ranks'.
    """
    size, rank, ranks = share
    for number, first in enumerate(range(0, len(asked), size)):
        path = folder / f"chunk-{number:05d}.safetensors"
        own = list(asked[first : first + size])
        if number % ranks == rank and not _is_of(path, own):
            keep(
                make(
                    cast,
                    [prompts[one] for one in own],
                    own,
                    how,
                    range(seed + first, seed + first + len(own)),
                ).tensors(),
                path,
            )
        yield path


def _is_of(path: Path, asked: list[int]) -> bool:
    """Whether the chunk is there, and of these prompts: of others where it was made by another
    number of ranks.
    """
    return path.is_file() and load_file(path)["asked"].tolist() == asked
