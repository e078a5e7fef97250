"""What of DeepSpeed's configuration a profile sets, and what goes from rank to rank."""

from __future__ import annotations

import functools
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import human_world
import pytest
import torch
from pydantic import ValidationError
from stage_ranks import run_in_ranks
from torch.utils.cpp_extension import _get_build_directory
from training_ranks import MUON, ROOT, Ranks, make_inputs, read_record

from assets.contract import SCRATCH
from assets.recipe import deepspeed_settings
from assets.recipe.profile import Profile
from assets.recipe.sections import SupervisedSection
from gpt_model import convert
from gpt_model.config import ModelConfig
from gpt_model.errors import UserError
from gpt_model.tokenizer import Tokenizer
from gpt_model.training import engine
from gpt_model.training.engine import Execution, _deepspeed_settings
from gpt_model.training.optimizer import TrainingSettings
from gpt_model.training.swap import SMALLEST, SwapFolder, prepare_swapping
from gpt_model.transformer import GPT

STEPS = 5
SECTION = {"tokens": 256 * STEPS, "precision": "bfloat16", "warmup_tokens": 256}
MODEL = {"width": 128, "dropout": 0.0}
COUNTED = {"comms_logger": {"enabled": True, "verbose": False, "prof_all": True}}
# Parameters of fewer elements would stay whole on every rank, and a small model has no other.
SHARED_OUT = {"stage3_param_persistence_threshold": 0}
OFFLOADED = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
# ZeRO stage, and what says where something lies. With offload DeepSpeed sums the gradients' norm in
# another order; hpZ's copies are the weights themselves.
ELSEWHERE: dict[str, tuple[int, dict[str, Any]]] = {
    "zero 1, optimizer in memory": (1, {"offload_optimizer": {"device": "cpu"}}),
    "zero 2, optimizer in memory": (2, {"offload_optimizer": {"device": "cpu"}}),
    "zero 3, all in memory": (3, SHARED_OUT | OFFLOADED),
    "zero 3, hpZ": (3, SHARED_OUT | {"zero_hpz_partition_size": 2}),
}
# Several parts, of which those of vectors and of some matrices are too small for a disk (1 MiB)
IN_PARTS = {"sub_group_size": 300_000}
NVME = {"device": "nvme", "nvme_path": "/nowhere"}
AHEAD = {"pipeline_read": True, "pipeline_write": True, "buffer_count": 12}
ALL = {"max_in_cpu": 0}  # of the weights that are trained, on the disk
needs_libaio = pytest.mark.skipif(
    not shutil.which("g++") or not list(Path("/usr").glob("include/**/libaio.h")),
    reason="DeepSpeed compiles its access to NVMe with g++ and libaio",
)
# Bytes a parameter and step of four micro-batches, with bfloat16 in communication and without
EXCHANGED = {0: (2, 4), 1: (6, 8), 2: (12, 20), 3: (16, 31)}


@pytest.mark.slow
def test_bfloat16_in_communication_halves_the_bytes_and_leaves_the_loss(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "inputs")
    runs: dict[str, dict[str, Any]] = {}
    for stage in EXCHANGED:
        for communication in ("bfloat16", "float32"):
            settings = COUNTED | ({"zero_optimization": SHARED_OUT} if stage == 3 else {})
            profile = {"communication": communication, "deepspeed": settings}
            runs[f"{stage} {communication}"] = {"zero_stage": stage, "profile": profile}
    offload = {"deepspeed": {"zero_optimization": SHARED_OUT | OFFLOADED}}
    runs["offloaded"] = {"zero_stage": 3, "profile": offload}
    for name, run in runs.items():
        run |= {"what": "loop", "output": tmp_path / name, "micro_batch": 1, "through_gloo": True}
        run |= {"section": SECTION, "model": MODEL}
    Ranks(inputs, list(runs.values())).wait()

    records = {name: read_record(run["output"]) for name, run in runs.items()}
    # Later a rounding of bfloat16 that falls otherwise has grown.
    losses = {name: record["metrics"][4]["loss"] for name, record in records.items()}
    assert losses["offloaded"] == pytest.approx(losses["3 float32"], rel=1e-4)
    assert losses == pytest.approx(dict.fromkeys(losses, losses["1 float32"]), rel=5e-3)
    for stage, (halved, whole) in EXCHANGED.items():
        for communication, expected in (("bfloat16", halved), ("float32", whole)):
            measured = _bytes_each_step(records[f"{stage} {communication}"])
            print(f"ZeRO {stage}, {communication}: {measured:.2f} bytes a parameter and step")
            # vectors, 1.3 % of so small a model, stay float32
            assert measured == pytest.approx(expected, rel=0.05), (stage, communication)


