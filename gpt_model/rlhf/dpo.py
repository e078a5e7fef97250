"""Direct preference optimisation (Rafailov et al. 2023, equation 7): comparisons without a reward
model.

    −log σ(β · [(log π(better) − log π_ref(better)) − (log π(worse) − log π_ref(worse))]),
    a mean over the pairs of a step

The reference is the policy before the first step. Its log-probabilities never change, so they are
computed once, before training. Each response goes through the policy once a step, however many
pairs it is in, and the head runs at the response's tokens alone.
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

from gpt_model.log_probabilities import (
    continuation_log_probabilities,
    continuation_positions,
    loss_of_log_probabilities,
)
from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf.reward_model import EncodedRanking, full_ranking, texts_and_pairs
from gpt_model.training.batching import EpochBatches, Idle, collated
from gpt_model.training.engine import ALONE, Execution
from gpt_model.training.sharded import for_evaluation, is_sharded
from gpt_model.transformer import GPT

LogProbabilities = list[list[float]]  # [rankings][responses], nats


def ranking_log_probabilities(
    model: GPT,
    rankings: Sequence[EncodedRanking],
    precision: str | None = None,
    execution: Execution = ALONE,
) -> LogProbabilities:
    """log π(response | prompt) in nats of every response; `precision` as
    `continuation_log_probabilities` has it. Collective where there are several ranks.
    """
    texts = [text for ranking in rankings for text in ranking.texts]
    lengths = [length for ranking in rankings for length in ranking.response_lengths]
    nats = continuation_log_probabilities(
        model, texts, lengths, precision=precision, execution=execution
    )
    flat = iter(nats)
    return [[next(flat) for _ in ranking.texts] for ranking in rankings]


def reference_log_probabilities(
    model: GPT,
    rankings: Sequence[EncodedRanking],
    folder: Path,
    execution: Execution,
    precision: str = "float32",
) -> LogProbabilities:
    """`ranking_log_probabilities` of the model before training. Collective: each rank computes its
    share and leaves it in `folder`, which all ranks see.

    A resumed run reads what is there; the model it passes is still the one that training began
    with.
    """
    rank, ranks = execution.rank, execution.world_size
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}-of-{ranks}.safetensors" for number in range(ranks)]
    if is_sharded(model) or not paths[rank].is_file():  # one rank cannot read without the others
        read = for_evaluation(model, execution.device)
        share = ranking_log_probabilities(read, rankings[rank::ranks], precision)
        flat = [nats for ranking in share for nats in ranking]
        partial = paths[rank].with_suffix(".part")
        save_file({"nats": torch.tensor(flat, dtype=torch.float64)}, partial)
        partial.replace(paths[rank])
    torch.distributed.barrier()
    result: LogProbabilities = [[] for _ in rankings]
    for first, path in enumerate(paths):
        values = iter(load_file(path)["nats"].tolist())
        for index in range(first, len(rankings), ranks):
            result[index] = [next(values) for _ in rankings[index].texts]
    return result


def implicit_rewards(
    policy: LogProbabilities, reference: LogProbabilities, beta: float
) -> LogProbabilities:
    """β · (log π − log π_ref) of each response (equation 5, but for a constant of the prompt)."""
    return [
        [beta * (log_prob - before) for log_prob, before in zip(*ranking, strict=True)]
        for ranking in zip(policy, reference, strict=True)
    ]


@dataclass(frozen=True)
class PreferenceMicroBatch:
    """Some prompts with all their responses."""

    rows: PackedSequences
    response_lengths: Tensor  # [texts]
    reference: Tensor  # [texts], the reference's log-probability of the response
    better: Tensor  # [pairs], index of a text
    worse: Tensor  # [pairs], index of a text
    weight: float  # of each pair in the loss


def _collate(
    rankings: Sequence[EncodedRanking], reference: LogProbabilities, weight: float
) -> PreferenceMicroBatch:
    """`reference`: of the rankings' responses. `weight`: of each pair in the loss."""
    texts, better, worse = texts_and_pairs(rankings)
    return PreferenceMicroBatch(
        PackedSequences.of(texts),
        response_lengths=torch.tensor(
            [length for ranking in rankings for length in ranking.response_lengths]
        ),
        reference=torch.tensor([nats for ranking in reference for nats in ranking]),
        better=torch.tensor(better),
        worse=torch.tensor(worse),
        weight=weight,
    )


