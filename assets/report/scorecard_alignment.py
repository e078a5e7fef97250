"""The scorecard's section about alignment: who answers better, what it cost (the alignment tax),
how texts drift, and what it all can show.

Its tables are those of the stage `preferences`, and the zero-shot suites of each model side by
side. What the tax is, and whether the paper's finding holds, is computed in
`gpt_model.evaluation.alignment_tax`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from assets.contract import Artifact, Inputs
from assets.report import preferences as page
from assets.report.page import Section, Table, Text
from assets.report.scores import ZERO_SHOT_AFTER
from assets.stages.preferences_results import ALIGNED, CHOSEN, PLAIN, PRETRAINED, REFERENCE, read
from assets.stages.rankings import BAG_OF_WORDS, NO_WORDS
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

ORDER = (PRETRAINED, "supervised", CHOSEN, REFERENCE, PLAIN, ALIGNED, "dpo")  # of columns
PPO, PTX = "PPO", "PPO-ptx"
OF_CORPUS = ("cloze", "last_word")  # suites whose tasks are made of it
BROADER = {
    "toxicity": "toxicity",
    "truthfulqa": "TruthfulQA",
}  # suites of what preferences do not show
# Ouyang et al. 2022, table 14 (appendix E), GPT-3 XL of 1.3B: GPT, SFT, PPO, PPO-ptx. From a single
# transcription of the paper.
PAPER = {
    "HellaSwag, accuracy, zero-shot": (".549", ".528", ".507", ".552"),
    "SQuADv2, F1, zero-shot": ("51.97", "36.88", "45.37", "45.46"),
    "DROP, F1, zero-shot": ("17.68", "13.29", "14.70", "14.71"),
    "French to English, BLEU, zero-shot": ("30.65", "25.56", "19.85", "25.77"),
}


def is_in(inputs: Inputs) -> bool:
    return "preferences" in inputs


def named(inputs: Inputs) -> dict[str, str]:
    """What each model is called. `aligned` is PPO-ptx only where its recipe mixes pre-training text
    in.
    """
    mixed = ALIGNED in inputs and inputs[ALIGNED].config["ppo"]["ptx_weight"]
    return {
        **{name: name for name in ORDER},
        PLAIN: PPO,
        ALIGNED: PTX if mixed else PPO,
        "dpo": "DPO",
    }


def taxed(inputs: Inputs) -> list[TaxedScore]:
    """Held-out text and every zero-shot score, before and after."""
    mixed = named(inputs)[ALIGNED] == PTX
    after = {
        name: _rows(inputs[f"{ZERO_SHOT_AFTER}{name}"])
        for name in ORDER
        if f"{ZERO_SHOT_AFTER}{name}" in inputs
    }
    return alignment_tax(
        read(inputs["preferences"].path)["text"],
        _rows(inputs["zero_shot"]) if "zero_shot" in inputs else [],
        after,
        ORDER,
        PRETRAINED,
        Arms(REFERENCE, PLAIN, ALIGNED) if mixed else Arms(REFERENCE, ALIGNED, None),
    )


def _rows(artifact: Artifact) -> Sequence[ScoreRow]:
    return Results.read(artifact.path).scores


def statement(inputs: Inputs) -> dict[str, Any]:
    """What scorecard.json keeps: the signature, and whether the texts of aligned stay within the
    reference's intervals.
    """
    found, held = findings(taxed(inputs)), read(inputs["preferences"].path)["within_reference"]
    return {
        "signature": None if found is None else {**asdict(found), "holds": found.holds},
        "within_reference": {measure: one["inside"] for measure, one in held.items()},
    }


# --- the section ---


def section(inputs: Inputs) -> Section:
    preferences = inputs["preferences"]
    results, measured, names = read(preferences.path), taxed(inputs), named(inputs)
    tables: list[Table | Text] = []
    if results["judges"]:
        tables.append(
            _table("Win rates, step by step", page.steps(results), page.steps_note(results))
        )
    tables.append(_table("The models", page.models(results), page.models_note(results)))
    if measured:
        tables += [
            _tax(measured, names),
            Text("PPO regresses, PPO-ptx recovers", _told(measured, names)),
            _paper(),
        ]
    tables += _judges(inputs)
    tables.append(
        _table("Drift: is the reward hacked?", page.drifts(results), page.drift_note(results))
    )
    if paragraph := _dpo(results, names):
        tables.append(Text("DPO beside PPO", paragraph))
    tables.append(Text("The same prompts", page.samples(preferences.path, inputs.get("prompts"))))
    tables.append(Text("What this can and cannot show", _limits(inputs, results)))
    return Section("Alignment", tables)


def _table(title: str, cells: page.Cells, note: str) -> Table:
    """Without the columns in which nothing stands."""
    columns, rows = cells
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return Table(
        title,
        [columns[place] for place in kept],
        [[row[place] for place in kept] for row in rows],
        note,
    )


def _tax(measured: list[TaxedScore], names: Mapping[str, str]) -> Table:
    there = [name for name in ORDER if any(name in one.scores for one in measured)]
    rows = [
        [
            one.name + (" ↓" if one.lower_is_better else ""),
            *(page.interval(one.scores.get(name)) for name in there),
            one.regression,
            one.recovery,
        ]
        for one in measured
    ]
    columns = [
        "score",
        *(names[name] for name in there),
        "PPO against policy_init",
        "PPO-ptx against PPO",
    ]
    note = (
        "↓: lower is better. In brackets: 95 % interval. Better or worse: surely so. Of held-out text windows are drawn together for both "
        "models; of suites the two scores are taken for independent, though the examples are the same, and the level is shared out over "
        "the suites' scores (Bonferroni), so a small regression may go unseen. The suite held_out is of the first row's "
        "text once more, and is left out."
    )
    return _table("Alignment tax: before and after", (columns, rows), note)


def _told(measured: list[TaxedScore], names: Mapping[str, str]) -> str:
    found = findings(measured)
    if found is None:
        return "Not measured: the recipe has not PPO with and without pre-training text both."
    tasks, text = (
        [one for one in measured if (one.name == TEXT) == of_text] for of_text in (False, True)
    )
    own = [suite for suite in OF_CORPUS if any(one.name.startswith(f"{suite} ") for one in tasks)]
    same = (
        f" ({' and '.join(own)}: made of held-out text of the same corpus, where the paper's are public)"
        if own
        else ""
    )
    lines = [
        f"InstructGPT's finding (4.2), that on tasks PPO loses and PPO-ptx wins it back, holds here: **{found.holds}**.",
        "",
        f"On tasks{same}:" if found.tasks else "No task was measured before and after.",
        *(_of(found.tasks, tasks, names) if found.tasks else ()),
    ]
    if found.text:
        lines += [
            "",
            "On held-out text of the corpus, more of which PPO-ptx is trained on, so that this is no finding of the paper's:",
        ]
        lines += _of(found.text, text, names)
    lines.append(
        "\nRegresses: surely worse in at least one row above. Does not: surely better in all. Recovers: surely better than PPO in a row "
        "that regressed, worse in none of them. Else it is undecided."
    )
    return "\n".join(lines)


def _of(found: Finding, rows: list[TaxedScore], names: Mapping[str, str]) -> list[str]:
    """Both halves of the finding, with the figures of what regressed; of what did not, where a row
    is all there is.
    """
    shown = [one for one in rows if one.name in found.regressed or len(rows) == 1]
    before, after = (
        "; ".join(_beside(one, names, *pair) for one in shown)
        for pair in ((REFERENCE, PLAIN), (PLAIN, ALIGNED))
    )
    nothing = "" if found.regressed else ", as nothing is surely lost"
    return [
        f"- PPO without pre-training text regresses from policy_init: **{found.regresses}**{f' ({before})' if shown else ''}.",
        f"- PPO-ptx recovers what PPO lost: **{found.recovers}**{nothing}{f' ({after})' if shown else ''}.",
    ]


def _beside(one: TaxedScore, names: Mapping[str, str], before: str, after: str) -> str:
    """ "held-out text, bits per byte: policy_init 2.101 (…), PPO 2.140 (…)" """
    scores = [
        f"{names[model]} {page.interval(one.scores[model])}"
        for model in (before, after)
        if model in one.scores
    ]
    return f"{one.name}: {', '.join(scores)}"


def _paper() -> Table:
    note = (
        "Ouyang et al. 2022, table 14, GPT-3 XL of 1.3B, from a single transcription. PPO is below SFT on HellaSwag and translation, and "
        "PPO-ptx back at it or above. Other models, data and prompts than here: only the sign of a difference can be set beside ours."
    )
    return Table(
        "InstructGPT, table 14",
        ["task", "GPT", "SFT", "PPO", "PPO-ptx"],
        [[name, *cells] for name, cells in PAPER.items()],
        note,
    )


def _judges(inputs: Inputs) -> list[Table | Text]:
    """The reward model beside the bag of words on the same pairs, and the judge."""
    rows = []
    asked = (
        ("reward_model", "reward model", ""),
        ("reward_model", "bag of words, same pairs", f"{BAG_OF_WORDS}/"),
        ("judge", "judge", ""),
    )
    for name, told, prefix in asked:
        metrics = inputs[name].metrics if name in inputs else {}
        if f"{prefix}accuracy" in metrics:
            value = {
                end: metrics[f"{prefix}accuracy{suffix}"]
                for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))
            }
            error = (
                f"{metrics['calibration_error']:.3f}"
                if not prefix and "calibration_error" in metrics
                else ""
            )
            rows.append([told, page.interval(value), verdict(value), error])
        elif prefix and f"{prefix}not_run" in metrics:
            rows.append([told, f"not run: {NO_WORDS}", "", ""])
    note = (
        "Share of held-out comparisons in which the better text has the higher score; 95 % interval by bootstrap over rankings; better: "
        "than chance, 0.5. Calibration error: expected, of the probability that the difference of two rewards says. The judge is a bag of "
        "words, too, learnt from texts of its own."
    )
    if not rows:
        return []
    cells = (["who", "pairwise accuracy", "against chance", "calibration error"], rows)
    return [_table("The reward model beside a bag of words", cells, note)]


def _dpo(results: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """What the same comparisons give without a reward model."""
    step = next(
        (one for one in results["steps"] if (one["model"], one["over"]) == (ALIGNED, "dpo")), None
    )
    if step is None:
        return ""
    by_judge = step.get("judge")
    ours = names[ALIGNED]
    words = {
        "better": f"{ours} is preferred to DPO",
        "worse": f"DPO is preferred to {ours}",
        "undecided": "neither is surely preferred",
    }
    told = (
        f"By the judge {words[verdict(by_judge)]}: {page.interval(by_judge)}. " if by_judge else ""
    )
    kl = [
        f"{names[name]} {page.interval(results['models'][name]['kl'])}"
        for name in (ALIGNED, "dpo")
        if "kl" in results["models"][name]
    ]
    return (
        f"{told}KL from policy_init, nats an answer: {', '.join(kl)}. The two went different ways from it with settings of their own, so "
        "which is better at one and the same KL is not measured."
    )


def _limits(inputs: Inputs, results: Mapping[str, Any]) -> str:
    """What must not be read into the figures. `rated`: single texts under one instruction, each
    with people's mean rating.
    """
    sources = inputs["comparisons"].config.get("sources", []) if "comparisons" in inputs else []
    rated = [source["name"] for source in sources if source.get("form") == "rated"]
    parts = [
        f"The models are small, and so is the sample: {results['prompts']} held-out prompts, one answer each, from one run with one seed. "
        "The intervals are over prompts; another run would differ by more than they say.",
        "No person read these answers. People's judgement is in the comparisons alone; what scores new texts has learnt it from them, and "
        "is right about held-out ones only as often as the table says. Nobody measured helpfulness, honesty or harm.",
    ]
    if rated:
        parts.append(
            f"The ratings ({', '.join(rated)}) are of unrelated single sentences, set against each other under one instruction: a mean of "
            "some raters' sentiment, not which of two answers to a question is better. A policy that wins here writes sentences that sound "
            "more favourable. That is all it shows; it does not follow instructions better for it."
        )
    if "judge" in results["judges"]:
        parts.append(
            "The judge is a bag of words. It saw none of the reward model's texts, so a win by it is not the reward model's flaw exploited "
            "again; but it knows neither order nor sense, and what both like for the same wrong reason (a kind word) wins with both."
        )
    ran = {
        suite
        for artifact in inputs.values()
        if artifact.stage == "zero_shot"
        for suite, _, _ in scores_by_key(_rows(artifact))
    }
    if missing := [told for suite, told in BROADER.items() if suite not in ran]:
        parts.append(f"Not run here: {' and '.join(missing)}.")
    return "\n\n".join(parts)
