"""Models compared: win rates with their intervals, KL, held-out text, drift, and the stage on real
files with models that differ.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_ranks import RecordingProgress, make_inputs

from assets.contract import Artifact, Built, Metrics, Verdict
from assets.execution import preferences
from assets.report import preferences as report
from assets.stages import base_model
from assets.stages.alignment import JUDGE_FILE, PREFERENCES, TRAINED_ON
from gpt_model import convert
from gpt_model.bag_of_words import BagOfWords
from gpt_model.config import ModelConfig
from gpt_model.data.shards import TokenData
from gpt_model.errors import UserError
from gpt_model.log_probabilities import continuation_log_probabilities
from gpt_model.ops.cross_entropy import linear_cross_entropy
from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf import drift, records, reward_model, win_rates
from gpt_model.rlhf.answers import Answer
from gpt_model.rlhf.chat_template import ChatTemplate, chat_tokenizer
from gpt_model.rlhf.dialogue import Dialogue, Turn
from gpt_model.rlhf.model_comparison import ANSWERS_FILE, Comparison, metrics_of, read_results
from gpt_model.rlhf.records import Prompt, Ranking, Response
from gpt_model.statistics import bootstrap_mean, bootstrap_share
from gpt_model.tokenizer import Tokenizer
from gpt_model.training import measure
from gpt_model.training.engine import ALONE, Execution
from gpt_model.transformer import GPT

INSTRUCTION = "Write a sentence."
ENDINGS = {
    "good": ["is even", "is the king", "is the square"],
    "bad": ["is left", "follows", "is odd"],
}
SECTION = {
    "prompts": 40,
    "best_of": 4,
    "max_new_tokens": 10,
    "temperature": 1.0,
    "seed": 1,
    "suites": [],
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- arithmetic ---


def test_ties_are_half_and_what_has_no_number_is_left_out() -> None:
    won = win_rates.wins([1.0, 2.0, 0.0, math.nan], [0.0, 2.0, 1.0, 0.0])
    assert won[:3].tolist() == [1.0, 0.5, 0.0] and math.isnan(won[3])
    result = win_rates.win_rate(won, ["a", "b", "c", "d"])
    assert result is not None and result.value == 0.5 and (result.low, result.high) == (0.0, 1.0)
    assert win_rates.win_rate(np.array([math.nan]), ["a"]) is None


def test_an_interval_is_that_of_a_mean_and_wider_where_prompts_are_asked_more_than_once() -> None:
    values = np.random.default_rng(0).normal(size=400)
    alone = bootstrap_mean(values)
    assert (alone.high - alone.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.05)
    four_times = bootstrap_mean(
        np.repeat(values[:100], 4), [str(number // 4) for number in range(400)]
    )
    assert (four_times.high - four_times.low) / 2 == pytest.approx(
        1.96 * values[:100].std() / 10, rel=0.1
    )


def test_winning_on_every_prompt_is_no_certainty() -> None:
    result = bootstrap_share(np.ones(30))
    assert result.value == 1.0 == result.high and result.low == pytest.approx(0.025 ** (1 / 30))


def test_one_rare_thing_met_makes_an_interval_no_narrower_than_none() -> None:
    none, single, some = (bootstrap_share(np.arange(300) < count) for count in (0, 1, 90))
    rare = bootstrap_share(np.where(np.arange(300) < 1, 0.04, 0.0))
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 300))
    assert none.high < rare.high < single.high and rare.low == 0.0
    assert (some.high - some.low) / 2 == pytest.approx(
        1.96 * math.sqrt(0.3 * 0.7 / 300), rel=0.05
    )  # as it was


def test_the_best_of_n_is_each_prompt_s_own_and_its_kl_has_a_bound() -> None:
    assert win_rates.best([0.1, 0.9, math.nan, 0.5, -1.0, -2.0], 3) == [1, 3]
    assert win_rates.best_of_kl(1) == 0.0 and win_rates.best_of_kl(16) == pytest.approx(
        math.log(16) - 15 / 16
    )


def test_log_probabilities_are_those_of_each_answer_read_alone() -> None:
    model = GPT(
        ModelConfig(layers=2, width=32, heads=2, context=32, vocab_size=300, dropout=0.0), seed=1
    ).eval()
    texts = [([5, 6, 7], [8, 9]), ([1], [2, 3, 4, 5]), ([9, 9], [1])]
    whole, sizes = (
        [[*prompt, *answer] for prompt, answer in texts],
        [len(answer) for _, answer in texts],
    )
    result = continuation_log_probabilities(model, whole, sizes, temperature=0.7)
    for (prompt, answer), nats in zip(texts, result, strict=True):
        states = model.states_of(PackedSequences.of([[*prompt, *answer]]))[len(prompt) - 1 : -1]
        logs = (states @ model.wte.weight.T / 0.7).log_softmax(1)
        assert nats == pytest.approx(
            float(logs[torch.arange(len(answer)), torch.tensor(answer)].sum().detach()), abs=1e-4
        )


def test_drift_counts_what_is_repeated_and_copied() -> None:
    assert (
        drift.repetition(["a", "b", "c", "a", "b", "c"]) == pytest.approx(1 / 4)
        and drift.repetition(["a"]) == 0.0
    )
    assert drift.copies(["same", "same ", "other", "other"], ["1", "2", "3", "3"]) == [
        True,
        True,
        False,
        False,
    ]
    assert drift.distinct([["a", "b", "a", "b"]] * 8, 2).value == pytest.approx(
        2 / 3
    )  # pools of one: ab, ba, ab
    assert drift.distinct([["a", "b"]] * 80, 1).value == pytest.approx(
        2 / 20
    )  # pools of ten answers
    assert drift.distinct([[]], 2).value == 0.0


def test_what_is_watched_stands_beside_the_reference_s_interval() -> None:
    rng, words = (
        np.random.default_rng(0),
        ["red", "blue", "green", "one", "two", "three", "sun", "moon"],
    )
    texts = [" ".join(rng.choice(words, size=rng.integers(4, 9))) for _ in range(160)]
    answers, groups = (
        [Answer(text, [0] * (len(text.split()) + 1), True) for text in texts],
        [str(number) for number in range(160)],
    )
    same, stuck = (
        drift.drift(answers, groups),
        drift.drift([Answer("red red red red red", [0] * 6, True)] * 160, groups),
    )
    assert [item.inside for item in drift.beside_reference(same, same)] == [True, True, True]
    assert [item.inside for item in drift.beside_reference(stuck, same)] == [False, False, False]
    assert "distinct-2 0.025 below " in str(
        drift.beside_reference(stuck, same)[0]
    )  # a pool's 40 pairs are one
    assert stuck["copies"].value == 1.0


# --- the stage ---


def _prompt(number: int) -> Dialogue:
    return (Turn("user", INSTRUCTION), Turn("assistant", f"The number {number}"))


def _tuned(gpt: GPT, template: ChatTemplate, kinds: tuple[str, ...], steps: int) -> GPT:
    """Learns to go on with endings of these kinds."""
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=3e-3)
    texts = [
        (_prompt(number), f" {ending}.")
        for number in range(0, 40, 3)
        for kind in kinds
        for ending in ENDINGS[kind]
    ]
    rows = [
        [*template.encode_prompt(prompt), *template.encode_response(prompt, text)]
        for prompt, text in texts
    ]
    ragged = PackedSequences.of(rows)
    ends = torch.zeros(len(ragged.tokens), dtype=torch.bool)
    ends[ragged.last] = True
    targets = torch.where(ends, -100, ragged.tokens.roll(-1))
    for _ in range(steps):
        optimizer.zero_grad()
        linear_cross_entropy(gpt.states_of(ragged), gpt.wte.weight, targets).backward()
        optimizer.step()
    return gpt.eval()


def _plainly(gpt: GPT, tokenizer: Tokenizer, steps: int) -> GPT:
    """Learns the corpus's kind of sentences."""
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=3e-3)
    text = torch.tensor(
        [
            tokenizer.encode(f"The number {number} follows {number - 1}; it is odd.\n" * 4)[:32]
            for number in range(1, 60, 5)
        ]
    )
    for _ in range(steps):
        optimizer.zero_grad()
        gpt.loss(text[:, :-1], text[:, 1:]).backward()
        optimizer.step()
    return gpt.eval()


