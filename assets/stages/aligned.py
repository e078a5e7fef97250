"""aligned: policy_init after PPO-ptx against the reward model, InstructGPT's third step; and the
same without pre-training text.

The algorithm is gpt_model/alignment (`ppo.py`, `rollouts.py`), the loop gpt_model/training. Here:
how a recipe's section becomes both, what is measured on held-out prompts and held-out text, what is
written, what must hold of it. The artifact:

    model/          the moving average of the policy's weights, in a folder that `transformers` loads, with the chat template
    shape.json      its shape
    training.json   what was done and what came of it, as far as it is the same on every run: no seconds
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import (
    SCRATCH,
    Artifact,
    Built,
    Check,
    Config,
    Inputs,
    Metrics,
    Progress,
    Stage,
    Verdict,
)
from assets.report import aligned
from assets.report.human_data import hidden, shortened
from assets.stages import base_model, tuning_io
from gpt_model.errors import UserError, about_all_of

if TYPE_CHECKING:
    from gpt_model.rlhf.chat_template import ChatTemplate
    from gpt_model.rlhf.episodes import Episodes, RolloutModels, SamplingParams
    from gpt_model.rlhf.ppo import ActorCritic, PPOObjective
    from gpt_model.rlhf.rollouts import Rollouts
    from gpt_model.training.engine import Execution
from gpt_model.training.optimizer import TrainingSettings

MEASURED = 256  # held-out prompts that the policies before and after answer
SHOWN = 4  # of them, whose answers are shown on the way
WIDEST_RISE = 0.03  # of bits per byte on held-out text, that PPO-ptx may cost


# --- run ---


def align(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Train, answering held-out prompts as it goes; resumes from output/.scratch, mid-rollout too.
    Every rank runs it, rank 0 writes.
    """
    from assets.execution.training import execution_of
    from gpt_model import convert
    from gpt_model.rlhf import ema, reward_model
    from gpt_model.rlhf.chat_template import ChatTemplate
    from gpt_model.rlhf.episodes import SamplingParams
    from gpt_model.rlhf.ppo import ActorCritic
    from gpt_model.rlhf.records import evenly
    from gpt_model.rlhf.rollouts import CHUNK
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.training import measure
    from gpt_model.training.loop import Hook, train

    section, scratch = config["ppo"], output / SCRATCH
    folder = base_model.require(inputs, "policy_init").path / "model"
    tokenizer, start = Tokenizer.load(folder), convert.load(folder)
    scorer = reward_model.load(inputs["reward_model"].path)
    reward_model.check_vocabulary(Tokenizer.load(inputs["reward_model"].path / "model"), tokenizer)
    sampling = SamplingParams(
        tokenizer.end_of_text, section["max_new_tokens"], section["temperature"]
    )
    prompts = Prompts.read(
        inputs["prompts"],
        ChatTemplate(tokenizer),
        min(start.config.context, scorer.gpt.config.context),
        sampling,
    )
    progress.log(prompts.told())
    execution = execution_of(progress, fixed_shapes=False)

    chunk = progress.profile.micro_batch or CHUNK
    context = start.config.context
    model = ActorCritic(start, scorer, shared=section["value"] == "shared", seed=section["seed"])
    objective = objective_of(
        section,
        prompts.training,
        sampling,
        inputs.get("tokens"),
        context,
        scratch,
        execution,
        chunk,
    )
    rollouts, settings = objective.rollouts, settings_of(section)
    show = _shown(
        rollouts, section["evaluations"], prompts.shown, ChatTemplate(tokenizer), sampling, progress
    )
    hooks = [
        Hook(rollouts.steps, lambda step, actors: rollouts.between(step, actors.rollout_models())),  # type: ignore[operator]
        Hook(shown_steps(rollouts, section["evaluations"]), show),
    ]
    outcome = train(
        model,
        objective,
        settings,
        execution,
        checkpoints=scratch / "checkpoints",
        progress=progress,
        hooks=hooks,
    )
    ema.load_into(model.policy, rollouts.folder, rollouts.config.batches)
    model.eval()
    told = rollouts.batch(rollouts.config.batches - 1).metrics
    metrics: Metrics = {
        **_held_out(
            model,
            evenly(prompts.held_out, MEASURED),
            sampling,
            scratch / "held_out",
            section["seed"],
            execution,
            chunk,
        ),
        **_text(model, inputs.get("tokens"), execution),
        **{f"{name}_answers": told[f"{name}_so_far"] for name in ("empty", "not_a_number")},
        **{f"prompts_{name}": float(count) for name, count in prompts.counts().items()},
        "batches": rollouts.config.batches,
        "episodes": objective.units_before(outcome.steps),
        "steps": outcome.steps,
        "loss": outcome.loss,
        "seconds_in_steps": outcome.seconds,
        "checkpoint_stall_seconds": outcome.checkpoint_stall_seconds,
        "peak_memory_bytes": measure.peak_memory_bytes(execution),
    }
    if progress.rank == 0:
        timed = ("seconds_in_steps", "checkpoint_stall_seconds", "peak_memory_bytes")
        tuning_io.write(
            output,
            model.policy,
            tokenizer,
            {name: round(value, 4) for name, value in metrics.items() if name not in timed},
        )
    return metrics


