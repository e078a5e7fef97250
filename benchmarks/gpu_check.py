"""What a GPU does with this code, in 8 minutes and without a network: `make gpu-check`, the first
thing to run on a new machine.

    python benchmarks/gpu_check.py [--device cuda] [--small] [--part NAME …] [--output FILE]

Kernels against plain operators; tiny's shape trained on the GPU and on the CPU to the same bits per
byte; GPT-2 small and a shape of 1.5 billion parameters, 60 steps each, with and without
torch.compile; ZeRO 1 to 3 on one rank; a resumed training; generation and evaluation against
`transformers`, the captured step of generation against a plain one; a batch of PPO. Every part is a
separate process with a time limit, and what fails does not stop the next. A Markdown table with the
device's name is printed and written, for docs/performance.md; the status is 1 where a bar is missed
or a part failed.

`--device cpu --small` runs the same code on small shapes in some two minutes, without a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from assets.recipe.profile import Profile  # noqa: E402
from assets.recipe.recipe import load_recipe  # noqa: E402
from benchmarks import alignment_ppo  # noqa: E402
from benchmarks.throughput import make_inputs, run_pipeline  # noqa: E402
from gpt_model import GPT, ModelConfig, convert, generation  # noqa: E402
from gpt_model.config import PUBLISHED  # noqa: E402
from gpt_model.generation import generate  # noqa: E402
from gpt_model.ops import cross_entropy, varlen  # noqa: E402
from gpt_model.ops.sliding_window import sliding_window_attention  # noqa: E402
from gpt_model.progress import Silent  # noqa: E402
from gpt_model.training.batching import MicroBatchSize  # noqa: E402
from gpt_model.training.engine import Execution  # noqa: E402
from gpt_model.training.loop import Hook, train  # noqa: E402
from gpt_model.training.optimizer import MuonSettings, TrainingSettings  # noqa: E402

SECONDS = 480.0  # of all parts
TINY = load_recipe("tiny")
SMALLEST = {"family": "gpt2", "layers": 2, "width": 32, "heads": 2, "context": 32, "dropout": 0.0}
ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}


@dataclass(frozen=True)
class Setting:
    """Where the parts run, and whether on small shapes."""

    device: Literal["cpu", "cuda"]
    small: bool

    @property
    def precision(self) -> str:
        return "float32" if self.small else "bfloat16"

    def published(self, name: str) -> dict[str, Any]:
        """A published shape without dropout, or a very small one."""
        shape = PUBLISHED[name].model_dump(exclude={"vocab_size"}, exclude_none=True)
        return dict(SMALLEST) if self.small else shape | {"dropout": 0.0}


@dataclass(frozen=True)
class Row:
    """A row of the table. `met`: None where there is no bar."""

    what: str
    result: str
    bar: str = ""
    met: bool | None = None

    def markdown(self) -> str:
        verdict = {None: self.bar, True: f"{self.bar}: met", False: f"{self.bar}: **missed**"}
        return f"| {self.what} | {self.result} | {verdict[self.met]} |"


def below(what: str, value: float, bar: float) -> Row:
    return Row(what, f"{value:.2g}", f"≤ {bar:g}", value <= bar)


# Kernels


def kernels(setting: Setting) -> list[Row]:
    """The loss, windows, packed rows and compiled blocks against plain operators."""
    return [*_loss(setting), *_attention(setting), *_compiled(setting)]


def _loss(setting: Setting) -> list[Row]:
    rows, width, vocabulary = (256, 64, 1001) if setting.small else (16_384, 768, 50_257)
    kind = torch.float32 if setting.small else torch.bfloat16
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(rows, width, generator=draw).to(setting.device, kind).requires_grad_()
    weight = 0.05 * torch.randn(vocabulary, width, generator=draw)
    weight = weight.to(setting.device).requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,), generator=draw).to(setting.device)

    def ours() -> torch.Tensor:
        return cross_entropy.linear_cross_entropy(states, weight, targets)

    def compiled() -> torch.Tensor:
        with cross_entropy.compiled_passes("aot_eager" if setting.small else "inductor"):
            return ours()

    def torchs() -> torch.Tensor:
        options = torch.nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(states, weight.to(kind), targets, options=options)

    exact = F.cross_entropy(states.float() @ weight.t(), targets)
    gradients = torch.autograd.grad(exact, (states, weight))
    results = []
    for name, loss in {"ours": ours, "ours, compiled": compiled, "torch's": torchs}.items():
        value = loss()
        apart = [
            float((mine.float() - other.float()).norm() / other.float().norm())
            for mine, other in zip(
                torch.autograd.grad(value, (states, weight)), gradients, strict=True
            )
        ]
        if name != "torch's":
            error = abs(value.item() - exact.item()) / exact.item()
            results.append(below(f"loss, {name}: error", error, 1e-5 if setting.small else 1e-3))
            bar = 1e-4 if setting.small else 2e-2
            results.append(below(f"loss, {name}: error of its gradients", max(apart), bar))
        seconds = _seconds(setting, lambda loss=loss: loss().backward())
        results.append(
            Row(f"loss, {name}: {rows:,} rows, there and back", f"{1e3 * seconds:.2f} ms")
        )
    return results


def _attention(setting: Setting) -> list[Row]:
    heads, width, time_, band = (2, 16, 64, 8) if setting.small else (12, 64, 2048, 256)
    kind = torch.float32 if setting.small else torch.bfloat16
    draw = torch.Generator().manual_seed(0)
    fused = torch.randn(2 * time_, 3 * heads * width, generator=draw).to(setting.device, kind)
    lengths = (time_ // 3, time_ // 2, 2 * time_ - time_ // 3 - time_ // 2)
    packed = varlen.PackedSequences(torch.zeros(2 * time_, device=setting.device), lengths)
    results = []
    for window in (None, band):
        y = varlen.attention(fused, packed, heads, window, 0.0)
        parts = fused.float().unflatten(-1, (3, heads, width)).split(list(lengths))
        exact = torch.cat([_masked(*part.unbind(1), window) for part in parts]).flatten(1)
        error = float((y.float() - exact).norm() / exact.norm())
        name = "packed rows" + (f", windows of {band}" if window else "")
        results.append(below(f"{name}: error", error, 1e-5 if setting.small else 1e-2))
    query, key, value = (
        part.unflatten(-1, (heads, -1)).unflatten(0, (2, time_)).transpose(1, 2)
        for part in fused.chunk(3, -1)
    )
    y = sliding_window_attention(query, key, value, band)
    rows = [[part[row].float().transpose(0, 1) for part in (query, key, value)] for row in (0, 1)]
    exact = torch.stack([_masked(*row, band).transpose(0, 1) for row in rows])
    error = float((y.float() - exact).norm() / exact.norm())
    results.append(below(f"windows of {band}: error", error, 1e-5 if setting.small else 1e-2))
    windows = _seconds(setting, lambda: sliding_window_attention(query, key, value, band))
    dense = _seconds(
        setting, lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True)
    )
    results.append(Row(f"time of windows of {band} ÷ dense attention", f"{windows / dense:.2f}"))
    return results


def _masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, band: int | None
) -> torch.Tensor:
    """Attention of a sequence, each [tokens, heads, d], by a mask over all scores."""
    q, k, v = (part.transpose(0, 1) for part in (query, key, value))
    back = torch.arange(len(query), device=q.device)
    back = back[:, None] - back
    hidden = (back < 0) | (back >= (band or len(query)))
    scores = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).masked_fill(hidden, -math.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


def _compiled(setting: Setting) -> list[Row]:
    """A few steps with compiled blocks, recomputed or not, against plain ones."""
    config = ModelConfig(**SMALLEST | {"family": "gpt3", "band": 8}, vocab_size=311)
    results = []
    losses = {}
    for compiled, recomputed in ((False, False), (True, False), (True, True)):
        execution = Execution(
            device=setting.device,
            zero_stage=0,
            compile=compiled,
            compiler="aot_eager" if setting.small else "inductor",
            activation_checkpointing=recomputed,
        )
        losses[compiled, recomputed] = _train(config, execution, 4)
    for recomputed in (False, True):
        error = max(
            abs(mine - plain) / plain
            for mine, plain in zip(losses[True, recomputed], losses[False, False], strict=True)
        )
        name = "compiled blocks" + (", recomputed" if recomputed else "")
        results.append(below(f"{name}: error of four losses", error, 1e-4))
    return results


def _seconds(setting: Setting, call: Callable[[], Any], times: int = 10) -> float:
    """Median seconds of a call; the first calls are not counted."""
    taken = []
    for _ in range(2 if setting.small else 3 + times):
        _wait(setting)
        began = time.perf_counter()
        call()
        _wait(setting)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1 if setting.small else 3 :])


def _wait(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.synchronize()


# Training


class _Random:
    """The objective of predicting random tokens, the same at each step on every machine."""

    unit, flops_per_unit = "tokens", 0.0

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.size = MicroBatchSize(2, config.context, 4 * config.context)

    def units_before(self, step: int) -> int:
        return step

    def micro_batches(self, step: int) -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(step)
        shape = (4, self.config.context + 1)
        tokens = torch.randint(0, self.config.vocab_size, shape, generator=draw)
        return list(tokens.split(self.size.sequences))

    def full_micro_batch(self, sequences: int) -> torch.Tensor:
        """Tokens [sequences, context + 1]."""
        return torch.zeros(sequences, self.config.context + 1, dtype=torch.long)

    def loss(self, model: Any, micro_batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        """The mean loss [] of tokens [rows, context + 1]."""
        return model(micro_batch[:, :-1], micro_batch[:, 1:]), {}


class _Losses(Silent):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if "loss" in values:
            self.losses.append(values["loss"])


def _train(
    config: ModelConfig,
    execution: Execution,
    steps: int,
    muon: MuonSettings | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    **options: Any,
) -> list[float]:
    """The losses of so many steps."""
    settings = TrainingSettings(
        steps=steps, learning_rate=lambda _: 1e-3, muon=muon, precision=precision
    )
    progress = _Losses()
    objective = _Random(config)
    options = {"checkpoints": None} | options
    train(GPT(config, seed=1), objective, settings, execution, progress=progress, **options)
    return progress.losses


def _pipeline(setting: Setting, inputs: Path, case: dict[str, Any], **profile: Any) -> Any:
    """What the stage `pretrained` reports of the case."""
    fields = {"name": "check", "device": setting.device, "processes": 1, "zero_stage": 0}
    fields |= {"checkpoint_seconds": 100_000.0} | profile
    return run_pipeline(inputs, case, Profile.model_validate(fields))


def tiny(setting: Setting) -> list[Row]:
    """tiny's shape on the CPU and on the device: the same bits per byte."""
    assert TINY.model and TINY.tokenizer
    shape, vocabulary = TINY.model.model_dump(mode="json"), TINY.tokenizer.vocab_size
    if setting.small:
        shape, vocabulary = SMALLEST, 400
    case = {"model": shape, "batch_tokens": 64 * shape["context"], "precision": setting.precision}
    case |= {"vocab_size": vocabulary, "steps": 4 if setting.small else 100}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        make_inputs(Path(folder), vocabulary)
        bits = [
            _pipeline(each, Path(folder), case)["bits_per_byte"]
            for each in (Setting("cpu", setting.small), setting)
        ]
    return [
        Row(
            "tiny's shape: bits per byte on the CPU, on the device", f"{bits[0]:.4f}, {bits[1]:.4f}"
        ),
        below("tiny's shape: difference in bits per byte", abs(bits[0] - bits[1]), 0.01),
    ]


