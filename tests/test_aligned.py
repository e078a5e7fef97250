"""The stage `aligned` on one rank: what it writes, shows and promises, and what it says of input
that does not fit.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_world import NEEDS, PPO, make_ppo_inputs
from training_ranks import RecordingProgress

from assets.contract import Artifact, Built
from assets.recipe.sections import PPOSection
from assets.report import rlhf
from assets.stages import base_model
from assets.stages.alignment import ALIGNED
from gpt_model import convert
from gpt_model.errors import UserError
from gpt_model.tokenizer import Tokenizer


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """This process as the only rank, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }.items():
            patch.setenv(name, value)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ppo_inputs(tmp_path_factory.mktemp("inputs"))


def made(inputs: Path, output: Path, needs: tuple[str, ...] = NEEDS, **section: Any) -> Built:
    config = {"ppo": PPOSection.model_validate({**PPO, **section}).model_dump(mode="json")}
    given = {name: Artifact(inputs / name, name, "", "", {}, {}) for name in needs}
    progress = RecordingProgress("aligned")
    output.mkdir(parents=True, exist_ok=True)
    metrics = ALIGNED.run(config, given, output, progress)
    series: dict[str, list[tuple[int, float]]] = {}
    for step, values in sorted(progress.record["metrics"].items()):
        for name, value in values.items():
            series.setdefault(name, []).append((step, value))
    return Built(
        config, given, output, metrics, series, [tuple(text) for text in progress.record["texts"]]
    )


@pytest.fixture(scope="module")
def built(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return made(inputs, tmp_path_factory.mktemp("built"), episodes=64)


def test_the_artifact_is_a_chat_model_with_its_shape_and_its_facts(built: Built) -> None:
    folder = built.output
    assert Tokenizer.load(folder / "model").markers.keys() >= {"<|user|>", "<|assistant|>"}
    assert (
        convert.load(folder / "model").config.vocab_size
        == json.loads((folder / base_model.SHAPE).read_text())["vocab_size"]
    )
    facts = json.loads((folder / "training.json").read_text())
    assert facts["episodes"] == 64 and facts["batches"] == 4 and facts["prompts_left_out"] == 2
    assert not [name for name in facts if "second" in name or "memory" in name]


def test_every_series_is_there_batch_by_batch(built: Built) -> None:
    wanted = (
        "reward",
        "reward_with_penalty",
        "kl",
        "entropy",
        "length",
        "ended",
        "kl_coefficient",
        "not_a_number",
        "empty",
        "explained_variance",
    )
    for name in wanted:
        assert [step for step, _ in built.series[name]] == [0, 2, 4, 6], name
        assert all(math.isfinite(value) for _, value in built.series[name]), name
    assert {"clip_fraction", "value_error", "ptx_loss", "policy_loss"} <= built.series.keys()
    assert abs(built.series["kl"][0][1]) < 1e-5  # before the first step the policy is the reference


def test_checks_pass_and_say_their_figures(built: Built) -> None:
    verdicts = {check.name: check.verdict(built) for check in ALIGNED.checks}
    assert all(verdicts[check.name].passed for check in ALIGNED.checks if check.blocking), verdicts
    assert (
        "rises from" in verdicts["reward_rises"].summary
        and "bits per byte" in verdicts["text_is_kept"].summary
    )
    broken = replace(
        built,
        metrics={
            **built.metrics,
            "not_a_number_answers": 3.0,
            "bpb_rise": 0.031,
            "reward_gain_low": -0.1,
        },
    )
    failed = {check.name for check in ALIGNED.checks if not check.verdict(broken).passed}
    assert failed == {"rewards_are_numbers", "text_is_kept", "reward_rises"}


def test_a_policy_that_ran_away_in_the_last_batch_fails_a_blocking_check(built: Built) -> None:
    [check] = [check for check in ALIGNED.checks if check.name == "has_not_run_away"]
    assert check.blocking and "within ppo.stop" in check.verdict(built).summary
    stop = built.config["ppo"]["stop"]
    verdict = check.verdict(replace(built, metrics={**built.metrics, "kl": stop["kl"] + 1}))
    assert not verdict.passed and f"stop.kl is {stop['kl']:g}" in verdict.summary
    assert built.metrics["answered"] == 12 and built.metrics["not_a_number"] == 0
    verdict = check.verdict(replace(built, metrics={**built.metrics, "not_a_number": 7.0}))
    assert not verdict.passed and "the reward of 7 of 12 answers is not a number" in verdict.summary
    verdict = check.verdict(
        replace(
            built,
            metrics={name: value for name, value in built.metrics.items() if name != "reward"},
        )
    )
    assert not verdict.passed and "a reward that is a number" in verdict.summary


def test_the_page_has_curves_figures_and_samples(built: Built, tmp_path: Path) -> None:
    ALIGNED.show(built, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "training.png",
        "training.svg",
        "reward_kl.png",
        "reward_kl.svg",
        "figures.md",
        "samples.md",
    }
    samples = (tmp_path / "samples.md").read_text()
    table = rlhf.metrics_table(built).frame.set_index("figure")["value"]
    assert table["episodes"] == "64 in 4 batches"
    assert table["prompts: answered, held out, too long"] == "30, 12, 2"
    assert not table.str.contains("nan").any()
    assert (
        samples.count("## prompt") == 4
        and samples.count("After step 0:") == 4
        and samples.count("After step 8:") == 4
    )


def test_prompts_whose_licence_does_not_cover_the_text_are_shown_cut(
    inputs: Path, tmp_path: Path
) -> None:
    """Of two sources one after the other; samples are of both."""
    shutil.copytree(inputs, tmp_path / "inputs")
    text = "the king " * 7
    rows = [
        {"source": source, "id": str(n), "messages": [{"role": "user", "content": f"{text}{n}"}]}
        for source in ("closed", "open")
        for n in range(10)
    ]
    prompts = tmp_path / "inputs" / "prompts"
    (prompts / "held_out.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (prompts / "report.json").write_text(
        json.dumps({"sources": {"closed": {"show_text": False}, "open": {"show_text": True}}})
    )
    result = made(tmp_path / "inputs", tmp_path / "output", episodes=16)
    questions = [text[: text.index("]")] for step, _, text in result.texts if step == 0]
    assert ["…" in entry for entry in questions] == [True, True, False, False]
    assert all(entry.removeprefix("[").startswith("the king the king") for entry in questions) and {
        len(entry) for entry in questions[:2]
    } == {62}


def test_without_a_corpus_there_is_ppo_alone(inputs: Path, tmp_path: Path) -> None:
    result = made(inputs, tmp_path / "alone", NEEDS[:3], episodes=16, ptx_weight=0.0)
    assert "bpb_rise" not in result.metrics and "ptx_loss" not in result.series
    with pytest.raises(UserError, match="PPO-ptx takes pre-training text, and there is none"):
        made(inputs, tmp_path / "ptx", NEEDS[:3], episodes=16)


def test_prompts_that_leave_no_room_are_refused_with_the_numbers(
    inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError,
        match="None of 31 training prompts leaves room for an answer: the context is 32 tokens and "
        "an answer up to 30",
    ):
        made(inputs, tmp_path, max_new_tokens=30)


def test_a_reward_model_of_another_vocabulary_is_refused(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs, tmp_path / "inputs")
    Tokenizer.load(inputs / "tokenizer").save(tmp_path / "inputs" / "reward_model" / "model")
    with pytest.raises(UserError, match="vocabulary"):
        made(tmp_path / "inputs", tmp_path / "output")
