"""Suites on public data sets: local files in their place, what is not run here and why, and each
protocol's questions on a few own rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from public_rows import ROWS, rows_for
from world import CONTEXT, World, make_world

from assets.stages import zero_shot
from gpt_model.data import hub
from gpt_model.errors import Unavailable, UserError
from gpt_model.evaluation import public_data_sets, scoring
from gpt_model.evaluation.adapters.registry import ADAPTERS, TaskContext
from gpt_model.evaluation.detokenizers import DETOKENIZERS
from gpt_model.evaluation.evaluate import _score_confident
from gpt_model.evaluation.lambada_stop_words import STOP_WORDS
from gpt_model.evaluation.metrics import confidence_interval
from gpt_model.evaluation.suites import Dataset, suite_tasks
from gpt_model.evaluation.tasks import rows_of
from gpt_model.progress import Silent
from gpt_model.published import references


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEAGE_DOWNLOADS", str(downloads))
        yield make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens on the hub's address."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "_silent_since", float("-inf"))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def results(built: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((built.output / "results.json").read_text())["rows"]
    return rows


PASSAGES = [
    {"text": f"Berta took the {thing} from the table. Then Emil asked for the {thing}"}
    for thing in ("candle", "basket", "kettle")
]


# --- a public data set ---


@pytest.mark.usefixtures("no_hub")
def test_a_data_set_that_cannot_be_had_is_not_run_here_and_says_what_to_do(
    world: World, tmp_path: Path
) -> None:
    built = world.run(tmp_path / "out", ["gpt2_lambada"])
    rows = results(built)
    assert [(row["suite"], row["task"]) for row in rows][:1] == [
        ("gpt2_lambada", "last_word")
    ] and all("not_run" in row for row in rows)
    assert rows[0]["not_run"].startswith(
        "the Hugging Face hub did not answer when asked for EleutherAI/lambada_openai; "
    )
    assert (
        "columns text and name that in the recipe as "
        "evaluation.files: {gpt2_lambada/last_word: PATH}" in rows[0]["not_run"]
    )
    check = next(check for check in zero_shot.ZERO_SHOT.checks if check.blocking).verdict(built)
    assert check.passed and "not run here: gpt2_lambada/last_word" in check.summary
    zero_shot.ZERO_SHOT.show(built, tmp_path)
    assert (
        "**gpt2_lambada/last_word** not run here: the Hugging Face hub did not answer"
        in (tmp_path / "zero_shot.md").read_text()
    )


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_a_local_file_of_the_same_columns_is_read_in_its_place(
    world: World, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"lambada.{kind}"
    if kind == "jsonl":
        jsonl(path, PASSAGES)
    else:
        path.write_text(
            ("text\n" if kind == "csv" else "") + "".join(f"{row['text']}\n" for row in PASSAGES)
        )
    built = world.run(tmp_path / "out", ["gpt2_lambada"], {}, {"gpt2_lambada/last_word": str(path)})
    scored = [row for row in results(built) if "not_run" not in row]
    assert [(row["task"], row["metric"], row["examples"]) for row in scored] == [
        ("last_word", "acc", 3),
        ("last_word", "perplexity", 3),
    ]
    source = built.config["suites"]["gpt2_lambada"]["task"][0]["metadata"]["data"]["source"]
    assert (
        source["path"] == path.name
        and len(source["pinned"][0]["sha256"]) == 64
        and str(tmp_path) not in json.dumps(built.config)
    )
    rows = [
        json.loads(line)
        for line in (built.output / "tasks" / "gpt2_lambada.last_word.jsonl")
        .read_text()
        .splitlines()
    ]
    assert rows[0] == {
        "context": "Berta took the candle from the table. Then Emil asked for the",
        "target": " candle",
    }


def test_a_file_for_no_task_and_a_missing_column_are_named(world: World, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"'gpt2_lambada/last_wrd' is no task.*Did you mean 'gpt2_lambada/last_word'\?",
    ):
        world.config(["gpt2_lambada"], {}, {"gpt2_lambada/last_wrd": "x.jsonl"})
    path = jsonl(tmp_path / "rows.jsonl", [{"passage": "Emil asked"}])
    with pytest.raises(
        UserError, match=r"rows.jsonl, line 1: there is no column 'text'. Columns found: passage"
    ):
        world.run(tmp_path / "out", ["gpt2_lambada"], {}, {"gpt2_lambada/last_word": path})


def test_a_copy_in_the_hubs_layout_is_read_as_the_hub_is(tmp_path: Path) -> None:
    (tmp_path / "copy" / "data").mkdir(parents=True)
    for split, rows in (("train", PASSAGES[:1]), ("test", PASSAGES[1:])):
        jsonl(tmp_path / "copy" / "data" / f"{split}-00000-of-00001.jsonl", rows)
    source = public_data_sets.resolved(
        public_data_sets.DataSource(hub="./copy", split="test"), tmp_path, tmp_path / "downloads"
    )
    assert source.pinned and not source.not_run
    assert (
        list(public_data_sets.rows(source, ["text"], tmp_path / "downloads", Silent()))
        == PASSAGES[1:]
    )
    with pytest.raises(UserError, match="there is no column 'page'"):
        list(public_data_sets.rows(source, ["page"], tmp_path / "downloads", Silent()))


@pytest.mark.usefixtures("no_hub")
def test_a_pinned_commit_is_not_run_either_where_the_hub_is_silent(tmp_path: Path) -> None:
    source = public_data_sets.resolved(
        public_data_sets.DataSource(hub="someone/something", revision="0" * 40), tmp_path, tmp_path
    )
    assert source.not_run == "the Hugging Face hub did not answer when asked for someone/something"
    with pytest.raises(Unavailable, match="did not answer"):
        list(public_data_sets.rows(source, ["text"], tmp_path, Silent()))


@pytest.mark.usefixtures("no_hub")
def test_a_task_of_the_catalogue_that_cannot_be_had_is_not_run_here(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    keys = {
        "output_type": "multiple_choice",
        "doc_to_choice": ["no", "yes"],
        "doc_to_target": "label",
        "metric_list": [metric],
    }
    tasks = [
        {
            "task": name,
            "doc_to_text": "{{hypothesis}}",
            "metadata": {"version": 1.0, "data": {"builder": "labelled", "task": name}},
        }
        for name in ("rte", "storycloze")
    ]
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "own.yaml").write_text(
        yaml.safe_dump({"group": "own", **keys, "task": tasks})
    )
    monkeypatch.setattr(zero_shot, "SUITES", tmp_path / "suites")
    rte, storycloze = results(world.run(tmp_path / "out", ["own"], {}))
    assert (
        "did not answer when asked for nyu-mll/glue" in rte["not_run"]
        and "on request" in storycloze["not_run"]
    )


def test_a_public_set_is_evaluated_whole_unless_the_recipe_asks_a_part(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lambada.jsonl"
    path.write_text(
        "".join(
            json.dumps({"text": f"Berta counted to {number}"}) + "\n" for number in range(10_042)
        )
    )
    source = public_data_sets.resolved(
        public_data_sets.DataSource(path=str(path)), tmp_path, tmp_path
    )
    known, *_ = suite_tasks(
        "gpt2_lambada", yaml.safe_load((zero_shot.SUITES / "gpt2_lambada.yaml").read_text())
    )
    assert isinstance(known.metadata.data, Dataset)
    data = known.metadata.data.model_copy(update={"source": source})
    task = known.model_copy(update={"metadata": known.metadata.model_copy(update={"data": data})})
    task_context = TaskContext(None, 0, tmp_path, world.tokenizer.encode, CONTEXT, Silent())

    def used(limit: int | None) -> tuple[int, int]:
        (rows,) = rows_of(task, task_context, limit)
        return len(rows.rows), rows.available

    assert used(None) == (10_042, 10_042) and used(7) == (7, 10_042)
    # Memory is bounded all the same, and what was left out is counted.
    monkeypatch.setattr("gpt_model.evaluation.tasks.PUBLIC_ROWS_LIMIT", 9_000)
    assert used(None) == (9_000, 10_042)


# --- the protocols' questions ---


@pytest.fixture
def made(world: World, tmp_path: Path) -> Any:
    """`made(adapter)`: what an adapter makes of its few rows, or of others."""

    def make(
        name: str, rows: list[dict[str, Any]] | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        task_context = TaskContext(tmp_path, 0, tmp_path, world.tokenizer.encode, CONTEXT, Silent())
        return list(ADAPTERS[name](ROWS[name] if rows is None else rows, task_context, **options))

    return make


TOKENS = [
    '"',
    ",",
    ".",
    "...",
    "'s",
    "n't",
    "did",
    "@-@",
    "@,@",
    "-",
    "(",
    ")",
    "1",
    "$",
    "Mr.",
    "U.S.",
    "",
    "a-b",
    "\t",
    "\n",
]


@pytest.mark.parametrize("name", sorted(DETOKENIZERS))
@given(tokens=st.lists(st.sampled_from(TOKENS)))
@settings(max_examples=200, deadline=None)
def test_a_de_tokenizer_loses_nothing_whatever_the_text(name: str, tokens: list[str]) -> None:
    for text in (" ".join(tokens), "".join(tokens), f" {' '.join(tokens)} "):
        assert DETOKENIZERS[name].tokenized(DETOKENIZERS[name].plain(text)) == text


def test_text_is_de_tokenized_as_people_write_it() -> None:
    page = (
        ' = Ada = \n \n The well @-@ known " Ada ( 1 @,@ 200 lines , 3 @.@ 5 km ) " '
        "didn 't end in the U.S. before 1842 . \n "
    )
    assert (
        DETOKENIZERS["wikitext"]
        .plain(page)
        .startswith(
            '= Ada =\n\nThe well-known "Ada (1,200 lines, 3.5 km)" '
            "didn't end in the U.S. before 1842."
        )
    )
    assert (
        DETOKENIZERS["ptb"].plain("mr. smith 's <unk> was n't N billion")
        == "mr. smith's <unk> wasn't N billion"
    )
    assert (
        DETOKENIZERS["treebank"].plain('" I do n\'t know , " said Mr. Smith .')
        == '"I don\'t know," said Mr. Smith.'
    )


def test_units_are_counted_on_the_original_and_not_on_what_is_read(made: Any) -> None:
    for row, source in zip(made("wikitext"), ROWS["wikitext"], strict=True):
        assert (
            row["words"] == len(source["page"].split()) + 2
        )  # as lm_eval's re.split, with the empty ones at both ends
        assert (
            row["bytes"] == row["characters"] == len(source["page"]) > len(row["text"])
            and "well-known" in row["text"]
        )
    (passage,) = made("sentences", detokenizer="ptb", characters=10_000)
    assert (
        passage["words"] == sum(len(row["sentence"].split()) + 1 for row in ROWS["sentences"])
        and passage["text"].count("\n") == 5
    )
    assert len(made("sentences", detokenizer="treebank")) == 6
    text = "\n".join(row["text"] for row in ROWS["stream"])
    assert "".join(row["text"] for row in made("stream", last=100, characters=30)) == text[-100:]
    assert scoring.original_words({"words": 4}, [-8.0]) == {"word_perplexity": (-8.0, 4)}


def test_an_article_in_single_lines_is_read_as_the_same_article(made: Any) -> None:
    lines = [{"page": line} for row in ROWS["wikitext"] for line in row["page"].split("\n")]
    assert [row["text"] for row in made("wikitext", lines)] == [
        row["text"] for row in made("wikitext")
    ]


def test_the_last_token_alone_is_what_stands_after_the_rest_of_the_word(
    made: Any, world: World
) -> None:
    texts = [f"{row['text']}stick" for row in ROWS["lambada"]]
    for row, text in zip(
        made("lambada_last_token", [{"text": text} for text in texts]), texts, strict=True
    ):
        assert row["context"] + row["target"] == text and len(row["target"]) < len("stick")
        assert world.tokenizer.encode(row["context"]) == world.tokenizer.encode(text)[:-1]


def test_a_childrens_book_choice_is_the_word_with_the_rest_of_its_sentence(made: Any) -> None:
    row = made("childrens_books")[0]
    assert row["context"].startswith('0 "Where is the candle?" said Anselm. 1 "Where') and row[
        "context"
    ].endswith("21 Then")
    assert (
        row["choices"][row["label"]] == "Anselm didn't help Berta with the candle."
        and len(row["choices"]) == 10
    )
    with pytest.raises(UserError, match="expected a question with XXXXX"):
        made("childrens_books", [{**ROWS["childrens_books"][0], "question": "no gap"}])


def test_a_winograd_referent_stands_in_the_pronouns_place(made: Any) -> None:
    row = made("winograd")[0]
    assert row["beginnings"] == [
        f"The candle did not fit into the box because the {thing}" for thing in ("candle", "box")
    ]
    assert (
        row["rest"] == " was too large." and row["wholes"][1] == row["beginnings"][1] + row["rest"]
    )
    text = "Hanna took the book. Her brother saw it."
    row = {
        "text": text,
        "pronoun": "Her",
        "pronoun_loc": text.index("Her"),
        "options": ["Hanna", "the book"],
        "label": 0,
    }
    assert made("winograd", [row])[0]["beginnings"] == [
        f"Hanna took the book. {who}'s" for who in ("Hanna", "The book")
    ]


def test_a_conversation_goes_on_from_what_people_answered(made: Any) -> None:
    first, second = made("conversation")[:2]
    assert first["context"].endswith("\nQ: Who has the candle?\nA:") and first["answers"] == [
        "Anselm",
        "It is Anselm",
        "Anselm",
    ]
    assert second["context"] == first["context"] + " Anselm\nQ: Where is it?\nA:"


def test_an_article_loses_its_end_so_that_the_summary_fits(
    made: Any, world: World, tmp_path: Path
) -> None:
    task_context = TaskContext(tmp_path, 0, tmp_path, world.tokenizer.encode, 300, Silent(), 100)
    rows = list(ADAPTERS["summaries"](ROWS["summaries"] * 2, task_context))
    long = ROWS["summaries"][0]["article"] * 9
    (cut,) = ADAPTERS["summaries"]([{"article": long, "highlights": "x"}], task_context)
    assert 190 < len(world.tokenizer.encode(cut["context"])) <= 200 and cut["context"].endswith(
        "\nTL;DR:"
    )
    assert long.startswith(cut["context"].removesuffix("\nTL;DR:")) and len(rows) == 8


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("core_choice", {"shots": 3}),
        ("core_schema", {"shots": 3}),
        ("core_text", {"shots": 3}),
        ("translations", {"source": "en", "target": "fr", "examples": 3}),
        ("questions", {"examples": 3}),
    ],
)
def test_demonstrations_of_an_adapters_go_whole_before_the_question_loses_anything(
    name: str, options: dict[str, Any], world: World, tmp_path: Path
) -> None:
    encode = world.tokenizer.encode

    def longest(row: dict[str, Any]) -> int:
        """Tokens of what is before an answer, and of the longest answer that is scored."""
        earlier = row.get("beginnings") or [row["context"]]
        scored = row.get("choices") or [row.get("rest") or row.get("target")]
        answers = scored if name.startswith("core") else [""]  # the others are generated
        return max(len(encode(text + answer)) for text in earlier for answer in answers)

    def made(context: int, new_tokens: int = 0) -> list[dict[str, Any]]:
        task_context = TaskContext(tmp_path, 0, tmp_path, encode, context, Silent(), new_tokens)
        return list(ADAPTERS[name](ROWS[name], task_context, **options))

    whole = made(10_000)
    assert {row["shots"] for row in whole} == {3}
    most = max(map(longest, whole))
    assert made(most) == whole and made(most + 5, new_tokens=5) == whole
    cut = made(most - 1)
    assert min(row["shots"] for row in cut) == 2
    none = made(1)
    assert {row["shots"] for row in none} == {0}
    for before, after in zip(whole, none, strict=True):
        text, question = (
            str(row.get("context") or row["beginnings"][0]) for row in (before, after)
        )
        assert text.endswith(question) and question.count("\n\n") == 0
    assert all(longest(row) <= most - 1 for row in cut)


def test_example_pairs_are_none_of_the_questions(made: Any) -> None:
    rows = made("translations", source="en", target="fr", examples=2)
    shown = [
        f"The {thing} is by the window. = Le {thing} est près de la fenêtre."
        for thing in ("candle", "basket")
    ]
    assert len(rows) == 8 and rows[0]["context"] == "\n".join(
        [*shown, "The kettle is by the window. ="]
    )
    questions = made("questions", examples=2)
    assert (
        len(questions) == 8
        and questions[0]["context"].endswith("Q: who took the kettle?\nA:")
        and "kettle" not in questions[0]["context"][:-40]
    )


# --- the protocols' scores ---


def test_answers_are_scored_as_their_papers_score_them() -> None:
    assert scoring.first_word({"target": " garden"}, [' "garden." she said']) == {"acc": 1.0}
    assert scoring.first_word({"target": " garden"}, [""]) == {"acc": 0.0}
    answers = {"answers": ["the garden", "in a garden"]}
    f1 = scoring.answer_f1(
        answers, [" In the garden!\nQ: more"]
    )  # against the second: 1; against the first alone: 2/3
    assert f1 == {"f1": pytest.approx((1 + 2 / 3) / 2), "em": 0.5}
    assert scoring.answer_exact({"answers": ["The  Garden", "x"]}, ["a garden."]) == {
        "exact_match": 1.0
    }
    summary = "Emil walked. The cat sat! It was late. And a fourth sentence that does not count."
    rouge = scoring.summary_rouge(
        {"summary": "Emil walked.\nThe cat sat.\nIt was late."}, [summary]
    )
    assert rouge["rouge1"] == rouge["rougeL"] == rouge["rouge_mean"] == 100
    assert scoring.translation({"target": "Le chat."}, [" Le chat. Et le chien."]) == {
        "bleu": ("Le chat.", "Le chat.")
    }


def test_an_interval_of_bleu_holds_the_score_and_narrows_with_its_examples() -> None:
    from lm_eval.api.metrics import bleu

    translations = [
        "the old king sees a {n} by the lake",
        "the old king sees number {n} by the lake",
        "the old king sees number {n} by the lake",
    ]
    pairs = [(translations[1].format(n=n), translations[n % 3].format(n=n)) for n in range(120)]
    few: Any = confidence_interval("bleu", "bleu", pairs[:30])
    many: Any = confidence_interval("bleu", "bleu", pairs)
    assert few.low < bleu(pairs[:30]) < few.high and many.low < bleu(pairs) < many.high
    assert many.high - many.low < 0.7 * (few.high - few.low)


@pytest.mark.slow
def test_written_answers_have_their_rows_and_the_surest_ones_of_their_own(
    world: World, tmp_path: Path
) -> None:
    files = {}
    for name, maker in (("natural_questions", "questions"), ("english_to_french", "translations")):
        rows = [
            {("answer" if key == "answers" else key): value for key, value in row.items()}
            for row in ROWS[maker]
        ]
        files[f"gpt2_generation/{name}"] = jsonl(tmp_path / f"{name}.jsonl", rows)
    rows = results(world.run(tmp_path / "out", ["gpt2_generation"], {}, files))
    scored = {(row["task"], row["metric"]): row for row in rows if "not_run" not in row}
    assert list(scored) == [
        ("english_to_french", "bleu"),
        ("natural_questions", "exact_match"),
        ("natural_questions", "exact_match_top_1_percent"),
    ]
    surest = scored["natural_questions", "exact_match_top_1_percent"]
    assert surest["examples"] == 1 and surest["note"].startswith("1 of the 5, the surest")
    assert surest["published"]["task"] == "Natural Questions on the most confident 1 %"
    assert surest["published"]["differs"].startswith(
        "five questions of the evaluated set as examples"
    )
    assert (
        scored["english_to_french", "bleu"]["examples"] == 5
        and scored["english_to_french", "bleu"]["low"] is not None
    )
    assert {row["task"] for row in rows if "not_run" in row} == {
        "coqa",
        "cnn_dm",
        "french_to_english",
    }


def test_the_surest_answers_are_those_of_the_highest_probability() -> None:
    samples = [
        {"arguments": [["q"]], "resps": [[text]], "exact_match": score}
        for text, score in (("a", 0.0), ("b", 1.0), ("c", 0.0), ("", 1.0))
    ]
    lm_eval_results: dict[str, Any] = {"samples": {"t": samples}, "results": {"t": {}}}
    model: Any = SimpleNamespace(
        loglikelihood=lambda requests: [
            ({"a": -3.0, "b": -1.0, "c": -2.0}[request.args[1]], False) for request in requests
        ]
    )
    _score_confident(model, lm_eval_results, "t", ["exact_match"], 0.5)
    assert lm_eval_results["results"]["t"] == {
        "exact_match_top_50_percent,none": 0.5
    }  # b and c of the three that said anything
    assert [
        name
        for name, sample in zip("abc", samples, strict=False)
        if "exact_match_top_50_percent" in sample
    ] == ["b", "c"]


def test_a_stop_word_is_never_an_answers_first_token(world: World, tmp_path: Path) -> None:
    built = world.run(
        tmp_path / "out",
        ["gpt2_lambada"],
        {},
        {"gpt2_lambada/stop_word_filter": jsonl(tmp_path / "rows.jsonl", PASSAGES)},
    )
    task = (built.output / "tasks" / "gpt2_lambada.stop_word_filter.yaml").read_text()
    forbidden = yaml.safe_load(task.replace("!function", ""))["generation_kwargs"][
        "begin_suppress_tokens"
    ]
    words = {world.tokenizer.decode([token]).strip().lower() for token in forbidden}
    assert {"the", "and", "was", "by"} <= words <= set(STOP_WORDS) and world.tokenizer.encode(
        " table"
    )[0] not in forbidden
    from gpt_model.evaluation.lm_eval_adapter import GPTLM

    free, bound = (
        {"max_gen_toks": 4, "until": ["\n"]},
        {"max_gen_toks": 4, "until": ["\n"], "begin_suppress_tokens": None},
    )
    ask: Any = [SimpleNamespace(args=("Then Berta turned", dict(free)))]
    first = world.tokenizer.encode(GPTLM(world.model, world.tokenizer).generate_until(ask)[0])[0]
    ask = [SimpleNamespace(args=("Then Berta turned", {**bound, "begin_suppress_tokens": [first]}))]
    assert (
        world.tokenizer.encode(GPTLM(world.model, world.tokenizer).generate_until(ask)[0])[0]
        != first
    )


# --- CORE ---


def test_core_has_dclms_22_tasks_with_their_demonstrations_and_both_baselines(world: World) -> None:
    tasks = suite_tasks("core", world.config(["core"])["suites"]["core"])
    assert len(tasks) == 22 and all(list(task.metadata.centred) == ["v1", "v2"] for task in tasks)
    shots = Counter(task.metadata.data.options["shots"] for task in tasks)  # type: ignore[union-attr]
    assert shots == {10: 14, 0: 7, 3: 1}
    changed = {
        task.name for task in tasks if task.metadata.centred["v1"] != task.metadata.centred["v2"]
    }
    assert changed == {"commonsense_qa", "agi_eval_lsat_ar", "bigbench_language_identification"}
    assert all(
        task.metadata.description.endswith("worked out from DCLM's results")
        for task in tasks
        if task.name in changed
    )


def test_cores_baselines_are_those_that_dclm_and_nanochat_have_scored_by() -> None:
    tasks = suite_tasks("core", yaml.safe_load((zero_shot.SUITES / "core.yaml").read_text()))
    centred = {task.name: task.metadata.centred for task in tasks}

    def by(version: str, task: str, accuracy: float) -> float:
        return (accuracy - (guessing := centred[task][version] / 100)) / (1 - guessing)

    changed = ("commonsense_qa", "agi_eval_lsat_ar", "bigbench_language_identification")
    for (
        accuracies,
        first,
        corrected,
    ) in (  # DCLM's exp_data/evals: Falcon-7B, Llama-3-8B; their means by v1 and v2
        (
            (0.25798526406288147, 0.291304349899292, 0.25699999928474426),
            0.4406495227745305,
            0.4157526939145964,
        ),
        (
            (0.7903357744216919, 0.30000001192092896, 0.5921000242233276),
            0.5757178449472801,
            0.5646914269632108,
        ),
    ):
        moved = sum(
            by("v1", *scored) - by("v2", *scored)
            for scored in zip(changed, accuracies, strict=True)
        ) / len(tasks)
        assert moved == pytest.approx(first - corrected, abs=1e-14)
    xl = {
        "bigbench_language_identification": (0.25, 0.174917),
        "commonsense_qa": (0.227, 0.03375),
        "boolq": (0.619, -0.002632),
    }
    for task, (accuracy, centred_score) in xl.items():  # GPT-2 XL in nanochat's bundle
        assert by("v1", task, accuracy) == pytest.approx(centred_score, abs=1e-6)
        assert by("v2", task, accuracy) == pytest.approx(centred_score, abs=1e-6) or task in changed


def test_cores_demonstrations_are_others_of_the_same_rows(made: Any) -> None:
    rows = made("core_choice", shots=2, delimiter="\nAnswer: ")
    assert len(rows) == len(ROWS["core_choice"]) and rows[0]["shots"] == 2
    assert all(row["context"].count("Where does") == row["shots"] + 1 for row in rows)
    assert all(
        row["context"].endswith("\nAnswer:") and row["choices"][0] == " in the garden"
        for row in rows
    )
    questions = [row["context"].rpartition("Where does")[2] for row in rows]
    assert all(
        row["context"].count(question.partition("\n")[0]) == 1
        for row, question in zip(rows, questions, strict=True)
    )
    (text,) = made("core_text", [{"context": " Emil walked ", "continuation": "home"}], shots=0)
    assert text == {"context": "Emil walked", "target": " home", "shots": 0}
    same = [{"query": "Q", "choices": ["the cat", "the cat sat", "the dog"], "gold": 0}]
    assert made("core_choice", same, shots=0)[0]["choices"] == [" cat", " cat sat", " dog"]


def test_the_likeliest_choice_by_the_token_is_the_answer() -> None:
    doc = {"lengths": [1, 4], "label": 1}
    assert scoring.likeliest_by_token(doc, [(-3.0, False), (-8.0, False)]) == {
        "acc": 1.0
    }  # -3 against -2 a token
    assert scoring.likeliest_by_token(doc, [(-1.0, False), (-8.0, False)]) == {"acc": 0.0}


def core_files(folder: Path) -> str:
    """A folder laid out as DCLM's bundle, with rows of our own."""
    for task in suite_tasks("core", yaml.safe_load((zero_shot.SUITES / "core.yaml").read_text())):
        data = task.metadata.data
        assert isinstance(data, Dataset) and data.source.member
        path = folder / data.source.member
        path.parent.mkdir(parents=True, exist_ok=True)
        jsonl(path, rows_for(data))
    return str(folder)


