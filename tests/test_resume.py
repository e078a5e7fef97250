"""A killed training run ends where an undisturbed one does, to the bit: real DeepSpeed ranks,
dropout on, SIGKILL at a random moment.
"""

from __future__ import annotations

import json
import random
import shutil
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_world import most_gathered
from safetensors.torch import load_file
from training_ranks import MUON, SECTION, STEPS, Ranks, make_inputs, read_record

from assets.contract import SCRATCH
from assets.execution.pretraining import samples
from gpt_model import convert
from gpt_model.data.shards import TokenData
from gpt_model.errors import CorruptFile
from gpt_model.io import write_json
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.checkpoint import verify
from gpt_model.training.engine import Execution
from gpt_model.training.measure import held_out

pytestmark = pytest.mark.slow

STAGES = (0, 1, 2, 3)
RAMP = {
    "batch_ramp": {"from_tokens": 64, "over_tokens": 6400},
    "snapshots": 5,
}  # the whole stage, on a growing batch and sharded weights
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": ["attn.c_attn", "mlp.c_fc"]}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def runs(folder: Path) -> list[dict[str, Any]]:
    """One run a ZeRO stage, done one after the other by the same two ranks; and one with Muon, of
    whose matrices both ranks have parts.
    """
    plain: list[dict[str, Any]] = [
        {"what": "loop", "output": folder / f"zero{stage}", "zero_stage": stage} for stage in STAGES
    ]
    plain.append({"what": "loop", "output": folder / "muon", "zero_stage": 1, "section": MUON})
    stage = {"what": "pretrained", "zero_stage": 3}
    return [*plain, {**stage, "output": folder / "ramp", "section": RAMP}]


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    # Built sharded, as zero3 is not, and then a base: with zero3's micro-batches
    stage = {"what": "pretrained", "profile": {"micro_batch": 2}}
    short = {"tokens": 512, "warmup_tokens": 0}
    further = {**stage, "base": folder / "sharded", "section": short}
    more = [
        {**stage, "output": folder / "sharded", "zero_stage": 3},
        {**further, "output": folder / "from_slices", "zero_stage": 3},
        {**further, "output": folder / "from_whole", "zero_stage": 0},
        {**further, "output": folder / "lora_slices", "zero_stage": 3, "lora": LORA},
        {**further, "output": folder / "lora_whole", "zero_stage": 0, "lora": LORA},
    ]
    Ranks(inputs, runs(folder) + more).wait()
    return folder


