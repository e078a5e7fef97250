"""What a build takes: FLOPs, memory, disk and seconds, and the loss a pre-trained model reaches.

`gpt-lineage plan` shows it. Whoever starts a build freezes it with the artifact (`with_estimate`),
so that the scorecard can set estimated beside actual. Nothing here runs a stage or imports torch.

* Work and disk are closed forms of the recipe's section and of the inputs, built or only planned.
* Seconds are work at the median rate of earlier builds of the same stage on the same profile. Where
  the store has none, they are work at a default rate, and the basis says so.
* Memory of training by ZeRO stage is `gpt_model.training.memory`'s.
* Loss is the law that a scaling ladder of the same text fitted, of models within a factor of 30 in
  compute. Else it cannot be said from here, and the published law stands in for it, labelled.

An interval is given only where it was measured: by several earlier builds, or by a ladder. Sizes of
data sets on the hub are those of their cards.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from assets.contract import Artifact, Config, Inputs
from assets.node import Node
from assets.recipe.profile import Profile
from assets.stages import base_model
from assets.stages.experiments import FIT, LSTM_ASSET
from assets.stages.pretraining import batches_of, micro_batch, sequences_each
from assets.store.manifest import BUILD_AGAIN, MANIFEST
from assets.store.store import SHORT, Store
from gpt_model.config import ModelConfig
from gpt_model.errors import CorruptFile
from gpt_model.sizing import counted
from gpt_model.training.batching import ROLLOUT_EPISODES
from gpt_model.training.memory import Setting, memory_per_rank, stored_bytes

if TYPE_CHECKING:
    from assets.build import Request

Estimate = dict[str, Any]

# Default rates.
CORE_FLOPS = 1e11  # FLOP/s of a CPU core in float32 training: measured, 2.2·10^6 parameters
UTILISATION = 0.35  # of a profile's peak, in training: assumed, not measured
GPU_FLOPS = 1e14  # FLOP/s of a data-centre GPU in bfloat16 training: assumed, not measured
TUNING = 1 / 1.5  # of that, training on rows of many lengths
READING = 0.5  # of that, forward passes over rows of many lengths
WRITING = 0.1  # of the rate of reading, text written a token a pass, which memory bounds

# Sizes by default, where nobody states them.
ASSUMED_MODEL = ModelConfig.published("gpt2-small")
IMPORTED_BYTES = 5e8  # of a model repository: GPT-2 small's
TEXT_BYTES = 5e6  # of a source of text
ROWS = 3000  # of a data set of examples, demonstrations, comparisons or prompts
OPTIONS = 4  # of a multiple-choice question whose options are a list in a column
SHORT_EXAMPLE = 64  # tokens of an example without a passage
PROMPT, ANSWER = 256, 256  # tokens: above the means of InstructGPT's table 6, 166 to 408 a prompt
BYTES_PER_TOKEN = 3.5  # English text under a byte-level BPE of a few thousand tokens
SUITE_TOKENS = 3e5  # read by an evaluation suite on local data
WEIGHT_BYTES = 4.3  # a parameter of a model folder: float32, and the tokenizer's files

CANNOT_BE_SAID = "cannot be said from here"  # of a loss
# L(N, D) = E + A/N^α + B/D^β, nats a token (Hoffmann et al. 2022, equation 10): E, A, α, B, β; and
# FLOPs of their models, of 70 million parameters and 5 billion tokens to 16 and 500 billion.
PUBLISHED_LAW = (1.69, 406.4, 0.34, 410.7, 0.28)
PUBLISHED_FLOPS = (6 * 70e6 * 5e9, 6 * 16e9 * 500e9)
PF_DAY = 1e15 * 86_400  # FLOPs, as `gpt_model.scaling_laws` counts

MODEL_ASSUMED = "The imported model is not here yet: GPT-2 small's size is assumed."
TEXT_ASSUMED = f"{TEXT_BYTES / 1e6:.0f} MB are assumed of each source that states no size."
ROWS_ASSUMED = f"{ROWS:,} rows are assumed of each data set that states no size."
ROW_BYTES = SHORT_EXAMPLE * BYTES_PER_TOKEN
FILES_ASSUMED = f"A row of a local file is assumed to have {ROW_BYTES:.0f} bytes."

LADDER = "scaling"  # the stage whose artifact has a law
ZERO_STAGES = range(4)

SEVERAL = 3  # earlier builds from which a spread is taken
FAR = 30.0  # times smaller or larger in compute: beyond it a law of losses says nothing here
NEAR = 3.0  # times smaller or larger: within it, the spread of earlier builds is this build's too

SIZES = yaml.safe_load(Path(__file__).with_name("dataset_sizes.yaml").read_text(encoding="utf-8"))


class Amount(NamedTuple):
    """How much there is, and the sentence that says what was assumed of it, if anything was."""

    number: float
    assumption: str = ""


@dataclass(frozen=True)
class Work:
    """What a stage has to do, and what it leaves."""

    amount: float
    unit: str  # of `amount`; builds that count in another unit are not compared
    rate: float  # units a second, by default
    bytes: float  # of the published files
    start_seconds: float = 0.5  # before the work begins: importing torch, starting the engine
    assumption: str = ""

    @property
    def amount_with_start(self) -> float:
        """`amount` and what could be done in the start: what the seconds of small builds follow."""
        return self.amount + self.start_seconds * self.rate


def with_estimate(request: Request, store: Store) -> Request:
    """`request` with the estimate to freeze with its artifact; unchanged where that is built."""
    with suppress(CorruptFile):  # it is built again
        if store.find(request.fingerprint):
            return request
    artifacts = readable(store, request.say)
    answer = estimate(request.node, request.config, request.inputs, request.profile, artifacts)
    return replace(request, estimate=answer)


def readable(store: Store, say: Callable[[str], None]) -> list[Artifact]:
    """The store's artifacts, oldest first, without the damaged ones: `say` gets a sentence about
    each. Checked is what a plan reads: manifests, verdicts, and the files of ladders.
    """
    artifacts = []
    for artifact in store.artifacts(damaged=say):
        try:
            store.gate(artifact)
            _earlier_build(artifact)
            problems = store.verify(artifact) if artifact.stage == LADDER else []
        except CorruptFile as error:
            say(str(error))
            continue
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            problems = [f"{artifact.path.parent / MANIFEST} is damaged ({error!r})."]
        if problems:
            say(f"{problems[0]} Estimates leave it out. {BUILD_AGAIN}")
        else:
            artifacts.append(artifact)
    return artifacts


def estimate(
    node: Node, config: Config, inputs: Inputs, profile: Profile, artifacts: Sequence[Artifact]
) -> Estimate:
    """{"seconds": range, "bytes": range, "work": …, "basis": a sentence}; of pre-training also
    "loss_basis", and "loss" by a ladder or "published_loss", nats a token with its "floor".

    A range is {"expected": number}, with "low" and "high" where the interval was measured.
    `seconds` are those inside the stage, `bytes` the published files', `loss` held-out bits per
    byte. `artifacts`: the store's. An input may be a stand-in (`planned`).
    """
    flops, rate = default_rate(profile)
    idle = idle_ranks(config, profile.processes)
    work = work_of(node.stage.name, config, inputs, flops * (1 - idle / profile.processes))
    earlier = list(_earlier_builds(node.stage.name, work.unit, profile, artifacts))
    answer: Estimate = {
        "seconds": _seconds(work, earlier),
        "bytes": {"expected": work.bytes},
        "work": {"amount": work.amount, "with_start": work.amount_with_start, "unit": work.unit},
        "assumption": work.assumption,
        "basis": _basis(work, earlier, rate),
    }
    if idle:
        answer["basis"] += f" {idle} of {profile.processes} ranks have no row of a step."
    if node.stage.name == "pretrained" and base_model.BASE not in inputs:
        answer |= _loss(config, inputs, artifacts)
    return answer


def planned(node: Node, config: Config, answer: Estimate, inputs: Inputs) -> Artifact:
    """A stand-in for an artifact that is not built yet, as an input of further estimates.

    `answer`: the estimate of `node`, {} where the stage is not run.
    """
    if "model" not in config and (start := next(_models(inputs), None)):
        config = {**config, "model": _shape(start)} if _shape(start) else config
    metrics = _held_out_tokens(inputs["corpus"]) if node.stage.name == "tokens" else {}
    manifest = {
        "files": [{"path": "", "size": answer["bytes"]["expected"] if answer else 0.0}],
        "assumption": answer.get("assumption", ""),
        "vocab_size": _vocab_size(None, inputs),
    }
    return Artifact(Path("not built"), node.stage.name, "", "", config, metrics, manifest)


# Seconds and loss


def _seconds(work: Work, earlier: list[tuple[float, float]]) -> dict[str, float]:
    """At the median rate of (amount, seconds) of earlier builds, or at the default rate.

    Several of about this size give an interval of about 95 %: Student's, of the logarithms.
    """
    logs = [math.log(seconds / amount) for amount, seconds in earlier] or [-math.log(work.rate)]
    expected = work.amount_with_start * math.exp(statistics.median(logs))
    if len(logs) < SEVERAL or work.assumption or _distance(work, earlier) > NEAR:
        return {"expected": expected}
    factor = math.exp(2.2 * statistics.stdev(logs) * math.sqrt(1 + 1 / len(logs)))
    return {"low": expected / factor, "expected": expected, "high": expected * factor}


def _distance(work: Work, earlier: list[tuple[float, float]]) -> float:
    """By what factor the earlier build nearest in size is smaller or larger."""
    return math.exp(min(abs(math.log(work.amount_with_start / amount)) for amount, _ in earlier))


def _basis(work: Work, earlier: list[tuple[float, float]], rate: str) -> str:
    """What the seconds rest on."""
    if not earlier:
        return f"No earlier build on this profile: default rate, {rate}. {work.assumption}".strip()
    builds = f"{len(earlier)} earlier build{'s' if len(earlier) > 1 else ''} on this profile"
    distance = _distance(work, earlier)
    apart = f", the nearest {distance:,.0f} times apart in size" if distance > NEAR else ""
    return f"From {builds}{apart}. {work.assumption}".strip()


def _earlier_builds(
    stage: str, unit: str, profile: Profile, artifacts: Iterable[Artifact]
) -> Iterable[tuple[float, float]]:
    """(amount with the start, seconds) of the builds of `stage` on the same profile."""
    execution = _execution(profile.model_dump(mode="json"))
    for artifact in artifacts:
        earlier = _earlier_build(artifact) if artifact.stage == stage else None
        if earlier and (earlier.unit, earlier.execution) == (unit, execution):
            yield earlier.amount_with_start, earlier.seconds


class EarlierBuild(NamedTuple):
    """What a manifest says of how long its build took."""

    unit: str
    amount_with_start: float
    seconds: float
    execution: Mapping[str, Any]  # of its profile


def _earlier_build(artifact: Artifact) -> EarlierBuild | None:
    """None where the build tells nothing of seconds: it was resumed, so that only its last attempt
    was timed, it was not run, or its manifest has no estimate.
    """
    record = artifact.manifest["provenance"]
    work, seconds = (
        record.get("forecast", {}).get("work", {}),
        float(record.get("stage_seconds", 0.0)),
    )
    amount = work.get("with_start")
    if not amount or record.get("attempts") != 1 or "not_run" in artifact.metrics or seconds <= 0:
        return None
    execution = _execution(record["profile"])
    return EarlierBuild(work["unit"], float(amount), seconds, execution)


DEVICE_FACTS = ("memory_gb", "peak_tflops", "price_per_hour")  # of a profile, for `plan` alone


def _execution(profile: Mapping[str, Any]) -> dict[str, Any]:
    """What of a profile bears on speed."""
    ignored = ("name", "description", "checkpoint_seconds", *DEVICE_FACTS)
    return {key: value for key, value in profile.items() if key not in ignored}


def _loss(config: Config, inputs: Inputs, artifacts: Iterable[Artifact]) -> Estimate:
    """Bits per byte by the newest ladder of models of the same tokens and family, if there is one
    of about this compute; else nats a token by the published law, where that reaches so far.
    """
    model, digest = _trained(config, inputs), inputs["tokens"].digest
    ladders = []
    for artifact in artifacts:
        entries = artifact.manifest["inputs"] if artifact.stage == LADDER else ()
        if any((entry["name"], entry["digest"]) == ("tokens", digest) for entry in entries):
            fit = json.loads((artifact.path / FIT).read_text(encoding="utf-8"))
            if fit.get("family") == model.family:  # another network has another law
                ladders.append((artifact, fit))
    tokens = config["pretraining"]["tokens"]
    flops = training_flops(model, tokens)
    reason = "the store has no ladder of models of this text and family"
    if ladders:
        ladder, fit = ladders[-1]
        beyond = _beyond(flops / PF_DAY, fit["compute"])
        name = f"ladder {ladder.fingerprint[:SHORT]}"
        if beyond <= FAR:
            return _loss_by_ladder(model, tokens, name, fit, beyond)
        reason = f"{name} of the same text is {beyond:,.0f} times away in compute"
    answer: Estimate = {"loss_basis": f"It {CANNOT_BE_SAID}: {reason}."}
    if _beyond(flops, PUBLISHED_FLOPS) <= FAR:
        floor, scale, exponent, data_scale, data_exponent = PUBLISHED_LAW
        above = scale / model.parameters() ** exponent + data_scale / tokens**data_exponent
        answer["published_loss"] = {"expected": floor + above, "floor": floor}
        answer["loss_basis"] += (
            f" The published law is L = {floor} + {scale}/N^{exponent} + {data_scale}/D^"
            f"{data_exponent} (Hoffmann et al. 2022, equation 10), of another text and tokenizer."
        )
    return answer


def _loss_by_ladder(
    model: ModelConfig, tokens: int, name: str, fit: Mapping[str, Any], beyond: float
) -> Estimate:
    """By the law `fit` of a ladder, whose models are `beyond` times away in compute."""
    from gpt_model.scaling_laws import Law  # SciPy takes a second, which most plans need not pay

    law, compute = Law.from_json(fit["bpb"]), training_flops(model, tokens) / PF_DAY
    low, high = law.interval(compute, 0.95)
    basis = f"The law of {fit['models']} models of the same text, {name}"
    basis += f", {beyond:,.0f} times beyond them in compute" if beyond > NEAR else ""
    ratio, (least, most) = tokens / counted(model), fit["ratios"]
    if not least / NEAR < ratio < most * NEAR:
        basis += f"; it has {least:.3g} to {most:.3g} tokens a parameter, this model {ratio:.3g}"
    loss = {"low": low, "expected": law.at(compute), "high": high}
    return {"loss": loss, "loss_basis": f"{basis}."}


def loss_text(answer: Estimate) -> str:
    """The loss that is estimated of a pre-training, or that it cannot be said."""
    if loss := answer.get("loss"):
        return f"{loss['expected']:.2f} ({loss['low']:.2f} to {loss['high']:.2f}) bits per byte"
    if law := answer.get("published_loss"):
        return (
            f"{CANNOT_BE_SAID}; the published law has {law['expected']:.2f} nats a token of its "
            f"own text, of which {law['floor']} is its floor"
        )
    return CANNOT_BE_SAID


def _beyond(compute: float, span: Sequence[float]) -> float:
    """How many times smaller or larger than all of a span; 1 inside it."""
    return max(compute / span[1], span[0] / compute, 1.0)


# Memory


def training_setting(
    profile: Profile, precision: str, micro_batch: int, muon: bool = False
) -> Setting:
    """A training in `precision` on the profile, as far as it bears on memory. What `deepspeed`
    moves to a host's memory is counted on the device.
    """
    return Setting(
        zero_stage=profile.zero_stage,
        ranks=profile.processes,
        micro_batch=micro_batch,
        checkpointing=profile.activation_checkpointing,
        precision=precision,  # type: ignore[arg-type]
        communication=profile.sent(),
        device=profile.device,
        compile=profile.compile,
        muon=muon,
        hosts=profile.hosts.count() if profile.hosts else 1,
    )


def smallest_profile(
    model: ModelConfig, setting: Setting, batch: int, memory: float
) -> dict[str, Any]:
    """The fields of a profile with the fewest ranks, and of those with the least sharding, on which
    training takes at most `memory` bytes a rank and `batch`, sequences, are shared out evenly.
    Where no number of ranks will do, the most there are, on devices of more memory. `setting`: what
    else the profile says.
    """
    rank_numbers = [number for number in range(1, batch + 1) if batch % number == 0]
    for ranks, sparing, stage in itertools.product(rank_numbers, (False, True), ZERO_STAGES):
        smaller = replace(
            setting, ranks=ranks, checkpointing=sparing, zero_stage=stage, micro_batch=1
        )
        fields = {"processes": ranks, "zero_stage": stage, "micro_batch": 1}
        fields |= {"activation_checkpointing": sparing}
        if (needed := memory_per_rank(model, smaller)) <= memory:
            return fields
    return {**fields, "memory_gb": math.ceil(needed / 1e9)}


def ppo_bytes(model: ModelConfig, shared_value: bool) -> int:
    """Bytes of PPO's models over all ranks, without activations and cache.

    Policy and critic are trained (16 bytes a parameter: weight, gradient, two moments), reference
    and reward model are not (4 each).
    """
    return model.parameters() * ((1 if shared_value else 2) * 16 + 2 * 4)


def ppo_bytes_per_rank(
    model: ModelConfig, section: Config, profile: Profile, zero_stage: int, ranks: int
) -> float:
    """Bytes that PPO by `section` takes on each rank: the state that `memory_per_rank` counts, of
    policy and critic; of reference and reward model the weights alone.

    On top comes the larger of two: the activations of a step; or, while answers are sampled, keys
    and values of a chunk of episodes, and at ZeRO 3 one model's embeddings and a block of it.
    """
    models = 1 if section["value"] == "shared" else 2
    whole, shard = 4 * model.parameters(), 1 / ranks
    weights = (models + 2) * whole * (shard if zero_stage == 3 else 1)
    gradients = models * whole * (shard if zero_stage >= 2 else 1)
    optimizer = models * whole * (3 * shard if zero_stage >= 1 else 2)
    rows = sequences_each(profile, model.context)
    setting = training_setting(profile, section["precision"], rows)
    step = models * stored_bytes(model, setting)
    episodes = min(profile.micro_batch or ROLLOUT_EPISODES, -(-section["batch"] // ranks))
    tokens = episodes * min(model.context, PROMPT + section["max_new_tokens"])
    reduced = profile.device == "cuda" and section["precision"] == "bfloat16"
    sampling: float = (2 if reduced else 4) * tokens * 2 * model.layers * model.width
    if zero_stage == 3:
        embeddings = (model.vocab_size + model.context) * model.width
        sampling += 4 * (embeddings + 12 * model.width**2)
    return weights + gradients + optimizer + max(step, sampling)


# Models that a rank has whole at a time, in stages that only read them, unless they are shared out
# (`has_whole_models`). Those that write answers or score many lay one out a second time on a CPU
# (`gpt_model.ops.conv1d.prepacked`).
WHOLE_MODELS = {"depth": 1, "visible_context": 1, "zero_shot_dynamics": 1}
WHOLE_AND_LAID_OUT = {"zero_shot": 1, "instructed": 1, "preferences": 2}


def has_whole_models(stage: str, model: ModelConfig, profile: Profile) -> bool:
    """Whether each rank of a stage that only reads models of at most this size has them whole: at
    ZeRO 3 only where the profile says that they fit.
    """
    if profile.zero_stage < 3 or profile.processes == 1:
        return True
    size = whole_model_bytes(model, [stage], profile.device)
    return profile.memory_gb is not None and size <= profile.memory_gb * 1e9


def whole_model_bytes(model: ModelConfig, stages: Collection[str], device: str) -> float:
    """Bytes of whole models on each rank, in that of `stages` which has most; 0 where none only
    reads models. Activations and caches come on top.

    On a GPU with the copies that are made where a model is read in bfloat16, half as large again.
    """
    twice = {name: number + (device == "cpu") for name, number in WHOLE_AND_LAID_OUT.items()}
    copies = {**WHOLE_MODELS, **twice}
    most = max((copies.get(stage, 0) for stage in stages), default=0)
    return (6.0 if device == "cuda" else 4.0) * model.parameters() * most


# What a recipe's pre-training takes of a machine


class Demand(NamedTuple):
    """What pre-training takes: bytes of a rank, beside those available to it, and seconds."""

    bytes: float
    available: float | None  # None where it is not known
    seconds: float

    @property
    def fits(self) -> bool:
        return self.available is None or self.bytes <= self.available


def pretraining_demand(model: ModelConfig, section: Config, profile: Profile) -> Demand:
    """Of `section`, a recipe's pretraining, on `profile`, at the default rate: the store's earlier
    builds are not read.
    """
    sequences = -(-section["batch_tokens"] // model.context // profile.processes)
    rows = micro_batch(max(1, sequences), sequences_each(profile, model.context))
    each = memory_per_rank(
        model, training_setting(profile, section["precision"], rows, muon=bool(section.get("muon")))
    )
    rate, _ = default_rate(profile)
    flops = training_flops(model, section["tokens"]) + muon_flops(model, section)
    return Demand(each, profile.memory_each(), flops / rate)


# FLOPs


def default_rate(profile: Profile) -> tuple[float, str]:
    """FLOP/s the profile sustains in training, by default, and what that rests on."""
    if profile.peak_tflops is not None:
        rate = UTILISATION * profile.peak_tflops * 1e12
        return rate * profile.processes, f"{UTILISATION:.0%} of the profile's peak, assumed"
    if profile.device == "cuda":
        return GPU_FLOPS * profile.processes, f"{GPU_FLOPS:.0e} FLOP/s a GPU, assumed"
    cores = profile.processes * profile.threads_each()
    return CORE_FLOPS * cores, f"{CORE_FLOPS:.0e} FLOP/s a core, as measured on two"


def training_flops(model: ModelConfig, tokens: float) -> float:
    """Model FLOPs of training on `tokens` tokens, forward and backward."""
    return model.flops_per_token() * float(tokens)


def muon_flops(model: ModelConfig, section: Config) -> float:
    """FLOPs of making matrices orthogonal, in all steps of `section`, a recipe's pretraining.

    An iteration of a matrix [rows, columns], rows the fewer, takes 4 rows² columns + 2 rows³: of a
    block's four [width, width] and two [width, 4 width], 60 width³.
    """
    if not (muon := section.get("muon")) or model.family == "lstm":
        return 0.0
    steps = batches_of(section).steps_within(section["tokens"])
    return 60.0 * model.width**3 * model.layers * muon["ns_steps"] * steps


def reading_flops(model: ModelConfig, tokens: float) -> float:
    """Model FLOPs of a forward pass over `tokens` tokens."""
    return training_flops(model, tokens) / 3


def writing_flops(model: ModelConfig, answers: float, new_tokens: int) -> float:
    """FLOPs of reading that take as long as writing `answers` answers, every one to its end."""
    longest = max(1, model.context - 1)
    written = reading_flops(model, min(new_tokens, longest)) / WRITING
    return answers * (reading_flops(model, min(PROMPT, longest)) + written)


# The work of each stage: of its section `config`, its inputs, and the profile's FLOP/s `flops`


def work_of(stage: str, config: Config, inputs: Inputs, flops: float) -> Work:
    """What a stage has to do; next to nothing where it, or a model it reads, is not run here."""
    if "not_run" in config or any(model.not_run for model in _models(inputs)):
        return NOTHING
    work = STAGES[stage](config, inputs, flops) if stage in STAGES else NOTHING
    if work.unit in (TRAINING_FLOPS, FORWARD_FLOPS) and None in map(_shape, _models(inputs)):
        return replace(work, assumption=MODEL_ASSUMED)
    return work


NOTHING = Work(1.0, "artifacts", 5.0, 2e4)
TRAINING_FLOPS, FORWARD_FLOPS = "training FLOPs", "forward FLOPs"


def _corpus(config: Config, inputs: Inputs, flops: float) -> Work:
    size, assumption = _total(map(_text_bytes, config["sources"]))
    return Work(size, "bytes of sources", 1e6, 0.4 * size, assumption=assumption)


def _tokenizer(config: Config, inputs: Inputs, flops: float) -> Work:
    size, assumption = _corpus_bytes(inputs["corpus"])
    vocabulary = 60.0 * config["vocab_size"]
    return Work(size, "bytes of text", 4e6, vocabulary, assumption=assumption)


def _tokens(config: Config, inputs: Inputs, flops: float) -> Work:
    size, assumption = _corpus_bytes(inputs["corpus"])
    shards = 2 * size / BYTES_PER_TOKEN  # two bytes a token
    return Work(size, "bytes of text", 2e6, shards, assumption=assumption)


def _pretrained(config: Config, inputs: Inputs, flops: float) -> Work:
    model, section = _trained(config, inputs), config["pretraining"]
    copies = max(1, section.get("snapshots", 0))  # the last snapshot is the model
    size = WEIGHT_BYTES * model.parameters() * copies
    amount = training_flops(model, section["tokens"]) + muon_flops(model, section)
    return Work(amount, TRAINING_FLOPS, flops, size, 5.0)


def _training(model: ModelConfig, tokens: Amount, flops: float, size: float) -> Work:
    """Training on so many tokens, in rows of many lengths."""
    amount = training_flops(model, tokens.number)
    return Work(amount, TRAINING_FLOPS, TUNING * flops, size, 8.0, tokens.assumption)


def _forward(amount: float, flops: float, size: float, start: float, assumption: str = "") -> Work:
    """Forward passes of `amount` FLOPs."""
    return Work(max(1.0, amount), FORWARD_FLOPS, READING * flops, size, start, assumption)


def _finetuned(config: Config, inputs: Inputs, flops: float) -> Work:
    """Once from the pre-trained weights and once from random ones."""
    model = _model(inputs["pretrained"], inputs)
    tokens = _task_tokens(config, model)
    both = Amount(2 * tokens.number, tokens.assumption)
    return _training(model, both, flops, WEIGHT_BYTES * model.parameters())


def _finetunings(config: Config, inputs: Inputs, flops: float, variants: int) -> Work:
    """Every task with every seed, in so many variants."""
    model = _model(inputs["pretrained"], inputs)
    tokens = _total(
        Amount(variants * task["seeds"] * once.number, once.assumption)
        for task in config["tasks"]
        for once in [_task_tokens(task, model)]
    )
    return _training(model, tokens, flops, 2e4)


def _layers_transferred(config: Config, inputs: Inputs, flops: float) -> Work:
    layers = config["layers"] or range(_model(inputs["pretrained"], inputs).layers + 1)
    return _finetunings(config, inputs, flops, 1 + len(layers))


def _ablations(config: Config, inputs: Inputs, flops: float) -> Work:
    return _finetunings(config, inputs, flops, 3 + (LSTM_ASSET in inputs))


def _zero_shot(config: Config, inputs: Inputs, flops: float) -> Work:
    model, suites = _model(inputs["pretrained"], inputs), len(config.get("suites") or ())
    return _forward(reading_flops(model, SUITE_TOKENS * max(1, suites)), flops, 1e6, 12.0)


def _visible_context(config: Config, inputs: Inputs, flops: float) -> Work:
    """Windows of every length, of whose logits only the last token's are computed."""
    model, positions = _model(inputs["pretrained"], inputs), config["positions"]
    powers = [2**power for power in range((model.context - 1).bit_length())]
    windows = sum(config["contexts"] or [*powers, model.context])
    read = sum(min(positions, held_out) * windows for held_out in _held_out(inputs["tokens"]))
    head = 2.0 * read * model.width * model.vocab_size
    return _forward(reading_flops(model, read) - head, flops, 5e3, 5.0)


