"""LoRA by peft on our own projections: what it trains, what it adds, and that merging it changes no
answer.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.gpu_check import ALONE
from gpt_model import GPT, ModelConfig, convert, lora
from gpt_model.lora import LoRA
from gpt_model.ops import cpu_kernels
from gpt_model.training.engine import Execution
from gpt_model.training.optimizer import TrainingSettings
from gpt_model.training.sharded import for_evaluation, reading, shares
from gpt_model.training.sharded_build import build_sharded

EVERYWHERE = LoRA(
    rank=4, alpha=8, dropout=0.0, targets=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
)
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt1": {"family": "gpt1"},
    "gpt2": {"family": "gpt2"},
    "gpt3": {"family": "gpt3", "band": 9, "attention_bias": False},
}


def small(family: str = "gpt2") -> GPT:
    return GPT(
        ModelConfig(layers=2, width=32, heads=2, context=32, vocab_size=50, **FAMILIES[family]),
        seed=1,
    )


def tokens() -> Tensor:
    return torch.randint(0, 50, (4, 32), generator=torch.Generator().manual_seed(0))


def trained(model: GPT, steps: int = 8) -> GPT:
    """`model` after a few steps of whatever of it asks for gradients."""
    optimizer = torch.optim.Adam(
        [parameter for parameter in model.parameters() if parameter.requires_grad], 1e-2
    )
    model.train()
    for _ in range(steps):
        model(tokens()[:, :-1], tokens()[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def merged(model: GPT, folder: Path) -> GPT:
    """What is saved of an adapted model."""
    convert.save(lora.merged(model), folder)
    return convert.load(folder).eval()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_answers_as_the_adapted_one_did(family: str, tmp_path: Path) -> None:
    base = small(family).eval()
    model = copy.deepcopy(base)
    lora.adapt(model, EVERYWHERE, seed=3)
    assert (
        model.eval()(tokens()) - base(tokens())
    ).abs().max() < 1e-6  # fresh adapters add nothing
    adapted = trained(model)(tokens())
    assert (
        adapted - base(tokens())
    ).abs().max() > 0.05  # and then they do, on the way that is not the fused kernels'
    plain = merged(model, tmp_path)
    assert (plain(tokens()) - adapted).abs().max() < 1e-5
    assert list(plain.state_dict()) == list(base.state_dict())
    assert lora.merged(base) is base


@pytest.mark.slow
@pytest.mark.parametrize("new_rows", [0, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_adapted_in_shares_is_the_one_adapted_whole(
    family: str, new_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)
    base = small(family)
    stored = base.config.vocab_size - new_rows
    convert.save(convert.with_vocabulary(base, stored), tmp_path / "base")
    with torch.no_grad():
        base.wte.weight[stored:] = base.fresh("wte.weight", base.wte.weight.shape, 3)[stored:]
    lora.adapt(base, EVERYWHERE, seed=3, new_rows=new_rows)
    sharded = build_sharded(
        base.config,
        TrainingSettings(1, lambda step: 0.0),
        Execution(zero_stage=3),
        3,
        tmp_path / "base",
        adapters=EVERYWHERE,
    )
    expected = {name: (p.detach(), p.requires_grad) for name, p in base.named_parameters()}
    assert {name: p.requires_grad for name, p in sharded.named_parameters()} == {
        name: trained for name, (_, trained) in expected.items()
    }
    for share in shares(sharded):
        whole = expected[share.name][0].flatten()
        assert share.start == 0 and torch.equal(share.values["weight"], whole), share.name
        if "lora_B" in share.name:  # as if trained
            whole.fill_(0.5)
            share.values["weight"].fill_(0.5)
    read = for_evaluation(sharded, "cpu")
    assert isinstance(read, GPT)
    with reading(read):
        assert torch.equal(read(tokens()), base.eval()(tokens()))
        plain = merged(read, tmp_path / "read")
        assert all(p.is_meta for block in read.h for p in block.parameters())
    for name, weight in merged(base, tmp_path / "whole").named_parameters():
        assert torch.equal(weight, plain.get_parameter(name)), name


def test_adapters_alone_are_trained_and_each_is_drawn_by_its_name_and_the_seed() -> None:
    torch.manual_seed(1)
    model, base = small(), small().state_dict()
    lora.adapt(model, EVERYWHERE, seed=3)
    fresh = {name: tensor.clone() for name, tensor in lora.adapters(model).items()}
    asking = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert asking == fresh.keys() and sum(tensor.numel() for tensor in fresh.values()) == 2 * 4 * (
        128 + 64 + 160 + 160
    )
    torch.manual_seed(2)
    again, other = small(), small()
    lora.adapt(again, EVERYWHERE, seed=3)
    lora.adapt(other, EVERYWHERE, seed=4)
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in lora.adapters(again).items())
    assert not all(
        torch.equal(tensor, fresh[name]) for name, tensor in lora.adapters(other).items()
    )
    trained(model)
    frozen = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }
    assert frozen.keys() == base.keys() and all(
        torch.equal(tensor, base[name]) for name, tensor in frozen.items()
    )
    assert not all(
        torch.equal(tensor, fresh[name]) for name, tensor in lora.adapters(model).items()
    )


def test_an_adapted_blocks_gradients_are_those_of_the_plain_operators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small()
    lora.adapt(model, EVERYWHERE, seed=3)
    trained(model).train()

    def gradients() -> list[Tensor]:
        return list(
            torch.autograd.grad(
                model(tokens()[:, :-1], tokens()[:, 1:]),
                [p for p in model.parameters() if p.requires_grad],
            )
        )

    ours = gradients()
    monkeypatch.setattr(cpu_kernels, "usable", lambda *_: False)
    assert all(torch.equal(mine, plain) for mine, plain in zip(ours, gradients(), strict=True))


def test_only_the_projections_named_are_adapted_and_what_is_kept_says_so(tmp_path: Path) -> None:
    model = small()
    how = LoRA(rank=2, alpha=4, dropout=0.1, targets=("attn.c_attn",))
    lora.adapt(model, how, seed=0)
    lora.save(trained(model), how, tmp_path)
    assert lora.counted(model) == {
        "adapter_parameters": 2 * 2 * 128.0,
        "trained_parameters": 2 * 2 * 128.0,
    }
    file = load_file(tmp_path / "adapter_model.safetensors")
    assert {name.split(".lora_")[0] for name in file} == {
        f"base_model.model.transformer.h.{n}.attn.c_attn" for n in range(2)
    }
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"], described["target_modules"]) == (
        2,
        4,
        ["attn.c_attn"],
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_embeddings_new_rows_are_trained_with_the_adapters_and_no_other_row_moves(
    family: str, tmp_path: Path
) -> None:
    model, base = small(family), small(family).state_dict()
    lora.adapt(model, EVERYWHERE, seed=3, new_rows=3)
    assert (model.eval()(tokens()) - small(family).eval()(tokens())).abs().max() < 1e-6
    asking = {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    } - lora.adapters(model).keys()
    assert asking == {"wte.token_adapter.trainable_tokens_delta.default"}
    answers = trained(model)(tokens())
    lora.save(model, EVERYWHERE, tmp_path)
    counted = lora.counted(model)
    assert (
        counted["new_row_parameters"] == 3 * 32
        and counted["trained_parameters"] == counted["adapter_parameters"] + 3 * 32
    )
    plain = merged(model, tmp_path / "model")
    weights = plain.state_dict()
    assert (plain(tokens()) - answers).abs().max() < 1e-5 and list(weights) == list(base)
    assert torch.equal(weights["wte.weight"][:47], base["wte.weight"][:47])
    assert ((weights["wte.weight"][47:] - base["wte.weight"][47:]).abs() > 1e-3).any(1).all()
    retained = load_file(tmp_path / "adapter_model.safetensors")[
        "base_model.model.transformer.wte.token_adapter.trainable_tokens_delta"
    ]
    assert torch.equal(retained, weights["wte.weight"][47:])
    assert json.loads((tmp_path / "adapter_config.json").read_text())[
        "trainable_token_indices"
    ] == {"wte": [47, 48, 49]}
