"""The stages `demonstrations`, `comparisons` and `prompts`: splits that do not cross, an account of
every row, places and recipes.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from small_recipes import TALK
from test_human_forms import jsonl
from training_ranks import RecordingProgress

from assets.contract import Artifact, Built, Stage
from assets.recipe.recipe import load_recipe
from assets.recipe.sections import AlignmentSection
from assets.stages.human_data import COMPARISONS, DEMONSTRATIONS, PROMPTS
from gpt_model.data import hub
from gpt_model.errors import Unreachable, UserError
from gpt_model.progress import Silent
from gpt_model.rlhf import records
from gpt_model.rlhf.readers.record_readers import read_source
from gpt_model.rlhf.readers.source import HumanSource

SENTENCES = [
    {"text": f"the {word} sees tree {n} and the king", "rating": n % 7 - 3}
    for n in range(60)
    for word in ("sailor", "baker")
]
RATED = {
    "name": "reviews",
    "path": "reviews.jsonl",
    "form": "rated",
    "instruction": "Write.",
    "ranked": 4,
}
TEXTS = {**RATED, "form": "text"}


@pytest.fixture
def folder(tmp_path: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder with rows in it."""
    monkeypatch.setenv("LINEAGE_DOWNLOADS", str(downloads))
    jsonl(tmp_path / "reviews.jsonl", SENTENCES)
    rows = [{"instruction": f"What is {n}?", "response": f"It is {n}."} for n in range(40)]
    jsonl(tmp_path / "said.jsonl", rows)
    return tmp_path


def pinned(folder: Path, stage: Stage, *sources: dict[str, Any], **more: Any) -> dict[str, Any]:
    section = {
        "demonstrations": {
            "sources": [{"name": "said", "path": "said.jsonl", "form": "instruction"}]
        }
    }
    section[stage.name] = {"sources": list(sources), **more}
    config = getattr(AlignmentSection.model_validate(section), stage.name).model_dump(mode="json")
    return dict(stage.pin({**config, "split_seed": 0}, folder))


def build(
    folder: Path,
    stage: Stage,
    *sources: dict[str, Any],
    inputs: dict[str, Artifact] | None = None,
    **more: Any,
) -> Built:
    output = folder / f"made-{stage.name}-{len(list(folder.iterdir()))}"
    output.mkdir()
    config = pinned(folder, stage, *sources, **more)
    return Built(
        config,
        inputs or {},
        output,
        stage.run(config, inputs or {}, output, RecordingProgress(stage.name)),
        {},
        (),
    )


def artifact(built: Built) -> Artifact:
    return Artifact(built.output, "", "", "", built.config, built.metrics)


def failed(stage: Stage, built: Built) -> dict[str, str]:
    verdicts = {check.name: check.verdict(built) for check in stage.checks}
    return {name: verdict.summary for name, verdict in verdicts.items() if not verdict.passed}


def report(built: Built) -> dict[str, Any]:
    sources: dict[str, Any] = json.loads((built.output / "report.json").read_text())["sources"]
    return sources


def reading_of(made: Artifact) -> dict[str, list[records.Ranking]]:
    return {
        split: records.read_comparisons(made.path, split)
        for split in ("training", "held_out", "judge")
    }


def rankings(built: Built) -> dict[str, list[records.Ranking]]:
    return reading_of(artifact(built))


# --- comparisons ---


def test_no_sentence_is_in_two_rankings_and_what_is_left_over_is_counted(folder: Path) -> None:
    built = build(folder, COMPARISONS, RATED, held_out=0.2, judge=0.3)
    made = rankings(built)
    every = [ranking for split in made.values() for ranking in split]
    texts = [response.text for ranking in every for response in ranking.responses]
    assert {len(ranking.responses) for ranking in every} == {4} and len(texts) == len(set(texts))
    left = report(built)["reviews"]["left_out"].get("too few left to be set against", {"count": 0})[
        "count"
    ]
    assert len(texts) + left == len(SENTENCES) and 0 < left <= 9
    assert all(made.values()) and not failed(COMPARISONS, built).keys() - {"enough"}
    rating: dict[Any, Any] = {row["text"]: row["rating"] for row in SENTENCES}
    for ranking in every:
        assert all(
            rating[ranking.responses[a].text] > rating[ranking.responses[b].text]
            for a, b in ranking.pairs()
        )
        assert all(
            (a.rank == b.rank) == (rating[a.text] == rating[b.text])
            for a in ranking.responses
            for b in ranking.responses
        )
    pairs = sum(len(ranking.pairs()) for ranking in made["training"])
    assert (
        built.metrics["training_pairs"]
        == pairs
        == 6 * len(made["training"]) - built.metrics["training_ties"]
    )


