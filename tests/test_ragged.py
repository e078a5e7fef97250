"""Texts one after another in one row: each is read as if it stood alone, by the fused CPU halves as
by the plain operators.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import flash_reference
import pytest
import torch
from torch import Tensor

from gpt_model import GPT, ModelConfig
from gpt_model.ops import cpu_kernels
from gpt_model.ops.varlen import PackedSequences

LENGTHS = (1, 5, 70, 2, 64, 65, 130, 9)  # under, at and over a block of queries
FAMILIES = {"gpt2": {}, "gpt3": {"band": 24}, "gpt1": {}}


def model_of(family: str, dropout: float = 0.0) -> GPT:
    config = {
        "layers": 2,
        "width": 32,
        "heads": 2,
        "context": 160,
        "vocab_size": 60,
        "family": family,
        "dropout": dropout,
    }
    return GPT(ModelConfig.model_validate({**config, **FAMILIES[family]}), seed=3)


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(60) for _ in range(length)] for length in LENGTHS]


def gradients(model: GPT, states: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The states, and the gradients of a sum of them in which each counts differently."""
    model.zero_grad()
    result = states()
    (result * torch.sin(torch.arange(result.numel())).view_as(result)).sum().backward()
    return result.detach(), {
        name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_each_text_is_read_as_if_it_stood_alone(family: str, texts: list[list[int]]) -> None:
    model = model_of(family).double()
    together, theirs = gradients(model, lambda: model.states_of(PackedSequences.of(texts)))
    alone, ours = gradients(
        model, lambda: torch.cat([model.hidden(torch.tensor([text]))[0] for text in texts])
    )
    torch.testing.assert_close(together, alone)
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], msg=name)


def test_on_a_gpu_each_text_is_read_by_the_flash_kernels(
    texts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kernels, "usable", lambda *_: False)
    model, rows = model_of("gpt3").double(), PackedSequences.of(texts)
    padded, theirs = gradients(model, lambda: model.states_of(rows))
    calls = flash_reference.use(monkeypatch)
    packed, ours = gradients(model, lambda: model.states_of(rows))
    # a dense layer, and a banded one of 24 tokens
    assert [call["window_size"] for call in calls] == [(-1, 0), (23, 0)]
    torch.testing.assert_close(packed, padded)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("family", ["gpt2", "gpt3"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-4), ("bfloat16", 5e-2)])
def test_the_fused_halves_equal_the_plain_operators(
    family: str,
    precision: str,
    tolerance: float,
    texts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, rows = model_of(family), PackedSequences.of(texts)

    def states() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return model.states_of(rows).float()

    calls = []
    half = cpu_kernels.attention_half

    def counted(*given: Any) -> Tensor:
        calls.append(given[-1])
        return half(*given)

    monkeypatch.setattr(cpu_kernels, "attention_half", counted)
    fused, ours = gradients(model, states)
    assert calls == [LENGTHS] * 2
    monkeypatch.setattr(cpu_kernels, "usable", lambda *_: False)
    plain, theirs = gradients(model, states)
    assert len(calls) == 2
    for name, expected in {"states": plain, **theirs}.items():
        apart = (({"states": fused, **ours})[name] - expected).norm() / expected.norm()
        assert apart < tolerance, (name, float(apart))


def test_without_gradients_the_states_are_the_same(texts: list[list[int]]) -> None:
    model, rows = model_of("gpt2"), PackedSequences.of(texts)
    with torch.no_grad():
        kept_nothing = model.states_of(rows)
    torch.testing.assert_close(kept_nothing, model.states_of(rows).detach())


def test_many_short_texts_may_be_more_tokens_than_the_context() -> None:
    model = model_of("gpt2")
    assert model.states_of(PackedSequences.of([[1, 2, 3]] * 300)).shape == (900, 32)


def test_a_text_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="161 tokens are more than the context of 160"):
        model_of("gpt2").states_of(PackedSequences.of([[1], [2] * 161]))


def test_with_dropout_a_seed_gives_the_same_states_and_another_one_others(
    texts: list[list[int]],
) -> None:
    model, rows = model_of("gpt2", dropout=0.2).train(), PackedSequences.of(texts)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(model.states_of(rows))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_where_texts_begin_and_end() -> None:
    rows = PackedSequences.of([[7], [8, 9, 1], [2, 3]])
    assert (
        rows.starts.tolist() == [0, 1, 4] and rows.last.tolist() == [0, 3, 5] and rows.longest == 3
    )
    assert rows.positions.tolist() == [0, 0, 1, 2, 0, 1]