def _bytes_each_step(record: dict[str, Any]) -> float:
    """Bytes a parameter and step that a rank hands in or gets whole, without the first steps, in
    which DeepSpeed learns the order of the weights.
    """
    exchanged = [
        # of two ranks: it counts what one hands in, half of what each gets
        sum(totals.values()) + totals.get("all_gather_into_tensor", 0)
        for totals in record["exchanged_bytes"]
    ]
    return float((exchanged[-1] - exchanged[2]) / (STEPS - 3) / record["parameters"])


@pytest.mark.slow
@pytest.mark.parametrize("case", ELSEWHERE)
def test_where_state_lies_changes_nothing_that_is_learnt(case: str, tmp_path: Path) -> None:
    """Of a whole stage on two ranks: losses, evaluations and the model that is saved; and a run
    that is killed goes on to the same bytes.
    """
    stage, settings = ELSEWHERE[case]
    runs: dict[str, dict[str, Any]] = {}
    # hpZ's group, once made, is of all models of a process
    for name in ("plain", "moved", "killed"):
        zero = {} if name == "plain" else settings
        profile = {"deepspeed": {"zero_optimization": zero}}
        runs[name] = {"what": "pretrained", "output": tmp_path / name, "zero_stage": stage}
        runs[name] |= {"profile": profile, "section": {"tokens": 256 * 16}}
    runs["killed"]["hold"] = (3 * 256, f"{SCRATCH}/checkpoints")
    ranks = Ranks(make_inputs(tmp_path / "inputs"), list(runs.values()))
    ranks.kill_at(tmp_path / "killed", 8 * 256)
    ranks.start()
    ranks.wait()

    records = {name: read_record(tmp_path / name) for name in runs}
    assert any("Goes on from the checkpoint" in line for line in records["killed"]["log"])
    moved, killed = (_files(tmp_path / name) for name in ("moved", "killed"))
    assert {Path("model/model.safetensors"), Path("training.json")} <= moved.keys()
    assert killed == moved
    if "hpZ" in case:
        assert _files(tmp_path / "plain") == moved
    for step, expected in records["plain"]["metrics"].items():
        measured = records["moved"]["metrics"][step]
        for name in expected:
            if name in ("loss", "gradient_norm") or name.startswith("held_out/"):
                assert measured[name] == pytest.approx(expected[name], rel=1e-6), (step, name)


@pytest.mark.slow
@needs_libaio
@pytest.mark.parametrize(
    ("ranks", "width", "optimizer", "offloads", "swapped"),
    [
        (1, 256, {}, {"offload_optimizer": AHEAD}, {"exp_avg"}),
        (2, 256, MUON, {"offload_optimizer": {}}, {"momentum_buffer"}),
        (2, 512, {}, {"offload_param": ALL, "offload_optimizer": {}}, {"param", "exp_avg"}),
    ],
    ids=["one rank, read ahead", "two ranks, Muon", "two ranks, weights too"],
)
def test_what_lies_on_nvme_is_what_lies_in_memory(
    ranks: int,
    width: int,
    optimizer: dict[str, Any],
    offloads: dict[str, dict[str, Any]],
    swapped: set[str],
    tmp_path: Path,
) -> None:
    """Of a whole stage, killed once. The first use on a machine compiles for two minutes: as if a
    process had been killed while it did, its lock is there.
    """
    (Path(_get_build_directory("async_io", verbose=False)) / "lock").touch()
    disk = tmp_path / "disk"
    in_memory = {name: {"device": "cpu"} for name in offloads}
    on_disk = {name: {**NVME, "nvme_path": str(disk), **more} for name, more in offloads.items()}
    runs: dict[str, dict[str, Any]] = {}
    for name, placed in (("memory", in_memory), ("disk", on_disk), ("killed", on_disk)):
        zero = SHARED_OUT | IN_PARTS | placed
        runs[name] = {"what": "pretrained", "output": tmp_path / f"run_{name}", "zero_stage": 3}
        runs[name] |= {"section": {"tokens": 256 * 16, **optimizer}}
        runs[name] |= {"model": {"width": width, "dropout": 0.1}}
        runs[name] |= {"profile": {"deepspeed": {"zero_optimization": zero}}}
    runs["killed"]["hold"] = (3 * 256, f"{SCRATCH}/checkpoints")
    started = Ranks(make_inputs(tmp_path / "inputs"), list(runs.values()), ranks, compiler=True)
    started.kill_at(tmp_path / "run_killed", 8 * 256)
    assert len(list(disk.iterdir())) == ranks * len(offloads)
    left = " ".join(path.name for path in disk.rglob("*.swp"))
    assert all(kind in left for kind in swapped), left
    started.start()
    started.wait()

    assert not list(disk.iterdir())
    log = read_record(tmp_path / "run_killed")["log"]
    assert any("Goes on from the checkpoint" in line for line in log)
    memory, on_disk_files, killed = (_files(tmp_path / f"run_{name}") for name in runs)
    assert Path("model/model.safetensors") in memory
    assert on_disk_files == memory and killed == memory