def test_core_is_the_mean_of_its_centred_accuracies(world: World, tmp_path: Path) -> None:
    built = world.run(tmp_path / "out", ["core"], None, {"core": core_files(tmp_path / "bundle")})
    rows = results(built)
    accuracy = {row["task"]: row for row in rows if row["metric"] == "acc"}
    tasks = suite_tasks("core", built.config["suites"]["core"])
    for version in ("v1", "v2"):
        (core,) = (row for row in rows if row["task"] == "CORE" and row["metric"] == version)
        guessing = {task.name: task.metadata.centred[version] / 100 for task in tasks}
        expected = (
            sum(
                (accuracy[name]["value"] - baseline) / (1 - baseline)
                for name, baseline in guessing.items()
            )
            / 22
        )
        assert (
            core["value"] == pytest.approx(expected, abs=1e-5)
            and core["low"] < core["value"] < core["high"]
        )
        assert (
            version in core["description"]
            and built.metrics[f"core/CORE/{version}"] == core["value"]
        )
        assert ("three are worked out from its own results" in core["note"]) == (
            version == "v2"
        ) and core["note"] == core["description"]
        assert core["published"]["task"] == {"v1": "CORE", "v2": "CORE by v2"}[version]
        named = {
            reference.source
            for reference in references(task=core["published"]["task"], metric="score")
        }
        assert named and all(
            ("nanochat" in source) == (version == "v1") for source in named
        )  # DCLM's are by v2
    assert str(tmp_path) not in json.dumps(built.config)


def test_core_is_not_run_where_one_of_its_tasks_is_not(world: World, tmp_path: Path) -> None:
    files = {
        f"core/{name}": jsonl(tmp_path / f"{name}.jsonl", ROWS["core_schema"])
        for name in ("winograd", "winogrande")
    }
    rows = results(world.run(tmp_path / "out", ["core"], None, files))
    (core,) = (row for row in rows if row["task"] == "CORE")
    assert core["not_run"].startswith(
        "it is the mean of 22 tasks, and 20 of them are not run here: hellaswag_zeroshot, "
        "jeopardy, "
    )
    (jeopardy,) = (row for row in rows if row["task"] == "jeopardy")
    assert "had as files only, in DCLM's evaluation bundle" in jeopardy["not_run"]
    assert "evaluation.files: {core/jeopardy: PATH}" in jeopardy["not_run"]