def _depth(config: Config, inputs: Inputs, flops: float) -> Work:
    """Every model on all held-out text, in windows that overlap by half."""
    read = 2 * sum(_held_out(inputs["tokens"]))
    amount = sum(reading_flops(model, read) for _, model in _pretrained_models(inputs))
    return _forward(amount, flops, 5e3, 5.0, inputs["tokens"].manifest.get("assumption", ""))


def _zero_shot_dynamics(config: Config, inputs: Inputs, flops: float) -> Work:
    """Every snapshot of each network on every heuristic's examples."""
    context = _model(inputs["pretrained"], inputs).context
    entries = [task["entry"] for task in config["tasks"].values() if task and "entry" in task]
    read = config["examples"] * sum(_example_tokens(entry, context) for entry in entries)
    amount = 0.0
    for network, model in _pretrained_models(inputs):
        amount += network.config["pretraining"]["snapshots"] * reading_flops(model, read)
    return _forward(amount, flops, 2e4, 5.0)


def _imported(config: Config, inputs: Inputs, flops: float) -> Work:
    stated = float(sum(file["bytes"] for file in config.get("files", ())))
    size, assumption = stated or IMPORTED_BYTES, "" if stated else MODEL_ASSUMED
    return Work(size, "bytes of weights", 2e8, size, 4.0, assumption)


