"""GPT-1's fine-tuning as its released code has it (finetune-transformer-lm, train.py), each piece
against its formula in plain torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.gpu_check import ALONE
from gpt_model import GPT, ModelConfig
from gpt_model.finetuning.batches import TrainingBatches, class_logits, collate
from gpt_model.finetuning.entry import Form
from gpt_model.finetuning.examples import Example, rating_target
from gpt_model.finetuning.heads import Batch, TaskModel, with_special_tokens
from gpt_model.finetuning.input_forms import EncodedExample, InputFormat, truncation_of
from gpt_model.finetuning.metrics import Scoring
from gpt_model.finetuning.objective import FineTuning, TaskObjective, fine_tune, next_tokens
from gpt_model.progress import Silent
from gpt_model.tokenizer import Tokenizer
from gpt_model.training import engine
from gpt_model.training.engine import Execution
from gpt_model.training.tuning import BestEpoch, best_epoch

VOCABULARY, CONTEXT = 290, 40


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(
        (f"film {i} was {word}" for i in range(170) for word in ("fine", "dull")),
        vocab_size=VOCABULARY,
    )


def decoder(dropout: float = 0.0, seed: int = 5) -> GPT:
    config = ModelConfig(
        family="gpt1",
        layers=2,
        width=32,
        heads=2,
        context=CONTEXT,
        vocab_size=VOCABULARY,
        dropout=dropout,
    )
    gpt = GPT(config, seed)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter *= (
                4 if parameter.dim() > 1 else 1
            )  # so that no probability is the same as another
    return gpt


def task_model(form: Form, dropout: float, classes: int = 2) -> TaskModel:
    gpt = with_special_tokens(decoder(), dropout, seed=1)
    return TaskModel(
        gpt, InputFormat(form, VOCABULARY, CONTEXT, truncation_of("gpt1")), classes, dropout, seed=1
    )


def some(form: Form, tokenizer: Tokenizer, targets: bool = False) -> list[EncodedExample]:
    made = []
    for i in range(5):
        words = " ".join(["film", "was", "fine", "dull"][(i + j) % 4] for j in range(1 + 2 * i))
        options = (f"one {i}", "two") if form == "multiple_choice" else ()
        segments = (
            (words,) if form in ("classification", "multiple_choice") else (words, f"was {i}")
        )
        made.append(
            Example(
                str(i),
                words,
                segments,
                options,
                i % 2,
                i / 2,
                rating_target(i / 2, 0, 5) if targets else (),
            )
        )
    return InputFormat(form, tokenizer.vocab_size, CONTEXT, "halves").encode(tokenizer, made)


def released_loss(batch: Batch, logits: Tensor, states: Tensor, we: Tensor) -> Tensor:
    """train.py, model(): lm_h = h[:, :-1], lm_logits = lm_h @ weᵀ, the mask M over real tokens, a
    mean a row; λ 0.5.
    """
    mask = (torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]).float()
    lm_logits = states[:, :-1] @ we.T
    lm_losses = F.cross_entropy(
        lm_logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none"
    ).view(len(batch.tokens), -1)
    lm_losses = (lm_losses * mask[:, 1:]).sum(1) / mask[:, 1:].sum(1)
    clf_losses = F.cross_entropy(logits, batch.labels, reduction="none")
    return clf_losses.mean() + 0.5 * lm_losses.mean()


@pytest.mark.parametrize("form", ["classification", "entailment", "similarity", "multiple_choice"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_loss_is_the_released_codes_softmax_over_the_whole_matrix_and_its_dropout_included(
    form: Form, dropout: float, tokenizer: Tokenizer
) -> None:
    model, examples = task_model(form, dropout).train(), some(form, tokenizer)
    batch, longest = collate(examples), max(one.length for one in examples)
    objective = TaskObjective(
        TrainingBatches(examples, batch=len(examples), seed=0), 0.5, positions=longest
    )
    torch.manual_seed(3)
    loss, _ = objective.loss(model, batch)

    torch.manual_seed(3)
    tokens, positions = model.gpt.embeddings()
    we = torch.cat([tokens, positions[:longest]])  # vocabulary, specials, positions, in that order
    logits, states = model(batch, (tokens, positions))
    assert len(we) == VOCABULARY + 3 + longest
    assert torch.allclose(loss, released_loss(batch, logits, states, we), atol=1e-5)
    kept = tokens[tokens != 0] / model.gpt.wte.weight[tokens != 0]
    assert torch.allclose(
        kept, torch.full_like(kept, 1 / (1 - dropout)), rtol=1e-4
    )  # dropped is the matrix, not what was looked up of it
    assert float((tokens == 0).float().mean()) == pytest.approx(dropout, abs=0.02)


def test_the_loss_trains_every_row_of_the_matrix_that_its_softmax_is_over(
    tokenizer: Tokenizer,
) -> None:
    model, examples = task_model("entailment", 0.0), some("entailment", tokenizer)
    longest = max(one.length for one in examples)
    TaskObjective(TrainingBatches(examples, batch=5, seed=0), 0.5, longest).loss(
        model, collate(examples)
    )[0].backward()
    assert model.gpt.wte.weight.grad is not None and model.gpt.wpe.weight.grad is not None  # type: ignore[union-attr]
    assert model.gpt.wte.weight.grad.abs().sum(1).min() > 0
    used = model.gpt.wpe.weight.grad.abs().sum(1) > 0  # type: ignore[union-attr]
    assert used[:longest].all() and not used[longest:].any()


def test_two_segments_are_cut_at_half_the_context_each_and_one_at_the_whole(
    tokenizer: Tokenizer,
) -> None:
    long, short = " ".join(["film"] * 100), "was dull"
    premise, hypothesis, half = tokenizer.encode(long), tokenizer.encode(short), CONTEXT // 2 - 2

    def row(form: Form, *segments: str) -> tuple[int, ...]:
        example = Example("1", "g", segments, (), 0)
        (laid,) = InputFormat(form, tokenizer.vocab_size, CONTEXT, truncation_of("gpt1")).encode(
            tokenizer, [example]
        )
        assert (laid.cut > 0) == (long in segments)
        return laid.rows[0]

    start, delim, extract = range(VOCABULARY, VOCABULARY + 3)
    assert row("entailment", long, short) == (start, *premise[:half], delim, *hypothesis, extract)
    assert row("entailment", long, long) == (
        start,
        *premise[:half],
        delim,
        *premise[:half],
        extract,
    )
    assert row("entailment", short, short) == (start, *hypothesis, delim, *hypothesis, extract)
    assert row("classification", long) == (start, *premise[: CONTEXT - 2], extract)
    assert truncation_of("gpt2") == truncation_of("gpt3") == "longest"


def test_the_new_tokens_are_drawn_as_everything_else_was(tokenizer: Tokenizer) -> None:
    gpt = decoder()
    grown = with_special_tokens(gpt, 0.1, seed=1)
    new = torch.cat(
        [with_special_tokens(gpt, 0.1, seed).wte.weight.detach()[VOCABULARY:] for seed in range(40)]
    )
    assert grown.config.vocab_size == VOCABULARY + 3 and new.shape == (120, 32)
    assert float(new.std()) == pytest.approx(0.02, rel=0.05) and float(new.mean()) == pytest.approx(
        0, abs=0.001
    )


def test_ratings_are_learnt_as_shares_of_two_classes_and_answered_as_what_is_expected(
    tokenizer: Tokenizer,
) -> None:
    model, examples = (
        task_model("similarity", 0.0, classes=6),
        some("similarity", tokenizer, targets=True),
    )
    batch = collate(examples)
    objective = TaskObjective(TrainingBatches(examples, batch=5, seed=0), 0.0, CONTEXT)
    logits, _ = model(batch)
    wanted = torch.zeros(5, 6)
    for i, rating in enumerate((0.0, 0.5, 1.0, 1.5, 2.0)):
        wanted[i, int(rating)] += 1 - rating % 1
        wanted[i, int(rating) + 1] += rating % 1
    assert torch.allclose(
        objective.loss(model, batch)[0], -(wanted * logits.log_softmax(1)).sum(1).mean(), atol=1e-6
    )
    given = Scoring("pearson", lowest=0).ratings(logits.tolist())
    assert given == pytest.approx((logits.softmax(1) @ torch.arange(6.0)).tolist(), abs=1e-5)
    perfect = (wanted + 1e-12).log().tolist()
    assert Scoring("pearson", lowest=0).ratings(perfect) == pytest.approx(
        [0.0, 0.5, 1.0, 1.5, 2.0], abs=1e-6
    )
    assert Scoring("pearson", lowest=0).of(examples, perfect) == pytest.approx(1.0)


def test_padding_is_not_predicted(tokenizer: Tokenizer) -> None:
    batch = collate(some("entailment", tokenizer))
    targets = next_tokens(batch)
    assert [(row != -100).sum().item() for row in targets] == [
        int(length) - 1 for length in batch.lengths
    ]


def test_a_tasks_own_metric_chooses_the_epoch(tmp_path: Path) -> None:
    """Three of ten are of the second class: always the first is more often right, and always the
    second worth more by F1.
    """
    laid = [EncodedExample(str(i), str(i), ((1, 2, 3),), int(i < 3), False) for i in range(10)]
    model = task_model("classification", 0.0).eval()
    model.head.weight.data.zero_()
    best = {}
    for metric in ("accuracy", "f1"):
        (folder := tmp_path / metric).mkdir()
        scoring = Scoring(metric, named_classes=2)  # type: ignore[arg-type]

        def score(model: Any, scoring: Scoring = scoring) -> float:
            return scoring.of(laid, class_logits(model, laid).tolist())

        hook, scores = BestEpoch(folder, 7, 0, "validation", score), []
        for epoch, always in enumerate((0, 1), start=1):
            model.head.bias.data = torch.tensor([1.0 - always, float(always)])
            scores.append(hook(7 * epoch, model)["validation"])
        assert scores == pytest.approx({"accuracy": (0.7, 0.3), "f1": (0, 6 / 13)}[metric])
        best[metric] = best_epoch(hook.scores(2))
        assert load_file(folder / "best.safetensors")["head.bias"].tolist() == [
            2.0 - best[metric],
            best[metric] - 1.0,
        ]
    assert best == {"accuracy": 1, "f1": 2}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_test_split_is_answered_in_the_training_s_precision_on_a_gpu_alone(
    precision: Any,
    tokenizer: Tokenizer,
    tmp_path: Path,
    bfloat16_passes: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)
    rows = some("classification", tokenizer)
    splits: Any = dict.fromkeys(("training", "validation", "test"), rows)
    settings = FineTuning(1, 2, 1e-3, 0.0, 0.5, 0.0, 0.0, 1.0, 1, precision)

    def last_passes(folder: Path) -> list[bool]:
        """The blocks', of the test split's one batch."""
        fine_tune(
            task_model("classification", 0.0),
            splits,
            settings,
            Scoring("accuracy", 2),
            Execution(zero_stage=0),
            folder=folder,
            progress=Silent(),
        )
        return bfloat16_passes[-2:]

    assert last_passes(tmp_path / "gpu") == [precision == "bfloat16"] * 2
    monkeypatch.setattr(engine, "EVALUATED_IN_BFLOAT16", {"cuda"})
    assert last_passes(tmp_path / "cpu") == [False] * 2
