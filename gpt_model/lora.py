"""LoRA (Hu et al. 2021): low-rank adapters beside a decoder's frozen projections, by `peft`, and
merged into them again.

`peft` does the adapting; here is what it does not know: that our Conv1D keeps its weight [in,
out] as GPT-2's Conv1D does, and that fresh adapters are a function of the seed and each one's name.
An adapted block leaves the fused kernels, which read a projection's own weight alone
(`Block.forward`). Adapters alone are trained, and the embedding's rows of new tokens where there
are some (they have learnt nothing that an adapter could adapt): nothing else of the decoder asks
for a gradient.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gpt_model.errors import UserError
from gpt_model.io import dump_json
from gpt_model.ops.conv1d import Conv1D
from gpt_model.transformer import GPT, generator_of

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER = "default"  # peft's name for the only one
EMBEDDING = "wte"
ROWS = f"{EMBEDDING}.token_adapter.trainable_tokens_delta"  # peft's name for the rows themselves
# The factor that is drawn; the other begins at 0, so that nothing is added at first.
FACTOR = "lora_A"


@dataclass(frozen=True)
class LoRA:
    """How: the recipe's section."""

    rank: int
    alpha: int  # what is added is multiplied by alpha / rank
    dropout: float  # of an adapter's input
    targets: Sequence[str]  # of a block's projections: "attn.c_attn", "mlp.c_proj"


def adapt(gpt: GPT, how: LoRA, seed: int, new_rows: int = 0) -> None:
    """Put fresh adapters beside the projections `how` names, in place, and freeze all else. The
    decoder's answers do not change. Raises UserError where their rank is above the width.

    The embedding's last `new_rows` rows are trained whole, by peft's trainable tokens: in a tensor
    of their own, which is laid over the frozen matrix, so that no optimizer, decay or precision can
    move another row, and none keeps moments for them all.
    """
    # peft takes seconds to import, and most fine-tunings adapt nothing; so below.
    from peft import inject_adapter_in_model
    from peft.utils.other import TrainableTokensWrapper

    if how.rank > gpt.config.width:
        raise UserError(
            f"The rank {how.rank} is more than the model's width, {gpt.config.width}, the rank of "
            "the whole weights: make it smaller, or leave lora out.",
            field=".lora.rank",
        )
    with warnings.catch_warnings():
        # peft says so of every class that it does not know, such as our Conv1D.
        warnings.filterwarnings("ignore", "Unsupported layer type")
        inject_adapter_in_model(_config(how), gpt)
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            if FACTOR in name:
                # as torch's Linear, and LoRA's released code
                bound = 1 / math.sqrt(parameter.shape[1])
                uniform = torch.rand(parameter.shape, generator=generator_of(name, seed))
                parameter.copy_(uniform * 2 * bound - bound)
    if new_rows:
        rows = list(range(gpt.config.vocab_size - new_rows, gpt.config.vocab_size))
        # Not by the config: peft would ask the model's config for its `to_dict`.
        embedding: Any = TrainableTokensWrapper(gpt.wte, ADAPTER, rows)
        gpt.wte = embedding


def _config(how: LoRA) -> LoraConfig:
    # As in `adapt`.
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    class AdaptedConv1D(Linear):
        """peft's layer beside one of our projections."""

        def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
            assert isinstance(module, Conv1D)
            inputs, outputs = module.weight.shape
            return inputs, outputs

    config = LoraConfig(
        r=how.rank,
        lora_alpha=how.alpha,
        lora_dropout=how.dropout,
        target_modules=list(how.targets),
        fan_in_fan_out=True,
        bias="none",
        task_type="CAUSAL_LM",
    )
    config._register_custom_module({Conv1D: AdaptedConv1D})
    return config


def adapters(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights by name: A [rank, in], B [out, rank]."""
    return {
        name: parameter.detach() for name, parameter in model.named_parameters() if "lora_" in name
    }


def new_rows(gpt: GPT) -> Tensor | None:
    """The trained rows of the embedding [rows, width], where there are any."""
    return next(
        (
            parameter.detach()
            for name, parameter in gpt.named_parameters()
            if name == f"{ROWS}.{ADAPTER}"
        ),
        None,
    )


def merge(gpt: GPT) -> None:
    """Add each adapter to the weight it stands beside, in place: a plain decoder that answers
    alike, all of it to be trained again.
    """
    if new_rows(gpt) is not None:
        embedding: Any = gpt.wte
        embedding.token_adapter.merge()
        gpt.wte = embedding.original_module
    for parent, name, adapted in list(_adapted(gpt)):
        adapted.merge()
        setattr(parent, name, adapted.get_base_layer())
    gpt.requires_grad_(True)


def _adapted(gpt: GPT) -> Iterator[tuple[nn.Module, str, Any]]:
    """(module, name in it, peft's layer)"""
    # As in `adapt`.
    from peft.tuners.lora import LoraLayer

    for parent in gpt.modules():
        if not isinstance(parent, LoraLayer):
            for name, child in parent.named_children():
                if isinstance(child, LoraLayer):
                    yield parent, name, child


def keep_and_merge(model: nn.Module, gpt: GPT, how: LoRA, folder: Path) -> dict[str, float]:
    """After training: save the adapters in `folder`, merge them into `gpt`, and count what was
    trained of `model`, the decoder or more.
    """
    rows = new_rows(gpt)
    counted = {
        "adapter_parameters": float(sum(weight.numel() for weight in adapters(gpt).values())),
        **({"new_row_parameters": float(rows.numel())} if rows is not None else {}),
        "trained_parameters": float(
            sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        ),
    }
    save(gpt, how, folder)
    merge(gpt)
    return counted


def save(model: GPT, how: LoRA, folder: Path) -> None:
    """Write the adapters as `peft` does: `PeftModel.from_pretrained` puts them on the exported
    decoder they were trained beside.

    Those of a gpt3 carry our names: the class of `transformers` it fits has other projections.
    Trained rows need a decoder with as many rows (`resize_token_embeddings`), whatever is in the
    new ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": how.rank,
        "lora_alpha": how.alpha,
        "lora_dropout": how.dropout,
        "target_modules": sorted(how.targets),
        "fan_in_fan_out": True,
        "bias": "none",
    }
    if (rows := new_rows(model)) is not None:
        described["trainable_token_indices"] = {
            EMBEDDING: list(range(model.config.vocab_size - len(rows), model.config.vocab_size))
        }
    dump_json(folder / "adapter_config.json", described, indent=2, sort_keys=True)
    tensors = {
        name.replace(f".{ADAPTER}.", "."): tensor for name, tensor in adapters(model).items()
    }
    if rows is not None:
        tensors[ROWS] = rows
    weights = {
        f"base_model.model.transformer.{name}": tensor.cpu().contiguous()
        for name, tensor in tensors.items()
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
