"""The stage `aligned` on two real ranks: killed in mid-step and in mid-rollout it ends where an
undisturbed one does, to the bit.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_world import BATCHES, EACH, make_ppo_inputs, most_gathered, one_run
from safetensors.torch import load_file
from training_ranks import Ranks, read_record

from gpt_model.tokenizer import Tokenizer
from gpt_model.training.checkpoint import verify

pytestmark = pytest.mark.slow
SOME: dict[str, Any] = {"episodes": 48, "kl": 1.0}  # three batches; the penalty counts


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ppo_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of it at ZeRO 1 in bfloat16, as the recipes have it, and some batches in float32 at each
    stage, with a shared trunk, and with answers from elsewhere.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    runs = [
        one_run(folder / "whole", precision="bfloat16"),
        *(one_run(folder / f"first{stage}", stage, **SOME | {"episodes": 16}) for stage in (0, 2)),
        *(one_run(folder / f"zero{stage}", stage, **SOME) for stage in (1, 3)),
        *(one_run(folder / f"shared{stage}", stage, **SOME, value="shared") for stage in (0, 3)),
        one_run(folder / "copied3", 3, "CopyEngine", **SOME),
    ]
    few = {"episodes": 4, "batch": 4, "minibatch": 1}
    runs += [one_run(folder / f"several{stage}", stage, **few) for stage in (1, 3)]
    Ranks(inputs, runs).wait()
    Ranks(inputs, [one_run(folder / "alone", 1, **few)], 1).wait()
    return folder


@pytest.fixture(scope="module")
def killed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed at a random step, and then in the middle of making a batch; at ZeRO 3 at a random
    step.
    """
    output = tmp_path_factory.mktemp("killed") / "whole"
    sharded = output.parent / "zero3"
    seed = random.randrange(1 << 30)
    print(f"kill moments from seed {seed}")  # shown where a test fails
    moments = random.Random(seed)
    runs = [one_run(output, precision="bfloat16"), one_run(sharded, 3, **SOME)]
    ranks = Ranks(inputs, runs)
    ranks.kill_at(output, moments.randrange(EACH + 1, EACH * BATCHES // 2) * 8)
    leave_a_damaged_checkpoint(output / ".scratch" / "ppo-3" / "checkpoints")
    ranks.start()
    kill_in_mid_rollout(
        ranks,
        output / ".scratch" / "ppo-3" / "rollouts",
        moments.randrange(BATCHES // 2 + 1, BATCHES - 2),
    )
    ranks.start()
    ranks.kill_at(sharded, moments.randrange(2 * EACH, 3 * EACH) * 8)
    ranks.start()
    ranks.wait()
    return output


def leave_a_damaged_checkpoint(checkpoints: Path) -> None:
    """Where there are two: the older one is then gone on from, whose batch's files must be there."""
    sound = sorted(checkpoints.glob("step-*[0-9]"))
    if len(sound) > 1:
        file = sound[-1] / next(iter(verify(sound[-1])["files"]))
        file.write_bytes(file.read_bytes()[:-1])


def kill_in_mid_rollout(ranks: Ranks, folder: Path, batch: int) -> None:
    """SIGKILL every rank while some chunks of a batch, this one or a later, are on the disk and
    others not.
    """
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        being_made = max(
            (path for path in folder.glob("batch-*") if path.suffix == ""), default=None
        )
        if being_made is None or int(being_made.name.split("-")[1]) < batch:
            continue
        for pid in ranks.pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.01)
        made = list(being_made.glob("answers-*.safetensors")) if being_made.is_dir() else []
        if 0 < len(made) < 8 and not being_made.with_suffix(".safetensors").exists():
            for pid in ranks.pids:
                os.kill(pid, signal.SIGKILL)
            for parent in ranks.parents:
                ranks._read_until(parent, lambda line: line == "killed\n")
            return
        for pid in ranks.pids:
            os.kill(pid, signal.SIGCONT)
    raise AssertionError("no batch was met in the making")


def test_a_run_killed_in_mid_step_and_in_mid_rollout_ends_with_the_same_files(
    undisturbed: Path, killed: Path
) -> None:
    expected = undisturbed / "whole"
    every = [path.relative_to(expected) for path in sorted(expected.rglob("*")) if path.is_file()]
    files = [path for path in every if ".scratch" not in path.parts and path.name != "record.json"]
    assert {"model/model.safetensors", "model/config.json", "training.json", "shape.json"} <= set(
        map(str, files)
    )
    for path in files:
        assert (expected / path).read_bytes() == (killed / path).read_bytes(), path
    [resumed] = [
        line
        for line in read_record(killed)["log"]
        if line.startswith("Goes on from the checkpoint of step ")
    ]
    before, after = read_record(expected)["metrics"], read_record(killed)["metrics"]
    assert int(resumed.split()[7]) >= EACH * (BATCHES // 2 - 1)
    for step in range(int(resumed.split()[7]) + 1, max(before) + 1):
        for name in set(before[step]) - {"episodes_per_second"}:
            assert after[step][name] == before[step][name], (step, name)


def test_a_killed_run_whose_models_are_shared_out_ends_with_the_same_model(
    undisturbed: Path, killed: Path
) -> None:
    expected, resumed = undisturbed / "zero3", killed.parent / "zero3"
    for file in ("model/model.safetensors", "training.json"):
        assert (expected / file).read_bytes() == (resumed / file).read_bytes(), file
    assert any("Goes on from the checkpoint" in line for line in read_record(resumed)["log"])


def test_what_is_kept_is_neither_the_start_nor_the_last_weights_and_its_figures_are_whole(
    inputs: Path, undisturbed: Path
) -> None:
    output = undisturbed / "whole"
    reported = read_record(output)
    model, begun = (
        load_file(output / "model" / "model.safetensors"),
        load_file(inputs / "policy_init" / "model" / "model.safetensors"),
    )
    assert any(not torch.equal(model[name], begun[name]) for name in model)
    assert Tokenizer.load(output / "model").chat_template
    metrics = reported["result"]
    assert (
        metrics["episodes"] == 128 and metrics["batches"] == 8 and metrics["prompts_left_out"] == 2
    )
    assert (
        "30 prompts to answer, 12 held out; 1 and 1 longer than 23 tokens are left out."
        in reported["log"]
    )
    assert (
        metrics["kl_low"] < metrics["kl"] < metrics["kl_high"]
        and metrics["reward_low"] < metrics["reward"] < metrics["reward_high"]
    )
    assert metrics["bpb_rise"] < 0  # what is predicted is text that the policy had never met
    steps = {step for step, _, _ in reported["texts"]}
    assert steps == {0, 8, 16} and len(reported["texts"]) == 12
    assert {
        values.get("kl_coefficient")
        for step, values in reported["metrics"].items()
        if step % EACH == 0
    } - {None, 0.02}


def assert_equal_runs(folder: Path, expected: str, other: str) -> None:
    """Losses, rewards and KL on the way and what is measured at the end, to 1e-4."""
    first, second = (read_record(folder / name) for name in (expected, other))
    for step, values in first["metrics"].items():
        for name in set(values) - {"episodes_per_second"}:
            assert second["metrics"][step][name] == pytest.approx(
                values[name], rel=1e-4, abs=1e-5
            ), (other, step, name)
    untimed = {name for name in first["result"] if "second" not in name and "memory" not in name}
    assert {"reward", "kl", "held_out/total_bpb", "bpb_rise"} <= untimed
    for name in untimed:
        near = pytest.approx(first["result"][name], rel=1e-4, abs=1e-4)
        assert second["result"][name] == near, (other, name)
    a, b = (load_file(folder / name / "model" / "model.safetensors") for name in (expected, other))
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


@pytest.mark.parametrize(
    ("expected", "other"), [("zero1", "zero3"), ("shared0", "shared3"), ("zero3", "copied3")]
)
def test_models_that_are_shared_out_and_another_engines_answers_make_no_difference(
    undisturbed: Path, expected: str, other: str
) -> None:
    """The other engine writes tokens alone: log-probabilities are the trainer's."""
    assert_equal_runs(undisturbed, expected, other)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_more_ranks_than_episodes_of_a_minibatch_take_the_same_steps(
    inputs: Path, undisturbed: Path, zero_stage: int
) -> None:
    """A minibatch is an episode and a row of text: one rank has both, or each rank has one or
    none.
    """
    alone = read_record(undisturbed / "alone")["metrics"]
    several = read_record(undisturbed / f"several{zero_stage}")["metrics"]
    for name in ("loss", "gradient_norm", "value_error", "ptx_loss", "policy_loss"):
        for step in range(1, 5):
            near = pytest.approx(alone[step][name], rel=1e-4, abs=1e-5)
            assert several[step][name] == near, (step, name)


def test_every_zero_stage_takes_the_same_first_steps(undisturbed: Path) -> None:
    first = read_record(undisturbed / "zero1")["metrics"]
    for stage in (0, 2):
        metrics = read_record(undisturbed / f"first{stage}")["metrics"]
        for name in ("loss", "gradient_norm", "value_error", "ptx_loss"):
            for step in (1, 2):
                near = pytest.approx(first[step][name], rel=1e-3)
                assert metrics[step][name] == near, (stage, step, name)


def test_at_zero_3_no_rank_gathers_more_than_one_models_embeddings_and_a_block(
    inputs: Path, undisturbed: Path
) -> None:
    head = 33  # of the reward model, or on the policy's trunk: 32 weights and a bias
    most = most_gathered(inputs / "reward_model" / "model") + head
    for name in ("zero3", "shared3", "copied3"):
        assert read_record(undisturbed / name)["held"] == most, name
    assert read_record(undisturbed / "zero1")["held"] == 0  # nothing is gathered there
