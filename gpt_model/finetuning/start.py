"""The decoder that a fine-tuning starts from: a stored one, or parts of it, with rows for Start,
Delim and Extract.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from gpt_model import convert, lora
from gpt_model.finetuning.heads import with_special_tokens
from gpt_model.finetuning.input_forms import SPECIAL_TOKENS
from gpt_model.finetuning.objective import FineTuning
from gpt_model.training.engine import Execution
from gpt_model.training.sharded_build import build_sharded
from gpt_model.transformer import GPT, Decoder


def everything(name: str) -> bool:
    """Every parameter is transferred."""
    return True


def nothing(name: str) -> bool:
    """No parameter is: only the shape is the stored decoder's."""
    return False


@torch.no_grad()
def start_decoder(
    folder: Path,
    settings: FineTuning,
    execution: Execution,
    transferred: Callable[[str], bool] = everything,
    adapters: lora.LoRA | None = None,
) -> Decoder:
    """The decoder in `folder`, one that `convert.save` wrote, with the settings' dropout and new
    rows. Parameters that are not `transferred`, by name, are drawn by the settings' seed. With
    `adapters`, fresh ones beside its projections. At ZeRO 3 no rank has more of it than its share
    and a parameter. Collective there.
    """
    rows, seed = len(SPECIAL_TOKENS), settings.seed
    if execution.zero_stage == 3:
        shape = convert.shape(folder)
        grown = {"vocab_size": shape.vocab_size + rows, "dropout": settings.dropout}
        shape, training = shape.model_copy(update=grown), settings.training(steps=1)
        return build_sharded(shape, training, execution, seed, folder, transferred, adapters)
    decoder = with_special_tokens(convert.load_decoder(folder), settings.dropout, seed)
    for name, parameter in decoder.named_parameters():
        if not transferred(name):
            parameter.copy_(decoder.fresh(name, parameter.shape, seed))
    if adapters:
        assert isinstance(decoder, GPT)
        lora.adapt(decoder, adapters, seed, rows)
    return decoder
