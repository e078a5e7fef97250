"""What comes of a comparison of models: every figure with its interval, from the answers, their
scores and the held-out text.

Which models answer, and who scores them, is `preferences.py`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from assets.contract import Metrics
from gpt_model.rlhf import drift, win_rates
from gpt_model.statistics import ConfidenceInterval, bootstrap_mean, bootstrap_ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpt_model.rlhf.answers import Answer
    from gpt_model.rlhf.dialogue import Dialogue
    from gpt_model.rlhf.records import Prompt

MODELS = (
    "pretrained",
    "supervised",
    "instructed",
    "policy_init",
    "dpo",
    "aligned_without_ptx",
    "aligned",
)  # in the order they are shown
REFERENCE, BEST, ALIGNED, PLAIN = "policy_init", "best_of", "aligned", "aligned_without_ptx"
PRETRAINED, CHOSEN = "pretrained", "instructed"
STEPS = (
    ("supervised", PRETRAINED),
    (CHOSEN, "supervised"),
    ("supervised", REFERENCE),
    ("dpo", REFERENCE),
    (PLAIN, REFERENCE),
    (ALIGNED, REFERENCE),
    (BEST, REFERENCE),
    (ALIGNED, PLAIN),
    (ALIGNED, "dpo"),
    (ALIGNED, CHOSEN),
)
JUDGES = ("reward_model", "judge")
RESULTS, ANSWERS = "results.json", "answers.jsonl"


@dataclass
class Compared:
    """What is known of each model, answer by answer: in the order of the prompts."""

    prompts: list[Prompt]
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    kl: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    scores: dict[str, dict[str, NDArray[np.float64]]] = field(
        default_factory=dict
    )  # judge -> model -> of each answer
    windows: dict[str, NDArray[np.float64]] = field(
        default_factory=dict
    )  # of held-out text: nats, tokens, bytes
    prefers: dict[str, ConfidenceInterval] = field(default_factory=dict)

    @property
    def groups(self) -> list[str]:
        """What is drawn together: the same words asked twice are one prompt."""
        return [asked(prompt.turns) for prompt in self.prompts]


def results_of(compared: Compared, reference: str, best_of: int) -> dict[str, Any]:
    groups = compared.groups
    drifts = {
        name: drift.drift(
            [drift.Written(a.text, len(a.tokens) - a.ended, a.ended) for a in answers], groups
        )
        for name, answers in compared.answers.items()
    }
    held = drift.beside_reference(drifts[ALIGNED], drifts[reference]) if ALIGNED in drifts else []
    models = {
        name: _model(compared, name, groups) | {"drift": _plain(drifts[name])}
        for name in compared.answers
    }
    if BEST in models:
        models[BEST]["kl_bound"] = win_rates.best_of_kl(best_of)
    steps = [
        {"model": model, "over": over, **_step(compared, model, over, groups)}
        for model, over in STEPS
        if model in compared.answers and over in compared.answers
    ]
    return {
        "models": models,
        "steps": steps,
        "text": _text(compared.windows, reference),
        "within_reference": {one.measure: {"inside": one.inside, "told": str(one)} for one in held},
    }


def _model(compared: Compared, name: str, groups: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"empty": sum(answer.empty for answer in compared.answers[name])}
    for judge, scores in compared.scores.items():
        numbers = np.isfinite(scores[name])
        found[f"{judge}_not_a_number"] = int((~numbers).sum())
        if numbers.any():
            counted = [group for group, one in zip(groups, numbers, strict=True) if one]
            found[judge] = bootstrap_mean(scores[name][numbers], counted).as_json()
    if name in compared.kl:
        found["kl"] = bootstrap_mean(compared.kl[name], groups).as_json()
    if name in compared.prefers:
        found["prefers"] = compared.prefers[name].as_json()
    return found


def _step(compared: Compared, model: str, over: str, groups: list[str]) -> dict[str, Any]:
    """Win rates by each judge, and how much more of them the reward model sees than the judge,
    prompt by prompt.
    """
    won = {
        judge: win_rates.wins(scores[model], scores[over])
        for judge, scores in compared.scores.items()
    }
    found = {
        judge: rate.as_json()
        for judge, one in won.items()
        if (rate := win_rates.win_rate(one, groups)) is not None
    }
    if len(won) == len(JUDGES):
        gap = won["reward_model"] - won["judge"]
        numbers = np.isfinite(gap)
        if numbers.any():
            counted = [g for g, one in zip(groups, numbers, strict=True) if one]
            found["gap"] = bootstrap_mean(gap[numbers], counted).as_json()
    return found


def _text(windows: Mapping[str, NDArray[np.float64]], reference: str) -> dict[str, Any]:
    """Bits per byte of held-out text, and by what share they are more than another model's, window
    by window.
    """
    found: dict[str, Any] = {}
    for name, own in windows.items():
        rises = {
            f"over_{other}": _plain_one(bootstrap_ratio(own[:, 0], windows[other][:, 0]), less=1.0)
            for other in (PRETRAINED, reference, PLAIN)
            if other in windows and other != name
        }
        found[name] = {
            "bits_per_byte": bootstrap_ratio(own[:, 0] / math.log(2), own[:, 2]).as_json(),
            **rises,
        }
    return found


def _plain(estimates: Mapping[str, ConfidenceInterval]) -> dict[str, Any]:
    return {name: one.as_json() for name, one in estimates.items()}


def _plain_one(estimate: ConfidenceInterval, less: float) -> dict[str, float]:
    return {name: value - less for name, value in estimate.as_json().items()}


def flat(results: Mapping[str, Any]) -> Metrics:
    """The figures by name: "aligned_over_policy_init/judge", "aligned_over_policy_init/judge_low" …"""
    metrics: Metrics = {
        "prompts": float(results["prompts"]),
        "left_out": float(results["left_out"]),
    }

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            metrics.update(
                {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
            )
        elif isinstance(value, int | float):
            metrics[name] = float(value)

    for step in results["steps"]:
        for judge in (*JUDGES, "gap"):
            add(f"{step['model']}_over_{step['over']}/{judge}", step.get(judge))
    for name, model in results["models"].items():
        for figure, value in {**model, **model["drift"]}.items():
            if figure != "drift":
                add(f"{name}/{figure}", value)
    for name, text in results["text"].items():
        for figure, value in text.items():
            add(f"{name}/bpb" + ("" if figure == "bits_per_byte" else f"_{figure}"), value)
    return metrics


def read(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / RESULTS).read_text(encoding="utf-8"))
    return found


def write(output: Path, compared: Compared, results: Mapping[str, Any]) -> None:
    with (output / ANSWERS).open("w", encoding="utf-8") as file:
        for name, answers in compared.answers.items():
            for place, (prompt, answer) in enumerate(zip(compared.prompts, answers, strict=True)):
                row: dict[str, Any] = {
                    "model": name,
                    "source": prompt.source,
                    "prompt": prompt.id,
                    "asked": asked(prompt.turns),
                    "text": answer.text,
                    "ended": answer.ended,
                    "tokens": len(answer.tokens) - answer.ended,
                }
                row |= {
                    judge: _rounded(scores[name][place])
                    for judge, scores in compared.scores.items()
                }
                row |= {"kl": _rounded(compared.kl[name][place])} if name in compared.kl else {}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    (output / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None  # JSON has no NaN


def asked(turns: Dialogue) -> str:
    return "\n".join(turn.text for turn in turns)
