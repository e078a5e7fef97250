"""A recipe with the section `alignment`, built whole through its Dagster job: real engines, made-up
people.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import SUBJECTS, VERBS, run_cli, write_local_recipe

from assets.execution.reward_model import score_rankings
from assets.report.model_card import scores_of
from assets.stages.alignment import HELD_OUT_FILE
from assets.store.store import Store
from gpt_model.io import read_json_lines
from gpt_model.rlhf import reward_model
from gpt_model.rlhf.chat_template import ChatTemplate
from gpt_model.rlhf.records import read_comparisons
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.engine import ALONE

pytestmark = pytest.mark.slow

ALIGNMENT = """\
evaluation: {suites: [held_out], examples: {held_out: 8}}
alignment:
  demonstrations:
    sources: [{name: said, path: "said.jsonl", form: instruction, licence: CC0-1.0}]
    held_out: 0.2
  comparisons:
    sources: [{name: rated, path: "rated.jsonl", form: rated, instruction: Say something., ranked: 3, licence: CC0-1.0}]
    held_out: 0.25
    judge: 0.3
  prompts:
    sources: [{name: asked, path: "asked.jsonl", form: text, instruction: Say something., opening: 2, licence: CC0-1.0}]
    held_out: 0.4
  supervised: {epochs: 2, batch: 16, learning_rate: 3.0e-3, dropout: 0.1}
  reward_model: {epochs: 2, batch: 8, learning_rate: 3.0e-3}
  policy_init: {epochs: 2, batch: 16, learning_rate: 3.0e-3}
  ppo: {episodes: 32, batch: 16, minibatch: 8, learning_rate: 1.0e-4, ptx_examples: 1, ema: 0.5, max_new_tokens: 6, evaluations: 2}
  dpo: {batch: 16, learning_rate: 1.0e-4}
  preferences: {prompts: 12, best_of: 2, max_new_tokens: 6}
"""
LIKED = {"sings to": 3.0, "finds": 2.0, "follows": 0.5, "sees": -0.5, "forgets": -3.0}


def people(folder: Path) -> None:
    """What people said, and how they rated single sentences, by their verbs; prompts are the
    openings of other sentences.
    """

    def sentence(n: int) -> tuple[str, str]:
        verb = list(LIKED)[n % len(LIKED)]
        return (
            f"{SUBJECTS[n % 8]} {verb} {SUBJECTS[(n // 8) % 8]} {VERBS[(n // 5) % 8].split()[0]} "
            f"{n}",
            verb,
        )

    output = [
        {
            "instruction": f"What does {SUBJECTS[n % 8]} do, number {n}?",
            "response": f"{VERBS[n % 8]} {SUBJECTS[n % 7]}",
        }
        for n in range(80)
    ]
    rated = [
        {"text": text, "rating": LIKED[verb] + (n % 3) / 10}
        for n in range(240)
        for text, verb in [sentence(n)]
    ]
    prompts = [{"text": f"a {n} {sentence(n)[0]}"} for n in range(400, 480)]
    for name, rows in (("said", output), ("rated", rated), ("asked", prompts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Aligned:
    """The store it was built in, and what the command printed."""

    def __init__(self, folder: Path, downloads: Path) -> None:
        self.downloads, self.home = downloads, folder / "lineage"
        self.recipe = write_local_recipe(folder, "talk")
        self.recipe.write_text(
            self.recipe.read_text().replace("context: 32", "context: 64") + ALIGNMENT
        )
        people(folder)
        self.ran = run_cli(self.home, downloads, "run", str(self.recipe))
        self.store = Store(self.home)

    def artifact(self, name: str):  # type: ignore[no-untyped-def]
        metrics = self.store.find(self.store.get_ref("talk", name) or "")
        assert metrics, name
        return metrics


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Aligned:
    made = Aligned(tmp_path_factory.mktemp("talk"), downloads)
    assert made.ran.returncode == 0, made.ran.stdout[-2000:] + made.ran.stderr[-4000:]
    return made


def test_every_step_is_built_and_none_of_its_blocking_checks_failed(aligned: Aligned) -> None:
    for name in (
        "supervised",
        "reward_model",
        "instructed",
        "policy_init",
        "aligned",
        "aligned_without_ptx",
        "dpo",
        "preferences",
        "judge",
    ):
        gate = aligned.store.gate(aligned.artifact(name))
        assert gate, name
        assert all(verdict.passed for verdict in gate.values() if verdict.blocking), (name, gate)


def test_held_out_rankings_that_two_ranks_measured_are_as_one_rank_measures_them(
    aligned: Aligned,
) -> None:
    artifact, comparisons = (aligned.artifact(name) for name in ("reward_model", "comparisons"))
    assert artifact.manifest["provenance"]["ranks"] == 2
    model = reward_model.load(artifact.path)
    template = ChatTemplate(Tokenizer.load(artifact.path / "model"))
    rankings = read_comparisons(comparisons.path, "held_out")
    encoded = reward_model.encode_rankings(template, rankings, model.gpt.config.context).encoded
    measured = [row["rewards"] for row in read_json_lines(artifact.path / HELD_OUT_FILE)]
    alone = score_rankings(model, encoded, ALONE)
    assert len(measured) > 10 and alone == [pytest.approx(row, abs=1e-6) for row in measured]


def test_the_scorecard_says_who_wins_and_what_that_shows(aligned: Aligned) -> None:
    text = (aligned.store.show(aligned.artifact("scorecard")) / "scorecard.md").read_text(
        encoding="utf-8"
    )
    assert "Alignment" in text
    for part in ("aligned", "policy_init", "win rate", "PPO-ptx", "bag of words", "cannot show"):
        assert part in text, part


def test_an_answer_walks_back_to_what_people_said(aligned: Aligned) -> None:
    traced = run_cli(aligned.home, aligned.downloads, "trace", "talk/aligned")
    assert traced.returncode == 0, traced.stderr
    for part in (
        "policy_init",
        "reward_model",
        "comparisons",
        "demonstrations",
        "prompts",
        "said.jsonl",
        "rated.jsonl",
        "notes",
    ):
        assert part in traced.stdout, part


def test_a_second_run_finds_it_all(aligned: Aligned) -> None:
    again = run_cli(aligned.home, aligned.downloads, "run", str(aligned.recipe))
    assert again.returncode == 0 and " 0 built" in again.stdout.replace(
        ",", " "
    ) + again.stderr.replace(",", " "), again.stderr[-2000:]


def test_the_aligned_model_answers_in_transformers(aligned: Aligned) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = aligned.artifact("aligned").path / "model"
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder),
    )
    prompts = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say something."}],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    written = model.generate(**prompts, max_new_tokens=4, do_sample=False)
    assert written.shape[1] > prompts["input_ids"].shape[1]


def test_the_card_of_a_model_has_its_win_rates(aligned: Aligned) -> None:
    preferences = aligned.artifact("preferences")
    for model, count in (("dpo", 2), ("policy_init", 5)):  # over what, and what over it
        scores = scores_of(aligned.store, aligned.artifact(model), f"talk/{model}")
        wins = [score for score in scores if score.name.endswith("win rate")]
        assert all(model.replace("_", " ") in score.name for score in wins)
        assert len(wins) == count and {score.fingerprint for score in wins} == {
            preferences.fingerprint
        }
        for score in wins:
            assert score.low is not None and score.complete and "judge" in score.note
