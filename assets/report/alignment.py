"""The scorecard's section about alignment: which model people would prefer, what it cost (the
alignment tax), how texts drift, and what all of it can show.

Its tables are those of the stage `preferences`, and the zero-shot suites of each model side by
side. What the tax is, and whether the paper's finding holds, is computed in
`gpt_model.evaluation.alignment_tax`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from assets.contract import Artifact, Inputs
from assets.report import preferences
from assets.report.page import Section, Text
from assets.report.scores import ZERO_SHOT_AFTER
from assets.report.tables import Table, estimate, metric, not_resampled_note
from assets.stages.alignment import BAG_OF_WORDS, NO_WORDS
from gpt_model.evaluation.alignment_tax import (
    TEXT,
    Arms,
    Finding,
    TaxedScore,
    alignment_tax,
    findings,
    scores_by_key,
    verdict,
)
from gpt_model.evaluation.results import Results, ScoreRow
from gpt_model.published import references
from gpt_model.rlhf.model_comparison import (
    ALIGNED,
    INSTRUCTED,
    PRETRAINED,
    REFERENCE,
    WITHOUT_PTX,
    read_results,
)

ORDER = (PRETRAINED, "supervised", INSTRUCTED, REFERENCE, WITHOUT_PTX, ALIGNED, "dpo")  # of columns
PPO, PTX = "PPO", "PPO-ptx"
OF_CORPUS = ("cloze", "last_word")  # suites whose tasks are made of it
# Suites of what preferences do not show, and what they are called.
BROADER = {"toxicity": "toxicity", "truthfulqa": "TruthfulQA"}
# The paper's models of 1.3B, by the columns of its table 14.
PAPER_MODELS = {"gpt3-xl": "GPT", "SFT XL": "SFT", "PPO XL": PPO, "PPO-ptx XL": PTX}
PAPER_NOTE = (
    "Ouyang et al. 2022, table 14, the models of 1.3B on public tasks, zero-shot; from a single "
    "transcription. PPO is below SFT on HellaSwag and translation, and PPO-ptx back at it or "
    "above. Other models, data and prompts than here: only the sign of a difference can be set "
    "beside ours."
)


def is_in(inputs: Inputs) -> bool:
    return "preferences" in inputs


def display_names(inputs: Inputs) -> dict[str, str]:
    """What each model is called. `aligned` is PPO-ptx only where its recipe mixes pre-training text
    in.
    """
    mixed = ALIGNED in inputs and inputs[ALIGNED].config["ppo"]["ptx_weight"]
    return {
        **{name: name for name in ORDER},
        WITHOUT_PTX: PPO,
        ALIGNED: PTX if mixed else PPO,
        "dpo": "DPO",
    }


def taxed(inputs: Inputs) -> list[TaxedScore]:
    """Held-out text and every zero-shot score, before and after."""
    mixed = display_names(inputs)[ALIGNED] == PTX
    after = {
        name: _rows(inputs[f"{ZERO_SHOT_AFTER}{name}"])
        for name in ORDER
        if f"{ZERO_SHOT_AFTER}{name}" in inputs
    }
    return alignment_tax(
        read_results(inputs["preferences"].path)["text"],
        _rows(inputs["zero_shot"]) if "zero_shot" in inputs else [],
        after,
        ORDER,
        PRETRAINED,
        Arms(REFERENCE, WITHOUT_PTX, ALIGNED) if mixed else Arms(REFERENCE, ALIGNED, None),
    )


def _rows(artifact: Artifact) -> Sequence[ScoreRow]:
    return Results.read(artifact.path).scores


def statement(inputs: Inputs) -> dict[str, Any]:
    """The part of scorecard.json about alignment: whether the paper's finding holds, and whether
    the texts of aligned stay within the reference's intervals.
    """
    finding = findings(taxed(inputs))
    within_reference = read_results(inputs["preferences"].path)["within_reference"]
    return {
        "signature": None if finding is None else {**asdict(finding), "holds": finding.holds},
        "within_reference": {
            measure: result["inside"] for measure, result in within_reference.items()
        },
    }


def section(inputs: Inputs) -> Section:
    artifact = inputs["preferences"]
    results, scores, names = read_results(artifact.path), taxed(inputs), display_names(inputs)
    parts: list[Table | Text] = []
    if results["judges"]:
        parts.append(preferences.win_rates(results))
    parts.append(preferences.models(results))
    if scores:
        parts += [
            tax_table(scores, names),
            Text("PPO regresses, PPO-ptx recovers", _signature(scores, names)),
            paper_table(scores),
        ]
    if (judges := judges_table(inputs)).columns:
        parts.append(judges)
    parts.append(preferences.drift(results))
    if paragraph := _dpo(results, names):
        parts.append(Text("DPO beside PPO", paragraph))
    samples = preferences.samples(artifact.path, inputs.get("prompts"))
    parts.append(Text("The same prompts", samples))
    parts.append(Text("What this can and cannot show", limits(inputs, results)))
    return Section("Win rates, alignment tax, drift and samples", parts, group="Alignment")


def samples(inputs: Inputs, prompts: int) -> Section:
    """Held-out prompts, answered by the model that was aligned last."""
    preferred = inputs["preferences"]
    models = read_results(preferred.path)["models"]
    name = next((name for name in (ALIGNED, "dpo", INSTRUCTED) if name in models), REFERENCE)
    blocks = preferences.sample_blocks(preferred.path, inputs.get("prompts"), [name])
    texts = [Text(f"prompt {number}", block) for number, block in enumerate(blocks[:prompts], 1)]
    intro = f"Held-out prompts, in brackets, and what {display_names(inputs)[name]} answers."
    return Section("Samples", texts, intro=intro)


def paper_table(scores: Sequence[TaxedScore]) -> Table:
    """The paper's scores, before and after, of the public tasks that ours have too."""
    ours = {score.name.lower() for score in scores}
    rows: dict[str, dict[str, str]] = {}
    for reference in references(generation="instructgpt", role="paper"):
        measured_here = any(reference.task.lower() in name for name in ours)
        if reference.shots == "zero" and reference.model in PAPER_MODELS and measured_here:
            task = f"{reference.task}, {reference.metric}"
            rows.setdefault(task, {"task": task})[PAPER_MODELS[reference.model]] = reference.printed
    return Table(list(rows.values()), "InstructGPT, table 14", PAPER_NOTE)


