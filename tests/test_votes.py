"""Votes on disk, and as comparisons of the stage that reads them: at one moment, from the store's
home, whoever votes on meanwhile.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chat_store import VOTES_COMMAND, voted_comparisons
from small_recipes import TALK
from test_human_forms import jsonl
from training_ranks import RecordingProgress
from typer.testing import CliRunner

from assets.build import Request, build
from assets.graph import node_named, nodes
from assets.launch.launcher import LocalLauncher
from assets.recipe.profile import load_profile
from assets.recipe.recipe import load_recipe
from assets.recipe.sections import ComparisonsSection
from assets.stages.human_data import COMPARISONS
from assets.store.store import Store
from assets.tracking.tracking import Tracking
from gpt_model.errors import CorruptFile, UserError
from gpt_model.rlhf import records, votes
from gpt_model.rlhf.dialogue import Dialogue, Turn
from pipelines.cli.main import app

ASKED: Dialogue = (Turn("user", "who sees the sailor?"),)
LEFT, RIGHT = (
    votes.Answered("the king", "a" * 64, "tiny/supervised"),
    votes.Answered("no one", "b" * 64, "tiny/aligned"),
)


def cast(home: Path, asked: str = "who sees the sailor?", **more: Any) -> Path:
    return votes.append(home, votes.vote((Turn("user", asked),), RIGHT, LEFT, more))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store's home, whose downloads are elsewhere."""
    monkeypatch.setenv("LINEAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LINEAGE_DOWNLOADS", str(tmp_path / "elsewhere" / "downloads"))
    return tmp_path / "home"


def planned(home: Path) -> dict[str, Any]:
    section = ComparisonsSection.model_validate({"sources": [{"name": "chat", "votes": True}]})
    assert COMPARISONS.pin
    return dict(COMPARISONS.pin({**section.model_dump(mode="json"), "split_seed": 0}, home))


def asked(config: dict[str, Any], output: Path) -> list[str]:
    """What the stage makes of a planned section: what was asked, of every comparison."""
    output.mkdir()
    COMPARISONS.run(config, {}, output, RecordingProgress("comparisons"))
    return sorted(
        comparison.prompt[-1].text
        for split in ("training", "held_out", "judge")
        for comparison in records.read_comparisons(output, split)
    )


def test_a_vote_is_read_back_as_it_was_cast(tmp_path: Path) -> None:
    vote = votes.vote(ASKED, RIGHT, LEFT, {"temperature": 0.5})
    votes.append(tmp_path, vote)
    assert votes.read(tmp_path) == [vote]
    assert (vote.chosen, vote.artifacts["rejected"], vote.refs["chosen"]) == (
        "no one",
        "a" * 64,
        "tiny/aligned",
    )


def test_votes_cast_at_once_are_all_kept(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: cast(tmp_path, seed=n), range(64)))
    assert sorted(item.sampling["seed"] for item in votes.read(tmp_path)) == list(range(64))


def test_half_a_line_of_a_killed_writer_is_no_vote_and_a_whole_line_that_is_none_is_named(
    tmp_path: Path,
) -> None:
    path = cast(tmp_path, seed=1)
    with path.open("a") as file:
        file.write('{"time": "2026')
    assert [item.sampling["seed"] for item in votes.read(tmp_path)] == [1]
    cast(tmp_path, seed=2)
    assert [item.sampling["seed"] for item in votes.read(tmp_path)] == [1, 2]
    with path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(CorruptFile, match="line 3 is no vote"):
        votes.read(tmp_path)


