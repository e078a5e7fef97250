"""GPT-1, section 1, a Transformer for its longer memory: held-out bits per byte against how many
tokens before a token a decoder sees.

The same held-out tokens are predicted for every context k, each from exactly the k tokens before
it. So the points of the curve differ in nothing else, and the gain from one k to the next is a
paired difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpt_model.data.shards import TokenData
from gpt_model.experiments.document import series
from gpt_model.statistics import ConfidenceInterval, Floats, bits_per_byte_interval, ratio_interval
from gpt_model.training.batching import EVALUATION_TOKENS
from gpt_model.training.engine import ALONE, Execution
from gpt_model.training.shared_batches import SharedBatches, while_reading
from gpt_model.transformer import Decoder

Positions = NDArray[np.int64]  # of tokens of a source's held-out text


def draw_positions(data: TokenData, source: str, longest: int, count: int, seed: int) -> Positions:
    """At most `count` positions in a source's held-out tokens, in order and without repeats: of
    tokens with text, each with `longest` tokens before it.
    """
    tokens = data.tokens(source, "held_out")
    candidates = np.arange(longest, len(tokens))
    # An end-of-text has no bytes.
    candidates = candidates[data.byte_lengths[np.asarray(tokens)[longest:]] > 0]
    chosen = np.random.default_rng(seed).permutation(len(candidates))[:count]
    return np.sort(candidates[chosen])


@torch.no_grad()
def nats_by_context(
    model: Decoder,
    data: TokenData,
    source: str,
    positions: Positions,
    contexts: Sequence[int],
    execution: Execution = ALONE,
) -> Floats:
    """Nats of the token at each position given exactly the last k tokens: [positions, contexts].
    Collective where there are several ranks.
    """
    tokens = np.asarray(data.tokens(source, "held_out"), dtype=np.int64)

    def read(batch: tuple[int, slice]) -> Floats:
        device = model.wte.weight.device
        k, part = contexts[batch[0]], positions[batch[1]]
        rows = torch.from_numpy(tokens[part[:, None] + np.arange(-k, 0)]).to(device)
        targets = torch.from_numpy(tokens[part])[:, None].to(device)
        losses = model.losses_of(model.hidden(rows)[:, -1:], targets)  # [batch, 1]
        return losses[:, 0].double().cpu().numpy()

    batches = [
        (column, slice(start, start + size))
        for column, k in enumerate(contexts)
        for size in [max(1, EVALUATION_TOKENS // k)]
        for start in range(0, len(positions), size)
    ]
    nats = np.zeros((len(positions), len(contexts)))
    shared = SharedBatches(while_reading(read, model), execution)
    for (column, part), of_batch in zip(batches, shared.results(batches), strict=True):
        nats[part, column] = of_batch
    return nats


def bits_saved(fewer: Floats, more: Floats, sizes: NDArray[np.integer]) -> ConfidenceInterval:
    """Bits per byte that more context saves on the same tokens, paired: of nats [tokens] with fewer
    and more of it, and bytes [tokens].
    """
    return ratio_interval((fewer - more) / math.log(2), sizes)


@dataclass(frozen=True)
class Source:
    """Tokens of one source's held-out text, predicted with every context."""

    name: str
    nats: Floats  # [tokens, contexts]
    sizes: NDArray[np.integer]  # bytes [tokens]
    held_out_tokens: int
    documents: int

    def curve(self) -> list[ConfidenceInterval]:
        return [bits_per_byte_interval(column, self.sizes) for column in self.nats.T]

    def saved(self, fewer: int, more: int) -> ConfidenceInterval:
        """By the context of one column over that of another."""
        return bits_saved(self.nats[:, fewer], self.nats[:, more], self.sizes)


def measure_source(
    model: Decoder,
    data: TokenData,
    source: str,
    contexts: Sequence[int],
    count: int,
    seed: int,
    execution: Execution = ALONE,
) -> Source | None:
    """None where fewer than two held-out tokens have the longest context before them. Collective
    where there are several ranks.
    """
    positions = draw_positions(data, source, contexts[-1], count, seed)
    if len(positions) < 2:
        return None
    tokens = data.tokens(source, "held_out")
    return Source(
        source,
        nats_by_context(model, data, source, positions, contexts, execution),
        data.byte_lengths[tokens[:][positions]].astype(int),
        len(tokens),
        data.documents(source, "held_out"),
    )


def default_contexts(longest: int) -> list[int]:
    """The powers of two up to a model's context, and that."""
    powers = [2**power for power in range(longest.bit_length()) if 2**power <= longest]
    return sorted({*powers, longest})


@dataclass(frozen=True)
class VisibleContext:
    """The curve of every source."""

    contexts: Sequence[int]  # ascending
    sources: Sequence[Source]

    def metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for source in self.sources:
            for k, point in zip(self.contexts, source.curve(), strict=True):
                metrics[f"{source.name}/{k}/bpb"] = point.value
            metrics |= source.saved(0, -1).as_metrics(f"{source.name}/gain")
        return metrics

    def document(self) -> dict[str, Any]:
        contexts = list(self.contexts)
        curves = {source.name: source.curve() for source in self.sources}
        rows: list[list[Any]] = []
        for source in self.sources:
            for column, k in enumerate(contexts):
                saved = str(source.saved(column - 1, column)) if column else "–"
                point = str(curves[source.name][column])
                rows.append([source.name, k, point, saved, len(source.sizes)])
        sample = "; ".join(
            f"{source.name} {len(source.sizes):,} tokens of {source.held_out_tokens:,} held out in "
            f"{source.documents:,} documents"
            for source in self.sources
        )
        plot = {
            "title": "held-out bits per byte",
            "x": "tokens seen",
            "y": "bits per byte",
            "log_x": True,
            "series": [series(name, contexts, curve) for name, curve in curves.items()],
        }
        return {
            "title": "Bits per byte against the visible context",
            "source": "GPT-1, section 1: a Transformer for its longer memory",
            "summary": [
                f"{source.name}: {contexts[-1]} tokens seen instead of {contexts[0]} save "
                f"{source.saved(0, -1)} bits per byte, on {len(source.sizes)} tokens held out."
                for source in self.sources
            ]
            or ["No source has held-out text of that length."],
            "tables": [
                {
                    "caption": f"Predicted, the same for every context: {sample or 'nothing'}. "
                    "95 % intervals over these tokens, each a window of its own, taken for "
                    "independent draws; of what is saved, paired. One model: what another seed of "
                    "pre-training would give is not in them.",
                    "columns": [
                        "source",
                        "tokens seen",
                        "bits per byte",
                        "saved against the one before",
                        "tokens predicted",
                    ],
                    "rows": rows,
                }
            ],
            "plots": [plot] if self.sources else [],
        }
