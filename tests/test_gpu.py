"""What only a GPU does, at the seams that a CPU has: torch's own answers and exceptions."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from assets import worker
from assets.contract import Stage
from assets.execution import device_failures
from assets.execution.device_failures import out_of_memory, sentence_of_device
from assets.execution.ppo import actors_of
from assets.execution.pretraining import initial_model
from assets.execution.tuning import read_gpt, tune
from assets.recipe.profile import Profile
from assets.stages import stage_named
from assets.stages.pretraining import sequences_each
from assets.store.store import Store
from benchmarks import gpu_check
from benchmarks.gpu_check import _Random
from gpt_model import GPT, ModelConfig, convert
from gpt_model.errors import UserError
from gpt_model.progress import Silent
from gpt_model.training import engine, failures, gpu, measure, memory, sharded_build
from gpt_model.training.engine import Execution, evaluation_precision, join_without_training, start
from gpt_model.training.failures import OutOfMemory
from gpt_model.training.optimizer import TrainingSettings
from gpt_model.training.sharded import reading


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """One GPU, as torch describes it."""
    answer = SimpleNamespace(
        name="NVIDIA A100-SXM4-80GB", total_memory=85_097_971_712, major=8, minor=0
    )
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: answer)
    return answer


def test_a_gpu_as_the_profile_says_is_taken(device: SimpleNamespace) -> None:
    try:
        gpu.choose(80e9, tf32=True)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.cuda.matmul.allow_tf32  # which inductor asks in the older way
        gpu.choose(None, tf32=False)
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        gpu.require_precision("bfloat16", tf32=True)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_profile_of_a_gpu_without_one_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)  # by a test before
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # `start` sets it
    with pytest.raises(UserError, match=r"can use no GPU of .*not compiled with CUDA.*Install tor"):
        start(Execution(device="cuda"))

    def refuse(reason: str) -> None:
        def init() -> None:
            raise RuntimeError(reason)

        monkeypatch.setattr(torch.cuda, "init", init)

    refuse("The NVIDIA driver on your system is too old (found version 11040). Please update …")
    with pytest.raises(UserError, match=r"11040.*Update the driver, or install a torch for an old"):
        gpu.choose(None, tf32=False)
    refuse("Found no NVIDIA driver on your system. Please check …")
    with pytest.raises(UserError, match=r"Found no NVIDIA driver.*Install NVIDIA's driver, or cho"):
        gpu.choose(None, tf32=False)


def test_a_gpu_that_is_not_as_the_profile_says_is_refused(
    device: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=r"A100-SXM4-80GB, has 85 GB; the profile says memory_gb: 1"
    ):
        gpu.choose(141e9, tf32=False)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(UserError, match=r"needs GPU 3 of .*, which shows 1 GPUs.*CUDA_VISIBLE_DEV"):
        gpu.choose(None, tf32=False)


@pytest.mark.parametrize(
    ("precision", "tf32", "message"),
    [
        ("bfloat16", False, r"T4 has compute capability 7\.5; `precision: bfloat16` of the recipe"),
        ("float32", True, r"T4 has compute capability 7\.5; `tf32: true` of the profile"),
    ],
)
def test_a_precision_that_the_gpu_lacks_is_refused(
    device: SimpleNamespace, precision: str, tf32: bool, message: str
) -> None:
    device.name, device.major, device.minor = "Tesla T4", 7, 5
    with pytest.raises(UserError, match=message):
        gpu.require_precision(precision, tf32)
    gpu.require_precision("float32", tf32=False)
    with pytest.raises(UserError, match=message):  # and so is a stage that trains nothing
        join_without_training(execution := Execution(device="cuda", tf32=tf32))
        evaluation_precision(execution, precision)


def test_utilisation_is_of_the_data_sheets_peak_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    eight = Execution(device="cuda", world_size=8)
    assert measure.data_sheet_flops(eight, "bfloat16") == 8 * 989e12
    assert measure.data_sheet_flops(eight, "float32") is None
    assert measure.data_sheet_flops(Execution(), "bfloat16") is None


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", None),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_the_data_sheets_peak_is_by_the_devices_name(name: str, tflops: Any) -> None:
    assert gpu.data_sheet_flops(name) == (tflops and tflops * 1e12)


class _Runs(_Random):
    """Runs out of memory, as torch says it, in the second step."""

    def micro_batches(self, step: int) -> list[torch.Tensor]:
        if step == 1:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"
            )
        return super().micro_batches(step)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        (
            {"zero_stage": 1, "micro_batch": 8},
            r"ZeRO 1 and activation_checkpointing false.*profiles/eight.yaml, these would help: "
            r"`micro_batch: 4` \([\d.e-]+ GB less\), `activation_checkpointing: true` .*resumes",
        ),
        (
            {"zero_stage": 3, "micro_batch": 1, "activation_checkpointing": True},
            "only more `processes` would help",
        ),
    ],
)
def test_memory_that_runs_out_names_what_would_help(
    changes: dict[str, Any], advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in gpu_check.ALONE.items():
        monkeypatch.setenv(name, value)
    # So small a model that what CUDA itself takes would hide all that helps
    monkeypatch.setattr(memory, "CUDA_BYTES", 0)
    monkeypatch.setattr(memory, "bucket_elements", lambda parameters, cuda: parameters // 8)
    config = ModelConfig(**gpu_check.SMALLEST, vocab_size=5000)
    profile = Profile(name="eight", device="cuda", processes=8, **changes)
    settings = TrainingSettings(steps=3, learning_rate=lambda _: 1e-3)
    objective = _Runs(config)
    objective.size.fit(sequences_each(profile, config.context))
    progress: Any = Silent()
    progress.profile, progress.rank = profile, 0
    with pytest.raises(torch.OutOfMemoryError) as out:
        tune(GPT(config), objective, settings, Execution(zero_stage=0), tmp_path, progress, [])
    text = str(sentence_of_device(out.value, profile, 0))
    assert re.match(r"Rank 0 on .* ran out of its GPU's memory \(Tried to", text), text
    assert re.search(advice, text), text


@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_finishes_a_tuning_is_evaluated_in_its_precision_on_a_gpu_alone(
    precision: str,
    zero_stage: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bfloat16_passes: list[bool],
) -> None:
    for name, value in gpu_check.ALONE.items():
        monkeypatch.setenv(name, value)
    config, execution = (
        ModelConfig(**gpu_check.SMALLEST, vocab_size=300),
        Execution(zero_stage=zero_stage),
    )
    settings = TrainingSettings(1, lambda _: 1e-3, precision=precision)  # type: ignore[arg-type]
    progress: Any = Silent()
    progress.profile, progress.rank = Profile(name="one"), 0

    def tuned() -> list[bool]:
        if zero_stage == 3:
            model: Any = sharded_build.build_sharded(config, settings, execution, 1)
        else:
            model = GPT(config, seed=1)
        passes: list[bool] = []

        def finish(trained: Any) -> None:
            bfloat16_passes.clear()
            with torch.no_grad(), reading(trained):
                trained(torch.arange(8)[None])
            passes.extend(bfloat16_passes)

        objective = _Random(config)
        tune(model, objective, settings, execution, tmp_path, progress, [], finish=finish)
        return passes

    assert tuned() == [precision == "bfloat16"] * config.layers
    shutil.rmtree(tmp_path / ".scratch")
    monkeypatch.setattr(engine, "EVALUATED_IN_BFLOAT16", {"cuda"})
    assert tuned() == [False] * config.layers


@pytest.mark.parametrize("builder", ["pretraining", "tuning", "ppo"])
def test_memory_that_runs_out_while_a_model_is_built_sharded_names_what_would_help(
    builder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ModelConfig(**gpu_check.SMALLEST, vocab_size=5000)
    convert.save(GPT(shape), tmp_path, end_of_text=0)
    execution = Execution(zero_stage=3, rank=2, world_size=8)
    section = {"precision": "bfloat16", "seed": 1, "value": "shared"}
    section |= {"betas": (0.9, 0.95), "weight_decay": 0.1, "gradient_clip": 1.0}
    settings = TrainingSettings.of(section, 1, lambda _: 1e-3)
    builders = {
        "pretraining": lambda: initial_model({}, {}, shape, settings, execution),
        "tuning": lambda: read_gpt(tmp_path, section, execution),
        "ppo": lambda: actors_of(tmp_path, tmp_path, section, execution),
    }

    def allocate(*_: Any) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 300.00 MiB. GPU 2 has a total capacity of …"
        )

    # As above: what CUDA itself takes would hide all that helps
    monkeypatch.setattr(memory, "CUDA_BYTES", 0)
    monkeypatch.setattr(memory, "bucket_elements", lambda parameters, cuda: parameters // 8)
    monkeypatch.setattr(sharded_build, "shard", allocate)  # where `cut` takes the device's memory
    profile = Profile(name="eight", device="cuda", processes=8, zero_stage=3, micro_batch=8)
    with pytest.raises(torch.OutOfMemoryError) as out:
        builders[builder]()
    text = str(sentence_of_device(out.value, profile, 2))
    assert re.match(
        r"Rank 2 on .* ran out of its GPU's memory \(Tried to allocate 300.00 MiB\)\. A model was "
        rf"being built, of whose weights each rank has {shape.parameters() * 4 / 8 / 1e9:.2g} GB; ",
        text,
    )
    assert re.search(
        r"training takes [\d.e-]+ GB a rank with micro_batch 8, ZeRO 3 .*these would help: "
        r"`micro_batch: 4` \([\d.e-]+ GB less\)",
        text,
    )


def refused(error: Exception, stage: Stage, home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """failure.json of a worker whose stage raises the error."""

    def run(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(worker, "stage_named", lambda _: replace(stage, run=run))
    building = Store(home).building("ab" * 32)
    profile = {"name": "eight", "device": "cpu", "processes": 8}
    job = {"stage": stage.name, "config": {}, "profile": profile, "inputs": {}}
    building.job.write_text(json.dumps(job))
    monkeypatch.setattr(sys, "argv", ["worker", str(building.folder)])
    assert worker.main() == 1
    failure = json.loads(building.failure.read_text())
    building.failure.unlink()
    return failure


@pytest.mark.parametrize("rank", ["0", "3"])
@pytest.mark.parametrize("name", ["zero_shot", "supervised", "reward_model", "aligned"])
def test_every_stage_says_what_its_gpu_refuses(
    name: str, rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "8")
    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU")
    failure = refused(error, stage_named(name), tmp_path, monkeypatch)
    assert failure["user"] and failure["rank"] == int(rank)
    assert re.match(
        rf"Rank {rank} on .* ran out of its GPU's memory \(Tried to allocate 2.00 GiB\)\. No model "
        r"was being trained then\. .*`nvidia-smi`",
        failure["message"],
    ), failure["message"]

    monkeypatch.setattr(device_failures, "exchange_failed", lambda error: UserError(f"no {error}"))
    error = torch.distributed.DistBackendError("NCCL")
    assert refused(error, stage_named(name), tmp_path, monkeypatch)["message"] == "no NCCL"
    defect = refused(RuntimeError("a defect"), stage_named(name), tmp_path, monkeypatch)
    assert not defect["user"] and defect["message"] == "RuntimeError: a defect"


def test_evaluation_on_one_rank_looks_at_its_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []
    monkeypatch.setattr(gpu, "choose", lambda *given: chosen.append(given))
    join_without_training(Execution(device="cuda", memory_bytes=80e9))
    join_without_training(Execution(device="cpu"))
    assert chosen == [(80e9, False)]


def test_the_largest_saving_is_named_first() -> None:
    config = ModelConfig.published("gpt2-xl")
    profile = Profile(name="eight", device="cuda", processes=8, zero_stage=1, micro_batch=8)
    settings = TrainingSettings(1, lambda step: 0.0, precision="bfloat16")
    error = OutOfMemory(torch.OutOfMemoryError("no"), "training", config, settings)
    text = str(out_of_memory(error, profile, 3))
    advice = re.findall(r"`([a-z_]+: \w+)` \(([\d.]+) GB less", text)
    assert [change for change, _ in advice] == [
        "activation_checkpointing: true",
        "micro_batch: 4",
        "zero_stage: 2",
        "zero_stage: 3",
    ]
    saved = [float(size) for _, size in advice]
    assert saved == sorted(saved, reverse=True) and saved[-1] > 1


def nccl_error(result: str, detail: str, cause: str) -> torch.distributed.DistBackendError:
    """As torch's C10D_NCCL_CHECK words it."""
    where = "/pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:93"
    return torch.distributed.DistBackendError(
        f"NCCL error in: {where}, {result}, NCCL version 2.29.7\n{detail}\nLast error:\n{cause}"
    )


