"""Runs the stage `aligned`: PPO, measured on held-out prompts and held-out text. The algorithm is
`gpt_model.rlhf`'s (`ppo.py`, `rollouts.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.contract import SCRATCH, Artifact, Built, Config, Inputs, Metrics, Progress, Verdict
from assets.execution import tuning
from assets.execution.tuning import execution_of
from assets.stages.alignment import WIDEST_RISE
from assets.stages.base_model import require
from gpt_model.data.sampler import Sampler
from gpt_model.data.shards import TokenData
from gpt_model.errors import UserError, about_all_of
from gpt_model.generation import generate
from gpt_model.rlhf import ema, reward_model
from gpt_model.rlhf.chat_template import ChatTemplate
from gpt_model.rlhf.episodes import Episodes, RolloutModels, roll_out
from gpt_model.rlhf.ppo import ActorCritic, LossConfig, PPOObjective
from gpt_model.rlhf.records import evenly, excerpt, read_prompts, unlicensed_sources
from gpt_model.rlhf.rollout_engine import SamplingParams
from gpt_model.rlhf.rollouts import Limits, RolloutConfig, Rollouts, divergence
from gpt_model.statistics import mean_interval
from gpt_model.tokenizer import Tokenizer
from gpt_model.training import measure
from gpt_model.training.batching import ROLLOUT_EPISODES
from gpt_model.training.engine import Execution
from gpt_model.training.loop import Hook
from gpt_model.training.optimizer import TrainingSettings
from gpt_model.training.schedules import BatchSchedule, warmup_constant
from gpt_model.training.sharded import reading
from gpt_model.training.tuning import evaluation_steps
from gpt_model.transformer import GPT

MEASURED = 256  # held-out prompts that the policies before and after answer
SHOWN_PROMPTS = 4  # held-out prompts whose answers are shown on the way
TIMINGS = ("seconds_in_steps", "checkpoint_stall_seconds", "peak_memory_bytes")

# Raised when tensors in scratch are renamed: an unfinished build of an earlier commit starts anew.
SCRATCH_FORMAT = "ppo-3"


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Train, answering held-out prompts on the way; resumes from output/.scratch, in the middle of
    a rollout too. Every rank runs it, rank 0 writes.
    """
    section, scratch = config["ppo"], output / SCRATCH / SCRATCH_FORMAT
    folder, scorer = require(inputs["policy_init"]).path / "model", inputs["reward_model"].path
    tokenizer = Tokenizer.load(folder)
    reward_model.check_vocabulary(Tokenizer.load(scorer / "model"), tokenizer)
    template = ChatTemplate(tokenizer)
    sampling = SamplingParams(
        tokenizer.end_of_text, section["max_new_tokens"], section["temperature"]
    )
    execution = execution_of(progress, fixed_shapes=False)
    model = actors_of(folder, scorer, section, execution)
    context = model.policy.config.context
    shortest = min(context, model.reward.gpt.config.context)
    prompts = EncodedPrompts.read(inputs["prompts"], template, shortest, sampling)
    progress.log(prompts.summary())
    objective = objective_of(
        section,
        prompts.training,
        sampling,
        inputs.get("tokens"),
        context,
        shortest,
        scratch,
        execution,
        progress.profile.micro_batch,
    )
    rollouts, batches = objective.rollouts, objective.rollouts.config.batches
    settings = settings_of(section)
    # The sample prompts are answered at the start, and `evaluations` times more.
    sampled = evaluation_steps(batches, section["evaluations"], at_start=True)

    def between(step: int, actors: Any) -> dict[str, float]:
        return rollouts.between(step, actors.rollout_models())

    finish = Finish(
        rollouts,
        evenly(prompts.held_out, MEASURED),
        inputs.get("tokens"),
        scratch / "held_out",
        functools.partial(tuning.save_model, output, tokenizer=tokenizer, rank=execution.rank),
    )
    hooks = [
        Hook(rollouts.steps, between, "by part"),
        Hook(
            [batch * rollouts.config.steps_per_batch for batch in sampled],
            _sampler(prompts.samples, template, sampling, progress),
            "by part",
        ),
    ]
    outcome = tuning.tune(
        model, objective, settings, execution, output, progress, hooks, finish=finish
    )
    last = rollouts.batch(batches - 1).metrics
    metrics: Metrics = {
        **finish.metrics,
        **{f"{name}_answers": last[f"{name}_so_far"] for name in ("empty", "not_a_number")},
        **{f"prompts_{name}": float(count) for name, count in prompts.counts().items()},
        "batches": batches,
        "episodes": objective.units_before(outcome.steps),
        "steps": outcome.steps,
        "loss": outcome.loss,
        "seconds_in_steps": outcome.seconds,
        "checkpoint_stall_seconds": outcome.checkpoint_stall_seconds,
        "peak_memory_bytes": measure.peak_memory_bytes(execution),
    }
    if progress.rank == 0:
        facts = {name: round(value, 4) for name, value in metrics.items() if name not in TIMINGS}
        tuning.write_facts(output, model.policy.config, facts)
    return metrics


