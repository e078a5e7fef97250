"""One stage after the other on several ranks, forked off one process that has the imports behind it:
`python tests/stage_ranks.py JOBS.json`. It ends with status 1 where a job does not end as it is to.

A job: {"stage", "ranks", "config", "inputs": {name: folder, or [folder, config, metrics]},
"output": folder}, and "fails": true where one of its ranks is to fail. With a "zero_stage" (and a
"memory_gb", and "deepspeed") of the profile rank 0 leaves its reports and its result in OUTPUT/record.json, and the
others theirs in OUTPUT/.scratch/RANK/record.json. With "trial_bytes" micro-batches are found by
trial, as on a GPU of so many bytes, one for each token.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def run_in_ranks(jobs: Sequence[dict[str, Any]], folder: Path) -> str:
    """What was printed. Each rank has one thread."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs, default=str), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, __file__, str(path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def _run_rank(job: dict[str, Any], rank: int) -> None:
    from ppo_world import watched
    from training_ranks import RecordingProgress, write_record

    from assets.contract import SCRATCH, Artifact
    from assets.stages import stage_named

    inputs = {}
    for name, given in job["inputs"].items():
        path, config, metrics = given if isinstance(given, list) else (given, {}, {})
        inputs[name] = Artifact(Path(path), name, "", "", config, metrics)
    output = Path(job["output"])
    output.mkdir(parents=True, exist_ok=True)
    profile = {name: job[name] for name in ("zero_stage", "memory_gb", "deepspeed") if name in job}
    progress = RecordingProgress(output.name, rank, job["ranks"], **profile)
    if "trial_bytes" in job:
        _try_micro_batches(job["trial_bytes"])
    with watched(progress.record):
        progress.record["result"] = stage_named(job["stage"]).run(
            job["config"], inputs, output, progress
        )
    if profile:
        folder = output / SCRATCH / str(rank) if rank else output
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder, progress)


def _try_micro_batches(memory: float) -> None:
    from assets.execution import tuning
    from gpt_model.training import trial
    from gpt_model.training.engine import Execution

    tried = [0]

    def sent(batch: Any, device: str) -> Any:
        tried.append(len(batch.rows.tokens))
        return batch

    def peak(call: Any) -> float:
        before = len(tried)
        call()
        return float(tried[-1] if before > 1 else 0)

    by_trial = {"micro_batch_by_trial": True}
    tuning.Execution = lambda **given: Execution(**(given | by_trial))  # type: ignore[assignment,misc]
    trial.on_device, trial.peak_bytes, trial.usable_bytes = sent, peak, lambda: memory  # type: ignore[assignment]


def _fork(job: dict[str, Any], rank: int) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        _run_rank(job, rank)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # gloo's threads may hang the interpreter's teardown


def _main(path: Path) -> None:
    for stage in ("experiments", "preferences", "sft_selection", "zero_shot"):
        importlib.import_module(f"assets.execution.{stage}")

    jobs = json.loads(path.read_text(encoding="utf-8"))
    if any("zero_stage" in job for job in jobs):
        from gpt_model.training.engine import _import_deepspeed

        for stage in ("dpo", "reward_model", "sft"):
            importlib.import_module(f"assets.execution.{stage}")
        os.environ["DS_ACCELERATOR"] = "cpu"
        _import_deepspeed(compiling=False)
    for job in jobs:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(job["ranks"]),
        }
        pids, failed = {_fork(job, rank) for rank in range(job["ranks"])}, False
        while pids:  # as the guard does: where one fails, the others are ended
            pid, status = os.wait()
            pids.discard(pid)
            if status and not failed:
                failed = True
                for other in pids:
                    os.kill(other, signal.SIGKILL)
        if failed != job.get("fails", False):
            sys.exit(1)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