FILLING = """
import resource, sys
from pathlib import Path
from gpt_model.rlhf import votes
from gpt_model.rlhf.dialogue import Turn
home = Path(sys.argv[1])
one = votes.vote((Turn("user", "again?"),), votes.Answered("a", "a" * 64, "x"), votes.Answered("b", "b" * 64, "y"), {})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
votes.append(home, one)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fits", [0, 40])  # bytes of the next vote
def test_a_vote_that_the_disk_has_no_room_for_is_said_and_leaves_nothing(
    fits: int, tmp_path: Path
) -> None:
    path = cast(tmp_path)
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FILLING, str(tmp_path), str(len(before) + fits)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert (
        f"UserError: The vote is not kept: {path} could not be written (File too large). Make room "
        "there" in done.stderr
    )
    assert path.read_bytes() == before and len(votes.read(tmp_path)) == 1
    cast(tmp_path)
    assert len(votes.read(tmp_path)) == 2


# --- as comparisons ---


def test_votes_are_read_as_comparisons_by_the_stage(tmp_path: Path) -> None:
    votes.append(tmp_path, votes.vote(ASKED, RIGHT, LEFT, {}))
    votes.append(tmp_path, votes.vote((Turn("user", "and the tree?"),), LEFT, RIGHT, {}, tie=True))
    better, tie = sorted(
        voted_comparisons(tmp_path, tmp_path / "built"), key=lambda one: one.prompt != ASKED
    )
    assert (better.prompt, [(response.text, response.rank) for response in better.responses]) == (
        ASKED,
        [("no one", 0), ("the king", 1)],
    )
    assert better.pairs() == [(0, 1)] and tie.pairs() == []


def test_a_vote_cast_after_the_plan_is_the_next_runs(home: Path, tmp_path: Path) -> None:
    cast(home, "the first")
    config = planned(home)
    cast(home, "the second")
    assert asked(config, tmp_path / "then") == ["the first"]
    assert asked(planned(home), tmp_path / "now") == ["the first", "the second"]


def test_half_a_vote_at_the_plan_is_not_pinned_so_what_replaces_it_changes_nothing(
    home: Path, tmp_path: Path
) -> None:
    path = cast(home, "the first")
    whole = path.stat().st_size
    with path.open("a") as file:
        file.write('{"time": "2026')
    config = planned(home)
    assert config["sources"][0]["pinned"][0]["bytes"] == whole
    cast(home, "the second")  # takes the half away
    assert asked(config, tmp_path / "then") == ["the first"]


def test_votes_that_were_taken_out_since_the_plan_are_missed(home: Path, tmp_path: Path) -> None:
    path = cast(home, "the first")
    config = planned(home)
    path.unlink()
    with pytest.raises(UserError, match=r"no longer holds the votes that were pinned .* Run again"):
        asked(config, tmp_path / "then")


def test_before_any_vote_there_is_none_and_that_is_no_mistake(home: Path, tmp_path: Path) -> None:
    assert (
        planned(home)["sources"][0]["pinned"] == []
        and asked(planned(home), tmp_path / "built") == []
    )


@pytest.mark.slow
def test_a_worker_and_a_reproduction_find_the_votes(home: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the king sees the sailor\n")
    jsonl(tmp_path / "said.jsonl", [{"instruction": "What?", "response": "It."}])
    (tmp_path / "talk.yaml").write_text(
        f"{TALK}"
        "alignment:\n  demonstrations: {sources: [{name: said, path: said.jsonl, form: "
        "instruction}]}\n"
        "  comparisons: {sources: [{name: votes, votes: true}]}\n"
    )
    for number in range(3):
        cast(home, f"number {number}")
    node = node_named(nodes(load_recipe(str(tmp_path / "talk.yaml"))), "comparisons")
    built = build(
        Request(node, {}, node.config(tmp_path), load_profile("single")),
        Store(home),
        LocalLauncher(),
        Tracking(home),
    ).artifact
    assert built.metrics["votes/kept"] == 3
    cast(home, "one more")
    again = CliRunner().invoke(app, ["reproduce", "talk/comparisons"])
    assert again.exit_code == 0, again.output
    assert built.digest in again.stdout


def test_the_recipe_that_the_chat_names_is_chat_tiny_with_the_votes(
    home: Path, tmp_path: Path, downloads: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("LINEAGE_DOWNLOADS", str(downloads))
    recipe, tiny = load_recipe(VOTES_COMMAND.rpartition(" ")[2]), load_recipe("chat-tiny")
    assert (
        recipe.alignment
        and tiny.alignment
        and recipe.alignment.comparisons
        and tiny.alignment.comparisons
    )
    ours, theirs = recipe.alignment.model_dump(mode="json"), tiny.alignment.model_dump(mode="json")
    (voted,) = [source for source in ours["comparisons"]["sources"] if source["votes"]]
    ours["comparisons"]["sources"].remove(voted)
    assert ours == theirs
    cast(home, "what do people think of it?")
    node = node_named(nodes(recipe), "comparisons")
    assert "what do people think of it?" in asked(dict(node.config(tmp_path)), tmp_path / "built")
