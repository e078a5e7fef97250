"""One rank of training runs, for the tests that need real ranks: `python tests/training_ranks.py
JOB.json`, with RANK and WORLD_SIZE set.

A job is a list of runs, done one after the other in the same processes. A run is a whole stage,
`pretrained` or `finetuned`, or the former's objective in the bare loop. Each leaves its
reports and its result in OUTPUT/record.json; one that has done so is not done again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECTION = {
    "tokens": 10_240,
    "batch_tokens": 256,
    "learning_rate": 1e-2,
    "final_learning_rate": 0.1,
    "warmup_tokens": 512,
    "weight_decay": 0.1,
    "betas": [0.9, 0.95],
    "gradient_clip": 1.0,
    "precision": "float32",
    "seed": 1,
    "evaluations": 2,
    "evaluation_tokens": 512,
    "samples": 1,
}
# Laid over it, as a recipe's section is dumped
MUON = {
    "optimizer": "muon",
    "muon": {
        "learning_rate": 5e-3,
        "weight_decay": None,
        "momentum": 0.9,
        "nesterov": True,
        "ns_steps": 5,
    },
}
GPT3 = {"family": "gpt3", "layers": 4, "band": 8, "attention_bias": False, "dropout": 0.0}
MODEL = {"family": "gpt2", "layers": 2, "width": 32, "heads": 2, "context": 32, "dropout": 0.1}
STEPS = 40
NEEDS = ("pretrained", "tokenizer", "corpus")  # of a fine-tuning


def make_inputs(folder: Path) -> Path:
    """A tokenizer and tokens of two made-up sources, in `folder`."""
    from gpt_model.data.shards import SourceTexts, write
    from gpt_model.tokenizer import Tokenizer

    plays = [
        f"Act {i}. Enter the king, who says: {i * i} is the square of {i}, and {i * 7 % 13} is "
        "left. Exit.\n"
        for i in range(120)
    ]
    facts = [
        f"The number {i} follows {i - 1}; it is {'even' if i % 2 == 0 else 'odd'}.\n" * 2
        for i in range(150)
    ]
    tokenizer = Tokenizer.train(plays + facts, vocab_size=320)
    tokenizer.save(folder / "tokenizer")
    texts = {
        name: SourceTexts(weight, {"training": documents[10:], "held_out": documents[:10]})
        for name, weight, documents in (("plays", 0.7, plays), ("facts", 0.3, facts))
    }
    write(folder / "tokens", texts, tokenizer)
    return folder


class Ranks:
    """The ranks of a job as real processes, each forked off one that has the imports behind it,
    with no compiler within reach, but where it is asked for.
    """

    def __init__(
        self,
        inputs: Path,
        runs: list[dict[str, Any]],
        world_size: int = 2,
        *,
        compiler: bool = False,
    ) -> None:
        """A run: {"output": path, "what": "loop", "pretrained" or "finetuned", "zero_stage": 0-3,
        …}; the rest is `run`'s.
        """
        job = inputs / f"job-{id(runs)}.json"
        job.write_text(json.dumps({"inputs": str(inputs), "runs": runs}, default=str))
        common = {
            "WORLD_SIZE": world_size,
            "MASTER_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": 1,
            "PYTHONPATH": ROOT,
            "DS_ACCELERATOR": "cpu",
        }
        if not compiler:
            common |= {"CC": "/bin/false", "CXX": "/bin/false"}
        self.parents = [
            subprocess.Popen(
                [sys.executable, __file__, str(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={
                    **os.environ,
                    **{k: str(v) for k, v in common.items()},
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                },
            )
            for rank in range(world_size)
        ]
        self.start()

    def start(self) -> None:
        """Start the ranks; also again, after they were killed."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for parent in self.parents:
            assert parent.stdin is not None
            parent.stdin.write(f"{port}\n")
            parent.stdin.flush()
        self.pids = [
            int(self._read_until(parent, lambda line: line.startswith("pid ")).split()[1])
            for parent in self.parents
        ]

    def wait(self) -> None:
        """Wait for the end, which every rank is to reach."""
        printed = [parent.communicate(timeout=180)[0] for parent in self.parents]
        for rank, (parent, text) in enumerate(zip(self.parents, printed, strict=True)):
            assert parent.returncode == 0, f"rank {rank}: {text}"

    def kill_at(self, output: Path, done: float) -> None:
        """SIGKILL every rank as soon as rank 0 has said that it has done so much of the run in
        `output`, and wait until they are gone.
        """
        self._read_until(
            self.parents[0],
            lambda line: line.startswith(f"{output.name} ") and float(line.split()[1]) >= done,
        )
        for how in (
            signal.SIGSTOP,
            signal.SIGKILL,
        ):  # stopped first: none is to see another one's end
            for pid in self.pids:
                os.kill(pid, how)
        for parent in self.parents:
            self._read_until(parent, lambda line: line == "killed\n")

    def _read_until(self, parent: subprocess.Popen[str], wanted: Callable[[str], bool]) -> str:
        assert parent.stdout is not None
        seen = []
        for line in parent.stdout:
            if wanted(line):
                return line
            seen.append(line)
        others = [other.communicate(timeout=60)[0] for other in self.parents if other is not parent]
        raise AssertionError("\n".join(["it ended before:", "".join(seen), "the others:", *others]))


