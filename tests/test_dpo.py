"""DPO: the loss against the published equation, the reference, what is learnt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import human_world as world
import pytest
import torch
import torch.nn.functional as F
from training_ranks import RecordingProgress

from assets.contract import Built, Inputs
from assets.recipe.sections import DPOSection
from assets.stages.alignment import DPO
from gpt_model import convert
from gpt_model.rlhf import dpo, reward_model
from gpt_model.rlhf.dialogue import Turn
from gpt_model.rlhf.records import Ranking, Response
from gpt_model.training.batching import EpochBatches
from gpt_model.training.engine import Execution
from gpt_model.transformer import GPT

CONFIG = {
    "dpo": DPOSection(learning_rate=3e-3, epochs=3, batch=16, beta=0.1).model_dump(mode="json")
}
RANKINGS = [
    Ranking(
        "reviews",
        str(number),
        (Turn("user", "How was it?"),),
        tuple(Response(text, rank) for rank, text in enumerate(texts)),
    )
    for number, texts in enumerate(
        [("fine", "dull", "awful"), ("lovely", "poor"), ("superb film", "a dull one, poor")]
    )
]


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with world.one_rank():
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder, template = tmp_path_factory.mktemp("inputs"), world.template()
    comparisons = world.write(
        folder / "comparisons", training=world.rankings(60, 1), held_out=world.rankings(30, 2)
    )
    return {
        "policy_init": world.model(folder / "policy_init", world.tiny(template), template),
        "comparisons": comparisons,
    }


def nats(model: GPT, text: list[int], response: int) -> torch.Tensor:
    """log π of the last `response` tokens, from whole logits."""
    logs = model(torch.tensor([text]))[0].log_softmax(-1)
    at = range(len(text) - response, len(text))
    return torch.stack([logs[index - 1, text[index]] for index in at]).sum()


def test_the_loss_and_its_gradient_are_the_published_equation_over_all_pairs() -> None:
    template = world.template()
    model, before = world.tiny(template, seed=1), world.tiny(template, seed=2)
    compared = reward_model.encode_rankings(template, RANKINGS, 64).encoded
    batches = EpochBatches(
        [ranking.tokens for ranking in compared], 3, 1, seed=0, sequences=1, context=50
    )
    objective = dpo.DPOObjective(
        compared, dpo.ranking_log_probabilities(before.eval(), compared), 0.5, batches
    )
    parts = objective.micro_batches(0)
    assert len(parts) > 1
    assert objective.units_before(1) == 5
    measured_loss = torch.stack([objective.loss(model, part)[0] for part in parts]).mean()
    measured_loss.backward()
    slopes = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()

    each = []
    for ranking in compared:
        moved = [
            nats(model, text, size) - nats(before, text, size).detach()
            for text, size in zip(ranking.texts, ranking.response_lengths, strict=True)
        ]
        each += [
            -F.logsigmoid(0.5 * (moved[better] - moved[worse])) for better, worse in ranking.pairs
        ]
    expected = torch.stack(each).mean()
    torch.testing.assert_close(measured_loss, expected, atol=1e-5, rtol=1e-5)
    expected.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(slopes[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_the_reference_is_asked_once_and_a_run_that_goes_on_reads_it(tmp_path: Path) -> None:
    template = world.template()
    compared = reward_model.encode_rankings(template, RANKINGS, 64).encoded
    first = dpo.reference_log_probabilities(
        world.tiny(template, seed=1), compared, tmp_path, Execution()
    )
    assert first == dpo.ranking_log_probabilities(world.tiny(template, seed=1).eval(), compared)
    assert (
        dpo.reference_log_probabilities(
            world.tiny(template, seed=2), compared, tmp_path, Execution()
        )
        == first
    )


@pytest.mark.slow
def test_it_learns_which_response_people_prefer_and_a_killed_run_ends_bit_for_bit_alike(
    inputs: Inputs, tmp_path: Path
) -> None:
    progress = RecordingProgress("dpo")
    metrics = DPO.run(CONFIG, inputs, tmp_path / "dpo", progress)
    names = {name for values in progress.record["metrics"].values() for name in values}
    series = {
        name: [
            (step, values[name])
            for step, values in sorted(progress.record["metrics"].items())
            if name in values
        ]
        for name in names
    }
    built = Built(CONFIG, inputs, tmp_path / "dpo", metrics, series, [])
    assert metrics["accuracy_low"] > 0.5, metrics
    again = tmp_path / "again"
    with pytest.raises(world.Killed):
        DPO.run(CONFIG, inputs, again, world.Interrupted("killed", 0.6))
    DPO.run(CONFIG, inputs, again, RecordingProgress("again"))
    assert world.files(again) == world.files(tmp_path / "dpo")
    assert metrics["nats_gained/better"] > metrics["nats_gained/worse"]
    assert (
        metrics["prompts_a_step"] == 60 / 8
    )  # 16 pairs at most, and each of these prompts has two
    assert world.failed(DPO, built) == {}
    assert (
        convert.load(tmp_path / "dpo" / "model").config.vocab_size
        == world.template().tokenizer.vocab_size
    )
    pages = tmp_path / "pages"
    pages.mkdir()
    DPO.show(built, pages)
    assert {path.name for path in pages.iterdir()} == {"figures.md", "training.png", "training.svg"}
