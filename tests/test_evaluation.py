"""Zero-shot evaluation: the same numbers as lm_eval's own backend, the stage, and honest intervals.
Its questions: test_suites.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from world import CONTEXT, LIMIT, Alone, World, make_world, story

from assets.contract import Built
from assets.execution import zero_shot as stage
from assets.stages import zero_shot
from gpt_model.evaluation import metrics
from gpt_model.evaluation.results import Demonstrations, Results, UnavailableRow
from gpt_model.training import engine
from gpt_model.training.engine import Execution

SUITES = ["held_out", "last_word", "cloze", "multiple_choice", "boolq"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEAGE_DOWNLOADS", str(downloads))
        yield make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def evaluated(world: World) -> Built:
    return world.run(world.folder / "zero_shot", SUITES)


def names_of(built: Built) -> list[str]:
    return sorted(path.stem for path in (built.output / "tasks").glob("*.yaml"))


# --- the same numbers as lm_eval's own Hugging Face backend ---


@pytest.fixture(scope="module")
def hugging_face(world: World) -> Any:
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=str(world.folder / "pretrained" / "model"),
        device="cpu",
        dtype="float32",
        batch_size=16,
    )


def test_every_score_equals_lm_evals_own_backend_to_1e_4(
    world: World, evaluated: Built, hugging_face: Any
) -> None:
    from gpt_model.evaluation.evaluate import evaluate
    from gpt_model.evaluation.lm_eval_adapter import GPTLM

    tasks = names_of(evaluated)
    theirs = evaluate(hugging_face, evaluated.output / "tasks", tasks)
    ours = evaluate(GPTLM(world.model, world.tokenizer), evaluated.output / "tasks", tasks)
    assert len(tasks) == 9  # two sources, last_word, cloze, four of multiple choice, boolq
    for task in tasks:
        for metric, value in theirs["results"][task].items():
            if metric.endswith(",none") and isinstance(value, float):
                assert ours["results"][task][metric] == pytest.approx(value, rel=1e-4), (
                    f"{task} {metric}"
                )
        for our_sample, their_sample in zip(
            ours["samples"][task], theirs["samples"][task], strict=True
        ):
            mine, yours = (
                np.array(sample["filtered_resps"], dtype=float).ravel()
                for sample in (our_sample, their_sample)
            )
            assert mine == pytest.approx(yours, abs=1e-4, rel=1e-6)
    reported = {
        name: value for name, value in evaluated.metrics.items() if not name.endswith("seconds")
    }
    assert len(reported) == 18
    for name, value in reported.items():
        suite, task, metric = name.split("/")
        assert value == pytest.approx(
            theirs["results"][f"{suite}.{task}"][f"{metric},none"], rel=1e-4
        ), name


def test_generated_text_equals_lm_evals_own_backend(world: World, hugging_face: Any) -> None:
    from gpt_model.evaluation.lm_eval_adapter import GPTLM

    prompts = [story(7, 3), "Then Berta", story(8, 40), "the table.", "Dora"]
    until = {"until": [" the", "."], "max_gen_toks": 24}
    requests = [SimpleNamespace(args=(prompt, dict(until)), task_name="t") for prompt in prompts]
    ours = GPTLM(world.model, world.tokenizer).generate_until(requests)  # type: ignore[arg-type]
    assert ours == [
        hugging_face.generate_until([request], disable_tqdm=True)[0] for request in requests
    ]
    assert any(ours) and all(" the" not in text and "." not in text for text in ours)


QUESTIONS = [
    (story(1, 3), [" table", " the garden and the long way home", " a", "", " candle."][:3]),
    ("Then Emil ", ["walked", "was walking by the window"]),  # the space belongs to the answers
    ("", ["Then Hanna", "Then"]),  # end-of-text stands before it
    (
        story(2, 12),
        [" short", " " + story(3, 2).strip()],
    ),  # longer than the context: cut from the left, by another amount each
    ("Ludwig", [" " + story(4, 5).strip()[:150]]),
    ("A line\n\n", ["and one", "and two\n", "more of it than that"]),
]


def test_answers_of_a_shared_context_score_as_each_alone_and_as_lm_evals_own(
    world: World, hugging_face: Any
) -> None:
    from gpt_model.evaluation.lm_eval_adapter import GPTLM

    requests: Any = [
        SimpleNamespace(args=(context, answer), task_name="t")
        for context, answers in QUESTIONS
        for answer in answers
    ]
    ours = GPTLM(world.model, world.tokenizer)
    together = ours.loglikelihood(requests)
    alone = [ours.loglikelihood([request])[0] for request in requests]
    theirs = hugging_face.loglikelihood(requests, disable_tqdm=True)
    for other in (
        alone,
        theirs,
        GPTLM(world.model, world.tokenizer, batch_tokens=1).loglikelihood(requests),
    ):
        assert [logprob for logprob, _ in together] == pytest.approx(
            [logprob for logprob, _ in other], abs=1e-4
        )
        assert [greedy for _, greedy in together] == [greedy for _, greedy in other]


def test_bfloat16_is_a_gpus_evaluation_alone_and_scores_nearly_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt_model.evaluation.lm_eval_adapter import GPTLM

    requests: Any = [
        SimpleNamespace(args=(context, answer), task_name="t")
        for context, answers in QUESTIONS
        for answer in answers
    ]

    def scores() -> list[float]:
        with engine.evaluation_precision(Execution(), "bfloat16"):
            return [
                score for score, _ in GPTLM(world.model, world.tokenizer).loglikelihood(requests)
            ]

    plain = [score for score, _ in GPTLM(world.model, world.tokenizer).loglikelihood(requests)]
    assert scores() == plain  # on a CPU
    monkeypatch.setattr(engine, "EVALUATED_IN_BFLOAT16", {"cuda", "cpu"})
    assert scores() != plain
    assert scores() == pytest.approx(plain, rel=0.01)
    with engine.evaluation_precision(Execution(), "float32"):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_evaluates_in_the_precision_that_the_model_was_trained_in(
    rank: int, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions: list[bool] = []

    def seen(*_: Any) -> Any:
        precisions.append(torch.is_autocast_enabled("cpu"))
        return {}

    shared = SimpleNamespace(follow=seen, leading=nullcontext)
    monkeypatch.setattr(stage, "GPTLM", lambda *_, **__: SimpleNamespace(shared=shared))
    monkeypatch.setattr(stage, "_evaluate", seen)
    monkeypatch.setattr(engine, "EVALUATED_IN_BFLOAT16", {"cpu"})
    for precision in ("bfloat16", "float32"):
        trained = {"pretraining": {"precision": precision}}
        inputs = world.inputs | {"pretrained": replace(world.inputs["pretrained"], config=trained)}
        progress = Alone()
        progress.rank = rank
        stage.run({}, inputs, tmp_path, progress)
    assert precisions == [True, False]


def test_a_context_is_read_once_for_all_its_answers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt_model.evaluation.lm_eval_adapter import GPTLM

    read = []
    hidden = world.model.hidden
    monkeypatch.setattr(
        world.model,
        "hidden",
        lambda tokens, *rest: (read.append(tokens.numel()), hidden(tokens, *rest))[1],
    )
    context = world.tokenizer.encode(story(1, 2))
    answers = [[5, 6, 7], [8, 9, 10], [11, 12, 13], [14, 15, 16]]
    GPTLM(world.model, world.tokenizer)._loglikelihood_tokens(
        [(None, context, answer) for answer in answers]
    )
    assert read == [len(context), 4 * 2]  # the context, then all but the last token of each answer


def test_answers_go_on_beside_others_of_about_their_length(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt_model.evaluation.lm_eval_adapter import GPTLM

    read = []
    hidden = world.model.hidden
    monkeypatch.setattr(
        world.model,
        "hidden",
        lambda tokens, *rest: (read.append(tuple(tokens.shape)), hidden(tokens, *rest))[1],
    )
    lengths = [3] * 20 + [31, 30] + [3] * 10
    requests: list[Any] = [
        (None, [5, 6, 7 + n % 3], [8 + n, *range(1, length)]) for n, length in enumerate(lengths)
    ]
    GPTLM(world.model, world.tokenizer)._loglikelihood_tokens(requests)
    assert read == [
        (3, 3),
        (4, 30),
        (28, 2),
    ]  # contexts; long answers, and two others that are not worth a pass; the rest


def test_rolling_scores_every_token_once_and_batches_do_not_matter(world: World) -> None:
    import torch

    from gpt_model.evaluation.lm_eval_adapter import GPTLM

    text = story(5, 40)
    ids = world.tokenizer.encode(text)
    assert len(ids) > 3 * CONTEXT
    expected, start = 0.0, 0
    while start < len(
        ids
    ):  # windows as lm_eval makes them: the last one full, of which only what is new counts
        end = min(start + CONTEXT, len(ids))
        window = ([world.tokenizer.end_of_text, *ids])[max(0, end - CONTEXT) : end]
        targets = torch.tensor([ids[max(0, end - CONTEXT) : end]])
        losses = world.model.loss_by_token(torch.tensor([window]), targets)[0]
        expected -= float(losses[-(end - start) :].double().sum())
        start = end
    requests: Any = [
        SimpleNamespace(args=(text,)),
        SimpleNamespace(args=("Then.",)),
        SimpleNamespace(args=("",)),
    ]
    for budget in (50, 4096):
        scores = GPTLM(world.model, world.tokenizer, batch_tokens=budget).loglikelihood_rolling(
            requests
        )
        assert scores[0] == pytest.approx(expected, abs=1e-3) and scores[1] < 0 and scores[2] == 0


def test_a_text_that_spells_a_special_token_has_the_ids_that_it_has_in_the_shards(
    world: World,
) -> None:
    from gpt_model.evaluation.lm_eval_adapter import GPTLM

    text = "One end.<|endoftext|>Then <unk> another."
    (((piece,)),) = world.tokenizer.encode_documents([text])
    assert GPTLM(world.model, world.tokenizer).tok_encode(text) == piece.ids.tolist()


# --- the stage ---


def test_results_are_the_same_bytes_again(world: World, evaluated: Built, tmp_path: Path) -> None:
    again = world.run(tmp_path / "again", SUITES)
    files = sorted(
        path.relative_to(again.output) for path in again.output.rglob("*") if path.is_file()
    )
    assert len(files) == 2 + 2 * 9
    for name in files:
        assert (again.output / name).read_bytes() == (evaluated.output / name).read_bytes(), name


def test_every_score_has_interval_baseline_and_number_of_examples(evaluated: Built) -> None:
    rows = json.loads((evaluated.output / "results.json").read_text())["rows"]
    baselines = {row["task"]: row["baseline_value"] for row in rows if row["metric"] == "acc"}
    assert {
        task: baselines[task] for task in ("piqa", "siqa", "commonsense_qa", "openbookqa", "cloze")
    } == {"piqa": 0.5, "siqa": 0.333333, "commonsense_qa": 0.2, "openbookqa": 0.25, "cloze": 0.1}
    assert 0.5 <= baselines["boolq"] < 1 and 0 < baselines["last_word"] < 1
    for row in rows:
        assert row["examples"] <= LIMIT <= row["available"] or row["suite"] == "held_out"
        assert row["low"] <= row["value"] <= row["high"] and row["stderr"] >= 0
        assert (
            row["examples"] == row["available"]
            or f"{row['examples']} of {row['available']:,} examples" in row["note"]
        )


def test_a_row_read_from_a_file_is_written_as_it_stood(evaluated: Built) -> None:
    document = json.loads((evaluated.output / "results.json").read_text())
    results = Results.read(evaluated.output)
    assert len(results.scores) == 18 and not results.unavailable
    assert all(row.overlap for row in results.scores)
    assert results.to_json(SUITES) == document["rows"]
    reason = {"suite": "s", "task": "t", "not_run": "no hub", "published": {"task": "T"}}
    assert UnavailableRow.from_json(reason).to_json() == reason
    shown = {"asked": 15, "fewest": 2, "mean": 4.52}
    assert Demonstrations.from_json(shown).to_json() == shown


def test_checks_and_pictures_come_from_the_output(evaluated: Built, tmp_path: Path) -> None:
    verdicts = {check.name: check.verdict(evaluated) for check in zero_shot.ZERO_SHOT.checks}
    assert (
        verdicts["every_suite_has_scores"].passed
        and "18 scores of 5 suites" in verdicts["every_suite_has_scores"].summary
    )
    zero_shot.ZERO_SHOT.show(evaluated, tmp_path)
    assert (tmp_path / "zero_shot.png").read_bytes()[:4] == b"\x89PNG"
    table = (tmp_path / "zero_shot.md").read_text()
    assert (
        "| cloze | cloze | acc |" in table
        and "chance 0.100" in table
        and "not the CBT data" in table
    )
    assert "**multiple_choice/piqa**" in (tmp_path / "samples.md").read_text()


def test_a_missing_suite_or_a_score_that_is_no_number_fails_the_check(
    evaluated: Built, tmp_path: Path
) -> None:
    document = json.loads((evaluated.output / "results.json").read_text())
    document["rows"] = [row for row in document["rows"] if row["suite"] != "boolq"]
    document["rows"][0]["value"] = math.nan
    (tmp_path / "results.json").write_text(json.dumps(document))
    broken = Built(evaluated.config, {}, tmp_path, {}, {}, [])
    verdict = next(check for check in zero_shot.ZERO_SHOT.checks if check.blocking).verdict(broken)
    assert (
        not verdict.passed
        and "suite boolq has no score" in verdict.summary
        and "is not a finite number" in verdict.summary
    )


# --- intervals ---


def test_intervals_hold_the_truth_95_times_in_100() -> None:
    draw = np.random.default_rng(0)
    inside = {"acc": 0, "perplexity": 0, "bits_per_byte": 0}
    for _ in range(600):
        right = draw.random(80) < 0.3
        nats = draw.gamma(2.0, 1.5, 80)
        size = draw.integers(50, 400, 80)
        totals = -(size * draw.gamma(20.0, 0.1, 80))
        acc = metrics.confidence_interval("acc", "mean", right.astype(float).tolist())
        ppl = metrics.confidence_interval("perplexity", "perplexity", (-nats).tolist())
        bpb = metrics.confidence_interval(
            "bits_per_byte", "bits_per_byte", list(zip(totals, size, strict=True))
        )
        for name, truth, interval in (
            ("acc", 0.3, acc),
            ("perplexity", math.exp(3.0), ppl),
            ("bits_per_byte", 2.0 / math.log(2), bpb),
        ):
            inside[name] += interval.low <= truth <= interval.high  # type: ignore[operator]
    assert all(0.92 <= count / 600 <= 0.98 for count in inside.values()), inside


@pytest.mark.parametrize(
    ("metric", "aggregation", "values", "best"),
    [
        ("em", "mean", [0.0] * 50, 1),
        ("f1", "mean", [1.0] * 50, 1),
        ("rouge_mean", "mean", [0.0] * 50, 100),
        ("f1", "macro_f1", [(0, 0)] * 50, 1),
        ("f1", "f1_of_answers", [(1, 0)] * 50, 1),
        (
            "bleu",
            "bleu",
            [("there are seven of them on the hill", "no word is right in what was said")] * 50,
            100,
        ),
    ],
)
def test_a_score_of_examples_that_came_out_alike_is_not_certain(
    metric: str, aggregation: str, values: list[Any], best: float
) -> None:
    score, interval = (
        metrics.aggregated(aggregation, values),
        metrics.confidence_interval(metric, aggregation, values),
    )
    assert interval.low is not None and interval.high is not None
    assert (
        0 <= interval.low <= score <= interval.high <= best
        and interval.high - interval.low > 0.05 * best
    )


def test_an_interval_stays_where_a_score_can_be() -> None:
    for values in ([1.0] * 9 + [0.0], [0.0] * 9 + [1.0]):
        interval = metrics.confidence_interval("f1", "mean", values)
        assert (
            interval.low is not None
            and interval.high is not None
            and 0 <= interval.low < interval.high <= 1
        )
        assert interval.low == 0 or interval.high == 1


def test_standard_error_of_a_mean_is_lm_evals_own() -> None:
    from lm_eval.api.metrics import mean_stderr

    values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    assert metrics.confidence_interval("acc", "mean", values).stderr == pytest.approx(
        mean_stderr(values)
    )
    assert metrics.confidence_interval("acc", "mean", [1.0]) is None
