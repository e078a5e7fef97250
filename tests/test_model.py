"""The decoder, its hand-written gradients and its loss, held against plain autograd. `transformers`
is in test_convert.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_model import GPT, ModelConfig
from gpt_model.ops import cpu_kernels
from gpt_model.ops.cross_entropy import (
    compiled_passes,
    linear_cross_entropy,
    linear_cross_entropy_by_row,
)

SHAPE = {"layers": 3, "width": 48, "heads": 4, "context": 160, "vocab_size": 311}


def perturbed(seed: int = 3, **changes: float) -> GPT:
    """A model whose norms and biases are not the trivial ones of a fresh one."""
    model = GPT(ModelConfig(**(SHAPE | changes)), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def batch(time: int = 160, rows: int = 3) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(0, 311, (2, rows, time), generator=torch.Generator().manual_seed(time))
    drawn[1, 0, 2:4] = -100
    return drawn[0], drawn[1]


def test_published_sizes_have_the_released_parameter_counts() -> None:
    counts = {
        "gpt2-small": 124_439_808,
        "gpt2-medium": 354_823_168,
        "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200,
    }
    for name, count in counts.items():
        config = ModelConfig.published(name)
        with torch.device("meta"):
            assert sum(p.numel() for p in GPT(config).parameters()) == count == config.parameters()


def test_weights_are_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = GPT(ModelConfig(**SHAPE), seed=5)
    torch.manual_seed(2)
    second, other = GPT(ModelConfig(**SHAPE), seed=5), GPT(ModelConfig(**SHAPE), seed=6)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert not torch.equal(first.wte.weight, other.wte.weight)
    for name, std in (
        ("wte", 0.02),
        ("wpe", 0.01),
        ("h.0.attn.c_attn", 0.02),
        ("h.0.mlp.c_proj", 0.02 / 6**0.5),
    ):
        assert first.get_parameter(f"{name}.weight").std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("time", [1, 5, 64, 100, 160])
def test_hand_written_gradients_are_autograds(time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (tokens, targets) = perturbed().double(), batch(time)
    targets[1:, :] = tokens[1:, :]
    ours = torch.autograd.grad(
        linear_cross_entropy(
            model.hidden(tokens).flatten(0, 1), model.wte.weight, targets.flatten()
        ),
        model.parameters(),
    )
    monkeypatch.setattr(cpu_kernels, "usable", lambda *_: False)
    plain = torch.autograd.grad(
        F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()), model.parameters()
    )
    for mine, theirs in zip(ours, plain, strict=True):
        assert (mine - theirs).norm() <= 1e-6 * theirs.norm() + 1e-12


@pytest.mark.parametrize("native", [True, False])
def test_hand_written_gradients_in_bfloat16_are_as_near_as_autocasts(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (tokens, targets) = perturbed().train(), batch()

    def gradients(reduced: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            loss = model.loss(tokens, targets)
        return list(torch.autograd.grad(loss, list(model.parameters())))

    def distances(found: list[Tensor]) -> Tensor:
        assert all(gradient.dtype == torch.float32 for gradient in found)
        return torch.stack(
            [(mine - exact).norm() / exact.norm() for mine, exact in zip(found, whole, strict=True)]
        )

    whole = gradients(False)
    if not native:  # a CPU without instructions for it: the same products, made in float32
        monkeypatch.setattr(cpu_kernels, "FAST_BFLOAT16", False)
    ours = distances(gradients(True))
    monkeypatch.setattr(cpu_kernels, "usable", lambda *_: False)
    plain = distances(gradients(True))
    assert (
        1e-4 < ours.mean() < 1.25 * plain.mean()
    )  # products were in bfloat16, and the sums beside them were not


@pytest.mark.slow
def test_hand_written_halves_pass_gradcheck() -> None:
    model = GPT(ModelConfig(layers=1, width=8, heads=2, context=80, vocab_size=5)).double()
    block, x = (
        model.h[0],
        torch.randn(
            1, 70, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        ).requires_grad_(),
    )
    assert torch.autograd.gradcheck(
        lambda x: cpu_kernels.attention_half(
            x, block.ln_1, block.attn.c_attn, block.attn.c_proj, 2
        ),
        (x,),
    )
    assert torch.autograd.gradcheck(
        lambda x: cpu_kernels.mlp_half(x, block.ln_2, block.mlp.c_fc, block.mlp.c_proj), (x,)
    )


@pytest.fixture(params=["tiled for a CPU", "as on a GPU"])
def _loss_passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both passes over a chunk's logits; several chunks, the last one short."""
    monkeypatch.setattr("gpt_model.ops.cross_entropy.CHUNK_BYTES", 64 * 311 * 4)
    monkeypatch.setattr("gpt_model.ops.cross_entropy.GPU_CHUNK_BYTES", 128 * 384 * 4)
    gpu = request.param == "as on a GPU"
    with compiled_passes("aot_eager") if gpu else nullcontext():
        yield


