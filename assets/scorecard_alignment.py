"""The scorecard's section about alignment: who answers better, what it cost (the alignment tax), how texts drift, and what it all can show.

Its tables are those of the stage `preferences`, and the zero-shot suites of each model side by side. InstructGPT's qualitative finding,
that PPO regresses and PPO-ptx recovers, is put to the test here, and said to be true, false or undecided.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from assets.alignment import preferences_page as page
from assets.alignment.preferences_results import ALIGNED, PLAIN, REFERENCE, read
from assets.contract import Artifact, Inputs
from assets.scorecard_page import Section, Table, Text
from assets.scorecard_scores import ZERO_SHOT_AFTER
from gpt_model.evaluation.scores import error_of

NAMED = {
    "pretrained": "pretrained", "supervised": "supervised", REFERENCE: "policy_init", PLAIN: "PPO", ALIGNED: "PPO-ptx", "dpo": "DPO",
}  # fmt: skip
TEXT = "held-out text, bits per byte"
ON_ANOTHER_SCALE = ("byte_perplexity", "word_perplexity")  # the same figure as bits per byte
TRUE, FALSE, UNDECIDED = "true", "false", "undecided"
# Ouyang et al. 2022, table 14 (appendix E), GPT-3 XL of 1.3B: GPT, SFT, PPO, PPO-ptx. From a single transcription of the paper.
PAPER = {
    "HellaSwag, accuracy, zero-shot": (".549", ".528", ".507", ".552"),
    "SQuADv2, F1, zero-shot": ("51.97", "36.88", "45.37", "45.46"),
    "DROP, F1, zero-shot": ("17.68", "13.29", "14.70", "14.71"),
    "French to English, BLEU, zero-shot": ("30.65", "25.56", "19.85", "25.77"),
}


def is_in(inputs: Inputs) -> bool:
    return "preferences" in inputs


# -- what is measured before and after -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taxed:
    """A score of each model: {"value", "low", "high", "error"}. `verdicts`: PPO against its start, PPO-ptx against PPO."""

    name: str
    scores: Mapping[str, Mapping[str, float]]
    lower_is_better: bool
    regression: str = ""  # better, worse or undecided
    recovery: str = ""


def taxed(inputs: Inputs) -> list[Taxed]:
    """Held-out text, window by window, and then every zero-shot score that a model has before and after."""
    found = list(_of_text(read(inputs["preferences"].path)["text"]))
    suites = list(_of_suites(inputs))
    surely = NormalDist().inv_cdf(1 - 0.025 / max(1, len(suites)))  # Bonferroni: of many scores one is worse by chance
    for one in suites:
        verdicts = (_against(one, ours, theirs, surely) for ours, theirs in ((PLAIN, REFERENCE), (ALIGNED, PLAIN)))
        found.append(Taxed(one.name, one.scores, one.lower_is_better, *verdicts))
    return found


def _of_text(text: Mapping[str, Any]) -> Iterator[Taxed]:
    if text:
        rises = (text.get(PLAIN, {}).get(f"over_{REFERENCE}"), text.get(ALIGNED, {}).get(f"over_{PLAIN}"))
        verdicts = [{"better": "worse", "worse": "better"}.get(told := page.verdict(rise, 0.0), told) for rise in rises]
        yield Taxed(TEXT, {name: text[name]["bits_per_byte"] for name in NAMED if name in text}, True, *verdicts)


def _of_suites(inputs: Inputs) -> Iterator[Taxed]:
    artifacts = {name: f"{ZERO_SHOT_AFTER}{name}" for name in NAMED} | {"pretrained": "zero_shot"}
    rows = {name: _rows(inputs[one]) for name, one in artifacts.items() if one in inputs}
    after = [name for name in rows if name != "pretrained"]
    for key in dict.fromkeys(key for name in after for key in rows[name]):
        scores = {name: own[key] for name, own in rows.items() if key in own}
        of_each = {name: {**{end: row[end] for end in ("value", "low", "high")}, "error": error_of(row)} for name, row in scores.items()}
        yield Taxed(" ".join(key), of_each, next(iter(scores.values()))["lower_is_better"])


def _rows(artifact: Artifact) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    """What has a value and an interval, by suite, task and metric."""
    rows = json.loads((artifact.path / "results.json").read_text(encoding="utf-8"))["rows"]
    return {
        (row["suite"], row["task"], row["metric"]): row
        for row in rows
        if "not_run" not in row and row.get("low") is not None and row["metric"] not in ON_ANOTHER_SCALE
    }


def _against(one: Taxed, ours: str, theirs: str, surely: float) -> str:
    """Of two scores on the same examples, taken for independent, which makes the difference look less sure than it is."""
    if ours not in one.scores or theirs not in one.scores:
        return ""
    a, b = one.scores[ours], one.scores[theirs]
    gain = (a["value"] - b["value"]) * (-1 if one.lower_is_better else 1)
    error = math.hypot(a["error"], b["error"])
    return "undecided" if abs(gain) <= surely * error else "better" if gain > 0 else "worse"


# -- the paper's signature -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signature:
    """PPO regresses, PPO-ptx recovers: each true, false or undecided. `regressed`: in what PPO is surely worse than where it started."""

    regresses: str
    recovers: str
    regressed: tuple[str, ...] = ()
    recovered: tuple[str, ...] = ()

    @property
    def holds(self) -> str:
        if FALSE in (self.regresses, self.recovers):
            return FALSE
        return TRUE if (self.regresses, self.recovers) == (TRUE, TRUE) else UNDECIDED


def signature(measured: list[Taxed]) -> Signature | None:
    """None where the recipe has not both kinds of PPO.

    PPO regresses where it is surely worse than policy_init in anything; it does not where held-out text is surely predicted better, and
    nothing is worse. PPO-ptx recovers where it is surely better than PPO in something that regressed, and worse in nothing that did.
    """
    if not any(one.regression for one in measured) or not any(one.recovery for one in measured):
        return None
    regressed = [one for one in measured if one.regression == "worse"]
    if not regressed:
        spared = any(one.name == TEXT and one.regression == "better" for one in measured)
        return Signature(FALSE if spared else UNDECIDED, UNDECIDED)
    recovered = [one for one in regressed if one.recovery == "better"]
    lost = any(one.recovery == "worse" for one in regressed)
    return Signature(
        TRUE, FALSE if lost else TRUE if recovered else UNDECIDED,
        tuple(one.name for one in regressed), tuple(one.name for one in recovered),
    )  # fmt: skip


def statement(inputs: Inputs) -> dict[str, Any]:
    """What scorecard.json keeps: the signature, and whether the texts of aligned stay within the reference's intervals."""
    found, held = signature(taxed(inputs)), read(inputs["preferences"].path)["within_reference"]
    return {
        "signature": None if found is None else {**asdict(found), "holds": found.holds},
        "within_reference": {measure: one["inside"] for measure, one in held.items()},
    }