def test_a_sentence_of_two_sources_is_in_one_ranking(folder: Path) -> None:
    built = build(
        folder, COMPARISONS, {**RATED, "name": "some", "part": [0.0, 0.5]}, RATED, held_out=0.2
    )
    texts = [
        response.text
        for split in rankings(built).values()
        for ranking in split
        for response in ranking.responses
    ]
    assert len(texts) == len(set(texts)) and not failed(COMPARISONS, built).keys() - {"enough"}


def test_a_sentence_planted_in_two_splits_fails_the_check(folder: Path) -> None:
    built = build(folder, COMPARISONS, RATED, held_out=0.2)
    line = (built.output / "training.jsonl").read_text().splitlines()[0]
    with (built.output / "held_out.jsonl").open("a") as file:
        file.write(line + "\n")
    assert failed(COMPARISONS, built)["splits_do_not_cross"].startswith(
        "4 are in more than one split"
    )


def test_equal_answers_to_different_questions_do_not_cross(folder: Path) -> None:
    rows = [
        {"prompt": f"Is it {n}?", "responses": ["Yes.", "No."], "scores": [1, n % 2]}
        for n in range(40)
    ]
    jsonl(folder / "scored.jsonl", rows)
    source = {
        "name": "scored",
        "path": "scored.jsonl",
        "form": "rankings",
        "columns": {"scores": "scores"},
    }
    built = build(folder, COMPARISONS, source, held_out=0.3)
    assert failed(COMPARISONS, built) == {} or set(failed(COMPARISONS, built)) == {"enough"}
    assert (
        built.metrics["training_ties"]
        == built.metrics["training"] - built.metrics["training_pairs"]
        > 0
    )


