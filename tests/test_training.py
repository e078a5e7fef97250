"""The loop, engine, schedules, checkpoints and measures in this process; the stage `pretrained` on
real ranks. Kills: test_resume.py.
"""

from __future__ import annotations

import json
import math
import random
import resource
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_local_recipe
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters
from training_ranks import (
    GPT3,
    MODEL,
    MUON,
    SECTION,
    STEPS,
    Ranks,
    change_half_way,
    make_inputs,
    read_record,
    run,
)

from assets.contract import Artifact, Built
from assets.execution.pretraining import evaluation_steps
from assets.recipe.recipe import load_recipe
from assets.report import pretrained
from assets.stages.pretraining import PRETRAINED, check_shared_out, micro_batch
from gpt_model import convert
from gpt_model.config import ModelConfig
from gpt_model.data.shards import TokenData
from gpt_model.errors import CorruptFile, UserError
from gpt_model.ops import cpu_kernels
from gpt_model.ops.varlen import PackedSequences
from gpt_model.progress import Silent
from gpt_model.rlhf.reward_model import RankingMicroBatch
from gpt_model.training import engine, loop, trial
from gpt_model.training.ahead import Ahead, on_device
from gpt_model.training.batching import EpochBatches, Idle, MicroBatchSize
from gpt_model.training.checkpoint import Checkpoints, verify
from gpt_model.training.engine import ALONE, Execution, choose_product_library, shard, start
from gpt_model.training.loop import Hook, train
from gpt_model.training.measure import held_out, held_out_intervals, held_out_metrics
from gpt_model.training.muon import Muon, orthogonal
from gpt_model.training.optimizer import MuonSettings, ParameterSlice, TrainingSettings
from gpt_model.training.schedules import BatchSchedule, by_step, warmup_cosine, warmup_linear
from gpt_model.training.sharded import Fragment, shares
from gpt_model.transformer import GPT

pytestmark = pytest.mark.slow

SHAPE = ModelConfig(layers=2, width=32, heads=2, context=16, vocab_size=64, dropout=0.0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """This process as the only rank, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }.items():
            patch.setenv(name, value)
        yield
    torch.set_num_threads(threads)


COUNT = (torch.arange(16)[None], torch.arange(1, 17)[None])  # inputs and targets


class Counting:
    """Predict the next of a run of numbers, in four micro-batches of two rows."""

    unit, flops_per_unit = "tokens", 0.0

    def units_before(self, step: int) -> int:
        return step * 8 * 16

    def micro_batches(self, step: int) -> list[Tensor]:
        starts = torch.randint(0, 40, (8, 1), generator=torch.Generator().manual_seed(step))
        return list((starts + torch.arange(17)).split(2))

    def loss(
        self, model: nn.Module, micro_batch: Tensor
    ) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
        loss = model(micro_batch[:, :-1], micro_batch[:, 1:])
        return loss, {"double": (2 * loss.detach() * 32, 32)}


def settings(**changes: Any) -> TrainingSettings:
    # A large eps: keys' biases have no gradient but rounding, which Adam would otherwise blow up to
    # whole steps.
    rate = by_step(warmup_cosine(1e-2, warmup=3, decay=12, final=0.1), BatchSchedule(1))
    return TrainingSettings(
        **{
            "steps": 12,
            "learning_rate": rate,
            "betas": (0.9, 0.95),
            "eps": 1e-4,
            "weight_decay": 0.1,
            **changes,
        }
    )


class Remembers(Silent):
    def __init__(self) -> None:
        self.seen: dict[int, dict[str, float]] = {}
        self.lines: list[str] = []

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.seen[step] = dict(values)

    def log(self, message: str) -> None:
        self.lines.append(message)


def plain_loop(model: GPT, how: TrainingSettings, objective: Counting) -> list[float]:
    """The same training as anyone would write it."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": how.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=how.betas, eps=how.eps)
    norms = []
    for step in range(how.steps):
        for group in optimizer.param_groups:
            group["lr"] = how.learning_rate(step)
        parts = objective.micro_batches(step)
        for part in parts:
            (objective.loss(model, part)[0] / len(parts)).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), how.gradient_clip)))
        optimizer.step()
        optimizer.zero_grad()
    return norms


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_engine_takes_the_steps_of_a_plain_loop(stage: Any) -> None:
    expected, result, progress = GPT(SHAPE, seed=1), GPT(SHAPE, seed=1), Remembers()
    norms = plain_loop(expected, settings(), Counting())
    assert max(norms) > 1.0  # so that clipping is seen
    train(
        result,
        Counting(),
        settings(),
        Execution(zero_stage=stage),
        checkpoints=None,
        progress=progress,
    )
    for (name, a), (_, b) in zip(
        expected.named_parameters(), result.named_parameters(), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5), name
    assert [progress.seen[step]["gradient_norm"] for step in range(1, 13)] == pytest.approx(
        norms, rel=1e-4
    )
    assert progress.seen[12]["double"] == pytest.approx(2 * progress.seen[12]["loss"], rel=1e-5)
    assert progress.seen[12]["tokens"] == 12 * 8 * 16


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_steps_as_torchs_does(nesterov: bool) -> None:
    """torch's takes queries, keys and values for one matrix; given them apart, it does as ours."""
    start(Execution())
    model, plain = GPT(SHAPE, seed=1), GPT(SHAPE, seed=1)
    muon = MuonSettings(rate_multiplier=2.0, weight_decay=0.05, momentum=0.9, nesterov=nesterov)
    how = settings(muon=muon, precision="bfloat16")  # as torch's makes orthogonal
    ours = Muon(model, how)
    whole = [ParameterSlice(name, 0, p, 0, p.numel()) for name, p in model.named_parameters()]
    ours.connect(whole, {run.name: run.flat.shape for run in whole}, "cpu", None)
    matrices = {
        name: [nn.Parameter(part.clone()) for part in p.chunk(3 if "c_attn" in name else 1, dim=1)]
        for name, p in plain.named_parameters()
        if p.dim() == 2 and name.startswith("h.")
    }
    theirs = torch.optim.Muon(
        [part for parts in matrices.values() for part in parts],
        weight_decay=0.05,
        momentum=0.9,
        nesterov=nesterov,
        adjust_lr_fn="match_rms_adamw",
    )
    others = {name: p for name, p in plain.named_parameters() if name not in matrices}
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others.values() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in others.values() if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=how.betas,
        eps=how.eps,
    )
    generator = torch.Generator().manual_seed(1)
    for step in range(3):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            if name in others:
                others[name].grad = parameter.grad
            else:
                gradients = parameter.grad.chunk(len(matrices[name]), dim=1)
                for part, gradient in zip(matrices[name], gradients, strict=True):
                    part.grad = gradient
        for optimizer, multiple in ((ours, None), (theirs, 2.0), (adamw, 1.0)):
            for group in optimizer.param_groups:
                group["lr"] = how.learning_rate(step) * (multiple or group["rate_multiplier"])
            optimizer.step()
    for name, parameter in model.named_parameters():
        expected = others[name] if name in others else torch.cat(matrices[name], dim=1)
        assert torch.allclose(parameter, expected, rtol=0, atol=1e-6), name


