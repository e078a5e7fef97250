"""What a stage has to do, and at what rate by default: FLOPs, bytes of text, …, from its section
and what is known of its inputs.

An input may be one that is planned only (`forecast.planned`). How seconds and bytes come of it,
with intervals, is `forecast.py`'s; how much there is of what is read, `forecast_sizes.py`'s. No
Dagster, MLflow or torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from assets.contract import Artifact, Config, Inputs
from assets.estimate.forecast_sizes import (
    BYTES_PER_TOKEN,
    SHORT,
    UNKNOWN,
    examples_of,
    text_of,
    tokens_of_example,
)
from assets.node import Node
from assets.recipe.profile import Profile
from assets.stages import base_model
from assets.stages.lstm import LSTM
from gpt_model.config import ModelConfig

# FLOP/s a CPU core sustains in training, float32: measured, 2.2·10^6 parameters at 6,700 tokens/s a
# core
CORE_FLOPS = 1e11
# FLOP/s a data-centre GPU sustains in training, bfloat16: not measured, a tenth to a third of what
# its maker prints
GPU_FLOPS = 1e14
READING = 0.5  # of that, passes forward alone over rows of many lengths
IMPORTED_BYTES = (
    5e8  # of a repository on the hub, which does not say its size beforehand: GPT-2 small's
)
ASSUMED = ModelConfig.published("gpt2-small")  # of an imported model before it is here
ASSUMING = "The imported model is not here yet, so GPT-2 small's size is assumed"


@dataclass(frozen=True)
class Work:
    """How much there is to do, and the two default rates, used where no earlier build tells better."""

    amount: float  # of `unit`; what seconds grow with
    unit: str
    size: float  # what the artifact's bytes grow with
    seconds_each: float  # seconds a unit of `amount`
    bytes_each: float  # bytes a unit of `size`
    seconds_factor: float = 3.0  # half-width of the default interval, as a factor
    bytes_factor: float = 2.0
    start_seconds: float = 0.5  # before the real work begins: importing torch, starting the engine
    # the factor by which `amount` and `size` themselves may be off, where nobody has told the size
    # of what is read
    unsure: float = 1.0
    doubt: str = "How much there is to read is unverified"  # why they may be

    @property
    def with_start(self) -> float:
        """`amount`, and what could be done in the seconds before it: what seconds are in proportion
        to, of small builds too.
        """
        return self.amount + self.start_seconds / self.seconds_each


def work_of(node: Node, config: Config, inputs: Inputs, profile: Profile) -> Work:
    """What the node has to do, by its stage."""
    from assets.estimate.forecast_alignment import ALIGNMENT  # which is made of this module's parts

    models = [inputs[name] for name in (base_model.BASE, "pretrained") if name in inputs]
    if "not_run" in config or any(map(base_model.not_run, models)):
        return NOTHING
    work = {**STAGES, **ALIGNMENT}.get(node.stage.name, lambda *_: NOTHING)(
        config, inputs, speed(profile)
    )
    if work.unit in OF_A_MODEL and any(shape_in(model) is None for model in models):
        return replace(work, unsure=max(work.unsure, UNKNOWN), doubt=ASSUMING)
    return work


# --- by stage ---

TRAINING, READ = OF_A_MODEL = ("training FLOPs", "forward FLOPs")
NOTHING = Work(1.0, "artifacts", 1.0, 0.2, 2e4, seconds_factor=5.0, bytes_factor=10.0)


def _corpus(config: Config, inputs: Inputs, flops: float) -> Work:
    texts = [text_of(source) for source in config["sources"]]
    size, unsure = sum(one.much for one in texts), max(one.unsure for one in texts)
    packages = any(source.get("package") for source in config["sources"])
    factor = 10.0 if packages else 1.5
    return Work(
        size,
        "bytes of sources",
        size,
        1 / 1e6,
        0.4,
        seconds_factor=5.0,
        bytes_factor=factor,
        unsure=unsure,
    )


def _tokenizer(config: Config, inputs: Inputs, flops: float) -> Work:
    text = _text_bytes(inputs["corpus"])
    return Work(
        text,
        "bytes of text",
        float(config["vocab_size"]),
        1 / 4e6,
        60.0,
        unsure=_unsure(inputs["corpus"]),
    )


def _tokens(config: Config, inputs: Inputs, flops: float) -> Work:
    text = _text_bytes(inputs["corpus"])
    return Work(
        text,
        "bytes of text",
        text,
        1 / 2e6,
        2 / BYTES_PER_TOKEN,
        bytes_factor=1.4,
        unsure=_unsure(inputs["corpus"]),
    )


def _pretrained(config: Config, inputs: Inputs, flops: float) -> Work:
    model = trained(config, inputs)
    values = float(model.parameters()) * max(
        1, config["pretraining"].get("snapshots", 0)
    )  # the last snapshot is the model
    amount = training_flops(model, config["pretraining"]["tokens"])
    # float32 weights, plus the tokenizer's files
    return Work(amount, TRAINING, values, 1 / flops, 4.3, bytes_factor=1.2, start_seconds=5.0)


def _finetuned(config: Config, inputs: Inputs, flops: float) -> Work:
    model = model_in(inputs["pretrained"], inputs)
    once, unsure = _finetuning_flops(config, model)
    amount, values = (
        2 * once,
        float(model.parameters()),
    )  # once from the pre-trained weights and once from random ones
    return Work(
        amount,
        TRAINING,
        values,
        1.5 / flops,
        4.3,
        seconds_factor=4.0,
        start_seconds=8.0,
        unsure=unsure,
    )


def _many_finetunings(config: Config, inputs: Inputs, flops: float, ways: int) -> Work:
    model = model_in(inputs["pretrained"], inputs)
    each = [(task["seeds"], *_finetuning_flops(task, model)) for task in config["tasks"]]
    amount, unsure = (
        ways * sum(seeds * once for seeds, once, _ in each),
        max(unsure for _, _, unsure in each),
    )
    return Work(
        amount,
        TRAINING,
        1.0,
        1.5 / flops,
        2e4,
        seconds_factor=4.0,
        bytes_factor=10.0,
        start_seconds=8.0,
        unsure=unsure,
    )


def _layers_transferred(config: Config, inputs: Inputs, flops: float) -> Work:
    kept = config["layers"] or range(model_in(inputs["pretrained"], inputs).layers + 1)
    return _many_finetunings(config, inputs, flops, 1 + len(kept))


def _ablations(config: Config, inputs: Inputs, flops: float) -> Work:
    return _many_finetunings(config, inputs, flops, 3 + (LSTM in inputs))


def _zero_shot(config: Config, inputs: Inputs, flops: float) -> Work:
    model = model_in(inputs["pretrained"], inputs)
    amount = reading_flops(
        model, 3e5 * max(1, len(config.get("suites") or ()))
    )  # tokens a suite on local data reads
    return Work(
        amount,
        READ,
        1.0,
        1 / (READING * flops),
        1e6,
        seconds_factor=5.0,
        bytes_factor=10.0,
        start_seconds=12.0,
    )


def _visible_context(config: Config, inputs: Inputs, flops: float) -> Work:
    """Windows of every length; only the last token's logits are made."""
    model, tokens = model_in(inputs["pretrained"], inputs), inputs["tokens"]
    contexts = config["contexts"] or [
        2**power for power in range((model.context - 1).bit_length())
    ] + [model.context]
    read = sum(min(config["positions"], held_out) * sum(contexts) for held_out in _held_out(tokens))
    amount = reading_flops(model, read) - 2.0 * read * model.width * model.vocab_size
    return Work(
        amount,
        READ,
        1.0,
        1 / (READING * flops),
        5e3,
        seconds_factor=4.0,
        bytes_factor=4.0,
        start_seconds=5.0,
    )


