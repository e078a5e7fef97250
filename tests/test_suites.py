"""Suites: where their questions come from, and that a suite is a YAML file and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from world import CONTEXT, LIMIT, World, make_world, story, write_corpus

from assets.contract import MLFLOW_TABLE, Artifact
from assets.stages import zero_shot
from gpt_model.data import documents
from gpt_model.errors import UserError
from gpt_model.evaluation import held_out_text
from gpt_model.evaluation.adapters.registry import TaskContext
from gpt_model.evaluation.results import Results
from gpt_model.evaluation.suites import suite_tasks
from gpt_model.evaluation.tasks import rows_of
from gpt_model.io import read_json_lines
from gpt_model.progress import Silent


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEAGE_DOWNLOADS", str(downloads))
        yield make_world(tmp_path_factory.mktemp("world"))


# --- the questions ---


def held_out(world: World) -> list[str]:
    return [
        text
        for source in ("first", "second")
        for text in documents.read(world.folder / "corpus", source, "held_out")
    ]


def test_last_words_stand_in_their_context_and_end_a_held_out_sentence(
    world: World, downloads: Path
) -> None:
    texts = held_out(world)
    for row in world.rows("last_word", downloads):
        assert any(f"{row['context']}{row['target']}." in text for text in texts)
        assert (
            row["target"].strip() in row["context"]
            and len(held_out_text.sentences(row["context"])) == 5
        )


def test_a_cloze_has_ten_words_of_one_kind_from_its_passage_and_fits_the_context(
    world: World, downloads: Path
) -> None:
    texts = held_out(world)
    for row in world.rows("cloze", downloads):
        text = next(
            text for text in texts if f"{row['context']} {row['choices'][row['label']]}" in text
        )
        end = text.index(row["context"]) + len(row["context"])
        before = [text[a:b] for a, b in held_out_text.sentences(text) if b <= end][-20:]
        words = [choice.split()[0].rstrip(".") for choice in row["choices"]]
        assert len(set(words)) == 10 and all(word in " ".join(before) for word in words)
        assert len({held_out_text._kind(word) for word in words}) == 1
        assert all(
            len(world.tokenizer.encode(f"{row['context']} {choice}")) <= CONTEXT
            for choice in row["choices"]
        )


def test_passages_join_to_the_document() -> None:
    text = story(9, 300) + "x" * 700
    pieces = list(held_out_text.passages(text, 256))
    assert "".join(pieces) == text and max(map(len, pieces)) == 256
    assert all(piece[-1] in " \n" for piece in pieces if "x" * 9 not in piece)


def test_a_larger_limit_contains_a_smaller_one(world: World, downloads: Path) -> None:
    few, many = world.rows("last_word", downloads), world.rows("last_word", downloads, 2 * LIMIT)
    assert len(few) == LIMIT and len(many) == 2 * LIMIT
    assert [row for row in many if row in few] == few


def test_boolq_asks_only_about_passages_no_training_saw(
    world: World, tmp_path: Path, downloads: Path
) -> None:
    passages = {row["premise"] for row in world.rows("boolq", downloads)}
    trained = sorted(passages)[:3]
    write_corpus(tmp_path / "corpus", {"first": [story(n, 60) for n in range(12)]}, 0.001 + 0.3)
    index = documents.index(tmp_path / "corpus")
    with (
        documents.Writer(tmp_path / "corpus", "leaky", "training") as training,
        documents.Writer(tmp_path / "corpus", "leaky", "held_out") as out,
    ):
        for text in [*trained, "Something else."]:
            training.add(text)
        out.add(story(50, 30))
    index["leaky"] = {
        "held_out_share": 0.01,
        "training": training.counts(),
        "held_out": out.counts(),
    }
    documents.write_index(tmp_path / "corpus", index)
    (task,) = suite_tasks("boolq", world.config(["boolq"])["suites"]["boolq"])
    task_context = TaskContext(
        tmp_path / "corpus", 0, downloads, world.tokenizer.encode, CONTEXT, Silent()
    )
    premises = {row["premise"] for row in rows_of(task, task_context, None)[0].rows}
    assert (
        len(premises) > 800 and passages - set(trained) <= premises and not premises & set(trained)
    )


# --- suites are YAML ---


@pytest.fixture
def suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    """`suites(name, contents)` puts a suite file beside the project's own."""
    folder = tmp_path / "suites"
    shutil.copytree(zero_shot.SUITES, folder)
    monkeypatch.setattr(zero_shot, "SUITES", folder)
    return lambda name, contents: (
        (folder / f"{name}.yaml").write_text(
            contents if isinstance(contents, str) else yaml.safe_dump(contents)
        )
        and None
    )


