"""How near `plan`'s memory of a rank is to what pre-training takes, at each ZeRO stage.

    python benchmarks/memory_plan.py [--ranks 1 2 4] [--shapes deep …] [--stages 2 3] [--json FILE]

Each rank is a process over gloo that builds the model as pre-training does (at ZeRO 3 in shares),
and trains two steps of two micro-batches. Measured is rank 0's peak of resident memory over what
it had after a step of a model of next to no size: the libraries, the kernels and the connections
are in memory then. The bar: within 15 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from assets.estimate import ZERO_STAGES  # noqa: E402
from assets.launch.launcher import HUGE_PAGES, MALLOC, free_port, worker_environment  # noqa: E402
from benchmarks.bars import at_most, verdict  # noqa: E402
from gpt_model.config import ModelConfig  # noqa: E402
from gpt_model.io import peak_resident_bytes  # noqa: E402
from gpt_model.training.memory import Setting, mapped_bytes, memory_per_rank  # noqa: E402

BAR = 0.15
STEPS, MICRO_BATCHES = 2, 2


def _shape(layers: int, width: int, **others: Any) -> ModelConfig:
    small = {"heads": width // 64, "context": 256, "vocab_size": 4096}
    return ModelConfig(**({"layers": layers, "width": width} | small | others))


SHAPES = {  # and the sequences of a micro-batch
    "deep": (_shape(6, 512), 2),
    "wide vocabulary": (_shape(2, 384, vocab_size=50_257), 2),
    "many tokens": (_shape(4, 256, context=512), 8),
    "long context": (_shape(4, 384, family="gpt3", context=1024), 2),
    "dropout": (_shape(4, 384, family="gpt1", context=512, dropout=0.1), 4),
}
SMALLEST = _shape(1, 64, context=64, vocab_size=256)


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    shape: str
    ranks: int
    zero_stage: int
    checkpointing: bool
    precision: str = "bfloat16"
    communication: str = "float32"
    memory_bytes: float | None = None  # that a rank may fill

    @property
    def name(self) -> str:
        recomputed = ", blocks recomputed" if self.checkpointing else ""
        sent = f", {self.communication} sent" if self.communication != "float32" else ""
        return (
            f"{self.shape}, {self.ranks} ranks, ZeRO {self.zero_stage}{recomputed}, "
            f"{self.precision}{sent}"
        )


def train_as_rank(case: Case) -> None:
    """One rank: prints what each phase takes at most over what there was before, bytes."""
    import torch

    from assets.execution.pretraining import initial_model
    from gpt_model.training.engine import Engine, Execution, start
    from gpt_model.training.optimizer import TrainingSettings

    class NextToken:
        def loss(self, model: torch.nn.Module, micro_batch: Any) -> Any:
            return model(*micro_batch), {}

    execution = Execution(
        zero_stage=case.zero_stage,  # type: ignore[arg-type]
        rank=int(os.environ["RANK"]),
        world_size=case.ranks,
        activation_checkpointing=case.checkpointing,
        communication=case.communication,  # type: ignore[arg-type]
        memory_bytes=case.memory_bytes,
    )
    settings = TrainingSettings(
        steps=STEPS,
        learning_rate=lambda step: 1e-3,
        precision=case.precision,  # type: ignore[arg-type]
    )
    start(execution)

    def train(shape: ModelConfig, sequences: int, seen: Callable[[str], None]) -> Engine:
        engine = Engine(
            initial_model({}, {}, shape, settings, execution), NextToken(), settings, execution
        )
        seen("built")
        watch(engine._deepspeed, seen)
        for _ in range(STEPS):
            rows = torch.randint(shape.vocab_size, (MICRO_BATCHES, 2, sequences, shape.context))
            engine.step([(row[0], row[1]) for row in rows], 1e-3, range(MICRO_BATCHES))
        return engine

    train(SMALLEST, 1, lambda phase: None).close()
    shape, sequences = SHAPES[case.shape]
    peaks: dict[str, int] = {}
    before = reset_peak()

    def seen(phase: str) -> None:
        peaks[phase] = max(peaks.get(phase, 0), peak_resident_bytes() - before)
        reset_peak()

    train(shape, sequences, seen)
    if execution.rank == 0:
        print(json.dumps(peaks), flush=True)
    os._exit(0)  # gloo's threads may hang the interpreter's teardown


def watch(deepspeed: Any, seen: Callable[[str], None]) -> None:
    """Call `seen` after each forward pass, backward pass (gradients are exchanged in it) and step
    of the optimizer.
    """
    for name in ("forward", "backward", "step"):
        method = getattr(deepspeed, name)

        def call(*args: Any, method: Any = method, name: str = name, **keywords: Any) -> Any:
            result = method(*args, **keywords)
            seen(name)
            return result

        setattr(deepspeed, name, call)


def reset_peak() -> int:
    """Forget the peak of resident memory so far; what is resident now, bytes. Of Linux alone."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak_resident_bytes()


def measured(case: Case, *, worker: bool) -> dict[str, float]:
    """Bytes of rank 0, by phase. `worker`: with the allocator set as a build's workers have it;
    else what is freed goes back at once.
    """
    common = worker_environment("cpu", case.ranks, 1)
    if not worker:
        common = {name: value for name, value in common.items() if name not in MALLOC | HUGE_PAGES}
        common["MALLOC_MMAP_THRESHOLD_"] = "65536"
    common |= {"MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--case", json.dumps(asdict(case))],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(case.ranks)
    ]
    printed = [process.communicate() for process in processes]
    lines = [line for line in printed[0][0].splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"{case.name}: a rank has failed: {printed[0][1][-2000:]}")
    phases: dict[str, float] = json.loads(lines[0])
    return phases


def planned(case: Case) -> float:
    shape, sequences = SHAPES[case.shape]
    setting = Setting(
        case.zero_stage,
        case.ranks,
        sequences,
        case.checkpointing,
        case.precision,  # type: ignore[arg-type]
        case.communication,  # type: ignore[arg-type]
    )
    # Resident memory has what the other ranks share, too
    return memory_per_rank(shape, setting) + mapped_bytes(shape, setting)


def main() -> int:
    """Print each case's bytes, planned and measured, and the bar."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--ranks", nargs="+", type=int, default=[2])
    parser.add_argument("--stages", nargs="+", type=int, default=list(ZERO_STAGES))
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--communication", default="float32")
    parser.add_argument(
        "--worker",
        action="store_true",
        help="the allocator as a build's workers have it: it keeps what a small model frees",
    )
    parser.add_argument("--memory-gb", type=float, help="that a rank may fill; default: any")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        train_as_rank(Case(**json.loads(options.case)))
    document: dict[str, Any] = {}
    for shape, ranks, stage, checkpointing in itertools.product(
        options.shapes, options.ranks, options.stages, (False, True)
    ):
        case = Case(
            shape,
            ranks,
            stage,
            checkpointing,
            options.precision,
            options.communication,
            options.memory_gb and options.memory_gb * 1e9,
        )
        phases, plan = measured(case, worker=options.worker), planned(case)
        document[case.name] = {"planned": plan, "measured": phases}
        peak = max(phases.values())
        bar = at_most(f"{case.name}, off by", abs(peak / plan - 1), BAR)
        print(
            f"{case.name}: planned {plan / 1e6:.0f} MB, measured {peak / 1e6:.0f} MB, "
            f"{peak / plan:.2f} {bar}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