def _sized(name: str, bar: float, batch: int, *compiling: bool) -> Callable[[Setting], list[Row]]:
    """A part that trains a published shape for 60 steps. `bar`: of the data sheet's peak."""

    def part(setting: Setting) -> list[Row]:
        shape, vocabulary = setting.published(name), 400 if setting.small else 50_257
        case = {"model": shape, "precision": setting.precision, "vocab_size": vocabulary}
        case |= {"batch_tokens": (4 if setting.small else batch) * shape["context"]}
        case |= {"steps": 4 if setting.small else 60}
        results = []
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
            make_inputs(Path(folder), vocabulary, 2_000 if setting.small else 80_000)
            for compiled in compiling:
                # `aot_eager` is no profile's: without a GPU nothing is compiled here
                on = compiled and setting.device == "cuda"
                result = _pipeline(setting, Path(folder), case, compile=on)
                what = f"{name}, {'compiled' if on else 'plain'}"
                results.append(
                    Row(
                        f"{what}: tokens/s, of the measured peak, memory",
                        f"{result['tokens_per_second']:,.0f}, {result['utilisation']:.0%}, "
                        f"{result['peak_memory_bytes'] / 1e9:.1f} GB",
                    )
                )
                if used := result["data_sheet_utilisation"]:
                    met = used >= bar if compiled else None
                    results.append(
                        Row(f"{what}: MFU", f"{used:.1%}", f"≥ {bar:.0%}" if compiled else "", met)
                    )
        return results

    return part


