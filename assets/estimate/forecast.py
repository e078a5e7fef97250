"""What a build will take and come to, said beforehand: seconds, bytes, and for pre-training the
held-out loss, each with an interval.

Frozen into the manifest before the build, so that the scorecard can set forecast against outcome;
`gpt-lineage plan` shows it. The basis, in this order:

* earlier builds of the same stage in this store on the same profile, scaled by the work to be done
  (FLOPs, bytes of text, …). Each build's work stands in its own frozen forecast, so earlier inputs
  need not be read again. Intervals come from the spread of the earlier builds, never narrower than
  what one build can tell. A build of another size tells less: small ones are all overhead;
* else, and the more so the further the nearest earlier build is, default rates, with intervals of a
  factor of three and more.

Loss: from a scaling ladder of the same text where there is one (`scaling.py`), else it falls as a
power of compute: Kaplan et al. 2020, equation 1.3, L ∝ C^-0.050 along the efficient frontier. Both
are of models trained from the start: of one that somebody else's weights begin, nothing is
foretold. What a stage has to do says `forecast_work.py`. No Dagster, MLflow or torch.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.contract import Artifact, Config, Inputs
from assets.estimate.forecast_sizes import held_out_tokens
from assets.estimate.forecast_work import CORE_FLOPS, GPU_FLOPS, Work, shape_in, trained, work_of
from assets.node import Node
from assets.recipe.profile import Profile
from assets.stages import base_model
from assets.stages.scaling import FIT
from assets.store.store import Store
from gpt_model.sizing import counted

LOSS_METRIC = (
    "held_out/bpb"  # bits per byte over all held-out text, as the pretrained artifact reports it
)
FAR = 3.0  # times smaller or larger: from here on an earlier build tells less, and less
MEMORY = 50  # earlier builds looked at, newest first: enough for a spread, cheap to read

TUNED = (
    "supervised",
    "policy_init",
    "reward_model",
    "dpo",
    "aligned",
    "instructed",
)  # models of the shape of what they start from
STARTS = ("pretrained", "policy_init", "start", "supervised")

COMPUTE_EXPONENT = 0.05  # Kaplan et al. 2020, equation 1.3
ANCHOR_FLOPS, ANCHOR_BPB = (
    2e13,
    2.5,
)  # nanoGPT's loop, 2.2·10^6 parameters, 240 s on two cores, plays: 2.54 bits per byte


@dataclass(frozen=True)
class Earlier:
    """What an earlier build of the same stage took."""

    amount: float
    with_start: float
    unit: str
    size: float
    seconds: float
    bytes: float
    loss: float | None
    same_profile: bool


def forecast(
    node: Node, config: Config, inputs: Inputs, profile: Profile, store: Store
) -> dict[str, Any]:
    """{"seconds": {low, expected, high}, "bytes": {…}, "work": {…}, "basis": a sentence; of a model
    trained from the start also "loss", "loss_basis"}.

    `seconds` are those inside the stage function, `bytes` the published files', `loss` held-out
    bits per byte. An input not built yet may be a planned one (`planned`). Never raises: a forecast
    must not stop a build.
    """
    try:
        told = _forecast(node, config, inputs, profile, list(earlier_builds(node, profile, store)))
        if "loss" in told and (law := _by_ladder(told["work"]["amount"], config, inputs, store)):
            told["loss"], told["loss_basis"] = law
        return told
    # a build is worth more than its forecast; what went wrong is said where the forecast would
    # stand
    except Exception as error:
        return {"basis": f"No forecast could be made ({type(error).__name__}: {error})."}


def planned(node: Node, config: Config, told: Mapping[str, Any], inputs: Inputs) -> Artifact:
    """A stand-in for an artifact that is not built yet, as an input of `forecast` only: its section
    and its forecast size.
    """
    files = [{"path": "", "size": told.get("bytes", {}).get("expected", 0.0)}]
    if base_model.BASE in inputs and (shape := shape_in(inputs[base_model.BASE])):
        config = {**config, "model": shape}  # which the artifact's own file will say
    elif node.stage.name in TUNED and (
        start := next((inputs[name] for name in STARTS if name in inputs), None)
    ):
        config = {**config, "model": shape_in(start)} if shape_in(start) else config
    metrics = held_out_tokens(inputs["corpus"]) if node.stage.name == "tokens" else {}
    return Artifact(
        Path(),
        node.stage.name,
        "",
        "",
        config,
        metrics,
        {"files": files, "unsure": told.get("work", {}).get("unsure", 1.0)},
    )


def _forecast(
    node: Node, config: Config, inputs: Inputs, profile: Profile, earlier: list[Earlier]
) -> dict[str, Any]:
    work = work_of(node, config, inputs, profile)
    earlier = [
        e for e in earlier if e.unit == work.unit
    ]  # others counted their work otherwise, or had none here
    same = [e for e in earlier if e.same_profile]
    told: dict[str, Any] = {
        "seconds": _scaled(
            work.with_start,
            work.seconds_each,
            work.seconds_factor,
            [(e.with_start, e.seconds) for e in same],
        ),
        "bytes": _scaled(
            work.size, work.bytes_each, work.bytes_factor, [(e.size, e.bytes) for e in earlier]
        ),
        "work": {
            "amount": work.amount,
            "with_start": work.with_start,
            "unit": work.unit,
            "size": work.size,
            "unsure": work.unsure,
        },
    }
    for quantity in ("seconds", "bytes"):
        told[quantity] = _no_narrower(told[quantity], work.unsure)
    told["basis"] = _basis(work, same, profile)
    if work.unsure > 1:
        told["basis"] += (
            f" {work.doubt}: {work.unsure:.0f} times less or more is within the interval."
        )
    if node.stage.name == "pretrained" and base_model.BASE not in inputs:
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
    speeds = (
        f"{GPU_FLOPS:.0e} FLOP/s a GPU, assumed"
        if profile.device == "cuda"
        else f"{CORE_FLOPS:.0e} FLOP/s a core, as measured on two"
    )
    if not same:
        return f"No earlier build on this profile: default rates ({speeds})."
    basis = f"From {len(same)} earlier build{'s' if len(same) > 1 else ''} on this profile"
    away = min(
        (work.with_start / e.with_start for e in same), key=lambda ratio: abs(math.log(ratio))
    )
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
        if (
            not {"amount", "with_start", "unit", "size"} <= work.keys()
            or "attempts" not in facts
            or facts["stage_seconds"] <= 0
        ):
            continue  # built by code that said no forecast, or another one
        on_it = (
            _execution(facts["profile"]) == execution and facts["attempts"] == 1
        )  # of a resumed build only the end was timed
        from_the_start = all(
            entry["name"] != base_model.BASE for entry in artifact.manifest["inputs"]
        )
        loss, size = (
            artifact.metrics.get(LOSS_METRIC) if from_the_start else None,
            float(artifact.size),
        )
        yield Earlier(
            work["amount"],
            work["with_start"],
            work["unit"],
            work["size"],
            facts["stage_seconds"],
            size,
            loss,
            on_it,
        )


def _execution(profile: Mapping[str, Any]) -> dict[str, Any]:
    """What of a profile bears on speed: all but what it is called."""
    return {
        key: value
        for key, value in profile.items()
        if key not in ("name", "description", "checkpoint_seconds")
    }


def _around(expected: float, factor: float) -> dict[str, float]:
    return {"low": expected / factor, "expected": expected, "high": expected * factor}


def _no_narrower(told: Mapping[str, float], factor: float) -> dict[str, float]:
    """An interval widened to `factor` either way where it is narrower."""
    expected = told["expected"]
    return {
        "low": min(told["low"], expected / factor),
        "expected": expected,
        "high": max(told["high"], expected * factor),
    }


def _scaled(
    amount: float, each: float, factor: float, points: list[tuple[float, float]]
) -> dict[str, float]:
    """`amount` at a rate between that of earlier (amount, outcome) `points` and the default `each`,
    with an interval of about 95 %.

    The points' rate is their median; one point tells nothing of its spread (a factor 1.6 is
    assumed, 1.4 for two). Where the nearest is more than `FAR` times smaller or larger than
    `amount`, what they tell counts half with each factor of ten beyond; the interval then takes in
    as much of the default's `factor`, or of the points' distance from the default where that is
    more.
    """
    points = [(a, outcome) for a, outcome in points if a > 0 and outcome > 0]
    if not points or amount <= 0:
        return _around(amount * each, factor)
    off = [
        math.log(outcome / (a * each)) for a, outcome in points
    ]  # from the default rate, as a logarithm
    if len(off) >= 3:
        spread = max(math.log(1.15), 2.2 * statistics.stdev(off) * math.sqrt(1 + 1 / len(off)))
    else:
        spread = math.log(1.6) if len(off) == 1 else max(math.log(1.4), abs(off[0] - off[1]))
    told = 0.5 ** max(0.0, min(abs(math.log10(amount / a)) for a, _ in points) - math.log10(FAR))
    found = statistics.median(off)
    width = told * spread + (1 - told) * max(math.log(factor), abs(found))
    return _around(amount * each * math.exp(told * found), math.exp(width))


def _by_ladder(
    flops: float, config: Config, inputs: Inputs, store: Store
) -> tuple[dict[str, float], str] | None:
    """Bits per byte by the newest ladder of models of the same tokens and family, and what that
    rests on; None where there is none.
    """
    digest, model = inputs["tokens"].digest, trained(config, inputs)
    ladders = (
        [
            one
            for one in store.artifacts()
            if one.stage == "scaling" and _has_input(one, "tokens", digest)
        ]
        if digest
        else []
    )
    fits = [(one, json.loads((one.path / FIT).read_text(encoding="utf-8"))) for one in ladders]
    fits = [
        (one, fit) for one, fit in fits if fit.get("family") == model.family
    ]  # a law of one network tells nothing of another's
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
    return any(
        entry["name"] == name and entry["digest"] == digest for entry in artifact.manifest["inputs"]
    )


def _loss(flops: float, points: list[tuple[float, float]]) -> dict[str, float]:
    """Bits per byte at `flops`, from (FLOPs, bits per byte) of earlier models, or the rule of
    thumb.
    """
    if not points:
        expected = ANCHOR_BPB * (flops / ANCHOR_FLOPS) ** -COMPUTE_EXPONENT
        return {"low": expected / 1.35, "expected": expected, "high": expected * 1.35}
    logs = [(math.log(f), math.log(loss)) for f, loss in points]
    slope = -COMPUTE_EXPONENT
    if max(x for x, _ in logs) - min(x for x, _ in logs) > math.log(
        2
    ):  # apart enough for a slope of their own
        slope = min(0.0, max(-0.3, statistics.linear_regression(*zip(*logs, strict=True)).slope))
    intercepts = [y - slope * x for x, y in logs]
    expected = math.exp(statistics.median(intercepts) + slope * math.log(flops))
    away = min(abs(math.log(flops) - x) for x, _ in logs)
    spread = statistics.stdev(intercepts) if len(intercepts) >= 3 else 0.04
    factor = math.exp(max(0.03, 2.2 * spread) + 0.05 * away)
    return {"low": expected / factor, "expected": expected, "high": expected * factor}
