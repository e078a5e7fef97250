"""Recipes as files: what a folder of them becomes, and what a person reads where one is wrong."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from conftest import write_local_recipe

from assets.recipe import load_recipe
from assets.yaml_file import read_yaml
from gpt_model.errors import UserError
from pipelines.definitions import build_defs, recipe_files


def test_every_yaml_in_the_folder_is_a_graph_with_its_job_schedule_and_sensor(tmp_path: Path) -> None:
    write_local_recipe(tmp_path, "one")
    write_local_recipe(tmp_path, "two").rename(tmp_path / "two.yml")
    defs = build_defs(recipe_files(tmp_path)).get_repository_def()
    for name in ("one", "two"):
        assert defs.get_job(name).tags["recipe"] == name
        assert defs.get_schedule_def(f"{name}_weekly").default_status == dg.DefaultScheduleStatus.STOPPED
        assert defs.get_sensor_def(f"{name}_grown_source").default_status == dg.DefaultSensorStatus.STOPPED
        nodes = [node for node in defs.asset_graph.asset_nodes if node.group_name == name]
        assert [node.key.path[0] for node in nodes] == [name] * 5
        assert all(node.code_version and node.kinds and node.description for node in nodes)


def test_two_recipes_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write_local_recipe(tmp_path, "one")
    (tmp_path / "other.yaml").write_text(path.read_text())
    with pytest.raises(UserError, match=r"other\.yaml and .*one\.yaml are both named 'one'"):
        recipe_files(tmp_path)


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
        ("extends: nothing", "local.yaml, `extends`: There is no recipe 'nothing'"),
        ("extends: local", "comes back to itself"),
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


def test_numbers_are_read_as_a_person_means_them(tmp_path: Path) -> None:
    (tmp_path / "numbers.yaml").write_text("a: 2e-3\nb: 1_500_000\nc: 6.25e-5\nd: 1.2.3\ne: e5\nf: 3.0.0\n")
    assert read_yaml(tmp_path / "numbers.yaml") == {"a": 0.002, "b": 1_500_000, "c": 6.25e-5, "d": "1.2.3", "e": "e5", "f": "3.0.0"}
