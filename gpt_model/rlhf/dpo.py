"""Direct preference optimisation (Rafailov et al. 2023, equation 7): the same comparisons, and no
reward model.

    −log σ(β · [(log π(better) − log π_ref(better)) − (log π(worse) − log π_ref(worse))]), a mean over the pairs of a step

The reference is the policy before the first step. What it gives each response never changes, so it
is asked once, before training. Each response goes through the policy once a step, however many
pairs it is in, and the head through the response's tokens alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf.likelihood import before as before_each
from gpt_model.rlhf.likelihood import log_probabilities
from gpt_model.rlhf.ppo import through
from gpt_model.rlhf.reward_model import Compared
from gpt_model.training.batching import EpochBatches
from gpt_model.training.settings import Execution
from gpt_model.transformer import GPT

LogProbabilities = list[list[float]]  # of each ranking, of each of its responses


# --- log-probabilities of whole responses ---


def by_ranking(
    model: GPT, compared: Sequence[Compared], precision: str = "float32"
) -> LogProbabilities:
    """log π(response | prompt) in nats, of all responses of some rankings."""
    texts = [text for one in compared for text in one.texts]
    flat = iter(
        log_probabilities(
            model, texts, [size for one in compared for size in one.responses], precision=precision
        )
    )
    return [[next(flat) for _ in one.texts] for one in compared]


def reference(
    model: GPT,
    compared: Sequence[Compared],
    folder: Path,
    execution: Execution,
    precision: str = "float32",
) -> LogProbabilities:
    """What the model gives the responses before it is trained, each rank asking for its share; kept
    in `folder`, which all ranks see.

    Collective. A run that goes on reads what there is; the model it is handed is still the one that
    training began with.
    """
    rank, ranks = execution.rank, execution.world_size
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{one}-of-{ranks}.safetensors" for one in range(ranks)]
    if not paths[rank].is_file():
        model.to(execution.device).eval()
        own = [
            number for one in by_ranking(model, compared[rank::ranks], precision) for number in one
        ]
        part = paths[rank].with_suffix(".part")
        save_file({"nats": torch.tensor(own, dtype=torch.float64)}, part)
        part.replace(paths[rank])
    torch.distributed.barrier()
    found: LogProbabilities = [[] for _ in compared]
    for one, path in enumerate(paths):
        flat = iter(load_file(path)["nats"].tolist())
        for number in range(one, len(compared), ranks):
            found[number] = [next(flat) for _ in compared[number].texts]
    return found


def implicit_rewards(
    policy: LogProbabilities, before: LogProbabilities, beta: float
) -> LogProbabilities:
    """β · (log π − log π_ref) of each response (equation 5, but for a constant of the prompt)."""
    return [
        [beta * (now - then) for now, then in zip(own, its, strict=True)]
        for own, its in zip(policy, before, strict=True)
    ]


# --- what is learnt ---


@dataclass(frozen=True)
class Part:
    """Some prompts with all their responses: a micro-batch."""

    rows: PackedSequences
    sizes: Tensor  # [texts], tokens of each response
    before: Tensor  # [texts], nats that the reference gives it
    better: Tensor  # [pairs], which text
    worse: Tensor  # [pairs]
    share: float  # of each pair in the loss


class Preferring:
    """The objective. `batches` are of prompts, with all pairs of each (`prompts_of`)."""

    unit, flops_per_unit = "pairs", 0.0  # lengths differ too much for one figure

    def __init__(
        self,
        compared: Sequence[Compared],
        before: LogProbabilities,
        beta: float,
        batches: EpochBatches,
        device: str = "cpu",
    ) -> None:
        """`before`: what the reference gives each response."""
        self.compared, self.before, self.beta, self.batches, self.device = (
            compared,
            before,
            beta,
            batches,
            device,
        )
        self._units = [0, *accumulate(self._pairs(step) for step in range(batches.steps))]

    def _pairs(self, step: int) -> int:
        return sum(len(self.compared[item].pairs) for item in self.batches.items(step))

    def units_before(self, step: int) -> int:
        return self._units[step]

    def micro_batches(self, step: int) -> list[Part]:
        # The loop takes the mean over micro-batches and ranks; a sum over them is meant.
        share = len(self.batches.partition(step)) / self._pairs(step)
        return [self._part(items, share) for items in self.batches.micro_batches(step)]

    def _part(self, items: Sequence[int], share: float) -> Part:
        texts: list[list[int]] = []
        sizes, before, better, worse = [], [], [], []
        for item in items:
            one = self.compared[item]
            better += [len(texts) + place for place, _ in one.pairs]
            worse += [len(texts) + place for _, place in one.pairs]
            texts += one.texts
            sizes += one.responses
            before += self.before[item]
        its_sizes, its_before, its_better, its_worse = (
            torch.tensor(one, device=self.device) for one in (sizes, before, better, worse)
        )
        return Part(
            PackedSequences.of(texts, self.device),
            its_sizes,
            its_before,
            its_better,
            its_worse,
            share,
        )

    def loss(
        self, model: nn.Module, micro_batch: Part
    ) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
        assert isinstance(model, GPT)
        rows, sizes = micro_batch.rows, micro_batch.sizes
        embeddings = model.embeddings()
        at = before_each(rows, sizes)
        text_of = torch.arange(len(sizes), device=at.device).repeat_interleave(
            sizes
        )  # [tokens of all responses]

        def moved(by_token: Tensor) -> Tensor:
            """How much likelier each response is than before, β times: [texts]."""
            whole = torch.zeros(len(sizes), device=at.device).index_add(0, text_of, by_token)
            return self.beta * (whole - micro_batch.before)

        def gaps(by_token: Tensor) -> Tensor:
            rewards = moved(by_token)
            return rewards[micro_batch.better] - rewards[micro_batch.worse]

        loss, by_token = through(
            model.states_of(rows, embeddings)[at],
            embeddings[0],
            rows.tokens[at + 1],
            lambda by_token: -(F.logsigmoid(gaps(by_token)) * micro_batch.share).sum(),
        )
        gap, rewards, count = gaps(by_token), moved(by_token), len(micro_batch.better)
        return loss, {
            "training_accuracy": ((gap > 0).sum(), count),
            "margin": (gap.sum(), count),
            "better_reward": (rewards[micro_batch.better].sum(), count),
            "worse_reward": (rewards[micro_batch.worse].sum(), count),
        }


def prompts_of(pairs: int, compared: Sequence[Compared]) -> int:
    """How many prompts have about so many pairs, on average; at least one."""
    return max(1, round(pairs * len(compared) / sum(len(one.pairs) for one in compared)))
