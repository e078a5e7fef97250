"""Answers to prompts, and the supervised epoch that the reward model likes best."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import human_world as world
import pytest
import torch
from training_ranks import RecordingProgress

from assets.contract import Artifact, Built, Inputs
from assets.report.rlhf import epochs_table
from assets.stages.alignment import INSTRUCTED, TRAINING_FILE
from gpt_model import convert
from gpt_model.errors import UserError
from gpt_model.log_probabilities import continuation_log_probabilities
from gpt_model.rlhf import reward_model
from gpt_model.rlhf.answers import ROWS, PlainText, encode_shortened, sample_answers
from gpt_model.rlhf.dialogue import Turn
from gpt_model.rlhf.reward_model import RewardModel
from gpt_model.rlhf.sft_selection import prompt_subset

pytestmark = pytest.mark.slow

CONFIG = {"instructed": {"prompts": 12, "max_new_tokens": 8, "temperature": 1.0, "seed": 1}}
PROMPTS = [(Turn("user", f"And the {thing}?"),) for thing in world.THINGS]


# --- answers ---


def test_an_answer_depends_on_seed_and_prompt_and_not_on_the_prompts_beside_it() -> None:
    template = world.template()
    model = world.tiny(template).eval()
    how: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3, "copies": 2}
    together = sample_answers(model, template, PROMPTS, **how)
    assert len(together) == 2 * len(PROMPTS)
    assert sample_answers(model, template, PROMPTS[3:4], **how) == together[6:8]
    assert together[6].tokens != together[7].tokens
    many = sample_answers(
        model, template, PROMPTS[:1], max_new_tokens=6, temperature=1.0, seed=3, copies=ROWS + 10
    )
    assert (
        len({tuple(answer.tokens) for answer in many}) > ROWS
    )  # no copy is drawn twice where there are more than are written together


def test_an_answer_ends_with_its_end_or_is_cut_and_an_empty_one_stays_one() -> None:
    template = world.template()
    model = world.tiny(template).eval()
    cut = sample_answers(model, template, PROMPTS, max_new_tokens=1, temperature=1.0, seed=1)
    assert all(len(answer.tokens) == 1 for answer in cut)
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        parameters["wte.weight"][template.end_of_text] += (
            100  # and every state has a mean of 1, so that the end is what follows
        )
        parameters["ln_f.bias"].fill_(1.0)
    empty = sample_answers(model, template, PROMPTS[:2], max_new_tokens=4, temperature=0.0, seed=1)
    assert [(answer.text, answer.tokens, answer.ended, answer.empty) for answer in empty] == [
        ("", [template.end_of_text], True, True)
    ] * 2


def test_a_prompt_that_is_too_long_gives_way_by_whole_turns_and_what_the_system_says_stays() -> (
    None
):
    template = world.template()
    talk = (
        Turn("system", "Be kind."),
        Turn("user", "The film was fine. " * 9),
        Turn("assistant", "Yes."),
        Turn("user", "And the plot?"),
    )
    assert encode_shortened(template, talk, 40) == template.encode_prompt((talk[0], talk[3]))
    assert encode_shortened(template, (Turn("user", "dull " * 90),), 40) is None
    (sampled,) = sample_answers(
        world.tiny(template).eval(), template, [talk], max_new_tokens=4, temperature=1.0, seed=1
    )
    assert sampled.prompt_cut


def test_how_likely_an_answer_is_is_known_as_it_is_written() -> None:
    template = world.template()
    model = world.tiny(template).eval()
    sampled = sample_answers(
        model, template, PROMPTS, max_new_tokens=6, temperature=0.8, seed=3, log_probabilities=True
    )
    texts = [
        [*template.encode_prompt(dialogue_turns), *answer.tokens]
        for dialogue_turns, answer in zip(PROMPTS, sampled, strict=True)
    ]
    read = continuation_log_probabilities(
        model, texts, [len(answer.tokens) for answer in sampled], 0.8
    )
    assert [answer.log_probability for answer in sampled] == pytest.approx(read, abs=1e-4) and max(
        read
    ) < -1


def test_a_model_that_knows_no_markers_reads_the_same_words_as_plain_text() -> None:
    tokenizer = world.template().tokenizer
    talk = (
        Turn("user", "The film was fine."),
        Turn("assistant", "Yes."),
        Turn("user", "And the plot?"),
    )
    assert PlainText(tokenizer).encode_prompt(talk) == [
        tokenizer.end_of_text,
        *tokenizer.encode("The film was fine.\nYes.\nAnd the plot?\n"),
    ]
    opened = (Turn("user", "And the plot?"), Turn("assistant", "It was"))
    assert PlainText(tokenizer).encode_prompt(opened) == [
        tokenizer.end_of_text,
        *tokenizer.encode("And the plot?\nIt was"),
    ]


# --- the stage ---


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Three epochs of which the second says what the reward model likes: a text whose last state
    lies along its head.
    """
    folder, template = tmp_path_factory.mktemp("inputs"), world.template()
    supervised = world.model(folder / "supervised", world.tiny(template, seed=3), template)
    for epoch in (1, 2, 3):
        convert.save(
            world.tiny(template, seed=epoch),
            supervised.path / "epochs" / str(epoch),
            template.end_of_text,
        )
    losses = [
        {"epoch": epoch, "held_out_loss": loss} for epoch, loss in ((1, 2.0), (2, 2.5), (3, 3.0))
    ]
    (supervised.path / "training.json").write_text(json.dumps({"epochs": losses}))
    model = RewardModel(world.tiny(template, seed=9))
    reward_model.save(model, template.tokenizer, folder / "reward_model")
    scorer = Artifact(folder / "reward_model", "reward_model", "", "", {}, {})
    return {
        "supervised": supervised,
        "reward_model": scorer,
        "prompts": world.write(folder / "prompts", held_out=world.prompts(20)),
    }


