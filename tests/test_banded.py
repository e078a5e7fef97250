"""Locally banded attention: held against GPT-Neo's own local attention and against autograd, in
value, gradient and memory.
"""

from __future__ import annotations

from typing import Any

import flash_reference
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPTNeoConfig
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from gpt_model import GPT, ModelConfig
from gpt_model.ops import cpu_kernels, sizes
from gpt_model.ops.sliding_window import sliding_window_attention

ANY = ["by hand", "torch's attention"]
WAYS = pytest.mark.parametrize("name", [*ANY, "flash", "flash with dropout"])


@pytest.fixture
def way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "torch's attention":  # as on a GPU in float32
        monkeypatch.setattr(sizes, "MAX_KEYS", 0)
    if name.startswith("flash"):  # as on a GPU in bfloat16
        flash_reference.use(monkeypatch)


def drawn(
    time: int, batch: int = 2, heads: int = 3, width: int = 8, kind: torch.dtype = torch.float32
) -> list[Tensor]:
    """Query, key and value as a model makes them: views of one tensor."""
    fused = torch.randn(
        batch, time, 3 * heads * width, dtype=kind, generator=torch.Generator().manual_seed(time)
    )
    return [
        part.unflatten(-1, (heads, -1)).transpose(1, 2).detach().requires_grad_()
        for part in fused.chunk(3, -1)
    ]


def gpt_neo(query: Tensor, key: Tensor, value: Tensor, band: int) -> Tensor:
    config = GPTNeoConfig(
        hidden_size=24,
        num_heads=3,
        max_position_embeddings=query.shape[2],
        window_size=band,
        attention_dropout=0.0,
    )
    return GPTNeoSelfAttention(config, "local")._attn(query * query.shape[-1] ** -0.5, key, value)[
        0
    ]


@WAYS
@pytest.mark.parametrize(
    ("time", "band"),
    [(1, 1), (40, 1), (64, 7), (130, 64), (200, 63), (300, 150), (300, 299), (50, 50), (50, 90)],
)
def test_every_token_sees_what_gpt_neos_local_attention_shows_it(
    way: None, name: str, time: int, band: int
) -> None:
    inputs, dropout = drawn(time), 0.1 if name == "flash with dropout" and band < time else 0.0
    flash_reference.dropouts.clear()
    ours, theirs = sliding_window_attention(*inputs, band, dropout), gpt_neo(*inputs, band)
    assert (ours - theirs).abs().max() < 1e-5
    assert flash_reference.dropouts == [dropout] * (dropout > 0)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
    for mine, its in zip(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(theirs, inputs, upstream),
        strict=True,
    ):
        assert (mine - its).norm() <= 1e-5 * its.norm() + 1e-5
    with torch.no_grad():  # no weights are kept then
        assert torch.equal(sliding_window_attention(*inputs, band, dropout), ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", ANY)
def test_gradients_pass_gradcheck(way: None) -> None:
    inputs = drawn(70, batch=2, heads=1, width=2, kind=torch.float64)
    assert torch.autograd.gradcheck(lambda *qkv: sliding_window_attention(*qkv, 20), inputs)


class Largest(TorchDispatchMode):
    """Bytes of the largest piece of memory that any operation returned."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.bytes = max(
            [
                self.bytes,
                *(
                    leaf.untyped_storage().nbytes()
                    for leaf in tree_leaves(result)
                    if isinstance(leaf, Tensor)
                ),
            ]
        )
        return result


@pytest.mark.parametrize("name", ANY)
def test_no_buffer_grows_faster_than_the_context(way: None) -> None:
    largest = []
    for time in (1024, 2048, 4096):
        inputs = drawn(time, batch=1, heads=1)
        with Largest() as seen:
            sliding_window_attention(*inputs, 32).sum().backward()
        largest.append(seen.bytes)
    assert (
        1.9 * largest[0] < largest[1] < 2.1 * largest[0]
        and 1.9 * largest[1] < largest[2] < 2.1 * largest[1]
    )
    assert largest[2] < 4096 * 4096  # bytes: not even a mask


def test_dropout_drops_weights_and_scales_up_the_others() -> None:
    query = key = torch.zeros(1, 2, 500, 4)  # so that each of the 4 tokens seen weighs a quarter
    torch.manual_seed(0)
    result = sliding_window_attention(query, key, torch.ones_like(key), 4, dropout=0.5)[:, :, 3:]
    assert set(result.unique().tolist()) == {0.0, 0.5, 1.0, 1.5, 2.0}
    assert result[..., 0].mean().item() == pytest.approx(1.0, abs=0.05)
    torch.manual_seed(0)
    assert torch.equal(
        sliding_window_attention(query, key, torch.ones_like(key), 4, dropout=0.5)[:, :, 3:], result
    )


@WAYS
def test_under_bfloat16_autocast_it_is_near_full_precision(way: None) -> None:
    inputs = drawn(200)
    whole = torch.autograd.grad(sliding_window_attention(*inputs, 50).square().sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        result = sliding_window_attention(*(part.bfloat16() for part in inputs), 50)
    assert result.dtype == torch.bfloat16
    for mine, exact in zip(
        torch.autograd.grad(result.float().square().sum(), inputs), whole, strict=True
    ):
        assert 1e-4 < (mine - exact).norm() / exact.norm() < 0.03


def test_an_empty_band_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, the token itself"):
        sliding_window_attention(*drawn(5), 0)


@pytest.mark.slow
def test_one_compiled_graph_computes_any_number_of_tokens() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(sliding_window_attention, backend="aot_eager", fullgraph=True)
    for time in (256, 384):  # whole blocks: nothing is added
        inputs = drawn(time)
        for part in inputs:
            torch._dynamo.mark_dynamic(part, 2)
        result, plain = (
            attention(*inputs, 8) for attention in (compiled, sliding_window_attention)
        )
        torch.testing.assert_close(result, plain)


@pytest.mark.slow
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("time", [20, 100, 200])
def test_hand_written_gradients_of_a_gpt3_are_autograds(
    time: int, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {
        "layers": 4,
        "width": 24,
        "heads": 2,
        "context": 200,
        "vocab_size": 90,
        "band": 37,
        "attention_bias": biased,
    }
    model = GPT(ModelConfig(family="gpt3", **shape), seed=1).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    tokens, targets = torch.randint(
        0, 90, (2, 3, time), generator=torch.Generator().manual_seed(time)
    )

    def found() -> tuple[Tensor, ...]:
        loss = model.loss(tokens, targets)
        return loss, *torch.autograd.grad(loss, list(model.parameters()))

    by_hand = found()
    monkeypatch.setattr(cpu_kernels, "usable", lambda *_: False)
    monkeypatch.setattr(sizes, "MAX_KEYS", 0)
    for mine, plain in zip(by_hand, found(), strict=True):
        assert (mine - plain).norm() <= 1e-6 * plain.norm() + 1e-12
