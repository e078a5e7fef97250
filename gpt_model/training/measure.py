"""What training is measured by: the matrix-product peak, held-out loss and bits per byte, peak
memory. Nothing here trains.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from gpt_model.data.shards import TokenData, held_out_windows
from gpt_model.io import peak_resident_bytes
from gpt_model.statistics import ConfidenceInterval, bits_per_byte_interval
from gpt_model.training import gpu
from gpt_model.training.batching import EVALUATION_TOKENS
from gpt_model.training.engine import Execution
from gpt_model.transformer import Decoder

PRODUCT_SIZES = (512, 1024, 2048)  # square products tried for the peak on CPU; the best counts
PRODUCT_SIZES_CUDA = (4096, 8192)
PEAK_SECONDS = 0.1  # at each size


@dataclass(frozen=True)
class HeldOut:
    """Held-out text as the model predicted it, a row of `windows` [n, 3] each so many tokens: nats,
    tokens and bytes of text.
    """

    windows: NDArray[np.float64]

    def first(self, tokens: int) -> HeldOut:
        """Its first windows, as many as have so many tokens."""
        before = np.cumsum(self.windows[:, 1]) - self.windows[:, 1]
        return HeldOut(self.windows[before < tokens])

    @property
    def nats(self) -> float:
        return float(self.windows[:, 0].sum())

    @property
    def tokens(self) -> int:
        return int(self.windows[:, 1].sum())

    @property
    def bytes(self) -> int:
        return int(self.windows[:, 2].sum())

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / max(1, self.tokens)

    @property
    def bpb(self) -> float:
        """Bits per byte: what the text would take, compressed with this model, by the byte of text;
        free of the tokenizer.
        """
        return self.nats / math.log(2) / max(1, self.bytes)

    @property
    def bpb_interval(self) -> ConfidenceInterval | None:
        """95 % of `bpb`, windows taken for independent draws. None for a single window."""
        nats, _, sizes = self.windows.T
        return bits_per_byte_interval(nats, sizes) if len(nats) > 1 else None


def held_out(
    model: Decoder, data: TokenData, execution: Execution, limit_tokens: int | None = None
) -> dict[str, HeldOut]:
    """Every source's held-out text, or the first `limit_tokens` of each. Split over ranks.
    Collective where there are several; at ZeRO 3 all make as many forward passes.

    Each token is predicted once, from at least half a context of text before it: windows overlap by
    half, as is usual where a model is set beside one that has read everything before (it costs two
    forward passes instead of one).
    """
    context = model.config.context
    stride = max(1, context // 2)
    sequences = max(1, EVALUATION_TOKENS // context)
    results = {}
    for source in data.sources:
        tokens = min(limit_tokens or sys.maxsize, len(data.tokens(source, "held_out")))
        windows = torch.zeros(-(-tokens // stride), 3, dtype=torch.float64, device=execution.device)
        for index, (inputs, targets) in enumerate(
            held_out_windows(data, source, context, stride, limit_tokens, sequences)
        ):
            if index % execution.world_size == execution.rank:
                device_targets = torch.from_numpy(targets).to(execution.device)
                losses = model.loss_by_token(
                    torch.from_numpy(inputs).to(execution.device), device_targets
                )
                sizes = torch.from_numpy(
                    np.where(targets >= 0, data.byte_lengths[targets], 0).sum(1)
                )
                rows = windows[index * sequences : index * sequences + len(targets)]
                rows.copy_(
                    torch.stack(
                        [
                            losses.double().sum(1),
                            (device_targets >= 0).sum(1),
                            sizes.to(device_targets.device),
                        ],
                        1,
                    )
                )
        last_turn = -(-tokens // (stride * sequences)) % execution.world_size  # its batches
        if execution.zero_stage == 3 and 0 < last_turn <= execution.rank:
            batch = (torch.from_numpy(array).to(execution.device) for array in (inputs, targets))
            model.loss_by_token(*batch)  # counts nothing: gives the others this rank's weights
        if execution.world_size > 1:
            torch.distributed.all_reduce(
                windows
            )  # the others' rows are zero here, so the sum is exact
        results[source] = HeldOut(windows.cpu().numpy())
    return results


def held_out_metrics(
    held_out: Mapping[str, HeldOut], weights: Mapping[str, float], name: str = "held_out"
) -> dict[str, float]:
    """`held_out/<source>/bpb`, `perplexity` and `loss`; `held_out/bpb` and `loss` weigh sources as
    the mixture, `total_bpb` by bytes. `name`: what stands for `held_out`.
    """
    present = {source: text for source, text in held_out.items() if text.tokens}
    share = {
        source: weights[source] / max(1e-30, sum(weights[s] for s in present)) for source in present
    }
    metrics: dict[str, float] = {}
    for source, text in present.items():
        metrics |= {
            f"{name}/{source}/bpb": text.bpb,
            f"{name}/{source}/perplexity": math.exp(min(text.loss, 700.0)),
            f"{name}/{source}/loss": text.loss,
        }
    total = HeldOut(
        np.concatenate([np.zeros((0, 3)), *(text.windows for text in present.values())])
    )
    metrics[f"{name}/bpb"] = sum(share[source] * text.bpb for source, text in present.items())
    metrics[f"{name}/loss"] = sum(share[source] * text.loss for source, text in present.items())
    metrics[f"{name}/total_bpb"] = total.bpb
    return metrics


def held_out_intervals(held_out: Mapping[str, HeldOut]) -> dict[str, float]:
    """`held_out/<source>/bpb_low` and `bpb_high`, of sources with more than one window."""
    return {
        f"held_out/{source}/bpb_{name}": end
        for source, text in held_out.items()
        if (interval := text.bpb_interval) is not None
        for name, end in (("low", interval.low), ("high", interval.high))
    }


def peak_flops(execution: Execution, precision: str) -> float:
    """FLOP/s of matrix products of the best size, all ranks at work at once, added up: the measure
    of utilisation. Collective.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    best = 0.0
    for size in PRODUCT_SIZES_CUDA if execution.device == "cuda" else PRODUCT_SIZES:
        a, b = (torch.randn(size, size, device=execution.device).to(dtype) for _ in range(2))
        out = torch.empty(size, size, device=execution.device, dtype=dtype)
        torch.mm(a, b, out=out)
        torch.distributed.barrier()
        best = max(best, _rate(a, b, out))
    rate = torch.tensor([best], dtype=torch.float64, device=execution.device)
    torch.distributed.all_reduce(rate)
    return float(rate.item())


def data_sheet_flops(execution: Execution, precision: str) -> float | None:
    """FLOP/s of all ranks' GPUs by their data sheet, the field's measure of utilisation; None on a
    CPU, of another GPU, and in float32.
    """
    if execution.device != "cuda" or precision != "bfloat16":
        return None
    each = gpu.data_sheet_flops(torch.cuda.get_device_name())
    return each and each * execution.world_size


def _rate(a: Tensor, b: Tensor, out: Tensor) -> float:
    """FLOP/s of out = a @ b, each [n, n], over PEAK_SECONDS: 2 * n³ a product."""
    wait = torch.cuda.synchronize if a.is_cuda else lambda: None
    products, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < PEAK_SECONDS:
        for _ in range(10 if a.is_cuda else 1):
            torch.mm(a, b, out=out)
            products += 1
        wait()
    return products * 2.0 * len(a) ** 3 / elapsed


def peak_memory_bytes(execution: Execution) -> float:
    """The most memory any rank's process has held, on the GPU where it trains there. Collective."""
    resident = float(
        torch.cuda.max_memory_allocated() if execution.device == "cuda" else peak_resident_bytes()
    )
    most = torch.tensor([resident], dtype=torch.float64, device=execution.device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return float(most.item())
