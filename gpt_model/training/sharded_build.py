"""A decoder built sharded, for ZeRO 3: each rank draws or reads its share of the elements, a
parameter at a time. The weights are those of a decoder built whole.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from gpt_model import convert, lora
from gpt_model.config import ModelConfig
from gpt_model.lstm import build
from gpt_model.training.allocator import freed_memory_returned
from gpt_model.training.engine import Execution, shard
from gpt_model.training.failures import OutOfMemory
from gpt_model.training.optimizer import TrainingSettings
from gpt_model.training.sharded import filling, shares, whole_shape
from gpt_model.transformer import GPT, Decoder


@contextmanager
def _explained(shape: ModelConfig, settings: TrainingSettings) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(error, "building", shape, settings) from error


def build_sharded(
    shape: ModelConfig,
    settings: TrainingSettings,
    execution: Execution,
    seed: int,
    folder: Path | None = None,
    transferred: Callable[[str], bool] = lambda name: True,
    adapters: lora.LoRA | None = None,
) -> Decoder:
    """Fresh weights; or with `folder`, one that `convert.save` wrote, those of its weights that are
    `transferred`, by name. What `shape` has more, rows of the vocabulary, is drawn as `with_rows`
    does. With `adapters`, fresh ones, as `lora.adapt` puts them there: rows that the folder lacks
    are trained with them. Collective.

    Raises OutOfMemory where a GPU's memory does not hold the shares.
    """
    gc.collect()  # what an earlier shared-out model consisted of refers to each other
    with _explained(shape, settings), freed_memory_returned():
        with torch.device("meta"):
            model = build(shape)
        stored = shape.vocab_size if folder is None else convert.shape(folder).vocab_size
        if adapters:
            assert isinstance(model, GPT)
            lora.inject(model, adapters, new_rows=shape.vocab_size - stored)
        shard(model, settings, execution)
        targets: dict[str, tuple[int, Tensor]] = {}
        whole_shapes = {name: whole_shape(each) for name, each in model.named_parameters()}
        for fragment in shares(model):
            share, whole = fragment.values["weight"], whole_shapes[fragment.name]
            name, available = lora.plain_name(fragment.name), 0
            if folder is not None and name and transferred(name):
                available = stored * whole[1] if name == "wte.weight" else math.prod(whole)
            read = min(len(share), max(0, available - fragment.start))
            if read:
                targets[name] = fragment.start, share[:read]
            if read < len(share):
                fresh = (
                    model.fresh(name, whole, seed)
                    if name
                    else lora.fresh(model, fragment.name, whole, seed)
                ).view(-1)
                share[read:] = fresh[fragment.start + read :][: len(share) - read]
        if folder is not None:
            convert.load_elements(folder, targets)
        return model


def fill_shares(model: Decoder, folder: Path) -> None:
    """Give `model`, built sharded or a part of what a `ShardedModel` shows, the weights of a folder
    that `convert.save` wrote.
    """
    with filling(model) as targets:
        convert.load_elements(folder, targets)
