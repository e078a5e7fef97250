"""GPT-3's suites: each data set's questions as the paper puts them, in every setting, scored as
lm_eval's own backend scores them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from public_rows import rows_for
from world import World, make_world

from assets.contract import Built
from assets.stages import zero_shot
from gpt_model.data import documents, hub
from gpt_model.evaluation import scoring
from gpt_model.evaluation.adapters.registry import ADAPTERS, TaskContext
from gpt_model.evaluation.aggregates import superglue_rows
from gpt_model.evaluation.public_data_sets import DataSource, resolved
from gpt_model.evaluation.results import ScoreRow, UnavailableRow
from gpt_model.evaluation.suites import SUITES, Dataset, SuiteTask, suite_tasks
from gpt_model.evaluation.tasks import demonstrations_of, rows_of
from gpt_model.progress import Silent
from gpt_model.published import references

pytestmark = pytest.mark.slow

NAMES = sorted(path.stem for path in SUITES.glob("gpt3_*.yaml"))
LOCAL = [
    "gpt3_arithmetic",
    "gpt3_scramble",
    "gpt3_piqa",
    "gpt3_openbookqa",
]  # their data needs no hub
CONTEXT = 256  # room for a translation
# of each public data set: all of the rows there are here, or the first half where the other half
# demonstrates
EXAMPLES = 8
LIMITS = {**dict.fromkeys(NAMES, EXAMPLES), **dict.fromkeys(LOCAL, 3)}
PUBLISHED_K = {  # the task's name in the paper's tables -> the name there of its K
    **dict.fromkeys(
        ("2D+", "2D-", "3D+", "3D-", "4D+", "4D-", "5D+", "5D-", "2Dx", "1DC"), "arithmetic"
    ),
    **dict.fromkeys(("CL", "A1", "A2", "RI", "RW"), "word scrambling"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEAGE_DOWNLOADS", str(downloads))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
        patch.setattr(hub, "_silent_since", float("-inf"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the model is tiny, and its operations many
        yield make_world(tmp_path_factory.mktemp("world"), CONTEXT)
        torch.set_num_threads(threads)


def tasks_of(suite: str) -> list[SuiteTask]:
    return suite_tasks(suite, yaml.safe_load((SUITES / f"{suite}.yaml").read_text()))


@pytest.fixture(scope="module")
def built(world: World) -> Built:
    """Every suite, on local files of a few rows where it reads a public data set; without a split,
    demonstrations are among those asked.
    """
    files = {}
    for task in (task for suite in NAMES for task in tasks_of(suite)):
        if isinstance(data := task.metadata.data, Dataset):
            rows = rows_for(data)
            half = len(rows) // 2
            parts = (
                {"": rows[:half], "/demonstrations": rows[half:]}
                if data.demonstrations
                else {"": rows}
            )
            for name, part in parts.items():
                path = world.folder / f"{task.suite}.{task.name}{name.replace('/', '.')}.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in part))
                files[f"{task.suite}/{task.name}{name}"] = str(path)
    return world.run(world.folder / "gpt3", NAMES, LIMITS, files)


def results(built: Built) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((built.output / "results.json").read_text())["rows"]
    return rows


def questions(built: Built, task: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (built.output / "tasks" / f"{task}.jsonl").read_text().splitlines()
    ]


def test_every_task_is_scored_in_its_three_settings_and_says_its_k(built: Built) -> None:
    rows = results(built)
    assert not [row for row in rows if "not_run" in row]
    for task in (task for suite in NAMES for task in tasks_of(suite)):
        assert task.metadata.shots
        task_rows = [
            row
            for row in rows
            if row["suite"] == task.suite and row["task"].rpartition("_")[0] == task.name
        ]
        assert {row["shots"] for row in task_rows} == {"zero", "one", "few"} and len(
            task_rows
        ) == 3 * len({row["metric"] for row in task_rows})
        assert {row["metric"] for row in task_rows} == {
            entry["metric"] for entry in task.keys["metric_list"]
        } | set(task.metadata.metrics)
        for row in task_rows:
            used = row["demonstrations"]
            assert (
                0 <= used["fewest"] <= used["mean"] <= used["asked"]
                and used["asked"] in task.metadata.shots.numbers
            )
            assert (
                row["shots"] != "few"
                or f"K = {used['mean']:.1f} of {used['asked']} on average" in row["note"]
            )
            assert (
                row["low"] <= row["value"] <= row["high"] and row["examples"] <= LIMITS[task.suite]
            )


def test_a_task_is_shown_once_in_the_setting_with_most_demonstrations(
    built: Built, tmp_path: Path
) -> None:
    zero_shot.ZERO_SHOT.show(built, tmp_path)
    shown = re.findall(
        r"^\*\*(\S+)\*\*$", (tmp_path / "samples.md").read_text(), flags=re.MULTILINE
    )
    assert len(shown) == len(set(shown)) > 20 and {name.rpartition("_")[2] for name in shown} == {
        "few"
    }


def test_what_is_few_is_the_papers_k_and_a_published_row_is_one_of_its_tables(built: Built) -> None:
    k = {reference.task: reference.value for reference in references(metric="k", generation="gpt3")}
    for task in (task for suite in NAMES for task in tasks_of(suite)):
        for row in task.metadata.published.values():
            assert (
                task.metadata.shots
                and max(task.metadata.shots.numbers) == k[PUBLISHED_K.get(row.task, row.task)]
            )
            published = references(task=row.task, metric=row.metric, generation="gpt3")
            assert any(reference.shots == "few" for reference in published), row
    assert all("published" in row for row in results(built) if row["suite"] == "gpt3_arithmetic")
    without_a_row = {
        "quac": "QuAC",
        "squad": "SQuADv2",
        "translation": "translation",
        "analogies": "SAT analogies",
        "superglue": "SuperGLUE",
    }
    for suite, name in {**without_a_row, "coqa": "CoQA", "drop": "DROP"}.items():
        assert {
            max(task.metadata.shots.numbers)
            for task in tasks_of(f"gpt3_{suite}")
            if task.metadata.shots
        } == {k[name]}


def test_every_score_equals_lm_evals_own_backend(world: World, built: Built) -> None:
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM

    from gpt_model.evaluation.answer_normalisation import answer_normalised, per_token
    from gpt_model.evaluation.evaluate import evaluate

    folder = built.output / "tasks"
    model = HFLM(
        pretrained=str(world.folder / "pretrained" / "model"),
        device="cpu",
        dtype="float32",
        batch_size=16,
    )
    theirs = evaluate(model, folder, [path.stem for path in sorted(folder.glob("*.yaml"))])
    for row in (row for row in results(built) if not row["task"].startswith("SuperGLUE")):
        name = f"{row['suite']}.{row['task']}"
        if row["metric"] == "acc_per_token":
            values = per_token(theirs["samples"][name])
        elif row["metric"] == "acc_answer_norm":
            alone = theirs["samples"][name.rpartition("_")[0] + "_answers_alone"]
            values = answer_normalised(theirs["samples"][name], alone)
        else:
            assert row["value"] == pytest.approx(
                theirs["results"][name][f"{row['metric']},none"], rel=1e-4
            ), name
            continue
        assert row["value"] == pytest.approx(sum(values) / len(values)), name


def test_superglue_is_the_mean_of_its_eight_tasks_each_the_mean_of_its_metrics(
    built: Built,
) -> None:
    rows = {
        (row["task"], row["metric"]): row
        for row in results(built)
        if row["suite"] == "gpt3_superglue"
    }
    metrics = {task.name: task.metadata.average for task in tasks_of("gpt3_superglue")}
    assert (
        len(metrics) == 8
        and metrics["multirc"] == ["em", "f1"]
        and metrics["cb"] == metrics["record"] == ["acc_per_token", "f1"]
    )
    for setting in ("zero", "one", "few"):
        means = [
            sum(rows[f"{name}_{setting}", metric]["value"] for metric in task_metrics)
            / len(task_metrics)
            for name, task_metrics in metrics.items()
        ]
        row = rows[f"SuperGLUE_{setting}", "score"]
        assert (
            row["value"] == pytest.approx(sum(means) / 8, abs=1e-5)
            and row["low"] < row["value"] < row["high"]
        )
        assert (row["published"]["task"], row["published"]["metric"], row["shots"]) == (
            "SuperGLUE",
            "score",
            setting,
        )
        assert row["published"]["differs"].startswith("BoolQ on a part of its sets")
    assert references(task="SuperGLUE", metric="score", generation="gpt3")


def test_without_one_of_its_tasks_superglue_has_no_score_and_says_which() -> None:
    tasks = tasks_of("gpt3_superglue")
    scored = [
        ScoreRow("gpt3_superglue", f"{task.name}_zero", metric, 0.5)
        for task in tasks
        for metric in task.metadata.average
        if task.name != "wsc"
    ]
    zero_shot, one_shot, _ = superglue_rows(tasks, scored)
    assert isinstance(zero_shot, UnavailableRow) and isinstance(one_shot, UnavailableRow)
    assert zero_shot.task == "SuperGLUE_zero"
    assert zero_shot.reason == "it is the mean of 8 tasks, and 1 of them are not run here: wsc"
    assert one_shot.reason.startswith(
        "it is the mean of 8 tasks, and 8 of them are not run here: boolq, cb, "
    )


def test_the_papers_test_scores_have_its_average_by_the_same_rule() -> None:
    """Table 3.8: eleven scores, and 71.8."""
    table = [
        reference
        for reference in references(generation="gpt3")
        if reference.source.endswith("table 3.8") and reference.model == "gpt3-175b"
    ]
    by_task: dict[str, list[float]] = {}
    for reference in table:
        by_task.setdefault(reference.task, []).append(reference.value)
    (printed,) = by_task.pop("SuperGLUE test")
    assert len(by_task) == 8 and sum(
        sum(scores) / len(scores) for scores in by_task.values()
    ) / 8 == pytest.approx(printed, abs=0.05)


def test_f1_is_sklearns_and_a_question_is_right_if_all_its_answers_are() -> None:
    from sklearn.metrics import f1_score

    pairs = [(0, 0), (0, 1), (1, 1), (1, 0), (1, 1), (2, 0), (0, 0)]
    assert scoring.macro_f1(pairs) == pytest.approx(
        f1_score(*zip(*pairs, strict=True), average="macro")
    )
    judged = [(min(right, 1), min(predicted, 1)) for right, predicted in pairs]
    assert scoring.f1_of_answers(judged) == pytest.approx(f1_score(*zip(*judged, strict=True)))
    assert scoring.share_of_questions(
        [("a", 1.0), ("b", 1.0), ("a", 0.0), ("b", 1.0), ("c", 0.0)]
    ) == pytest.approx(1 / 3)


def test_written_answers_are_scored_by_their_data_sets_own_rules() -> None:
    none, some = {"answers": ["unanswerable"]}, {"answers": ["the red candle", "candle"]}
    assert scoring.answer_or_none(none, [" Unanswerable.\nQ:"]) == {"f1": 1.0, "em": 1.0}
    assert scoring.answer_or_none(none, [" unanswerable, I think"]) == {"f1": 0.0, "em": 0.0}
    assert scoring.answer_or_none(some, [" unanswerable"]) == {"f1": 0.0, "em": 0.0}
    assert scoring.answer_or_none(some, [" A red candle"]) == {"f1": 1.0, "em": 1.0}
    assert scoring.answer_or_none(some, [" red box"])["f1"] == pytest.approx(0.5)
    assert scoring.number_date_or_spans({"answers": [["7"], ["8"]]}, [" 8\n"]) == {
        "f1": 1.0,
        "em": 1.0,
    }
    assert (
        scoring.number_date_or_spans({"answers": [["4 candles"]]}, [" 5 candles"])["f1"] == 0.0
    )  # numbers must agree
    noun = {"referent": "The old Mr. Berg", "label": 1}
    assert scoring.referent(noun, [" mr. berg"]) == {"acc": 1.0} and scoring.referent(
        {**noun, "label": 0}, [" mr. berg"]
    ) == {"acc": 0.0}
    assert scoring.referent(noun, [" his son"]) == {"acc": 0.0} and scoring.referent(
        {**noun, "label": 0}, [" his son"]
    ) == {"acc": 1.0}
    assert scoring.translated_line({"target": "Un. Deux."}, [" Un. Deux. \nQ"]) == {
        "bleu": ("Un. Deux.", "Un. Deux.")
    }


def test_quac_asks_what_people_agree_on_and_takes_the_majority_for_there_being_no_answer() -> None:
    (task,) = tasks_of("gpt3_quac")
    assert isinstance(task.metadata.data, Dataset)
    row = {
        "title": "T",
        "section": "S",
        "passage": "A candle. CANNOTANSWER",
        "questions": ["one?", "two?", "three?"],
        "answers": {
            "texts": [
                ["red candle", "the lamp"],
                ["CANNOTANSWER", "candle"],
                ["a candle", "CANNOTANSWER", "candle"],
            ]
        },
        "first_answers": {"texts": ["red candle", "CANNOTANSWER", "a candle"]},
    }
    nothing: Any = None
    two, three = ADAPTERS["section_dialogue"]([row], nothing)
    assert (two["question"], two["answers"], two["before"]) == (
        "two?",
        ["CANNOTANSWER"],
        "Q: one?\n\nA: red candle\n\n",
    )
    assert (three["question"], three["answers"], three["passage"]) == (
        "three?",
        ["a candle", "candle"],
        "A candle.",
    )


def test_wsc_asks_of_any_noun_and_shows_only_those_that_the_pronoun_refers_to(
    tmp_path: Path,
) -> None:
    (task,) = (task for task in tasks_of("gpt3_superglue") if task.name == "wsc")
    data = task.metadata.data
    assert isinstance(data, Dataset)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_for(data)))
    source = resolved(DataSource(path=str(path)), tmp_path, tmp_path)
    here = task.metadata.model_copy(
        update={"data": data.model_copy(update={"source": source, "demonstrations": source})}
    )
    task, task_context = (
        task.model_copy(update={"metadata": here}),
        TaskContext(None, 0, tmp_path, lambda text: [*text.encode()], 2048, Silent()),
    )
    assert [row["label"] for row in rows_of(task, task_context, None)[0].rows] == [0, 1] * 4
    assert {row["referent"] for row in demonstrations_of(task, task_context)} == {
        "Berta",
        "Dora",
        "Frieda",
        "Hanna",
    }


def test_questions_are_put_as_the_paper_puts_them(built: Built) -> None:
    """Figures G.1 to G.51."""
    first_rows = {
        name: questions(built, name)[0]
        for name in (path.stem for path in (built.output / "tasks").glob("*_zero.jsonl"))
    }
    assert (
        first_rows["gpt3_arc.easy_zero"]["question"] == "Question: What is a candle for?\nAnswer:"
    )
    assert first_rows["gpt3_hellaswag.hellaswag_zero"]["question"].startswith("Painting a table: ")
    assert first_rows["gpt3_questions.triviaqa_zero"]["question"] == "Q: Who made the candle?\n\nA:"
    assert first_rows["gpt3_superglue.cb_zero"]["question"] == (
        "Anselm says that the candle was sold.\n"
        "question: the candle was sold. true, false, or neither?\nanswer:"
    )
    assert first_rows["gpt3_superglue.copa_zero"]["question"] == "Anselm took the candle because"
    assert first_rows["gpt3_superglue.copa_zero"]["choices"] == ["it was dark.", "the candle fell."]
    assert (
        first_rows["gpt3_superglue.record_zero"]["question"]
        == "Anselm and Ludwig met.\n\n- The candle was lost\n"
    )
    assert first_rows["gpt3_superglue.record_zero"]["choices"] == [
        "- Anselm lost it.",
        "- Ingo lost it.",
        "- Ludwig lost it.",
    ]
    assert first_rows["gpt3_superglue.record_zero"]["label"] == [0, 2]
    assert "the word 'bank' used" in first_rows["gpt3_superglue.wic_zero"]["question"]
    assert first_rows["gpt3_superglue.multirc_zero"]["choices"] == [
        "- [False] no one",
        "- [True] no one",
    ]
    assert first_rows["gpt3_winogrande.winogrande_zero"]["contexts"] == [
        "The candle fell on the box so the candle",
        "The candle fell on the box so the box",
    ]
    assert first_rows["gpt3_winogrande.winogrande_zero"]["target"] == " broke."
    assert (
        first_rows["gpt3_race.high_zero"]["question"]
        == "Article:\nAnselm has the candle.\n\nQ: Who has it?\n\nA:"
    )
    assert questions(built, "gpt3_race.high_zero")[1]["question"] == (
        "Article:\nAnselm has the candle.\n\nQ: Who has it?\n\nA: Anselm\n\nQ: It is _ .\n\nA:"
    )
    assert first_rows["gpt3_scramble.reversed_words_zero"]["demonstrations"] == (
        "Please unscramble the letters into a word, and write that word:"
    )
    assert first_rows["gpt3_analogies.sat_analogies_zero"]["question"] == "candle is to Anselm as"
    assert first_rows["gpt3_analogies.sat_analogies_zero"]["choices"][1] == "hall is to yard"
    assert first_rows["gpt3_drop.drop_zero"]["question"] == (
        "Passage: Anselm and Ludwig sold 2 of 9 candles in May.\n"
        "Question: How many were left?\nAnswer:"
    )
    assert first_rows["gpt3_translation.english_to_romanian_zero"]["question"] == (
        "Q: What is the Romanian translation of The candle fell.\n\nA:"
    )
    assert (
        questions(built, "gpt3_translation.german_to_english_few")[0]["question"]
        == "Der candle fiel. ="
    )
    assert first_rows["gpt3_superglue.wsc_zero"]["demonstrations"].endswith(
        "the pronoun marked in *bold* refers to.\n=====\n"
    )
    assert first_rows["gpt3_superglue.wsc_zero"]["question"] == (
        "Passage: Anselm gave Ludwig the candle since *he* had two.\n"
        'Question: In the passage above, what does the pronoun "*he*" refer to?\nAnswer:'
    )
    second = {
        name: questions(built, f"gpt3_{name}_zero")[1]["question"]
        for name in ("coqa.coqa", "quac.quac", "squad.squad_v2")
    }
    assert second["coqa.coqa"].endswith(
        "\n\n\nQ: Who has the candle?\n\nA: Anselm\n\nQ: Where is it?\n\nA:"
    )
    assert second["quac.quac"] == (
        "TITLE: The candle - History\nPARAGRAPH: Anselm made the candle in the garden.\n\n"
        "Q: Who made it?\n\nA: Anselm\n\nQ: When?\n\nA:"
    )
    assert second["squad.squad_v2"] == (
        "Title: The candle\n\nBackground: Anselm made the candle.\n\n"
        "Q: Who made it?\n\nA: Anselm\n\nQ: Who sold it?\n\nA:"
    )
    one_shot = questions(built, "gpt3_lambada.lambada_one")[0]
    assert (
        one_shot["question"].endswith(" ____. ->")
        and one_shot["demonstrations"].count(" ____. -> ") == one_shot["shots"] == 1
    )


def test_nothing_demonstrates_itself_and_everything_fits(world: World, built: Built) -> None:
    for path in (built.output / "tasks").glob("*_few.jsonl"):
        for row in questions(built, path.stem):
            if "contexts" in row:
                continue
            assert row["question"] not in row["demonstrations"].removesuffix(row["question"]), (
                path.stem
            )
            keys = yaml.safe_load(path.with_suffix(".yaml").read_text().replace("!function", ""))
            new = (keys.get("generation_kwargs") or {}).get("max_gen_toks", 0)
            endings = [f" {choice}" for choice in row["choices"]] if "choices" in row else [""]
            longest = max(
                len(world.tokenizer.encode(row["demonstrations"] + row["question"] + ending))
                for ending in endings
            )
            assert longest <= CONTEXT - new or row["shots"] == 0


def test_suites_on_packages_and_made_up_ones_run_without_the_hub_and_others_say_why(
    world: World, tmp_path: Path
) -> None:
    built = world.run(
        tmp_path / "out", [*LOCAL, "gpt3_hellaswag", "gpt3_storycloze"], dict.fromkeys(LOCAL, 2)
    )
    rows = results(built)
    not_run = {row["task"]: row["not_run"] for row in rows if "not_run" in row}
    assert (
        set(not_run) == {"hellaswag", "storycloze"}
        and "https://cs.rochester.edu/nlp/rocstories" in not_run["storycloze"]
    )
    assert {row["suite"] for row in rows if "not_run" not in row} == set(LOCAL)
    assert {row["task"] for row in rows if row["suite"] == "gpt3_piqa"} == {
        "piqa_zero",
        "piqa_one",
        "piqa_few",
    }


def test_without_demonstrations_the_zero_shot_score_stays(world: World, tmp_path: Path) -> None:
    (task,) = tasks_of("gpt3_hellaswag")
    path = tmp_path / "rows.jsonl"
    assert isinstance(task.metadata.data, Dataset)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_for(task.metadata.data)))
    rows = results(
        world.run(tmp_path / "out", ["gpt3_hellaswag"], {}, {"gpt3_hellaswag/hellaswag": str(path)})
    )
    assert [row["task"] for row in rows if "not_run" not in row] == ["hellaswag_zero"] * 2
    (missing,) = [row["not_run"] for row in rows if "not_run" in row]
    assert "{gpt3_hellaswag/hellaswag/demonstrations: PATH}" in missing


def test_what_was_trained_on_stands_beside_each_score(world: World, tmp_path: Path) -> None:
    """The world's own held-out passages are new text; a question copied from a training document is
    found, and is dirty.
    """
    trained = next(documents.read(world.folder / "corpus", "first", "training"))
    words = " ".join(trained.split()[:40])
    fresh = (
        "An unheard of story that nobody wrote down and that goes on without any of it being "
        "anywhere at all ends in the"
    )
    path = tmp_path / "rows.jsonl"
    texts = [
        f"{words} {trained.split()[40]}",
        *(f"{fresh} {thing}" for thing in ("lamp", "stove", "ditch")),
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    files = {"gpt3_lambada/lambada": str(path), "gpt3_lambada/lambada/demonstrations": str(path)}
    built = world.run(tmp_path / "out", ["gpt3_lambada", "held_out"], {"held_out": 8}, files)
    rows = [row for row in results(built) if row["suite"] == "gpt3_lambada"]
    assert len(rows) == 6
    for row in rows:  # the demonstrations, one of which is the copied one, are not counted
        assert (
            row["overlap_percent"] == pytest.approx(100 * 34 / (34 + 3 * 17), rel=1e-5)
            and row["ngrams"] == 34 + 3 * 17
        )
        overlap = row["contamination"]
        assert (
            overlap["run"],
            overlap["dirty"]["examples"],
            overlap["clean"]["examples"],
            overlap["clean_percent"],
        ) == (13, 1, 3, 75)
        assert (
            "40 % of its 8-grams stand in the training text" in row["note"]
            and "75 % of examples" in row["note"]
        )
    zero_shot.ZERO_SHOT.show(built, tmp_path)
    table = (tmp_path / "training_text.md").read_text()
    assert "| gpt3_lambada | lambada_few | acc |" in table and "| 40 % | 13 | 75 % |" in table