def own_suite(path: Path, **changes: Any) -> dict[str, Any]:
    columns = {"text": "sentence", "label": "mood"}
    entry = {
        "licence": "CC0",
        "source": {"file": str(path)},
        "format": "jsonl",
        "form": "classification",
        "columns": columns,
        "labels": ["bad", "good"],
    }
    data = {"builder": "labelled", "entry": entry, "splits": ["training", "validation", "test"]}
    metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    suite = {
        "task": "moods",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}} It was",
        "doc_to_choice": ["bad", "good"],
        "doc_to_target": "label",
        "metric_list": [metric],
        "metadata": {"version": 1.0, "baseline": "majority", "data": data},
    }
    return {**suite, **changes}


def moods(path: Path, count: int = 60) -> Path:
    rows = [
        {
            "sentence": f"Day {n} was {'fine' if n % 3 else 'grey'}.",
            "mood": "good" if n % 3 else "bad",
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_of_a_task_whose_licence_does_not_cover_its_text_the_rows_are_there_without_it(
    world: World, suites: Callable[[str, Any], None], tmp_path: Path
) -> None:
    open_suite, closed = (own_suite(moods(tmp_path / "moods.jsonl")) for _ in range(2))
    closed["metadata"]["data"]["entry"]["show_text"] = False
    suites("open", open_suite)
    suites("closed", closed)
    built = world.run(tmp_path / "out", ["open", "closed"], {})
    predicted = read_json_lines(built.output / "predictions.jsonl")
    texts, hidden = predicted[:60], predicted[60:]
    assert texts[0]["context"].endswith(" It was") and texts[0]["answers"] == [" bad", " good"]
    assert {(row["suite"], row["context"], str(row["answers"])) for row in hidden} == {
        ("closed", None, "[]")
    }
    for row, same in zip(texts, hidden, strict=True):
        assert [row[key] for key in ("row", "target", "logprobs", "scores")] == [
            same[key] for key in ("row", "target", "logprobs", "scores")
        ]
        best = row["logprobs"].index(max(row["logprobs"]))
        assert row["scores"] == {"acc": float(best == row["target"])}
    zero_shot.ZERO_SHOT.show(built, tmp_path)
    table = json.loads((tmp_path / MLFLOW_TABLE).read_text())
    shown = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["right"] for row in shown] == [
        "right" if row["scores"]["acc"] else "wrong" for row in predicted
    ]
    assert shown[0]["choices"] == "bad | good" and shown[0]["answer"] in ("bad", "good")
    assert shown[60]["choices"] == "" and shown[60]["answer"] in (0, 1)
    assert "Day" not in str(shown[60:]) and "Day" in (tmp_path / "samples.md").read_text()


def test_a_suite_is_added_by_dropping_a_file(
    world: World, suites: Callable[[str, Any], None], tmp_path: Path
) -> None:
    suites("moods", own_suite(moods(tmp_path / "moods.jsonl")))
    built = world.run(tmp_path / "out", ["moods"], {})
    (row,) = json.loads((built.output / "results.json").read_text())["rows"]
    assert (row["suite"], row["metric"], row["examples"], row["baseline"]) == (
        "moods",
        "acc",
        60,
        "majority 0.667",
    )


def test_what_does_not_fit_or_has_no_answer_is_counted_said_and_spares_the_others(
    world: World, suites: Callable[[str, Any], None], tmp_path: Path, downloads: Path
) -> None:
    long = [story(n, 9).strip() for n in range(3)]
    sentences = [*(f"{text} Then came| Emil" for text in long), "nothing follows|"]
    sentences += [f"On day {n} it was| fine" for n in range(36)]
    rows = [{"sentence": text, "mood": "good"} for text in sentences]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = own_suite(tmp_path / "rows.jsonl", doc_to_text="{{text.split('|')[0]}}")
    suite["metadata"].pop("baseline")
    del suite["task"], suite["doc_to_choice"]
    answer = "{{text.split('|')[1]}}"
    of_log = {**suite, "task": "follows", "output_type": "loglikelihood", "doc_to_target": answer}
    exact = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    of_text = {
        **suite,
        "task": "written",
        "output_type": "generate_until",
        "doc_to_target": answer,
        "generation_kwargs": {"do_sample": False, "max_new_tokens": 500, "until": ["."]},
        "metric_list": [exact],
    }
    suites("mixed", {"group": "mixed", "task": [of_log, of_text]})
    built = world.run(tmp_path / "out", ["mixed"], {})
    follows, written = Results.read(built.output).scores

    # One question has an empty answer: it is left out, and the others are scored.
    assert (follows.examples, follows.available, follows.empty) == (39, 39, 1)
    encode = world.tokenizer.encode
    excess = [len(encode(f"{text} Then came Emil")) - CONTEXT - 1 for text in long]
    assert min(excess) > 0 and (follows.cut, follows.cut_tokens) == (3, max(excess))
    assert follows.cut_text == f"3 of 39 cut, by {max(excess)} tokens at most"
    # A limit of 500 new tokens leaves a context of 96 nothing: half of it is written at most.
    assert written.examples == 40 and written.empty == 0 and written.cut == 3
    assert written.cut_tokens == max(len(encode(f"{text} Then came")) for text in long) - 48
    sentence = "answers of at most 48 tokens, not 500: the context is 96"
    assert written.lowered_limit == sentence and not follows.lowered_limit
    task = yaml.safe_load((built.output / "tasks" / "mixed.written.yaml").read_text())
    assert task["generation_kwargs"] == {"do_sample": False, "max_gen_toks": 48, "until": ["."]}

    verdicts = {check.name: check.verdict(built) for check in zero_shot.ZERO_SHOT.checks}
    assert not verdicts["contexts_are_whole"].passed
    assert verdicts["contexts_are_whole"].summary == (
        f"In 2 of 2 tasks, most in mixed/follows: {follows.cut_text}."
    )
    zero_shot.ZERO_SHOT.show(built, tmp_path)
    table = (tmp_path / "zero_shot.md").read_text()
    assert f"39; contexts: {follows.cut_text}; 1 more have an empty answer |" in table
    assert sentence in table
    assert all(row.left_out in row.note and row.cut_text in row.note for row in (follows, written))


def test_a_suites_own_task_may_have_a_file_for_each_split(
    world: World, suites: Callable[[str, Any], None], tmp_path: Path, downloads: Path
) -> None:
    suite = own_suite(Path())
    suite["metadata"]["data"] |= {"splits": ["test"]}
    suite["metadata"]["data"]["entry"]["source"] = {
        "file": {
            split: str(moods(tmp_path / f"{split}.jsonl", count))
            for split, count in (("training", 30), ("test", 12))
        }
    }
    suites("moods", suite)
    source = world.config(["moods"])["suites"]["moods"]["metadata"]["data"]["entry"]["source"]
    assert [file["path"] for file in source["pinned"]] == list(source["file"].values()) and str(
        tmp_path
    ) not in json.dumps(source)
    assert len(world.rows("moods", downloads)) == LIMIT


def test_editing_a_suite_changes_what_identifies_the_evaluation(
    world: World, suites: Callable[[str, Any], None]
) -> None:
    before = world.config(["boolq"])
    assert before["suites"]["boolq"]["metadata"]["data"]["entry"]["source"][
        "sha256"
    ]  # the catalogue's entry is written out
    suites("boolq", (zero_shot.SUITES / "boolq.yaml").read_text().replace("Question:", "Q:"))
    assert world.config(["boolq"]) != before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"doc_to_txt": "x"},
            r"suites/moods.yaml, task 'moods': `doc_to_txt` is not a key of a suite's task. "
            r"Did you mean `doc_to_text`\?",
        ),
        (
            {"doc_to_choice": None},
            r"`doc_to_choice` is missing, and `output_type: multiple_choice` needs it",
        ),
        ({"metadata": {"version": 1.0}}, r"`metadata.data` is missing"),
        (
            {"metadata": {"version": 1.0, "data": {"builder": "clozes"}}},
            r"suites/moods.yaml, task 'moods': `metadata.data`.*clozes",
        ),
    ],
)
def test_a_broken_suite_is_one_sentence(
    world: World,
    suites: Callable[[str, Any], None],
    tmp_path: Path,
    change: dict[str, Any],
    sentence: str,
) -> None:
    suites("moods", own_suite(moods(tmp_path / "moods.jsonl"), **change))
    with pytest.raises(UserError, match=sentence):
        world.run(tmp_path / "out", ["moods"], {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"output_type": "multiple_choise"}, r"^lm_eval cannot use it \(.*multiple_choise"),
        (
            {"metric_list": [{"metric": "accuracy", "aggregation": "mean"}]},
            r"^lm_eval cannot use it|no metric 'accuracy'",
        ),
        (
            {"doc_to_text": "{{ sentence }}"},
            r"^it has no examples: row 1: UndefinedError: 'sentence' is undefined",
        ),
    ],
)
def test_a_task_that_lm_eval_refuses_is_left_out_says_why_and_spares_the_others(
    world: World,
    suites: Callable[[str, Any], None],
    tmp_path: Path,
    change: dict[str, Any],
    reason: str,
) -> None:
    broken = own_suite(moods(tmp_path / "moods.jsonl"), **change)
    suites(
        "moods",
        {
            "group": "moods",
            "task": [broken, {**own_suite(tmp_path / "moods.jsonl"), "task": "others"}],
        },
    )
    built = world.run(tmp_path / "out", ["moods", "last_word"], {"last_word": 4})
    results = Results.read(built.output)
    [left_out] = results.unavailable
    assert (left_out.suite, left_out.task) == ("moods", "moods")
    assert re.search(reason, left_out.reason)
    assert {f"{row.suite}/{row.task}" for row in results.scores} == {
        "moods/others",
        "last_word/last_word",
    }
    files = {path.stem for path in (built.output / "tasks").iterdir()}
    assert files - {"moods.moods"} == {"moods.others", "last_word.last_word"}
    verdict = zero_shot.ZERO_SHOT.checks[0].verdict(built)
    assert verdict.passed and "not run here: moods/moods" in verdict.summary


