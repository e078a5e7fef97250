"""GPT-3's zero-, one- and few-shot protocol: demonstrations before a question, and scores that
lm_eval's own backend gives too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from world import CONTEXT, World, make_world

from gpt_model.evaluation.answer_normalisation import answer_normalised, per_token
from gpt_model.evaluation.few_shot import FewShot, Rendered, Shots
from gpt_model.evaluation.results import Demonstrations

ACC = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
THINGS = [
    "table",
    "garden",
    "candle",
    "window",
    "basket",
    "hammer",
    "ladder",
    "mirror",
    "needle",
    "bottle",
    "carpet",
    "kettle",
]
ROOMS = ["the hall", "the yard", "a shed by the long wall", "the loft", "the kitchen"]


def choices(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Questions of our own with answers of one to five words."""
    return [
        {
            "question": f"Where does number {n} keep the {THINGS[n % 12]}?",
            "options": [ROOMS[(n + k) % 5] for k in range(3)],
            "label": n % 3,
        }
        for n in range(first, first + count)
    ]


QUESTIONS = {
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_choice": "options",
    "doc_to_target": "label",
    "metric_list": ACC,
}
# The other kinds of a task, as suites have them: (keys, rows).
LAST_WORDS = (
    {
        "output_type": "loglikelihood",
        "doc_to_text": "context",
        "doc_to_target": "target",
        "metric_list": ACC,
    },
    [
        {"context": f"Anselm marked the {thing} and Berta saw the", "target": f" {thing}"}
        for thing in THINGS
    ],
)
TRIVIA = (
    {
        "output_type": "generate_until",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_target": "{{answers}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    [
        {"question": f"Who has the {thing}?", "answers": [f"Dora {thing}", "Dora"]}
        for thing in THINGS
    ],
)
PRONOUNS = (
    {
        "output_type": "multiple_choice",
        "doc_to_text": "label",
        "doc_to_choice": "{{[before + one, before + other]}}",
        "doc_to_target": "after",
        "metric_list": ACC,
    },
    [
        {
            "before": f"Emil gave Hanna the {thing} because ",
            "one": "Emil",
            "other": "Hanna",
            "after": "asked for it.",
            "label": n % 2,
        }
        for n, thing in enumerate(THINGS)
    ],
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield make_world(tmp_path_factory.mktemp("world"))


def few_shot(
    world: World, keys: dict[str, Any], context: int = CONTEXT, seed: int = 0, **shots: Any
) -> FewShot:
    given = Shots.model_validate({"numbers": [0, 1, 50], "separator": "\n", **shots})
    return FewShot("task", keys, given, world.tokenizer.encode, context, seed)


# --- demonstrations ---


def test_as_many_demonstrations_as_fit_stand_before_the_question_and_how_many_is_said(
    world: World,
) -> None:
    keys, examples, pool = QUESTIONS, choices(40), choices(80, 100)
    shown = [f"Q: {row['question']}\nA: {row['options'][row['label']]}\n" for row in pool]
    longest = max(len(world.tokenizer.encode(f"\n{demonstration}")) for demonstration in shown)
    for context in (48, 96, 512):
        rendered = few_shot(world, keys, context).rendered(50, examples, pool)
        for row in rendered.rows:
            demonstrations = [
                demonstration for demonstration in shown if demonstration in row["demonstrations"]
            ]
            assert (
                len("".join(demonstrations)) == len(row["demonstrations"])
                and len(demonstrations) == row["shots"]
            )
            whole = [
                len(world.tokenizer.encode(f"{row['demonstrations']}{row['question']} {choice}"))
                for choice in row["choices"]
            ]
            assert max(whole) <= context < max(whole) + longest  # not one more
        demonstrations, counts = (
            rendered.demonstrations(50),
            [row["shots"] for row in rendered.rows],
        )
        assert (
            demonstrations == Demonstrations(50, min(counts), round(float(np.mean(counts)), 4))
            and demonstrations.shots == "few"
        )
    assert demonstrations.fewest > 10 and str(demonstrations).startswith(
        f"few-shot, K = {demonstrations.mean:.1f} of 50 on average, "
        f"{demonstrations.fewest} at least"
    )


def test_demonstrations_are_drawn_for_each_example_from_the_seed(world: World) -> None:
    examples, pool = choices(30), choices(80, 100)

    def drawn(number: int, seed: int = 0, shown: slice = slice(None)) -> list[str]:
        return [
            row["demonstrations"]
            for row in few_shot(world, QUESTIONS, 256, seed)
            .rendered(number, examples[shown], pool)
            .rows
        ]

    assert drawn(50) == drawn(50) and drawn(50) != drawn(50, seed=1)
    assert drawn(50)[20:] == drawn(50, shown=slice(20, None))  # whatever else is asked
    assert len(set(drawn(1))) > 20
    assert all(
        few_shots.startswith(one_shot) and not zero_shot
        for zero_shot, one_shot, few_shots in zip(drawn(0), drawn(1), drawn(50), strict=True)
    )


def test_an_example_never_demonstrates_itself(world: World) -> None:
    """Winograd's demonstrations come from the evaluated schemas themselves."""
    keys, rows = PRONOUNS
    rendered = few_shot(world, keys, 4096).rendered(50, rows, rows).rows
    for example, row in zip(rows, rendered, strict=True):
        right, wrong = row["contexts"][row["label"]], row["contexts"][1 - row["label"]]
        assert row["shots"] == len(rows) - 1 == right.count(" because ") - 1
        assert right.count(example["before"]) == wrong.count(example["before"]) == 1
        assert right.rpartition("\n")[0] == wrong.rpartition("\n")[0] and right != wrong


def test_the_last_word_is_a_blank_to_fill_in_where_it_is_demonstrated(world: World) -> None:
    keys, rows = LAST_WORDS
    task = few_shot(world, keys, doc_to_text="{{context}} ____. ->", separator="\n\n")
    assert task.rendered(0, rows[:1], rows).rows == [
        {
            "demonstrations": "",
            "question": "Anselm marked the table and Berta saw the",
            "target": " table",
            "shots": 0,
        }
    ]
    (row,) = task.rendered(1, rows[:1], rows).rows
    thing = row["demonstrations"].split("-> ")[1].strip()
    assert (
        row["demonstrations"] == f"Anselm marked the {thing} and Berta saw the ____. -> {thing}\n\n"
        and thing != "table"
    )
    assert row["question"] == "Anselm marked the table and Berta saw the ____. ->"


def test_room_is_left_for_what_is_to_be_generated_and_a_header_stands_first(world: World) -> None:
    keys, rows = TRIVIA
    rendered = few_shot(world, keys, 64, header="Answer these.\n\n").rendered(50, rows, rows)
    for row in rendered.rows:
        assert (
            row["demonstrations"].startswith("Answer these.\n\nQ: Who has the ")
            and row["shots"] >= 1
        )
        assert "\nA: Dora " in row["demonstrations"]  # the first of the right answers
        assert len(world.tokenizer.encode(row["demonstrations"] + row["question"])) <= 64 - 8
    assert rendered.rows[0]["target"] == ["Dora table", "Dora"]


def test_demonstrations_go_before_the_question_loses_anything(world: World) -> None:
    """Whatever else takes room: a description, or a limit of new tokens that the task leaves to
    lm_eval, or that is larger than the context.
    """
    keys, rows = TRIVIA
    for settings, new_tokens in (({}, 256), ({"max_new_tokens": 300}, 300), ({"max_tokens": 9}, 9)):
        given = {**keys, "generation_kwargs": {"until": ["\n"], **settings}}
        for context in (new_tokens, new_tokens + 40, 2 * new_tokens + 80):
            room = context - (context // 2 if new_tokens >= context else new_tokens)
            rendered = few_shot(world, given, context).rendered(50, rows, rows)
            for row in rendered.rows:
                shown = row["demonstrations"] + row["question"]
                assert not row["shots"] or len(world.tokenizer.encode(shown)) <= room
    described = {**QUESTIONS, "description": "Say where each thing is kept, in a word or two.\n"}
    plain, less = (
        few_shot(world, task, 160).rendered(50, choices(8), choices(80, 100))
        for task in (QUESTIONS, described)
    )
    for row in less.rows:
        whole = described["description"] + row["demonstrations"] + row["question"]
        longest = max(len(world.tokenizer.encode(f"{whole} {answer}")) for answer in row["choices"])
        assert longest <= 160
    fewer = [row["shots"] for row in less.rows]
    assert sum(fewer) < sum(row["shots"] for row in plain.rows) and min(fewer) > 0


# --- scores ---


def write(folder: Path, name: str, rendered: Rendered) -> str:
    """As a suite's task lies in an evaluation's folder."""
    config = {
        **rendered.keys,
        "task": name,
        "dataset_path": "json",
        "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rendered.rows))
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return name


@pytest.mark.slow
def test_scores_are_lm_evals_own_backends_on_every_kind_of_task(
    world: World, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM

    from gpt_model.evaluation.evaluate import evaluate
    from gpt_model.evaluation.lm_eval_adapter import GPTLM

    questions = few_shot(world, QUESTIONS, answer_context="A:")
    tasks: dict[str, Rendered] = {"unconditional": questions.unconditional_answers(choices(20))}
    for number in (0, 1, 50):
        tasks[f"questions.{number}"] = questions.rendered(number, choices(20), choices(80, 100))
        for name, (keys, rows) in (
            ("last_words", LAST_WORDS),
            ("trivia", TRIVIA),
            ("pronouns", PRONOUNS),
        ):
            tasks[f"{name}.{number}"] = few_shot(world, keys).rendered(number, rows, rows)
    names = [write(tmp_path, name, rendered) for name, rendered in tasks.items()]
    ours = evaluate(GPTLM(world.model, world.tokenizer), tmp_path, names)
    folder = str(world.folder / "pretrained" / "model")
    theirs = evaluate(
        HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=8), tmp_path, names
    )
    values = set()
    for name in names:
        for our_sample, their_sample in zip(
            ours["samples"][name], theirs["samples"][name], strict=True
        ):
            if "trivia" in name:
                assert (
                    our_sample["filtered_resps"] == their_sample["filtered_resps"]
                    and len(our_sample["filtered_resps"][0]) > 0
                )
            else:
                mine, yours = (
                    np.array(sample["filtered_resps"], dtype=float)
                    for sample in (our_sample, their_sample)
                )
                assert mine == pytest.approx(yours, abs=1e-4)
        for result in (ours, theirs):
            values.add(
                (
                    name,
                    result["results"][name].get(
                        "acc,none", result["results"][name].get("exact_match,none")
                    ),
                )
            )
    assert len(values) == len(names) == 13  # each task the same value by both
    for number in (0, 1, 50):
        mine, yours = (result["samples"][f"questions.{number}"] for result in (ours, theirs))
        assert per_token(mine) == per_token(yours)
        assert answer_normalised(mine, ours["samples"]["unconditional"]) == answer_normalised(
            yours, theirs["samples"]["unconditional"]
        )


def test_a_token_score_divides_by_the_tokens_that_lm_eval_scores(world: World) -> None:
    from gpt_model.evaluation.lm_eval_adapter import GPTLM

    model = GPTLM(world.model, world.tokenizer)
    for number in (0, 1, 50):
        for row in few_shot(world, QUESTIONS).rendered(number, choices(12), choices(30, 100)).rows:
            pairs = [
                model._encode_pair(row["demonstrations"] + row["question"], f" {choice}")
                for choice in row["choices"]
            ]
            assert row["tokens"] == [len(answer) for _, answer in pairs]


def sample(logprobs: list[float], tokens: list[int], label: int) -> dict[str, Any]:
    return {
        "filtered_resps": [(logprob, False) for logprob in logprobs],
        "doc": {"tokens": tokens, "label": label},
    }


def test_the_two_normalisations_choose_as_the_paper_says() -> None:
    long_answer = sample([-6.0, -4.0], [6, 2], 0)  # 1 nat a token against 2
    assert per_token([long_answer, sample([-6.0, -4.0], [2, 2], 0)]) == [1.0, 0.0]
    likely_anywhere = sample([-6.0, -4.0], [1, 1], 1)
    assert answer_normalised([likely_anywhere] * 2, [likely_anywhere, likely_anywhere]) == [
        0.0,
        0.0,
    ]  # 0 against 0: the first
    assert answer_normalised(
        [sample([-6.0, -4.0], [1, 1], 0)], [sample([-9.0, -5.0], [1, 1], 0)]
    ) == [1.0]
