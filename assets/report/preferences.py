"""What a person sees of a comparison of models: tables in Markdown, a picture of the win rates, a
few answers to the same prompts.

The tables are the scorecard's, too (`assets/report/scorecard_alignment.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.contract import Artifact, Built
from assets.stages.human_data import hidden, shortened
from assets.stages.preferences_results import ANSWERS, BEST, CHOSEN, JUDGES, PRETRAINED, read
from gpt_model.evaluation.alignment_tax import verdict
from gpt_model.rlhf.drift import NAMES

NAMED = {"reward_model": "by the reward model", "judge": "by the judge"}
SHOWN = 3  # prompts whose answers are shown
SHORT = 160  # characters of an answer at most, where the licence does not cover the text
LONG = 600


def show(built: Built, folder: Path) -> None:
    """win_rates.png, win_rates.md, models.md, drift.md and samples.md."""
    results = read(built.output)
    if any(judge in step for step in results["steps"] for judge in JUDGES):
        _picture(results, folder / "win_rates.png")
        (folder / "win_rates.md").write_text(
            f"{_markdown(*steps(results))}\n\n{steps_note(results)}\n", encoding="utf-8"
        )
    (folder / "models.md").write_text(
        f"{_markdown(*models(results))}\n\n{models_note(results)}\n", encoding="utf-8"
    )
    (folder / "drift.md").write_text(
        f"{_markdown(*drifts(results))}\n\n{drift_note(results)}\n", encoding="utf-8"
    )
    (folder / "samples.md").write_text(
        samples(built.output, built.inputs.get("prompts")), encoding="utf-8"
    )


def interval(found: Mapping[str, float] | None, places: int = 3, percent: bool = False) -> str:
    """ "0.612 (0.560 – 0.660)" """
    if found is None:
        return ""
    if percent:
        return f"{found['value']:+.2%} ({found['low']:+.2%} – {found['high']:+.2%})"
    value, low, high = (round(found[name], places) + 0.0 for name in ("value", "low", "high"))
    return f"{value:.{places}f} ({low:.{places}f} – {high:.{places}f})"


Cells = tuple[list[str], list[list[str]]]


def steps(results: Mapping[str, Any]) -> Cells:
    """Which model over which, by whom."""
    columns = [
        "step",
        "over",
        *(NAMED[judge] for judge in results["judges"]),
        "the reward model's more",
        "verdict of the last judge",
    ]
    last = results["judges"][-1] if results["judges"] else ""
    rows = [
        [
            step["model"],
            step["over"],
            *(interval(step.get(judge)) for judge in results["judges"]),
            interval(step.get("gap")),
            verdict(step.get(last)),
        ]
        for step in results["steps"]
    ]
    return columns, rows


def steps_note(results: Mapping[str, Any]) -> str:
    told = (
        f"Share of {results['prompts']} held-out prompts on which a step's answer is scored above the other's, ties half; 95 % interval "
        "by bootstrap over prompts. 0.5: no difference. The policies were trained to please the reward model, not the judge, which learnt "
        "from texts it never saw: a gain that the reward model alone sees is a sign of reward hacking."
    )
    if PRETRAINED in results["models"]:
        told += (
            " pretrained knows no turns: it reads the same words as plain text, the turns joined by line breaks without markers, and what "
            "it goes on with is its answer, to end-of-text or the longest allowed."
        )
    if not results.get("chosen_apart", True):
        told += (
            f" {CHOSEN} was chosen by the reward model on these very prompts, as there are only {results['chosen_left']} others: what is "
            "said of it, by the judge too, is a little too good."
        )
    if BEST in results["models"]:
        told += f" {BEST}: the best of {results['best_of']} answers of policy_init by the reward model, whose own rate is high by that alone."
    return told


def models(results: Mapping[str, Any]) -> Cells:
    """Each model's scores, distance, held-out text and likings."""
    reference = results["reference"]
    columns = [
        "model",
        "mean reward",
        "mean score of the judge",
        f"KL to {reference}, nats an answer",
        "bits per byte",
        f"over {reference}",
        "over pretrained",
        "likes what people prefer",
        "empty answers",
    ]
    rows = []
    for name, found in results["models"].items():
        text = results["text"].get(name, {})
        kl = (
            f"at most {found['kl_bound']:.3f}" if "kl_bound" in found else interval(found.get("kl"))
        )
        rows.append(
            [
                name,
                interval(found.get("reward_model")),
                interval(found.get("judge")),
                kl,
                interval(text.get("bits_per_byte")),
                interval(text.get(f"over_{reference}"), percent=True),
                interval(text.get("over_pretrained"), percent=True),
                interval(found.get("prefers")),
                str(found.get("empty", "")),
            ]
        )
    return columns, rows


