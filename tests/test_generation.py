"""Decoding: what `generate` promises, held against `transformers` and against reading everything
anew.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt_model import GPT, ModelConfig, generation
from gpt_model.convert import to_transformers
from gpt_model.decoding import LIKELY, FixedStep, Prepare
from gpt_model.generation import LONG, generate
from gpt_model.kv_cache import Cache
from gpt_model.ops.conv1d import output_head, prepacked

PROMPTS = [[1, 2, 3], [4, 5], [9, 8, 7, 6, 5, 4, 3], [1, 2, 3]]


def made(**shape: Any) -> GPT:
    model = GPT(
        ModelConfig(
            **({"layers": 3, "width": 48, "heads": 4, "context": 32, "vocab_size": 101} | shape)
        ),
        seed=3,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far from uniform, so that every choice is a clear one
    return model


@pytest.fixture(scope="module")
def model() -> GPT:
    return made()


@pytest.mark.parametrize(
    "shape",
    [{}, {"family": "gpt1"}, {"family": "gpt3", "band": 5, "attention_bias": False}],
    ids=str,
)
def test_greedy_text_of_unequal_prompts_is_that_of_transformers(shape: dict[str, Any]) -> None:
    model = made(**shape)
    other = to_transformers(model)
    for prompt, text in zip(PROMPTS, generate(model, PROMPTS, 20, temperature=0), strict=True):
        theirs = other.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0
        )
        assert theirs[0, len(prompt) :].tolist() == text


@pytest.mark.slow
def test_a_rows_text_does_not_depend_on_its_neighbours_and_equal_prompts_differ(model: GPT) -> None:
    options = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 5}
    together = generate(model, PROMPTS, 70, **options)  # 70 tokens: the window slides
    assert [generate(model, [prompt], 70, **options)[0] for prompt in PROMPTS[:3]] == together[:3]
    assert generate(model, PROMPTS, 70, **options) == together
    assert together[0] != together[3]
    assert generate(model, PROMPTS, 70, **(options | {"seed": 6})) != together


def test_beyond_the_context_a_row_goes_on_from_its_later_half(model: GPT) -> None:
    window, text = [7] * 30, []
    for _ in range(25):
        if len(window) > 32:
            window = window[-16:]
        text.append(int(model(torch.tensor([window]))[0, -1].argmax()))
        window = [*window, text[-1]]
    assert generate(model, [[7] * 30], 25, temperature=0) == [text]


@pytest.mark.parametrize(("top_k", "top_p"), [(1, None), (None, 1e-9)])
def test_the_narrowest_sampling_is_greedy(
    model: GPT, top_k: int | None, top_p: float | None
) -> None:
    assert generate(model, PROMPTS, 10, top_k=top_k, top_p=top_p) == generate(
        model, PROMPTS, 10, temperature=0
    )


def test_samples_follow_the_softmax_of_the_logits(model: GPT) -> None:
    share = (
        torch.bincount(
            torch.tensor(generate(model, [[1, 2, 3]] * 4000, 1, temperature=2.0, seed=1)).flatten(),
            minlength=101,
        )
        / 4000
    )
    expected = (model(torch.tensor([[1, 2, 3]]))[0, -1] / 2).softmax(-1)
    assert (share - expected).abs().max() < 0.04


def test_stop_ids_and_stop_strings_end_a_row_and_are_left_out(model: GPT) -> None:
    whole = generate(model, PROMPTS, 12, temperature=0)
    for row, text in enumerate(whole):
        stop = text[6]
        assert (
            generate(model, PROMPTS, 12, temperature=0, stop=[stop])[row]
            == text[: text.index(stop)]
        )
    spelled = generate(
        model,
        PROMPTS,
        12,
        temperature=0,
        stop=[f" {whole[1][4]} "],
        decode=lambda ids: "".join(f" {i} " for i in ids),
    )
    assert spelled[1] == whole[1][: whole[1].index(whole[1][4])]


def test_rows_that_end_early_change_nothing_for_the_others(model: GPT) -> None:
    whole = generate(model, PROMPTS, 50, temperature=0.9, seed=5)  # 50 tokens: the window slides
    stops = [text[location] for text, location in zip(whole, (3, 40, 11, 20), strict=True)]
    result = generate(model, PROMPTS, 50, temperature=0.9, seed=5, stop=stops)
    assert result == [
        text[: min(text.index(stop) for stop in stops if stop in text)] for text in whole
    ]
    assert len({len(text) for text in result}) > 2


@pytest.mark.parametrize("prepare", [None, lambda step: step], ids=["growing", "fixed"])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 0.9, "top_k": 40, "seed": [1, 2, 3, 4]},
        {"temperature": 0.9, "top_p": 0.95, "seed": 5},
    ],
    ids=["greedy", "top_k", "nucleus"],
)
def test_tokens_chosen_ahead_as_on_a_gpu_are_those_chosen_one_by_one(
    options: dict[str, Any], prepare: Prepare | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(family="gpt3", band=7)
    monkeypatch.setattr(generation, "LONG", 3)
    monkeypatch.setattr(generation, "prepacked", lambda *_: nullcontext())  # for a CPU alone
    first = generate(model, PROMPTS, 40, **options)  # 40 tokens: the window slides
    options = options | {"stop": (first[0][9],)}  # where rows end at different tokens

    def choices(**more: Any) -> tuple[list[list[int]], dict[int, list[Tensor]]]:
        """The texts, and of each row what `on_choice` was given."""
        watched: dict[int, list[Tensor]] = {}

        def watch(numbers: Tensor, states: Tensor, logits: Tensor, chosen: Tensor) -> None:
            for index, row in enumerate(numbers.tolist()):
                parts = [states[index], logits[index], chosen[index, None]]
                watched.setdefault(row, []).append(torch.cat([part.float() for part in parts]))

        return generate(model, PROMPTS, 40, **options, **more, on_choice=watch), watched

    one_by_one, expected = choices()
    monkeypatch.setitem(generation.AHEAD, "cpu", 7)
    if prepare:
        monkeypatch.setitem(generation.PREPARE, "cpu", prepare)
    counts: list[int] = []
    growing, fixed = generation.choose_ahead, FixedStep.choose_ahead

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            counts.extend(arg for arg in args if type(arg) is int)
            return function(*args)

        return call

    monkeypatch.setattr(generation, "choose_ahead", counted(growing))
    if prepare:
        monkeypatch.setattr(FixedStep, "choose_ahead", counted(fixed))
    assert generate(model, PROMPTS, 40, **options) == one_by_one
    assert max(counts) == 7 and min(map(len, one_by_one)) < 40
    texts, watched = choices(on_token=lambda *_: None)
    assert texts == one_by_one and watched.keys() == expected.keys()
    for row, records in watched.items():
        assert torch.allclose(torch.stack(records), torch.stack(expected[row]), atol=1e-3), row


@pytest.mark.slow
def test_a_step_is_one_graph_without_a_break(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU could not capture, such as a wait for a number, does not compile."""
    options = {"temperature": 0.9, "top_p": 0.95, "seed": 5}
    expected = generate(model, PROMPTS, 40, **options)  # 40 tokens: the window slides
    steps: list[Any] = []

    def compiled(step: Callable[[], None]) -> Callable[[], None]:
        steps.append(step)
        return torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=False)

    monkeypatch.setattr(generation, "prepacked", lambda *_: nullcontext())  # for a CPU alone
    monkeypatch.setitem(generation.AHEAD, "cpu", 7)
    monkeypatch.setitem(generation.PREPARE, "cpu", compiled)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert generate(model, PROMPTS, 40, **options) == expected
    assert len(steps) == 1


