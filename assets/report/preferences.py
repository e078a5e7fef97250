"""What a person sees of a comparison of models: its tables, a picture of the win rates, a few
answers to the same prompts.

The tables are those of the scorecard's section about alignment, too (`alignment.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from assets.contract import Artifact, Built
from assets.report import plots
from assets.report.tables import Table, code_block, estimate, write_markdown
from assets.stages.base_model import READ_ON
from gpt_model.evaluation.alignment_tax import verdict
from gpt_model.io import read_json_lines
from gpt_model.rlhf.drift import NAMES
from gpt_model.rlhf.model_comparison import (
    ANSWERS_FILE,
    BEST_OF,
    INSTRUCTED,
    JUDGES,
    PRETRAINED,
    read_results,
)
from gpt_model.rlhf.records import excerpt, unlicensed_sources

JUDGE_NAMES = {"reward_model": "by the reward model", "judge": "by the judge"}
PROMPTS = 3  # whose answers are shown
MOST_CHARACTERS = 600  # of an answer
MOST_HIDDEN_CHARACTERS = 160  # of one to a prompt whose licence does not cover the text


def show(built: Built, folder: Path) -> None:
    """win_rates.png, win_rates.md, models.md, drift.md and samples.md."""
    results = read_results(built.output)
    if any(judge in step for step in results["steps"] for judge in JUDGES):
        _plot_win_rates(results, folder / "win_rates.png")
        write_markdown(folder / "win_rates.md", win_rates(results))
    write_markdown(folder / "models.md", models(results))
    write_markdown(folder / "drift.md", drift(results))
    write_markdown(folder / "samples.md", samples(built.output, built.inputs.get("prompts")))


def win_rates(results: Mapping[str, Any]) -> Table:
    """Which model is preferred over which, by each judge."""
    judges = results["judges"]
    rows = [
        {
            "step": step["model"],
            "over": step["over"],
            **{JUDGE_NAMES[judge]: estimate(step.get(judge)) for judge in judges},
            "the reward model's more": estimate(step.get("gap")),
            "verdict of the last judge": verdict(step.get(judges[-1] if judges else "")),
        }
        for step in results["steps"]
    ]
    note = (
        f"Share of {results['prompts']} held-out prompts on which a step's answer is scored above "
        "the other's, ties half; 95 % interval by bootstrap over prompts, and no less than what "
        "prompts not met yet may do. 0.5: no difference. The "
        "policies were trained to please the reward model, not the judge, which was trained on "
        "texts that the reward model never saw: a gain that the reward model alone sees is a sign "
        "of reward hacking."
    )
    if PRETRAINED in results["models"]:
        note += (
            " pretrained knows no turns: it reads the same words as plain text, the turns joined "
            "by line breaks without markers, and its continuation is its answer, to end-of-text or "
            "the longest allowed."
        )
    if not results.get("chosen_apart", True):
        note += (
            f" {INSTRUCTED} was chosen by the reward model on these prompts, as there are only "
            f"{results['chosen_left']} others: its win rates, by the judge too, are a little too "
            "good."
        )
    if BEST_OF in results["models"]:
        note += (
            f" {BEST_OF}: the best of {results['best_of']} answers of policy_init by the reward "
            "model, whose own rate is high by that alone."
        )
    return Table(rows, "Win rates, step by step", note).without_empty_columns()


def models(results: Mapping[str, Any]) -> Table:
    """Each model's scores, its KL, its held-out text and how it ranks people's comparisons."""
    reference = results["reference"]
    rows = []
    for name, model in results["models"].items():
        text = results["text"].get(name, {})
        bound = f"at most {model['kl_bound']:.3f}" if "kl_bound" in model else ""
        rows.append(
            {
                "model": name,
                "mean reward": estimate(model.get("reward_model")),
                "mean score of the judge": estimate(model.get("judge")),
                f"KL to {reference}, nats an answer": bound or estimate(model.get("kl")),
                "bits per byte": estimate(text.get("bits_per_byte")),
                f"over {reference}": estimate(text.get(f"over_{reference}"), "+.2%"),
                "over pretrained": estimate(text.get("over_pretrained"), "+.2%"),
                "likes what people prefer": estimate(model.get("prefers")),
                "empty answers": str(model.get("empty", "")),
            }
        )
    note = (
        f"In brackets: 95 % interval. KL: log-probability of a model's own answers less what "
        f"{reference} gives them; of the best of n the bound log n − (n − 1)/n. Bits per byte: of "
        f"held-out text of the corpus, {READ_ON}; windows are drawn together for both models. "
        "Likes what people prefer: share of held-out comparisons in which the model itself gives "
        "the better text more log-probability by the token; no new text is rated by people here."
    )
    return Table(rows, "The models", note).without_empty_columns()


def drift(results: Mapping[str, Any]) -> Table:
    """How each model's texts look, the reference's first; and whether the aligned model's stay
    within the reference's intervals.
    """
    names = sorted(results["models"], key=lambda name: name != results["reference"])
    rows = [
        {
            "model": name,
            **{
                column: estimate(
                    results["models"][name]["drift"][measure],
                    "z.1f" if measure == "length" else "z.3f",
                )
                for measure, column in NAMES.items()
            },
        }
        for name in names
    ]
    note = (
        "Words are counted, length in tokens. Distinct-n: different n-grams by n-grams in pools of "
        "10 answers. Repeated 3-grams: of an answer's 3-grams, those it has had before. In "
        "brackets: 95 % interval, by bootstrap over prompts; of shares at least what prompts not "
        "met yet may do."
    )
    if measures := results["within_reference"].values():
        inside = all(measure["inside"] for measure in measures)
        note += (
            " Distinct-2, repetition and length of aligned lie within policy_init's interval: "
            f"**{str(inside).lower()}** ({'; '.join(measure['told'] for measure in measures)}). "
            "The rule is strict: of two samples of one model, one mean lies outside the other's "
            "interval about one time in six."
        )
    return Table(rows, "Drift: is the reward hacked?", note).without_empty_columns()


def samples(output: Path, prompts: Artifact | None) -> str:
    """The same prompts answered by each model, as Markdown."""
    blocks = sample_blocks(output, prompts)
    introduction = f"The same {len(blocks)} held-out prompts, answered by each model."
    return "\n\n".join([introduction, *blocks])


def sample_blocks(
    output: Path, prompts: Artifact | None, models: Sequence[str] | None = None
) -> list[str]:
    """A block for each of the first prompts, with the answers of these models, or of all. Answers
    are cut, and more so where a source's licence does not cover its text.
    """
    unlicensed = unlicensed_sources(prompts.path) if prompts else set()
    answers = read_json_lines(output / ANSWERS_FILE)

    def prompt(answer: Mapping[str, Any]) -> tuple[str, str]:
        return answer["source"], answer["prompt"]

    first = list(dict.fromkeys(map(prompt, answers)))[:PROMPTS]
    shown = sorted(
        (
            answer
            for answer in answers
            if prompt(answer) in first and (models is None or answer["model"] in models)
        ),
        key=lambda answer: first.index(prompt(answer)),
    )
    return [
        code_block(_sample(list(group), source in unlicensed))
        for (source, _), group in groupby(shown, prompt)
    ]


def _sample(answers: Sequence[Mapping[str, Any]], unlicensed: bool) -> str:
    """A prompt, and below it each model's answer with its scores."""
    question = answers[0]["asked"]
    size = MOST_HIDDEN_CHARACTERS if unlicensed else MOST_CHARACTERS
    parts = [f"[{_cut(excerpt(question) if unlicensed else question, MOST_CHARACTERS)}]"]
    for answer in answers:
        scores = ", ".join(
            f"{judge.replace('_', ' ')} {answer[judge]:.2f}"
            for judge in JUDGES
            if answer.get(judge) is not None
        )
        name = f"{answer['model']} ({scores})" if scores else answer["model"]
        parts.append(f"{name}:\n{_cut(answer['text'].strip(), size) or '(nothing)'}")
    return "\n\n".join(parts)


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[:size]}…"


def _plot_win_rates(results: Mapping[str, Any], path: Path) -> None:
    steps = results["steps"]
    with plots.picture(path, width=8, height=plots.rows_height(len(steps))) as axes:
        for number, judge in enumerate(results["judges"]):
            rates = {row: step[judge] for row, step in enumerate(steps) if judge in step}
            value, low, high = (
                [rate[end] for rate in rates.values()] for end in ("value", "low", "high")
            )
            rows = [row + 0.12 * number for row in rates]
            plots.row_intervals(axes, rows, value, low, high, JUDGE_NAMES[judge])
        plots.name_rows(axes, [f"{step['model']} over {step['over']}" for step in steps])
        axes.axvline(0.5, color="grey", linewidth=1)
        axes.set(xlim=(0, 1), xlabel="win rate, 95 % interval")