def tax_table(scores: Sequence[TaxedScore], names: Mapping[str, str]) -> Table:
    models = [name for name in ORDER if any(name in score.scores for score in scores)]
    rows = [
        {
            "score": f"{score.name} ↓" if score.lower_is_better else score.name,
            **{names[model]: estimate(score.scores.get(model)) for model in models},
            "PPO against policy_init": score.regression,
            "PPO-ptx against PPO": score.recovery,
        }
        for score in scores
    ]
    note = (
        "↓: lower is better. In brackets: 95 % interval. Better or worse: significantly so. Of "
        "held-out text windows are drawn together for both models; of suites the two scores are "
        "taken for independent, though the examples are the same, and the level is shared out over "
        "the suites' scores (Bonferroni), so a small regression may go unseen. The suite held_out "
        "is of the first row's text once more, and is left out."
    )
    return Table(rows, "Alignment tax: before and after", note).without_empty_columns()


def _signature(scores: Sequence[TaxedScore], names: Mapping[str, str]) -> str:
    """Whether InstructGPT's finding holds, on tasks and on held-out text, as Markdown."""
    result = findings(scores)
    if result is None:
        return "Not measured: the recipe has not PPO with and without pre-training text both."
    tasks = [score for score in scores if score.name != TEXT]
    lines = [
        "InstructGPT's finding (4.2), that on tasks PPO loses and PPO-ptx wins it back, holds "
        f"here: **{result.holds}**.",
        "",
    ]
    if result.tasks:
        lines += [f"On tasks{_of_corpus(tasks)}:", *_halves(result.tasks, tasks, names)]
    else:
        lines.append("No task was measured before and after.")
    if result.text:
        text = [score for score in scores if score.name == TEXT]
        lines += [
            "",
            "On held-out text of the corpus, more of which PPO-ptx is trained on, so that this is "
            "no finding of the paper's:",
            *_halves(result.text, text, names),
        ]
    lines += [
        "",
        "Regresses: significantly worse in at least one row above. Does not: significantly better "
        "in all. Recovers: significantly better than PPO in a row that regressed, worse in none of "
        "them. Else it is undecided.",
    ]
    return "\n".join(lines)


def _of_corpus(tasks: Sequence[TaxedScore]) -> str:
    suites = [
        suite for suite in OF_CORPUS if any(score.name.startswith(f"{suite} ") for score in tasks)
    ]
    if not suites:
        return ""
    return (
        f" ({' and '.join(suites)}: made of held-out text of the same corpus, where the paper's "
        "are public)"
    )


def _halves(finding: Finding, scores: Sequence[TaxedScore], names: Mapping[str, str]) -> list[str]:
    """Both halves of the finding, with the scores that regressed; of what did not, where one score
    is all that was measured.
    """
    shown = [score for score in scores if score.name in finding.regressed or len(scores) == 1]

    def beside(before: str, after: str) -> str:
        """ " (held-out text, bits per byte: policy_init 2.101 (…), PPO 2.140 (…))" """
        parts = [
            f"{score.name}: "
            + ", ".join(
                f"{names[model]} {estimate(score.scores[model])}"
                for model in (before, after)
                if model in score.scores
            )
            for score in shown
        ]
        return f" ({'; '.join(parts)})" if parts else ""

    nothing = "" if finding.regressed else ", as nothing is significantly lost"
    return [
        "- PPO without pre-training text regresses from policy_init: "
        f"**{finding.regresses}**{beside(REFERENCE, WITHOUT_PTX)}.",
        f"- PPO-ptx recovers what PPO lost: **{finding.recovers}**{nothing}"
        f"{beside(WITHOUT_PTX, ALIGNED)}.",
    ]


