"""What a build will take and come to, said beforehand: seconds, bytes, and for pre-training the held-out loss, each with an interval.

Frozen into the manifest before the build, so that the scorecard can set forecast against outcome; `gpt-lineage plan` shows it. The
basis, in this order:

* earlier builds of the same stage in this store on the same profile, scaled by the work to be done (FLOPs, bytes of text, …).
  Each build's work stands in its own frozen forecast, so earlier inputs need not be read again. Intervals come from the spread of
  the earlier builds, never narrower than what one build can tell. A build of another size tells less: small ones are all overhead;
* else, and the more so the further the nearest earlier build is, default rates, with intervals of a factor of three and more.

Loss: from a scaling ladder of the same text where there is one (`scaling.py`), else it falls as a power of compute: Kaplan et al. 2020,
equation 1.3, L ∝ C^-0.050 along the efficient frontier. No Dagster, MLflow or torch.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets import base_model
from assets.contract import Artifact, Config, Inputs
from assets.experiments.lstm import LSTM
from assets.forecast_sizes import examples_of, text_of, tokens_of_example
from assets.graph import Node
from assets.profile import Profile
from assets.resources.store import Store
from assets.scaling import FIT
from gpt_model.config import ModelConfig
from gpt_model.sizing import counted

LOSS_METRIC = "held_out/bpb"  # bits per byte over all held-out text, as the pretrained artifact reports it
FAR = 3.0  # times smaller or larger: from here on an earlier build tells less, and less
MEMORY = 50  # earlier builds looked at, newest first: enough for a spread, cheap to read

CORE_FLOPS = 1e11  # FLOP/s a CPU core sustains in training, float32: measured, 2.2·10^6 parameters at 6,700 tokens/s a core
GPU_FLOPS = 1e14  # FLOP/s a data-centre GPU sustains in training, bfloat16: not measured, a tenth to a third of what its maker prints
BYTES_PER_TOKEN = 3.5  # English text under a byte-level BPE of a few thousand pieces
COMPUTE_EXPONENT = 0.05  # Kaplan et al. 2020, equation 1.3
ANCHOR_FLOPS, ANCHOR_BPB = 2e13, 2.5  # nanoGPT's loop, 2.2·10^6 parameters, 240 s on two cores, plays: 2.54 bits per byte
IMPORTED_BYTES = 5e8  # of a repository on the hub, which does not say its size beforehand: GPT-2 small's
FALLBACK_MODEL = ModelConfig(layers=4, width=192, heads=4, context=256, vocab_size=2048)  # only where the input says nothing of its shape


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
    unsure: float = 1.0  # the factor by which `amount` and `size` themselves may be off, where nobody has told the size of what is read

    @property
    def with_start(self) -> float:
        """`amount`, and what could be done in the seconds before it: what seconds are in proportion to, of small builds too."""
        return self.amount + self.start_seconds / self.seconds_each


@dataclass(frozen=True)
class Earlier:
    """What an earlier build of the same stage took."""

    amount: float
    with_start: float
    size: float
    seconds: float
    bytes: float
    loss: float | None
    same_profile: bool


def forecast(node: Node, config: Config, inputs: Inputs, profile: Profile, store: Store) -> dict[str, Any]:
    """{"seconds": {low, expected, high}, "bytes": {…}, "work": {…}, "basis": a sentence; of pretrained also "loss", "loss_basis"}.

    `seconds` are those inside the stage function, `bytes` the published files', `loss` held-out bits per byte. An input not built
    yet may be a planned one (`planned`). Never raises: a forecast must not stop a build.
    """
    try:
        told = _forecast(node, config, inputs, profile, list(earlier_builds(node, profile, store)))
        if node.stage.name == "pretrained" and (law := _by_ladder(told["work"]["amount"], config, inputs, store)):
            told["loss"], told["loss_basis"] = law
        return told
    except Exception as error:  # a build is worth more than its forecast; what went wrong is said where the forecast would stand
        return {"basis": f"No forecast could be made ({type(error).__name__}: {error})."}


def planned(node: Node, config: Config, told: Mapping[str, Any]) -> Artifact:
    """A stand-in for an artifact that is not built yet, as an input of `forecast` only: its section and its forecast size."""
    files = [{"path": "", "size": told.get("bytes", {}).get("expected", 0.0)}]
    return Artifact(Path(), node.stage.name, "", "", config, {}, {"files": files, "unsure": told.get("work", {}).get("unsure", 1.0)})


def _forecast(node: Node, config: Config, inputs: Inputs, profile: Profile, earlier: list[Earlier]) -> dict[str, Any]:
    work = work_of(node, config, inputs, profile)
    same = [e for e in earlier if e.same_profile]
    told: dict[str, Any] = {
        "seconds": _scaled(work.with_start, work.seconds_each, work.seconds_factor, [(e.with_start, e.seconds) for e in same]),
        "bytes": _scaled(work.size, work.bytes_each, work.bytes_factor, [(e.size, e.bytes) for e in earlier]),
        "work": {"amount": work.amount, "with_start": work.with_start, "unit": work.unit, "size": work.size, "unsure": work.unsure},
    }
    for quantity in ("seconds", "bytes"):
        told[quantity] = _no_narrower(told[quantity], work.unsure)
    told["basis"] = _basis(work, same, profile)
    if work.unsure > 1:
        told["basis"] += f" How much there is to read is unverified: {work.unsure:.0f} times less or more is within the interval."
    if node.stage.name == "pretrained":
        points = [(e.amount, e.loss) for e in earlier if e.loss]
        told["loss"] = _loss(work.amount, points)
        told["loss_basis"] = (
            f"A power of compute through {len(points)} earlier model{'s' if len(points) > 1 else ''}."
            if points
            else f"{ANCHOR_BPB} bits per byte at {ANCHOR_FLOPS:.0e} FLOP, falling as FLOP^-{COMPUTE_EXPONENT}: a rule of thumb."
        )
    return told


def _basis(work: Work, same: list[Earlier], profile: Profile) -> str:
    """What the seconds rest on, in a sentence."""
    speeds = f"{GPU_FLOPS:.0e} FLOP/s a GPU, assumed" if profile.device == "cuda" else f"{CORE_FLOPS:.0e} FLOP/s a core, as measured on two"
    if not same:
        return f"No earlier build on this profile: default rates ({speeds})."
    basis = f"From {len(same)} earlier build{'s' if len(same) > 1 else ''} on this profile"
    away = min((work.with_start / e.with_start for e in same), key=lambda ratio: abs(math.log(ratio)))
    if max(away, 1 / away) <= FAR:
        return f"{basis}."
    than = f"{away:.0f} times smaller" if away > 1 else f"{1 / away:.0f} times larger"
    return f"{basis}, the nearest {than} in {work.unit}; so from default rates too ({speeds})."


def earlier_builds(node: Node, profile: Profile, store: Store) -> Iterable[Earlier]:
    """Builds of the node's stage in the store, newest first."""
    execution = _execution(profile.model_dump(mode="json"))
    same_stage = [artifact for artifact in store.artifacts() if artifact.stage == node.stage.name]
    for artifact in reversed(same_stage[-MEMORY:]):
        facts = artifact.manifest["provenance"]
        work = facts.get("forecast", {}).get("work", {})
        if not {"amount", "with_start", "size"} <= work.keys() or "attempts" not in facts or facts["stage_seconds"] <= 0:
            continue  # built by code that said no forecast, or another one
        on_it = _execution(facts["profile"]) == execution and facts["attempts"] == 1  # of a resumed build only the end was timed
        size = float(artifact.size)
        yield Earlier(
            work["amount"], work["with_start"], work["size"], facts["stage_seconds"], size, artifact.metrics.get(LOSS_METRIC), on_it
        )


