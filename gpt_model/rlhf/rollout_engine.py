"""What samples the answers of a rollout, behind one interface: our decoder (`DecoderEngine`), or an
inference engine such as vLLM (docs/how-to/rollout-engine.md).

An engine leaves a file of `Answers` for each chunk of prompts. It may leave out what the policy
says of each token: another program's log-probabilities differ in the last bits. Then the trainer
computes them with its own forward pass, as it does with what the other models say of every answer
(`episodes.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt_model.generation import generate
from gpt_model.io import fsync, temporary_name
from gpt_model.training.engine import Execution
from gpt_model.training.sharded import reading
from gpt_model.transformer import GPT


@dataclass(frozen=True)
class SamplingParams:
    """How answers are sampled."""

    end_of_text: int
    max_new_tokens: int
    temperature: float


@dataclass(frozen=True)
class Chunk:
    """Prompts that are answered together, and where their answers go."""

    path: Path  # of a file of `Answers`
    prompt_ids: Sequence[int]
    prompts: Sequence[Sequence[int]]  # tokens of each
    seeds: Sequence[int]  # of each: its answer depends on no other prompt

    def is_answered(self) -> bool:
        """Whether the file is there and of these prompts: another number of ranks left others."""
        return holds(self.path, self.prompt_ids)


@dataclass(frozen=True)
class Answers:
    """The answers to a chunk's prompts, on the CPU, and what the policy says of each token: nothing
    where the trainer is to compute it.
    """

    prompt_ids: Tensor  # [episodes], index of the prompt
    prompt_lengths: Tensor  # [episodes], tokens
    action_counts: Tensor  # [episodes], tokens of the answer, with the end that the policy wrote
    ended: Tensor  # [episodes], bool: by the policy; else the answer was cut
    tokens: Tensor  # [tokens], prompt and actions of each episode, packed
    log_probs: Tensor | None = None  # [actions], at the temperature of sampling
    entropy: Tensor | None = None  # [actions], nats, at that temperature
    values: Tensor | None = None  # [actions], of a value head on the policy's states; 0 without one

    @staticmethod
    def of(
        chunk: Chunk, sampled: Sequence[Sequence[int]], sampling: SamplingParams, **known: Tensor
    ) -> Answers:
        """`sampled`: new tokens of each prompt, at most `max_new_tokens`, without the end-of-text
        that ended it. `known`: log_probs, entropy and values, each [actions].
        """
        ended = [len(tokens) < sampling.max_new_tokens for tokens in sampled]
        actions = [
            [*tokens, sampling.end_of_text] if done else [*tokens]
            for tokens, done in zip(sampled, ended, strict=True)
        ]
        texts = [[*prompt, *answer] for prompt, answer in zip(chunk.prompts, actions, strict=True)]
        return Answers(
            prompt_ids=torch.tensor(chunk.prompt_ids),
            prompt_lengths=torch.tensor([len(prompt) for prompt in chunk.prompts]),
            action_counts=torch.tensor([len(answer) for answer in actions]),
            ended=torch.tensor(ended),
            tokens=torch.tensor([token for text in texts for token in text]),
            **known,
        )

    @property
    def texts(self) -> list[list[int]]:
        """Prompt and actions of each episode."""
        lengths = (self.prompt_lengths + self.action_counts).tolist()
        return [text.tolist() for text in self.tokens.split(lengths)]

    def save(self, path: Path) -> None:
        """Replaces `path` in one step."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        write_tensors({name: value for name, value in columns.items() if value is not None}, path)

    @staticmethod
    def load(path: Path) -> Answers:
        return Answers(**load_file(path))


class RolloutEngine(Protocol):
    """What answers prompts."""

    def answer(
        self,
        policy: GPT,
        value_head: nn.Module | None,
        chunks: Sequence[Chunk],
        sampling: SamplingParams,
        execution: Execution,
    ) -> None:
        """Save the `Answers` of each chunk that is not answered yet. Every rank calls it with the
        same chunks, and they may share them out as they like: all are waited for afterwards.

        `policy`: the weights to sample with, in evaluation mode. `policy.weight(name)` gives a
        parameter whole, to all ranks, which ask for the same ones in the same order: at ZeRO 3
        nothing else of it can be read outside of `sharded.reading(policy)`. `value_head`: on the
        policy's states, [width -> 1]; None where the value model is one of its kind.
        """


class DecoderEngine:
    """Answers with the policy itself, on every rank a share of the chunks. What it says of a token
    is recorded as that is sampled, so the policy does not read its answers again.
    """

    @torch.no_grad()
    def answer(
        self,
        policy: GPT,
        value_head: nn.Module | None,
        chunks: Sequence[Chunk],
        sampling: SamplingParams,
        execution: Execution,
    ) -> None:
        with ExitStack() as stack:
            for model in (policy, value_head):
                if model is not None:
                    stack.enter_context(reading(model))
            for chunk in chunks[execution.rank :: execution.world_size]:
                if not chunk.is_answered():
                    answers_of(policy, value_head, chunk, sampling).save(chunk.path)


@torch.no_grad()
def answers_of(
    policy: GPT, value_head: nn.Module | None, chunk: Chunk, sampling: SamplingParams
) -> Answers:
    """A chunk's answers by our decoder."""
    recorder = _ActionRecorder(value_head, sampling.temperature)
    sampled = generate(
        policy,
        chunk.prompts,
        sampling.max_new_tokens,
        sampling.temperature,
        seed=chunk.seeds,
        stop=(sampling.end_of_text,),
        on_choice=recorder,
    )
    log_probs, entropy, values = recorder.by_prompt()
    return Answers.of(chunk, sampled, sampling, log_probs=log_probs, entropy=entropy, values=values)


class _ActionRecorder:
    """Log-probability, entropy and the head's value of each action as it is sampled."""

    def __init__(self, value_head: nn.Module | None, temperature: float) -> None:
        self.value_head, self.temperature = value_head, temperature
        self.prompts: list[Tensor] = []  # a step each: [active], index of the prompt
        self.records: list[Tensor] = []  # a step each: [3, active]

    def __call__(self, prompts: Tensor, states: Tensor, logits: Tensor, tokens: Tensor) -> None:
        """`prompts`, `tokens` [active], `states` [active, width], `logits` [active, vocabulary]."""
        log_probs, entropy = log_probs_and_entropy(logits / self.temperature, tokens)
        values = head_values(self.value_head, states)
        self.prompts.append(prompts)
        self.records.append(torch.stack([log_probs, entropy, values]))

    def by_prompt(self) -> Tensor:
        """Log-probabilities, entropies, values, a prompt's actions side by side: [3, actions]."""
        order = torch.cat(self.prompts).argsort(stable=True)
        return torch.cat(self.records, 1)[:, order].cpu()


def head_values(head: nn.Module | None, states: Tensor) -> Tensor:
    """[states, width] -> [states], in float32 like a reward model's; 0 without a head."""
    if head is None:
        return torch.zeros(len(states), device=states.device)
    with torch.autocast(states.device.type, enabled=False):
        values: Tensor = head(states.float())[:, 0]
    return values


def log_probs_and_entropy(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of `tokens` [rows] by `logits` [rows, vocabulary], and the distribution's
    entropy, both in nats: [rows].
    """
    log_probs = logits.float().log_softmax(1)
    return log_probs.gather(1, tokens[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(1)


def holds(path: Path, prompt_ids: Sequence[int]) -> bool:
    """Whether the file is there and of these prompts."""
    return path.is_file() and load_file(path)["prompt_ids"].tolist() == [*prompt_ids]


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Replaces `path` in one step, on disk before it returns. Tensors [...] of any shape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)