def actors_of(
    policy: Path, reward: Path, section: Mapping[str, Any], execution: Execution
) -> ActorCritic:
    """Policy and reference of the folder `policy`, reward model and critic of the folder `reward`.
    Collective at ZeRO 3, where each rank has a share of each.
    """

    def read(folder: Path) -> GPT:
        return tuning.read_gpt(folder, section, execution)

    critic = None if section["value"] == "shared" else reward_model.load(reward, read)
    return ActorCritic(read(policy), critic, read(policy), reward_model.load(reward, read))


class Finish:
    """Gives the trained policy the weights of the moving average, measures and saves it."""

    def __init__(
        self,
        rollouts: Rollouts,
        prompts: Sequence[list[int]],
        tokens: Artifact | None,
        folder: Path,
        save: Callable[[GPT], None],
    ) -> None:
        """`prompts`: held-out ones. `folder`: their answers'. `save`: all ranks call it."""
        self.rollouts, self.prompts, self.tokens = rollouts, prompts, tokens
        self.folder, self.save = folder, save
        self.metrics: Metrics = {}

    def __call__(self, model: ActorCritic) -> None:
        execution = self.rollouts.execution
        ema.load_into(model.policy, self.rollouts.folder, self.rollouts.config.batches)
        self.metrics = {
            **_held_out_prompts(model, self.prompts, self.folder, self.rollouts),
            **_held_out_text(model, self.tokens, execution),
        }
        self.save(model.policy)


def settings_of(section: Mapping[str, Any]) -> TrainingSettings:
    """The recipe's section as the loop takes it. The critic has its own learning rate."""
    per_batch = steps_per_batch(section)
    rate = warmup_constant(section["learning_rate"], section["warmup_batches"], per_batch)
    critic = section["value_learning_rate"] / section["learning_rate"]
    steps = section["episodes"] // section["batch"] * per_batch
    return TrainingSettings.of(section, steps, rate, {"critic.": critic})