def zero(setting: Setting) -> list[Row]:
    """ZeRO 1 to 3 on one rank, also with Muon: the losses of stage 0, and their memory."""
    config = ModelConfig(
        **setting.published("gpt2-small"), vocab_size=311 if setting.small else 50_257
    )
    losses, results = {}, []
    muon = MuonSettings(rate_multiplier=1.0, weight_decay=0.1)
    for how, stage in itertools.product((None, muon), (0, 1, 2, 3)):
        if setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        execution = Execution(device=setting.device, zero_stage=stage)  # type: ignore[arg-type]
        losses[how, stage] = _train(config, execution, 4, how)
        name = f"ZeRO {stage}" + (" with Muon" if how else "")
        if setting.device == "cuda":
            memory = torch.cuda.max_memory_allocated() / 1e9
            results.append(Row(f"{name} on one rank: memory", f"{memory:.1f} GB"))
        if stage:
            error = _largest_error(losses[how, stage], losses[how, 0])
            results.append(below(f"{name}: error of four losses", error, 1e-4))
    one, plain = (
        _train(config, Execution(device=setting.device, zero_stage=stage), 4, muon, "bfloat16")
        for stage in (1, 0)
    )
    name = "ZeRO 1 with Muon in bfloat16: error of four losses"
    return [*results, below(name, _largest_error(one, plain), 1e-2)]