def _human_data(config: Config, inputs: Inputs, flops: float) -> Work:
    number, assumption = _rows(config)
    return Work(number, "rows", 2e3, 2e3 * number, 2.0, assumption)


TUNED = {  # section: the input it starts from, the data, answers a row
    "supervised": ("pretrained", "demonstrations", 1.0),
    "policy_init": ("pretrained", "demonstrations", 1.0),
    "reward_model": ("start", "comparisons", 2.0),
    "dpo": ("policy_init", "comparisons", 2 * 4 / 3),  # the reference reads both: a third more
}


def idle_ranks(config: Config, ranks: int) -> int:
    """Of so many, at least those without a row of an alignment stage's step. DPO's rows are
    counted as pairs: ranks share out rankings, whose pairs nobody knows before.
    """
    section = next((config[name] for name in (*TUNED, "ppo") if name in config), None)
    if section is None:
        return 0
    rows: int = section.get("minibatch") or section["batch"]
    return max(0, ranks - rows)


def _tuned(config: Config, inputs: Inputs, flops: float) -> Work:
    """A model trained on rows of human data, as its section says.

    `pretraining_share` of the sequences are text, as long as the context. The artifact of
    `supervised` has every epoch.
    """
    section = next(name for name in TUNED if name in config)
    start, data, answers = TUNED[section]
    model, epochs = _model(inputs[start], inputs), config[section]["epochs"]
    share = config[section].get("pretraining_share", 0.0)
    length = answers * min(model.context, PROMPT + ANSWER) + share / (1 - share) * model.context
    rows = _rows(inputs[data].config)
    train = 1 - inputs[data].config.get("held_out", 0.0) - inputs[data].config.get("judge", 0.0)
    tokens = Amount(rows.number * train * epochs * length, rows.assumption)
    copies = epochs if section == "supervised" else 1
    return _training(model, tokens, flops, copies * WEIGHT_BYTES * model.parameters())


