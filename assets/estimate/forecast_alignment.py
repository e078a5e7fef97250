"""What the stages of a recipe's `alignment` section have to do: FLOPs of training, of reading, and
of writing answers token by token.

As `forecast_work.py`, which has the rest and whose rates these are. How many rows of the hub's
collections there are is their cards' (not verified, so intervals are wide); lengths are
InstructGPT's means. Every figure errs on the side of more work. No torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assets.contract import Artifact, Config, Inputs
from assets.estimate.forecast_sizes import DEFAULT_EXAMPLES, UNKNOWN, UNVERIFIED, Amount
from assets.estimate.forecast_work import (
    READ,
    READING,
    TRAINING,
    Work,
    model_in,
    reading_flops,
    training_flops,
)
from gpt_model.config import ModelConfig

# Rows by data set, the training split: of their cards, not verified.
ROWS = {
    "OpenAssistant/oasst1": 84_437,
    "databricks/databricks-dolly-15k": 15_011,
    "Anthropic/hh-rlhf": 160_800,
    "openai/summarize_from_feedback": 92_858,
}
PROMPT, ANSWER = 256, 256  # tokens: above InstructGPT's mean prompt of 166 to 408, table 6
SLOW = (
    0.1  # of the rate of reading, that answers are written at: a token a pass, which memory bounds
)
TRAINED_BYTES, FROZEN_BYTES = (
    16,
    4,
)  # a parameter: weight, gradient and two moments in float32; a weight alone
HUMAN = ("demonstrations", "comparisons", "prompts")


def rows_of(section: Config) -> Amount:
    """Rows that a section of human data has, its held-out share included."""
    amounts = [_rows(source) for source in section.get("sources") or ()]
    return Amount(
        max(1.0, sum(one.much for one in amounts)),
        max((one.unsure for one in amounts), default=UNKNOWN),
    )


def _rows(source: Config) -> Amount:
    low, high = source.get("part") or (0.0, 1.0)
    there = ROWS.get(source.get("hub") or "")
    much = (there or DEFAULT_EXAMPLES) * (high - low)
    return Amount(min(much, source.get("limit") or much), UNVERIFIED if there else UNKNOWN)


def _trained_on(artifact: Artifact) -> Amount:
    rows = rows_of(artifact.config)
    kept = 1 - artifact.config.get("held_out", 0.0) - artifact.config.get("judge", 0.0)
    return Amount(rows.much * kept, rows.unsure)


def ppo_bytes(model: ModelConfig, shared_value: bool = False) -> int:
    """Bytes of PPO's four models over all ranks: policy and value trained, reference and reward
    model frozen. No activations or cache.
    """
    trained = 1 if shared_value else 2
    return model.parameters() * (trained * TRAINED_BYTES + 2 * FROZEN_BYTES)


# --- by stage ---


def _human(config: Config, inputs: Inputs, flops: float) -> Work:
    rows = rows_of(config)
    return Work(
        rows.much,
        "rows",
        rows.much,
        1 / 2e3,
        2e3,
        seconds_factor=5.0,
        bytes_factor=4.0,
        start_seconds=2.0,
        unsure=rows.unsure,
    )


def _tuning(
    config: Config,
    inputs: Inputs,
    flops: float,
    model: ModelConfig,
    tokens: Amount,
    copies: int = 1,
) -> Work:
    """Training on so many tokens; `copies` of the weights are kept, in float32."""
    amount = training_flops(model, tokens.much)
    values = float(copies * model.parameters())
    return Work(
        amount,
        TRAINING,
        values,
        1.5 / flops,
        4.3,
        seconds_factor=4.0,
        start_seconds=8.0,
        unsure=tokens.unsure,
    )


def _length(model: ModelConfig) -> int:
    return min(model.context, PROMPT + ANSWER)


def _supervised(config: Config, inputs: Inputs, flops: float) -> Work:
    model, rows, section = (
        model_in(inputs["pretrained"], inputs),
        _trained_on(inputs["demonstrations"]),
        config["supervised"],
    )
    tokens = Amount(rows.much * section["epochs"] * _length(model), rows.unsure)
    return _tuning(
        config, inputs, flops, model, tokens, section["epochs"]
    )  # each epoch is kept, the last as the model too


def _policy_init(config: Config, inputs: Inputs, flops: float) -> Work:
    model, rows, section = (
        model_in(inputs["pretrained"], inputs),
        _trained_on(inputs["demonstrations"]),
        config["policy_init"],
    )
    share = section["pretraining_share"]  # of sequences; those of text are as long as the context
    each = _length(model) + share / (1 - share) * model.context
    return _tuning(
        config, inputs, flops, model, Amount(rows.much * section["epochs"] * each, rows.unsure)
    )


def _reward_model(config: Config, inputs: Inputs, flops: float) -> Work:
    model, rows = model_in(inputs["start"], inputs), _trained_on(inputs["comparisons"])
    tokens = Amount(rows.much * config["reward_model"]["epochs"] * 2 * _length(model), rows.unsure)
    return _tuning(config, inputs, flops, model, tokens)


def _dpo(config: Config, inputs: Inputs, flops: float) -> Work:
    """Both answers of a pair by the model that is trained, and once more forward by the reference:
    a third as much again.
    """
    model, rows = model_in(inputs["policy_init"], inputs), _trained_on(inputs["comparisons"])
    tokens = Amount(rows.much * config["dpo"]["epochs"] * 2 * _length(model) * 4 / 3, rows.unsure)
    return _tuning(config, inputs, flops, model, tokens)


def writing_flops(model: ModelConfig, answers: float, new_tokens: int) -> float:
    """FLOPs of reading that would take as long as writing so many answers, every one to its end."""
    room = max(1, model.context - 1)
    written = min(new_tokens, room)
    return answers * (
        reading_flops(model, min(PROMPT, room)) + reading_flops(model, written) / SLOW
    )


def _aligned(config: Config, inputs: Inputs, flops: float) -> Work:
    """Episodes are written, read by reference, reward and value model, and trained on by policy and
    value; pre-training text beside it.
    """
    model, ppo = model_in(inputs["policy_init"], inputs), config["ppo"]
    length = min(model.context, PROMPT + ppo["max_new_tokens"])
    trained = 1 if ppo["value"] == "shared" else 2
    episode = training_flops(model, trained * ppo["inner_epochs"] * length) + 3 * reading_flops(
        model, length
    )
    text = training_flops(model, ppo["ptx_examples"] * model.context) if ppo["ptx_weight"] else 0.0
    writing = writing_flops(model, 1, ppo["max_new_tokens"]) / READING
    amount = ppo["episodes"] * (episode + text + writing)
    return Work(
        amount,
        TRAINING,
        float(model.parameters()),
        1.5 / flops,
        4.3,
        seconds_factor=5.0,
        start_seconds=15.0,
    )


def _instructed(config: Config, inputs: Inputs, flops: float) -> Work:
    """Every supervised epoch answers the prompts, and the reward model reads the answers."""
    model, asked, supervised = (
        model_in(inputs["supervised"], inputs),
        config["instructed"],
        inputs["supervised"].config,
    )
    answers = float(asked["prompts"] * supervised.get("supervised", {}).get("epochs", 1))
    return _answering(
        model, answers, asked["max_new_tokens"], flops, float(model.parameters()), 4.3
    )


def _preferences(config: Config, inputs: Inputs, flops: float) -> Work:
    """Every model there is answers the prompts, one of them best_of times over."""
    asked = config["preferences"]
    models = [
        name
        for name in (
            "pretrained",
            "supervised",
            "instructed",
            "policy_init",
            "aligned",
            "aligned_without_ptx",
            "dpo",
        )
        if name in inputs
    ]
    model = model_in(inputs[models[0]], inputs)
    answers = float(asked["prompts"] * (len(models) + asked["best_of"]))
    return _answering(model, answers, asked["max_new_tokens"], flops, answers, 2e3)


def _answering(
    model: ModelConfig,
    answers: float,
    new_tokens: int,
    flops: float,
    size: float,
    bytes_each: float,
) -> Work:
    amount = writing_flops(model, answers, new_tokens) + reading_flops(
        model, answers * min(model.context, PROMPT + new_tokens)
    )
    return Work(
        amount,
        READ,
        size,
        1 / (READING * flops),
        bytes_each,
        seconds_factor=5.0,
        bytes_factor=4.0,
        start_seconds=10.0,
    )


def _judge(config: Config, inputs: Inputs, flops: float) -> Work:
    rows = rows_of(inputs["comparisons"].config)
    return Work(
        rows.much,
        "rows",
        1.0,
        1 / 1e3,
        2e6,
        seconds_factor=5.0,
        bytes_factor=10.0,
        start_seconds=3.0,
        unsure=rows.unsure,
    )


ALIGNMENT: dict[str, Callable[[Config, Inputs, float], Work]] = {
    **dict.fromkeys(HUMAN, _human),
    "supervised": _supervised,
    "policy_init": _policy_init,
    "reward_model": _reward_model,
    "judge": _judge,
    "dpo": _dpo,
    "aligned": _aligned,
    "instructed": _instructed,
    "preferences": _preferences,
}


def memory_of_ppo(model: ModelConfig, section: Config, ranks: int) -> dict[str, Any]:
    """Bytes of PPO's models over all ranks, and a rank's part where each is shared out evenly (ZeRO
    3).
    """
    every = ppo_bytes(model, section["value"] == "shared")
    return {"bytes": every, "bytes_per_rank_shared_out": every // max(1, ranks)}