def _largest_error(losses: Sequence[float], exact: Sequence[float]) -> float:
    return max(abs(loss - other) / other for loss, other in zip(losses, exact, strict=True))


def resume(setting: Setting) -> list[Row]:
    """A training that stops on its way and goes on, against one that does not."""
    config = ModelConfig(**SMALLEST, vocab_size=311)
    execution = Execution(device=setting.device, zero_stage=1, checkpoint_seconds=1e-9)
    whole = _train(config, execution, 8)

    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        checkpoints = Path(folder) / "checkpoints"

        def stop(step: int, model: Any) -> dict[str, float]:
            while not any(checkpoints.glob("step-*[0-9]")):  # it is written meanwhile
                time.sleep(0.01)
            raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            _train(config, execution, 8, checkpoints=checkpoints, hooks=[Hook([5], stop)])
        resumed = _train(config, execution, 8, checkpoints=checkpoints)
    error = abs(resumed[-1] - whole[-1]) / whole[-1]
    steps = len(resumed)
    return [
        Row("resumed: steps taken again of 8", str(steps), "< 8", steps < 8),
        below("resumed: error of the last loss", error, 1e-6),
    ]


# Reading and writing


def reading(setting: Setting) -> list[Row]:
    """Tokens a second written and read, against `transformers` on the same device."""
    shape = setting.published("gpt2-small")
    config = ModelConfig(**shape, vocab_size=400 if setting.small else 50_257)
    model = GPT(config, seed=1).to(setting.device).eval()
    other = convert.to_transformers(model).to(setting.device).eval()
    other.generation_config.max_length = None
    prompt, new = (8, 12) if setting.small else (32, 128)
    results = []

    def written(batch: int) -> tuple[float, float]:
        """Seconds of ours and of theirs."""
        prompts = torch.randint(1, config.vocab_size, (batch, prompt), device=setting.device)
        rows, mask = prompts.tolist(), torch.ones_like(prompts)
        options = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        options |= {"eos_token_id": None, "attention_mask": mask}
        return (
            _seconds(setting, lambda: generate(model, rows, new, temperature=0), 3),
            _seconds(setting, lambda: other.generate(prompts, **options), 3),
        )

    kind = torch.bfloat16
    with torch.no_grad(), torch.autocast(setting.device, kind, enabled=not setting.small):
        for batch in (1, 8, 64):
            ours, theirs = written(batch)
            results.append(
                Row(
                    f"generation, batch {batch}: tokens/s, times transformers'",
                    f"{batch * new / ours:,.0f}, {theirs / ours:.2f}",
                )
            )
        tokens = torch.randint(0, config.vocab_size, (8, config.context), device=setting.device)
        ours = _seconds(setting, lambda: model.loss_by_token(tokens, tokens), 5)
        theirs = _seconds(setting, lambda: other(input_ids=tokens, labels=tokens).loss, 5)
    results.append(
        Row(
            "evaluation: tokens/s, times transformers'",
            f"{tokens.numel() / ours:,.0f}, {theirs / ours:.2f}",
        )
    )
    return [*results, *_captured(setting, model)]