@pytest.fixture(scope="module")
def killed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs, killed once in the middle of each."""
    folder = tmp_path_factory.mktemp("killed")
    seed = random.randrange(1 << 30)
    print(f"kill moments from seed {seed}")  # shown where a test fails
    moments = random.Random(seed)
    batch: int = SECTION["batch_tokens"]  # type: ignore[assignment]
    *plain, ramp = runs(folder)
    held = [job | {"hold": (7 * batch, "checkpoints")} for job in plain]
    ranks = Ranks(inputs, [*held, ramp | {"hold": (900, f"{SCRATCH}/checkpoints")}])
    for output in (job["output"] for job in plain):
        ranks.kill_at(output, moments.randrange(8, STEPS - 10) * batch)
        leave_half_a_checkpoint(output / "checkpoints")
        ranks.start()
    ranks.kill_at(folder / "ramp", moments.randrange(1000, 4500))
    ranks.start()
    ranks.wait()
    return folder


def leave_half_a_checkpoint(checkpoints: Path) -> None:
    """What a kill in the middle of writing leaves: a folder without a manifest, one rank's file cut
    short.
    """
    newest = max(checkpoints.glob("step-*[0-9]"))
    half = checkpoints / "step-000000039.partial"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    whole = (newest / "rank-00000.safetensors").read_bytes()
    (half / "rank-00000.safetensors").write_bytes(whole[: len(whole) // 2])
    (half / "rank-00001.json").write_text(json.dumps({"sha256": "0"}))


@pytest.mark.parametrize("run", [*(f"zero{stage}" for stage in STAGES), "muon"])
def test_killed_run_resumes_to_the_same_weights(undisturbed: Path, killed: Path, run: str) -> None:
    expected, result = (
        load_file(folder / run / "model.safetensors") for folder in (undisturbed, killed)
    )
    record = read_record(killed / run)
    assert 0 < record["result"]["resumed_from"] < STEPS, record["log"]
    assert (
        f"Goes on from the checkpoint of step {record['result']['resumed_from']} of {STEPS}."
        in record["log"]
    )
    assert expected.keys() == result.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, result[name]), name
    before, after = read_record(undisturbed / run)["metrics"], record["metrics"]
    for step in range(record["result"]["resumed_from"] + 1, STEPS + 1):
        for name in ("loss", "gradient_norm", "learning_rate", "tokens"):
            assert after[step][name] == before[step][name], (step, name)


def test_a_run_killed_inside_the_batch_ramp_leaves_the_same_files(
    undisturbed: Path, killed: Path
) -> None:
    expected, result = undisturbed / "ramp", killed / "ramp"
    files = sorted(
        path.relative_to(expected)
        for path in expected.rglob("*")
        if path.is_file() and ".scratch" not in path.parts
    )
    files.remove(Path("record.json"))
    assert {
        "model/model.safetensors",
        "training.json",
        "snapshots/1/model.safetensors",
        "snapshots/index.json",
    } <= set(map(str, files))
    for path in files:
        assert (expected / path).read_bytes() == (result / path).read_bytes(), path
    before, after = read_record(expected)["metrics"], read_record(result)["metrics"]
    [resumed] = [
        line
        for line in read_record(result)["log"]
        if line.startswith("Goes on from the checkpoint of step ")
    ]
    first = int(resumed.split()[7])
    assert (
        before[first]["tokens"] < 6400
        and len({before[n + 1]["tokens"] - before[n]["tokens"] for n in range(first, first + 20)})
        > 1
    )
    for step in range(first + 1, max(before) + 1):
        for name in ("loss", "gradient_norm", "learning_rate", "tokens"):
            assert after[step][name] == before[step][name], (step, name)


@pytest.mark.parametrize("stage", STAGES)
def test_the_last_two_checkpoints_are_kept_and_stall_training_for_less_than_a_second(
    undisturbed: Path, stage: int
) -> None:
    left = sorted(path.name for path in (undisturbed / f"zero{stage}" / "checkpoints").iterdir())
    assert len(left) == 2 and all(
        name.startswith("step-") and not name.endswith(".partial") for name in left
    )
    assert 0 < read_record(undisturbed / f"zero{stage}")["result"]["checkpoint_stall_seconds"] < 1.0


def test_what_one_rank_finds_damaged_all_ranks_leave_out(inputs: Path, tmp_path: Path) -> None:
    """Each of three ranks hashes one file of a checkpoint."""
    steps = {"section": {"tokens": 256 * 12}}
    whole = {"what": "loop", "output": tmp_path / "whole", **steps}
    Ranks(inputs, [whole], 3).wait()
    older, newest = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    files = [f"rank-{rank:05d}.safetensors" for rank in range(3)]
    damages = {file: [(newest.name, file)] for file in files}
    damages["both"] = [(newest.name, files[2]), (older.name, files[1])]
    runs = []
    for name, damaged in damages.items():
        checkpoints = tmp_path / name / "checkpoints"
        shutil.copytree(older.parent, checkpoints)
        for checkpoint, file in damaged:
            flip(checkpoints / checkpoint / file)
            for rank in range(3):
                expected = pytest.raises(CorruptFile, match=file)
                with expected if rank == files.index(file) else nullcontext():
                    verify(checkpoints / checkpoint, rank, 3)
        runs.append({"what": "loop", "output": tmp_path / name, **steps})
    Ranks(inputs, runs, 3).wait()

    expected = load_file(tmp_path / "whole" / "model.safetensors")
    for name, damaged in damages.items():
        record = read_record(tmp_path / name)
        for line, (checkpoint, file) in zip(record["log"], damaged, strict=False):
            path = tmp_path / name / "checkpoints" / checkpoint / file
            assert line.startswith(f"{path} is damaged"), record["log"]
        resumed = None if name == "both" else int(older.name[5:])
        assert record["result"]["resumed_from"] == resumed, name
        result = load_file(tmp_path / name / "model.safetensors")
        assert all(torch.equal(tensor, result[key]) for key, tensor in expected.items()), name


def flip(path: Path) -> None:
    """Change a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_folder_may_be_renamed_as_soon_as_the_file_in_it_is_there(tmp_path: Path) -> None:
    """As rank 0 does with a checkpoint whose last file is another rank's."""
    for attempt in range(100):
        partial, whole = tmp_path / f"{attempt}.partial", tmp_path / str(attempt)
        partial.mkdir()

        def publish(partial: Path = partial, whole: Path = whole) -> None:
            while not (partial / "rank.json").exists():
                pass
            partial.rename(whole)

        publisher = threading.Thread(target=publish)
        publisher.start()
        write_json(partial / "rank.json", {"attempt": attempt})
        publisher.join()
        assert [path.name for path in whole.iterdir()] == ["rank.json"]