def models_note(results: Mapping[str, Any]) -> str:
    return (
        f"In brackets: 95 % interval. KL: log-probability of a model's own answers less what {results['reference']} gives them; of the "
        "best of n the bound log n − (n − 1)/n. Bits per byte: of held-out text of the corpus, windows drawn together for both models. "
        "Likes what people prefer: share of held-out comparisons in which the model itself gives the better text more log-probability by "
        "the token; no new text is rated by people here."
    )


def drifts(results: Mapping[str, Any]) -> Cells:
    """How each model's texts look, the reference's first."""
    names = sorted(results["models"], key=lambda name: name != results["reference"])
    rows = [
        [
            name,
            *(
                interval(results["models"][name]["drift"][measure], 1 if measure == "length" else 3)
                for measure in NAMES
            ),
        ]
        for name in names
    ]
    return ["model", *NAMES.values()], rows


def drift_note(results: Mapping[str, Any]) -> str:
    """What the columns are, and whether what is watched stays within the reference's interval."""
    told = (
        "Words are counted, length in tokens. Distinct-n: different n-grams by n-grams in pools of 10 answers. Repeated 3-grams: of an "
        "answer's 3-grams, those it has had before. In brackets: 95 % interval, by bootstrap over prompts."
    )
    if held := results["within_reference"]:
        inside = all(one["inside"] for one in held.values())
        told += (
            f" Distinct-2, repetition and length of aligned lie within policy_init's interval: **{str(inside).lower()}** "
            f"({'; '.join(one['told'] for one in held.values())}). The rule is strict: of two samples of one model, one mean lies outside "
            "the other's interval about one time in six."
        )
    return told


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without the columns in which nothing stands."""
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    lines = [
        [columns[place] for place in kept],
        ["---"] * len(kept),
        *([row[place] for place in kept] for row in rows),
    ]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def samples(output: Path, prompts: Artifact | None) -> str:
    """The same prompts answered by each model. Answers are cut, and more so where a source's
    licence does not cover its text.
    """
    unseen = hidden(prompts.path) if prompts else set()
    by_prompt: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with (output / ANSWERS).open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            by_prompt.setdefault((row["source"], row["prompt"]), []).append(row)
    parts = [f"The same {min(SHOWN, len(by_prompt))} held-out prompts, answered by each model."]
    for (source, _), rows in list(by_prompt.items())[:SHOWN]:
        size = SHORT if source in unseen else LONG
        answers = "\n\n".join(
            f"{row['model']}{_scores(row)}:\n{_cut(row['text'].strip(), size) or '(nothing)'}"
            for row in rows
        )
        asked = shortened(rows[0]["asked"]) if source in unseen else rows[0]["asked"]
        parts.append(f"```text\n[{_cut(asked, LONG)}]\n\n{answers}\n```")
    return "\n\n".join(parts) + "\n"


def _scores(row: Mapping[str, Any]) -> str:
    told = [
        f"{judge.replace('_', ' ')} {row[judge]:.2f}"
        for judge in JUDGES
        if row.get(judge) is not None
    ]
    return f" ({', '.join(told)})" if told else ""


def _cut(text: str, size: int) -> str:
    text = text.replace("```", "'''")
    return text if len(text) <= size else f"{text[:size]}…"


def _picture(results: Mapping[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 * len(results["steps"]) + 1.4), layout="constrained")
    axes = figure.subplots()
    for number, judge in enumerate(results["judges"]):
        for place, step in enumerate(results["steps"]):
            if (rate := step.get(judge)) is not None:
                error = [[rate["value"] - rate["low"]], [rate["high"] - rate["value"]]]
                label = NAMED[judge] if place == 0 else None
                axes.errorbar(
                    rate["value"],
                    place + 0.12 * number,
                    xerr=error,
                    fmt="o",
                    color=f"C{number}",
                    capsize=3,
                    label=label,
                )
    axes.set_yticks(
        range(len(results["steps"])),
        [f"{step['model']} over {step['over']}" for step in results["steps"]],
    )
    axes.invert_yaxis()
    axes.axvline(0.5, color="grey", linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_xlabel("win rate, 95 % interval")
    axes.legend()
    figure.savefig(path, dpi=90)
