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

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gpt_model.errors import UserError
from gpt_model.io import dump_json
from gpt_model.ops.conv1d import Conv1D
from gpt_model.transformer import GPT, D, Decoder, generator_of

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER = "default"  # peft's name for the only one
EMBEDDING = "wte"
ROWS = f"{EMBEDDING}.token_adapter.trainable_tokens_delta"  # peft's name for the rows themselves
TRAINED_ROWS = f"{ROWS}.{ADAPTER}"  # and for the parameter
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
    inject(gpt, how, new_rows)
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            if FACTOR in name:
                parameter.copy_(fresh(gpt, name, parameter.shape, seed))


def inject(gpt: GPT, how: LoRA, new_rows: int = 0) -> None:
    """`adapt`, with adapters that are not drawn yet (`fresh`). `gpt` may have shapes and no
    memory.
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
    if new_rows:
        rows = list(range(gpt.config.vocab_size - new_rows, gpt.config.vocab_size))
        # Not by the config: peft would ask the model's config for its `to_dict`.
        embedding: Any = TrainableTokensWrapper(gpt.wte, ADAPTER, rows)
        # The rows as they were, for peft's `unmerge`: they have no memory where `gpt` has none
        embedding.token_adapter.trainable_tokens_original.clear()
        gpt.wte = embedding


def fresh(gpt: Decoder, name: str, shape: torch.Size, seed: int) -> Tensor:
    """The values of the adapters' parameter `name`, of this shape [...], before training; of
    trained rows, those of a fresh embedding of the decoder's size.
    """
    if name == TRAINED_ROWS:
        embedding = torch.Size((gpt.config.vocab_size, gpt.config.width))
        return gpt.fresh(f"{EMBEDDING}.weight", embedding, seed)[-shape[0] :]
    if FACTOR not in name:
        return torch.zeros(shape)
    bound = 1 / math.sqrt(shape[1])  # as torch's Linear, and LoRA's released code
    return torch.rand(shape, generator=generator_of(name, seed)) * 2 * bound - bound


def plain_name(name: str) -> str:
    """What a frozen parameter of an adapted decoder is called in a plain one; "" of an adapter's
    own.
    """
    if "lora_" in name or name == TRAINED_ROWS:
        return ""
    return name.replace(".token_adapter", "").replace(".base_layer", "")


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


def adapters(gpt: GPT) -> dict[str, Tensor]:
    """The adapters' weights by name: A [rank, in], B [out, rank]."""
    return {name: gpt.weight(name) for name, _ in gpt.named_parameters() if "lora_" in name}


def new_rows(gpt: Decoder) -> Tensor | None:
    """The trained rows of the embedding [rows, width], where there are any."""
    trained = any(name == TRAINED_ROWS for name, _ in gpt.named_parameters())
    return gpt.weight(TRAINED_ROWS) if trained else None


def merged(model: D) -> D:
    """A decoder that answers as `model` with its adapters: `model` itself where it has none, else
    shapes without memory whose `weight` gives each parameter, merged as it is asked for. So
    `convert.save` writes it, and nobody needs two models, or one that is whole.
    """
    if all(plain_name(name) for name, _ in model.named_parameters()):
        return model
    with torch.device("meta"):
        plain = type(model)(model.config)
    plain.weight = functools.partial(_merged_weight, model)  # type: ignore[method-assign]
    return plain


@torch.no_grad()
def _merged_weight(gpt: Decoder, name: str) -> Tensor:
    """The plain decoder's parameter `name` [...]."""
    # As in `inject`.
    from peft.tuners.lora import LoraLayer

    path, _, leaf = name.rpartition(".")
    module: Any = gpt.get_submodule(path)
    if path == EMBEDDING and (rows := new_rows(gpt)) is not None:
        embedding = gpt.weight(f"{EMBEDDING}.token_adapter.base_layer.{leaf}")
        return torch.cat([embedding[: -len(rows)], rows])
    if not isinstance(module, LoraLayer):
        return gpt.weight(name)
    weight = gpt.weight(f"{path}.base_layer.{leaf}")
    if leaf != "weight":
        return weight
    a, b = (gpt.weight(f"{path}.lora_{factor}.{ADAPTER}.weight") for factor in "AB")
    with torch.autocast(weight.device.type, enabled=False):
        return weight + (b @ a).T * module.scaling[ADAPTER]


def counted(model: nn.Module) -> dict[str, float]:
    """How many parameters are trained of `model`, a decoder or more, and of what. They have their
    whole shapes, with memory or without.
    """
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    of_adapters = sum(number for name, number in trained.items() if "lora_" in name)
    of_rows = sum(number for name, number in trained.items() if name.endswith(TRAINED_ROWS))
    return {
        "adapter_parameters": float(of_adapters),
        **({"new_row_parameters": float(of_rows)} if of_rows else {}),
        "trained_parameters": float(sum(trained.values())),
    }


def save(model: GPT, how: LoRA, folder: Path) -> None:
    """Write the adapters as `peft` does: `PeftModel.from_pretrained` puts them on the exported
    decoder they were trained beside. `model`: adapted, or what a `ShardedModel` shows of it.

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