REMOTE = nccl_error(
    "remote process exited or there was a network error",
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting "
    "prematurely.",
    "socketProgress: Connection closed by remote peer gpu-b<37002>\n",
)
SYSTEM = nccl_error(
    "unhandled system error (run with NCCL_DEBUG=INFO for details)",
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device "
    "error. ",
    "Error while creating shared memory segment /dev/shm/nccl-8ZbhhW (size 9637888), error: No "
    "space left on device (28)",
)
USAGE = "invalid usage (run with NCCL_DEBUG=WARN for details)"
USAGE_DETAIL = "ncclInvalidUsage: This usually reflects invalid usage of NCCL library."
DUPLICATE = "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 53000"


@pytest.fixture
def four_ranks(monkeypatch: pytest.MonkeyPatch) -> torch.distributed.Store:
    """This process is rank 1 of two hosts' four. Returns their store."""
    store = torch.distributed.HashStore()
    monkeypatch.setenv("LINEAGE_HOSTS", "gpu-a,gpu-b")
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(failures, "_get_default_store", lambda: store)
    monkeypatch.setattr(failures, "PATIENCE", 0.1)
    return store


def test_an_exchange_that_fails_names_the_rank_that_is_missing(
    four_ranks: torch.distributed.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in (0, 2):
        four_ranks.set(f"waited/{rank}", "")
    text = str(failures.exchange_failed(REMOTE))
    assert text.startswith("Rank 1 of 4, on gpu-a, waited in vain: NCCL error in: ")
    assert (
        "NCCL version 2.29.7: socketProgress: Connection closed by remote peer gpu-b<37002>. "
        "Not heard of: rank 3 on gpu-b." in text
    )
    four_ranks.set("waited/3", "")
    for error in (REMOTE, torch.distributed.DistBackendError("NCCL timeout in: NCCLUtils.cpp:76")):
        assert "So did every other rank: no process is lost, the network between them is." in str(
            failures.exchange_failed(error)
        )
    text = str(failures.exchange_failed(SYSTEM))
    assert "No space left on device (28). So did every other rank" in text
    assert "network" not in text

    def gone() -> None:
        raise torch.distributed.DistNetworkError("connection reset by peer")

    monkeypatch.setattr(failures, "_get_default_store", gone)
    assert "Rank 0's process, on gpu-a, is not there either" in str(
        failures.exchange_failed(REMOTE)
    )


@pytest.mark.parametrize(
    ("cause", "advice"),
    [(DUPLICATE, "Each rank needs a GPU of its own: see `processes`"), ("", "See `nvidia-smi`")],
)
def test_an_exchange_that_nccl_refuses_says_nccls_own_cause_and_blames_no_other_rank(
    cause: str, advice: str, four_ranks: torch.distributed.Store
) -> None:
    text = str(failures.exchange_failed(nccl_error(USAGE, USAGE_DETAIL, cause)))
    assert text.startswith("Rank 1 of 4, on gpu-a, cannot exchange anything with the others: NCCL")
    assert f"NCCL version 2.29.7{': ' + cause if cause else ''}. {advice}" in text
    assert "network" not in text and "waited" not in text and "Not heard of" not in text


@pytest.mark.slow
def test_gpu_checks_parts_run_on_a_cpu_and_hold_their_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in gpu_check.ALONE.items():
        monkeypatch.setenv(name, value)
    setting, threads = gpu_check.Setting("cpu", small=True), torch.get_num_threads()
    torch.set_num_threads(1)
    rows = [*gpu_check.kernels(setting), *gpu_check.zero(setting), *gpu_check.resume(setting)]
    torch.set_num_threads(threads)
    held = [row.what for row in rows if row.bar]
    assert len(held) == 18 and all(row.met for row in rows if row.bar), rows
    assert "| ≤ 0.0001: met |" in rows[-4].markdown()


def test_a_part_of_gpu_check_that_fails_or_takes_too_long_does_not_stop_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = {"slow": "import time; time.sleep(60)", "broken": "raise SystemExit(3)"}
    parts["sound"] = (
        'import sys; open(sys.argv[-1], \'w\').write(\'[{"what": "speed", "result": "9"}]\')'
    )
    popen = subprocess.Popen

    def stand_in(command: list[str], **options: Any) -> Any:
        return popen([sys.executable, "-c", parts[command[4]], command[6]], **options)

    monkeypatch.setattr(gpu_check.subprocess, "Popen", stand_in)
    limits = {name: gpu_check.Part(gpu_check.zero, 1.0) for name in parts}
    monkeypatch.setattr(gpu_check, "PARTS", limits)
    output = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--device", "cpu", "--output", str(output)])
    assert gpu_check.main() == 1
    table = output.read_text()
    assert "| slow | took more than 1 s | runs: **missed** |" in table
    assert "| broken | ended with status 3 | runs: **missed** |" in table
    assert "| speed | 9 |  |" in table and table in capfd.readouterr().out