# -- the section -----------------------------------------------------------------------------------------------------------------------


def section(inputs: Inputs) -> Section:
    preferences = inputs["preferences"]
    results, measured = read(preferences.path), taxed(inputs)
    tables: list[Table | Text] = []
    if results["judges"]:
        tables.append(_table("Win rates, step by step", page.steps(results), page.steps_note(results)))
    tables.append(_table("The models", page.models(results), page.MODELS_NOTE))
    if measured:
        tables += [_tax(measured), Text("PPO regresses, PPO-ptx recovers", _told(measured)), _paper()]
    tables += _judges(inputs)
    tables.append(_table("Drift: is the reward hacked?", page.drifts(results), page.drift_note(results)))
    if paragraph := _dpo(results):
        tables.append(Text("DPO beside PPO", paragraph))
    tables.append(Text("The same prompts", page.samples(preferences.path, inputs.get("prompts"))))
    tables.append(Text("What this can and cannot show", _limits(inputs, results)))
    return Section("Alignment", tables)


def _table(title: str, cells: page.Cells, note: str) -> Table:
    """Without the columns in which nothing stands."""
    columns, rows = cells
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return Table(title, [columns[place] for place in kept], [[row[place] for place in kept] for row in rows], note)


def _tax(measured: list[Taxed]) -> Table:
    names = [name for name in NAMED if any(name in one.scores for one in measured)]
    rows = [
        [
            one.name + (" ↓" if one.lower_is_better else ""), *(page.interval(one.scores.get(name)) for name in names),
            one.regression, one.recovery,
        ]
        for one in measured
    ]  # fmt: skip
    columns = ["score", *(NAMED[name] for name in names), "PPO against policy_init", "PPO-ptx against PPO"]
    note = (
        "↓: lower is better. In brackets: 95 % interval. Better or worse: surely so. Of held-out text windows are drawn together for both "
        "models; of suites the two scores are taken for independent, though the examples are the same, and the level is shared out over "
        "the suites' scores (Bonferroni), so a small regression may go unseen."
    )
    return _table("Alignment tax: before and after", (columns, rows), note)


