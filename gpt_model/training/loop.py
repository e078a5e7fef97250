"""The one training loop: pre-training, fine-tuning, instruction tuning, reward model and PPO all
run in it.

An `Objective` is optimised with `TrainingSettings` on an `Execution`; evaluation, samples and
snapshots are `Hook`s. Nothing in here knows text. The engine (DeepSpeed) is in
`engine.py`, what survives a kill in `checkpoint.py`.

Everything a step does is a function of (settings, step): its batch is the objective's, its dropout
is seeded from (seed, step, rank, micro-batch), its learning rate the schedule's. So a run that was
killed and resumed from a checkpoint ends bit for bit where the undisturbed one would have.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gpt_model.errors import UserError
from gpt_model.progress import Progress
from gpt_model.training import gpu
from gpt_model.training.ahead import Ahead, on_device
from gpt_model.training.checkpoint import Checkpoints
from gpt_model.training.engine import Engine, Execution, Ranks, StepMetrics, start, sum_over_ranks
from gpt_model.training.failures import OutOfMemory
from gpt_model.training.optimizer import TrainingSettings
from gpt_model.training.trial import SizedObjective, choose_micro_batch
from gpt_model.transformer import Decoder

REPORTS = 1000  # metrics are reported at most about so many times a run, and at every evaluation


class Objective(Protocol):
    """What is optimised: a loss over batches, each batch a pure function of the step."""

    unit: str  # what is counted: "tokens", "examples"
    flops_per_unit: float  # model FLOPs, forward and backward; 0 where it is not reported

    def units_before(self, step: int) -> int:
        """Units of all steps before a step, over all ranks."""

    def micro_batches(self, step: int) -> Sequence[Any]:
        """This rank's micro-batches of a step (counted from 0), in the CPU's memory: a pure
        function of it and of what hooks did before it. As many on every rank: `batching.Idle` ones
        where a rank has no share of it. With a GPU it is called in a thread.
        """

    def loss(self, model: nn.Module, micro_batch: Any) -> tuple[Tensor, StepMetrics]:
        """The mean loss [] over a micro-batch, to be minimised, and metrics as (sum, count). The
        micro-batch's tensors are on the model's device.

        The loop averages the loss over micro-batches and ranks, and reports sum(sums) / sum(counts)
        of a metric over both; the names must be the same in every micro-batch and rank. Runs inside
        the engine's forward pass: call `model` as it stands.
        """


@dataclass(frozen=True)
class Hook:
    """Something done after given steps (0: before the first), with the model in evaluation mode, no
    gradients.

    `call(step, model)` returns numbers that are reported with that step's; all ranks must return,
    only rank 0's are heard. At ZeRO 3 a rank has a block of the model at a time, and
    `Decoder.weight` for a parameter. `ranks` says which ranks call it. "by part": each, doing what
    it wants within `sharded.reading(part)`, and at ZeRO 3 no pass outside of it. "together": each,
    making as many forward passes as the others. "first": rank 0 alone.
    """

    steps: Collection[int]
    call: Callable[[int, nn.Module], Mapping[str, float]]
    ranks: Ranks = "by part"


@dataclass(frozen=True)
class Outcome:
    """What a run came to. The trained weights are in the model that was handed in, whole, on every
    rank. One that was built sharded has none left: a hook has saved them.
    """

    steps: int
    resumed_from: int | None  # the step the last checkpoint was of
    loss: float  # the last reported one
    seconds: float  # in steps, evaluation apart, over all attempts that this result rests on
    units_per_second: float
    checkpoint_stall_seconds: float  # the longest time a checkpoint kept training waiting


def train(
    model: nn.Module,
    objective: Objective,
    settings: TrainingSettings,
    execution: Execution,
    *,
    checkpoints: Path | None,
    progress: Progress,
    hooks: Sequence[Hook] = (),
) -> Outcome:
    """Train `model` in place. Every rank calls it with the same arguments, its own `execution.rank`
    apart.

    `checkpoints`: a folder for this run alone, or None for a run short enough to start again.
    Raises UserError where the loss is no longer a number or the disk is full, OutOfMemory where a
    GPU's memory runs out.
    """
    try:
        return _Run(model, objective, settings, execution, checkpoints, progress, hooks).train()
    except torch.OutOfMemoryError as error:
        config = next(part.config for part in model.modules() if isinstance(part, Decoder))
        rows = objective.size.sequences if isinstance(objective, SizedObjective) else None
        raise OutOfMemory(error, "training", config, settings, rows) from error


class _Run:
    """One call of `train`: what its steps share."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: TrainingSettings,
        execution: Execution,
        checkpoints: Path | None,
        progress: Progress,
        hooks: Sequence[Hook],
    ) -> None:
        self.objective, self.settings, self.execution, self.progress, self.hooks = (
            objective,
            settings,
            execution,
            progress,
            hooks,
        )
        self.seconds = 0.0  # in steps, evaluation apart
        self.loss = math.nan
        start(execution)
        self.checkpoints = (
            Checkpoints(checkpoints, execution, progress.log) if checkpoints else None
        )
        manifest = self.checkpoints.latest() if self.checkpoints else None
        if self.checkpoints and manifest:
            self.checkpoints.load_weights(manifest, model)
        self.engine = Engine(model, objective, settings, execution)
        if execution.micro_batch_by_trial and isinstance(objective, SizedObjective):
            record = checkpoints.with_name("micro_batch.json") if checkpoints else None
            choose_micro_batch(objective, self.engine, record, progress.log)
        self.first, self.resumed_from = 0, None
        if self.checkpoints and manifest:
            self.checkpoints.load_moments(manifest, self.engine)
            self.first = self.resumed_from = int(manifest["step"])
            self.seconds, self.loss = float(manifest["seconds"]), float(manifest["loss"])
            progress.log(f"Goes on from the checkpoint of step {self.first} of {settings.steps}.")

    def _batches(self, ahead: bool) -> Ahead[Sequence[Any]]:
        """This rank's micro-batches of a step, on its device. With `ahead` the next step's are made
        during this one, but where a hook comes between: PPO's samples the episodes.
        """

        def on_this_device(step: int) -> Sequence[Any]:
            return on_device(self.objective.micro_batches(step), self.execution.device)

        def known(step: int) -> bool:
            hooked = any(step in hook.steps for hook in self.hooks)
            return ahead and step < self.settings.steps and not hooked

        return Ahead(on_this_device, known, gpu.use)

    def train(self) -> Outcome:
        # On CPUs a thread would take its time from the step
        with self._batches(ahead=self.execution.device == "cuda") as batches:
            return self._train(batches)

    def _train(self, batches: Callable[[int], Sequence[Any]]) -> Outcome:
        settings, objective = self.settings, self.objective
        every = max(1, settings.steps // REPORTS)
        if self.first == 0 and (values := self._hooks(0)):
            self.progress.metrics(0, values)
        mark, mark_step = time.perf_counter(), self.first  # since the last report, evaluation apart
        try:
            for step in range(self.first, settings.steps):
                done = step + 1
                loss, metrics, norm = self._step(step, batches(step))
                hooked = any(done in hook.steps for hook in self.hooks)
                if hooked or done % every == 0 or done == settings.steps:
                    values = self._report(step, loss, metrics, norm)
                    now = time.perf_counter()
                    values |= self._rates(
                        objective.units_before(done) - objective.units_before(mark_step), now - mark
                    )
                    self.seconds += now - mark
                    values |= self._hooks(done)
                    self.progress.metrics(done, values)
                    mark, mark_step = time.perf_counter(), done
                self.progress.advance(
                    objective.units_before(done),
                    objective.units_before(settings.steps),
                    objective.unit,
                )
                if self.checkpoints and done < settings.steps and self.checkpoints.due():
                    facts = {
                        "seconds": self.seconds + time.perf_counter() - mark,
                        "loss": self.loss,
                    }
                    self.checkpoints.save(self.engine, done, facts)
            if self.checkpoints:
                self.checkpoints.finish()
        except BaseException:
            if self.checkpoints:
                self.checkpoints.abandon()
            raise
        self.engine.close()
        return self._outcome()

    def _step(self, step: int, batch: Sequence[Any]) -> tuple[Tensor, list[StepMetrics], float]:
        """`Engine.step` of this step: loss [], metrics, gradient norm. Raises UserError where the
        training has diverged.
        """
        seeds = [
            _seed(self.settings.seed, step, self.execution.rank, index)
            for index in range(len(batch))
        ]
        loss, metrics, norm = self.engine.step(batch, self.settings.learning_rate(step), seeds)
        # The norm is the same on every rank, so all of them stop here; where the loss is not a
        # number, neither is the norm.
        if not math.isfinite(norm):
            raise UserError(
                f"At step {step} of {self.settings.steps} the gradient is {norm} and the loss on "
                f"rank {self.execution.rank} {float(loss)}: training has diverged. Lower "
                "learning_rate, lengthen warmup_tokens or lower gradient_clip in the recipe, and "
                "build again."
            )
        return loss, metrics, norm

    def _report(
        self, step: int, loss: Tensor, metrics: list[StepMetrics], norm: float
    ) -> dict[str, float]:
        """A step's loss [] and metrics over all ranks: one small all-reduce."""
        names = sorted(metrics[0])
        sums = torch.zeros(2 * len(names) + 1, dtype=torch.float64, device=self.execution.device)
        for part in metrics:
            for index, name in enumerate(names):
                sums[2 * index] += part[name][0]
                sums[2 * index + 1] += part[name][1]
        sums[-1] = loss
        sum_over_ranks(sums)
        *pairs, total = sums.tolist()
        self.loss = total / self.execution.world_size
        means = {
            name: pairs[2 * i] / pairs[2 * i + 1]
            for i, name in enumerate(names)
            if pairs[2 * i + 1]
        }
        return {
            "loss": self.loss,
            self.objective.unit: self.objective.units_before(step + 1),
            "learning_rate": self.settings.learning_rate(step),
            "gradient_norm": norm,
            **means,
        }

    def _rates(self, units: int, seconds: float) -> dict[str, float]:
        rate = units / seconds
        rates = {f"{self.objective.unit}_per_second": rate}
        flops = rate * self.objective.flops_per_unit
        for name, peak in (
            ("model_flops_utilisation", self.execution.peak_flops),
            ("data_sheet_utilisation", self.execution.data_sheet_flops),
        ):
            if peak:
                rates[name] = flops / peak
        return rates

    def _hooks(self, done: int) -> dict[str, float]:
        values: dict[str, float] = {}
        for hook in self.hooks:
            if done in hook.steps:
                with self.engine.evaluating(hook.ranks) as model:
                    if model is not None:
                        values.update(hook.call(done, model))
        return values

    def _outcome(self) -> Outcome:
        units = self.objective.units_before(self.settings.steps)
        return Outcome(
            steps=self.settings.steps,
            resumed_from=self.resumed_from,
            loss=self.loss,
            seconds=self.seconds,
            units_per_second=units / self.seconds if self.seconds else math.nan,
            checkpoint_stall_seconds=self.checkpoints.longest_stall if self.checkpoints else 0.0,
        )


def _seed(*parts: int) -> int:
    """A seed of 63 bits from whole numbers, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
