"""Recipes as files: what a folder of them becomes, and what a person reads where one is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from conftest import CI_RECIPE, ROOT, environment_of, write_local_recipe

from assets.graph import nodes
from assets.recipe import RECIPES, load_recipe
from assets.resources.lineage import Lineage
from assets.stage import RETRY
from assets.yaml_file import read_yaml, yaml_files
from gpt_model.errors import UserError
from pipelines.definitions import RecipeFile, build_defs, defs, recipe_files
from pipelines.jobs import recipe_job
from pipelines.sensors import grown_source_sensor


def test_every_yaml_in_the_folder_is_a_graph_with_its_job_schedule_and_sensor(tmp_path: Path) -> None:
    write_local_recipe(tmp_path, "one")
    write_local_recipe(tmp_path, "two").rename(tmp_path / "two.yml")
    files, broken = recipe_files(tmp_path)
    assert broken == []
    defs = build_defs(files).get_repository_def()
    for name in ("one", "two"):
        assert defs.get_job(name).tags["recipe"] == name
        assert defs.get_schedule_def(f"{name}_weekly").default_status == dg.DefaultScheduleStatus.STOPPED
        assert defs.get_sensor_def(f"{name}_grown_source").default_status == dg.DefaultSensorStatus.STOPPED
        nodes = [node for node in defs.asset_graph.asset_nodes if node.group_name == name]
        assert [node.key.path[0] for node in nodes] == [name] * 5


# What takes both cores for long: one of them at a time.
HEAVY = ("pretrained", "finetuned", "zero_shot", "layers_transferred", "ablations", "visible_context", "zero_shot_dynamics")


@pytest.mark.parametrize("path", [*yaml_files(RECIPES), CI_RECIPE], ids=lambda path: path.stem)
def test_every_asset_of_every_recipe_says_what_it_is_who_owns_it_and_how_it_runs(path: Path) -> None:
    recipe = load_recipe(str(path))
    stages = {"/".join(node.key): node.stage for node in nodes(recipe)}
    graph = build_defs([RecipeFile(recipe, path)]).resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == stages.keys()
    for node in graph.asset_nodes:
        spec, stage = node.to_asset_spec(), stages[node.key.to_user_string()]
        assert spec.group_name == recipe.name
        assert spec.kinds == set(stage.kinds) and spec.kinds
        assert spec.owners == recipe.owners and spec.owners
        assert (spec.description or "").startswith(stage.description) and stage.description
        assert spec.code_version == stage.version
        assert node.assets_def.op.retry_policy == RETRY and RETRY.max_retries == 1
        assert bool(node.pools) == (stage.name in HEAVY)
        blocking = {check.name: check.blocking for check in stage.checks}
        assert {spec.name: spec.blocking for spec in node.assets_def.check_specs} == blocking
    warnings = {(stage.name, check.name) for stage in stages.values() for check in stage.checks if not check.blocking}
    expected = {("finetuned", "beats_majority"), ("finetuned", "transfer_beats_random"), ("corpus", "held_out_is_new_text")}
    assert warnings >= {(stage, check) for stage, check in expected if stage in {stage.name for stage in stages.values()}}
    assert all(any(check.blocking for check in stage.checks) for stage in stages.values())


def test_recipe_with_a_mistake_takes_no_other_graph_away_and_says_what_is_wrong(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_local_recipe(tmp_path, "good")
    write_local_recipe(tmp_path, "bad").write_text((tmp_path / "good.yaml").read_text().replace("layers: 2", "layers: 2.5"))
    (tmp_path / "worse.yaml").write_text((tmp_path / "good.yaml").read_text().replace("good", "worse") + "finetuning: {tasks: [piqua]}\n")
    monkeypatch.setenv("LINEAGE_RECIPES", str(tmp_path))
    monkeypatch.setattr(dg.get_dagster_logger("gpt-lineage"), "propagate", True)
    with caplog.at_level("WARNING"):
        loaded = defs()
    repository = loaded.get_repository_def()
    assert [job for job in repository.job_names if not job.startswith("__")] == ["good"]
    shown = {node.key.to_user_string(): node.description or "" for node in repository.asset_graph.asset_nodes}
    assert len(shown) == 5 + 2
    assert f"{tmp_path / 'bad.yaml'}, line 7: `model.layers` is 2.5" in shown["bad/bad.yaml"]
    assert (
        f"{tmp_path / 'worse.yaml'}, line 9: `finetuning.tasks[0]`: 'piqua' is not a task. Did you mean 'piqa'?"
        in shown["worse/worse.yaml"]
    )
    assert "`model.layers` is 2.5" in caplog.text and "'piqua' is not a task" in caplog.text


def test_dg_check_defs_fails_where_a_recipe_has_a_mistake(tmp_path: Path, home: Path, downloads: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: bad\n")
    (home / "dagster").mkdir()
    environment = {**environment_of(home, downloads), "LINEAGE_RECIPES": str(tmp_path)}
    command = [str(Path(sys.executable).with_name("dg")), "check", "defs"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"{tmp_path / 'bad.yaml'}: `corpus` is missing." in done.stdout + done.stderr


def test_a_grown_copy_of_a_hub_data_set_asks_for_a_run_as_a_grown_file_does(tmp_path: Path, home: Path) -> None:
    path = write_local_recipe(tmp_path)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "train.jsonl").write_text('{"text": "one"}\n')
    path.write_text(path.read_text().replace('path: "notes/*.txt"', f"hub: ./copy, revision: {'a' * 40}"))
    recipe = load_recipe(str(path))
    sensor = grown_source_sensor(recipe, nodes(recipe)[0], tmp_path, recipe_job(recipe))
    assert sensor is not None
    lineage = Lineage(home=str(home))

    def tick(cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
        return sensor(dg.build_sensor_context(cursor=cursor), lineage=lineage)

    first = tick()
    assert isinstance(first, dg.SensorResult) and first.cursor
    lineage.store().set_ref("local", "corpus", first.cursor)
    assert tick(first.cursor).skip_message == "The local sources are what the corpus was built from."
    (tmp_path / "copy" / "more.jsonl").write_text('{"text": "two"}\n')
    grown = tick(first.cursor)
    assert isinstance(grown, dg.SensorResult) and [request.run_key for request in grown.run_requests or []] == [grown.cursor]
    assert grown.cursor != first.cursor


def test_two_recipes_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write_local_recipe(tmp_path, "one")
    (tmp_path / "other.yaml").write_text(path.read_text())
    files, (broken,) = recipe_files(tmp_path)
    assert [file.path for file in files] == [path] and broken.path == tmp_path / "other.yaml"
    assert f"{tmp_path / 'other.yaml'} and {path} are both named 'one'" in broken.mistake


def test_folder_of_recipes_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINEAGE_RECIPES", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"no folder .*none.*LINEAGE_RECIPES"):
        recipe_files()


def test_misspelt_key_is_one_sentence(tmp_path: Path) -> None:
    path = write_local_recipe(tmp_path)
    path.write_text(path.read_text().replace("layers:", "layer:"))
    with pytest.raises(UserError) as error:
        load_recipe(str(path))
    (sentence,) = str(error.value).splitlines()
    assert f"{path}, line 7: `model.layer` is not a key here. Did you mean `layers`?" in sentence


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("owners: [somebody]", "'somebody' is neither an e-mail address nor team:NAME"),
        ("name: {{ local }}", "found unhashable key"),
        ("name: again", "'name' stands twice"),
        ("extends: nothing", "local.yaml, line 9: `extends`: There is no recipe 'nothing'"),
        ("extends: ../nothing.yaml", "local.yaml, line 9: `extends`: There is no recipe file"),
        ("extends: local", "local.yaml, line 9: `extends`: It comes back to itself: local → local"),
    ],
)
def test_mistake_in_the_file_is_a_sentence_that_names_it(line: str, said: str, tmp_path: Path) -> None:
    path = write_local_recipe(tmp_path)
    text = path.read_text()
    path.write_text(text.replace("name: local", line) if "{{" in line else f"{text}{line}\n")
    with pytest.raises(UserError) as error:
        load_recipe(str(path))
    assert said in str(error.value)


def test_recipe_extends_another_beside_it(tmp_path: Path) -> None:
    write_local_recipe(tmp_path, "small")
    (tmp_path / "wide.yaml").write_text("extends: small\nname: wide\nmodel: {width: 64}\n")
    small, wide = load_recipe(str(tmp_path / "small.yaml")), load_recipe(str(tmp_path / "wide.yaml"))
    assert wide.model.width == 64 and wide.model.layers == small.model.layers and wide.corpus == small.corpus


@pytest.mark.parametrize(
    ("change", "child", "said"),
    [
        (("width: 32", "width: -32"), "", "small.yaml, line 7: `model.width` is -32"),  # the parent's own
        (("vocab_size: 300", "vocab: 300"), "", "small.yaml, line 6: `tokenizer.vocab` is not a key here"),
        (("", ""), "model: {width: -64}", "wide.yaml, line 3: `model.width` is -64"),  # the child's
        (("heads: 2", "heads: none"), "model: {width: 64}", "small.yaml, line 7: `model.heads` is 'none'"),
        (("", ""), "corpus: {sources: [{path: a.txt}]}", "wide.yaml, line 3: `corpus.sources[0].name` is missing"),  # lists do not merge
        (("", ""), "corpus: {sources: [{name: a, path: a.txt, weight: -1.0}]}", "wide.yaml, line 3: `corpus.sources[0].weight` is -1.0"),
        (("", ""), "finetuning: {tasks: [piqua]}", "wide.yaml, line 3: `finetuning.tasks[0]`: 'piqua' is not a task"),
        (("", "finetuning: {tasks: [piqua]}\n"), "model: {width: 64}", "small.yaml, line 1: `finetuning.tasks[0]`: 'piqua' is not a task"),
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


def test_numbers_are_read_as_a_person_means_them(tmp_path: Path) -> None:
    (tmp_path / "numbers.yaml").write_text("a: 2e-3\nb: 1_500_000\nc: 6.25e-5\nd: 1.2.3\ne: e5\nf: 3.0.0\n")
    assert read_yaml(tmp_path / "numbers.yaml") == {"a": 0.002, "b": 1_500_000, "c": 6.25e-5, "d": "1.2.3", "e": "e5", "f": "3.0.0"}


def test_readmes_recipe_is_the_tiny_one_line_by_line(tmp_path: Path) -> None:
    explained = (ROOT / "README.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    (tmp_path / "explained.yaml").write_text(explained, encoding="utf-8")
    assert read_yaml(tmp_path / "explained.yaml") == read_yaml(RECIPES / "tiny.yaml")


def test_null_takes_out_what_an_extended_recipe_has_and_a_curve_over_snapshots_needs_some(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny\nname: mine\nevaluation: null\nfinetuning: {examples: {boolq: null}}\n")
    mine, tiny = load_recipe(str(path)), load_recipe("tiny")
    assert mine.evaluation is None and mine.finetuning is not None and tiny.finetuning is not None
    assert mine.finetuning.examples == {name: n for name, n in tiny.finetuning.examples.items() if name != "boolq"}
    path.write_text("extends: tiny\nname: mine\nexperiments: {zero_shot_dynamics: {sentiment: sentiment, questions: piqa}}\n")
    with pytest.raises(
        UserError, match=r"mine.yaml, line 3: `experiments.zero_shot_dynamics`: .* fewer than two snapshots: set pretraining.snapshots"
    ):
        nodes(load_recipe(str(path)))