def _told(measured: list[Taxed]) -> str:
    found = signature(measured)
    if found is None:
        return "Not measured: the recipe has not PPO with and without pre-training text both."
    lines = [
        f"InstructGPT's finding holds here: **{found.holds}**.",
        f"- PPO without pre-training text regresses from policy_init: **{found.regresses}**"
        + (f" ({'; '.join(_beside(measured, name, REFERENCE, PLAIN) for name in found.regressed)})." if found.regressed else "."),
        "- PPO-ptx recovers what PPO lost: "
        + (f"**{found.recovers}**" if found.regressed else f"**{found.recovers}**, as nothing is surely lost")
        + (f" ({'; '.join(_beside(measured, name, PLAIN, ALIGNED) for name in found.regressed)})." if found.regressed else "."),
    ]
    if not found.regressed and (text := next((one for one in measured if one.name == TEXT), None)):
        lines.append(f"- For the record, {_beside(measured, text.name, REFERENCE, PLAIN)}; {_beside(measured, text.name, PLAIN, ALIGNED)}.")
    lines.append(
        "\nRegresses: surely worse in at least one row above. Does not: held-out text is surely predicted better and no row is worse. "
        "Recovers: surely better than PPO in a row that regressed, worse in none of them. Else it is undecided."
    )
    return "\n".join([lines[0], "", *lines[1:]])


def _beside(measured: list[Taxed], name: str, before: str, after: str) -> str:
    """ "held-out text, bits per byte: policy_init 2.101 (…), PPO 2.140 (…)" """
    [one] = [one for one in measured if one.name == name]
    scores = [f"{NAMED[model]} {page.interval(one.scores[model])}" for model in (before, after) if model in one.scores]
    return f"{name}: {', '.join(scores)}"


def _paper() -> Table:
    note = (
        "Ouyang et al. 2022, table 14, GPT-3 XL of 1.3B, from a single transcription. PPO is below SFT on HellaSwag and translation, and "
        "PPO-ptx back at it or above. Other models, data and prompts than here: only the sign of a difference can be set beside ours."
    )
    return Table("InstructGPT, table 14", ["task", "GPT", "SFT", "PPO", "PPO-ptx"], [[name, *cells] for name, cells in PAPER.items()], note)


def _judges(inputs: Inputs) -> list[Table | Text]:
    """The reward model beside the bag of words on the same pairs, and the judge."""
    rows = []
    asked = (("reward_model", "reward model", ""), ("reward_model", "bag of words, same pairs", "bag_of_words/"), ("judge", "judge", ""))
    for name, told, prefix in asked:
        metrics = inputs[name].metrics if name in inputs else {}
        if f"{prefix}accuracy" in metrics:
            value = {end: metrics[f"{prefix}accuracy{suffix}"] for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))}
            error = f"{metrics['calibration_error']:.3f}" if not prefix and "calibration_error" in metrics else ""
            rows.append([told, page.interval(value), page.verdict(value), error])
    note = (
        "Share of held-out comparisons in which the better text has the higher score; 95 % interval by bootstrap over rankings; better: "
        "than chance, 0.5. Calibration error: expected, of the probability that the difference of two rewards says. The judge is a bag of "
        "words, too, learnt from texts of its own."
    )
    if not rows:
        return []
    cells = (["who", "pairwise accuracy", "against chance", "calibration error"], rows)
    return [_table("The reward model beside a bag of words", cells, note)]


def _dpo(results: Mapping[str, Any]) -> str:
    """What the same comparisons give without a reward model."""
    step = next((one for one in results["steps"] if (one["model"], one["over"]) == (ALIGNED, "dpo")), None)
    if step is None:
        return ""
    by_judge = step.get("judge")
    words = {"better": "PPO-ptx is preferred to DPO", "worse": "DPO is preferred to PPO-ptx", "undecided": "neither is surely preferred"}
    told = f"By the judge {words[page.verdict(by_judge)]}: {page.interval(by_judge)}. " if by_judge else ""
    kl = [f"{NAMED[name]} {page.interval(results['models'][name]['kl'])}" for name in (ALIGNED, "dpo") if "kl" in results["models"][name]]
    return (
        f"{told}KL from policy_init, nats an answer: {', '.join(kl)}. The two went different ways from it with settings of their own, so "
        "which is better at one and the same KL is not measured."
    )


def _limits(inputs: Inputs, results: Mapping[str, Any]) -> str:
    """What must not be read into the figures. `rated`: single texts under one instruction, each with people's mean rating."""
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
    parts.append("Toxicity and TruthfulQA: not run here, unless a suite above says so.")
    return "\n\n".join(parts)