def read_record(output: Path) -> dict[str, Any]:
    """metrics: {step: {name: value}}, texts, log, result, modules."""
    document: dict[str, Any] = json.loads((output / "record.json").read_text())
    document["metrics"] = {int(step): values for step, values in document["metrics"].items()}
    return document


def write_record(output: Path, progress: RecordingProgress) -> None:
    """In one step: another run may wait for it."""
    written = output / "record.tmp"
    written.write_text(json.dumps({**progress.record, "modules": sorted(sys.modules)}))
    written.rename(output / "record.json")


class RecordingProgress:
    """A `Progress` that keeps what is reported in `record`."""

    def __init__(
        self,
        name: str,
        rank: int = 0,
        world_size: int = 1,
        hold: tuple[float, Path] | None = None,
        **profile: Any,
    ) -> None:
        """`hold`: from so much done on, rank 0 goes no further before this folder has a checkpoint.
        A test that kills the run later than that finds one, however slow the disk is.
        """
        from assets.recipe.profile import Profile

        self.hold = hold
        self.name, self.rank, self.world_size = name, rank, world_size
        self.profile = Profile.model_validate(
            {"name": "test", "processes": world_size, "checkpoint_seconds": 0.01, **profile}
        )
        self.record: dict[str, Any] = {"metrics": {}, "texts": [], "log": []}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.record["metrics"].setdefault(step, {}).update(values)

    def text(self, step: int, name: str, text: str) -> None:
        self.record["texts"].append([step, name, text])

    def log(self, message: str) -> None:
        self.record["log"].append(message)

    def advance(self, done: float, total: float, unit: str) -> None:
        if self.rank:
            return
        if self.hold and done >= self.hold[0]:
            while not any(self.hold[1].glob("step-*[0-9]")):
                time.sleep(0.01)
            self.hold = None
        print(self.name, done, flush=True)


def run(
    inputs: Path, job: Mapping[str, Any], rank: int = 0, world_size: int = 1
) -> RecordingProgress:
    """One run on this rank. Its final weights are OUTPUT/model.safetensors (the loop) or in
    OUTPUT/model/ (a stage).

    Of the loop and `pretrained`, {"section": {…}, "model": {…}} are laid over SECTION and MODEL,
    `pretrained` a "base", the output of a run that it goes on from, and "lora",
    and the loop takes a "micro_batch" and "resume", the output of a run whose checkpoints it goes on
    from, once that has ended. The other stages and experiments take their "config", the
    config "given" to their inputs, and which these are ("needs"). Of any, "hold" is (done, folder
    of checkpoints below the output).
    """
    from ppo_world import watched
    from safetensors.torch import save_file

    from assets.contract import Artifact
    from assets.execution.pretraining import LanguageModelling, model_shape, settings_of
    from assets.execution.tuning import execution_of
    from assets.stages.alignment import ALIGNED
    from assets.stages.experiments import ABLATIONS, LAYERS_TRANSFERRED
    from assets.stages.finetuning import FINETUNED
    from assets.stages.pretraining import PRETRAINED, batches_of
    from gpt_model.data.sampler import Sampler
    from gpt_model.data.shards import TokenData
    from gpt_model.training.loop import train
    from gpt_model.transformer import GPT

    output = Path(job["output"])
    output.mkdir(parents=True, exist_ok=True)
    if "resume" in job and rank == 0:
        while not (Path(job["resume"]) / "record.json").exists():
            time.sleep(0.05)
        shutil.copytree(Path(job["resume"]) / "checkpoints", output / "checkpoints")
    done, checkpoints = job.get("hold", (0, None))
    progress = RecordingProgress(
        output.name,
        rank,
        world_size,
        hold=(done, output / checkpoints) if checkpoints else None,
        zero_stage=job.get("zero_stage", 1),
        **job.get("profile", {}),
    )
    if stage := {
        item.name: item for item in (FINETUNED, LAYERS_TRANSFERRED, ABLATIONS, ALIGNED)
    }.get(job["what"]):
        given = {
            name: Artifact(inputs / name, name, name, name, job["given"], {})
            for name in job.get("needs", NEEDS)
        }
        with watched(progress.record, job.get("engine")):
            progress.record["result"] = stage.run(job["config"], given, output, progress)
        return progress
    config = {
        "model": {**MODEL, **job.get("model", {})},
        "pretraining": {**SECTION, **job.get("section", {})},
        **({"lora": job["lora"]} if "lora" in job else {}),
    }
    if job["what"] == "pretrained":
        given = {
            name: Artifact(inputs / name, name, "", "", {}, {}) for name in ("tokens", "tokenizer")
        }
        if "base" in job:
            given["base"] = Artifact(Path(job["base"]), "pretrained", "", "", config, {})
        with watched(progress.record):
            progress.record["result"] = PRETRAINED.run(config, given, output, progress)
        return progress
    data, section = TokenData(inputs / "tokens"), config["pretraining"]
    shape = model_shape(config, {}, data.vocab_size)
    execution = replace(execution_of(progress), compiler="aot_eager")  # needs no C compiler
    sampler = Sampler(data, shape.context, batches_of(section), section["seed"])
    model = GPT(shape, seed=section["seed"])
    settings = settings_of(section)
    objective = LanguageModelling(sampler, shape, execution, STEPS, job.get("micro_batch", 2))
    if "comms_logger" in progress.profile.deepspeed:
        progress.record |= {"exchanged_bytes": [], "parameters": shape.parameters()}
        objective.micro_batches = _counting(objective, progress.record)  # type: ignore[method-assign]
    with _counting_graphs(progress.record) if execution.compile else nullcontext():
        outcome = train(
            model,
            objective,
            settings,
            execution,
            checkpoints=output / "checkpoints",
            progress=progress,
        )
    progress.record["result"] = vars(outcome)
    if rank == 0:
        save_file(dict(model.named_parameters()), output / "model.safetensors")
    return progress