def test_a_row_without_a_question_is_left_out_counted_and_spares_the_others(
    world: World, suites: Callable[[str, Any], None], tmp_path: Path
) -> None:
    pairs = [{"a": f"It is day {n}.", "b": f"Day {n} is here.", "c": n % 2} for n in range(20)]
    # No right answer of two, no number, no such column, no text at all.
    pairs[3]["c"], pairs[5]["c"] = 7, "yes"
    del pairs[8]["b"]
    lines = [json.dumps(pair) for pair in pairs] + ["{"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    suite = own_suite(Path(), doc_to_text="{{premise}} So {{hypothesis}}?")
    suite["metadata"]["data"] = {
        "builder": "dataset",
        "source": {"path": str(tmp_path / "pairs.jsonl")},
        "columns": {"premise": "a", "hypothesis": "b", "label": "c"},
        "make": "sentence_pairs",
    }
    suites("pairs", suite)
    built = world.run(tmp_path / "out", ["pairs"], {})
    [row] = Results.read(built.output).scores
    assert (row.examples, row.unreadable) == (17, 4)
    assert row.left_out == "4 more cannot be read" and row.left_out in row.note


def test_bad_requests_are_named(
    world: World, suites: Callable[[str, Any], None], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no suite 'close'.*Did you mean 'cloze'\?"):
        world.config(["close"])
    with pytest.raises(UserError, match=r"'boolq' is not among evaluation\.suites: cloze"):
        world.config(["cloze"], {"boolq": 5})
    suites("moods", "task: [unclosed")
    with pytest.raises(UserError, match=r"moods\.yaml, line \d+: this is not valid YAML"):
        world.config(["moods"])
    path = moods(tmp_path / "moods.jsonl")
    path.write_text(path.read_text().replace("sentence", "phrase"))
    suites("moods", own_suite(path))
    with pytest.raises(UserError, match=r"moods\.jsonl has no column 'sentence'"):
        world.run(tmp_path / "out", ["moods"], {})


def test_a_suite_without_examples_says_why(world: World, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", {"short": [f"One sentence {n}." for n in range(40)]}, 0.3)
    inputs = {**world.inputs, "corpus": Artifact(tmp_path / "corpus", "corpus", "", "", {}, {})}
    short = World(tmp_path, inputs, world.model, world.tokenizer)
    results = Results.read(short.run(tmp_path / "out", ["cloze", "held_out"], {}).output)
    assert [row.to_json() for row in results.unavailable] == [
        {
            "suite": "cloze",
            "task": "cloze",
            "not_run": "it has no examples: no held-out document has 21 sentences with 10 words "
            "of a kind in them",
        }
    ]
    assert {row.suite for row in results.scores} == {"held_out"}
