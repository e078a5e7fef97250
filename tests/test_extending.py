"""`extends: NAME`: what a recipe over another becomes, and whose file a mistake is said to be in."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from conftest import extending, write_local_recipe
from pydantic import BaseModel

from assets.graph import node_named, nodes
from assets.recipe.extends import PATHS
from assets.recipe.recipe import Recipe, load_recipe
from gpt_model.errors import UserError


def test_recipe_extends_another_beside_it(tmp_path: Path) -> None:
    write_local_recipe(tmp_path, "small")
    (tmp_path / "wide.yaml").write_text("extends: small\nname: wide\nmodel: {width: 64}\n")
    small, wide = (
        load_recipe(str(tmp_path / "small.yaml")),
        load_recipe(str(tmp_path / "wide.yaml")),
    )
    assert (
        wide.model.width == 64
        and wide.model.layers == small.model.layers
        and wide.corpus == small.corpus
    )


@pytest.mark.parametrize(
    "parent",
    ["../small", "../small.yaml", "../deep/../small", "./beside", "beside", "{folder}/small"],
)
def test_extends_is_seen_from_its_file_wherever_one_is(
    parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_local_recipe(tmp_path, "small")
    for name in ("deep", "elsewhere/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "deep" / "beside.yml").write_text("extends: ../small\nname: beside\n")
    (tmp_path / "deep" / "mine.yaml").write_text(
        f"extends: {parent.format(folder=tmp_path)}\nname: mine\n"
    )
    monkeypatch.chdir(tmp_path / "elsewhere" / "deep")
    mine = load_recipe(str(tmp_path / "deep" / "mine.yaml"))
    assert mine.files[-1] == tmp_path / "small.yaml" and mine.name == "mine"


SOURCE = "name: rows, form: messages"
EVERY_PATH = f"""
corpus:
  sources:
    - {{name: notes, path: "notes/*.txt"}}
    - {{name: absolute, path: /srv/*.txt}}
    - {{name: copied, hub: ./copy, revision: main}}
    - {{name: far, hub: owner/name, revision: main}}
tokenizer: {{from: ./gpt2}}
finetuning:
  tasks: [own.yaml, sst2, cola, mrpc]
  files: {{sst2: rows.csv, cola: {{training: a.csv, test: {{one: b.csv}}}}}}
evaluation: {{suites: [suites/mine.yaml, held_out], files: {{mine/x: x.csv}}}}
experiments:
  layers_transferred: {{task: own.yaml}}
  ablations: {{tasks: [own.yaml]}}
  zero_shot_dynamics: {{sentiment: own.yaml}}
alignment:
  demonstrations: {{sources: &rows [{{{SOURCE}, path: a.jsonl}}, {{name: t, task: own.yaml}}]}}
  prompts: {{sources: [{{{SOURCE}, hub: ./copy, revision: main}}]}}
  preferences: {{suites: [suites/mine.yaml]}}
  supervised: {{learning_rate: 1e-3}}
"""


@pytest.mark.parametrize("child", ["beside", "below/deep/mine"])
def test_a_path_is_relative_to_the_file_it_is_written_in(child: str, tmp_path: Path) -> None:
    parent = write_local_recipe(tmp_path, "small")
    lines = parent.read_text().split("\n")
    lines = [line for line in lines if line.startswith(("name", "model", "pretraining"))]
    parent.write_text("\n".join(lines) + EVERY_PATH)
    mine = tmp_path / f"{child}.yaml"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text(f"extends: {parent}\nname: mine\nimported: null\n")
    recipe = load_recipe(str(mine))
    up = "" if child == "beside" else "../../"
    here = up or "./"  # of what would else be a name
    assert [source.path or source.hub for source in recipe.corpus.sources] == [
        f"{up}notes/*.txt",
        "/srv/*.txt",
        f"{here}copy",
        "owner/name",
    ]
    assert recipe.tokenizer.from_.folder == f"{here}gpt2"
    assert recipe.finetuning.tasks == [f"{up}own.yaml", "sst2", "cola", "mrpc"]
    files = recipe.finetuning.files
    assert files["sst2"] == f"{up}rows.csv"
    assert files["cola"].all() == [f"{up}a.csv", f"{up}b.csv"]
    assert recipe.evaluation.suites == [f"{up}suites/mine.yaml", "held_out"]
    assert recipe.evaluation.files == {"mine/x": f"{up}x.csv"}
    experiments = recipe.experiments
    assert experiments.layers_transferred.task == f"{up}own.yaml"
    assert experiments.ablations.tasks == [f"{up}own.yaml"]
    assert experiments.zero_shot_dynamics.sentiment == f"{up}own.yaml"
    assert experiments.zero_shot_dynamics.acceptability == "cola"
    alignment = recipe.alignment
    rows, task = alignment.demonstrations.sources
    assert (rows.path, task.task) == (f"{up}a.jsonl", f"{up}own.yaml")
    assert alignment.prompts.sources[0].hub == f"{here}copy"
    assert alignment.preferences.suites == [f"{up}suites/mine.yaml"]


def test_a_recipe_of_another_folder_reads_the_files_of_the_one_it_extends(
    tmp_path: Path, downloads: Path
) -> None:
    """And its own beside them: the sources are the parent's, one of which is named from two
    places by an anchor.
    """
    folder = tmp_path / "parent"
    folder.mkdir()
    write_local_recipe(folder, "small", paragraphs=20)
    (folder / "rows.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    with (folder / "small.yaml").open("a") as file:
        file.write(
            f"alignment:\n  demonstrations: {{sources: &rows [{{{SOURCE}, path: rows.jsonl}}]}}\n"
            "  prompts: {sources: *rows}\n"
        )
    mine = tmp_path / "child" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text("extends: ../parent/small\nname: mine\n")
    configs = {}
    for path in (folder / "small.yaml", mine):
        graph = nodes(load_recipe(str(path)))
        for name in ("corpus", "demonstrations", "prompts"):
            config = node_named(graph, name).config(path.parent)
            configs[path.stem, name] = [
                file["sha256"] for source in config["sources"] for file in source["pinned"]
            ]
    for name in ("corpus", "demonstrations", "prompts"):
        assert configs["mine", name] == configs["small", name] != []


@pytest.mark.parametrize(
    ("change", "child", "said"),
    [
        (
            ("width: 32", "width: -32"),
            "",
            "small.yaml, line 7: `model.width` is -32",
        ),  # the parent's own
        (
            ("vocab_size: 300", "vocab: 300"),
            "",
            "small.yaml, line 6: `tokenizer.vocab` is not a key here",
        ),
        (("", ""), "model: {width: -64}", "wide.yaml, line 3: `model.width` is -64"),  # the child's
        (
            ("heads: 2", "heads: none"),
            "model: {width: 64}",
            "small.yaml, line 7: `model.heads` is 'none'",
        ),
        (
            ("", ""),
            "corpus: {sources: [{path: a.txt}]}",
            "wide.yaml, line 3: `corpus.sources[0].name` is missing",
        ),  # lists do not merge
        (
            ("", ""),
            "corpus: {sources: [{name: a, path: a.txt, weight: -1.0}]}",
            "wide.yaml, line 3: `corpus.sources[0].weight` is -1.0",
        ),
        (
            ("", ""),
            "finetuning: {tasks: [piqua]}",
            "wide.yaml, line 3: `finetuning.tasks[0]`: 'piqua' is not a task",
        ),
        (
            ("", "finetuning: {tasks: [piqua]}\n"),
            "model: {width: 64}",
            "small.yaml, line 1: `finetuning.tasks[0]`: 'piqua' is not a task",
        ),
    ],
)
def test_mistake_names_the_file_it_is_written_in_also_where_one_extends_another(
    change: tuple[str, str], child: str, said: str, tmp_path: Path
) -> None:
    path = write_local_recipe(tmp_path, "small")
    path.write_text(path.read_text().replace(*change, 1))
    (tmp_path / "wide.yaml").write_text(f"extends: small\nname: wide\n{child}\n")
    with pytest.raises(UserError) as error:
        nodes(load_recipe(str(tmp_path / "wide.yaml")))
    assert str(error.value).splitlines()[0].startswith(f"{tmp_path}/{said}"), str(error.value)


def test_null_takes_out_what_an_extended_recipe_has_and_a_curve_over_snapshots_needs_some(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: tiny\nname: mine\nevaluation: null\nfinetuning: {examples: {sentiment: null}}\n"
    )
    mine, tiny = load_recipe(str(path)), load_recipe("tiny")
    assert mine.evaluation is None and mine.finetuning is not None and tiny.finetuning is not None
    assert mine.finetuning.examples == {
        name: n for name, n in tiny.finetuning.examples.items() if name != "sentiment"
    }
    path.write_text(
        "extends: tiny\nname: mine\nexperiments: {zero_shot_dynamics: {sentiment: sentiment, "
        "questions: piqa}}\n"
    )
    with pytest.raises(
        UserError,
        match=r"mine.yaml, line 3: `experiments.zero_shot_dynamics`: .* fewer than two snapshots: "
        r"set pretraining.snapshots",
    ):
        nodes(load_recipe(str(path)))


def test_tasks_and_suites_that_replace_others_take_their_limits_with_them(tmp_path: Path) -> None:
    tiny = load_recipe("tiny")
    assert tiny.finetuning is not None and tiny.evaluation is not None
    path = extending(
        tmp_path, "finetuning: {tasks: [sentiment]}\nevaluation: {suites: [cloze, gpt3_lambada]}"
    )
    mine = load_recipe(str(path))
    assert mine.finetuning is not None and mine.evaluation is not None
    assert mine.finetuning.examples == {"sentiment": tiny.finetuning.examples["sentiment"]}
    assert mine.finetuning.held_back == {"sentiment": tiny.finetuning.held_back["sentiment"]}
    assert mine.evaluation.examples == {"cloze": tiny.evaluation.examples["cloze"]}
    for node in nodes(mine):
        node.settings(tmp_path)
    files = "finetuning: {{tasks: [{0}], files: {{{1}}}}}\nevaluation: {{suites: [{2}], files: {{{3}}}}}".format
    first = files(
        "cola, sst2",
        "cola: a.csv, sst2: b.csv",
        "gpt3_lambada, core",
        "gpt3_lambada/lambada: c.jsonl, core: bundle",
    )
    extending(tmp_path, first).rename(tmp_path / "first.yaml")
    again = load_recipe(
        str(
            extending(
                tmp_path,
                "finetuning: {tasks: [cola]}\nevaluation: {suites: [gpt3_lambada]}",
                "first",
            )
        )
    )
    assert again.finetuning is not None and again.finetuning.files == {"cola": "a.csv"}
    assert again.evaluation is not None and again.evaluation.files == {
        "gpt3_lambada/lambada": "c.jsonl"
    }


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        (
            "finetuning: {tasks: [sentiment], examples: {boolq: 3}}",
            "finetuning.examples.boolq",
        ),  # tiny has a limit of the name
        ("finetuning: {tasks: [sentiment], files: {boolq: a.csv}}", "finetuning.files.boolq"),
        ("evaluation: {suites: [cloze], examples: {boolq: 3}}", "evaluation.examples.boolq"),
        ("evaluation: {suites: [cloze], files: {core: bundle}}", "evaluation.files.core"),
    ],
)
def test_a_limit_of_ones_own_for_what_is_not_named_is_a_mistake_in_ones_own_file(
    tmp_path: Path, sections: str, field: str
) -> None:
    path = extending(tmp_path, sections)
    with pytest.raises(UserError, match=rf"^{path}, line 3: `{field}`: "):
        for node in nodes(load_recipe(str(path))):
            node.settings(tmp_path)


def test_experiments_on_tasks_that_are_no_longer_named_go_with_them(tmp_path: Path) -> None:
    other = load_recipe(str(extending(tmp_path, "finetuning: {tasks: [boolq, piqa]}", "gpt1-tiny")))
    made = other.experiments
    assert (
        made
        and made.layers_transferred is None
        and made.ablations
        and (made.ablations.tasks, made.ablations.seeds) == (None, 3)
    )
    assert (
        made.depth and made.visible_context and made.zero_shot_dynamics
    )  # which fine-tune on none
    tuned = {
        node.name: node.settings(tmp_path)
        for node in nodes(other)
        if node.name.startswith("experiments/")
    }
    assert [task["task"] for task in tuned["experiments/ablations"]["tasks"]] == ["boolq", "piqa"]
    more = load_recipe(
        str(extending(tmp_path, "finetuning: {tasks: [sentiment, boolq]}", "gpt1-tiny"))
    ).experiments
    assert more and more.layers_transferred and more.layers_transferred.task == "sentiment"
    assert more.ablations and more.ablations.tasks == ["sentiment"]
    fewer = load_recipe(
        str(extending(tmp_path, "finetuning: {tasks: [rte, cola]}", "gpt1"))
    ).experiments
    assert (
        fewer
        and fewer.ablations
        and fewer.ablations.tasks == ["cola", "rte"]
        and fewer.layers_transferred is None
    )
    none = load_recipe(str(extending(tmp_path, "finetuning: null", "gpt1-tiny")))
    assert (
        none.experiments
        and none.experiments.ablations is None
        and none.experiments.layers_transferred is None
    )
    assert {node.name for node in nodes(none)} >= {
        "experiments/depth",
        "experiments/zero_shot_dynamics",
    }


def test_an_experiment_of_ones_own_on_a_task_that_is_not_named_is_a_mistake_that_says_what_to_name(
    tmp_path: Path,
) -> None:
    sections = "finetuning: {tasks: [boolq]}\nexperiments: {layers_transferred: {task: sentiment}}"
    path = extending(tmp_path, sections, "gpt1-tiny")
    with pytest.raises(
        UserError,
        match=rf"^{path}, line 4: `experiments.layers_transferred.task`: 'sentiment' is not among "
        r"finetuning.tasks",
    ):
        for node in nodes(load_recipe(str(path))):
            node.settings(tmp_path)


def test_an_imported_model_takes_the_place_of_all_that_is_of_a_training_here(
    tmp_path: Path,
) -> None:
    for parent in ("tiny", "gpt1-tiny"):
        mine = load_recipe(str(extending(tmp_path, "imported: {hub: a/b}", parent)))
        assert (
            mine.tokenizer,
            mine.model,
            mine.pretraining,
            mine.experiments,
            mine.scaling,
            mine.dial,
        ) == (None,) * 6
        assert (
            mine.corpus == load_recipe(parent).corpus
            and mine.finetuning == load_recipe(parent).finetuning
        )
    further = (
        "imported: {hub: a/b}\npretraining: {tokens: 9_000, batch_tokens: 100, learning_rate: 1e-4}"
    )
    extending(tmp_path, further).rename(tmp_path / "further.yaml")
    again = load_recipe(
        str(extending(tmp_path, "imported: {hub: a/c}\npretraining: {seed: 2}", "further"))
    )
    assert again.pretraining is not None and again.imported is not None
    assert (again.pretraining.tokens, again.pretraining.seed, again.imported.hub) == (
        9_000,
        2,
        "a/c",
    )
    extending(tmp_path, "depth: 3").rename(tmp_path / "dialled.yaml")
    assert load_recipe(str(extending(tmp_path, "imported: {hub: a/b}", "dialled"))).model is None


# Text that is no path as seen from the recipe: names, words, what is looked for in a package.
NO_PATH = {
    *("columns", "config", "description", "documents", "group", "header", "instruction"),
    *("licence", "name", "named", "owners", "package", "revision", "separator", "sha256", "split"),
    *("text", "together"),
    *("corpus.sources.*.files", "alignment.*.sources.*.files", "tokenizer.from.files"),
    *("imported.hub", "tokenizer.from.hub"),  # of these a folder is `folder`
}
FILLED_IN = {"entry", "known", "pinned"}  # when a build is planned; no recipe has them


def text_keys(kind: Any, key: tuple[str, ...] = ()) -> Iterator[str]:
    """Every key under a type of a recipe that can hold text; "*" is any item."""
    arguments = get_args(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            if name not in FILLED_IN:
                yield from text_keys(field.annotation, (*key, field.alias or name))
    elif kind is str:
        yield ".".join(key)
    elif get_origin(kind) is Annotated:
        yield from text_keys(arguments[0], key)
    elif get_origin(kind) in (Union, UnionType):
        for one_of in arguments:
            yield from text_keys(one_of, key)
    elif get_origin(kind) is not Literal:
        for item in arguments[-1:] if get_origin(kind) is dict else arguments:
            yield from text_keys(item, (*key, "*"))


def test_every_key_that_holds_a_path_is_seen_from_its_file() -> None:
    patterns = [pattern for group in PATHS.values() for pattern in group]
    keys = set(text_keys(Recipe))

    def covers(pattern: str, key: str) -> bool:
        parts = list(zip_longest(pattern.split("."), key.split(".")))
        return all(wanted in ("*", part) for wanted, part in parts)

    def holds_no_path(key: str) -> bool:
        of_list = key.removesuffix(".*").removesuffix(".*")
        return of_list.rpartition(".")[2] in NO_PATH or any(covers(p, of_list) for p in NO_PATH)

    unknown = {
        key
        for key in keys
        if not holds_no_path(key) and not any(covers(pattern, key) for pattern in patterns)
    }
    assert unknown == set()
    without_key = {p for p in patterns if not any(covers(p, key) for key in keys)}
    assert without_key == {
        "tokenizer.from",  # a folder's name in place of the section
        *("corpus.sources.*.file", "alignment.*.sources.*.file"),  # another word for `path`
    }