def _depth(config: Config, inputs: Inputs, flops: float) -> Work:
    """Every model on all held-out text, in windows that overlap by half. The models are trained by
    assets of their own.
    """
    tokens = inputs["tokens"]
    models = [model_in(one, inputs) for one in inputs.values() if one.stage == "pretrained"]
    amount = sum(reading_flops(model, 2 * sum(_held_out(tokens))) for model in models)
    unsure = _unsure(tokens)
    return Work(
        amount,
        READ,
        1.0,
        1 / (READING * flops),
        5e3,
        bytes_factor=4.0,
        start_seconds=5.0,
        unsure=unsure,
    )


def _zero_shot_dynamics(config: Config, inputs: Inputs, flops: float) -> Work:
    """Every snapshot of each network on every heuristic's examples."""
    networks = [one for one in inputs.values() if one.stage == "pretrained"]
    context = model_in(inputs["pretrained"], inputs).context
    asked = [
        _tokens_asked(task, told, config["examples"], context)
        for task, told in config["tasks"].items()
    ]
    amount = sum(
        one.config["pretraining"]["snapshots"] * reading_flops(model_in(one, inputs), sum(asked))
        for one in networks
    )
    return Work(
        max(1.0, amount),
        READ,
        1.0,
        1 / (READING * flops),
        2e4,
        seconds_factor=4.0,
        bytes_factor=4.0,
        start_seconds=5.0,
    )


