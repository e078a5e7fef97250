"""Rows that people wrote and judged, one by one: what each form makes of them, and what is left out
by which name.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from training_ranks import RecordingProgress

from gpt_model.data.skipped_rows import DETAIL_CHARACTERS
from gpt_model.errors import UserError
from gpt_model.rlhf.readers import record_readers
from gpt_model.rlhf.readers.parsed import ParsedRow, RowReport
from gpt_model.rlhf.readers.source import HumanSource, Purpose

ASKED, ANSWERED = "Who sees the sailor?", "The king does."
TALK = [
    ("user", ASKED),
    ("assistant", ANSWERED),
    ("user", "And the tree?"),
    ("assistant", "No one."),
]
OPENAI = [{"role": role, "content": text} for role, text in TALK]
SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in TALK
]
SPOKEN = "".join(f"\n\n{'Human' if role == 'user' else 'Assistant'}: {text}" for role, text in TALK)
QUESTION = OPENAI[:1]
HALF = (
    "half \ud83d of one"  # of a surrogate pair, which JSON's escapes can spell and no file can hold
)


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def candidates(
    folder: Path,
    rows: list[Any],
    purpose: Purpose = "demonstrations",
    name: str = "rows.jsonl",
    seed: int = 0,
    **fields: Any,
) -> tuple[list[ParsedRow], RowReport]:
    """All that rows in a file of that name come to."""
    path = folder / name
    path.write_text(json.dumps(rows)) if path.suffix in (".yaml", ".json") else jsonl(path, rows)
    source = HumanSource.model_validate({"name": "said", "path": name, **fields})
    source.check_serves(purpose)
    tied = source.resolved(folder, folder / "downloads")
    found, report = record_readers.read_source(
        tied, purpose, folder / "downloads", folder, RecordingProgress("x"), seed
    )
    assert report.rows == len(found) + report.left_out.total()
    return found, report


def said(one: ParsedRow) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in one.turns]


def ranked(one: ParsedRow) -> dict[str, int]:
    return {answer.text: answer.rank for answer in one.answers}


# --- what a row becomes ---


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("messages", {"messages": OPENAI}),
        ("messages", {"messages": SHAREGPT}),
        ("transcript", {"text": SPOKEN}),
        ("transcript", {"text": SPOKEN.strip()}),
        ("conversations", {"conversations": [[text for _, text in TALK]]}),
    ],
)
def test_a_dialogue_is_the_same_in_every_form(tmp_path: Path, form: str, row: Any) -> None:
    assert said(candidates(tmp_path, [row], form=form)[0][0]) == TALK
    assert said(candidates(tmp_path, [row], "prompts", form=form)[0][0]) == TALK[:3]


@pytest.mark.parametrize("form", ["messages", "transcript", "conversations"])
def test_a_last_turn_that_nobody_answered_is_a_prompt_and_no_demonstration(
    tmp_path: Path, form: str
) -> None:
    """And both have one key, so that shares apart do not both have it."""
    spoken = SPOKEN.rpartition("\n\nAssistant:")[0]
    row = {
        "messages": OPENAI[:3],
        "text": spoken,
        "conversations": [[text for _, text in TALK[:3]]],
    }
    [shown], report = candidates(tmp_path, [row], form=form)
    [asked], _ = candidates(tmp_path, [row], "prompts", form=form)
    assert (said(shown), said(asked)) == (TALK[:2], TALK[:3]) and shown.key == asked.key == ASKED
    assert report.shortened == 1


def test_an_instruction_has_its_input_below_it_where_there_is_one(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add them.", "instances": [{"input": "2 and 3", "output": "5"}]},
        {"instruction": "Say a colour.", "instances": [{"input": "", "output": "Red."}]},
    ]
    columns = {
        "prompt": "instruction",
        "input": "instances.0.input",
        "response": "instances.0.output",
    }
    found, _ = candidates(tmp_path, rows, form="instruction", columns=columns)
    assert [said(one) for one in found] == [
        [("user", "Add them.\n\n2 and 3"), ("assistant", "5")],
        [("user", "Say a colour."), ("assistant", "Red.")],
    ]
    asked, _ = candidates(tmp_path, rows, "prompts", form="instruction", columns=columns)
    assert [said(one) for one in asked] == [said(one)[:1] for one in found]


def test_columns_that_are_listed_are_joined(tmp_path: Path) -> None:
    row = {"title": "A sailor", "body": "He sees the tree.", "short": "Sees."}
    [one], _ = candidates(
        tmp_path,
        [row],
        form="instruction",
        columns={"prompt": ["title", "body"], "response": "short"},
    )
    assert said(one)[0] == ("user", "A sailor\n\nHe sees the tree.")


def test_lines_that_yaml_has_other_words_for_are_what_was_said(tmp_path: Path) -> None:
    (tmp_path / "talk.yml").write_text(
        "categories: [x]\nconversations:\n- - Is it?\n  - Yes\n- - How many?\n  - 42\n"
    )
    source = HumanSource(name="said", path="talk.yml", form="conversations")
    found, _ = record_readers.read_source(
        source.resolved(tmp_path, tmp_path),
        "demonstrations",
        tmp_path,
        tmp_path,
        RecordingProgress("x"),
        0,
    )
    assert [said(one)[1][1] for one in found] == ["Yes", "42"]
    assert [one.id for one in found] == [
        "talk.yml, row 1, conversation 1",
        "talk.yml, row 1, conversation 2",
    ]


TEXT: dict[str, Any] = {"form": "text", "instruction": "Write."}


def test_a_text_is_an_answer_and_its_first_words_are_a_prompt(tmp_path: Path) -> None:
    rows, fields = [{"text": " the king  sees\nthe tree "}], TEXT
    [shown], _ = candidates(tmp_path, rows, **fields)
    [asked], _ = candidates(tmp_path, rows, "prompts", opening=3, **fields)
    assert said(shown) == [("user", "Write."), ("assistant", "the king  sees\nthe tree")]
    assert (
        said(asked) == [("user", "Write."), ("assistant", "the king  sees")]
        and asked.rest == "\nthe tree"
    )
    assert shown.key == asked.key
    with pytest.raises(
        UserError,
        match=r"none of its 1 rows can be used for prompts.*too short to be gone on with: 1, the "
        r"first rows\.js",
    ):
        candidates(tmp_path, rows, "prompts", opening=5, **fields)


PAIRS: dict[str, tuple[dict[str, Any], Any]] = {
    "transcripts": ({"chosen": SPOKEN, "rejected": SPOKEN.replace("No one.", "I do.")}, TALK[:3]),
    "messages": (
        {"chosen": OPENAI, "rejected": [*OPENAI[:3], {"role": "assistant", "content": "I do."}]},
        TALK[:3],
    ),
    "prompt of text": (
        {"asked": "And the tree?", "chosen": "No one.", "rejected": "I do."},
        [("user", "And the tree?")],
    ),
    "prompt of messages": (
        {
            "asked": OPENAI[:3],
            "chosen": OPENAI[3:],
            "rejected": [{"role": "assistant", "content": "I do."}],
        },
        TALK[:3],
    ),
}


@pytest.mark.parametrize("layout", PAIRS)
def test_a_pair_is_its_prompt_with_the_better_answer_first(tmp_path: Path, layout: str) -> None:
    row, prompt = PAIRS[layout]
    fields: dict[str, Any] = {
        "form": "pairs",
        "columns": {"prompt": "asked"} if "asked" in row else {},
    }
    [one], _ = candidates(tmp_path, [row], "comparisons", **fields)
    assert said(one) == prompt and ranked(one) == {"No one.": 0, "I do.": 1}
    [asked], _ = candidates(tmp_path, [row], "prompts", **fields)
    assert said(asked) == prompt and asked.key == one.key


@pytest.mark.parametrize(
    ("tie", "ranks"), [(True, (0, 0)), ("false", (0, 1)), ("1", (0, 0)), (None, (0, 1))]
)
def test_a_tie_of_a_pair_is_two_equal_ranks(
    tmp_path: Path, tie: Any, ranks: tuple[int, int]
) -> None:
    row = {"q": ASKED, "chosen": "a", "rejected": "b", "even": tie}
    [one], _ = candidates(
        tmp_path, [row], "comparisons", form="pairs", columns={"prompt": "q", "tie": "even"}
    )
    assert tuple(answer.rank for answer in one.answers) == ranks


@pytest.mark.parametrize(
    ("judged", "columns", "ranks"),
    [
        (
            {"responses": ["a", "b", "c"], "ranks": [3, 1, 3]},
            {"ranks": "ranks"},
            {"a": 1, "b": 0, "c": 1},
        ),
        (
            {"responses": ["a", "b", "c"], "scores": [0.5, 2, -1]},
            {"scores": "scores"},
            {"a": 1, "b": 0, "c": 2},
        ),
        ({"responses": ["a", "b", "c"], "best": 2}, {"choice": "best"}, {"a": 1, "b": 1, "c": 0}),
        (
            {"responses": [{"t": "a", "r": 2}, {"t": "b", "r": 1}]},
            {"text": "t", "ranks": "r"},
            {"a": 1, "b": 0},
        ),
    ],
)
def test_answers_are_ranked_by_ranks_scores_or_a_choice(
    tmp_path: Path, judged: Any, columns: Any, ranks: dict[str, int]
) -> None:
    [one], _ = candidates(
        tmp_path, [{"prompt": ASKED, **judged}], "comparisons", form="rankings", columns=columns
    )
    assert said(one) == TALK[:1] and ranked(one) == ranks
    if "scores" in columns:
        assert [answer.rating for answer in one.answers] == [0.5, 2.0, -1.0]


def test_comparisons_of_summaries_are_read_as_they_are_published(tmp_path: Path) -> None:
    """The layout of summarize-from-feedback (Stiennon et al. 2020)."""
    row = {
        "info": {"title": "Sailor", "post": "A sailor sees a tree."},
        "summaries": [{"text": "Ship."}, {"text": "Tree."}],
        "choice": 1,
    }
    columns = {
        "prompt": ["info.title", "info.post"],
        "responses": "summaries",
        "text": "text",
        "choice": "choice",
    }
    [one], _ = candidates(
        tmp_path, [row], "comparisons", form="rankings", columns=columns, instruction="Summarise."
    )
    assert said(one) == [("user", "Summarise.\n\nSailor\n\nA sailor sees a tree.")] and ranked(
        one
    ) == {"Ship.": 1, "Tree.": 0}


def message(own: Any, parent: Any, role: str, text: str, rank: Any = None) -> dict[str, Any]:
    return {"message_id": own, "parent_id": parent, "role": role, "text": text, "rank": rank}


TREE = [
    message("a", None, "prompter", ASKED),
    message("b", "a", "assistant", "I do.", 1),
    message("c", "a", "assistant", ANSWERED, 0),
    message("d", "c", "prompter", "And the tree?"),
    message("e", "d", "assistant", "No one."),
]


@pytest.mark.parametrize("name", ["tree.jsonl", "tree.csv"])
def test_a_tree_is_its_ways_from_the_root(tmp_path: Path, name: str) -> None:
    if name.endswith("csv"):  # which writes no number as one, and nothing as nothing
        lines = [
            ",".join(str("" if value is None else value) for value in row.values())
            for row in [dict(zip(TREE[0], TREE[0], strict=True)), *TREE]
        ]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    else:
        jsonl(tmp_path / name, TREE)
    source = HumanSource(name="said", path=name, form="tree").resolved(tmp_path, tmp_path)
    shown, asked, judged = (
        record_readers.read_source(source, purpose, tmp_path, tmp_path, RecordingProgress("x"), 0)
        for purpose in ("demonstrations", "prompts", "comparisons")
    )
    assert [said(one) for one in shown[0]] == [TALK[:2], TALK]
    assert [said(one) for one in asked[0]] == [TALK[:1], TALK[:3]]
    assert [(said(one), ranked(one)) for one in judged[0]] == [
        (TALK[:1], {"I do.": 1, ANSWERED: 0})
    ]
    assert {one.key for found, _ in (shown, asked, judged) for one in found} == {
        ASKED
    }  # a tree stays together
    assert {reason: one["count"] for reason, one in shown[1].left_out.items()} == {
        "not the assistant's": 2,
        "not the best answer": 1,
    }
    assert judged[1].left_out["fewer than two answers with a rank"]["count"] == 1


def test_a_dialogue_that_is_there_twice_is_shown_once(tmp_path: Path) -> None:
    rows = [{"messages": OPENAI}, {"messages": OPENAI[:2]}, {"messages": SHAREGPT}]
    found, report = candidates(tmp_path, rows, form="messages")
    assert [said(one) for one in found] == [TALK, TALK[:2]]
    assert report.left_out == {
        "a dialogue that is there already": {"count": 1, "first": "rows.jsonl, row 3"}
    }


# --- what is left out ---

GOOD = {
    "messages": {"messages": OPENAI},
    "instruction": {"instruction": ASKED, "response": ANSWERED},
    "transcript": {"text": SPOKEN},
    "pairs": {"chosen": SPOKEN, "rejected": SPOKEN + " Or so."},
    "rankings": {"prompt": ASKED, "responses": ["a", "b"], "ranks": [0, 1]},
    "rated": {"text": "fine", "rating": 1},
    "tree": TREE[0],
}
BAD: list[tuple[str, Any, str, str]] = [
    (
        "messages",
        {"messages": [OPENAI[1], OPENAI[0]]},
        "roles out of order",
        "turn 1 is of role 'assistant'",
    ),
    (
        "messages",
        {"messages": [OPENAI[0], {"role": "assistant", "content": " "}]},
        "an empty turn",
        r"turn 2 \(assistant\) says nothing",
    ),
    (
        "messages",
        {"messages": [OPENAI[0], {"role": "assistant", "content": 7}]},
        "an empty turn",
        "turn 2",
    ),
    (
        "messages",
        {"messages": [{"role": "narrator", "content": "Lo."}, OPENAI[1]]},
        "an unknown role",
        "'narrator'",
    ),
    ("messages", {"messages": "hello"}, "no list of messages", "found str"),
    ("messages", {"messages": ["hello"]}, "no list of messages", ""),
    ("messages", {"other": OPENAI}, "no list of messages", "found NoneType"),
    ("messages", {"messages": []}, "no turns", ""),
    ("messages", {"messages": QUESTION}, "no answer", "the user's"),
    (
        "messages",
        {"messages": [*QUESTION, {"role": "assistant", "content": HALF}]},
        "half a character",
        "a lone surrogate after '.*half '",
    ),
    (
        "messages",
        {"messages": [{"role": HALF * 99_999, "content": "x"}]},
        "an unknown role",
        r"\\ud83d",
    ),
    (
        "instruction",
        {"instruction": " ", "response": "x"},
        "nothing in 'instruction'",
        "its columns are instruction, response",
    ),
    (
        "instruction",
        {"instruction": ["x"], "response": "x"},
        "no text in 'instruction'",
        "holds list",
    ),
    ("instruction", {"instruction": ASKED, "response": ""}, "no answer", ""),
    ("transcript", {"text": "hello"}, "no transcript", "does not begin with"),
    (
        "transcript",
        {"text": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c"},
        "roles out of order",
        "turn 2",
    ),
    ("pairs", {"chosen": SPOKEN, "rejected": SPOKEN}, "equal answers", "No one"),
    (
        "pairs",
        {"chosen": SPOKEN, "rejected": SPOKEN.replace(ASKED, "Who?")},
        "dialogues that part before the last answer",
        "",
    ),
    ("pairs", {"chosen": SPOKEN}, "a missing answer", "not there"),
    ("pairs", {"chosen": "", "rejected": SPOKEN}, "a missing answer", "empty"),
    (
        "pairs",
        {"chosen": SPOKEN, "rejected": SPOKEN.replace("No one.", "")},
        "a missing answer",
        "empty",
    ),
    (
        "pairs",
        {"chosen": SPOKEN, "rejected": "\n\nHuman: a"},
        "a missing answer",
        "does not end with the assistant",
    ),
    ("pairs", {"chosen": [], "rejected": []}, "a missing answer", ""),
    (
        "rankings",
        {"prompt": ASKED, "responses": ["a", "A b", "a "], "ranks": [0, 1, 2]},
        "equal answers",
        "'a'",
    ),
    (
        "rankings",
        {"prompt": ASKED, "responses": ["a", None], "ranks": [0, 1]},
        "a missing answer",
        "",
    ),
    (
        "rankings",
        {"prompt": ASKED, "responses": ["a"], "ranks": [0]},
        "fewer than two answers",
        "there is 1",
    ),
    (
        "rankings",
        {"prompt": ASKED, "responses": ["a", "b"], "ranks": [0]},
        "no ranks",
        r"2 answers have \[0\]",
    ),
    ("rankings", {"prompt": ASKED, "responses": ["a", "b"], "ranks": [0, "x"]}, "no ranks", ""),
    (
        "rankings",
        {"prompt": ASKED, "responses": "a or b", "ranks": [0, 1]},
        "no list of answers",
        "found str",
    ),
    ("rankings", {"responses": ["a", "b"], "ranks": [0, 1]}, "nothing in 'prompt'", ""),
    ("rated", {"text": "fine", "rating": "good"}, "no number for a rating", "found 'good'"),
    ("rated", {"text": "fine", "rating": "nan"}, "no number for a rating", ""),
    ("rated", {"text": "fine"}, "nothing in 'rating'", ""),
    ("rated", {"text": HALF, "rating": 1}, "half a character", ""),
    (
        "tree",
        message("z", "y", "prompter", "x"),
        "a parent that is not there",
        "'z' has the parent 'y'",
    ),
    ("tree", message("z", "z", "prompter", "x"), "a message that is its own parent", "'z'"),
    ("tree", message(None, None, "prompter", "x"), "no id", ""),
    ("tree", message(["list"], None, "assistant", "x"), "not the user's", ""),
]


@pytest.mark.parametrize(
    ("form", "row", "reason", "told"),
    BAD,
    ids=[f"{form}-{reason}-{n}" for n, (form, _, reason, _) in enumerate(BAD)],
)
def test_a_row_that_cannot_be_used_is_named_and_the_others_are_kept(
    tmp_path: Path, form: str, row: Any, reason: str, told: str
) -> None:
    purpose: Purpose = (
        "comparisons"
        if form in ("pairs", "rankings", "rated")
        else "prompts"
        if form == "tree"
        else "demonstrations"
    )
    fields = (
        {"instruction": "Write."}
        if form == "rated"
        else {"columns": {"ranks": "ranks"}}
        if form == "rankings"
        else {}
    )
    bad = [row] if form == "tree" else [row, row]  # two messages of one id would be told as that
    found, report = candidates(tmp_path, [GOOD[form], *bad], purpose, form=form, **fields)
    assert len(found) == 1 and list(report.left_out) == [reason]
    first = report.left_out[reason]["first"]
    assert first.startswith("rows.jsonl, row 2") and len(first) <= DETAIL_CHARACTERS + 20
    first.encode()
    assert re.search(told, first)


NINE = ["a", "b", "c", "d", "e", "f", "g", "h", "i"]


@pytest.mark.parametrize(
    ("bad", "rank", "left", "told"),
    [
        ("", 3, [text for text in NINE if text != "d"], {"a missing answer": 1}),
        (None, 3, [text for text in NINE if text != "d"], {"a missing answer": 1}),
        (HALF, 3, [text for text in NINE if text != "d"], {"half a character": 1}),
        (
            " c",
            2,
            [text for text in NINE if text != "d"],
            {"equal answers": 1},
        ),  # and its rank is c's: one of them stays
        (
            "c ",
            3,
            [text for text in NINE if text not in "cd"],
            {"equal answers": 2},
        ),  # which is it?
    ],
)
def test_one_bad_answer_does_not_lose_the_ranking(
    tmp_path: Path, bad: Any, rank: int, left: list[str], told: dict[str, int]
) -> None:
    row = {
        "prompt": ASKED,
        "responses": [*NINE[:3], bad, *NINE[4:]],
        "ranks": [0, 1, 2, rank, 4, 5, 6, 7, 8],
    }
    [one], report = candidates(
        tmp_path, [row], "comparisons", form="rankings", columns={"ranks": "ranks"}
    )
    assert ranked(one) == {text: place for place, text in enumerate(left)} and not report.left_out
    assert {reason: dropped["count"] for reason, dropped in report.dropped.items()} == told
    assert all(
        dropped["first"].startswith("rows.jsonl, row 1: ") for dropped in report.dropped.values()
    )


def test_an_empty_answer_of_a_tree_does_not_lose_its_siblings(tmp_path: Path) -> None:
    tree = [*TREE, message("f", "a", "assistant", " ", 2)]
    [one], report = candidates(tmp_path, tree, "comparisons", form="tree")
    assert (
        ranked(one) == {"I do.": 1, ANSWERED: 0}
        and report.dropped["a missing answer"]["count"] == 1
    )


def test_messages_of_one_id_are_left_out(tmp_path: Path) -> None:
    found, report = candidates(tmp_path, [*TREE, TREE[3]], "prompts", form="tree")
    assert [said(one) for one in found] == [TALK[:1]]
    assert report.left_out["an id that is there twice"] == {
        "count": 2,
        "first": "rows.jsonl, row 4: message 'd'",
    }


def test_a_choice_of_no_answer_and_a_tie_that_is_neither_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"prompt": ASKED, "responses": ["a", "b"], "choice": choice}
        for choice in (1, 2, -1, True, "0", None)
    ]
    found, report = candidates(
        tmp_path, rows, "comparisons", form="rankings", columns={"choice": "choice"}
    )
    assert len(found) == 1 and report.left_out["no such choice"]["count"] == 5
    pairs = [
        {"q": ASKED, "chosen": "a", "rejected": "b", "tie": tie}
        for tie in [False, "perhaps", "no tie"]
    ]
    found, report = candidates(
        tmp_path, pairs, "comparisons", form="pairs", columns={"prompt": "q", "tie": "tie"}
    )
    assert len(found) == 1 and report.left_out["neither true nor false for a tie"][
        "first"
    ].endswith("row 2: found 'perhaps'")


def test_a_conversation_that_is_none_is_left_out_and_the_others_of_its_row_are_kept(
    tmp_path: Path,
) -> None:
    rows = [
        {"conversations": [["a", "b"], "c", ["d"], [], ["e", "f", "g"]]},
        {"conversations": None},
    ]
    found, report = candidates(tmp_path, rows, form="conversations")
    assert [said(one)[0][1] for one in found] == ["a", "e"] and report.shortened == 1
    assert {reason: one["count"] for reason, one in report.left_out.items()} == {
        "no list of turns": 2,
        "no answer": 1,
        "no turns": 1,
    }
    assert (
        report.left_out["no list of turns"]["first"]
        == "rows.jsonl, row 1, conversation 2: a conversation is str"
    )


def test_a_huge_row_is_kept_whole(tmp_path: Path) -> None:
    answer = "the king sees the tree. " * 100_000
    [one], _ = candidates(
        tmp_path, [{"instruction": ASKED, "response": answer}], form="instruction"
    )
    assert one.turns[1].text == answer.strip()


def test_a_source_none_of_whose_rows_can_be_used_is_named_with_the_reasons(tmp_path: Path) -> None:
    rows = [{"messages": QUESTION}, {"messages": QUESTION}, {"text": "x"}]
    with pytest.raises(
        UserError,
        match=r"'said': none of its 3 rows .*demonstrations.*no answer: 2, the first rows.jsonl, "
        r"row 1.*no list",
    ):
        candidates(tmp_path, rows, form="messages")
    with pytest.raises(UserError, match="'said' has no rows, so there are no demonstrations"):
        candidates(tmp_path, [], form="messages")


# --- shares and limits ---


def test_shares_have_nothing_in_common_and_are_together_the_whole(tmp_path: Path) -> None:
    rows = [{"text": f"the king sees tree {n}", "rating": n} for n in range(300)]
    share = {"demonstrations": (0.0, 0.3), "comparisons": (0.3, 0.8), "prompts": (0.8, 1.0)}
    texts, counts = list[str](), {}
    for purpose, part in share.items():
        form = (
            {"form": "rated"}
            if purpose == "comparisons"
            else {"form": "text", **({"opening": 2} if purpose == "prompts" else {})}
        )
        found, report = candidates(
            tmp_path, rows, purpose, part=list(part), instruction="Write.", **form
        )  # type: ignore[arg-type]
        texts += [one.key for one in found]
        counts[purpose] = len(found)
        assert report.left_out["of another part"]["count"] == 300 - len(found)
    assert sorted(texts) == sorted(str(row["text"]) for row in rows)
    assert counts["demonstrations"] == pytest.approx(90, abs=25) and counts[
        "comparisons"
    ] == pytest.approx(150, abs=25)


def test_dialogues_that_begin_alike_are_in_one_share(tmp_path: Path) -> None:
    asked = [
        [{"role": "user", "content": text} for text in (f"start {n % 20}", f"then {n}")]
        for n in range(60)
    ]
    rows = [{"messages": [first, OPENAI[1], then]} for first, then in asked]
    found, _ = candidates(tmp_path, rows, "prompts", form="messages", part=[0.0, 0.5])
    starts = [one.turns[0].text for one in found]
    assert starts and {starts.count(one) for one in starts} == {3}


def test_rows_that_cannot_be_read_are_left_out_and_the_others_keep_their_numbers(
    tmp_path: Path,
) -> None:
    row = '{"instruction": "say %d", "response": "x"}'
    lines = [row % 1, '{"instruction": "cut', "[4]", row % 4, '{"instruction": "\xff"}', row % 6]
    (tmp_path / "rows.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    source = HumanSource.model_validate(
        {"name": "it", "path": "rows.jsonl", "form": "instruction"}
    ).resolved(tmp_path, tmp_path / "downloads")
    found, report = record_readers.read_source(
        source, "demonstrations", tmp_path / "downloads", tmp_path, RecordingProgress("x"), 0
    )
    assert [row.id for row in found] == [f"rows.jsonl, row {n}" for n in (1, 4, 6)]
    assert report.rows == 6 == len(found) + report.left_out.total()
    assert report.left_out["not JSON"]["first"].startswith("rows.jsonl, line 2: not JSON")
    assert report.left_out["no JSON object"]["count"] == 1


def test_a_limit_is_a_seeded_subset_in_the_rows_own_order(tmp_path: Path) -> None:
    rows = [{"instruction": f"say {n}", "response": "x"} for n in range(50)]
    one, report = candidates(tmp_path, rows, form="instruction", limit=10)
    again, other = (
        candidates(tmp_path, rows, form="instruction", limit=10)[0],
        candidates(tmp_path, rows, seed=1, form="instruction", limit=10)[0],
    )
    assert one == again != other and len(other) == 10
    assert [int(found.id.split()[-1]) for found in one] == sorted(
        int(found.id.split()[-1]) for found in one
    )
    assert report.left_out["beyond the limit"]["count"] == 40
