"""Trainings that are to take the same steps, however many ranks share them out.

    python benchmarks/same_steps.py [ramp] [sharded]

- ramp: a small GPT-3 whose batch grows from 16 sequences, on 24 ranks and on 2. At first 8 of the 24
  have no sequence.
- sharded: the shapes and sections of the tiny recipes, cut to a few steps, on two ranks at ZeRO 3:
  built whole and then shared out, and built sharded.

Over gloo, all ranks forked off one process, so that 24 of them take little memory. No time is
measured.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from training_ranks import make_inputs, read_record, run, write_record  # noqa: E402

from assets.launch.launcher import free_port  # noqa: E402
from assets.recipe.recipe import load_recipe  # noqa: E402
from benchmarks import throughput  # noqa: E402
from benchmarks.bars import at_most, verdict  # noqa: E402
from gpt_model import convert  # noqa: E402
from gpt_model.training.engine import _import_deepspeed  # noqa: E402

RAMPED = {
    "batch_tokens": 48 * 32,
    "batch_ramp": {"from_tokens": 16 * 32, "over_tokens": 10_000},
    "tokens": 24_000,
    "decay_tokens": 20_000,
}
SHAPE = {"family": "gpt3", "layers": 4, "width": 32, "heads": 2, "context": 32, "band": 8}
SHAPE |= {"attention_bias": False, "dropout": 0.0}
RECIPES = ("tiny", "gpt3-tiny", "gpt1-tiny")
CUT_STEPS = 8


def main() -> int:
    """Print each comparison and its bar."""
    parts = {"ramp": ramp, "sharded": sharded}
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}")
    chosen = parser.parse_args().parts
    if unknown := set(chosen) - set(parts):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(parts)}")
    torch.set_num_threads(1)
    _import_deepspeed(compiling=False)
    for name in chosen or parts:
        with tempfile.TemporaryDirectory(prefix="same-steps-") as folder:
            parts[name](Path(folder))
    return verdict()


def ramp(folder: Path) -> None:
    """The ramped training on 24 ranks, and on 2."""
    inputs, losses = make_inputs(folder / "inputs"), {}
    for ranks in (2, 24):
        output = folder / str(ranks)
        job = {"what": "loop", "output": output, "section": RAMPED, "model": SHAPE}
        _run_on(ranks, inputs, job)
        losses[ranks] = _losses(output)
    apart = max(abs(a - b) for a, b in zip(losses[2], losses[24], strict=True))
    last = abs(losses[2][-1] - losses[24][-1])
    print(f"ramp from 16 to 48 sequences, {len(losses[2])} steps, loss {losses[2][-1]:.6f}:")
    print(f"  24 ranks and 2: the last loss off by {last:.1e} {at_most('ramp', last, 1e-5)}")
    print(f"  … any loss on the way by at most {apart:.1e}")


def sharded(folder: Path) -> None:
    """Each tiny recipe's shape, built whole and built sharded."""
    for name in RECIPES:
        recipe = load_recipe(name)
        assert recipe.model and recipe.pretraining and recipe.tokenizer
        inputs = folder / name / "inputs"
        throughput.make_inputs(inputs, recipe.tokenizer.vocab_size)
        section = recipe.pretraining.model_dump(mode="json")
        section |= {"tokens": CUT_STEPS * section["batch_tokens"], "snapshots": 0}
        if section.get("batch_ramp"):
            section["tokens"] = CUT_STEPS * section["batch_ramp"]["from_tokens"]
        section |= {"evaluations": 1, "evaluation_tokens": 512}
        job: dict[str, Any] = {"section": section, "model": recipe.model.model_dump(mode="json")}
        job |= {"zero_stage": 3, "profile": {"micro_batch": 2}}
        whole, shared = folder / name / "whole", folder / name / "sharded"
        _run_on(2, inputs, {**job, "what": "loop", "output": whole})
        _run_on(2, inputs, {**job, "what": "pretrained", "output": shared})
        records = [read_record(output)["metrics"] for output in (whole, shared)]
        weights = dict(convert.load(shared / "model").named_parameters())
        digests = [_digest(each) for each in (load_file(whole / "model.safetensors"), weights)]
        first = [(record[1]["loss"], record[1]["gradient_norm"]) for record in records]
        steps = max(records[0])
        same = records[0].keys() <= records[1].keys() and all(
            records[0][step][key] == records[1][step][key]
            for step in records[0]
            for key in ("loss", "gradient_norm")
        )
        print(
            f"{name}: first loss {first[0][0]!r} and {first[1][0]!r}, norm {first[0][1]!r} and "
            f"{first[1][1]!r}, all {steps} steps {'equal' if same else 'not equal'}, digest "
            f"{digests[0]} and {digests[1]}",
            at_most(name, float(not same or digests[0] != digests[1]), 0.0, "differences"),
            flush=True,
        )


def _losses(output: Path) -> list[float]:
    return [values["loss"] for _, values in sorted(read_record(output)["metrics"].items())]


def _digest(weights: Any) -> str:
    """Of parameters [...] by name."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _run_on(ranks: int, inputs: Path, job: dict[str, Any]) -> None:
    """The job of `training_ranks` on so many ranks, which all end well."""
    os.environ |= {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    _wait([_forked(rank, ranks, inputs, job) for rank in range(ranks)])


def _forked(rank: int, ranks: int, inputs: Path, job: dict[str, Any]) -> int:
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with contextlib.redirect_stdout(io.StringIO()):  # progress
            progress = run(inputs, job, rank, ranks)
        if rank == 0:
            write_record(job["output"], progress)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # gloo's threads may hang the interpreter's teardown


def _wait(pids: Iterable[int]) -> None:
    if any([os.waitpid(pid, 0)[1] for pid in pids]):
        raise SystemExit("a rank failed")


if __name__ == "__main__":
    sys.exit(main())