@pytest.mark.slow
@needs_libaio
def test_epochs_are_measured_anew_with_weights_on_nvme(tmp_path: Path) -> None:
    """SFT gives a trained model, whose weights still lie there, each epoch's weights in turn."""
    make_inputs(tmp_path)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    shape = ModelConfig(
        layers=1, width=512, heads=2, context=96, vocab_size=tokenizer.vocab_size, dropout=0.0
    )
    model = tmp_path / "pretrained" / "model"
    convert.save(GPT(shape, seed=1), model, tokenizer.end_of_text)
    tokenizer.save(model)
    demonstrations = human_world.demonstrations(24)
    human_world.write(
        tmp_path / "demonstrations", training=demonstrations[:20], held_out=demonstrations[20:]
    )
    section = {"learning_rate": 3e-3, "epochs": 2, "batch": 10, "precision": "float32"}
    inputs = {name: tmp_path / name for name in ("pretrained", "tokenizer", "demonstrations")}
    on_disk = {**NVME, **ALL, "nvme_path": str(tmp_path / "disk")}
    jobs = [
        {
            "stage": "supervised",
            "ranks": 2,
            "zero_stage": 3,
            "deepspeed": {"zero_optimization": SHARED_OUT | {"offload_param": offload}},
            "config": {"supervised": SupervisedSection.model_validate(section).model_dump()},
            "inputs": inputs,
            "output": tmp_path / name,
        }
        for name, offload in (("memory", {"device": "cpu"}), ("disk_run", on_disk))
    ]
    run_in_ranks(jobs, tmp_path)
    memory = _files(tmp_path / "memory")
    assert Path("training.json") in memory and _files(tmp_path / "disk_run") == memory
    assert not list((tmp_path / "disk").iterdir())


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"offload_optimizer": NVME}, "is of ZeRO 3, and `zero_stage` is 1: set `zero_stage: 3`"),
        (
            {"offload_optimizer": {"device": "nvme"}},
            "needs `nvme_path`, the absolute path of a folder on that disk, and it is empty",
        ),
        ({"offload_optimizer": NVME | {"nvme_path": "swap"}}, "absolute path .* is 'swap'"),
        ({"offload_optimizer": NVME | {"buffer_count": 3}}, "is 3, and 4 are needed"),
        ({"offload_optimizer": NVME | {"pipeline_read": True}}, "is 4, and 12 are needed, as a"),
        (
            {"offload_param": NVME},
            "offload_param.device: nvme` is of ZeRO 3, and `zero_stage` is 1",
        ),
        ({"offload_param": {"device": "nvme"}}, "offload_param.device: nvme` needs `nvme_path`"),
        (
            {"offload_param": NVME | {"buffer_count": 30}},
            "offload_param.buffer_count` is none to s",
        ),
        (
            {"offload_param": NVME, "stage3_prefetch_bucket_size": 5e7},
            "stage3_prefetch_bucket_size` is none to set .*Leave it out",
        ),
        (
            {"offload_param": NVME, "offload_optimizer": NVME | {"fast_init": True}},
            "offload_optimizer.fast_init` is none to set with `offload_param.device: nvme`",
        ),
        (
            {"offload_param": NVME, "stage3_param_persistence_threshold": 1e6},
            "stage3_param_persistence_threshold` is 1000000, and .* less than 262144",
        ),
    ],
)
def test_what_nvme_needs_is_said_when_a_profile_is_read(
    settings: dict[str, Any], mistake: str
) -> None:
    with pytest.raises(ValidationError, match=mistake):
        Profile(name="p", deepspeed={"zero_optimization": settings})