class DPOObjective:
    """What an optimizer step minimises. `batches` are of prompts, each with all its pairs
    (`prompts_per_step`).
    """

    unit, flops_per_unit = "pairs", 0.0  # lengths differ too much for one figure

    def __init__(
        self,
        rankings: Sequence[EncodedRanking],
        reference: LogProbabilities,
        beta: float,
        batches: EpochBatches,
    ) -> None:
        self.rankings, self.reference, self.beta = rankings, reference, beta
        self.batches, self.size = batches, batches.size
        self._pairs_before = [0, *accumulate(self._pairs(step) for step in range(batches.steps))]

    def _pairs(self, step: int) -> int:
        return sum(len(self.rankings[item].pairs) for item in self.batches.items(step))

    def units_before(self, step: int) -> int:
        return self._pairs_before[step]

    def full_micro_batch(self, sequences: int) -> PreferenceMicroBatch:
        """One ranking of so many responses."""
        ranking = full_ranking(sequences, self.size.context)
        return _collate([ranking], [[0.0] * sequences], 1.0)

    def micro_batches(self, step: int) -> list[PreferenceMicroBatch | Idle[PreferenceMicroBatch]]:
        # The loop takes the mean over micro-batches and ranks; the loss is their sum.
        weight = len(self.batches.partition(step)) / self._pairs(step)
        return collated(
            self.batches.micro_batches(step),
            lambda items: _collate(
                [self.rankings[item] for item in items],
                [self.reference[item] for item in items],
                weight,
            ),
            stand_in=self.batches.items(step)[:1],
        )

    def loss(
        self, model: nn.Module, micro_batch: PreferenceMicroBatch
    ) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
        """The micro-batch's loss [], and metrics as (sum, count)."""
        assert isinstance(model, GPT)
        rows, lengths = micro_batch.rows, micro_batch.response_lengths
        embeddings = model.embeddings()
        positions = continuation_positions(rows, lengths)  # [response tokens]
        text_of = torch.arange(len(lengths), device=positions.device).repeat_interleave(lengths)

        def rewards(log_probs: Tensor) -> Tensor:
            """Implicit reward of each response: [response tokens] -> [texts]."""
            zeros = torch.zeros(len(lengths), device=positions.device)
            return self.beta * (zeros.index_add(0, text_of, log_probs) - micro_batch.reference)

        def gaps(log_probs: Tensor) -> Tensor:
            """Better minus worse: [response tokens] -> [pairs]."""
            by_text = rewards(log_probs)
            return by_text[micro_batch.better] - by_text[micro_batch.worse]

        loss, log_probs = loss_of_log_probabilities(
            model.states_of(rows, embeddings)[positions],
            embeddings[0],
            rows.tokens[positions + 1],
            lambda log_probs: -(F.logsigmoid(gaps(log_probs)) * micro_batch.weight).sum(),
        )
        gap, reward, pairs = gaps(log_probs), rewards(log_probs), len(micro_batch.better)
        return loss, {
            "training_accuracy": ((gap > 0).sum(), pairs),
            "margin": (gap.sum(), pairs),
            "better_reward": (reward[micro_batch.better].sum(), pairs),
            "worse_reward": (reward[micro_batch.worse].sum(), pairs),
        }


def prompts_per_step(pairs: int, rankings: Sequence[EncodedRanking]) -> int:
    """How many prompts have about so many pairs, on average; at least one."""
    return max(1, round(pairs * len(rankings) / sum(len(ranking.pairs) for ranking in rankings)))