def steps_per_batch(section: Mapping[str, Any]) -> int:
    """Optimizer steps a batch of episodes."""
    return int(section["batch"] // section["minibatch"] * section["inner_epochs"])


def objective_of(
    section: Mapping[str, Any],
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    tokens: Artifact | None,
    context: int,
    longest: int,
    scratch: Path,
    execution: Execution,
    sequences: int | None,
) -> PPOObjective:
    """The recipe's section as an objective, with its rollouts in scratch. `context`: the policy's.
    `longest`: tokens of an episode that every model can read. `sequences` of a micro-batch, and of
    what a rank samples together, as the profile has it.
    """
    adaptive, stop = section["adaptive_kl"], section["stop"]
    config = RolloutConfig(
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
        limits=Limits(**stop),
        chunk=sequences or ROLLOUT_EPISODES,
    )
    return PPOObjective(
        Rollouts(scratch / "rollouts", scratch / "checkpoints", config, execution),
        section["minibatch"],
        section["temperature"],
        LossConfig(
            section["clip"], section["value_clip"], section["value_weight"], section["ptx_weight"]
        ),
        _pretraining_text(section, tokens, context),
        execution,
        section["seed"],
        longest,
        sequences,
    )


def _pretraining_text(
    section: Mapping[str, Any], tokens: Artifact | None, context: int
) -> Sampler | None:
    sequences = section["ptx_examples"] * section["minibatch"]
    if not (section["ptx_weight"] and sequences):
        return None
    if tokens is None:
        raise UserError(
            "PPO-ptx takes pre-training text, and there is none: set ptx_weight to 0.",
            field="ppo.ptx_weight",
        )
    with about_all_of(".corpus"):
        batches = BatchSchedule(sequences * context)
        return Sampler(TokenData(tokens.path), context, batches, section["seed"])


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts as tokens, and of each split how many are too long to be answered."""

    training: list[list[int]]
    held_out: list[list[int]]
    samples: list[
        tuple[list[int], bool]
    ]  # a few held-out ones; and whether their text may be shown
    too_long: Mapping[str, int]
    room: int  # tokens of a prompt at most

    @staticmethod
    def read(
        artifact: Artifact, template: ChatTemplate, context: int, sampling: SamplingParams
    ) -> EncodedPrompts:
        """Raises UserError where no prompt of a split can be answered within the context."""
        # One token for the end-of-text that the reward model reads after a cut answer.
        room = context - sampling.max_new_tokens - 1
        unlicensed = unlicensed_sources(artifact.path)
        fitting: dict[str, list[tuple[list[int], bool]]] = {}
        too_long = {}
        for split in ("training", "held_out"):
            encoded = [
                (template.encode_prompt(prompt.turns), prompt.source not in unlicensed)
                for prompt in read_prompts(artifact.path, split)
            ]
            fitting[split] = [prompt for prompt in encoded if len(prompt[0]) <= room]
            too_long[split] = len(encoded) - len(fitting[split])
            if not fitting[split]:
                raise UserError(
                    f"None of {len(encoded)} {split} prompts leaves room for an answer: the "
                    f"context is {context} tokens and an answer up to {sampling.max_new_tokens}, "
                    f"so a prompt may have {max(0, room)}. Make max_new_tokens smaller, or give "
                    "shorter prompts.",
                    field="ppo.max_new_tokens",
                )
        training, held_out = (
            [tokens for tokens, _ in fitting[split]] for split in ("training", "held_out")
        )
        samples = evenly(fitting["held_out"], SHOWN_PROMPTS)
        return EncodedPrompts(training, held_out, samples, too_long, room)

    def counts(self) -> dict[str, int]:
        return {
            "training": len(self.training),
            "held_out": len(self.held_out),
            "left_out": sum(self.too_long.values()),
        }

    def summary(self) -> str:
        return (
            f"{len(self.training)} prompts to answer, {len(self.held_out)} held out; "
            f"{self.too_long['training']} and {self.too_long['held_out']} longer than {self.room} "
            "tokens are left out."
        )


def _sampler(
    prompts: Sequence[tuple[list[int], bool]],
    template: ChatTemplate,
    sampling: SamplingParams,
    progress: Progress,
) -> Callable[[int, Any], dict[str, float]]:
    """A hook of the loop: the policy answers the same held-out prompts."""
    decode = template.tokenizer.decode

    def sample(step: int, model: Any) -> dict[str, float]:
        answers: list[list[int]] = []
        with reading(model.policy):
            if progress.rank == 0:
                answers = generate(
                    model.policy,
                    [tokens for tokens, _ in prompts],
                    sampling.max_new_tokens,
                    sampling.temperature,
                    seed=0,
                    stop=(sampling.end_of_text,),
                )
        for number, ((tokens, licensed), answer) in enumerate(
            zip(prompts, answers, strict=False), start=1
        ):
            text = decode(tokens) if licensed else excerpt(decode(tokens))
            progress.text(step, f"prompt {number}", f"[{text}]{decode(answer)}")
        return {}

    return sample


def _held_out_prompts(
    model: ActorCritic, prompts: Sequence[list[int]], folder: Path, rollouts: Rollouts
) -> dict[str, float]:
    """Reward, length and KL of answers to held-out prompts, before and after, with their 95 %
    intervals. Collective: the ranks share the prompts.
    """
    config, execution = rollouts.config, rollouts.execution
    size = max(1, min(config.chunk, -(-len(prompts) // execution.world_size)))

    def answer(policy: GPT, name: str) -> Episodes:
        paths = roll_out(
            rollouts.engine,
            RolloutModels(policy, model.reference, model.reward, None),
            prompts,
            range(len(prompts)),
            config.sampling,
            config.seed,
            folder / name,
            size,
            execution,
        )
        return Episodes.load(paths)

    before, after = answer(model.reference, "before"), answer(model.policy, "after")
    finite = before.rewards[before.rewards.isfinite()]
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
        "reward_before_spread": float(finite.std(correction=0)),
    }


def _interval(name: str, values: Iterable[Any]) -> dict[str, float]:
    """The mean of the values that are numbers, and its interval where there are several."""
    numbers = [float(value) for value in values if math.isfinite(value)]
    if not numbers:
        return {}
    ends = mean_interval(numbers).as_metrics(name) if len(numbers) > 1 else {}
    return {**ends, name: sum(numbers) / len(numbers)}


def _held_out_text(
    model: ActorCritic, tokens: Artifact | None, execution: Execution
) -> dict[str, float]:
    """Bits per byte of held-out text by the policy, and by the reference before; nothing where the
    recipe has no corpus. Collective.
    """
    if tokens is None:
        return {}
    data = TokenData(tokens.path)
    with reading(model.reference):
        reference = measure.held_out(model.reference, data, execution, tuning.HELD_OUT_TOKENS)
    before = measure.held_out_metrics(reference, data.weights)["held_out/total_bpb"]
    with reading(model.policy):
        policy = measure.held_out(model.policy, data, execution, tuning.HELD_OUT_TOKENS)
    after = measure.held_out_metrics(policy, data.weights)
    return {
        **after,
        **measure.held_out_intervals(policy),
        "bpb_before": before,
        "bpb_rise": after["held_out/total_bpb"] / before - 1,
    }


def rewards_are_numbers(built: Built) -> Verdict:
    broken, empty, episodes = (
        built.metrics[name] for name in ("not_a_number_answers", "empty_answers", "episodes")
    )
    summary = (
        f"Of {episodes:,.0f} answers {broken:.0f} have a reward that is not a number, and "
        f"{empty:.0f} say nothing."
    )
    return Verdict(broken == 0, summary, {"not_a_number": broken, "empty": empty})


def has_not_run_away(built: Built) -> Verdict:
    """What stops a run between two batches, applied to the policy after the last one."""
    m, stop = built.metrics, built.config["ppo"]["stop"]
    if not {"reward", "reward_before", "reward_before_spread"} <= set(m):
        return Verdict(False, "No answer to a held-out prompt has a reward that is a number.")
    metrics = {name: m[name] for name in ("kl", "length", "ended", "reward", "not_a_number")}
    initial = {name: m[f"{name}_before"] for name in ("length", "ended", "reward")}
    initial["reward_std"] = m["reward_before_spread"]
    reason = divergence(metrics, initial, Limits(**stop), int(m["answered"]))
    outcome = reason or "KL, length and reward are within ppo.stop."
    return Verdict(reason is None, f"On held-out prompts, at the end: {outcome}")


def reward_rises(built: Built) -> Verdict:
    m = built.metrics
    if "reward_gain_low" not in m:
        return Verdict(False, "Too few held-out prompts to say.")
    summary = (
        f"On held-out prompts the reward rises from {m['reward_before']:.3f} to "
        f"{m['reward']:.3f}, by {m['reward_gain']:.3f} [{m['reward_gain_low']:.3f}, "
        f"{m['reward_gain_high']:.3f}]."
    )
    return Verdict(m["reward_gain_low"] > 0, summary, {"reward_gain": m["reward_gain"]})


def text_is_kept(built: Built) -> Verdict:
    m = built.metrics
    if "bpb_rise" not in m:
        return Verdict(True, "There is no corpus, so no held-out text to measure.")
    summary = (
        f"Held-out text takes {m['held_out/total_bpb']:.3f} bits per byte, {m['bpb_before']:.3f} "
        f"before: {m['bpb_rise']:+.1%}, of at most {WIDEST_RISE:+.0%}."
    )
    return Verdict(m["bpb_rise"] <= WIDEST_RISE, summary, {"bpb_rise": m["bpb_rise"]})
