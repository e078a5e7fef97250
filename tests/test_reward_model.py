"""The reward model and the judge: the loss, what is learnt, measured, left out and refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import human_world as world
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_ranks import RecordingProgress

from assets.contract import Built, Inputs
from assets.execution import judge as judge_stage
from assets.recipe.sections import RewardModelSection
from assets.stages.alignment import JUDGE, REWARD_MODEL
from gpt_model.bag_of_words import BagOfWords
from gpt_model.errors import UserError
from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf import ranking_agreement, reward_model
from gpt_model.rlhf.dialogue import Turn
from gpt_model.rlhf.records import Ranking, Response, merge_rankings, read_comparisons
from gpt_model.rlhf.reward_model import RewardModel, RewardObjective
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.batching import EpochBatches

PROMPT = (Turn("user", "How was it?"),)
CONFIG = {
    "reward_model": RewardModelSection(
        learning_rate=3e-3, epochs=4, batch=8, start="supervised"
    ).model_dump(mode="json")
}


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with world.one_rank():
        yield


def ranked(*responses: tuple[str, int], prompt: tuple[Turn, ...] = PROMPT) -> Ranking:
    return Ranking("reviews", "1", prompt, tuple(Response(text, rank) for text, rank in responses))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder, template = tmp_path_factory.mktemp("inputs"), world.template()
    return {
        "start": world.model(folder / "start", world.tiny(template), template),
        "tokenizer": world.model(folder / "tokenizer", world.tiny(template), template),
        "demonstrations": world.write(
            folder / "demonstrations", training=world.demonstrations(40), held_out=[]
        ),
        "comparisons": world.write(
            folder / "comparisons",
            training=[*world.rankings(80, 1), world.ranking(900, ["Good.", "Bad."], [0, 0])],
            held_out=world.rankings(40, 2),
            judge=[*world.rankings(60, 3), world.rankings(1, 1)[0]],
        ),
    }


@pytest.fixture(scope="module")
def trained(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Built:
    output, progress = tmp_path_factory.mktemp("reward_model"), RecordingProgress("reward_model")
    metrics = REWARD_MODEL.run(CONFIG, inputs, output, progress)
    names = {name for values in progress.record["metrics"].values() for name in values}
    series = {
        name: [
            (step, values[name])
            for step, values in sorted(progress.record["metrics"].items())
            if name in values
        ]
        for name in names
    }
    return Built(CONFIG, inputs, output, metrics, series, [])


# --- the loss ---


def test_rows_of_one_prompt_are_one_ranking_with_each_response_once_and_the_pairs_of_every_row() -> (
    None
):
    """Also where they contradict; and the interval of the accuracy is then as wide as that of so
    few prompts.
    """
    template = world.template()
    rows = [
        ranked(("fine", 0), ("dull", 1)),
        ranked(("fine", 0), ("awful", 1)),
        ranked(("awful", 0), ("dull ", 0), ("fine", 1)),
    ]
    whole = merge_rankings(rows)
    assert [item.text for item in whole.responses] == [
        "fine",
        "dull",
        "awful",
    ] and whole.id == "1 and 2 others"
    assert whole.orders() == ((0, 1, None), (0, None, 1), (1, 0, 0)) and whole.ties() == 1
    assert sorted(whole.pairs()) == [(0, 1), (0, 2), (1, 0), (2, 0)]
    encoded_texts = reward_model.encode_rankings(template, [whole], 64)
    assert len(encoded_texts.encoded[0].texts) == 3 and encoded_texts.pairs == 4
    batches = EpochBatches([item.tokens for item in encoded_texts.encoded], 1, 1, seed=0)
    [part] = RewardObjective(encoded_texts.encoded, batches).micro_batches(0)
    assert part.rows.lengths == tuple(
        map(len, encoded_texts.encoded[0].texts)
    ) and part.weights.sum() == pytest.approx(1)
    apart = ranking_agreement.accuracies(
        [[[float(n % 2), 0.5] for n in range(16) for _ in range(8)]], [[(0, 1)]] * 128
    )[0][0]
    joined = ranking_agreement.accuracies(
        [[[float(n % 2), 0.5] for n in range(16)]], [[(0, 1)] * 8] * 16
    )[0][0]
    assert joined.value == apart.value and joined.high - joined.low > 2 * (apart.high - apart.low)


def test_the_loss_is_the_mean_over_prompts_of_the_mean_over_their_pairs() -> None:
    """Micro-batches add up to the paper's equation 1, written out with one forward pass a pair."""
    template = world.template()
    model = RewardModel(world.tiny(template)).eval()
    rankings = [
        ranked(("fine", 0), ("dull", 1), ("awful", 2)),
        ranked(("lovely", 0), ("poor", 1)),
        ranked(("good", 1), ("bad", 1), ("best", 0)),
    ]
    compared = reward_model.encode_rankings(template, rankings, 64).encoded
    batches = EpochBatches(
        [item.tokens for item in compared], 3, 1, seed=0, sequences=1, context=40
    )
    parts = RewardObjective(compared, batches).micro_batches(0)
    assert len(parts) > 1
    result = torch.stack(
        [RewardObjective(compared, batches).loss(model, part)[0] for part in parts]
    ).mean()

    def alone(text: list[int]) -> torch.Tensor:
        return model.head(model.gpt.hidden(torch.tensor([text])))[0, -1, 0]

    by_prompt = [
        torch.stack(
            [
                -F.logsigmoid(alone(item.texts[better]) - alone(item.texts[worse]))
                for better, worse in item.pairs
            ]
        ).mean()
        for item in compared
    ]
    torch.testing.assert_close(result, torch.stack(by_prompt).mean())


