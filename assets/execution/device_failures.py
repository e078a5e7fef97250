"""What a GPU or the exchange between ranks refuses, as sentences. `sentence_of_device` is for every
stage (`assets.worker`). Where memory ran out while a model was trained, or built sharded for that,
it is said which of the profile's settings would help, and by how much.
"""

from __future__ import annotations

import socket
from dataclasses import replace

import torch
import torch.distributed

from assets.estimate import training_setting
from assets.recipe.profile import Profile
from assets.stages.pretraining import sequences_each
from gpt_model.errors import UserError
from gpt_model.training.failures import OutOfMemory, exchange_failed
from gpt_model.training.memory import FLOAT32, memory_per_rank

GB = 1e9
TELLING = 0.01  # of the memory: what saves less is not named


def sentence_of_device(error: Exception, profile: Profile, rank: int) -> UserError | None:
    """What to tell people of torch's error in a stage; None: it is about neither a GPU's memory nor
    an exchange.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory(error, profile, rank)
    if isinstance(error, torch.distributed.DistBackendError):
        return exchange_failed(error)
    return None


def out_of_memory(error: torch.OutOfMemoryError, profile: Profile, rank: int) -> UserError:
    """What to tell people of torch's error."""
    reason = str(error).removeprefix("CUDA out of memory.").strip().split(". ")[0].rstrip(".")
    sentence = f"Rank {rank} on {socket.gethostname()} ran out of its GPU's memory ({reason})."
    if not isinstance(error, OutOfMemory):
        return UserError(
            f"{sentence} No model was being trained then. See by `nvidia-smi` what else holds "
            "memory of that GPU, or choose a profile with a larger one."
        )
    config, settings = error.shape, error.settings
    if error.phase == "building":
        share = config.parameters() * FLOAT32 / profile.processes
        sentence += (
            f" A model was being built, of whose weights each rank has {share / GB:.2g} GB; more "
            "`processes` make that less."
        )
    rows = error.sequences or sequences_each(profile, config.context)
    setting = training_setting(profile, settings.precision, rows, settings.muon is not None)
    stage, sparing = profile.zero_stage, profile.activation_checkpointing
    changes = {
        f"micro_batch: {rows // 2}": replace(setting, micro_batch=max(1, rows // 2)),
        "activation_checkpointing: true": replace(setting, checkpointing=True),
    }
    for higher in range(stage + 1, 4):
        changes[f"zero_stage: {higher}"] = replace(setting, zero_stage=higher)
    now = memory_per_rank(config, setting)
    less = {change: now - memory_per_rank(config, then) for change, then in changes.items()}
    saved = {change: size for change, size in less.items() if size > TELLING * now}
    best_first = sorted(saved, key=lambda change: -saved[change])
    advice = ", ".join(f"`{change}` ({saved[change] / GB:.2g} GB less)" for change in best_first)
    return UserError(
        f"{sentence} By plan's arithmetic training takes {now / GB:.2g} GB a rank with micro_batch "
        f"{rows}, ZeRO {stage} and activation_checkpointing {str(sparing).lower()}. In "
        f"profiles/{profile.name}.yaml, "
        + (f"these would help: {advice}." if advice else "only more `processes` would help.")
        + " Training then resumes from its last checkpoint."
    )
