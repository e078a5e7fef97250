"""The moving average of a policy's weights, batch by batch: average = decay · average + (1 - decay)
· weights (InstructGPT, appendix C.4).

It is a file a batch, made of the one before and of the weights at that step. So it is a function of
the step as all else, and a run that goes on from a checkpoint finds the one that it goes on from.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from gpt_model.rlhf.episodes import keep
from gpt_model.transformer import GPT


def path_of(folder: Path, batch: int) -> Path:
    return folder / f"average-{batch:06d}.safetensors"


@torch.no_grad()
def advance(folder: Path, batch: int, policy: GPT, start: GPT, decay: float) -> None:
    """Keep the average after `batch` batches, of which the policy has seen as many. Before the
    first it is `start`.
    """
    before = _weights(start) if batch == 1 else load_file(path_of(folder, batch - 1))
    now = _weights(policy)
    keep(
        {name: before[name].float() * decay + now[name].float() * (1 - decay) for name in now},
        path_of(folder, batch),
    )


@torch.no_grad()
def take(folder: Path, batch: int, policy: GPT) -> None:
    """Give `policy` the average's weights."""
    found = load_file(path_of(folder, batch))
    for name, parameter in policy.named_parameters():
        parameter.copy_(found[name])


def _weights(model: GPT) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
