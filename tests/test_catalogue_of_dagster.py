"""What Dagster's catalogue and launchpad show of a recipe before anything is built."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
import yaml
from conftest import ROOT, write_local_recipe
from dagster._core.instance.ref import InstanceRef

from assets.lineage import DAGSTER_YAML, Lineage, dagster_history, launchpad_lineage, prepare_home
from assets.recipe.recipe import load_recipe
from assets.stages.corpus import CORPUS
from assets.stages.human_data import COMPARISONS
from assets.store.recipes import record
from assets.store.store import Store
from pipelines.definitions import RecipeFile, build_defs, built_by_path
from pipelines.runs import run_config


def recipe_file(name: str) -> RecipeFile:
    path = ROOT / "recipes" / f"{name}.yaml"
    return RecipeFile(load_recipe(str(path)), path)


def specs(*names: str) -> dict[str, dg.AssetSpec]:
    return {
        spec.key.to_user_string(): spec
        for spec in build_defs([recipe_file(name) for name in names]).resolve_all_asset_specs()
    }


@pytest.fixture(scope="module")
def shown() -> dict[str, dg.AssetSpec]:
    return specs("chat-tiny", "gpt2-small", "gpt3-175b")


def test_tags_say_stage_family_and_whether_this_machine_can_build(
    shown: dict[str, dg.AssetSpec],
) -> None:
    pretrained = shown["chat_tiny/pretrained"]
    expected = {"stage": "pretrained", "family": "gpt2", "machine": "fits"}
    assert expected.items() <= pretrained.tags.items()
    assert "this machine" not in pretrained.metadata
    assert shown["gpt2_small/corpus"].tags["machine"] == "too_slow"
    too_large = shown["gpt3_175b/corpus"]
    assert too_large.tags["machine"] == "too_large"
    sentence = too_large.metadata["this machine"]
    assert "of memory a rank" in sentence and "gpt-lineage plan gpt3-175b" in sentence
    assert all(spec.tags["stage"] for spec in shown.values())


def test_code_references_lead_to_the_lines_of_the_recipe(shown: dict[str, dg.AssetSpec]) -> None:
    lines = {}
    for name, key in (("pretrained", "pretraining"), ("aligned", "  ppo"), ("corpus", "corpus")):
        recipe, stage = (
            shown[f"chat_tiny/{name}"].metadata["dagster/code_references"].code_references
        )
        path = Path(recipe.file_path)
        lines[name] = path.read_text(encoding="utf-8").splitlines()[recipe.line_number - 1]
        assert lines[name].startswith(f"{key}:"), (name, lines[name])
        assert Path(stage.file_path).is_file() and stage.label.startswith("stage: ")


def test_tables_show_their_columns_and_count_their_rows(shown: dict[str, dg.AssetSpec]) -> None:
    schema = shown["chat_tiny/comparisons"].metadata["dagster/column_schema"]
    columns = [column.name for column in schema.columns]
    assert columns == ["source", "id", "messages", "responses", "further"]
    assert CORPUS.table and COMPARISONS.table
    split = {"plays/training/documents": 3.0, "plays/held_out/documents": 2.0, "plays/bytes": 9.0}
    assert CORPUS.table.count(split) == 5
    rows = {"training": 909.0, "held_out": 401.0, "judge": 685.0, "training_pairs": 5438.0}
    assert COMPARISONS.table.count(rows) == 1995


def test_the_launchpad_offers_every_profile_and_begins_with_the_environment_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = build_defs([recipe_file("chat-tiny")]).resolve_job_def("chat_tiny")
    assert job.run_config == {"resources": {"lineage": {"config": {"profile": "cpu"}}}}

    def valid(profile: str) -> bool:
        config = {"resources": {"lineage": {"config": {"profile": profile}}}}
        return bool(dg.validate_run_config(job, config))

    names = {path.stem for path in (ROOT / "profiles").glob("*.yaml")}
    assert names >= {"cpu", "gpu", "gpu8", "hopper8", "single", "slurm-2x8", "ssh-2x8"} and all(
        valid(name) for name in names
    )
    with pytest.raises(dg.DagsterInvalidConfigError, match="profile"):
        valid("cppu")

    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine\nthreads: 1\n")
    monkeypatch.setenv("LINEAGE_PROFILE", str(mine))
    assert launchpad_lineage().execution().name == "mine"
    job = build_defs([recipe_file("chat-tiny")]).resolve_job_def("chat_tiny")
    assert job.run_config["resources"]["lineage"]["config"]["profile"] == str(mine)
    assert valid(str(mine)) and valid("single")


def test_the_page_can_execute_a_run_of_the_command_line_again() -> None:
    job = build_defs([recipe_file("chat-tiny")]).resolve_job_def("chat_tiny")
    assert dg.validate_run_config(job, run_config("single"))


def test_a_recipe_built_from_a_path_is_in_the_catalogue_while_its_file_is_there(
    tmp_path: Path, home: Path
) -> None:
    path = write_local_recipe(tmp_path)
    own = RecipeFile(load_recipe(str(path)), path)
    assert list(built_by_path(home, [])) == []
    Store(home)
    record(home, own.recipe.name, path)

    def note() -> str:
        (file,) = built_by_path(home, [])
        defs = build_defs([file], resource_overrides={"lineage": Lineage(home=str(home))})
        (corpus,) = [s for s in defs.resolve_all_asset_specs() if s.key.path[-1] == "corpus"]
        return str(corpus.metadata["recipe file"])

    assert f"{path}, as it was in the build of 20" in note()
    path.write_text(path.read_text() + "\n# another line\n")
    assert f"{path}, changed since the build of 20" in note()
    assert list(built_by_path(home, [own])) == []  # it is under recipes/, or another of its name
    recipe = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**recipe, "models": {}}))
    assert list(built_by_path(home, [])) == []
    path.unlink()
    assert list(built_by_path(home, [])) == []


def test_dagster_dev_in_the_repository_shows_the_history_of_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    written = yaml.safe_load(DAGSTER_YAML)
    assert {name: settings[name] for name in written} == written
    monkeypatch.chdir(tmp_path)  # the repository, with its store in the default folder
    monkeypatch.setenv("LINEAGE_HOME", "")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    prepare_home(Store.default_home())

    @dg.job
    def built_here() -> None: ...

    with dagster_history() as instance:
        instance.create_run_for_job(built_here)
    monkeypatch.delenv("DAGSTER_HOME")
    temporary = InstanceRef.from_dir(str(tmp_path / "tmp"), config_dir=str(ROOT))  # as it does
    with dg.DagsterInstance.from_ref(temporary) as instance:
        assert [run.job_name for run in instance.get_runs()] == ["built_here"]
        assert not (tmp_path / "tmp" / "history").exists()
