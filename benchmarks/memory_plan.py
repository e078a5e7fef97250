"""How near `plan`'s memory of a rank is to what training takes, at each ZeRO stage.

    python benchmarks/memory_plan.py [--ranks 2] [--layers 8 --width 768] [--json FILE]

Each rank is a process over gloo that trains three steps. Measured: its peak of resident memory over
what it had when DeepSpeed was imported and the ranks had met. The bar: within 15 %.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from assets.estimate import ZERO_STAGES, memory_per_rank  # noqa: E402
from benchmarks.bars import at_most, verdict  # noqa: E402
from gpt_model.config import ModelConfig  # noqa: E402

BAR = 0.15
STEPS, MICRO_BATCHES, SEQUENCES = 3, 2, 4


def shape(layers: int, width: int) -> ModelConfig:
    return ModelConfig(
        family="gpt2",
        layers=layers,
        width=width,
        heads=width // 64,
        context=256,
        vocab_size=8192,
        dropout=0.0,
    )


def train_as_rank(model_shape: ModelConfig, stage: int, checkpointing: bool) -> None:
    """One rank: prints its peak over what it had before the model, in bytes."""
    import torch

    from gpt_model.training.engine import Engine, Execution, start
    from gpt_model.training.optimizer import TrainingSettings
    from gpt_model.transformer import GPT

    class NextToken:
        def loss(self, model: torch.nn.Module, micro_batch: Any) -> Any:
            return model(*micro_batch), {}

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    execution = Execution(
        zero_stage=stage,  # type: ignore[arg-type]
        rank=rank,
        world_size=ranks,
        activation_checkpointing=checkpointing,
    )
    start(execution)
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    before = int(pages) * resource.getpagesize()
    settings = TrainingSettings(steps=STEPS, learning_rate=lambda step: 1e-3, precision="bfloat16")
    engine = Engine(GPT(model_shape, 0), NextToken(), settings, execution)
    for _ in range(STEPS):
        rows = torch.randint(
            model_shape.vocab_size, (MICRO_BATCHES, 2, SEQUENCES, model_shape.context)
        )
        engine.step([(row[0], row[1]) for row in rows], 1e-3, range(MICRO_BATCHES))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if rank == 0:
        print(json.dumps({"peak": peak - before}), flush=True)
    os._exit(0)


def measured(arguments: argparse.Namespace, stage: int, checkpointing: bool) -> float:
    """Bytes of rank 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "WORLD_SIZE": str(arguments.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed goes back at once
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, __file__, "--rank", str(stage), "--layers", str(arguments.layers)]
    command += ["--width", str(arguments.width), *(["--checkpointing"] if checkpointing else [])]
    processes = [
        subprocess.Popen(
            command,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(arguments.ranks)
    ]
    printed = [process.communicate() for process in processes]
    line = next(line for line in printed[0][0].splitlines() if line.startswith("{"))
    return float(json.loads(line)["peak"])


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model = shape(arguments.layers, arguments.width)
    if arguments.rank is not None:
        train_as_rank(model, arguments.rank, arguments.checkpointing)
    document: dict[str, Any] = {}
    for stage in ZERO_STAGES:
        for checkpointing in (False, True):
            planned = memory_per_rank(model, stage, arguments.ranks, SEQUENCES, checkpointing)
            peak = measured(arguments, stage, checkpointing)
            name = f"ZeRO {stage}{', blocks recomputed' if checkpointing else ''}"
            document[name] = {"planned": planned, "measured": peak}
            ratio = peak / planned
            print(
                f"{name}: planned {planned / 1e6:.0f} MB, measured {peak / 1e6:.0f} MB, "
                f"{ratio:.2f}",
                at_most("off by", abs(ratio - 1), BAR),
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1))
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