@pytest.fixture(scope="module")
def chosen(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Built:
    output, progress = tmp_path_factory.mktemp("instructed"), RecordingProgress("instructed")
    metrics = INSTRUCTED.run(CONFIG, inputs, output, progress)
    names = {name for values in progress.record["metrics"].values() for name in values}
    series = {
        name: [(step, values[name]) for step, values in sorted(progress.record["metrics"].items())]
        for name in names
    }
    return Built(
        CONFIG,
        inputs,
        output,
        metrics,
        series,
        [tuple(answer) for answer in progress.record["texts"]],
    )


def test_the_epoch_with_the_best_mean_reward_is_kept_whatever_its_loss(
    chosen: Built, inputs: Inputs
) -> None:
    rows = [json.loads(line) for line in (chosen.output / "answers.jsonl").read_text().splitlines()]
    means = {
        epoch: sum(row["reward"] for row in rows if row["epoch"] == epoch) / 12
        for epoch in (1, 2, 3)
    }
    best = max(means, key=means.__getitem__)
    assert chosen.metrics["best_epoch"] == best
    assert chosen.metrics["reward"] == pytest.approx(means[best])
    assert chosen.metrics["reward_low"] < means[best] < chosen.metrics["reward_high"]
    assert chosen.metrics["epoch_of_lowest_loss"] == 1
    retained = chosen.output / "model" / "model.safetensors"
    assert (
        retained.read_bytes()
        == (inputs["supervised"].path / "epochs" / str(best) / "model.safetensors").read_bytes()
    )
    assert world.failed(INSTRUCTED, chosen) == {}


def test_reward_and_validation_loss_are_shown_side_by_side(chosen: Built, tmp_path: Path) -> None:
    INSTRUCTED.show(chosen, tmp_path)
    assert (tmp_path / "epochs.png").is_file()
    facts = json.loads((chosen.output / TRAINING_FILE).read_text())
    table = epochs_table(facts).frame
    assert 2.5 in list(table["held-out loss"])
    assert [name for name in table["epoch"] if "(kept)" in name] == [
        f"{facts['best_epoch']} (kept)"
    ]


def test_the_epoch_is_chosen_on_prompts_that_models_are_not_compared_on(
    inputs: Inputs, tmp_path: Path
) -> None:
    """Of 80 prompts, 10 of which ask what another one asks, 12 are compared on and as many others
    choose.
    """
    rows = [*world.prompts(70), *({**row, "id": f"again {row['id']}"} for row in world.prompts(10))]
    prompts, output = world.write(tmp_path / "prompts", held_out=rows), tmp_path / "out"
    output.mkdir()
    sampled = prompt_subset(prompts.path, CONFIG["instructed"])
    dialogue_turns = [
        {prompt.turns for prompt in part} for part in (sampled.compared, sampled.choosing)
    ]
    assert (
        sampled.apart
        and len(sampled.compared) == len(sampled.choosing) == 12
        and not dialogue_turns[0] & dialogue_turns[1]
    )
    assert (
        prompt_subset(prompts.path, {**CONFIG["instructed"], "seed": 2}).compared
        != sampled.compared
    )

    metrics = INSTRUCTED.run(
        CONFIG, {**inputs, "prompts": prompts}, output, RecordingProgress("instructed")
    )
    answered = [
        json.loads(line)["id"] for line in (output / "answers.jsonl").read_text().splitlines()[:12]
    ]
    assert answered == [prompt.id for prompt in sampled.choosing]
    assert json.loads((output / TRAINING_FILE).read_text())["apart"] and metrics["prompts"] == 12


def test_where_too_few_others_are_left_the_same_prompts_choose(
    chosen: Built, inputs: Inputs
) -> None:
    sampled = prompt_subset(inputs["prompts"].path, CONFIG["instructed"])
    assert not sampled.apart and sampled.choosing == sampled.compared and sampled.left == 8
    facts = json.loads((chosen.output / TRAINING_FILE).read_text())
    assert (facts["apart"], facts["left"]) == (False, 8)


def test_without_held_out_prompts_it_says_what_to_change(inputs: Inputs, tmp_path: Path) -> None:
    none = world.write(tmp_path / "prompts", held_out=[])
    with pytest.raises(UserError, match=r"make prompts\.held_out larger"):
        INSTRUCTED.run(
            CONFIG, {**inputs, "prompts": none}, tmp_path / "out", RecordingProgress("instructed")
        )


def test_epochs_answer_and_are_scored_in_the_precision_that_each_model_was_trained_in(
    inputs: Inputs, tmp_path: Path, bfloat16_passes: list[bool]
) -> None:
    for number, (supervised, scorer) in enumerate(
        [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float32")]
    ):
        trained = {
            name: replace(inputs[name], config={name: {"precision": precision}})
            for name, precision in (("supervised", supervised), ("reward_model", scorer))
        }
        bfloat16_passes.clear()
        (output := tmp_path / str(number)).mkdir()
        INSTRUCTED.run(CONFIG, {**inputs, **trained}, output, RecordingProgress("instructed"))
        assert set(bfloat16_passes) == {supervised == "bfloat16", scorer == "bfloat16"}