def test_a_matrix_becomes_orthogonal() -> None:
    """Long or tall; singular values become 1, as roughly as Jordan's quintic makes them."""
    for shape in ((32, 96), (96, 32), (32, 32)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        values = torch.linalg.svdvals(orthogonal(matrix, 5, torch.float32))
        assert values.min() > 0.5 and values.max() < 1.3, shape
    assert not orthogonal(torch.zeros(4, 8), 5, torch.float32).any()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_muon_steps_alike_at_each_zero_stage(stage: Any) -> None:
    """With a clip that is seen; at stage 2 with moments in the CPU's memory, as a GPU's may be, at
    stage 3 a part of the parameters at a time.
    """
    weights, norms = [], []
    how = settings(muon=MuonSettings(rate_multiplier=0.5, weight_decay=0.05))
    zero: dict[int, Any] = {
        2: {"offload_optimizer": {"device": "cpu"}},
        3: {"sub_group_size": 4000},
    }
    deepspeed = {"zero_optimization": zero.get(stage, {})}
    for execution in (Execution(zero_stage=0), Execution(zero_stage=stage, deepspeed=deepspeed)):
        model, progress = GPT(SHAPE, seed=1), Remembers()
        train(model, Counting(), how, execution, checkpoints=None, progress=progress)
        weights.append(model.state_dict())
        norms.append([progress.seen[step]["gradient_norm"] for step in range(1, 13)])
    assert max(norms[0]) > how.gradient_clip
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    for name, expected in weights[0].items():
        assert torch.allclose(weights[1][name], expected, rtol=0, atol=1e-5), name


@pytest.mark.parametrize("stage", [2, 3])
def test_autocast_keeps_copies_of_weights_but_of_gathered_ones(stage: Any) -> None:
    """At ZeRO 3 they would be the whole model on each rank, to the end of a forward pass."""
    caches = []

    class Watching(Counting):
        def loss(self, *arguments: Any) -> Any:
            caches.append(torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled())
            return super().loss(*arguments)

    model, how = GPT(SHAPE, seed=1), settings(steps=1, precision="bfloat16")
    execution = Execution(zero_stage=stage)
    train(model, Watching(), how, execution, checkpoints=None, progress=Silent())
    assert set(caches) == {stage == 2}


def test_the_trained_model_is_a_plain_one_again() -> None:
    model = GPT(SHAPE, seed=1)
    train(
        model,
        Counting(),
        settings(steps=2),
        Execution(zero_stage=2),
        checkpoints=None,
        progress=Silent(),
    )
    for parameter in model.parameters():
        assert type(parameter) is nn.Parameter and parameter.grad is None and not vars(parameter)
    model(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("option", ["activation_checkpointing", "bfloat16"])
def test_saving_memory_does_not_change_what_is_learnt(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> None:
        raise AssertionError("a step that a GPU captures cannot ask for the random state")

    def evaluate(step: int, model: nn.Module) -> dict[str, float]:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "get_rng_state", state)
            return {"held_out": float(model(*COUNT))}

    plain, saving = Remembers(), Remembers()
    shape = SHAPE.model_copy(
        update={"dropout": 0.1 if option == "activation_checkpointing" else 0.0}
    )
    train(GPT(shape), Counting(), settings(), Execution(), checkpoints=None, progress=plain)
    how, on = settings(), Execution(activation_checkpointing=True)
    if option == "bfloat16":
        how, on = settings(precision="bfloat16"), Execution()
    model = GPT(shape)
    hooks = [Hook([12], evaluate)]
    train(model, Counting(), how, on, checkpoints=None, progress=saving, hooks=hooks)
    tolerance = 1e-5 if option == "activation_checkpointing" else 0.05
    assert saving.seen[12]["loss"] == pytest.approx(plain.seen[12]["loss"], rel=tolerance)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


class SizedCounting(Counting):
    """In micro-batches that a trial may enlarge."""

    def __init__(self) -> None:
        self.size = MicroBatchSize(1, 16, 8 * 16)
        self.tried: list[int] = []

    def full_micro_batch(self, sequences: int) -> Tensor:
        self.tried.append(sequences)
        return torch.zeros(sequences, 17, dtype=torch.long)

    def micro_batches(self, step: int) -> list[Tensor]:
        return list(torch.cat(super().micro_batches(step)).split(self.size.sequences))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("memory", "largest"), [(100.0, 8), (58.0, 4)])
def test_micro_batches_are_tried_without_a_trace(
    stage: Any, memory: float, largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "usable_bytes", lambda: memory)
    results, messages = [], []
    for number, by_trial in enumerate((False, True, True)):
        model, objective = GPT(SHAPE, seed=1), SizedCounting()

        def peak(call: Any, objective: SizedCounting = objective) -> float:
            """40 of state, and 3 for each row."""
            before = len(objective.tried)
            call()
            return 40.0 + (3.0 * objective.tried[-1] if before else 0.0)

        monkeypatch.setattr(trial, "peak_bytes", peak)
        if not by_trial:
            objective.size.fit(largest)
        progress = Remembers()
        progress.log = messages.append  # type: ignore[method-assign]
        train(
            model,
            objective,
            settings(steps=2),
            Execution(zero_stage=stage, micro_batch_by_trial=by_trial),
            checkpoints=tmp_path / "checkpoints",
            progress=progress,
        )
        results.append([progress.seen[2]["loss"], *model.state_dict().values()])
        assert objective.size.sequences == largest
        # The second build reads what the first one chose
        assert objective.tried == ([1, *(1, 2, 4, 8)[: 2 + largest // 4]] if number == 1 else [])
    for others in results[1:]:
        assert all(
            torch.equal(torch.as_tensor(a), torch.as_tensor(b))
            for a, b in zip(results[0], others, strict=True)
        )
    [sentence] = messages
    assert f"up to {largest} sequences of 16 tokens" in sentence
    assert ("larger ones are not faster" in sentence) == (largest == 8)


def test_a_micro_batch_is_never_larger_than_what_was_tried() -> None:
    """Items are not cut: what is dealt out evenly may exceed the mean by the longest of them."""
    draw = random.Random(1)
    lengths = [draw.randint(1, 64) for _ in range(400)]
    batches = EpochBatches(lengths, batch=100, epochs=1, seed=1, world_size=3, context=64)
    assert batches.size.step_tokens == sum(sorted(lengths)[-100:])
    for sequences in (1, 2, 4, 8, batches.size.most(ranks=3)):
        batches.size.fit(sequences)
        for step in range(batches.steps):
            for part in batches.partition(step):
                assert sum(lengths[item] for item in part) <= sequences * 64
    assert {len(batches.partition(step)) for step in range(batches.steps)} == {3}  # one a rank


def test_the_next_batch_is_made_while_this_one_is_computed() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        if step == 3:
            raise UserError("no such batch")
        return 10 * step

    ahead = Ahead(make, may_begin=lambda step: step < 5)
    assert [ahead(step) for step in (0, 1, 2)] == [0, 10, 20]
    with pytest.raises(UserError, match="no such batch"):
        ahead(3)
    assert ahead(4) == 40 and made == [0, 1, 2, 3, 4]
    assert Ahead(make, lambda step: step < 2)(1) == 10 and made[-1] == 1  # nothing behind the last


def test_batches_are_made_ahead_but_not_across_a_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's steps in a thread that has the rank's GPU: a new one has the first, whatever its
    process has. What a hook does counts in the batch after it.
    """
    chosen: list[tuple[int, str]] = []

    def set_device(index: int) -> None:
        chosen.append((index, threading.current_thread().name))

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setenv("LOCAL_RANK", "3")
    made: list[tuple[int, int, str]] = []  # step, hooks before it, thread
    hooked: list[int] = []

    def hook(step: int, model: nn.Module) -> dict[str, float]:
        hooked.append(step)
        return {}

    class Recorded(Counting):
        def micro_batches(self, step: int) -> list[Tensor]:
            made.append((step, len(hooked), threading.current_thread().name))
            return super().micro_batches(step)

    losses = []
    for ahead in (False, True):
        run = loop._Run(
            GPT(SHAPE, seed=1),
            Recorded(),
            settings(steps=8),
            ALONE,
            None,
            Remembers(),
            [Hook([4, 5], hook)],
        )
        made.clear()
        hooked.clear()
        with run._batches(ahead) as batches:
            losses.append(run._train(batches).loss)
    assert losses[0] == losses[1] and chosen == [(3, "ahead_0")]
    main = threading.current_thread().name
    assert made == [
        (step, sum(step >= at for at in (4, 5)), main if step in (0, 4, 5) else "ahead_0")
        for step in range(8)
    ]


def test_a_gpu_gets_every_tensor_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` stands for the GPU: it too is no CPU."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    rows = PackedSequences.of([[1, 2, 3], [4]])
    batch = RankingMicroBatch(rows, *torch.ones(3, 1, dtype=torch.long).unbind())
    sent: Any = on_device([Idle(batch), (torch.ones(2, 3).T, 0.5)], "meta")
    idle, (inputs, share) = sent
    assert idle.stand_in.rows.lengths == (3, 1) and share == 0.5
    assert inputs.shape == (3, 2) and inputs.is_contiguous()
    tensors = [inputs, *(vars(idle.stand_in)[name] for name in ("better", "worse", "weights"))]
    tensors += [vars(idle.stand_in.rows)[name] for name in ("tokens", "sizes")]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.rows.tokens.device.type == "cpu" and on_device(batch, "cpu") is batch


# No activation of Counting has the shape of a weight
WIDER = SHAPE.model_copy(update={"width": 48})


@pytest.mark.parametrize("way", ["kernels of a CPU", "torch's operators", "compiled"])
def test_a_steps_micro_batches_share_the_copies_of_the_weights(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way != "kernels of a CPU":
        monkeypatch.setattr(cpu_kernels, "usable", lambda *_: False)
    execution = Execution(zero_stage=1, compile=way == "compiled", compiler="aot_eager")

    def trained() -> tuple[int, int, dict[int, float]]:
        """How often a block's widest matrix and the head were cast, there or back, and losses."""
        progress, how = Remembers(), settings(steps=3, precision="bfloat16")
        with torch.profiler.profile(record_shapes=True) as profiler:
            train(
                GPT(WIDER, seed=1), Counting(), how, execution, checkpoints=None, progress=progress
            )
        shapes = [
            event.input_shapes[0] for event in profiler.events() if event.name == "aten::_to_copy"
        ]
        losses = {step: values["loss"] for step, values in progress.seen.items()}
        matrix, head = [WIDER.width, 4 * WIDER.width], [WIDER.vocab_size, WIDER.width]
        return shapes.count(matrix), shapes.count(head), losses

    trained()  # compiles, where casts are traced
    *shared, losses = trained()
    monkeypatch.setattr(engine, "shared_copies", nullcontext)
    *by_micro_batch, same = trained()
    three_less_a_step = [3 * 3 * WIDER.layers, 3 * 3]
    saved = [after - before for before, after in zip(shared, by_micro_batch, strict=True)]
    assert saved == three_less_a_step and losses == same


FAMILIES = {
    "gpt1": {"family": "gpt1", "dropout": 0.1},
    "gpt2": {"family": "gpt2"},
    "gpt3": {"family": "gpt3", "layers": 4, "band": 4},  # dense and banded layers in turn
}


@pytest.mark.parametrize(
    ("family", "stage", "checkpointing"),
    [
        *(("gpt3", stage, on) for stage in (0, 3) for on in (False, True)),
        *[("gpt3", 1, False), ("gpt3", 2, True), ("gpt1", 0, True), ("gpt1", 3, False)],
        ("gpt2", 0, False),
    ],
)
def test_compiled_blocks_train_as_plain_ones(
    family: str, stage: Any, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kernels, "usable", lambda *_: False)  # as on a GPU
    torch._dynamo.reset()
    counters.clear()
    losses = {}
    shape = SHAPE.model_copy(update=FAMILIES[family])
    for compiled in (False, True):
        progress, model = Remembers(), GPT(shape, seed=1)
        execution = Execution(
            zero_stage=stage,
            activation_checkpointing=checkpointing,
            compile=compiled,
            compiler="aot_eager",
        )
        hook = Hook([2], lambda _, model: {"held_out": float(model(*COUNT))}, "together")
        how = settings(steps=4)
        train(model, Counting(), how, execution, checkpoints=None, progress=progress, hooks=[hook])
        losses[compiled] = [progress.seen[2]["held_out"]]
        losses[compiled] += [progress.seen[step]["loss"] for step in range(1, 5)]
        assert all("forward" not in vars(block) for block in model.h)
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert not counters["graph_break"], dict(counters["graph_break"])
    # blocks of one kind share a graph, however many there are; the loss is another
    assert 2 <= counters["stats"]["unique_graphs"] <= 3


def test_what_a_gpus_profile_ships_trains_as_plain_blocks_do(inputs: Path, tmp_path: Path) -> None:
    """Compiled and recomputed blocks, in bfloat16, which is also what ranks exchange."""
    section = {"precision": "bfloat16", "tokens": 2048, "learning_rate": 3e-3}
    common = {"what": "loop", "model": GPT3, "section": section}
    ways = {
        "plain": {"communication": "bfloat16"},
        "shipped": {"communication": "bfloat16", "activation_checkpointing": True, "compile": True},
    }
    jobs: list[dict[str, Any]] = [
        {**common, "output": tmp_path / f"{way}{stage}", "zero_stage": stage, "profile": profile}
        for stage in (1, 3)
        for way, profile in ways.items()
    ]
    Ranks(inputs, jobs).wait()
    for stage in (1, 3):
        plain, shipped = (read_record(tmp_path / f"{way}{stage}") for way in ways)
        assert shipped["graphs"] >= 2 and not shipped["graph_breaks"]
        assert plain["metrics"].keys() == shipped["metrics"].keys() == set(range(1, 9))
        for step, values in shipped["metrics"].items():
            assert values["loss"] == pytest.approx(plain["metrics"][step]["loss"], rel=2e-4), step


def test_float32_products_are_float32s_whichever_library_makes_them() -> None:
    choose_product_library()
    a, b = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(0))
    exact = a.double() @ b.double()
    assert ((a @ b).double() - exact).norm() / exact.norm() < 1e-6  # with bfloat16 factors: 2e-3


def test_hooks_see_the_model_in_evaluation_mode_and_report_with_their_step() -> None:
    seen: list[int] = []

    def call(step: int, model: nn.Module) -> dict[str, float]:
        assert not model.training and not torch.is_grad_enabled()
        seen.append(step)
        return {"evaluated": float(step)}

    progress = Remembers()
    train(
        GPT(SHAPE),
        Counting(),
        settings(),
        Execution(),
        checkpoints=None,
        progress=progress,
        hooks=[Hook({0, 5, 12}, call)],
    )
    assert seen == [0, 5, 12]
    assert [step for step, values in progress.seen.items() if "evaluated" in values] == [0, 5, 12]
    assert "loss" in progress.seen[5]


def test_no_hook_needs_a_model_that_was_built_sharded_to_be_whole(tmp_path: Path) -> None:
    execution, how = Execution(zero_stage=3), settings(steps=2)
    with torch.device("meta"):
        model = GPT(SHAPE)
    shard(model, how, execution)
    plain = GPT(SHAPE, seed=1)
    for fragment in shares(model):
        fragment.values["weight"].copy_(plain.weight(fragment.name).view(-1))
    seen: dict[str, Any] = {}

    def call(step: int, view: nn.Module) -> dict[str, float]:
        assert isinstance(view, GPT) and not view.training
        most = 0

        def count(block: nn.Module, inputs: Any) -> None:
            nonlocal most
            most = max(most, sum(not p.is_meta for other in view.h for p in other.parameters()))

        for block in view.h:
            block.register_forward_pre_hook(count)
        seen["losses"] = view.loss_by_token(*torch.arange(32).view(2, 2, 8))
        assert most == len(list(view.h[0].parameters()))
        assert all(p.is_meta for block in view.h for p in block.parameters())
        convert.save(view, tmp_path / str(step))
        return {}

    hooks = [Hook({0}, call, "together"), Hook({2}, call, "first")]
    train(model, Counting(), how, execution, checkpoints=None, progress=Silent(), hooks=hooks)
    assert all(parameter.is_meta for parameter in model.parameters())
    initial, trained = (convert.load(tmp_path / step).eval() for step in ("0", "2"))
    for (name, a), b in zip(plain.named_parameters(), initial.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(initial.wte.weight, trained.wte.weight)
    expected = trained.loss_by_token(*torch.arange(32).view(2, 2, 8))
    assert torch.equal(seen["losses"], expected)


def test_a_diverging_run_stops_and_says_what_to_do() -> None:
    class Diverges(Counting):
        def loss(
            self, model: nn.Module, micro_batch: Tensor
        ) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
            loss, metrics = super().loss(model, micro_batch)
            return loss * math.nan, metrics

    with pytest.raises(UserError, match=r"step 0 of 12 .*nan.* Lower learning_rate"):
        train(GPT(SHAPE), Diverges(), settings(), Execution(), checkpoints=None, progress=Silent())


# --- checkpoints ---


def checkpointed(folder: Path, **changes: Any) -> tuple[GPT, Remembers]:
    """Train with a checkpoint after nearly every step."""
    model, progress = GPT(SHAPE.model_copy(update={"dropout": 0.1}), seed=1), Remembers()
    train(
        model,
        Counting(),
        settings(**changes),
        Execution(checkpoint_seconds=1e-9),
        checkpoints=folder,
        progress=progress,
    )
    return model, progress


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damaged", ["rank-00000.safetensors", "manifest.json"])
def test_a_flipped_byte_is_named_and_the_checkpoint_before_it_is_used(
    tmp_path: Path, damaged: str
) -> None:
    expected, _ = checkpointed(tmp_path)
    older, newest = sorted(tmp_path.glob("step-*"))
    flip(newest / damaged, (newest / damaged).stat().st_size // 2)
    with pytest.raises(CorruptFile, match=damaged):
        verify(newest)
    result, progress = checkpointed(tmp_path)
    assert (
        f"{newest / damaged} is damaged" in progress.lines[0]
        and "the one before it is used" in progress.lines[0]
    )
    assert progress.lines[1] == f"Goes on from the checkpoint of step {int(older.name[5:])} of 12."
    assert all(
        torch.equal(a, b) for a, b in zip(expected.parameters(), result.parameters(), strict=True)
    )


def test_with_no_sound_checkpoint_training_starts_again_and_says_so(tmp_path: Path) -> None:
    expected, _ = checkpointed(tmp_path)
    for folder in tmp_path.glob("step-*"):
        flip(folder / "rank-00000.safetensors", 100)
    result, progress = checkpointed(tmp_path)
    assert "training starts again from step 0" in progress.lines[1]
    assert min(progress.seen) == 1
    assert all(
        torch.equal(a, b) for a, b in zip(expected.parameters(), result.parameters(), strict=True)
    )


def test_a_rank_reads_the_elements_that_it_keeps_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of one rank, read as the second of three would."""
    model, _ = checkpointed(tmp_path)
    newest = max(tmp_path.glob("step-*"))
    execution = Execution(zero_stage=3, rank=1, world_size=3)
    keeps = []
    for name, parameter in model.named_parameters():
        length = -(-parameter.numel() // 3)
        values = torch.full((min(length, parameter.numel() - length),), math.nan)
        keeps.append(Fragment(name, length, {"exp_avg": values}, owned=True))
    bytes_read = 0

    class Counted:
        def __init__(self, tensors: Any) -> None:
            self.keys, self.get_slice = tensors.keys, lambda key: Slice(tensors.get_slice(key))

    class Slice:
        def __init__(self, stored: Any) -> None:
            self.stored, self.get_shape = stored, stored.get_shape

        def __getitem__(self, part: slice) -> Tensor:
            nonlocal bytes_read
            values: Tensor = self.stored[part]
            bytes_read += values.nbytes
            return values

    @contextmanager
    def counted(path: Path, framework: str) -> Iterator[Counted]:
        with safe_open(path, framework) as tensors:
            yield Counted(tensors)

    monkeypatch.setattr("gpt_model.training.checkpoint.safe_open", counted)
    Checkpoints(tmp_path, execution, print)._read(verify(newest), keeps)
    assert bytes_read == sum(fragment.values["exp_avg"].nbytes for fragment in keeps)
    stored = load_file(newest / "rank-00000.safetensors")
    for fragment in keeps:
        expected = stored[f"exp_avg/{fragment.name}/0"][fragment.start :]
        values = fragment.values["exp_avg"]
        assert torch.equal(values, expected[: len(values)]), fragment.name


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        ({}, [((1, 0), (2, 3)), ((2, 3), (1, 0)), ((2, 3), (1, 1))]),
        (MUON, [((1, 0), (3, 3)), ((3, 1), (1, 2))]),
    ],
    ids=["adamw", "muon"],
)
def test_other_ranks_and_zero_stages_go_on_to_the_same_loss(
    optimizer: dict[str, Any], changes: Any, inputs: Path, tmp_path: Path
) -> None:
    """Changes half-way; `benchmarks/elastic.py` makes nine."""
    expected, records = change_half_way(inputs, tmp_path, changes, optimizer)
    for (before, after), record in records.items():
        assert 0 < record["result"]["resumed_from"] < 10, (before, after)
        layouts = [{"world_size": ranks, "zero_stage": stage} for ranks, stage in (before, after)]
        layout = f"was written under {layouts[0]} and is read under {layouts[1]}: same weights"
        assert any(layout in line for line in record["log"])
        assert record["result"]["loss"] == pytest.approx(expected, abs=1e-5), (before, after)


def test_a_full_disk_is_one_sentence_and_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    before, handler = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (10_000, before[1])
    )  # no file may grow beyond: writing fails as on a full disk
    try:
        with pytest.raises(UserError, match=r"a checkpoint cannot be written .*Make room"):
            checkpointed(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.glob("step-*[0-9]"))


# --- the stage ---


@pytest.fixture(scope="module")
def built(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, dict[str, Any]]:
    """The stage on two real ranks at ZeRO 1, done twice: the first as it is seen by checks and
    pictures, and where both lie.
    """
    folder = tmp_path_factory.mktemp("built")
    runs = [{"what": "pretrained", "output": folder / name} for name in ("one", "two")]
    Ranks(inputs, runs).wait()
    record = read_record(folder / "one")
    series: dict[str, list[tuple[int, float]]] = {}
    for step, values in sorted(record["metrics"].items()):
        for name, value in values.items():
            series.setdefault(name, []).append((step, value))
    config = {"model": MODEL, "pretraining": SECTION}
    given = {"tokens": Artifact(inputs / "tokens", "tokens", "", "", {}, {})}
    return Built(
        config,
        given,
        folder / "one",
        record["result"],
        series,
        [tuple(text) for text in record["texts"]],
    ), record


def test_the_same_profile_gives_the_same_files(built: tuple[Built, dict[str, Any]]) -> None:
    item, two = built[0].output, built[0].output.parent / "two"
    files = sorted(
        path.relative_to(item)
        for path in item.rglob("*")
        if path.is_file() and ".scratch" not in path.parts and path.name != "record.json"
    )
    assert {
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "training.json",
    } <= {str(path) for path in files}
    for path in files:
        assert (item / path).read_bytes() == (two / path).read_bytes(), path


def test_the_stage_reports_what_it_promises(built: tuple[Built, dict[str, Any]]) -> None:
    result, record = built
    every = {
        "loss",
        "learning_rate",
        "gradient_norm",
        "tokens",
        "tokens_per_second",
        "model_flops_utilisation",
    }
    for step in range(1, STEPS + 1):
        assert every <= record["metrics"][step].keys(), step
    for step in (STEPS // 2, STEPS):
        assert {
            f"held_out_sample/{source}/{name}"
            for source in ("plays", "facts")
            for name in ("bpb", "perplexity", "loss")
        } | {"held_out_sample/bpb"} <= record["metrics"][step].keys()
    assert [text[0] for text in record["texts"]] == [STEPS // 2, STEPS] and record["texts"][0][
        2
    ].startswith("[Act 0")
    assert result.metrics["held_out/total_bpb"] < 0.6 * result.metrics["uniform_bpb"]
    assert {
        "seconds",
        "tokens_per_second",
        "peak_memory_bytes",
        "checkpoint_stall_seconds",
        "peak_flops",
    } <= result.metrics.keys()


def test_the_stage_passes_its_own_checks_and_is_shown(
    built: tuple[Built, dict[str, Any]], tmp_path: Path
) -> None:
    for check in PRETRAINED.checks:
        verdict = check.verdict(built[0])
        assert verdict.passed, (check.name, verdict.summary)
    PRETRAINED.show(built[0], tmp_path)
    assert (tmp_path / "training.png").stat().st_size > 10_000
    assert "[Act 0" in (tmp_path / "samples.md").read_text()
    metrics, sources = built[0].metrics, TokenData(built[0].inputs["tokens"].path)
    assert "held-out plays" in pretrained.metrics_table(metrics).frame["figure"].tolist()
    mixture = pretrained.mixture_table(built[0].inputs["tokens"].path, metrics)
    for row in mixture.frame.to_dict("records"):  # as GPT-3's table 2.2
        source, share = row["source"], row["weight"]
        assert share == sources.weights[source] / sum(sources.weights.values())
        assert row["tokens"] == len(sources.tokens(source, "training"))
        windows = share * metrics["tokens"] / len(sources.tokens(source, "training"))
        assert metrics[f"epochs/{source}"] == pytest.approx(windows, rel=0.05)


def test_checks_fail_where_they_should(built: tuple[Built, dict[str, Any]], tmp_path: Path) -> None:
    checks = {check.name: check.verdict for check in PRETRAINED.checks}
    ours = built[0]
    rising = Built(
        ours.config,
        {},
        ours.output,
        {**ours.metrics, "held_out/total_bpb": 9.0},
        {"loss": [(1, 1.0), (2, math.nan)]},
        (),
    )
    assert (
        not checks["loss_is_finite"](rising).passed
        and not checks["loss_falls"](rising).passed
        and not checks["better_than_uniform"](rising).passed
    )
    shutil.copytree(ours.output / "model", tmp_path / "model")
    other = {**ours.config, "model": {**MODEL, "dropout": 0.5}}
    assert not checks["model_loads"](Built(other, {}, tmp_path, ours.metrics, {}, ())).passed


def test_held_out_bits_per_byte_is_that_of_every_token_predicted_once(
    built: tuple[Built, dict[str, Any]], inputs: Path
) -> None:
    model, data = convert.load(built[0].output / "model").eval(), TokenData(inputs / "tokens")
    result = held_out(model, data, Execution())
    metrics = held_out_metrics(result, data.weights)
    ids = torch.tensor([data.end_of_text, *map(int, data.tokens("plays", "held_out")[:])])
    nats, context = 0.0, int(MODEL["context"])  # type: ignore[call-overload]
    for first in range(
        0, len(ids) - 1, context // 2
    ):  # half a window is predicted from the half before it
        begin, end = max(0, first - context // 2), min(first + context // 2, len(ids) - 1)
        with torch.no_grad():
            losses = nn.functional.cross_entropy(
                model(ids[None, begin:end])[0], ids[begin + 1 : end + 1], reduction="none"
            )
        nats += float(losses[first - begin :].sum())
    assert (
        result["plays"].nats == pytest.approx(nats, rel=1e-5)
        and result["plays"].tokens == len(ids) - 1
    )
    assert metrics["held_out/plays/bpb"] == pytest.approx(
        nats / math.log(2) / data.bytes("plays", "held_out")
    )
    theirs = built[0].metrics  # split over two ranks there
    assert metrics["held_out/plays/bpb"] == pytest.approx(theirs["held_out/plays/bpb"], rel=1e-4)
    intervals = held_out_intervals(result)
    for source in ("plays", "facts"):
        low, bpb, high = (
            theirs[f"held_out/{source}/{name}"] for name in ("bpb_low", "bpb", "bpb_high")
        )
        assert low < bpb < high and low == pytest.approx(
            intervals[f"held_out/{source}/bpb_low"], rel=1e-4
        )
        nats, _, size = result[source].windows.T
        drawn = np.random.default_rng(0).integers(0, len(nats), (4000, len(nats)))
        resampled = nats[drawn].sum(1) / math.log(2) / size[drawn].sum(1)
        assert (high - low) / 2 == pytest.approx(1.96 * resampled.std(), rel=0.15)
    assert metrics["held_out/bpb"] == pytest.approx(
        0.7 * metrics["held_out/plays/bpb"] + 0.3 * metrics["held_out/facts/bpb"]
    )


def test_training_json_has_no_time_in_it(built: tuple[Built, dict[str, Any]]) -> None:
    facts = json.loads((built[0].output / "training.json").read_text())
    assert (
        facts["steps"] == STEPS
        and facts["tokens"] == SECTION["tokens"]
        and facts["batch_tokens"] == SECTION["batch_tokens"]
    )
    assert not any(word in json.dumps(facts) for word in ("second", "time", "host"))


def test_a_batch_that_does_not_come_out_even_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"768 is 3 sequences .* fewer .* the profile 'cpu', 4: set processes to 3 at most in "
        r"profiles/cpu.yaml",
    ):
        check_shared_out({"batch_tokens": 768}, 256, "cpu", 4)
    ramped = {"batch_tokens": 1024, "batch_ramp": {"from_tokens": 256, "over_tokens": 4096}}
    check_shared_out(ramped, 256, "cpu", 4)
    recipe = write_local_recipe(tmp_path)
    recipe.write_text(recipe.read_text().replace("batch_tokens: 512", "batch_tokens: 1000"))
    with pytest.raises(
        UserError,
        match=rf"{recipe}, line 8: `pretraining`: batch_tokens 1000 is not .*context 32 .*: set it "
        r"to 992\.",
    ):
        load_recipe(str(recipe))


def test_the_batch_is_the_recipes_whatever_the_micro_batch(inputs: Path, tmp_path: Path) -> None:
    assert [micro_batch(12, bound) for bound in (1, 5, 12, 64)] == [1, 4, 12, 12]
    job = {"what": "loop", "section": {"tokens": 2560}, "model": {"dropout": 0.0}}
    runs = [
        run(inputs, {**job, "output": tmp_path / str(size), "micro_batch": size}).record["metrics"]
        for size in (1, 4, 8)
    ]
    for other in runs[1:]:
        assert [other[step]["loss"] for step in range(1, 11)] == pytest.approx(
            [runs[0][step]["loss"] for step in range(1, 11)], rel=1e-4
        )


def test_evaluations_are_evenly_spaced_and_end_at_the_end() -> None:
    assert evaluation_steps(BatchSchedule(8), 100, 4) == [25, 50, 75, 100]
    assert evaluation_steps(BatchSchedule(8), 3, 10) == [1, 2, 3]


# --- schedules ---


def test_the_cosine_rises_then_falls_to_its_share() -> None:
    rate = by_step(warmup_cosine(1.0, warmup=10, decay=110, final=0.1), BatchSchedule(1))
    rates = [rate(step) for step in range(110)]
    assert rates[0] == pytest.approx(0.05) and rates[9] == pytest.approx(0.95)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[60] == pytest.approx(
        0.55, abs=0.01
    )
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_fine_tunings_schedule_is_the_released_codes() -> None:
    rate = warmup_linear(6.25e-5, warmup=0.002, steps=1000)
    for step in (
        0,
        1,
        2,
        3,
        500,
        999,
    ):  # opt.py: s = x <= warmup; (s*(x/warmup) + (1-s))*(1-x), x the updates done of all
        x, s = step / 1000, step / 1000 <= 0.002
        assert rate(step) == pytest.approx(6.25e-5 * (s * (x / 0.002) + (1 - s)) * (1 - x))