def _aligned(config: Config, inputs: Inputs, flops: float) -> Work:
    """Policy writes episodes; reference, reward model and critic read them; policy and critic train
    on them, beside pre-training text.
    """
    model, ppo = _model(inputs["policy_init"], inputs), config["ppo"]
    length = min(model.context, PROMPT + ppo["max_new_tokens"])
    trained = ppo["inner_epochs"] * length * (1 if ppo["value"] == "shared" else 2)
    text = ppo["ptx_examples"] * model.context if ppo["ptx_weight"] else 0
    written = writing_flops(model, 1, ppo["max_new_tokens"]) / READING
    episode = training_flops(model, trained + text + length) + written
    size = WEIGHT_BYTES * model.parameters()
    return Work(ppo["episodes"] * episode, TRAINING_FLOPS, TUNING * flops, size, 15.0)


def _instructed(config: Config, inputs: Inputs, flops: float) -> Work:
    """Every supervised epoch answers the prompts, and the reward model reads the answers."""
    model, section = _model(inputs["supervised"], inputs), config["instructed"]
    answers = section["prompts"] * inputs["supervised"].config["supervised"]["epochs"]
    return _answers(model, answers, section, flops, WEIGHT_BYTES * model.parameters())


def _preferences(config: Config, inputs: Inputs, flops: float) -> Work:
    """Every model answers the prompts, one of them `best_of` times over."""
    model, section = _model(next(_models(inputs)), inputs), config["preferences"]
    # Imports numpy, which no other command that reads a recipe waits for.
    from gpt_model.rlhf.model_comparison import MODELS

    models = sum(name in inputs for name in MODELS)
    answers = section["prompts"] * (models + section["best_of"])
    return _answers(model, answers, section, flops, 2e3 * answers)