def _execution(profile: Mapping[str, Any]) -> dict[str, Any]:
    """What of a profile bears on speed: all but what it is called."""
    return {key: value for key, value in profile.items() if key not in ("name", "description", "checkpoint_seconds")}


def work_of(node: Node, config: Config, inputs: Inputs, profile: Profile) -> Work:
    """What the node has to do, by its stage."""
    stage = node.stage.name
    if stage == "corpus":
        texts = [text_of(source) for source in config["sources"]]
        size, unsure = sum(one.much for one in texts), max(one.unsure for one in texts)
        packages = any(source.get("package") for source in config["sources"])
        factor = 10.0 if packages else 1.5
        return Work(size, "bytes of sources", size, 1 / 1e6, 0.4, seconds_factor=5.0, bytes_factor=factor, unsure=unsure)
    if stage == "tokenizer":
        text = _text_bytes(inputs)
        return Work(text, "bytes of text", float(config["vocab_size"]), 1 / 4e6, 60.0, unsure=_unsure(inputs))
    if stage == "tokens":
        text = _text_bytes(inputs)
        return Work(text, "bytes of text", text, 1 / 2e6, 2 / BYTES_PER_TOKEN, bytes_factor=1.4, unsure=_unsure(inputs))
    if stage == "pretrained":
        model = _trained(config, inputs)
        flops = training_flops(model, config["pretraining"]["tokens"])
        values = float(model.parameters()) * max(1, config["pretraining"].get("snapshots", 0))  # the last snapshot is the model
        # float32 weights, plus the tokenizer's files
        return Work(flops, "training FLOPs", values, 1 / speed(profile), 4.3, bytes_factor=1.2, start_seconds=5.0)
    if stage == "finetuned":
        model = _model(_shape(inputs["pretrained"]), inputs)
        once, unsure = _finetuning_flops(config, model)
        flops, values = 2 * once, float(model.parameters())  # once from the pre-trained weights and once from random ones
        return Work(flops, "training FLOPs", values, 1.5 / speed(profile), 4.3, seconds_factor=4.0, start_seconds=8.0, unsure=unsure)
    if stage in ("layers_transferred", "ablations"):
        model = _model(_shape(inputs["pretrained"]), inputs)
        ways = 3 + (LSTM in inputs) if stage == "ablations" else 1 + len(config["layers"] or range(model.layers + 1))
        each = [(task["seeds"], *_finetuning_flops(task, model)) for task in config["tasks"]]
        flops, unsure = ways * sum(seeds * flops for seeds, flops, _ in each), max(unsure for _, _, unsure in each)
        return Work(
            flops, "training FLOPs", 1.0, 1.5 / speed(profile), 2e4, seconds_factor=4.0, bytes_factor=10.0, start_seconds=8.0, unsure=unsure
        )
    if stage == "zero_shot":
        model = _model(_shape(inputs["pretrained"]), inputs)
        flops = 3e5 * max(1, len(config.get("suites") or ())) * model.flops_per_token() / 3  # tokens a suite on local data reads
        return Work(flops, "forward FLOPs", 1.0, 2 / speed(profile), 1e6, seconds_factor=5.0, bytes_factor=10.0, start_seconds=12.0)
    if stage == "imported":
        size = float(sum(file["bytes"] for file in config.get("files", ()))) or IMPORTED_BYTES
        known = 1.2 if config.get("files") else 10.0
        return Work(size, "bytes of weights", size, 1 / 2e8, 1.0, seconds_factor=5.0, bytes_factor=known, start_seconds=4.0)
    return Work(1.0, "artifacts", 1.0, 0.2, 2e4, seconds_factor=5.0, bytes_factor=10.0)