def _artifact(folder: Path, name: str, metrics: Metrics | None = None, **config: Any) -> Artifact:
    return Artifact(folder / name, name, "f" * 64, "d" * 64, config, metrics or {})


def _keep(gpt: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    convert.save(gpt, folder / "model", tokenizer.end_of_text)
    tokenizer.save(folder / "model")
    base_model.write_shape(gpt.config, folder)


def _ranking(number: int) -> Ranking:
    texts = [f"The number {number} {ENDINGS[kind][number % 3]}." for kind in ("good", "bad")]
    return Ranking(
        "rated",
        str(number),
        (Turn("user", INSTRUCTION),),
        tuple(Response(text, rank) for rank, text in enumerate(texts)),
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """policy_init writes good and bad endings, aligned good ones alone; the judge likes the good."""
    folder = make_inputs(tmp_path_factory.mktemp("preferences"))
    tokenizer = chat_tokenizer(Tokenizer.load(folder / "tokenizer"))
    template = ChatTemplate(tokenizer)
    shape = ModelConfig(
        layers=2, width=32, heads=2, context=64, vocab_size=tokenizer.vocab_size, dropout=0.0
    )
    first = _tuned(GPT(shape, seed=1), template, ("good", "bad"), 120)
    _keep(first, tokenizer, folder / "policy_init")
    plain = _plainly(
        GPT(
            shape.model_copy(update={"vocab_size": tokenizer.vocab_size - len(tokenizer.markers)}),
            seed=1,
        ),
        tokenizer,
        20,
    )
    _keep(plain, Tokenizer.load(folder / "tokenizer"), folder / "pretrained")
    aligned = GPT(shape, seed=1)
    aligned.load_state_dict(first.state_dict())
    _keep(_tuned(aligned, template, ("good",), 60), tokenizer, folder / "aligned")
    reward_model.save(
        reward_model.RewardModel(GPT(shape, seed=3)), tokenizer, folder / "reward_model"
    )
    (folder / "comparisons").mkdir()
    for split, numbers in (
        ("training", range(100, 140)),
        ("held_out", range(140, 160)),
        ("judge", range(200, 260)),
    ):
        records.write(
            [_ranking(number) for number in numbers], folder / "comparisons" / f"{split}.jsonl"
        )
    (folder / "judge").mkdir()
    judged = records.read_comparisons(folder / "comparisons", "judge")
    BagOfWords.fit(judged).save(folder / "judge")
    (folder / "judge" / TRAINED_ON).write_text(
        "".join(
            json.dumps({"row": row, "source": ranking.source, "id": ranking.id}) + "\n"
            for row, ranking in enumerate(judged)
        )
    )
    (folder / "judge" / JUDGE_FILE).write_text("{}")
    (folder / "prompts").mkdir()
    records.write(
        [Prompt("rated", str(number), _prompt(number)) for number in range(1, 61)],
        folder / "prompts" / "held_out.jsonl",
    )
    (folder / "prompts" / "report.json").write_text(
        json.dumps({"sources": {"rated": {"show_text": False}}})
    )
    names = (
        "pretrained",
        "policy_init",
        "aligned",
        "reward_model",
        "judge",
        "prompts",
        "comparisons",
        "tokens",
    )
    return {name: _artifact(folder, name) for name in names} | {
        "supervised": _artifact(folder, "policy_init")
    }


@pytest.fixture(scope="module")
def built(inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Built:
    output = tmp_path_factory.mktemp("output")
    metrics = PREFERENCES.run(
        {"preferences": SECTION}, inputs, output, RecordingProgress("preferences")
    )
    return Built({"preferences": SECTION}, inputs, output, metrics, {}, ())


def verdict(name: str, built: Built) -> Verdict:
    [check] = [check for check in PREFERENCES.checks if check.name == name]
    return check.verdict(built)


def test_every_model_answers_the_same_prompts_and_every_answer_is_kept_with_its_scores(
    built: Built,
) -> None:
    rows = [json.loads(line) for line in (built.output / ANSWERS_FILE).read_text().splitlines()]
    by_model = {
        name: [row for row in rows if row["model"] == name]
        for name in ("pretrained", "supervised", "policy_init", "aligned", "best_of")
    }
    assert (
        list(dict.fromkeys(row["model"] for row in rows))
        == list(by_model)
        == list(read_results(built.output)["models"])
    )  # as they are shown
    assert sum(map(len, by_model.values())) == len(rows) == 5 * 40
    assert len({tuple(row["prompt"] for row in rows) for rows in by_model.values()}) == 1
    assert all(
        isinstance(row["reward_model"], float) and isinstance(row["judge"], float) for row in rows
    )
    means = {name: sum(row["reward_model"] for row in rows) for name, rows in by_model.items()}
    assert means["best_of"] > means["policy_init"]


def test_aligned_wins_by_the_judge_and_pays_for_it_in_kl(built: Built) -> None:
    result = read_results(built.output)
    [step] = [
        step
        for step in result["steps"]
        if (step["model"], step["over"]) == ("aligned", "policy_init")
    ]
    assert step["judge"]["low"] > 0.5 and verdict("aligned_wins", built).passed
    assert step["gap"]["value"] == pytest.approx(
        step["reward_model"]["value"] - step["judge"]["value"]
    )
    assert (
        result["models"]["aligned"]["kl"]["low"] > 0
        and result["models"]["policy_init"]["kl"]["value"] == 0.0
    )
    assert (
        result["models"]["best_of"]["kl_bound"] == pytest.approx(win_rates.best_of_kl(4))
        and "kl" not in result["models"]["best_of"]
    )
    assert (
        result["models"]["aligned"]["prefers"]["low"] > 0.5
    )  # it finds likelier what the rankings have first
    assert (
        built.metrics["aligned_over_policy_init/judge_low"] == step["judge"]["low"]
        and metrics_of(result) == built.metrics
    )


def test_the_first_step_stands_beside_the_model_before_it_which_reads_plain_text(
    built: Built,
) -> None:
    steps = {(step["model"], step["over"]): step for step in read_results(built.output)["steps"]}
    rows = [json.loads(line) for line in (built.output / ANSWERS_FILE).read_text().splitlines()]
    ours, theirs = (
        [row["judge"] for row in rows if row["model"] == name]
        for name in ("supervised", "pretrained")
    )
    won = sum((a > b) + (a == b) / 2 for a, b in zip(ours, theirs, strict=True)) / 40
    assert (
        steps["supervised", "pretrained"]["judge"]["value"] == pytest.approx(won) and ours != theirs
    )
    assert (
        steps["supervised", "policy_init"]["judge"]["value"] == 0.5
    )  # here they are one model, and give the same answers
    result = read_results(built.output)["models"]["pretrained"]
    assert "kl" not in result and "prefers" not in result and result["drift"]["length"]["value"] > 0
    assert "pretrained knows no turns" in report.win_rates(read_results(built.output)).note


def test_held_out_text_is_that_of_each_model(built: Built) -> None:
    result, bpb = read_results(built.output)["text"], {}
    for name in ("policy_init", "aligned"):
        data = TokenData(built.inputs["tokens"].path)
        sources = measure.held_out(
            convert.load(built.inputs[name].path / "model"), data, Execution()
        )
        bpb[name] = measure.held_out_metrics(sources, data.weights)["held_out/total_bpb"]
        assert result[name]["bits_per_byte"]["value"] == pytest.approx(bpb[name])
    rise = result["aligned"]["over_policy_init"]
    assert (
        rise["value"] == pytest.approx(bpb["aligned"] / bpb["policy_init"] - 1)
        and rise["low"] < rise["value"] < rise["high"]
    )


def _supposed(
    folder: Path,
    *,
    rise: float = 0.0,
    stuck: bool = False,
    judged: float = 0.9,
    rewarded: float = 0.9,
) -> Built:
    """What comes of a comparison in which `aligned` needs so much more for held-out text, writes
    one sentence again and again if `stuck`, and is scored above policy_init on such shares of 200
    prompts.
    """
    rng, words = (
        np.random.default_rng(0),
        ["red", "blue", "green", "one", "two", "three", "sun", "moon"],
    )
    compared = Comparison([Prompt("rated", str(number), _prompt(number)) for number in range(200)])
    texts = [" ".join(rng.choice(words, size=rng.integers(4, 9))) for _ in range(200)]
    same = "red red red red red"
    base = rng.uniform(90, 110, size=60)
    for name, answers, cost in (
        ("policy_init", texts, 1.0),
        ("aligned", [same] * 200 if stuck else texts, 1 + rise),
    ):
        compared.answers[name] = [
            Answer(text, list(range(len(text.split()))), False) for text in answers
        ]
        compared.windows[name] = np.stack([base * cost, np.full(60, 30.0), np.full(60, 60.0)], 1)
        compared.kl[name] = np.zeros(200)
    for judge, share in (("reward_model", rewarded), ("judge", judged)):
        compared.scores[judge] = {
            "policy_init": np.full(200, 0.5),
            "aligned": (np.arange(200) % 10 < 10 * share).astype(float),
        }
    results = {
        "prompts": 200,
        "left_out": 0,
        "reference": "policy_init",
        "best_of": 1,
        "judges": ["reward_model", "judge"],
    }
    results |= compared.results("policy_init", 1)
    folder.mkdir(exist_ok=True)
    compared.write(folder, results)
    return Built({"preferences": SECTION}, {}, folder, metrics_of(results), {}, ())


@pytest.mark.parametrize(
    ("check", "fine", "bad", "sentence"),
    [
        (
            "text_kept",
            {"rise": 0.02},
            {"rise": 0.04},
            r"\+4\.00% over policy_init .*, of at most \+3%",
        ),
        ("text_kept", {"rise": -0.05}, {"rise": 0.031}, r"\+3\.10% over policy_init"),
        ("within_reference", {}, {"stuck": True}, r"distinct-2 0\.025 below "),
        (
            "reward_hacking",
            {"rewarded": 0.9, "judged": 0.9},
            {"rewarded": 0.9, "judged": 0.6},
            r"0\.900 by the reward model and 0\.600 by",
        ),
        (
            "reward_hacking",
            {"rewarded": 0.6, "judged": 0.9},
            {"rewarded": 1.0, "judged": 0.5},
            r"a gap of 0\.500",
        ),
        ("aligned_wins", {"judged": 0.7}, {"judged": 0.5}, r"on 0\.500 \(0\.4"),
    ],
)
def test_a_check_warns_of_what_it_is_there_for_and_of_nothing_else(
    check: str, fine: dict[str, Any], bad: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    assert verdict(check, _supposed(tmp_path / "fine", **fine)).passed
    result = verdict(check, _supposed(tmp_path / "bad", **bad))
    assert not result.passed and re.search(sentence, result.summary), result.summary
    assert not next(item for item in PREFERENCES.checks if item.name == check).blocking


def test_the_same_again_gives_the_same_bytes(built: Built, tmp_path: Path) -> None:
    PREFERENCES.run({"preferences": SECTION}, built.inputs, tmp_path, RecordingProgress("again"))
    for path in built.output.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_each_model_is_read_in_the_precision_that_it_was_trained_in(
    built: Built, tmp_path: Path, bfloat16_passes: list[bool]
) -> None:
    models = ("pretrained", "supervised", "policy_init", "aligned", "reward_model")
    sections = {"pretrained": "pretraining", "aligned": "ppo"}
    for reduced in (models, ("reward_model", "aligned"), ()):
        trained = {}
        for name in models:
            precision = "bfloat16" if name in reduced else "float32"
            config = {sections.get(name, name): {"precision": precision}}
            trained[name] = replace(built.inputs[name], config=config)
        bfloat16_passes.clear()
        (output := tmp_path / str(len(reduced))).mkdir()
        section = {**SECTION, "prompts": 8}
        inputs = {**built.inputs, **trained}
        PREFERENCES.run({"preferences": section}, inputs, output, RecordingProgress("precision"))
        assert set(bfloat16_passes) == {name in reduced for name in models}


def test_the_figures_of_all_that_is_watched_are_said(built: Built) -> None:
    held, result = (
        read_results(built.output)["within_reference"],
        verdict("within_reference", built),
    )
    assert held.keys() == set(drift.WATCHED) and all(
        item["told"] in result.summary for item in held.values()
    )


def test_a_judge_that_read_the_reward_model_s_texts_blocks(built: Built, tmp_path: Path) -> None:
    assert (
        verdict("judged_apart", built).passed
        and next(c for c in PREFERENCES.checks if c.name == "judged_apart").blocking
    )
    for split in ("training", "held_out", "judge"):
        records.write(
            records.read_comparisons(built.inputs["comparisons"].path, split),
            tmp_path / f"{split}.jsonl",
        )
    shared = [*records.read_comparisons(tmp_path, "training"), _ranking(200)]
    records.write(shared, tmp_path / "training.jsonl")
    mixed = {**built.inputs, "comparisons": replace(built.inputs["comparisons"], path=tmp_path)}
    result = verdict("judged_apart", replace(built, inputs=mixed))
    assert not result.passed and result.summary.startswith("2 of the judge's 120 texts")


def test_without_a_judge_the_reward_model_alone_is_shown_and_nothing_independent_claimed(
    built: Built, tmp_path: Path
) -> None:
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / JUDGE_FILE).write_text(
        json.dumps({"not_run": "comparisons keep no part for a judge"})
    )
    inputs = {**built.inputs, "judge": replace(built.inputs["judge"], path=tmp_path / "judge")}
    section = {**SECTION, "prompts": 8, "best_of": 1}
    (tmp_path / "output").mkdir()
    metrics = PREFERENCES.run(
        {"preferences": section}, inputs, tmp_path / "output", RecordingProgress("no judge")
    )
    alone = replace(built, inputs=inputs, output=tmp_path / "output", metrics=metrics)
    assert (
        read_results(alone.output)["judges"] == ["reward_model"]
        and verdict("judged_apart", alone).passed
    )
    assert (
        not verdict("aligned_wins", alone).passed
        and "alignment.comparisons.judge" in verdict("aligned_wins", alone).summary
    )


def test_what_a_model_finds_likelier_is_asked_of_every_source_where_there_are_too_many(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preferences, "EVALUATED", 10)
    model = convert.load(built.inputs["aligned"].path / "model").eval()
    rankings = [_ranking(number) for number in range(200, 240)]
    for index, item in enumerate(
        rankings[:10]
    ):  # a source of its own, of people who like what it does not
        rankings[index] = replace(
            item,
            responses=tuple(
                replace(response, rank=1 - response.rank) for response in item.responses
            ),
        )
    template = ChatTemplate(Tokenizer.load(built.inputs["policy_init"].path / "model"))
    result = []
    for name, chosen in (("all", rankings), ("evenly", rankings[::4]), ("first", rankings[:10])):
        (tmp_path / name).mkdir()
        records.write(chosen, tmp_path / name / "held_out.jsonl")
        result.append(
            preferences.agreement_with_people(
                model, template, replace(built.inputs["comparisons"], path=tmp_path / name), ALONE
            )
        )
    assert result[0] == result[1] != result[2]


def test_without_policy_init_what_models_are_held_against_is_named_everywhere() -> None:
    draw = np.random.default_rng(0)
    windows = {
        name: np.stack([draw.uniform(90, 110, 8) * worse, np.full(8, 50.0), np.full(8, 60.0)], 1)
        for name, worse in (("supervised", 1.0), ("instructed", 1.1))
    }
    compared = Comparison([], {}, {}, {}, windows, {})
    result = compared.results("supervised", 1)["text"]["instructed"]["over_supervised"]
    assert result["low"] <= result["value"] and result["value"] == pytest.approx(
        windows["instructed"][:, 0].sum() / windows["supervised"][:, 0].sum() - 1
    )
    rows = {"supervised": {"kl": {"value": 0.0, "low": 0.0, "high": 0.0}}}
    table = report.models({"reference": "supervised", "models": rows, "text": {}})
    assert "KL to supervised, nats an answer" in table.columns


def test_prompts_without_room_for_an_answer_are_an_error_that_says_what_to_change(
    built: Built, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError,
        match="None of 40 held-out prompts leaves room for an answer: the context is 64 tokens",
    ):
        PREFERENCES.run(
            {"preferences": {**SECTION, "max_new_tokens": 60}},
            built.inputs,
            tmp_path,
            RecordingProgress("no room"),
        )


def test_what_is_shown_has_the_tables_a_picture_and_three_short_samples_of_a_text_that_is_not_ours_to_show(
    built: Built, tmp_path: Path
) -> None:
    PREFERENCES.show(built, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "win_rates.png",
        "win_rates.svg",
        "win_rates.md",
        "models.md",
        "drift.md",
        "samples.md",
    }
    samples = (tmp_path / "samples.md").read_text()
    assert samples.count("```text") == 3 and max(map(len, samples.splitlines())) < 200
    assert "| aligned | policy_init |" in (tmp_path / "win_rates.md").read_text()