def _answers(model: ModelConfig, answers: int, section: Config, flops: float, size: float) -> Work:
    """A model writes answers as the section says, and another one reads them."""
    new_tokens = section["max_new_tokens"]
    read = reading_flops(model, answers * min(model.context, PROMPT + new_tokens))
    return _forward(writing_flops(model, answers, new_tokens) + read, flops, size, 10.0)


def _judge(config: Config, inputs: Inputs, flops: float) -> Work:
    number, assumption = _rows(inputs["comparisons"].config)
    return Work(number, "rows", 1e3, 2e6, 3.0, assumption)


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
    **dict.fromkeys(("demonstrations", "comparisons", "prompts"), _human_data),
    **dict.fromkeys(TUNED, _tuned),
    "judge": _judge,
    "aligned": _aligned,
    "instructed": _instructed,
    "preferences": _preferences,
}


# Models


def _models(inputs: Inputs) -> Iterator[Artifact]:
    """The models among the inputs, first the one that is trained on."""
    names = (base_model.BASE, "policy_init", "start", "supervised", "pretrained")
    return (inputs[name] for name in names if name in inputs)


def _pretrained_models(inputs: Inputs) -> Iterable[tuple[Artifact, ModelConfig]]:
    artifacts = (artifact for artifact in inputs.values() if artifact.stage == "pretrained")
    return ((artifact, _model(artifact, inputs)) for artifact in artifacts)