def _finetuning_flops(config: Config, model: ModelConfig) -> tuple[float, float]:
    """Of one model on one task, and the factor by which they may be off; nothing of a task that is not run here."""
    if "not_run" in config:
        return 1.0, 1.0
    examples = examples_of(config)
    tokens = examples.much * config["finetuning"]["epochs"] * tokens_of_example(config["source"], model.context)
    return training_flops(model, tokens), examples.unsure


def training_flops(model: ModelConfig, tokens: float) -> float:
    """Model FLOPs of training on `tokens` tokens, forward and backward."""
    return model.flops_per_token() * float(tokens)


def speed(profile: Profile) -> float:
    """FLOP/s the profile is expected to sustain in training, where nothing was measured."""
    return GPU_FLOPS * profile.processes if profile.device == "cuda" else CORE_FLOPS * profile.processes * profile.threads_each()


def _text_bytes(inputs: Inputs) -> float:
    """UTF-8 bytes of a corpus; of a planned one, from the bytes its compressed files will have (English: about 2.6 for each)."""
    corpus = inputs["corpus"]
    counted = sum(value for name, value in corpus.metrics.items() if name.endswith("/bytes"))
    return max(1.0, counted or 2.6 * corpus.size)


def _unsure(inputs: Inputs) -> float:
    """Of a planned corpus: the factor by which its size may be off."""
    return float(inputs["corpus"].manifest.get("unsure", 1.0))


def _trained(config: Config, inputs: Inputs) -> ModelConfig:
    """The model that is pre-trained: the recipe's own, or an imported one that is trained further."""
    return _model(config.get("model") or _shape(inputs["base"]), inputs)


def _shape(artifact: Artifact) -> Mapping[str, Any]:
    """Of the model in an artifact; of an imported one that is not here yet, nobody knows."""
    try:
        return base_model.shape(artifact)
    except OSError:
        return FALLBACK_MODEL.model_dump(exclude={"vocab_size"})


def _model(shape: Mapping[str, Any], inputs: Inputs) -> ModelConfig:
    tokenizer = inputs.get("tokenizer")
    vocab_size = (tokenizer.config.get("vocab_size") if tokenizer else None) or FALLBACK_MODEL.vocab_size
    return ModelConfig(**shape, vocab_size=vocab_size)


def _around(expected: float, factor: float) -> dict[str, float]:
    return {"low": expected / factor, "expected": expected, "high": expected * factor}