def test_a_machine_that_cannot_reach_nvme_is_told_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine._import_deepspeed(compiling=False)  # as a training does
    model = torch.nn.Linear(1000, 2000, bias=False, device="meta")
    on_disk = {**NVME, "nvme_path": tmp_path}
    configuration = {"zero_optimization": {"offload_optimizer": on_disk}}
    monkeypatch.setenv("CC", "/bin/false")
    with pytest.raises(
        UserError,
        match=r"async_io, which .* \(no compiler, or no libaio\)\. .*`apt-get install g\+\+ liba",
    ):
        prepare_swapping(configuration, torch.nn.Linear(1, 1), 1)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 20, 1 << 20))
    monkeypatch.setattr("gpt_model.training.swap._may_lock", lambda size: False)
    # A weight, its gradient and two moments of a rank's; and a weight to read, one to write
    for name, more, size in (
        ("offload_optimizer", {}, 16),
        ("offload_param", {"max_in_cpu": 0}, 8),
    ):
        configuration = {"zero_optimization": {name: on_disk | more}}
        with pytest.raises(
            UserError, match=rf"locks {size} MB of a rank's memory .* lets a process lock 1 MB"
        ):
            prepare_swapping(configuration, model, 2)


def test_a_profile_is_checked_by_the_size_from_which_weights_are_swapped() -> None:
    assert deepspeed_settings.SWAPPED == SMALLEST


def test_what_a_killed_process_left_on_the_disk_is_removed(tmp_path: Path) -> None:
    swap = (
        "from gpt_model.training.swap import SwapFolder; from pathlib import Path; import sys, os"
    )
    script = f"{swap}; SwapFolder(Path(sys.argv[1]), 'offload_param'); os._exit(0)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=ROOT)
    [left] = tmp_path.iterdir()
    first, second = SwapFolder(tmp_path, "offload_param"), SwapFolder(tmp_path, "offload_param")
    assert set(tmp_path.iterdir()) == {first.path, second.path} and left != first.path
    first.remove()
    assert list(tmp_path.iterdir()) == [second.path]
    second.remove()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file is .*offload_optimizer.*Name another") as out:
        SwapFolder(tmp_path / "file", "offload_optimizer")
    assert str(out.value.field).endswith("offload_optimizer.nvme_path")