def _trained(config: Config, inputs: Inputs) -> ModelConfig:
    """The model that is pre-trained: the recipe's, or an imported one that is trained further."""
    if base_model.BASE in inputs:
        return _model(inputs[base_model.BASE], inputs)
    return ModelConfig(**config["model"], vocab_size=_vocab_size(None, inputs))


def _model(artifact: Artifact, inputs: Inputs) -> ModelConfig:
    """An artifact's model; of an imported one that is not here, the assumed one."""
    if not (shape := _shape(artifact)):
        return ASSUMED_MODEL
    return ModelConfig(**shape, vocab_size=_vocab_size(artifact, inputs))


def _shape(artifact: Artifact) -> dict[str, Any] | None:
    """The shape of an artifact's model, its vocabulary apart; None where it is not known yet."""
    known = "model" in artifact.config or (artifact.path / base_model.SHAPE).is_file()
    return base_model.shape(artifact) if known else None


def _vocab_size(model: Artifact | None, inputs: Inputs) -> int:
    """What the tokenizer has, or is to have; where a stage reads none, what the model has."""
    if tokenizer := inputs.get("tokenizer"):
        size = tokenizer.metrics.get("vocab_size") or tokenizer.config.get("vocab_size")
    elif model is None or "vocab_size" in model.manifest:
        size = model and model.manifest["vocab_size"]
    else:
        config = json.loads((model.path / "model" / "config.json").read_text(encoding="utf-8"))
        size = config["vocab_size"]
    return int(size or ASSUMED_MODEL.vocab_size)


