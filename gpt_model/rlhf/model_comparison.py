"""A comparison of models: win rates, KL, drift and bits per byte, each with its 95 % interval, from
the models' answers to the same prompts, their scores and held-out text.

Arithmetic and files, no torch; which models answer, and who scores them, is the stage's.

    answers.jsonl   a line an answer: model, prompt, text, whether it ended, tokens, KL, scores
    results.json    every figure with its interval, prompts taken for independent
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_model.io import dump_json
from gpt_model.rlhf import drift, win_rates
from gpt_model.statistics import Floats, bootstrap_mean, bootstrap_ratio

if TYPE_CHECKING:
    from gpt_model.rlhf.answers import Answer
    from gpt_model.rlhf.dialogue import Dialogue
    from gpt_model.rlhf.records import Prompt
    from gpt_model.statistics import ConfidenceInterval

PRETRAINED, SUPERVISED, INSTRUCTED, DPO = "pretrained", "supervised", "instructed", "dpo"
REFERENCE, ALIGNED, WITHOUT_PTX = "policy_init", "aligned", "aligned_without_ptx"
BEST_OF = "best_of"  # the best of n answers of the reference, by the reward model
# In the order they are shown.
MODELS = (PRETRAINED, SUPERVISED, INSTRUCTED, REFERENCE, DPO, WITHOUT_PTX, ALIGNED)
# (model, the model it is compared with)
STEPS = (
    (SUPERVISED, PRETRAINED),
    (INSTRUCTED, SUPERVISED),
    (SUPERVISED, REFERENCE),
    (DPO, REFERENCE),
    (WITHOUT_PTX, REFERENCE),
    (ALIGNED, REFERENCE),
    (BEST_OF, REFERENCE),
    (ALIGNED, WITHOUT_PTX),
    (ALIGNED, DPO),
    (ALIGNED, INSTRUCTED),
)
REWARD_MODEL, JUDGE = JUDGES = ("reward_model", "judge")
RESULTS, ANSWERS_FILE = "results.json", "answers.jsonl"


@dataclass
class Comparison:
    """What was measured of each model. Every sequence of answers is in the order of the prompts."""

    prompts: list[Prompt]
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    kl: dict[str, Floats] = field(default_factory=dict)  # model -> [prompts], nats
    scores: dict[str, dict[str, Floats]] = field(
        default_factory=dict
    )  # judge -> model -> [prompts]
    # Of held-out text: model -> [windows, (nats, tokens, bytes)]
    windows: dict[str, Floats] = field(default_factory=dict)
    # The share of people's comparisons that the model's own likelihood agrees with.
    agreement: dict[str, ConfidenceInterval] = field(default_factory=dict)

    @property
    def groups(self) -> list[str]:
        """What the bootstrap draws together: the same text asked twice is one prompt."""
        return [text_of(prompt.turns) for prompt in self.prompts]

    def results(self, reference: str, best_of: int) -> dict[str, Any]:
        """What results.json has of models, steps, held-out text and drift."""
        groups = self.groups
        drifts = {name: drift.drift(answers, groups) for name, answers in self.answers.items()}
        models = {
            name: self._model(name, groups)
            | {"drift": {measure: value.as_json() for measure, value in drifts[name].items()}}
            for name in self.answers
        }
        if BEST_OF in models:
            models[BEST_OF]["kl_bound"] = win_rates.best_of_kl(best_of)
        steps = [
            {"model": model, "over": other, **self._step(model, other, groups)}
            for model, other in STEPS
            if model in self.answers and other in self.answers
        ]
        within = (
            drift.beside_reference(drifts[ALIGNED], drifts[reference]) if ALIGNED in drifts else []
        )
        return {
            "models": models,
            "steps": steps,
            "text": self._text(reference),
            "within_reference": {
                beside.measure: {"inside": beside.inside, "told": str(beside)} for beside in within
            },
        }

    def _model(self, name: str, groups: list[str]) -> dict[str, Any]:
        result: dict[str, Any] = {"empty": sum(answer.empty for answer in self.answers[name])}
        for judge, scores in self.scores.items():
            finite = np.isfinite(scores[name])
            result[f"{judge}_not_a_number"] = int((~finite).sum())
            if finite.any():
                result[judge] = _mean(scores[name], finite, groups)
        if name in self.kl:
            result["kl"] = bootstrap_mean(self.kl[name], groups).as_json()
        if name in self.agreement:
            result["prefers"] = self.agreement[name].as_json()
        return result

    def _step(self, model: str, other: str, groups: list[str]) -> dict[str, Any]:
        """Win rates by each judge; and the gap, how much higher the reward model's win rate is than
        the judge's.
        """
        wins = {
            judge: win_rates.wins(scores[model], scores[other])
            for judge, scores in self.scores.items()
        }
        result = {
            judge: rate.as_json()
            for judge, by_prompt in wins.items()
            if (rate := win_rates.win_rate(by_prompt, groups)) is not None
        }
        if len(wins) == len(JUDGES):
            gap = wins[REWARD_MODEL] - wins[JUDGE]
            finite = np.isfinite(gap)
            if finite.any():
                result["gap"] = _mean(gap, finite, groups)
        return result

    def _text(self, reference: str) -> dict[str, Any]:
        """Bits per byte of held-out text, and how much more than other models', as a share; windows
        are drawn together.
        """
        result: dict[str, Any] = {}
        for name, windows in self.windows.items():
            bits = windows[:, 0] / math.log(2)
            result[name] = {"bits_per_byte": bootstrap_ratio(bits, windows[:, 2]).as_json()}
            for other in (PRETRAINED, reference, WITHOUT_PTX):
                if other in self.windows and other != name:
                    ratio = bootstrap_ratio(windows[:, 0], self.windows[other][:, 0]).as_json()
                    rise = {end: value - 1.0 for end, value in ratio.items()}
                    result[name][f"over_{other}"] = rise
        return result

    def write(self, folder: Path, results: Mapping[str, Any]) -> None:
        """answers.jsonl and results.json."""
        with (folder / ANSWERS_FILE).open("w", encoding="utf-8") as file:
            for name, answers in self.answers.items():
                for index, (prompt, answer) in enumerate(zip(self.prompts, answers, strict=True)):
                    row: dict[str, Any] = {
                        "model": name,
                        "source": prompt.source,
                        "prompt": prompt.id,
                        "asked": text_of(prompt.turns),
                        "text": answer.text,
                        "ended": answer.ended,
                        "tokens": answer.length,
                    }
                    for judge, scores in self.scores.items():
                        row[judge] = _rounded(scores[name][index])
                    if name in self.kl:
                        row["kl"] = _rounded(self.kl[name][index])
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        dump_json(folder / RESULTS, results, indent=1)


def _mean(values: Floats, finite: np.ndarray, groups: list[str]) -> dict[str, float]:
    """Over prompts whose value is a number; values and `finite` are [prompts]."""
    counted = [group for group, number in zip(groups, finite, strict=True) if number]
    return bootstrap_mean(values[finite], counted).as_json()


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None  # JSON has no NaN


def text_of(turns: Dialogue) -> str:
    return "\n".join(turn.text for turn in turns)


def read_results(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return results


def metrics_of(results: Mapping[str, Any]) -> dict[str, float]:
    """The results by name, an interval as NAME, NAME_low and NAME_high, such as
    "aligned_over_policy_init/judge".
    """
    metrics = {"prompts": float(results["prompts"]), "left_out": float(results["left_out"])}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            metrics[name] = value["value"]
            metrics.update({f"{name}_{end}": value[end] for end in ("low", "high")})
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