def test_all_zero_stages_take_the_same_steps(undisturbed: Path) -> None:
    losses = [
        [
            values["loss"]
            for _, values in sorted(read_record(undisturbed / f"zero{stage}")["metrics"].items())
        ]
        for stage in STAGES
    ]
    for stage in STAGES[1:]:
        assert losses[stage] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] < 0.7 * losses[0][0]


def test_training_loads_neither_mlflow_nor_a_compiler(undisturbed: Path) -> None:
    """Start-up: what DeepSpeed and torch would import or compile on the way costs seconds in every
    worker (engine.py says which).
    """
    modules = read_record(undisturbed / "zero2")["modules"]
    heavy = {"mlflow", "dagster", "transformers", "torch._dynamo", "torch._inductor"}
    assert not heavy.intersection(modules)


def test_a_model_built_sharded_is_the_one_built_whole(undisturbed: Path) -> None:
    whole, sharded = (read_record(undisturbed / name)["metrics"] for name in ("zero3", "sharded"))
    for step in range(1, STEPS + 1):
        for name in ("loss", "gradient_norm"):
            assert sharded[step][name] == whole[step][name], (step, name)
    expected = load_file(undisturbed / "zero3" / "model.safetensors")
    saved = load_file(undisturbed / "sharded" / "model" / "model.safetensors")
    assert saved.keys() == {f"transformer.{name}" for name in expected}
    for name, tensor in expected.items():
        assert torch.equal(tensor, saved[f"transformer.{name}"]), name


def test_sharded_weights_are_measured_and_sampled_as_whole_ones(
    inputs: Path, undisturbed: Path
) -> None:
    model = convert.load(undisturbed / "sharded" / "model").eval()
    data, tokenizer = TokenData(inputs / "tokens"), Tokenizer.load(inputs / "tokenizer")
    record = read_record(undisturbed / "sharded")
    for source, text in held_out(model, data, Execution()).items():
        bpb = record["result"][f"held_out/{source}/bpb"]
        assert bpb == pytest.approx(text.bpb, rel=1e-6), source
    [(name, text)] = samples(model, data, tokenizer, 1, SECTION["seed"])  # type: ignore[arg-type]
    assert record["texts"][-1] == [STEPS, name, text]


@pytest.mark.parametrize("how", ["from", "lora"])
def test_training_goes_on_from_slices_of_a_base_as_from_the_whole(
    undisturbed: Path, how: str
) -> None:
    folders = [undisturbed / f"{how}_{start}" for start in ("slices", "whole")]
    of_slices, of_whole = map(read_record, folders)
    slices, whole = of_slices["metrics"], of_whole["metrics"]
    for name in ("loss", "gradient_norm"):
        assert slices[1][name] == pytest.approx(whole[1][name], rel=1e-6), name
        assert slices[2][name] == pytest.approx(whole[2][name], rel=1e-4), name
    last = read_record(undisturbed / "sharded")["metrics"][STEPS]["loss"]
    assert slices[1]["loss"] < last + 0.3
    for name in ("config.json", "tokenizer.json"):
        files = [run / "model" / name for run in (folders[0], undisturbed / "sharded")]
        assert files[0].read_bytes() == files[1].read_bytes()
    # Where all weights are trained, those with next to no gradient make steps of its rounding
    for path in folders[1].glob("*/*.safetensors") if how == "lora" else ():
        a, b = (load_file(run / path.relative_to(folders[1])) for run in folders)
        assert a.keys() == b.keys()
        assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a), path
    counts = [name for name in of_whole["result"] if name.endswith("_parameters")]
    assert len(counts) == (2 if how == "lora" else 0)
    assert all(of_slices["result"][name] == of_whole["result"][name] for name in counts)
    # A rank has what is in no block, and one block with its adapters: never the model
    beside = LORA["rank"] * ((32 + 96) + (32 + 128)) if how == "lora" else 0
    held = most_gathered(folders[0] / "model") + beside
    assert (of_slices["held"], of_slices["whole"]) == (held, 0)
    assert of_whole["held"] == 0 < of_whole["whole"]