def test_no_step_is_captured_of_a_model_whose_weights_a_hook_gathers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, prepared = made(), []
    monkeypatch.setattr(generation, "LONG", 3)
    monkeypatch.setitem(generation.PREPARE, "cpu", lambda step: prepared.append(step) or step)
    expected = generate(model, PROMPTS, 5, temperature=0)
    assert len(prepared) == 1
    model.h[1].register_forward_pre_hook(lambda *_: None)
    assert generate(model, PROMPTS, 5, temperature=0) == expected and len(prepared) == 1


def test_logits_that_wait_to_be_watched_are_bounded(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(generation.AHEAD, "cpu", 16)
    monkeypatch.setattr(generation, "WAITING_LOGITS", 2 * 4 * 101)
    assert generation._most_ahead(4, model, watched=True) == 2
    assert generation._most_ahead(1000, model, watched=True) == 1
    assert generation._most_ahead(1000, model, watched=False) == 16


def test_a_cache_in_bfloat16_reads_nearly_the_same(model: GPT) -> None:
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    cache = Cache(model.config, 1, 32, torch.device("cpu"), torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = model.eval().hidden(tokens).float()
        model.hidden(tokens[:, :5], cache)
        last = model.hidden(tokens[:, 5:], cache)[:, -1].float()
    assert cache.extent == (6, 6)
    assert (last - whole[:, -1]).norm() < 0.05 * whole[:, -1].norm()


def test_every_token_is_told_as_it_is_written(model: GPT) -> None:
    results: list[list[int]] = [[] for _ in PROMPTS]
    spelled = {"stop": [" 7"], "decode": lambda ids: "".join(f" {i}" for i in ids)}
    written = generate(
        model,
        PROMPTS,
        30,
        seed=2,
        on_token=lambda row, token: results[row].append(token),
        **spelled,
    )
    assert results == written and any(len(text) < 30 for text in written)


def test_what_cannot_be_generated_is_refused(model: GPT) -> None:
    for options, word in (
        ({"temperature": -1}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"stop": ["x"]}, "decode"),
    ):
        with pytest.raises(ValueError, match=word):
            generate(model, PROMPTS, 3, **options)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate(model, [[1], []], 3)


@torch.no_grad()
def test_a_banded_layer_reads_the_last_keys_of_its_band_and_no_others() -> None:
    model = made(family="gpt3", layers=2, band=5)
    tokens = torch.randint(0, 101, (2, 20), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(2)
    model.hidden(tokens[:, :19], cache)
    cache.keys_and_values[1, :, :, :15] = (
        torch.nan
    )  # what the token at place 19 sees in layer 1 is 15 to 19
    assert torch.allclose(
        model.hidden(tokens[:, 19:], cache), model.hidden(tokens)[:, 19:], atol=1e-4
    )
    cache.lengths -= 2  # at place 18 it would see 14 too
    assert model.hidden(tokens[:, 19:], cache).isnan().all()


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch without oneDNN lays nothing out"
)
@torch.no_grad()
def test_weights_laid_out_give_the_same_numbers_and_are_put_away_afterwards(model: GPT) -> None:
    states = torch.randn(3, 2, 48, generator=torch.Generator().manual_seed(0))
    projection, head_weight = model.h[1].mlp.c_fc, model.wte.weight
    plain = projection(states), output_head(states, head_weight)
    with prepacked(model, model.wte):
        with prepacked(model, model.wte):
            pass
        results = projection(states), output_head(states, head_weight)
        assert all(
            (mine - its).abs().max() < 1e-4 for mine, its in zip(results, plain, strict=True)
        )
        projection.weight.blocks = (
            projection.weight.blocks * 0
        )  # it is the blocks that are multiplied by
        assert torch.equal(projection(states), projection.bias.expand(3, 2, -1))
        with torch.enable_grad():
            assert torch.equal(projection(states), plain[0])
    assert not any(hasattr(parameter, "blocks") for parameter in model.parameters())


def test_a_long_text_is_the_beginning_of_a_longer_one_whether_weights_are_laid_out_or_not(
    model: GPT,
) -> None:
    options = {"temperature": 0.9, "top_p": 0.9, "seed": 1}
    short, long = (
        generate(model, PROMPTS, LONG - 1, **options),
        generate(model, PROMPTS, LONG, **options),
    )
    assert short == [text[:-1] for text in long]


def test_a_nucleus_wider_than_the_likely_tokens_is_drawn_from_whole() -> None:
    flat = GPT(
        ModelConfig(layers=1, width=8, heads=1, context=8, vocab_size=3 * LIKELY)
    )  # nearly uniform
    drawn = torch.tensor(generate(flat, [[1, 2, 3]] * 3000, 1, top_p=0.9, seed=1)).flatten()
    order = (
        flat(torch.tensor([[1, 2, 3]]))[0, -1]
        .argsort(descending=True, stable=True)
        .argsort()[drawn]
    )
    assert order.max() < 0.91 * 3 * LIKELY
    assert (order > 2 * LIKELY).float().mean().item() == pytest.approx(
        (0.9 - 2 / 3) / 0.9, abs=0.05
    )
