"""Tasks: layouts, head and objective, batches, metrics. Examples are test_examples.py's,
fine-tuning itself is test_finetuning.py's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torch.nn.functional as F

from assets.report.tables import metric, not_resampled_note
from gpt_model import GPT, ModelConfig, convert
from gpt_model.errors import UserError
from gpt_model.finetuning import heads as task_model
from gpt_model.finetuning import metrics
from gpt_model.finetuning.batches import TrainingBatches, class_logits, collate
from gpt_model.finetuning.entry import Form
from gpt_model.finetuning.heads import TaskModel, with_special_tokens
from gpt_model.finetuning.input_forms import EncodedExample, InputFormat, truncated
from gpt_model.finetuning.objective import TaskObjective, next_tokens
from gpt_model.statistics import wilson
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.batching import Idle

# --- layouts ---


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(
        (f"film {i} was {word}" for i in range(170) for word in ("fine", "dull")), vocab_size=270
    )


def laid(
    form: Form,
    tokenizer: Tokenizer,
    segments: tuple[str, ...],
    options: tuple[str, ...] = (),
    context: int = 64,
) -> EncodedExample:
    from gpt_model.finetuning.examples import Example

    return InputFormat(form, tokenizer.vocab_size, context).encode(
        tokenizer, [Example("1", "g", segments, options, 0)]
    )[0]


def test_layouts_are_those_of_figure_1(tokenizer: Tokenizer) -> None:
    start, delim, extract = 270, 271, 272
    a, b, c = (tuple(tokenizer.encode(text)) for text in ("film one", "was dull", "no"))
    assert laid("classification", tokenizer, ("film one",)).rows == ((start, *a, extract),)
    assert laid("entailment", tokenizer, ("film one", "was dull")).rows == (
        (start, *a, delim, *b, extract),
    )
    assert laid("similarity", tokenizer, ("film one", "was dull")).rows == (
        (start, *a, delim, *b, extract),
        (start, *b, delim, *a, extract),
    )
    assert laid("multiple_choice", tokenizer, ("film one",), ("was dull", "no")).rows == (
        (start, *a, delim, *b, extract),
        (start, *a, delim, *c, extract),
    )


def test_what_does_not_fit_is_cut_from_the_longest_segment_and_said(tokenizer: Tokenizer) -> None:
    long, short = " ".join(["film"] * 100), "was dull"
    result = laid("entailment", tokenizer, (long, short), context=32)
    premise, hypothesis = tokenizer.encode(long), tokenizer.encode(short)
    assert result.cut and len(result.rows[0]) == 32
    assert result.rows[0] == (270, *premise[: 32 - 3 - len(hypothesis)], 271, *hypothesis, 272)
    assert not laid("entailment", tokenizer, ("film", short), context=32).cut
    assert (
        truncated([9, 2], 8) == [6, 2]
        and sum(truncated([9, 8, 1], 10)) == 10
        and truncated([3, 3], 6) == [3, 3]
    )
    assert max(truncated([90, 80, 1], 11)) == 5


# --- head and objective ---


def tiny_model(form: Form, classes: int = 2, dropout: float = 0.0) -> TaskModel:
    config = ModelConfig(layers=2, width=32, heads=2, context=64, vocab_size=273, dropout=dropout)
    return TaskModel(GPT(config, seed=3), InputFormat(form, 270, 64), classes, dropout, seed=1)


def some(form: Form, tokenizer: Tokenizer, count: int = 6) -> list[EncodedExample]:
    from gpt_model.finetuning.examples import Example

    made = []
    for i in range(count):
        words = " ".join(["film", "was", "fine", "dull"][(i + j) % 4] for j in range(1 + 3 * i))
        segments = (
            (words,) if form in ("classification", "multiple_choice") else (words, f"was {i}")
        )
        made.append(
            Example(
                str(i),
                words,
                segments,
                (f"one {i}", "two", "three and more") if form == "multiple_choice" else (),
                i % 2,
            )
        )
    return InputFormat(form, tokenizer.vocab_size, 64).encode(tokenizer, made)


@pytest.mark.parametrize("form", ["classification", "entailment", "similarity", "multiple_choice"])
def test_logits_do_not_depend_on_what_an_example_is_padded_beside(
    form: Form, tokenizer: Tokenizer
) -> None:
    model = tiny_model(form, classes=3 if form == "multiple_choice" else 2).eval()
    examples = some(form, tokenizer)
    together = class_logits(model, examples)
    alone = torch.cat([model(collate([example]))[0] for example in examples])
    assert together.shape == (6, model.classes)
    assert torch.allclose(together, alone, atol=1e-6)


def test_similarity_does_not_depend_on_the_order_of_the_two(tokenizer: Tokenizer) -> None:
    model = tiny_model("similarity").eval()
    item, other = (
        laid("similarity", tokenizer, pair)
        for pair in (("film one", "was dull"), ("was dull", "film one"))
    )
    assert torch.allclose(model(collate([item]))[0], model(collate([other]))[0], atol=1e-6)


def test_a_question_s_options_are_dropped_alike(tokenizer: Tokenizer) -> None:
    model = tiny_model("multiple_choice", classes=2, dropout=0.5)
    model.gpt.eval()
    same = laid("multiple_choice", tokenizer, ("film",), ("was dull", "was dull"))
    torch.manual_seed(0)
    logits = torch.cat([model(collate([same]))[0] for _ in range(8)])
    assert torch.allclose(logits[:, 0], logits[:, 1], atol=1e-6)
    assert logits[:, 0].std() > 0


def test_the_objective_is_label_loss_plus_lambda_text_loss(tokenizer: Tokenizer) -> None:
    model = tiny_model("entailment").eval()
    examples = some("entailment", tokenizer)
    batch = collate(examples)
    objective = TaskObjective(
        TrainingBatches(examples, batch=6, seed=0), auxiliary_weight=0.5, positions=64
    )
    loss, values = objective.loss(model, batch)
    logits, states = model(batch)
    text_losses = []
    for row, example in enumerate(examples):
        ids = torch.tensor(example.rows[0])
        predicted = F.linear(states[row, : len(ids) - 1], model.gpt.wte.weight)
        text_losses.append(F.cross_entropy(predicted, ids[1:]))
    expected = (
        F.cross_entropy(logits, batch.labels) + 0.5 * torch.stack(text_losses).mean()
    )  # each sequence counts as much as another
    assert torch.allclose(loss, expected, atol=1e-5)
    assert values["text_loss"][1] == len(examples)
    assert (next_tokens(batch)[0, len(examples[0].rows[0]) - 1 :] == -100).all()


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_its_gradient_at_any_number_of_ranks(
    tokenizer: Tokenizer,
) -> None:
    model = tiny_model("classification").eval()
    examples = some("classification", tokenizer, count=7)
    gradients = []
    for world_size, rows in ((1, 100), (1, 2), (3, 100), (10, 100)):
        model.zero_grad()
        for rank in range(world_size):
            batches = TrainingBatches(examples, 7, 0, rank, world_size, rows)
            objective = TaskObjective(batches, auxiliary_weight=0.0, positions=64)
            parts = objective.micro_batches(0)
            for part in parts:
                if isinstance(part, Idle):
                    assert rank >= 7 and len(parts) == 1
                    continue
                (objective.loss(model, part)[0] / (len(parts) * world_size)).backward()
        gradients.append(model.head.weight.grad.clone())  # type: ignore[union-attr]
    for other in gradients[1:]:
        assert torch.allclose(gradients[0], other, atol=1e-6)


@pytest.mark.parametrize("form", ["classification", "multiple_choice"])
def test_no_micro_batch_is_larger_than_the_one_that_a_trial_takes(
    form: str, tokenizer: Tokenizer
) -> None:
    model, examples = tiny_model(form).eval(), some(form, tokenizer, count=19)
    batches = TrainingBatches(examples, 19, 0, world_size=3)
    objective = TaskObjective(batches, auxiliary_weight=0.5, positions=64)
    rows = len(examples[0].rows)
    assert batches.size.step_tokens == 19 * batches.size.context
    for sequences in (1, 2, 4, 8):
        objective.size.fit(sequences)
        tried = objective.full_micro_batch(sequences)
        assert tried.tokens.shape == (sequences * rows, batches.size.context // rows)
        assert objective.loss(model, tried)[0].isfinite()
        for part in objective.micro_batches(0):
            batch = part.stand_in if isinstance(part, Idle) else part
            assert batch.tokens.numel() <= tried.tokens.numel()


def test_new_tokens_leave_the_pre_trained_function_as_it_was() -> None:
    gpt = GPT(
        ModelConfig(layers=2, width=32, heads=2, context=64, vocab_size=270, dropout=0.0), seed=5
    ).eval()
    grown = with_special_tokens(gpt, dropout=0.1, seed=1).eval()
    tokens = torch.randint(0, 270, (2, 20))
    assert grown.config.vocab_size == 273 and grown.config.dropout == 0.1
    assert torch.equal(grown(tokens)[..., :270], gpt(tokens))
    assert 0.01 < float(grown.wte.weight.detach()[270:].std()) < 0.03


def test_a_saved_model_answers_as_before_and_its_decoder_loads_in_transformers(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_model("similarity").eval()
    examples = some("similarity", tokenizer)
    task_model.save(model, ["no", "yes"], tmp_path, tokenizer.end_of_text)
    loaded, labels = task_model.load(tmp_path)
    assert labels == ["no", "yes"] and loaded.input_format == model.input_format
    assert torch.equal(class_logits(loaded, examples), class_logits(model, examples))
    tokens = collate(examples).tokens
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(tokens).logits
    assert torch.allclose(theirs, convert.load(tmp_path).eval()(tokens), atol=1e-4)


# --- batches ---


def lengths(count: int) -> list[EncodedExample]:
    return [
        EncodedExample(str(i), str(i), (tuple(range(3 + (i * 37) % 50)),), i % 2, False)
        for i in range(count)
    ]


def test_the_global_batches_are_the_same_at_any_number_of_ranks_and_parts() -> None:
    examples = lengths(100)
    for step in (0, 3, 11):
        results = []
        for world_size, rows in ((1, 1000), (2, 1000), (4, 3)):
            ranks = [
                TrainingBatches(examples, 16, 5, rank, world_size, rows).micro_batches(step)
                for rank in range(world_size)
            ]
            assert len({len(parts) for parts in ranks}) == 1 and all(
                part for parts in ranks for part in parts
            )
            results.append(sorted(item.id for parts in ranks for part in parts for item in part))
        assert results[0] == results[1] == results[2] and len(results[0]) == 16


def test_an_epoch_meets_each_example_at_most_once_and_the_next_one_otherwise() -> None:
    batches = TrainingBatches(lengths(100), 16, 5)
    first, second = batches.epoch(0), batches.epoch(1)
    assert len(first) == batches.steps_per_epoch == 6
    assert len({i for batch in first for i in batch}) == 96
    assert first != second and first == TrainingBatches(lengths(100), 16, 5).epoch(0)


def test_batches_of_like_length_are_mostly_text() -> None:
    examples = lengths(512)
    batches = TrainingBatches(examples, 32, 0)
    padded = sum(
        collate(part).tokens.numel()
        for step in range(batches.steps_per_epoch)
        for part in batches.micro_batches(step)
    )
    assert sum(example.length for example in examples) / padded > 0.9


def test_less_than_a_batch_to_train_on_is_said() -> None:
    with pytest.raises(UserError, match="31 training examples, fewer than the 32 of one batch"):
        TrainingBatches(lengths(31), 32, 0)


# --- metrics ---


def test_scores_are_the_textbook_s() -> None:
    scores = metrics.scores([1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 1], 2, list("abcdefgh"))
    assert scores["accuracy"] == 0.75
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["matthews"] == pytest.approx((2 * 4 - 1 * 1) / (3 * 3 * 5 * 5) ** 0.5)
    constant = metrics.scores([1, 1, 0], [1, 1, 1], 2, list("abc"))
    assert constant["f1"] == pytest.approx(0.8) and constant["matthews"] == 0
    assert "f1" not in metrics.scores([0, 1], [0, 1], 0, ["a", "b"])


@pytest.mark.parametrize("classes", [2, 3])
def test_f1_and_matthews_are_scikit_learn_s_and_inside_their_intervals(classes: int) -> None:
    draw = np.random.default_rng(classes)
    labels = draw.integers(classes, size=400)
    predicted = np.where(draw.random(400) < 0.6, labels, draw.integers(classes, size=400))
    scores = metrics.scores(
        labels.tolist(), predicted.tolist(), classes, [str(i) for i in range(400)]
    )
    assert scores["f1"] == pytest.approx(
        sklearn.metrics.f1_score(labels, predicted, average="binary" if classes == 2 else "macro")
    )
    assert scores["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, predicted))
    for name in ("f1", "matthews"):
        low, high = scores[f"{name}_low"], scores[f"{name}_high"]
        assert low < scores[name] < high and 0.05 < high - low < 0.25
    assert scores == metrics.scores(
        labels.tolist(), predicted.tolist(), classes, [str(i) for i in range(400)]
    )  # seeded


def test_pearson_is_the_textbook_s_and_its_interval_fisher_s() -> None:
    draw = np.random.default_rng(0)
    ratings = draw.normal(5.0, 1.0, 500)
    given = 0.6 * ratings + draw.normal(0.0, 0.8, 500)
    correlation = metrics.correlation(
        given.tolist(), ratings.tolist(), [str(i) for i in range(500)]
    )
    fisher = scipy.stats.pearsonr(given, ratings)
    assert correlation["pearson"] == pytest.approx(fisher.statistic)
    assert correlation["pearson_low"] == pytest.approx(fisher.confidence_interval().low, abs=0.01)
    assert correlation["pearson_high"] == pytest.approx(fisher.confidence_interval().high, abs=0.01)


def test_the_same_answer_to_all_does_not_make_a_score_certain() -> None:
    """Two of each group's labels, so that no resample differs: as of a model that says "yes" to
    every pair.
    """
    groups = [str(i // 2) for i in range(400)]
    scores = metrics.scores([i % 2 for i in range(400)], [1] * 400, 2, groups)
    other = 1 - 0.025 ** (1 / 200)
    assert scores["f1"] == pytest.approx(2 / 3) and scores["matthews"] == 0
    assert scores["f1_low"] == pytest.approx(
        (1 - other) / (0.5 * (1 - other) + (1 - other) + other)
    )  # the unmet ones taken for 0s
    assert scores["f1_high"] == pytest.approx(
        2 * (0.5 * (1 - other) + other) / (1.5 * (1 - other) + 2 * other)
    )  # right 1s
    assert -0.15 < scores["matthews_low"] < -0.05 and 0.05 < scores["matthews_high"] < 0.15
    flat = metrics.correlation([1.0] * 400, [float(i % 5) for i in range(400)], groups)
    assert (flat["pearson"], flat["pearson_low"], flat["pearson_high"]) == (0.0, -1.0, 1.0)
    # No resample made these ends, and whoever shows them says so.
    assert {scores["f1_alike"], scores["matthews_alike"], flat["pearson_alike"]} == {1.0}
    assert "accuracy_alike" not in scores
    assert metric(scores, "f1").endswith(") †") and not_resampled_note([metric(scores, "f1")])
    varied = metrics.scores([i % 2 for i in range(400)], [i % 3 % 2 for i in range(400)], 2, groups)
    assert "f1_alike" not in varied and not not_resampled_note([metric(varied, "f1")])


def test_an_interval_is_wider_where_examples_come_in_groups() -> None:
    labels = [i % 2 for i in range(400)]
    predicted = [
        (i % 2) ^ (i // 8 % 3 == 0) for i in range(400)
    ]  # eight at a time are wrong together
    alone = metrics.scores(labels, predicted, 2, [str(i) for i in range(400)])
    grouped = metrics.scores(labels, predicted, 2, [str(i // 8) for i in range(400)])
    assert grouped["f1"] == alone["f1"]
    assert grouped["f1_high"] - grouped["f1_low"] > 2 * (alone["f1_high"] - alone["f1_low"])


def test_wilson_s_interval_is_the_published_one() -> None:
    interval = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


def test_a_paired_difference_is_nothing_between_equals_and_one_between_opposites() -> None:
    def parts(right: list[bool]) -> np.ndarray:
        return np.stack([np.asarray(right, dtype=float), np.ones(len(right))], 1)

    right, accuracy = [i % 3 == 0 for i in range(300)], metrics.Scoring("accuracy")
    groups = [str(i // 2) for i in range(300)]
    other = 1 - 0.025 ** (
        1 / 150
    )  # as many of 150 groups may be of another sort, none of which was met

    def difference(first: list[bool], second: list[bool]) -> list[float]:
        return list(accuracy.difference(parts(first), parts(second), groups).as_json().values())

    assert difference(right, right) == pytest.approx([0.0, -other, other])
    assert difference([True] * 300, [False] * 300) == pytest.approx([1.0, 1 - 2 * other, 1.0])
    value, low, high = difference([i % 4 > 0 for i in range(300)], right)
    assert value == pytest.approx(0.75 - 1 / 3) and low < value < high and high - low < 0.2
