"""The scorecard's section about alignment: the tax beside the paper's row, the signature as a
statement, and nothing without it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_ranks import RecordingProgress

from assets.contract import Artifact
from assets.execution import scorecard
from assets.report import alignment
from assets.report.alignment import section, statement, taxed
from assets.report.page import Page, Section, write_page
from assets.report.preferences import models
from assets.report.scores import collect
from assets.report.tables import Table
from gpt_model.evaluation.alignment_tax import TEXT, Finding, TaxedScore, finding
from gpt_model.rlhf.answers import Answer
from gpt_model.rlhf.dialogue import Turn
from gpt_model.rlhf.model_comparison import Comparison, metrics_of, read_results
from gpt_model.rlhf.records import Prompt

MODELS = ("policy_init", "dpo", "aligned_without_ptx", "aligned")
HELLASWAG = {
    "pretrained": 0.5,
    "policy_init": 0.5,
    "aligned_without_ptx": 0.4,
    "aligned": 0.48,
    "dpo": 0.5,
}


def _artifact(
    folder: Path, stage: str, metrics: dict[str, float] | None = None, **config: Any
) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    return Artifact(folder, stage, "f" * 64, "d" * 64, config, metrics or {})


def _suite(
    folder: Path, value: float, suite: str = "commonsense", task: str = "hellaswag"
) -> Artifact:
    artifact = _artifact(folder, "zero_shot", suites={})
    row = {
        "suite": suite,
        "task": task,
        "metric": "acc",
        "value": value,
        "low": value - 0.02,
        "high": value + 0.02,
        "stderr": 0.01,
        "lower_is_better": False,
    }
    same_text = {**row, "suite": "held_out", "task": "notes", "metric": "bits_per_byte"}
    (folder / "results.json").write_text(
        json.dumps(
            {"rows": [row, same_text, {"suite": "truthfulqa", "task": "mc1", "not_run": "no hub"}]}
        )
    )
    return artifact


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    """PPO's held-out text costs 4 % more than policy_init's, PPO-ptx's 1 %; the judge prefers
    aligned on 3 of 4 prompts.
    """
    rng = np.random.default_rng(0)
    prompts = [
        Prompt("rated", str(n), (Turn("user", "Write a sentence."), Turn("assistant", f"Film {n}")))
        for n in range(80)
    ]
    compared = Comparison(prompts)
    base = rng.uniform(90, 110, size=60)
    costs = {
        "pretrained": 0.99,
        "policy_init": 1.0,
        "aligned_without_ptx": 1.04,
        "aligned": 1.01,
        "dpo": 1.0,
    }
    for name, cost in costs.items():
        compared.windows[name] = np.stack(
            [base * cost + rng.normal(0, 0.5, 60), np.full(60, 30.0), np.full(60, 60.0)], 1
        )
    compared.scores = {"reward_model": {}, "judge": {}}
    for name in MODELS:
        compared.answers[name] = [
            Answer(f" {name} says {n} and {n * 7 % 31}", [1, 2, 3], True) for n in range(80)
        ]
        compared.kl[name] = rng.normal(0.0 if name == "policy_init" else 2.0, 0.3, 80)
        for scores in compared.scores.values():
            scores[name] = np.array(
                [
                    1.0 if name == "aligned" and n % 4 else 0.0 if name == "aligned" else 0.5
                    for n in range(80)
                ]
            )
    results = {
        "prompts": 80,
        "left_out": 0,
        "reference": "policy_init",
        "best_of": 4,
        "judges": ["reward_model", "judge"],
    }
    results |= compared.results("policy_init", 4)
    preferences = _artifact(tmp_path / "preferences", "preferences", metrics_of(results))
    compared.write(preferences.path, results)
    model = {
        "accuracy": 0.62,
        "accuracy_low": 0.58,
        "accuracy_high": 0.66,
        "calibration_error": 0.04,
        "comparisons": 300.0,
    }
    model |= {
        "bag_of_words/accuracy": 0.6,
        "bag_of_words/accuracy_low": 0.56,
        "bag_of_words/accuracy_high": 0.64,
    }
    suites = {
        f"zero_shot_after/{name}": _suite(tmp_path / name, HELLASWAG[name]) for name in MODELS
    }
    return {
        "zero_shot": _suite(tmp_path / "zero_shot", HELLASWAG["pretrained"]),
        **suites,
        "preferences": preferences,
        "reward_model": _artifact(tmp_path / "reward_model", "reward_model", model),
        "aligned": _artifact(tmp_path / "ppo", "aligned", ppo={"ptx_weight": 1.0}),
        "comparisons": _artifact(
            tmp_path / "comparisons",
            "comparisons",
            sources=[{"name": "film_reviews", "form": "rated"}],
        ),
    }


def texts(section: Section) -> dict[str, str]:
    return {text.title: text.markdown() for text in section.texts}


def table(section: Section, title: str) -> Table:
    [match] = [text for text in section.texts if text.title == title]
    assert isinstance(match, Table)
    return match


def test_the_tax_stands_before_and_after_side_by_side_with_what_is_surely_worse(
    inputs: dict[str, Artifact],
) -> None:
    text, hellaswag = taxed(inputs)  # and not the suite held_out, which is of the same text
    assert (text.name, text.regression, text.recovery) == (
        TEXT,
        "worse",
        "better",
    ) and text.scores.keys() == set(HELLASWAG)
    assert (hellaswag.name, hellaswag.regression, hellaswag.recovery) == (
        "commonsense hellaswag acc",
        "worse",
        "better",
    )
    assert {name: score["value"] for name, score in hellaswag.scores.items()} == HELLASWAG


def test_ppo_regresses_and_ppo_ptx_recovers_is_measured_and_kept(
    inputs: dict[str, Artifact],
) -> None:
    document = statement(inputs)
    assert document["signature"]["holds"] == "true" and document["signature"]["tasks"][
        "regressed"
    ] == ("commonsense hellaswag acc",)
    assert document["signature"]["text"]["regresses"] == "true" and document["signature"]["text"][
        "regressed"
    ] == (TEXT,)
    assert document["within_reference"].keys() == {"distinct_2", "repetition", "length"}


@pytest.mark.parametrize(
    ("regression", "recovery", "holds"),
    [
        ("worse", "better", "true"),
        ("worse", "worse", "false"),
        ("worse", "undecided", "undecided"),
        ("better", "worse", "false"),
        ("undecided", "better", "undecided"),
    ],
)
def test_the_signature_is_true_false_or_undecided(
    regression: str, recovery: str, holds: str
) -> None:
    result = finding([TaxedScore("hellaswag", {}, False, regression, recovery)])
    assert isinstance(result, Finding) and result.holds == holds
    assert (
        finding([TaxedScore("hellaswag", {}, False)]) is None
    )  # without both kinds of PPO there is nothing to say


def test_held_out_text_of_the_corpus_that_is_mixed_in_does_not_make_the_finding_hold(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    """PPO loses text and PPO-ptx wins it back, and no task moves: so nothing is said to hold."""
    still = {
        name: _suite(tmp_path / f"still {name}", 0.5, "cloze", "cloze")
        for name in inputs
        if name.startswith("zero_shot")
    }
    signature = statement({**inputs, **{name: artifact for name, artifact in still.items()}})[
        "signature"
    ]
    assert (
        signature["holds"],
        signature["tasks"]["regresses"],
        signature["text"]["regresses"],
        signature["text"]["recovers"],
    ) == ("undecided", "undecided", "true", "true")
    text = texts(section({**inputs, **still}))["PPO regresses, PPO-ptx recovers"]
    assert "holds here: **undecided**" in text and "On tasks (cloze: made of held-out text" in text
    without = {
        name: artifact for name, artifact in inputs.items() if not name.startswith("zero_shot")
    }
    assert (
        statement(without)["signature"]["holds"] == "undecided"
        and statement(without)["signature"]["tasks"] is None
    )


def test_ppo_without_pretraining_text_is_not_called_ppo_ptx(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    alone = {**inputs, "aligned": replace(inputs["aligned"], config={"ppo": {"ptx_weight": 0.0}})}
    del alone["zero_shot_after/aligned_without_ptx"]
    results = read_results(inputs["preferences"].path)
    results["steps"] = [
        step
        for step in results["steps"]
        if "aligned_without_ptx" not in (step["model"], step["over"])
    ]
    for part in ("models", "text"):
        del results[part]["aligned_without_ptx"]
    for rises in results["text"].values():
        rises.pop("over_aligned_without_ptx", None)
    folder = tmp_path / "alone"
    shutil.copytree(inputs["preferences"].path, folder)
    (folder / "results.json").write_text(json.dumps(results))
    alone["preferences"] = replace(inputs["preferences"], path=folder)
    page = section(alone)
    columns = ["score", "pretrained", "policy_init", "PPO", "DPO", "PPO against policy_init"]
    assert table(page, "Alignment tax: before and after").columns == columns
    assert "PPO is preferred to DPO" in texts(page)["DPO beside PPO"]
    assert texts(page)["PPO regresses, PPO-ptx recovers"].startswith("Not measured")
    text, hellaswag = taxed(alone)
    assert (text.regression, text.recovery, hellaswag.recovery) == ("worse", "", "")


def test_what_was_not_run_is_looked_for(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    def limits(inputs: dict[str, Artifact]) -> str:
        return texts(section(inputs))["What this can and cannot show"]

    # Of TruthfulQA there is only a reason.
    assert "Not run here: toxicity and TruthfulQA." in limits(inputs)
    ran = {**inputs, "zero_shot_after/dpo": _suite(tmp_path / "toxicity", 0.1, "toxicity", "basic")}
    assert "Not run here: TruthfulQA." in limits(ran)
    ran["zero_shot"] = _suite(tmp_path / "truthfulqa", 0.3, "truthfulqa", "mc1")
    assert "Not run here" not in limits(ran)


def test_models_stand_in_the_order_of_the_steps(inputs: dict[str, Artifact]) -> None:
    """And not by name, as they would in sorted JSON."""
    results = read_results(inputs["preferences"].path)
    assert list(results["models"]) == list(MODELS) != sorted(MODELS)
    assert models(results).frame["model"].tolist() == list(MODELS)


def test_page_and_twin_have_the_section_with_its_limits_and_samples(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    page = section(inputs)
    write_page(tmp_path, Page("Scorecard", "", {}, sections=[page]))
    html, markdown = ((tmp_path / f"scorecard.{kind}").read_text() for kind in ("html", "md"))
    assert all(title in html and title in markdown for title in texts(page))
    assert markdown.count("```text") == 3
    judges = table(page, "The reward model beside a bag of words").frame
    assert judges["pairwise accuracy"].tolist() == [
        "0.620 (0.580 – 0.660)",
        "0.600 (0.560 – 0.640)",
    ]
    assert judges["calibration error"].tolist() == ["0.040", ""]
    assert ["HellaSwag, acc", ".549", ".528", ".507", ".552"] in table(
        page, "InstructGPT, table 14"
    ).cells()
    finding = texts(page)["PPO regresses, PPO-ptx recovers"]
    assert "holds here: **true**" in finding
    assert "film_reviews" in texts(page)["What this can and cannot show"]
    assert "PPO-ptx is preferred to DPO: 0.750" in texts(page)["DPO beside PPO"]


def test_headline_has_the_win_rates_by_the_judge_and_the_reward_model_beside_a_bag_of_words(
    inputs: dict[str, Artifact],
) -> None:
    scores = {
        score.name: score
        for score in collect(
            "tiny", {name: artifact for name, artifact in inputs.items() if name != "zero_shot"}
        )[0]
    }
    assert (
        scores["aligned over policy init, win rate"].verdict == "better"
        and scores["aligned over policy init, win rate"].value == 0.75
    )
    assert (scores["pairwise accuracy"].against, scores["pairwise accuracy"].verdict) == (
        0.6,
        "undecided",
    )


def test_a_bag_of_words_that_was_not_run_has_no_figure(inputs: dict[str, Artifact]) -> None:
    metrics = {
        name: value
        for name, value in inputs["reward_model"].metrics.items()
        if not name.startswith("bag_of_words")
    }
    lacking = inputs | {
        "reward_model": replace(
            inputs["reward_model"], metrics=metrics | {"bag_of_words/not_run": 1.0}
        )
    }
    scores = {
        score.name: score
        for score in collect(
            "tiny", {name: artifact for name, artifact in lacking.items() if name != "zero_shot"}
        )[0]
    }
    score = scores["pairwise accuracy"]
    assert (
        score.baseline == "bag of words not run (the texts have no words in them), chance 0.500"
        and score.against == 0.5
    )
    rows = table(section(lacking), "The reward model beside a bag of words").cells()
    assert rows[1][:2] == ["bag of words, same pairs", "not run: the texts have no words in them"]


def test_without_the_section_the_scorecard_has_no_word_of_it(tmp_path: Path) -> None:
    assert not alignment.is_in({})
    scorecard.run({"recipe": {"name": "tiny"}}, {}, tmp_path, RecordingProgress("scorecard"))
    assert json.loads((tmp_path / "scorecard.json").read_text()).keys() == {
        "recipe",
        "built_from",
        "scores",
        "not_run",
    }