def _files(folder: Path) -> dict[Path, bytes]:
    """What a stage publishes, with each file's bytes."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    published = (path for path in paths if SCRATCH not in path.parts and path.stem != "record")
    return {path: (folder / path).read_bytes() for path in published}


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        (
            {"optimizer": {"type": "Adam"}},
            r"`deepspeed.optimizer` is the recipe's `pretraining.optimizer`",
        ),
        ({"bf16": {"enabled": True}}, "is the recipe's `precision`: leave it out"),
        ({"zero_optimization": {"stage": 3}}, "is the profile's `zero_stage`: leave it out"),
        (
            {"zero_optimization": {"zero_quantized_gradients": True}},
            "quantized gradients change what is learnt",
        ),
        (
            {"zero_optimization": {"zero_quantized_weights": True}},
            "quantized weights change what is learnt",
        ),
        (
            {"zero_optimization": {"zero_quantized_nontrainable_weights": True}},
            "none to set: they change what is learnt",
        ),
        ({"zero_optimization": 3}, "3 is not what DeepSpeed takes: it should be a mapping"),
        ({"aio": {"block_size": 0}}, "0 is not what DeepSpeed takes"),
        ({"zero": {}}, "`deepspeed.zero` is none that a profile passes on, which are: zero_opti"),
        ({"zero_optimization": {"bucket": 3}}, "which are: overlap_comm"),
    ],
)
def test_what_would_change_results_or_is_unknown_is_refused(
    settings: dict[str, Any], mistake: str
) -> None:
    with pytest.raises(ValidationError, match=mistake):
        Profile(name="p", deepspeed=settings)


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_value_that_deepspeed_does_not_take_is_refused_before_anything_is_built(
    command: str, cli: Any, tmp_path: Path
) -> None:
    profile = tmp_path / "nonsense.yaml"
    for line, expected in (
        ("zero_optimization: {reduce_bucket_size: many}", "'many' is not what DeepSpeed takes"),
        ("zero_optimization: {offload_param: {pin_memory: 3}}", "offload_param.pin_memory`: 3 is"),
        ("comms_logger: {enable: true}", "takes: it is no key of DeepSpeed's"),
        ("flops_profiler: {top_modules: few}", "'few' is not what DeepSpeed takes"),
    ):
        profile.write_text(f"name: nonsense\ndeepspeed:\n  {line}\n")
        refused = cli(command, "tiny", "--profile", str(profile))
        assert refused.returncode == 1 and expected in refused.stderr, refused.stderr
        assert f"{profile}, line 3: `deepspeed." in refused.stderr


VALUES: tuple[Any, ...] = (True, 0, 1, 3, -1, 0.5, 1.5, 5e8, "5e8", "no", "many", None, [], {})
VALUES += ("cpu", "none", "disk", {"device": "cpu"}, {"device": "disk"}, {"devices": "cpu"})


def test_a_profile_takes_the_values_that_deepspeeds_own_schema_takes() -> None:
    # Seconds, in each process that collects this file
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.zero import config, offload_config

    # A share of an offload and the parameters' are of stage 3
    zero = functools.partial(config.DeepSpeedZeroConfig, stage=3)
    optimizer = offload_config.DeepSpeedZeroOffloadOptimizerConfig
    sections: dict[str, tuple[Callable[..., object], Mapping[Any, tuple[str, ...]]]] = {
        "zero_optimization": (zero, deepspeed_settings.ZERO_KEYS),
        "zero_optimization.offload_optimizer": (optimizer, deepspeed_settings.OFFLOAD_OPTIMIZER),
        "zero_optimization.offload_param": (
            offload_config.DeepSpeedZeroOffloadParamConfig,
            deepspeed_settings.OFFLOAD_PARAM,
        ),
        "comms_logger": (CommsLoggerConfig, deepspeed_settings.COMMS_LOGGER),
    }
    for section, (schema, keys) in sections.items():
        for key in (key for names in keys.values() for key in names):
            taken = [value for value in VALUES if _takes(schema, **{key: value})]
            passed_on = [value for value in VALUES if _takes(_profile, section, {key: value})]
            assert taken == passed_on and 0 < len(taken) < len(VALUES), (section, key)


def _profile(section: str, values: dict[str, Any]) -> None:
    for name in reversed(section.split(".")):
        values = {name: values}
    deepspeed_settings.check_deepspeed(values)


def _takes(check: Callable[..., object], *arguments: Any, **keywords: Any) -> bool:
    try:
        check(*arguments, **keywords)
    except ValueError:
        return False
    return True


def test_a_value_that_deepspeed_does_not_take_is_named() -> None:
    execution = Execution(deepspeed={"zero_optimization": {"reduce_bucket_size": "many"}})
    with pytest.raises(
        UserError, match=r"take deepspeed.zero_optimization.reduce_bucket_size 'many': .*Mend the"
    ) as caught:
        _deepspeed_settings(_settings(), execution, 1000)
    assert caught.value.field == "deepspeed.zero_optimization.reduce_bucket_size"


@pytest.mark.parametrize(
    ("parameters", "elements"),
    [(10_000_000, 25_000_000), (1_600_000_000, 200_000_000), (400_000_000, 50_000_000)],
)
def test_a_gpus_buckets_are_of_the_models_size(parameters: int, elements: int) -> None:
    zero = _deepspeed_settings(_settings(), Execution(device="cuda"), parameters)
    assert zero["zero_optimization"]["reduce_bucket_size"] == elements
    assert zero["zero_optimization"]["overlap_comm"]
    stated = Execution(device="cuda", deepspeed={"zero_optimization": {"overlap_comm": False}})
    assert not _deepspeed_settings(_settings(), stated, 1)["zero_optimization"]["overlap_comm"]


def _settings() -> TrainingSettings:
    return TrainingSettings(steps=1, learning_rate=lambda step: 1e-3)