@pytest.mark.usefixtures("_loss_passes")
def test_chunked_loss_and_its_gradients_are_cross_entropys() -> None:
    generator = torch.Generator().manual_seed(0)
    states = (4 * torch.randn(200, 48, generator=generator)).requires_grad_()
    head = torch.randn(311, 48, generator=generator).requires_grad_()
    targets = torch.randint(0, 311, (200,), generator=generator).where(
        torch.arange(200) % 5 > 0, -100
    )
    ours, plain = (
        linear_cross_entropy(states, head, targets),
        F.cross_entropy(states @ head.t(), targets),
    )
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(0.5 * ours, (states, head)),
        torch.autograd.grad(0.5 * plain, (states, head)),
        strict=True,
    ):
        assert (mine - theirs).norm() / theirs.norm() < 1e-6
    with torch.no_grad():  # no gradient is made
        assert (
            linear_cross_entropy(states, head, targets) == ours
            and linear_cross_entropy(states, head, targets).grad_fn is None
        )
    known = targets.clamp(min=0)
    rows = linear_cross_entropy_by_row(states.detach(), head.detach(), known)
    assert (rows - F.cross_entropy(states @ head.t(), known, reduction="none")).abs().max() < 1e-4
    assert linear_cross_entropy(states, head, torch.full((200,), -100)).item() == 0.0


def test_loss_is_near_full_precision_under_bf16_autocast() -> None:
    model, (tokens, targets) = GPT(ModelConfig(**SHAPE)), batch()
    full = model(tokens, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = model(tokens, targets)
    reduced.backward()
    assert reduced.dtype == torch.float32
    assert reduced.item() == pytest.approx(full.item(), rel=5e-3)
    assert model.wte.weight.grad.dtype == torch.float32


def test_dropout_acts_in_training_alone() -> None:
    model, (tokens, targets) = perturbed(dropout=0.2), batch()
    assert model.train()(tokens, targets) != model(tokens, targets)
    assert model.eval()(tokens, targets) == model(tokens, targets)


def test_cached_reading_equals_reading_at_once() -> None:
    model, (tokens, targets) = perturbed().eval(), batch()
    whole = model.hidden(tokens)
    cache = model.new_cache(3)
    parts = [model.hidden(part, cache) for part in tokens.split([100, 1, 59], dim=1)]
    assert (torch.cat(parts, 1) - whole).abs().max() < 2e-5
    context = model.new_cache(1)
    model.hidden(tokens[:1, :40], context)
    shared = context.rows(torch.zeros(2, dtype=torch.long))  # one context, two continuations
    continuations = torch.stack([tokens[0, 40:60], tokens[1, 40:60]])
    expected = model.hidden(torch.cat([tokens[:1, :40].expand(2, -1), continuations], 1))[:, 40:]
    assert (model.hidden(continuations, shared) - expected).abs().max() < 2e-5
    assert model.loss_by_token(tokens, targets).sum() / (targets >= 0).sum() == pytest.approx(
        model(tokens, targets).item(), rel=1e-5
    )


def test_padding_on_the_right_changes_no_real_token() -> None:
    model, (tokens, _) = perturbed().eval(), batch()
    padded = F.pad(tokens[:, :70], (0, 20), value=5)
    assert (model.hidden(padded)[:, :70] - model.hidden(tokens[:, :70])).abs().max() < 2e-5


def test_more_tokens_than_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="161 tokens are more than the context of 160"):
        perturbed()(torch.zeros(1, 161, dtype=torch.long))
