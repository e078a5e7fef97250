"""A decoder built sharded, for ZeRO 3: each rank draws or reads its share of the elements, a
parameter at a time. The weights are those of a decoder built whole.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from gpt_model import convert
from gpt_model.config import ModelConfig
from gpt_model.lstm import build
from gpt_model.training.allocator import freed_memory_returned
from gpt_model.training.engine import Execution, shard
from gpt_model.training.optimizer import TrainingSettings
from gpt_model.training.sharded import shares, whole_shape
from gpt_model.transformer import Decoder


def build_sharded(
    shape: ModelConfig,
    settings: TrainingSettings,
    execution: Execution,
    seed: int,
    folder: Path | None = None,
) -> Decoder:
    """Fresh weights; or with `folder`, one that `convert.save` wrote, its weights. What `shape` has
    more than those, rows of the vocabulary, is drawn as `with_rows` does. Collective.
    """
    with freed_memory_returned():
        with torch.device("meta"):
            model = build(shape)
        shard(model, settings, execution)
        targets: dict[str, tuple[int, Tensor]] = {}
        stored = shape.vocab_size if folder is None else convert.shape(folder).vocab_size
        whole_shapes = {name: whole_shape(each) for name, each in model.named_parameters()}
        for fragment in shares(model):
            share, whole = fragment.values["weight"], whole_shapes[fragment.name]
            available = 0 if folder is None else math.prod(whole)
            if folder is not None and fragment.name == "wte.weight":
                available = stored * whole[1]
            read = min(len(share), max(0, available - fragment.start))
            if read:
                targets[fragment.name] = fragment.start, share[:read]
            if read < len(share):
                fresh = model.fresh(fragment.name, whole, seed).view(-1)
                share[read:] = fresh[fragment.start + read :][: len(share) - read]
        if folder is not None:
            convert.load_elements(folder, targets)
        return model


def fill_shares(model: Decoder, folder: Path) -> None:
    """Give `model`, built sharded or a part of what a `ShardedModel` shows, the weights of a folder
    that `convert.save` wrote.
    """
    parts = shares(model)
    targets = {fragment.name: (fragment.start, fragment.values["weight"]) for fragment in parts}
    convert.load_elements(folder, targets)