def _no_narrower(told: Mapping[str, float], factor: float) -> dict[str, float]:
    """An interval widened to `factor` either way where it is narrower."""
    expected = told["expected"]
    return {"low": min(told["low"], expected / factor), "expected": expected, "high": max(told["high"], expected * factor)}


def _scaled(amount: float, each: float, factor: float, points: list[tuple[float, float]]) -> dict[str, float]:
    """`amount` at a rate between that of earlier (amount, outcome) `points` and the default `each`, with an interval of about 95 %.

    The points' rate is their median; one point tells nothing of its spread (a factor 1.6 is assumed, 1.4 for two). Where the nearest
    is more than `FAR` times smaller or larger than `amount`, what they tell counts half with each factor of ten beyond; the interval
    then takes in as much of the default's `factor`, or of the points' distance from the default where that is more.
    """
    points = [(a, outcome) for a, outcome in points if a > 0 and outcome > 0]
    if not points or amount <= 0:
        return _around(amount * each, factor)
    off = [math.log(outcome / (a * each)) for a, outcome in points]  # from the default rate, as a logarithm
    if len(off) >= 3:
        spread = max(math.log(1.15), 2.2 * statistics.stdev(off) * math.sqrt(1 + 1 / len(off)))
    else:
        spread = math.log(1.6) if len(off) == 1 else max(math.log(1.4), abs(off[0] - off[1]))
    told = 0.5 ** max(0.0, min(abs(math.log10(amount / a)) for a, _ in points) - math.log10(FAR))
    found = statistics.median(off)
    width = told * spread + (1 - told) * max(math.log(factor), abs(found))
    return _around(amount * each * math.exp(told * found), math.exp(width))


def _by_ladder(flops: float, config: Config, inputs: Inputs, store: Store) -> tuple[dict[str, float], str] | None:
    """Bits per byte by the newest ladder of models of the same tokens and family, and what that rests on; None where there is none."""
    digest, model = inputs["tokens"].digest, _trained(config, inputs)
    ladders = [one for one in store.artifacts() if one.stage == "scaling" and _has_input(one, "tokens", digest)] if digest else []
    fits = [(one, json.loads((one.path / FIT).read_text(encoding="utf-8"))) for one in ladders]
    fits = [(one, fit) for one, fit in fits if fit.get("family") == model.family]  # a law of one network tells nothing of another's
    if not fits:
        return None
    from gpt_model.scaling import PF_DAY, Law

    newest, fit = fits[-1]
    law, compute = Law.from_json(fit["bpb"]), flops / PF_DAY
    low, high = law.interval(compute, 0.95)
    away = max(compute / fit["compute"][1], fit["compute"][0] / compute, 1.0)
    basis = f"The law through the {fit['models']} models of the ladder {store.short(newest.fingerprint)}, of the same text"
    basis += f", {away:,.0f} times beyond them in compute" if away > FAR else ""
    ratio = config["pretraining"]["tokens"] / counted(model)
    if not fit["ratios"][0] / FAR < ratio < fit["ratios"][1] * FAR:
        basis += f"; it is of {' to '.join(f'{end:.3g}' for end in fit['ratios'])} tokens a parameter, and this is of {ratio:.3g}"
    return {"low": low, "expected": law.at(compute), "high": high}, f"{basis}."


def _has_input(artifact: Artifact, name: str, digest: str) -> bool:
    return any(entry["name"] == name and entry["digest"] == digest for entry in artifact.manifest["inputs"])


def _loss(flops: float, points: list[tuple[float, float]]) -> dict[str, float]:
    """Bits per byte at `flops`, from (FLOPs, bits per byte) of earlier models, or the rule of thumb."""
    if not points:
        expected = ANCHOR_BPB * (flops / ANCHOR_FLOPS) ** -COMPUTE_EXPONENT
        return {"low": expected / 1.35, "expected": expected, "high": expected * 1.35}
    logs = [(math.log(f), math.log(loss)) for f, loss in points]
    slope = -COMPUTE_EXPONENT
    if max(x for x, _ in logs) - min(x for x, _ in logs) > math.log(2):  # apart enough for a slope of their own
        slope = min(0.0, max(-0.3, statistics.linear_regression(*zip(*logs, strict=True)).slope))
    intercepts = [y - slope * x for x, y in logs]
    expected = math.exp(statistics.median(intercepts) + slope * math.log(flops))
    away = min(abs(math.log(flops) - x) for x, _ in logs)
    spread = statistics.stdev(intercepts) if len(intercepts) >= 3 else 0.04
    factor = math.exp(max(0.03, 2.2 * spread) + 0.05 * away)
    return {"low": expected / factor, "expected": expected, "high": expected * factor}