# Text, examples and rows


def _total(amounts: Iterable[Amount]) -> Amount:
    """The sum, at least 1, with the first assumption made of a part of it."""
    amounts = list(amounts)
    assumption = next((amount.assumption for amount in amounts if amount.assumption), "")
    return Amount(max(1.0, sum(amount.number for amount in amounts)), assumption)


def _on_card(kind: str, source: Mapping[str, Any]) -> Any:
    """The size of a data set on the hub, as its card says; None where it is not known."""
    subset = source.get("config") or source.get("subset")
    return SIZES[kind].get(f"{source.get('hub')} {subset}" if subset else source.get("hub"))


def _text_bytes(source: Mapping[str, Any]) -> Amount:
    """Bytes of a corpus's source: of its files, by its data set's card, or assumed."""
    most = 1e9 * (source.get("limit_gb") or math.inf)
    files = [file for file in source.get("pinned") or () if isinstance(file, Mapping)]
    if size := sum(float(file.get("bytes") or 0) for file in files):
        return Amount(min(most, size))
    if (card := _on_card("texts", source)) is None:
        return Amount(min(most, TEXT_BYTES), TEXT_ASSUMED)
    size, rows = card
    group = source.get("group")  # rows a document
    documents = rows / (group if isinstance(group, int) else 1)
    return Amount(min(most, size * min(1.0, (source.get("limit") or documents) / documents)))


