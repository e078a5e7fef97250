"""Memory of a model that is shared out from the start: a GPT of 1 GB of weights at ZeRO 3 on four
ranks over gloo, built, brought into the engine, measured on held-out text, sampled and saved.

    python benchmarks/sharded_memory.py [--ranks 4] [--layers 16] [--width 1024]

The highest peak of a rank's resident memory is set beside its share: of the weights as they are
built; from then on of weights, gradients and two moments, four times as much. What a process takes
that has only imported everything is left out. Ranks have the worker's environment, but for the
allocator's settings: those keep what is freed, to save page faults, so that holes would count.
Training is left out: a step takes whole layers and their gradients on top, as DeepSpeed's
`stage3_max_live_parameters` and buckets say.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from assets.launch.launcher import MALLOC, worker_environment  # noqa: E402
from benchmarks.bars import at_most, verdict  # noqa: E402

SHARE, MORE = 1.3, 200e6  # a rank's peak over its imports is at most SHARE x its share + MORE
KINDS = 4  # in the engine: weights, gradients, two moments
VOCABULARY, CONTEXT = 50_257, 128
MILESTONES = ("built", "in the engine", "measured", "sampled", "saved")


def rank_main(job: dict[str, Any]) -> None:
    """One rank: the peaks so far, at each milestone, into OUTPUT/rank-N.json."""
    from training_ranks import RecordingProgress

    from assets.execution.pretraining import _sharded_model, _write_samples
    from gpt_model import convert
    from gpt_model.config import ModelConfig
    from gpt_model.data.shards import TokenData
    from gpt_model.io import peak_resident_bytes
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.training import measure
    from gpt_model.training.engine import Engine, Execution, start
    from gpt_model.training.optimizer import TrainingSettings

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    inputs, output = Path(job["inputs"]), Path(job["output"])
    # Gradients are exchanged by so many elements at a time, as on GPUs
    buckets = {"zero_optimization": {"reduce_bucket_size": 25_000_000}}
    execution = Execution(zero_stage=3, rank=rank, world_size=ranks, deepspeed=buckets)
    settings = TrainingSettings(steps=1, learning_rate=lambda step: 1e-4)
    start(execution)
    data, tokenizer = TokenData(inputs / "tokens"), Tokenizer.load(inputs / "tokenizer")
    progress = RecordingProgress("memory", rank, ranks)
    sample = _write_samples(data, tokenizer, {"samples": 2, "seed": 1}, progress)
    size = {"layers": job["layers"], "width": job["width"], "heads": job["width"] // 64}
    shape = ModelConfig(**size, context=CONTEXT, vocab_size=VOCABULARY)

    class Objective:
        def loss(self, model: Any, micro_batch: Any) -> Any:
            return model(*micro_batch), {}

    before = peak_resident_bytes()
    peaks = []
    model = _sharded_model({}, shape, settings, execution)
    peaks.append(peak_resident_bytes() - before)
    engine = Engine(model, Objective(), settings, execution)
    peaks.append(peak_resident_bytes() - before)
    with engine.evaluating("together") as view:
        measure.held_out(view, data, execution, 2048)  # type: ignore[arg-type]
    peaks.append(peak_resident_bytes() - before)
    with engine.evaluating("first") as view:
        if view is not None:
            sample(1, view)
    peaks.append(peak_resident_bytes() - before)
    with engine.evaluating("first") as view:
        if view is not None:
            convert.save(view, output / "model")  # type: ignore[arg-type]
    engine.close()
    peaks.append(peak_resident_bytes() - before)
    record = {"peaks": peaks, "parameters": shape.parameters()}
    (output / f"rank-{rank}.json").write_text(json.dumps(record))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may hang the interpreter's teardown


def measured(job: dict[str, Any], ranks: int) -> list[dict[str, Any]]:
    """What each rank wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    returning = {"MALLOC_MMAP_THRESHOLD_": "65536", "MASTER_PORT": str(port)}
    common = {k: v for k, v in worker_environment("cpu", ranks, 1).items() if k not in MALLOC}
    common |= returning
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--rank", json.dumps(job)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    for process in processes:
        if process.wait():
            sys.exit("a rank has failed")
    files = [Path(job["output"]) / f"rank-{rank}.json" for rank in range(ranks)]
    return [json.loads(file.read_text()) for file in files]


def main() -> int:
    """Print the highest rank's peak at each milestone, and the bar."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank_main(json.loads(options.rank))
    from training_ranks import make_inputs  # imports torch, which ranks do for themselves

    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(Path(folder) / "inputs")
        job = {"inputs": str(inputs), "output": folder}
        job |= {"layers": options.layers, "width": options.width}
        results = measured(job, options.ranks)
    share = 4 * results[0]["parameters"] / options.ranks
    print(f"{options.ranks} ranks, each with {share / 1e6:.0f} MB of the weights")
    by_milestone = zip(*(result["peaks"] for result in results), strict=True)
    for milestone, peaks in zip(MILESTONES, by_milestone, strict=True):
        kinds = 1 if milestone == "built" else KINDS
        most = (SHARE * kinds * share + MORE) / 1e6
        bar = at_most(f"peak until {milestone}", max(peaks) / 1e6, most, "MB")
        print(f"peak until it was {milestone}: {max(peaks) / 1e6:.0f} MB {bar}")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