def judges_table(inputs: Inputs) -> Table:
    """The reward model beside the bag of words on the same pairs, and the judge."""
    rows = []
    judges = (
        ("reward model", "reward_model", ""),
        ("bag of words, same pairs", "reward_model", f"{BAG_OF_WORDS}/"),
        ("judge", "judge", ""),
    )
    for title, name, prefix in judges:
        metrics = inputs[name].metrics if name in inputs else {}
        row = {"who": title, "pairwise accuracy": "", "against chance": "", "calibration error": ""}
        if f"{prefix}accuracy" in metrics:
            accuracy = {
                "value": metrics[f"{prefix}accuracy"],
                "low": metrics[f"{prefix}accuracy_low"],
                "high": metrics[f"{prefix}accuracy_high"],
            }
            row |= {
                "pairwise accuracy": metric(metrics, f"{prefix}accuracy"),
                "against chance": verdict(accuracy),
            }
            if not prefix and "calibration_error" in metrics:
                row["calibration error"] = f"{metrics['calibration_error']:.3f}"
            rows.append(row)
        elif prefix and f"{prefix}not_run" in metrics:
            rows.append(row | {"pairwise accuracy": f"not run: {NO_WORDS}"})
    note = (
        "Share of held-out comparisons in which the better text has the higher score; 95 % "
        "interval by bootstrap over rankings; better: than chance, 0.5. Calibration error: "
        "expected, of the probability that the difference of two rewards gives. The judge is a bag "
        "of words, too, trained on texts that nothing else sees."
    )
    note += not_resampled_note(row["pairwise accuracy"] for row in rows)
    return Table(rows, "The reward model beside a bag of words", note).without_empty_columns()


def _dpo(results: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """What the same comparisons give without a reward model."""
    steps = {(step["model"], step["over"]): step for step in results["steps"]}
    if (step := steps.get((ALIGNED, "dpo"))) is None:
        return ""
    ours = names[ALIGNED]
    preferred = {
        "better": f"{ours} is preferred to DPO",
        "worse": f"DPO is preferred to {ours}",
        "undecided": "neither is significantly preferred",
    }
    rate = step.get("judge")
    by_judge = f"By the judge {preferred[verdict(rate)]}: {estimate(rate)}. " if rate else ""
    kl = [
        f"{names[name]} {estimate(results['models'][name]['kl'])}"
        for name in (ALIGNED, "dpo")
        if "kl" in results["models"][name]
    ]
    return (
        f"{by_judge}KL from policy_init, nats an answer: {', '.join(kl)}. The two went different "
        "ways from it with settings of their own, so which is better at one and the same KL is not "
        "measured."
    )


def limits(inputs: Inputs, results: Mapping[str, Any]) -> str:
    """What must not be read into the tables. `rated`: single texts under one instruction, each with
    people's mean rating.
    """
    sources = inputs["comparisons"].config.get("sources", []) if "comparisons" in inputs else []
    rated = [source["name"] for source in sources if source.get("form") == "rated"]
    parts = [
        f"The models are small, and so is the sample: {results['prompts']} held-out prompts, one "
        "answer each, from one run with one seed. The intervals are over prompts; another run "
        "would differ by more than they say.",
        "No person read these answers. People's judgement is in the comparisons alone; what scores "
        "new texts was trained on them, and is right about held-out ones only as often as the "
        "table says. Nobody measured helpfulness, honesty or harm.",
    ]
    if rated:
        parts.append(
            f"The ratings ({', '.join(rated)}) are of unrelated single sentences, set against each "
            "other under one instruction: a mean of some raters' sentiment, not which of two "
            "answers to a question is better. A policy that wins here writes sentences that sound "
            "more favourable. That is all it shows; it does not follow instructions better for it."
        )
    if "judge" in results["judges"]:
        parts.append(
            "The judge is a bag of words. It saw none of the reward model's texts, so a win by it "
            "is not the reward model's flaw exploited again; but it knows neither order nor sense, "
            "and what both like for the same wrong reason (a kind word) wins with both."
        )
    suites = {
        suite
        for artifact in inputs.values()
        if artifact.stage == "zero_shot"
        for suite, _, _ in scores_by_key(_rows(artifact))
    }
    if missing := [name for suite, name in BROADER.items() if suite not in suites]:
        parts.append(f"Not run here: {' and '.join(missing)}.")
    return "\n\n".join(parts)