def _imported(config: Config, inputs: Inputs, flops: float) -> Work:
    size = float(sum(file["bytes"] for file in config.get("files", ()))) or IMPORTED_BYTES
    known = 1.2 if config.get("files") else 10.0
    return Work(
        size,
        "bytes of weights",
        size,
        1 / 2e8,
        1.0,
        seconds_factor=5.0,
        bytes_factor=known,
        start_seconds=4.0,
    )


STAGES: dict[str, Callable[[Config, Inputs, float], Work]] = {
    "corpus": _corpus,
    "tokenizer": _tokenizer,
    "tokens": _tokens,
    "pretrained": _pretrained,
    "imported": _imported,
    "finetuned": _finetuned,
    "zero_shot": _zero_shot,
    "layers_transferred": _layers_transferred,
    "ablations": _ablations,
    "visible_context": _visible_context,
    "depth": _depth,
    "zero_shot_dynamics": _zero_shot_dynamics,
}


# --- models and what they read ---


def training_flops(model: ModelConfig, tokens: float) -> float:
    """Model FLOPs of training on `tokens` tokens, forward and backward."""
    return model.flops_per_token() * float(tokens)


def reading_flops(model: ModelConfig, tokens: float) -> float:
    """Model FLOPs of a pass forward over `tokens` tokens."""
    return training_flops(model, tokens) / 3


def speed(profile: Profile) -> float:
    """FLOP/s the profile is expected to sustain in training, where nothing was measured."""
    return (
        GPU_FLOPS * profile.processes
        if profile.device == "cuda"
        else CORE_FLOPS * profile.processes * profile.threads_each()
    )


def _finetuning_flops(config: Config, model: ModelConfig) -> tuple[float, float]:
    """Of one model on one task, and the factor by which they may be off; nothing of a task that is
    not run here.
    """
    if "not_run" in config:
        return 1.0, 1.0
    examples = examples_of(config)
    tokens = (
        examples.much
        * config["finetuning"]["epochs"]
        * tokens_of_example(config["source"], model.context)
    )
    return training_flops(model, tokens), examples.unsure


def _tokens_asked(heuristic: str, told: Config | None, examples: int, context: int) -> float:
    """Tokens read of a heuristic's examples: of sentiment each with either word after it; of what
    the corpus makes a sentence each.
    """
    if told is None:
        return float(examples * min(context, SHORT))
    if "not_run" in told:
        return 0.0
    return (
        examples
        * tokens_of_example(told["entry"], context)
        * (2 if heuristic == "sentiment" else 1)
    )


def _held_out(tokens: Artifact) -> list[float]:
    """Held-out tokens of each source."""
    return [
        value
        for name, value in tokens.metrics.items()
        if name.startswith("held_out/") and name.endswith("/tokens")
    ]


def _text_bytes(corpus: Artifact) -> float:
    """UTF-8 bytes of a corpus; of a planned one, from the bytes its compressed files will have
    (English: about 2.6 for each).
    """
    counted = sum(value for name, value in corpus.metrics.items() if name.endswith("/bytes"))
    return max(1.0, counted or 2.6 * corpus.size)


def _unsure(planned: Artifact) -> float:
    """Of one that is not built: the factor by which its size may be off."""
    return float(planned.manifest.get("unsure", 1.0))


def trained(config: Config, inputs: Inputs) -> ModelConfig:
    """The model that is pre-trained: the recipe's own, or an imported one that is trained further."""
    if base_model.BASE in inputs:
        return model_in(inputs[base_model.BASE], inputs)
    return ModelConfig(**config["model"], vocab_size=_vocabulary(inputs))


def model_in(artifact: Artifact, inputs: Inputs) -> ModelConfig:
    """An artifact's model; of an imported one that is not here, the one that is assumed."""
    shape = shape_in(artifact)
    return ModelConfig(**shape, vocab_size=_vocabulary(inputs)) if shape else ASSUMED


def shape_in(artifact: Artifact) -> dict[str, Any] | None:
    """The shape of an artifact's model; None where nobody knows it."""
    try:
        return base_model.shape(artifact)
    except OSError:
        return None


def _vocabulary(inputs: Inputs) -> int:
    """What the tokenizer has, or, before it is there, what it is to have."""
    tokenizer = inputs.get("tokenizer")
    told = tokenizer and (tokenizer.metrics.get("vocab_size") or tokenizer.config.get("vocab_size"))
    return int(told or ASSUMED.vocab_size)