def test_two_ranks_together_have_the_loss_of_one() -> None:
    template = world.template()
    model = RewardModel(world.tiny(template)).eval()
    rankings = [
        ranked(
            *((f"{word} {number}", rank) for rank, word in enumerate(world.GOOD[: 2 + number % 2]))
        )
        for number in range(5)
    ]
    compared = reward_model.encode_rankings(template, rankings, 64).encoded

    def loss(rank: int, ranks: int) -> float:
        batches = EpochBatches(
            [item.tokens for item in compared], 5, 1, 0, rank, ranks, sequences=1, context=64
        )
        objective = RewardObjective(compared, batches)
        return float(
            torch.stack(
                [objective.loss(model, part)[0].detach() for part in objective.micro_batches(0)]
            ).mean()
        )

    assert (loss(0, 2) + loss(1, 2)) / 2 == pytest.approx(loss(0, 1), abs=1e-6)


def test_each_response_is_read_once_and_ties_make_no_pair() -> None:
    template = world.template()
    encoded_texts = reward_model.encode_rankings(
        template, [ranked(("a", 0), ("b", 1), ("c", 1), ("d", 2)), ranked(("a", 0), ("b", 0))], 64
    )
    assert [len(item.texts) for item in encoded_texts.encoded] == [4]
    assert encoded_texts.pairs == 5  # of 6, one is tied
    assert encoded_texts.without_pairs == 1
    assert "1 without a better and a worse response" in encoded_texts.summary("training")
    compared = encoded_texts.encoded
    objective = RewardObjective(
        compared, EpochBatches([item.tokens for item in compared], 1, 1, seed=0)
    )
    assert objective.micro_batches(0)[0].rows.lengths == tuple(map(len, compared[0].texts))
    assert objective.units_before(1) == 5


def test_a_long_prompt_gives_way_by_whole_turns_and_a_long_response_is_left_out_of_its_ranking() -> (
    None
):
    template = world.template()
    long = (
        Turn("user", "The film was fine. " * 8),
        Turn("assistant", "Yes."),
        Turn("user", "Why?"),
    )
    text = reward_model.encode_text(template, long, "It was lovely.", 40)
    assert text == [
        *template.encode_prompt(long[2:]),
        *template.encode_response(long, "It was lovely."),
    ]
    encoded_texts = reward_model.encode_rankings(
        template,
        [
            ranked(("fine", 0), ("dull " * 60, 1), ("poor", 1)),
            ranked(("fine", 0), ("dull " * 60, 1)),
        ],
        40,
    )
    [compared] = encoded_texts.encoded
    assert [
        text[-size:] for text, size in zip(compared.texts, compared.response_lengths, strict=True)
    ] == [template.encode_response(PROMPT, text) for text in ("fine", "poor")]
    assert (compared.pairs, encoded_texts.too_long, encoded_texts.lost) == (
        [(0, 1)],
        ["reviews, 1, response 2"] * 2,
        1,
    )
    assert (
        "2 responses longer than the context (the first: reviews, 1, response 2), and 1 rankings "
        "that" in encoded_texts.summary("training")
    )


# --- the model ---


def test_a_reward_does_not_depend_on_what_is_read_beside_it() -> None:
    template = world.template()
    model = RewardModel(world.tiny(template)).eval()
    texts = [
        (PROMPT, text)
        for text in ("fine", "The plot was awful and the cast too.", "dull, dull, dull")
    ]
    together = reward_model.score(model, template, texts)
    assert together == pytest.approx(
        [reward_model.score(model, template, [item])[0] for item in texts], abs=1e-6
    )
    rows = PackedSequences.of(
        [reward_model.encode_text(template, *item, 64) or [] for item in texts]
    )
    torch.testing.assert_close(model.values(rows)[rows.last], torch.tensor(together))


