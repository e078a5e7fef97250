"""Batch ramp, learning rate by tokens, packed windows and snapshots, against the papers' words
written out. Kills: test_resume.py.
"""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_ranks import GPT3, MODEL, SECTION, Ranks, make_inputs, read_record, run

from assets.execution.pretraining import evaluation_steps, settings_of
from assets.recipe.recipe import PretrainingSection
from assets.stages.pretraining import batches_of, idle_share
from gpt_model import convert
from gpt_model.config import ModelConfig
from gpt_model.data.sampler import Sampler
from gpt_model.data.shards import TokenData
from gpt_model.lstm import LSTM
from gpt_model.training.optimizer import MuonSettings
from gpt_model.training.schedules import BatchSchedule
from gpt_model.training.snapshots import snapshot_steps, snapshots
from gpt_model.transformer import GPT

GPT3_SMALL = PretrainingSection(  # table 2.1 and appendix B; 0.5M is 2^19
    tokens=300_000_000_000,
    batch_tokens=524_288,
    learning_rate=6e-4,
    final_learning_rate=0.1,
    warmup_tokens=375_000_000,
    decay_tokens=260_000_000_000,
    batch_ramp={"from_tokens": 32_768, "over_tokens": 4_000_000_000},
).model_dump(mode="json")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as the only rank, on one thread."""
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    torch.set_num_threads(1)


# --- the ramp ---


def by_the_words(size: int, ramp_from: int, ramp_over: int, steps: int) -> list[tuple[int, int]]:
    """(batch, tokens before) of each step: linear in the tokens seen, rounded to multiples of the
    first batch.
    """
    seen, result = 0, []
    for _ in range(steps):
        line = ramp_from + (size - ramp_from) * seen / ramp_over
        batch = (
            size if seen >= ramp_over else min(size, ramp_from * math.floor(line / ramp_from + 0.5))
        )
        result.append((batch, seen))
        seen += batch
    return result


@pytest.mark.parametrize(
    "ramp",
    [(96, 8, 5000), (96, 96, 100), (100, 8, 3000), (64, 32, 7), (4096, 8, 20_000), (24, 16, 333)],
)
def test_the_ramp_is_the_papers_line_in_whole_multiples_of_its_first_batch(
    ramp: tuple[int, int, int],
) -> None:
    batches, expected = BatchSchedule(*ramp), by_the_words(*ramp, steps=500)
    assert [
        (batches.tokens_of(step), batches.tokens_before(step)) for step in range(500)
    ] == expected
    for step, (batch, seen) in enumerate(expected):
        assert batches.steps_within(seen) == batches.steps_within(seen + batch - 1) == step
    assert expected[-1][0] == ramp[0]


def test_gpt3s_ramp_is_exact_at_any_of_a_million_steps_and_asks_no_table_of_them() -> None:
    tracemalloc.start()
    batches = batches_of(GPT3_SMALL)
    assert (batches.tokens_of(0), batches.tokens_before(0), batches.tokens_of(1_000_000)) == (
        32_768,
        0,
        524_288,
    )
    half = batches.tokens_of(batches.steps_within(2_000_000_000))  # half way up the line
    assert half == pytest.approx((32_768 + 524_288) / 2, abs=32_768 / 2)
    steps = batches.steps_within(300_000_000_000)
    assert 300_000_000_000 - 524_288 < batches.tokens_before(steps) <= 300_000_000_000
    for step in (0, 17, 12_345, 999_999):
        assert batches.tokens_before(step + 1) - batches.tokens_before(step) == batches.tokens_of(
            step
        )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_evaluations_are_evenly_spaced_in_tokens_on_a_ramp_too() -> None:
    batches = BatchSchedule(96, 8, 5000)
    steps = batches.steps_within(10_000)
    taken = evaluation_steps(batches, steps, 5)
    assert taken[-1] == steps
    assert [batches.tokens_before(step) for step in taken] == pytest.approx(
        [batches.tokens_before(steps) * n / 5 for n in range(1, 6)], abs=48
    )


def test_on_a_ramp_every_sequence_comes_once_whatever_shares_out_the_rows(inputs: Path) -> None:
    data, batches = TokenData(inputs / "tokens"), BatchSchedule(8 * 32, 2 * 32, 2000)
    ramped, plain = Sampler(data, 32, batches, seed=1), Sampler(data, 32, BatchSchedule(32), seed=1)
    steps = batches.steps_within(4000)
    expected = np.concatenate(
        [plain.batch(step)[0] for step in range(batches.tokens_before(steps) // 32)]
    )
    for ranks in (1, 2):
        rows = np.concatenate(
            [ramped.batch(step, rank, ranks)[0] for step in range(steps) for rank in range(ranks)]
        )
        assert np.array_equal(rows, expected)
    assert {len(ramped.batch(step)[0]) for step in range(steps)} == {2, 4, 6, 8}
    epochs = ramped.epochs(steps)
    drawn = np.bincount(
        np.concatenate([ramped.batch(step)[2] for step in range(steps)]), minlength=2
    )
    assert list(epochs) == ["plays", "facts"]
    assert list(epochs.values()) == pytest.approx([drawn[n] / ramped.windows[n] for n in range(2)])


def test_a_window_goes_on_into_the_next_document_and_attention_with_it(inputs: Path) -> None:
    """Packed windows, no mask between documents: what stands before an end-of-text changes what is
    predicted after it.
    """
    data = TokenData(inputs / "tokens")
    window = next(
        row
        for row in Sampler(data, 32, BatchSchedule(32 * 32), seed=1).batch(0)[0]
        if data.end_of_text in row[8:-8]
    )
    end = int(np.flatnonzero(window == data.end_of_text)[0])
    model = GPT(ModelConfig(**{**MODEL, "dropout": 0.0}, vocab_size=data.vocab_size)).eval()
    other = window.copy()
    other[:end] = other[:end][::-1]
    with torch.no_grad():
        before, after = (
            model(torch.from_numpy(tokens)[None])[0, end + 1 :] for tokens in (window, other)
        )
    assert (before - after).abs().max() > 1e-4


# --- the learning rate ---


def test_gpt3s_learning_rate_by_tokens_is_appendix_bs() -> None:
    """Linear over 375M tokens, cosine to 10 % at 260B, then constant, whatever the batch is on the
    way.
    """
    settings, batches = settings_of(GPT3_SMALL), batches_of(GPT3_SMALL)
    for tokens in (10**6, 10**8, 3.7e8, 4e8, 10**10, 1.3e11, 2.59e11, 2.61e11, 2.99e11):
        step = batches.steps_within(int(tokens))
        t = batches.tokens_before(step) + batches.tokens_of(step) / 2
        if t < 375e6:
            expected = 6e-4 * t / 375e6
        elif t < 260e9:
            expected = 6e-5 + 5.4e-4 * (1 + math.cos(math.pi * (t - 375e6) / (260e9 - 375e6))) / 2
        else:
            expected = 6e-5
        assert settings.learning_rate(step) == pytest.approx(expected, rel=1e-12)
    assert settings.steps == batches.steps_within(300_000_000_000) and settings.learning_rate(
        settings.steps - 1
    ) == pytest.approx(6e-5)


def test_gpt1s_two_thousand_updates_are_tokens_and_the_cosine_ends_at_zero() -> None:
    batch, updates = 64 * 512, 100_000
    section = PretrainingSection(
        tokens=updates * batch,
        batch_tokens=batch,
        learning_rate=2.5e-4,
        final_learning_rate=0.0,
        warmup_tokens=2000 * batch,
    )
    settings = settings_of(section.model_dump(mode="json"))
    for update in (0, 1, 999, 1999, 2000, 2001, 51_000, 99_999):
        u = update + 0.5  # an update takes the rate at its middle
        expected = 2.5e-4 * (
            u / 2000 if u < 2000 else (1 + math.cos(math.pi * (u - 2000) / (updates - 2000))) / 2
        )
        assert settings.learning_rate(update) == pytest.approx(expected, rel=1e-9, abs=1e-18)
    assert settings.steps == updates


def test_muon_has_adamws_rate_and_decay_where_it_has_none_of_its_own() -> None:
    def muon_of(**muon: Any) -> MuonSettings | None:
        section = GPT3_SMALL | {"optimizer": "muon", "muon": muon}
        return settings_of(PretrainingSection.model_validate(section).model_dump(mode="json")).muon

    rate, decay = GPT3_SMALL["learning_rate"], GPT3_SMALL["weight_decay"]
    assert settings_of(GPT3_SMALL).muon is None
    assert muon_of() == MuonSettings(rate_multiplier=1.0, weight_decay=decay)
    given = muon_of(learning_rate=3 * rate, weight_decay=0.0, nesterov=False)
    assert given == MuonSettings(pytest.approx(3), weight_decay=0.0, nesterov=False)


# --- what the stage makes of them ---


def pretrained(inputs: Path, output: Path, section: dict[str, Any], **model: Any) -> dict[str, Any]:
    return run(
        inputs, {"what": "pretrained", "output": output, "section": section, "model": model}
    ).record


def test_the_stage_counts_the_tokens_of_a_ramp_as_they_are(inputs: Path, tmp_path: Path) -> None:
    section = {
        "tokens": 2048,
        "batch_ramp": {"from_tokens": 64, "over_tokens": 1024},
        "evaluations": 2,
    }
    message, batches = (
        pretrained(inputs, tmp_path, section),
        BatchSchedule(SECTION["batch_tokens"], 64, 1024),
    )  # type: ignore[arg-type]
    steps = batches.steps_within(2048)
    assert {step: values["tokens"] for step, values in message["metrics"].items()} == {
        n: batches.tokens_before(n) for n in range(1, steps + 1)
    }
    rates = settings_of({**SECTION, **section}).learning_rate
    for step, values in message["metrics"].items():
        assert values["learning_rate"] == rates(step - 1)
    evaluated = [
        step for step, values in message["metrics"].items() if "held_out_sample/bpb" in values
    ]
    assert evaluated == [batches.nearest_step(batches.tokens_before(steps) / 2), steps]
    facts = json.loads((tmp_path / "training.json").read_text())
    assert (
        (facts["tokens"], facts["steps"])
        == (batches.tokens_before(steps), steps)
        == (message["result"]["tokens"], message["result"]["steps"])
    )
    assert facts["epochs"]["plays"] == pytest.approx(message["result"]["epochs/plays"], abs=1e-4)


@pytest.mark.slow
def test_ranks_without_a_sequence_leave_every_loss_as_it_is(inputs: Path, tmp_path: Path) -> None:
    """A ramp from one sequence, to eight, which three ranks cannot share evenly either: rank 0,
    which writes the records, has none at first, then one row a micro-batch, then two.
    """
    section = {"tokens": 2048, "batch_ramp": {"from_tokens": 32, "over_tokens": 1024}}
    common: dict[str, Any] = {"what": "loop", "section": section}
    gpt2, gpt3 = ({**common, "model": model} for model in ({"dropout": 0.0}, GPT3))
    runs = [
        {**gpt2, "output": tmp_path / "gpt2-sharded", "zero_stage": 3},
        {**gpt3, "output": tmp_path / "gpt3", "zero_stage": 1},
        {**gpt3, "output": tmp_path / "gpt3-compiled", "profile": {"compile": True}},
    ]
    Ranks(inputs, runs, world_size=3).wait()
    for alone, several in ((gpt2, runs[:1]), (gpt3, runs[1:])):
        output = tmp_path / "alone" / alone["model"].get("family", "gpt2")
        expected = run(inputs, {**alone, "output": output}).record["metrics"]
        for each in several:
            measured = read_record(each["output"])["metrics"]
            assert measured.keys() == expected.keys() and len(measured) > 12
            for step, values in measured.items():
                for name in ("loss", "gradient_norm"):
                    assert values[name] == pytest.approx(expected[step][name], rel=1e-5), step
    compiled = read_record(tmp_path / "gpt3-compiled")
    # Dense blocks, banded blocks and the loss, each of one row and of several: of one length
    assert compiled["graphs"] == 6 and not compiled["graph_breaks"]


def test_the_time_of_ranks_without_a_sequence_is_counted() -> None:
    ramped = BatchSchedule(4 * 32, 32, 640)
    steps = ramped.steps_within(2048)
    rows = [ramped.tokens_of(step) // 32 for step in range(steps)]
    assert list(ramped.stretches(steps)) == [
        (size * 32, len(list(group))) for size, group in itertools.groupby(rows)
    ]
    for ranks in (1, 3, 4):
        slots = sum(-(-count // ranks) * ranks for count in rows)
        share = idle_share(ramped, steps, 32, ranks)
        assert share == pytest.approx(1 - sum(rows) / slots) and (share == 0) == (ranks == 1)
    assert idle_share(ramped, 0, 32, 4) == 0.0


@pytest.mark.parametrize(
    ("steps", "count"), [(1, 5), (3, 5), (40, 2), (1000, 7), (683, 12), (100_000, 9)]
)
def test_snapshots_are_evenly_spaced_in_the_logarithm_from_the_first_step_to_the_last(
    steps: int, count: int
) -> None:
    taken = snapshot_steps(steps, count)
    assert len(taken) == min(steps, count) and (taken[0], taken[-1]) == (1, steps)
    assert all(a < b for a, b in itertools.pairwise(taken))
    if steps > 5000:
        assert [math.log(step) for step in taken] == pytest.approx(
            np.linspace(0, math.log(steps), count), abs=0.06
        )
    assert (snapshot_steps(steps, 0), snapshot_steps(steps, 1)) == ([], [steps])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gpt3", "lstm"])
def test_a_snapshot_is_the_model_that_training_so_long_gives(
    inputs: Path, tmp_path: Path, family: str
) -> None:
    shape: dict[str, Any] = {
        "family": family,
        "dropout": 0.1,
        **({"layers": 1, "heads": 1} if family == "lstm" else {}),
    }
    section = {"tokens": 2560, "decay_tokens": 2560, "snapshots": 4, "evaluations": 1}
    pretrained(inputs, tmp_path / "whole", section, **shape)
    retained = list(snapshots(tmp_path / "whole"))
    assert [tokens for tokens, _ in retained] == [256, 512, 1280, 2560]
    pretrained(inputs, tmp_path / "short", {**section, "tokens": 1280, "snapshots": 0}, **shape)
    stopped = load_file(tmp_path / "short" / "model" / "model.safetensors")
    file = load_file(tmp_path / "whole" / "snapshots" / "5" / "model.safetensors")
    assert stopped.keys() == file.keys() and all(
        torch.equal(file[name], stopped[name]) for name in stopped
    )
    for (_, stored), folder in zip(
        retained[2:], (tmp_path / "short", tmp_path / "whole"), strict=True
    ):
        expected = convert.load_decoder(folder / "model").state_dict()
        assert all(
            torch.equal(tensor, expected[name])
            for name, tensor in convert.load_decoder(stored).state_dict().items()
        )
    assert isinstance(convert.load_decoder(retained[0][1]), LSTM if family == "lstm" else GPT)
    assert sorted(path.name for path in (tmp_path / "whole" / "snapshots").iterdir()) == [
        "1",
        "2",
        "5",
        "index.json",
    ]
    assert not (tmp_path / "short" / "snapshots").exists()