def test_rows_of_one_prompt_are_one_line_and_every_row_is_counted(folder: Path) -> None:
    """Ten people on each of six prompts, who do not agree; two of a prompt's three answers are in
    each row.
    """
    rows = [
        {
            "prompt": f"Is it {n % 6}?",
            "responses": ["Yes.", "No.", "Who knows."][n // 6 % 2 :][:2],
            "scores": [n % 5, 2],
        }
        for n in range(60)
    ]
    jsonl(folder / "scored.jsonl", rows)
    source = {
        "name": "scored",
        "path": "scored.jsonl",
        "form": "rankings",
        "columns": {"scores": "scores"},
    }
    built = build(folder, COMPARISONS, source, held_out=0.3)
    made = [item for split in rankings(built).values() for item in split]
    assert len({item.prompt for item in made}) == len(made) == 6 and failed(
        COMPARISONS, built
    ).keys() <= {"enough"}
    assert report(built)["scored"]["kept"] == 60 == sum(len(item.orders()) for item in made)
    assert all(
        len({response.text for response in item.responses}) == len(item.responses) == 3
        for item in made
    )
    expected = sorted(
        (row["prompt"], *(row["responses"] if row["scores"][0] > 2 else row["responses"][::-1]))
        for row in rows
        if row["scores"][0] != 2
    )
    assert expected == sorted(
        (item.prompt[0].text, item.responses[a].text, item.responses[b].text)
        for item in made
        for a, b in item.pairs()
    )
    COMPARISONS.show(built, folder)
    assert "rank 1, –, 0, –" in (folder / "samples.md").read_text()


def test_a_prompt_that_hundreds_answer_is_as_many_lines_as_go_through_a_model(folder: Path) -> None:
    rows = [
        {"prompt": "Write a joke.", "responses": [f"Joke {n}.", f"Pun {n}."], "scores": [1, 2]}
        for n in range(150)
    ]
    jsonl(folder / "scored.jsonl", rows)
    source = {
        "name": "scored",
        "path": "scored.jsonl",
        "form": "rankings",
        "columns": {"scores": "scores"},
    }
    made = [
        item
        for split in rankings(build(folder, COMPARISONS, source, held_out=0.3)).values()
        for item in split
    ]
    assert [len(item.responses) for item in made] == [64] * 4 + [44] and sum(
        len(item.orders()) for item in made
    ) == 150


def test_answers_that_cannot_be_used_are_dropped_by_themselves_and_stand_on_the_page(
    folder: Path,
) -> None:
    rows = [
        {
            "prompt": f"Is it {n}?",
            "responses": ["Yes.", "No.", "" if n == 7 else "Who knows."],
            "scores": [1, 2, 3],
        }
        for n in range(30)
    ]
    jsonl(folder / "scored.jsonl", rows)
    source = {
        "name": "scored",
        "path": "scored.jsonl",
        "form": "rankings",
        "columns": {"scores": "scores"},
    }
    built = build(folder, COMPARISONS, source, held_out=0.3)
    assert not failed(COMPARISONS, built) and report(built)["scored"]["kept"] == 30
    COMPARISONS.show(built, folder)
    record = (
        "30; dropped of their answers: a missing answer: 1 (first: scored.jsonl, row 8: answer "
        "3 of 3 is empty, or no text)"
    )
    assert record in (folder / "sources.md").read_text()


def test_too_few_rated_texts_to_rank_is_a_mistake_that_names_the_source(folder: Path) -> None:
    jsonl(folder / "reviews.jsonl", SENTENCES[:3])
    with pytest.raises(
        UserError,
        match=r"'reviews': none of its 3 rows can be used for comparisons.*too few left to be set "
        r"against",
    ) as result:
        build(folder, COMPARISONS, RATED)
    assert result.value.field is None or "sources" in result.value.field


# --- prompts ---


def prompted(folder: Path, **shares: Any) -> Built:
    shown = build(folder, DEMONSTRATIONS, {**TEXTS, "part": shares.get("shown", [0.0, 0.3])})
    judged = build(folder, COMPARISONS, {**RATED, "part": shares.get("judged", [0.3, 0.7])})
    inputs = {"demonstrations": artifact(shown), "comparisons": artifact(judged)}
    return build(folder, PROMPTS, {**TEXTS, "opening": 6, "part": [0.7, 1.0]}, inputs=inputs)


def test_prompts_are_in_neither_demonstrations_nor_comparisons(folder: Path) -> None:
    built = prompted(folder)
    assert not failed(PROMPTS, built).keys() - {"enough"}
    assert "in demonstrations or comparisons" not in report(built)["reviews"]["left_out"]
    results = [
        prompt
        for split in ("training", "held_out")
        for prompt in records.read_prompts(built.output, split)
    ]
    texts = {item.turns[-1].text + (item.rest or "") for item in results}
    assert texts and texts <= {row["text"] for row in SENTENCES}


def test_a_prompt_whose_text_was_shown_or_judged_is_left_out(folder: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"'reviews': none of its 120 rows can be used for prompts.*in demonstrations or "
        r"comparisons",
    ):
        prompted(folder, shown=[0.5, 1.0])
    built = prompted(folder, judged=[0.3, 1.0])
    ranked = {
        response.text
        for split in reading_of(built.inputs["comparisons"]).values()
        for ranking in split
        for response in ranking.responses
    }
    left = report(built)["reviews"]["left_out"]["in demonstrations or comparisons"]["count"]
    results = [
        prompt
        for split in ("training", "held_out")
        for prompt in records.read_prompts(built.output, split)
    ]
    assert left > 20 > len(results) > 0  # what was too few to be ranked was not judged
    assert not {
        item.turns[-1].text + (item.rest or "") for item in results
    } & ranked and not failed(PROMPTS, built).keys() - {"enough"}


def test_a_planted_prompt_fails_the_blocking_check(folder: Path) -> None:
    built = prompted(folder)
    rpartition = (
        records.read_demonstrations(built.inputs["demonstrations"].path, "training")[0]
        .turns[-1]
        .text.rpartition(" ")
    )
    planted = records.Prompt(
        "reviews", "x", records.read_prompts(built.output, "training")[0].turns[:1], None
    )
    words = {"source": "reviews", "id": "x", "rest": rpartition[1] + rpartition[2]}
    messages = [
        *records.as_row(planted)["messages"],
        {"role": "assistant", "content": rpartition[0]},
    ]
    with (built.output / "training.jsonl").open("a") as file:
        file.write(json.dumps({**words, "messages": messages}) + "\n")
    assert failed(PROMPTS, built)["disjoint"].startswith("1 of ")
    assert next(check for check in PROMPTS.checks if check.name == "disjoint").blocking


def test_a_row_that_the_account_lacks_fails_the_blocking_check(folder: Path) -> None:
    built = build(
        folder, DEMONSTRATIONS, {"name": "said", "path": "said.jsonl", "form": "instruction"}
    )
    assert failed(DEMONSTRATIONS, built) == {}
    path = built.output / "report.json"
    path.write_text(path.read_text().replace('"rows": 40', '"rows": 41'))
    assert failed(DEMONSTRATIONS, built)["nothing_lost"].endswith("lost: 1 of said.")


def test_a_page_says_what_was_left_out_and_shows_little_of_what_is_not_ours(folder: Path) -> None:
    rows = [
        {"instruction": "Say | it.", "response": "x" * 100},
        {"instruction": "Say.", "response": ""},
    ]
    jsonl(folder / "said.jsonl", rows)
    built = build(
        folder,
        DEMONSTRATIONS,
        {
            "name": "said",
            "path": "said.jsonl",
            "form": "instruction",
            "show_text": False,
            "licence": "CC0",
        },
    )
    DEMONSTRATIONS.show(built, folder)
    assert (
        "| said | 2 | 1 | no answer: 1 (first: said.jsonl, row 2: it is one turn, the user's) | "
        "CC0 |" in (folder / "sources.md").read_text()
    )
    assert (
        "x" * 40 in (folder / "samples.md").read_text()
        and "x" * 61 not in (folder / "samples.md").read_text()
    )


# --- places ---


def test_other_bytes_are_another_config_and_a_file_that_changed_since_is_refused(
    folder: Path,
) -> None:
    source = {"name": "said", "path": "said.jsonl", "form": "instruction"}
    first = pinned(folder, DEMONSTRATIONS, source)
    assert first == pinned(folder, DEMONSTRATIONS, source)
    jsonl(folder / "said.jsonl", [{"instruction": "Who?", "response": "No one."}])
    assert pinned(folder, DEMONSTRATIONS, source) != first
    with pytest.raises(
        UserError, match=r"said\.jsonl is no longer the file that was pinned"
    ) as result:
        DEMONSTRATIONS.run(first, {}, folder, RecordingProgress("x"))
    assert result.value.field == "sources[0].path"


def test_a_folder_in_the_hubs_layout_is_read_as_the_hub_is(folder: Path) -> None:
    (folder / "copy" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        jsonl(
            folder / "copy" / "data" / f"{split}-00000-of-00001.jsonl",
            [{"instruction": split, "response": "x"}],
        )
    built = build(
        folder,
        DEMONSTRATIONS,
        {"name": "copied", "hub": "./copy", "split": "test", "form": "instruction"},
        held_out=1e-9,
    )
    assert [
        demonstration.turns[0].text
        for demonstration in records.read_demonstrations(built.output, "training")
    ] == ["test"]


def test_a_hub_that_does_not_answer_is_said_with_the_source(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "_silent_since", float("-inf"))
    with pytest.raises(
        Unreachable, match="hub could not be asked which commit 'main' of some/data is"
    ) as result:
        pinned(
            folder,
            DEMONSTRATIONS,
            {"name": "theirs", "hub": "some/data", "revision": "main", "form": "messages"},
        )
    assert (result.value.field or "").startswith("sources[0]")


def test_a_list_in_one_json_file_and_a_tsv_without_a_header_are_rows(folder: Path) -> None:
    (folder / "alpaca.json").write_text(
        json.dumps([{"instruction": "a", "response": "b"}], indent=1)
    )
    (folder / "rows.tsv").write_text("c\td\n")
    built = build(
        folder,
        DEMONSTRATIONS,
        {"name": "alpaca", "path": "alpaca.json", "form": "instruction"},
        {
            "name": "table",
            "path": "rows.tsv",
            "form": "instruction",
            "header": ["instruction", "response"],
        },
        held_out=1e-9,
    )
    assert [
        demonstration.turns[0].text
        for demonstration in records.read_demonstrations(built.output, "training")
    ] == ["a", "c"]


def test_the_shipped_packages_are_read(folder: Path) -> None:
    """chat-tiny's conversations, a good half of which are there twice, and a labelled set as
    instructions.
    """
    recipe = load_recipe("chat-tiny").alignment
    assert recipe
    sources = [
        source.model_dump(mode="json")
        for source in recipe.demonstrations.sources
        if source.name in ("conversations", "factual_summary")
    ]
    built = build(folder, DEMONSTRATIONS, *sources)
    record = report(built)
    assert (record["conversations"]["rows"], record["conversations"]["kept"]) == (2026, 898)
    assert record["factual_summary"]["kept"] == 60 and not failed(DEMONSTRATIONS, built)


# --- recipes ---

RECIPE = f"""\
{TALK}alignment:
  demonstrations:
    sources:
"""


PAIRS = {"name": "pairs", "path": "pairs.jsonl", "form": "pairs", "columns": {"prompt": "prompt"}}


@pytest.mark.parametrize(
    ("stage", "source"),
    [
        (DEMONSTRATIONS, {"name": "a", "path": "said.jsonl", "form": "messages"}),
        (COMPARISONS, {**PAIRS, "path": "said.jsonl"}),
        (PROMPTS, {"name": "a", "path": "said.jsonl", "form": "transcript"}),
    ],
)
def test_a_column_that_the_rows_lack_is_found_as_a_build_is_planned(
    stage: Stage, source: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=f"none of its 40 rows can be used for {stage.name}"
    ) as at_plan:
        pinned(folder, stage, source)
    whole = HumanSource.model_validate(source).resolved(folder, tmp_path / "downloads")
    with pytest.raises(UserError) as as_built:
        read_source(whole, stage.name, tmp_path / "downloads", folder, Silent(), 0)
    assert str(at_plan.value) == str(as_built.value)


def test_a_plan_looks_at_the_first_rows_of_every_file_and_at_all_where_those_are_of_no_use(
    folder: Path,
) -> None:
    source = {"name": "said", "path": "said*", "form": "instruction"}
    useless = [{"instruction": "What?"}] * 150
    jsonl(folder / "said_late.jsonl", [*useless, {"instruction": "What?", "response": "That."}])
    pinned(folder, DEMONSTRATIONS, {**source, "path": "said_late.jsonl"})
    rows = "".join(f'{{"instruction": "{n}?", "response": "{n * n}"}}\n' for n in range(50_000))
    packed = gzip.compress(rows.encode())
    (folder / "said_more.jsonl.gz").write_bytes(packed[: len(packed) * 3 // 4])
    cut = pinned(folder, DEMONSTRATIONS, source)  # its damage is beyond what is looked at
    with pytest.raises(UserError, match=r"said_more\.jsonl\.gz is damaged or cut short"):
        DEMONSTRATIONS.run(cut, {}, folder, RecordingProgress("demonstrations"))
    (folder / "said_more.jsonl.gz").write_bytes(packed[:20])
    with pytest.raises(UserError, match=r"said_more\.jsonl\.gz is damaged or cut short"):
        pinned(folder, DEMONSTRATIONS, source)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            '{name: a, path: "a.jsonl"}',
            r"line 9: .*sources\[0\].*`form` is missing: what a row is, one of messages, "
            r"instruction",
        ),
        (
            '{name: a, path: "a.jsonl", form: messages, columns: {text: x}}',
            r"line 9: .*columns.*form messages has no part 'text'",
        ),
        (
            '{name: a, path: "a.jsonl", hub: b/c, form: messages}',
            "line 9: .*exactly one of package, path.*found path and hub",
        ),
        ("{name: a, form: messages}", "line 9: .*exactly one of.*found none"),
        (
            '{name: a, path: "a.jsonl", form: rated, instruction: Write.}',
            "line .*'a' has form rated, which makes no demonstrations",
        ),
        ('{name: a, path: "a.jsonl", form: message}', "line 9: .*form.*'message'"),
        ('{name: a, path: "a.jsonl", form: text}', "line 9: .*`instruction` is missing"),
        (
            '{name: a, path: "a.jsonl", form: text, instruction: " "}',
            "line 9: .*instruction.*says nothing",
        ),
        (
            '{name: a, path: "a.jsonl", form: messages, part: [0.5, 0.2]}',
            r"line 9: .*part.*\[0.5, 0.2\] is no part",
        ),
        (
            '{name: a, path: "a.jsonl", form: messages, opening: 3}',
            "line 9: .*opening.*form messages reads none",
        ),
        (
            '{name: a, package: "a==1", files: x, form: messages}',
            "line 9: .*sha256 is missing: a source with package needs it",
        ),
        ("{name: a, hub: b/c, form: messages}", "line 9: .*revision is missing"),
        ("{name: a, task: boolq, form: messages}", "line 9: .*form.*has its own"),
    ],
)
def test_a_mistake_in_a_source_is_a_sentence_with_its_place(
    tmp_path: Path, source: str, told: str
) -> None:
    (tmp_path / "talk.yaml").write_text(f"{RECIPE}      - {source}\n")
    with pytest.raises(UserError, match=rf"talk\.yaml, {told}"):
        load_recipe(str(tmp_path / "talk.yaml"))


def test_no_sources_and_two_of_one_name_are_mistakes(tmp_path: Path) -> None:
    item = '{name: a, path: "a.jsonl", form: messages}'
    for text, record in (
        ("[]", "line 8: .*sources.*should not be empty"),
        (f"[{item}, {item}]", "line 8: .*two sources are named 'a'"),
    ):
        (tmp_path / "talk.yaml").write_text(RECIPE.rstrip("\n") + f" {text}\n")
        with pytest.raises(UserError, match=rf"talk\.yaml, {record}"):
            load_recipe(str(tmp_path / "talk.yaml"))