def settings_of(section: Mapping[str, Any]) -> TrainingSettings:
    """The recipe's section as the loop takes it. The value model has its own learning rate."""
    from gpt_model.training.optimizer import TrainingSettings, warmup_constant

    each = steps_per_batch(section)
    steps = section["episodes"] // section["batch"] * each
    rate = warmup_constant(section["learning_rate"], section["warmup_batches"], each)
    value_rate = section["value_learning_rate"] / section["learning_rate"]
    return TrainingSettings.of(section, steps, rate, {"critic.": value_rate})


def steps_per_batch(section: Mapping[str, Any]) -> int:
    """Optimizer steps a batch of episodes."""
    return int(section["batch"] // section["minibatch"] * section["inner_epochs"])


def objective_of(
    section: Mapping[str, Any],
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    tokens: Artifact | None,
    context: int,
    scratch: Path,
    execution: Execution,
    chunk: int,
) -> PPOObjective:
    """The recipe's section as the loop's objective, with its rollouts in scratch."""
    from gpt_model.data.sampler import Sampler
    from gpt_model.data.shards import TokenData
    from gpt_model.rlhf.ppo import LossConfig, PPOObjective
    from gpt_model.rlhf.rollouts import Limits, RolloutConfig, Rollouts
    from gpt_model.training.optimizer import BatchSchedule

    if section["minibatch"] < execution.world_size:
        told = f"{section['minibatch']} episodes cannot be shared out to the profile's {execution.world_size} processes: give it fewer"
        raise UserError(f"{told}, or make minibatch larger.", field="ppo.minibatch")
    adaptive, stop = section["adaptive_kl"], section["stop"]
    rollout_config = RolloutConfig(
        prompts=prompts,
        sampling=sampling,
        batch_size=section["batch"],
        batches=section["episodes"] // section["batch"],
        steps_per_batch=steps_per_batch(section),
        kl_coefficient=section["kl"],
        unfinished_penalty=section["unfinished"],
        kl_target=(adaptive["target"], adaptive["horizon"]) if adaptive else None,
        gae_lambda=section["gae"],
        ema_decay=section["ema"],
        seed=section["seed"],
        limits=Limits(stop["kl"], stop["length"], stop["reward"]),
        chunk=chunk,
    )
    ptx = None
    if section["ptx_weight"] and (sequences := section["ptx_examples"] * section["minibatch"]):
        if tokens is None:
            raise UserError(
                "PPO-ptx takes pre-training text, and there is none: set ptx_weight to 0.",
                field="ppo.ptx_weight",
            )
        with about_all_of(".corpus"):
            ptx = Sampler(
                TokenData(tokens.path), context, BatchSchedule(sequences * context), section["seed"]
            )
    losses = LossConfig(
        section["clip"], section["value_clip"], section["value_weight"], section["ptx_weight"]
    )
    rollouts = Rollouts(scratch / "rollouts", scratch / "checkpoints", rollout_config, execution)
    return PPOObjective(
        rollouts,
        section["minibatch"],
        section["temperature"],
        losses,
        ptx,
        execution,
        section["seed"],
    )


@dataclass(frozen=True)
class Prompts:
    """Prompts as tokens, and of each split how many are too long to be answered."""

    training: list[list[int]]
    held_out: list[list[int]]
    shown: list[tuple[list[int], bool]]  # a few of these; and whether the licence covers the text
    left_out: Mapping[str, int]
    room: int  # tokens of a prompt at most

    @staticmethod
    def read(
        artifact: Artifact, template: ChatTemplate, context: int, sampling: SamplingParams
    ) -> Prompts:
        """Raises UserError where none can be answered within the context."""
        from gpt_model.rlhf.records import evenly, read_prompts

        room = (
            context - sampling.max_new_tokens - 1
        )  # one for the end that is read after a cut answer
        unseen, kept, left_out = hidden(artifact.path), {}, {}
        for split in ("training", "held_out"):
            laid = [
                (template.encode_prompt(prompt.turns), prompt.source not in unseen)
                for prompt in read_prompts(artifact.path, split)
            ]
            kept[split] = [one for one in laid if len(one[0]) <= room]
            left_out[split] = len(laid) - len(kept[split])
            if not kept[split]:
                raise UserError(
                    f"None of {len(laid)} {split} prompts leaves room for an answer: the context is {context} tokens and an answer up to "
                    f"{sampling.max_new_tokens}, so a prompt may have {max(0, room)}. Make max_new_tokens smaller, or give shorter prompts.",
                    field="ppo.max_new_tokens",
                )
        training, held_out = (
            [tokens for tokens, _ in kept[split]] for split in ("training", "held_out")
        )
        return Prompts(training, held_out, evenly(kept["held_out"], SHOWN), left_out, room)

    def counts(self) -> dict[str, int]:
        return {
            "training": len(self.training),
            "held_out": len(self.held_out),
            "left_out": sum(self.left_out.values()),
        }

    def told(self) -> str:
        return (
            f"{len(self.training)} prompts to answer, {len(self.held_out)} held out; {self.left_out['training']} and "
            f"{self.left_out['held_out']} longer than {self.room} tokens are left out."
        )


def shown_steps(rollouts: Rollouts, evaluations: int) -> list[int]:
    """After which steps the same prompts are answered: at the start, and so many times more, the
    last at the end.
    """
    from gpt_model.training.tuning import evaluation_steps

    batches = evaluation_steps(rollouts.config.batches, evaluations, at_start=True)
    return [batch * rollouts.config.steps_per_batch for batch in batches]


def _shown(
    rollouts: Rollouts,
    evaluations: int,
    prompts: Sequence[tuple[list[int], bool]],
    template: ChatTemplate,
    sampling: SamplingParams,
    progress: Progress,
) -> Callable[[int, Any], dict[str, float]]:
    """Samples: the same held-out prompts answered on the way, by the policy as it is."""
    from gpt_model.generation import generate

    def show(step: int, model: ActorCritic) -> dict[str, float]:
        if progress.rank == 0:
            texts, decode = [prompt for prompt, _ in prompts], template.tokenizer.decode
            written = generate(
                model.policy,
                texts,
                sampling.max_new_tokens,
                sampling.temperature,
                seed=0,
                stop=(sampling.end_of_text,),
            )
            for number, ((prompt, whole), answer) in enumerate(
                zip(prompts, written, strict=True), start=1
            ):
                text = decode(prompt) if whole else shortened(decode(prompt))
                progress.text(step, f"prompt {number}", f"[{text}]{decode(answer)}")
        return {}

    return show


# --- what came of it ---


def _held_out(
    model: ActorCritic,
    prompts: Sequence[list[int]],
    sampling: SamplingParams,
    folder: Path,
    seed: int,
    execution: Execution,
    chunk: int,
) -> dict[str, float]:
    """Answers to held-out prompts before and after: reward, length, and how far from the reference,
    each with its 95 % interval.
    """
    from gpt_model.rlhf.episodes import RolloutModels

    arms = {"before": model.reference, "after": model.policy}
    casts = {
        arm: RolloutModels(policy, model.reference, model.reward, None)
        for arm, policy in arms.items()
    }
    found = {
        arm: _answered(cast, prompts, sampling, folder / arm, seed, execution, chunk)
        for arm, cast in casts.items()
    }
    before, after = found["before"], found["after"]
    return {
        **_interval("reward_before", before.rewards),
        **_interval("reward", after.rewards),
        **_interval("reward_gain", after.rewards - before.rewards),  # prompt by prompt
        **_interval("kl", after.kl()),
        **_interval("length_before", before.action_counts),
        **_interval("length", after.action_counts),
        "entropy_before": float(before.entropy.mean()),
        "entropy": float(after.entropy.mean()),
        "ended_before": float(before.ended.float().mean()),
        "ended": float(after.ended.float().mean()),
        "answered": float(len(after)),
        "not_a_number": float((~after.rewards.isfinite()).sum()),
        "reward_before_spread": float(before.rewards[before.rewards.isfinite()].std(correction=0)),
    }


def _answered(
    cast: RolloutModels,
    prompts: Sequence[list[int]],
    sampling: SamplingParams,
    folder: Path,
    seed: int,
    execution: Execution,
    chunk: int,
) -> Episodes:
    """An answer to each prompt, shared out over the ranks. Collective."""
    import torch

    from gpt_model.rlhf.episodes import Episodes, sample_in_chunks

    size = max(1, min(chunk, -(-len(prompts) // execution.world_size)))
    ids, rank, ranks = range(len(prompts)), execution.rank, execution.world_size
    paths = list(sample_in_chunks(cast, prompts, ids, sampling, seed, folder, size, rank, ranks))
    torch.distributed.barrier()
    return Episodes.load(paths)


def _interval(name: str, values: Any) -> dict[str, float]:
    """The mean of those that are numbers, and its interval where there are several."""
    from gpt_model.statistics import mean_interval

    numbers = [float(value) for value in values if math.isfinite(value)]
    if not numbers:
        return {}
    ends = mean_interval(numbers).as_metrics(name) if len(numbers) > 1 else {}
    return {**ends, name: sum(numbers) / len(numbers)}


def _text(model: ActorCritic, tokens: Artifact | None, execution: Execution) -> dict[str, float]:
    """Bits per byte of held-out text, of the policy at the start and at the end; none where the
    recipe has no corpus. Collective.
    """
    from gpt_model.data.shards import TokenData
    from gpt_model.training import measure

    if tokens is None:
        return {}
    data = TokenData(tokens.path)
    start = measure.held_out(model.reference, data, execution, tuning_io.TEXT_TOKENS)
    before = measure.held_out_metrics(start, data.weights)["held_out/total_bpb"]
    found = measure.held_out(model.policy, data, execution, tuning_io.TEXT_TOKENS)
    after = measure.held_out_metrics(found, data.weights)
    return {
        **after,
        **measure.held_out_intervals(found),
        "bpb_before": before,
        "bpb_rise": after["held_out/total_bpb"] / before - 1,
    }


# --- checks ---


def _rewards_are_numbers(built: Built) -> Verdict:
    broken, empty, episodes = (
        built.metrics[name] for name in ("not_a_number_answers", "empty_answers", "episodes")
    )
    told = f"Of {episodes:,.0f} answers {broken:.0f} have a reward that is not a number, and {empty:.0f} say nothing."
    return Verdict(broken == 0, told, {"not_a_number": broken, "empty": empty})


def _has_not_run_away(built: Built) -> Verdict:
    """What stops a run between two batches, held against what the last one made of the policy."""
    from gpt_model.rlhf.rollouts import Limits, divergence

    m, stop = built.metrics, built.config["ppo"]["stop"]
    if not {"reward", "reward_before", "reward_before_spread"} <= set(m):
        return Verdict(False, "No answer to a held-out prompt has a reward that is a number.")
    told = {name: m[name] for name in ("kl", "length", "ended", "reward", "not_a_number")}
    first = {name: m[f"{name}_before"] for name in ("length", "ended", "reward")} | {
        "reward_std": m["reward_before_spread"]
    }
    reason = divergence(
        told, first, Limits(stop["kl"], stop["length"], stop["reward"]), int(m["answered"])
    )
    return Verdict(
        reason is None,
        f"On held-out prompts, at the end: {reason or 'KL, length and reward are within ppo.stop.'}",
    )


def _reward_rises(built: Built) -> Verdict:
    m = built.metrics
    if "reward_gain_low" not in m:
        return Verdict(False, "Too few held-out prompts to say.")
    told = f"On held-out prompts the reward rises from {m['reward_before']:.3f} to {m['reward']:.3f}, by {m['reward_gain']:.3f}"
    return Verdict(
        m["reward_gain_low"] > 0,
        f"{told} [{m['reward_gain_low']:.3f}, {m['reward_gain_high']:.3f}].",
        {"reward_gain": m["reward_gain"]},
    )


def _text_is_kept(built: Built) -> Verdict:
    m = built.metrics
    if "bpb_rise" not in m:
        return Verdict(True, "There is no corpus, so no held-out text to measure.")
    told = f"Held-out text takes {m['held_out/total_bpb']:.3f} bits per byte, {m['bpb_before']:.3f} before: {m['bpb_rise']:+.1%}"
    return Verdict(
        m["bpb_rise"] <= WIDEST_RISE,
        f"{told}, of at most {WIDEST_RISE:+.0%}.",
        {"bpb_rise": m["bpb_rise"]},
    )


ALIGNED = Stage(
    name="aligned",
    version="2",
    run=align,
    description="policy_init after PPO against the reward model (InstructGPT's third step): the moving average of the policy's weights.",
    kinds=("deepspeed", "pytorch"),
    checks=(
        tuning_io.LOSS_IS_FINITE,
        tuning_io.MODEL_LOADS,
        Check(
            "has_not_run_away",
            True,
            "After the last batch too the policy is within what stops a run.",
            _has_not_run_away,
        ),
        Check(
            "rewards_are_numbers", False, "Every answer's reward is a number.", _rewards_are_numbers
        ),
        Check(
            "reward_rises",
            False,
            "The reward on held-out prompts rises, interval and all.",
            _reward_rises,
        ),
        Check(
            "text_is_kept",
            False,
            "Held-out text takes at most 3 % more bits per byte than before.",
            _text_is_kept,
        ),
    ),
    show=aligned.show,
    ranks="profile",
    pool="training",
    model=True,
)