@contextmanager
def _counting_graphs(record: dict[str, Any]) -> Iterator[None]:
    """Notes how many graphs are compiled within, and where one breaks."""
    import torch._dynamo  # which no other run loads

    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    yield
    record["graphs"] = counters["stats"]["unique_graphs"]
    record["graph_breaks"] = dict(counters["graph_break"])


def _counting(objective: Any, record: dict[str, Any]) -> Callable[[int], Any]:
    """The objective's micro_batches, noting at the start of each step what DeepSpeed's collectives
    have taken and given so far: {operation: bytes}.
    """
    from deepspeed.comm.comm import comms_logger

    original = objective.micro_batches

    def micro_batches(step: int) -> Any:
        totals = {
            operation: sum(size * entry[0] for size, entry in sizes.items())  # entry: how often, …
            for operation, sizes in comms_logger.comms_dict.items()
        }
        record["exchanged_bytes"].append(totals)
        return original(step)

    return micro_batches


Layout = tuple[int, int]  # (ranks, ZeRO stage)


def change_half_way(
    inputs: Path,
    folder: Path,
    changes: Sequence[tuple[Layout, Layout]],
    optimizer: Mapping[str, Any] | None = None,
) -> tuple[float, dict[tuple[Layout, Layout], dict[str, Any]]]:
    """The last loss of 20 undisturbed steps of one rank; and the records of runs that change their
    layout after half of them. What one rank does is done in this process. `optimizer` is laid over
    the section.
    """

    def job(output: str, stage: int, tokens: int, **more: Any) -> dict[str, Any]:
        section = {"batch_tokens": 384, "warmup_tokens": 512, "decay_tokens": 7680}
        section |= optimizer or {}
        how = {"what": "loop", "model": {"dropout": 0.0}, "zero_stage": stage, **more}
        return {"output": folder / output, "section": {**section, "tokens": tokens}, **how}

    jobs: dict[int, list[dict[str, Any]]] = {1: [job("undisturbed", 0, 7680)]}
    for ranks, stage in dict.fromkeys(before for before, _ in changes):
        jobs.setdefault(ranks, []).append(job(f"half-{ranks}-{stage}", stage, 3840))
    for before, after in changes:
        half = folder / f"half-{before[0]}-{before[1]}"
        resumed = job(f"{before}-{after}", after[1], 7680, resume=half)
        jobs.setdefault(after[0], []).append(resumed)
    several = [Ranks(inputs, items, ranks) for ranks, items in jobs.items() if ranks > 1]
    for item in jobs[1]:
        write_record(item["output"], run(inputs, item))
    for group in several:
        group.wait()
    records = {change: read_record(folder / f"{change[0]}-{change[1]}") for change in changes}
    return read_record(folder / "undisturbed")["result"]["loss"], records


def work(job_path: Path) -> None:
    """Every run of a job that is not done yet."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    job = json.loads(job_path.read_text(encoding="utf-8"))
    if any(item.get("through_gloo") for item in job["runs"]):
        del os.memfd_create  # as on a system without it: nothing goes through shared memory
    for item in job["runs"]:
        if (Path(item["output"]) / "record.json").exists():
            continue
        progress = run(Path(job["inputs"]), item, rank, world_size)
        if rank == 0:
            write_record(Path(item["output"]), progress)


def main(job_path: Path) -> None:
    """Import what a rank needs; at each MASTER_PORT that comes in fork one that works, until one
    has come to its own end.
    """
    import gpt_model.finetuning.objective  # noqa: F401
    from gpt_model.training.engine import _import_deepspeed

    _import_deepspeed(compiling=False)
    for port in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.environ["MASTER_PORT"] = port.strip()
            print("pid", os.getpid(), flush=True)
            code = 1
            try:
                work(job_path)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)  # gloo's threads may hang the interpreter's teardown
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))
        print("killed", flush=True)
    sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
