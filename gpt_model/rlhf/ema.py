"""The moving average of a policy's weights, batch by batch: average = decay · average + (1 − decay)
· weights (InstructGPT, appendix C.4).

Each batch leaves a file, made of the file before and of the weights at that step. So the average is
a function of the step, and a run that resumes from a checkpoint finds the file it continues.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from gpt_model.rlhf.episodes import write_tensors
from gpt_model.transformer import GPT


def path_of(folder: Path, batch: int) -> Path:
    return folder / f"average-{batch:06d}.safetensors"


@torch.no_grad()
def advance(folder: Path, batch: int, policy: GPT, start: GPT, decay: float) -> None:
    """Write the average after `batch` batches of training. The average before the first is
    `start`.
    """
    average = _weights(start) if batch == 1 else load_file(path_of(folder, batch - 1))
    weights = _weights(policy)
    averaged = {
        name: average[name].float() * decay + weights[name].float() * (1 - decay)
        for name in weights
    }
    write_tensors(averaged, path_of(folder, batch))


@torch.no_grad()
def load_into(policy: GPT, folder: Path, batch: int) -> None:
    """Give `policy` the average's weights after `batch` batches."""
    average = load_file(path_of(folder, batch))
    for name, parameter in policy.named_parameters():
        parameter.copy_(average[name])


def _weights(model: GPT) -> dict[str, Tensor]:
    """Every parameter [...] on the CPU, by name."""
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