def _captured(setting: Setting, model: GPT) -> list[Row]:
    """The step of generation that is captured as a graph, against one that is not: in float32, by
    a nucleus, with a watcher, and over a window that slides.
    """
    new, room = (40, 16) if setting.small else (160, 100)
    length = model.config.context - room
    prompts = [[number + 1] * length for number in range(8)]
    # a CPU captures nothing: there the step of fixed shapes stands for it
    prepare = generation.PREPARE.get(setting.device, lambda step: step)

    def written(prepares: dict[str, Any]) -> tuple[list[list[int]], float]:
        """The texts and their seconds."""

        def write() -> list[list[int]]:
            options: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 1}
            return generate(model, prompts, new, **options, on_choice=lambda *_: None)

        with (
            mock.patch.dict(generation.PREPARE, prepares, clear=True),
            mock.patch.dict(generation.AHEAD, {setting.device: 16}),
        ):
            return write(), _seconds(setting, write, 3)

    plain, plain_seconds = written({})
    ours, seconds = written({setting.device: prepare})
    same = sum(mine == other for mine, other in zip(ours, plain, strict=True))
    return [
        Row(
            "captured step: texts as without", f"{same} of {len(plain)}", "all", same == len(plain)
        ),
        Row("captured step: times as fast as without", f"{plain_seconds / seconds:.2f}"),
    ]


def ppo(setting: Setting) -> list[Row]:
    """A batch of PPO: answers, rewards, updates; also where the models are shared out."""
    results = []
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        shape = alignment_ppo.SHAPE | (
            {"layers": 2, "width": 32, "heads": 2} if setting.small else {}
        )
        alignment_ppo.make_inputs(Path(folder), shape)
        batches = 1 if setting.small else 2
        stages: tuple[Literal[1, 3], ...] = (1, 3)
        for stage in stages:
            result = alignment_ppo.run_ours(
                Path(folder), "value model", batches, setting.device, stage
            )
            rate = alignment_ppo.BATCH / result["seconds"]
            finite = math.isfinite(result["reward"])
            name = f"PPO, {shape['layers']} × {shape['width']}, ZeRO {stage}: episodes/s"
            results.append(Row(name, f"{rate:.1f}", "finite rewards", finite))
    return results


@dataclass(frozen=True)
class Part:
    """What a part does, and the seconds that it may take."""

    run: Callable[[Setting], list[Row]]
    seconds: float


PARTS = {
    "kernels": Part(kernels, 80),
    "tiny": Part(tiny, 90),
    "gpt2-small": Part(_sized("gpt2-small", 0.45, 128, False, True), 130),
    "gpt2-xl": Part(_sized("gpt2-xl", 0.5, 16, True, False), 180),
    "zero": Part(zero, 60),
    "resume": Part(resume, 40),
    "reading": Part(reading, 90),
    "ppo": Part(ppo, 60),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small shapes, for a test on a CPU")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path("gpu-check.md"), help="the table")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # in a part
    given = parser.parse_args()
    setting = Setting(given.device, given.small)
    if given.alone:
        os.environ.update(ALONE)
        if given.small:
            torch.set_num_threads(1)
        rows = PARTS[given.part[0]].run(setting)
        given.output.write_text(json.dumps([vars(row) for row in rows]), encoding="utf-8")
        return 0
    ends, rows = time.monotonic() + SECONDS, []
    for name in given.part:
        began = time.monotonic()
        limit = min(PARTS[name].seconds, ends - began)
        if limit <= 0:
            rows.append(Row(name, f"no time left of {SECONDS:.0f} s", "runs", False))
            continue
        rows += _in_a_process(name, setting, limit)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    table = "\n".join(
        [f"### {_device(setting)}", "", "| what | result | bar |", "|---|---|---|"]
        + [row.markdown() for row in rows]
    )
    print(f"\n{table}")
    given.output.write_text(table + "\n", encoding="utf-8")
    return int(any(row.met is False for row in rows))


def _in_a_process(name: str, setting: Setting, limit: float) -> list[Row]:
    """A part's rows; one that says so where it failed or took longer than `limit` seconds."""
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        output = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--alone", "--part", name, "--output", str(output)]
        command += ["--device", setting.device, *(["--small"] if setting.small else [])]
        process = subprocess.Popen(command, start_new_session=True)  # its ranks end with it
        try:
            status: int | None = process.wait(timeout=max(0.0, limit))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if status == 0:
            return [Row(**row) for row in json.loads(output.read_text(encoding="utf-8"))]
    reason = f"took more than {limit:.0f} s" if status is None else f"ended with status {status}"
    return [Row(name, reason, "runs", False)]


def _device(setting: Setting) -> str:
    if setting.device == "cuda" and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"CPU, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