def test_a_reward_has_full_precision_where_the_decoder_has_half() -> None:
    template = world.template()
    model = RewardModel(world.tiny(template)).eval()
    rows = PackedSequences.of(
        [
            [*template.encode_prompt(PROMPT), number, template.end_of_text]
            for number in range(20, 40)
        ]
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rewards = model.rewards(rows)
    assert rewards.dtype == torch.float32
    assert (rewards != rewards.bfloat16().float()).any()


def test_an_empty_answer_is_scored_and_a_reward_that_is_no_number_is_named() -> None:
    template = world.template()
    model = RewardModel(world.tiny(template)).eval()
    assert math.isfinite(reward_model.score(model, template, [(PROMPT, "")])[0])
    with torch.no_grad():
        model.head.bias.fill_(math.nan)
    rewards = reward_model.score(model, template, [(PROMPT, "fine")])
    with pytest.raises(
        UserError, match="The reward of 1 of 1 answers is not a number, the first of prompt 0"
    ):
        reward_model.check_finite(rewards, lambda number: f"prompt {number}", "answers")


def test_a_reward_model_of_another_vocabulary_is_refused() -> None:
    ranking_scores = world.template().tokenizer
    with pytest.raises(
        UserError, match=r"vocabulary is 303 tokens of style 'gpt2', and the policy's 299"
    ):
        reward_model.check_vocabulary(
            ranking_scores,
            Tokenizer.train(world.TEXTS, vocab_size=296).with_markers(list(ranking_scores.markers)),
        )
    others = ["Zebras graze. Quick quails quarrel. " * 3, "Zigzag zones puzzle wizards."] * 8
    with pytest.raises(UserError, match="another vocabulary than the policy: token"):
        reward_model.check_vocabulary(
            ranking_scores,
            Tokenizer.train(others, vocab_size=300).with_markers(list(ranking_scores.markers)),
        )
    reward_model.check_vocabulary(ranking_scores, world.template().tokenizer)


# --- the stage ---


def test_it_learns_which_response_people_prefer_and_is_told_beside_a_bag_of_words(
    trained: Built,
) -> None:
    m = trained.metrics
    assert m["accuracy_low"] > 0.5, m
    assert m["bag_of_words/accuracy"] > 0.9  # the words decide
    assert m["gained"] == pytest.approx(m["accuracy"] - m["bag_of_words/accuracy"])
    assert m["reviews0/comparisons"] + m["reviews1/comparisons"] == m["comparisons"] == 80
    assert m["training/without_pairs"] == 1
    assert world.failed(REWARD_MODEL, trained) == {}


def test_the_demonstrations_mean_is_zero_in_the_model_that_is_loaded_again(
    trained: Built, inputs: Inputs
) -> None:
    from gpt_model.rlhf.records import read_demonstrations

    model, template = reward_model.load(trained.output), world.template()
    given = read_demonstrations(inputs["demonstrations"].path, "training")
    rewards = reward_model.score(
        model, template, [(item.turns[:-1], item.turns[-1].text) for item in given]
    )
    assert abs(np.mean(rewards)) < 1e-5
    rows = [
        json.loads(line) for line in (trained.output / "held_out.jsonl").read_text().splitlines()
    ]
    first = read_comparisons(inputs["comparisons"].path, "held_out")[0]
    again = reward_model.score(
        model, template, [(first.prompt, response.text) for response in first.responses]
    )
    assert rows[0]["rewards"] == pytest.approx(again, abs=1e-5)
    assert "text" not in json.dumps(rows)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_ends_bit_for_bit_alike(
    trained: Built, inputs: Inputs, tmp_path: Path
) -> None:
    with pytest.raises(world.Killed):
        REWARD_MODEL.run(CONFIG, inputs, tmp_path, world.Interrupted("killed", 0.6))
    progress = RecordingProgress("again")
    REWARD_MODEL.run(CONFIG, inputs, tmp_path, progress)
    assert any(
        line.startswith("Goes on from the checkpoint of step") for line in progress.record["log"]
    )
    assert world.files(tmp_path) == world.files(trained.output)


def test_pages_are_written(trained: Built, tmp_path: Path) -> None:
    REWARD_MODEL.show(trained, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "figures.md",
        "calibration.png",
        "calibration.svg",
        "training.png",
        "training.svg",
    }
    assert "| reviews1 |" in (tmp_path / "figures.md").read_text()


def test_comparisons_without_a_better_response_stop_the_stage_with_a_sentence(
    inputs: Inputs, tmp_path: Path
) -> None:
    tied = world.write(
        tmp_path / "comparisons", training=[world.ranking(1, ["a", "b"], [0, 0])], held_out=[]
    )
    with pytest.raises(UserError, match="There is nothing to learn from"):
        REWARD_MODEL.run(
            CONFIG, {**inputs, "comparisons": tied}, tmp_path / "out", RecordingProgress("none")
        )


def test_responses_without_a_word_have_no_baseline_and_it_is_said_why(
    inputs: Inputs, tmp_path: Path
) -> None:
    """A bag of words knows words of two letters and more."""
    letters = [world.ranking(n, [f"{n % 10}", "!"], [0, 1]) for n in range(12)]
    comparisons = world.write(tmp_path / "comparisons", training=letters, held_out=letters[:6])
    config = {"reward_model": {**CONFIG["reward_model"], "epochs": 1}}
    (tmp_path / "out").mkdir()
    metrics = REWARD_MODEL.run(
        config,
        {**inputs, "comparisons": comparisons},
        tmp_path / "out",
        progress := RecordingProgress("letters"),
    )
    assert "accuracy" in metrics and not [
        name for name in metrics if name.startswith(("bag_of_words/acc", "gained"))
    ]
    assert any(
        "A bag of words is not run: the texts have no words in them" in line
        for line in progress.record["log"]
    )
    built = Built(config, inputs, tmp_path / "out", metrics, {}, [])
    REWARD_MODEL.show(built, tmp_path)
    page = (tmp_path / "figures.md").read_text()
    assert (
        "Bag of words: not run, as the texts have no words in them." in page
        and "| all | 6 | " in page
    )
    [check] = [item for item in REWARD_MODEL.checks if item.name == "accuracy_above_half"]
    assert "a bag of words is not run" in check.verdict(built).summary
    assert "bag_of_words" not in (tmp_path / "out" / "held_out.jsonl").read_text()


# --- pairwise figures ---


def test_accuracy_counts_equal_numbers_half_and_calibration_is_right_where_odds_are() -> None:
    (result,), _ = ranking_agreement.accuracies(
        [[[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]], [[(0, 1)]] * 3
    )
    assert result.value == pytest.approx(0.5)
    draw = np.random.default_rng(0)
    gaps = draw.normal(0, 2, 4000)
    first_wins = draw.random(4000) < 1 / (1 + np.exp(-gaps))
    scores = [[gap, 0.0] for gap in gaps]
    pairs = [[(0, 1)] if won else [(1, 0)] for won in first_wins]
    assert ranking_agreement.calibration(scores, pairs)[1] < 0.02
    assert (
        ranking_agreement.calibration([[3 * gap, 0.0] for gap in gaps], pairs)[1] > 0.1
    )  # too sure
    assert ranking_agreement.log_loss([[0.0, 0.0]], [[(0, 1)]]) == pytest.approx(math.log(2))


# --- the judge ---


def test_the_judge_is_read_back_to_the_bit(tmp_path: Path, inputs: Inputs) -> None:
    judge = BagOfWords.fit(read_comparisons(inputs["comparisons"].path, "judge"))
    judge.save(tmp_path)
    texts = ["The plot was fine.", "awful", "", "zzz"]
    assert (BagOfWords.load(tmp_path).score(texts) == judge.score(texts)).all()
    assert judge.score(texts)[0] > judge.score(texts)[1]


def test_the_judge_learns_from_no_text_that_the_reward_model_sees(
    inputs: Inputs, tmp_path: Path
) -> None:
    metrics = JUDGE.run({}, inputs, tmp_path, RecordingProgress("judge"))
    built = Built({}, inputs, tmp_path, metrics, {}, [])
    assert (metrics["rankings"], metrics["shared"]) == (
        60,
        1,
    )  # the one that is in training too is left out
    assert metrics["accuracy_low"] > 0.5
    assert world.failed(JUDGE, built) == {}
    (tmp_path / "learnt.jsonl").open("a").write(
        '{"row": 60, "source": "reviews0", "id": "0"}\n'
    )  # as if it had been learnt from
    assert "independent" in world.failed(JUDGE, built)
    JUDGE.show(built, tmp_path)
    assert "“fine”" in (tmp_path / "figures.md").read_text()


def test_without_a_part_of_its_own_there_is_no_judge_and_the_artifact_says_why(
    inputs: Inputs, tmp_path: Path
) -> None:
    comparisons = inputs["comparisons"].path
    rows = {
        split: [
            json.loads(line) for line in (comparisons / f"{split}.jsonl").read_text().splitlines()
        ]
        for split in ("training", "held_out")
    }
    given = {"comparisons": world.write(tmp_path / "comparisons", **rows, judge=[])}
    (tmp_path / "judge").mkdir()
    metrics = JUDGE.run({}, given, tmp_path / "judge", RecordingProgress("judge"))
    assert judge_stage.not_run(tmp_path / "judge") == "comparisons keep no part for a judge"
    assert world.failed(JUDGE, Built({}, given, tmp_path / "judge", metrics, {}, [])) == {}