def _corpus_bytes(corpus: Artifact) -> Amount:
    """UTF-8 bytes of a corpus; of a planned one 2.6 for each byte of its compressed files."""
    size = sum(value for name, value in corpus.metrics.items() if name.endswith("/bytes"))
    return Amount(max(1.0, size or 2.6 * corpus.size), corpus.manifest.get("assumption", ""))


def _held_out_tokens(corpus: Artifact) -> dict[str, float]:
    """Held-out tokens of each source of a corpus, named as in the metrics of the stage `tokens`."""
    size = {
        name.partition("/")[0]: value
        for name, value in corpus.metrics.items()
        if name.endswith("/held_out/bytes")
    }
    share = corpus.config.get("held_out", 0.0)
    size = size or {
        source["name"]: _text_bytes(source).number * (source.get("held_out") or share)
        for source in corpus.config.get("sources", ())
    }
    return {f"held_out/{name}/tokens": number / BYTES_PER_TOKEN for name, number in size.items()}


def _held_out(tokens: Artifact) -> list[float]:
    """Held-out tokens of each source."""
    return [
        value
        for name, value in tokens.metrics.items()
        if name.startswith("held_out/") and name.endswith("/tokens")
    ]


def _task_tokens(config: Config, model: ModelConfig) -> Amount:
    """Tokens that fine-tuning one model on a task trains on; none where the task is not run."""
    if "not_run" in config:
        return Amount(0.0)
    source, requested = config["source"]["source"], config.get("examples")
    rows = _on_card("rows", source)
    assumption = "" if rows or requested else ROWS_ASSUMED
    if not rows and (files := source.get("pinned")):
        rows, assumption = sum(file["bytes"] for file in files) / ROW_BYTES, FILES_ASSUMED
    if rows and not source.get("splits", {}).get("validation"):
        rows = rows * (1 - config["source"]["split"]["validation"])
    examples = min(rows or math.inf, requested or rows or ROWS)
    length = _example_tokens(config["source"], model.context)
    return Amount(examples * config["finetuning"]["epochs"] * length, assumption)


def _example_tokens(entry: Mapping[str, Any], context: int) -> float:
    """Tokens read of one example: of a similarity both orders, of a question each answer."""
    length = context if "context" in entry["columns"] else min(context, SHORT_EXAMPLE)
    if made := entry.get("next_sentence"):
        return length * float(made["options"])
    if entry["form"] == "multiple_choice":
        options = entry["columns"]["options"]
        return length * (len(options) if isinstance(options, list) else OPTIONS)
    return length * (2 if entry["form"] == "similarity" else 1)


def _rows(section: Config) -> Amount:
    """Rows of a section of human data, its held-out share included."""
    amounts = []
    for source in section.get("sources") or ():
        stated = _on_card("rows", source)
        low, high = source.get("part") or (0.0, 1.0)
        rows = (stated or ROWS) * (high - low)
        assumption = "" if stated else ROWS_ASSUMED
        amounts.append(Amount(min(rows, source.get("limit") or rows), assumption))
    return _total(amounts)
