"""The section `alignment`: which assets a recipe with one has, what feeds what, and what is said of
a mistake in it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from small_recipes import TALK

from assets.contract import Artifact
from assets.graph import nodes
from assets.recipe.recipe import Recipe, load_recipe
from assets.recipe.sections import AlignmentSection
from assets.report.lineage_tree import origin
from assets.stages import base_model
from gpt_model.errors import UserError

DEMONSTRATIONS = """\
  demonstrations: {sources: [{name: said, path: "said.jsonl", form: messages}]}
"""
COMPARISONS = """\
  comparisons: {sources: [{name: judged, path: "judged.jsonl", form: pairs}], judge: 0.2}
"""
PROMPTS = """\
  prompts: {sources: [{name: asked, path: "asked.jsonl", form: messages}]}
"""
PPO = "  ppo: {learning_rate: 1e-5, episodes: 64, batch: 16, minibatch: 8}\n"


def recipe(folder: Path, alignment: str, head: str = TALK) -> Recipe:
    path = folder / "talk.yaml"
    path.write_text(f"{head}alignment:\n{alignment}")
    return load_recipe(str(path))


def graph(folder: Path, alignment: str) -> dict[str, list[str]]:
    """Asset -> what feeds it."""
    return {node.name: node.upstream for node in nodes(recipe(folder, alignment))}


def test_demonstrations_alone_make_a_supervised_model(tmp_path: Path) -> None:
    names = graph(tmp_path, DEMONSTRATIONS)
    assert names["supervised"] == ["pretrained", "tokenizer", "demonstrations"]
    assert not {"reward_model", "policy_init", "aligned", "preferences", "instructed"} & set(names)


def test_every_step_is_fed_by_the_one_before_and_nothing_goes_round(tmp_path: Path) -> None:
    names = graph(tmp_path, DEMONSTRATIONS + COMPARISONS + PROMPTS + PPO + "  dpo: {}\n")
    assert names["reward_model"] == ["supervised", "tokenizer", "demonstrations", "comparisons"]
    assert names["instructed"] == ["supervised", "reward_model", "prompts"]
    assert names["policy_init"] == ["pretrained", "tokenizer", "demonstrations", "tokens"]
    assert (
        names["aligned"]
        == names["aligned_without_ptx"]
        == ["policy_init", "reward_model", "prompts", "tokens"]
    )
    assert names["dpo"] == ["policy_init", "comparisons"]
    assert {"aligned", "aligned_without_ptx", "dpo", "instructed", "judge", "pretrained"} <= set(
        names["preferences"]
    )
    seen: set[str] = set()
    for name, needs in names.items():  # each after what it needs
        assert set(needs) <= seen, name
        seen.add(name)


def test_the_precision_of_each_tuned_model_is_that_of_its_section(tmp_path: Path) -> None:
    names = ("supervised", "reward_model", "policy_init", "ppo", "dpo")
    given = EVERYTHING.replace("dpo: {}", "dpo: {precision: bfloat16}")
    given = given.replace("ppo: {", "ppo: {precision: bfloat16, ")
    given += "".join(f"  {name}: {{precision: bfloat16}}\n" for name in names[:3])
    for text, expected in ((EVERYTHING, "float32"), (given, "bfloat16")):
        tuned = {node.name: node for node in nodes(recipe(tmp_path, text))}
        for name in (*names[:3], "instructed", "aligned", "aligned_without_ptx", "dpo"):
            config = tuned[name].config(tmp_path)
            assert base_model.precision(Artifact(tmp_path, name, "", "", config, {})) == expected
        untuned = Artifact(tmp_path, "imported", "", "", {"source": {"model": "gpt2"}}, {})
        assert base_model.precision(untuned) == "float32"


EVERYTHING = DEMONSTRATIONS + COMPARISONS + PROMPTS + PPO + "  dpo: {}\n"
AFTER = {f"zero_shot_after/{name}" for name in ("supervised", "instructed", "policy_init", "dpo")}


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ("preferences: null", {"preferences"}),
        ("instructed: false", {"instructed", "zero_shot_after/instructed"}),
        ("zero_shot_after: false", AFTER | {"zero_shot_after/aligned"}),
        ("ppo: null", {"aligned", "zero_shot_after/aligned"}),
        ("dpo: null", {"dpo", "zero_shot_after/dpo"}),
        ("prompts: null, ppo: null", {"prompts", "instructed", "preferences", "aligned"}),
        ("comparisons: {judge: 0}", {"judge"}),
        ("reward_model: null, ppo: null", {"reward_model", "instructed", "aligned"}),
        (
            "supervised: null, reward_model: {start: pretrained}",
            {"supervised", "instructed", "zero_shot_after/supervised"},
        ),
        ("policy_init: null, ppo: null, dpo: null", {"policy_init", "aligned", "dpo"}),
        (
            "demonstrations: null, supervised: null, reward_model: null, ppo: null, dpo: null",
            {"demonstrations", "supervised", "reward_model", "policy_init", "dpo", "preferences"},
        ),
    ],
)
def test_each_step_can_be_left_out(tmp_path: Path, change: str, gone: set[str]) -> None:
    """Also in a recipe that extends one with it, and in one that extends that."""
    ppo = PPO.replace("batch: 16", "batch: 16, ptx_weight: 0")
    head = TALK + "evaluation: {suites: [held_out]}\n"
    path = tmp_path / "talk.yaml"
    path.write_text(f"{head}alignment:\n{EVERYTHING.replace(PPO, ppo)}")
    names = {node.name for node in nodes(load_recipe(str(path)))}
    assert gone <= names
    (tmp_path / "less.yaml").write_text(f"extends: talk\nname: less\nalignment: {{{change}}}\n")
    (tmp_path / "least.yaml").write_text("extends: less\nname: least\n")
    for name in ("less", "least"):
        recipe = load_recipe(str(tmp_path / f"{name}.yaml"))
        remaining = {node.name for node in nodes(recipe)}
        assert remaining <= names - gone
        assert all(set(node.upstream) <= remaining for node in nodes(recipe))
        again = Recipe.model_validate(recipe.model_dump(mode="json"))
        assert again.alignment == recipe.alignment


def test_what_a_step_needs_cannot_be_left_out_alone(tmp_path: Path) -> None:
    for change, said in {
        "demonstrations: null": "alignment.demonstrations`: the supervised model is tuned on",
        "supervised: null": "reward_model.start`: it starts from the supervised model",
        "policy_init: null": "policy_init`: it is where PPO and DPO start",
        "reward_model: null": "ppo`: it takes a reward model",
    }.items():
        (tmp_path / "talk.yaml").write_text(f"{TALK}alignment:\n{EVERYTHING}")
        (tmp_path / "less.yaml").write_text(f"extends: talk\nname: less\nalignment: {{{change}}}\n")
        with pytest.raises(UserError, match=said):
            load_recipe(str(tmp_path / "less.yaml"))


def test_a_reward_model_may_start_from_the_pretrained_model(tmp_path: Path) -> None:
    names = graph(tmp_path, DEMONSTRATIONS + COMPARISONS + "  reward_model: {start: pretrained}\n")
    assert names["reward_model"][0] == "pretrained"


def test_ppo_without_pretraining_text_is_made_once(tmp_path: Path) -> None:
    without = PPO.replace("batch: 16", "batch: 16, ptx_weight: 0")
    assert "aligned_without_ptx" not in graph(
        tmp_path, DEMONSTRATIONS + COMPARISONS + PROMPTS + without
    )


def test_the_two_policies_differ_in_pretraining_text_alone(tmp_path: Path) -> None:
    names = {
        node.name: node
        for node in nodes(recipe(tmp_path, DEMONSTRATIONS + COMPARISONS + PROMPTS + PPO))
    }
    with_text, without = (
        names[name].settings(tmp_path)["ppo"] for name in ("aligned", "aligned_without_ptx")
    )
    assert {key for key in with_text if with_text[key] != without[key]} == {
        "ptx_weight",
        "ptx_examples",
    }
    assert without["ptx_weight"] == 0


def test_the_tax_is_measured_by_the_suites_of_zero_shot(tmp_path: Path) -> None:
    alignment = (
        DEMONSTRATIONS
        + "  preferences: {suites: [held_out]}\nevaluation: {suites: [held_out, cloze], examples: "
        "{cloze: 20}}\n"
    )
    made = {node.name: node for node in nodes(recipe(tmp_path, alignment))}
    assert made["zero_shot_after/supervised"].upstream == [
        "supervised",
        "tokenizer",
        "corpus",
        "tokens",
    ]
    assert "zero_shot_after/instructed" in graph(
        tmp_path, DEMONSTRATIONS + COMPARISONS + PROMPTS + "evaluation: {suites: [held_out]}\n"
    )
    assert list(made["zero_shot_after/supervised"].settings(tmp_path)["suites"]) == ["held_out"]
    assert list(made["zero_shot"].settings(tmp_path)["suites"]) == ["held_out", "cloze"]


def test_a_suite_that_is_not_there_is_looked_for_where_it_was_asked_for(tmp_path: Path) -> None:
    alignment = (
        DEMONSTRATIONS + "  preferences: {suites: [held_ou]}\nevaluation: {suites: [held_out]}\n"
    )
    [node] = [
        node
        for node in nodes(recipe(tmp_path, alignment))
        if node.name == "zero_shot_after/supervised"
    ]
    with pytest.raises(
        UserError, match=r"talk\.yaml, line 8: `alignment\.preferences\.suites\[0\]`: .*held_ou"
    ):
        node.settings(tmp_path)


def test_a_recipe_without_the_section_is_as_it_was() -> None:
    assert not {"supervised", "demonstrations", "preferences"} & {
        node.name for node in nodes(load_recipe("tiny"))
    }


def test_the_papers_values_are_the_defaults() -> None:
    section = AlignmentSection.model_validate(
        {
            "demonstrations": {
                "sources": [{"name": "said", "path": "said.jsonl", "form": "messages"}]
            }
        }
    )
    supervised, reward, init = section.supervised, section.reward_model, section.policy_init
    assert (
        supervised.epochs,
        supervised.dropout,
        supervised.final_learning_rate,
        supervised.batch,
    ) == (16, 0.2, 0.1, 32)
    assert (reward.epochs, reward.batch, init.epochs, init.pretraining_share) == (1, 64, 2, 0.1)


@pytest.mark.parametrize(
    ("alignment", "message"),
    [
        (
            "  supervised: {epochs: 2}\n",
            r"talk.yaml, line 6.*alignment.demonstrations`: the supervised model is tuned on demonstrations",
        ),
        (DEMONSTRATIONS + PPO, r"talk.yaml, line 8.*alignment.ppo.*add comparisons and prompts"),
        (DEMONSTRATIONS + "  dpo: {}\n", r"line 8.*alignment.dpo.*takes comparisons"),
        (
            DEMONSTRATIONS + COMPARISONS + PROMPTS + PPO.replace("minibatch: 8", "minibatch: 5"),
            "line 10.*not a whole number of minibatch",
        ),
        (
            DEMONSTRATIONS + COMPARISONS + PROMPTS + PPO.replace("episodes: 64", "episodes: 70"),
            "line 10.*alignment.ppo.episodes.*70 episodes are not a whole number of batches of 16: "
            "64 or 80 are",
        ),
        (
            DEMONSTRATIONS
            + COMPARISONS
            + PROMPTS
            + PPO.replace("minibatch: 8", "minibatch: 8, ptx_examples: 0"),
            "line 10.*alignment.ppo.ptx_examples.*leave nothing for ptx_weight 27.8 to weigh.*set "
            "ptx_weight to 0",
        ),
        (DEMONSTRATIONS.replace("messages", "rated"), "alignment.demonstrations.*instruction"),
        (
            DEMONSTRATIONS.replace("messages", "pairs"),
            "'said' has form pairs, which makes no demonstrations",
        ),
        (
            DEMONSTRATIONS + COMPARISONS.replace("judge: 0.2", "judge: 0.95"),
            "leave nothing to train on",
        ),
        (
            DEMONSTRATIONS + "  supervised: {epoch: 2}\n",
            "line 8.*epoch.*not a key.*Did you mean.*epochs",
        ),
    ],
)
def test_a_mistake_is_said_with_its_place(tmp_path: Path, alignment: str, message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        nodes(recipe(tmp_path, alignment))


def test_text_to_mix_in_needs_a_corpus(tmp_path: Path) -> None:
    head = "name: talk\nimported: {folder: theirs}\n"
    with pytest.raises(UserError, match=r"alignment.policy_init.pretraining_share.*no corpus"):
        nodes(recipe(tmp_path, DEMONSTRATIONS + COMPARISONS + PROMPTS + PPO, head))


def test_an_origin_is_said_of_every_kind_of_source() -> None:
    assert origin({"task": "sentiment"}) == "task sentiment"
    assert origin({"votes": True, "pinned": []}) == "votes cast here"
    assert origin({"package": "a==1", "files": "x"}) == "a==1, x"
