"""Recipes as files: what a folder of them becomes, and what a person reads where one is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from conftest import CI_RECIPE, ROOT, environment_of, extending, write_local_recipe
from dagster._core.definitions.utils import DISALLOWED_NAMES
from dagster._core.events import DagsterEvent

from assets.graph import check, node_named, nodes
from assets.lineage import Lineage
from assets.node import Node
from assets.recipe.recipe import RECIPES, MuonSection, load_recipe
from assets.recipe.yaml_file import read_yaml, yaml_files
from assets.stage import RETRY
from assets.store.store import Store
from gpt_model.errors import UserError
from pipelines.automation import grown_source_sensor, recipe_job
from pipelines.cli.recipes import checked
from pipelines.definitions import RecipeFile, build_defs, defs, recipe_files


def test_every_yaml_in_the_folder_is_a_graph_with_its_job_schedule_and_sensor(
    tmp_path: Path,
) -> None:
    write_local_recipe(tmp_path, "one")
    two = write_local_recipe(tmp_path, "two").rename(tmp_path / "two.yml")
    two.write_text(f"schedule: weekly\n{two.read_text()}")
    (tmp_path / "three.yaml").write_text("extends: two\nname: three\n")
    files, broken = recipe_files(tmp_path)
    assert broken == []
    defs = build_defs(files).get_repository_def()
    [schedule] = defs.schedule_defs  # where the file asks for one
    assert (schedule.job_name, schedule.cron_schedule) == ("two", "0 3 * * 1")
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    for name in ("one", "two"):
        assert defs.get_job(name).tags["recipe"] == name
        assert (
            defs.get_sensor_def(f"{name}_grown_source").default_status
            == dg.DefaultSensorStatus.STOPPED
        )
        nodes = [node for node in defs.asset_graph.asset_nodes if node.group_name == name]
        assert [node.key.path[0] for node in nodes] == [name] * 5


# What takes both cores for long: one of them at a time.
HEAVY = (
    "pretrained",
    "finetuned",
    "zero_shot",
    "layers_transferred",
    "ablations",
    "visible_context",
    "depth",
    "zero_shot_dynamics",
    "supervised",
    "reward_model",
    "instructed",
    "policy_init",
    "aligned",
    "dpo",
    "preferences",
)


@pytest.mark.parametrize("path", [*yaml_files(RECIPES), CI_RECIPE], ids=lambda path: path.stem)
def test_every_asset_of_every_recipe_says_what_it_is_who_owns_it_and_how_it_runs(
    path: Path,
) -> None:
    recipe = load_recipe(str(path))
    stages = {"/".join(node.key): node.stage for node in nodes(recipe)}
    described = {
        "/".join(node.key): node.description or node.stage.description for node in nodes(recipe)
    }
    graph = build_defs([RecipeFile(recipe, path)]).resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == stages.keys()
    for node in graph.asset_nodes:
        spec, stage = node.to_asset_spec(), stages[node.key.to_user_string()]
        assert spec.group_name == recipe.name
        assert spec.kinds == set(stage.kinds) and spec.kinds
        assert spec.owners == recipe.owners and spec.owners
        assert (told := described[node.key.to_user_string()]) and (
            spec.description or ""
        ).startswith(told)
        assert spec.code_version == stage.version
        assert node.assets_def.op.retry_policy == RETRY and RETRY.max_retries == 1
        assert bool(node.pools) == (stage.name in HEAVY)
        blocking = {check.name: check.blocking for check in stage.checks}
        assert {spec.name: spec.blocking for spec in node.assets_def.check_specs} == blocking
    warnings = {
        (stage.name, check.name)
        for stage in stages.values()
        for check in stage.checks
        if not check.blocking
    }
    expected = {
        ("finetuned", "beats_majority"),
        ("finetuned", "transfer_beats_random"),
        ("corpus", "held_out_is_new_text"),
    }
    assert warnings >= {
        (stage, check)
        for stage, check in expected
        if stage in {stage.name for stage in stages.values()}
    }
    unblocked = {
        stage.name for stage in stages.values() if not any(check.blocking for check in stage.checks)
    }
    assert unblocked <= {
        "scaling"
    }  # a prediction that did not come true is a finding, and nothing is built of it


def test_recipe_with_a_mistake_takes_no_other_graph_away_and_says_what_is_wrong(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_local_recipe(tmp_path, "good")
    write_local_recipe(tmp_path, "bad").write_text(
        (tmp_path / "good.yaml").read_text().replace("layers: 2", "layers: 2.5")
    )
    (tmp_path / "worse.yaml").write_text(
        (tmp_path / "good.yaml").read_text().replace("good", "worse")
        + "finetuning: {tasks: [piqua]}\n"
    )
    monkeypatch.setenv("LINEAGE_RECIPES", str(tmp_path))
    monkeypatch.setattr(dg.get_dagster_logger("gpt-lineage"), "propagate", True)
    with caplog.at_level("WARNING"):
        loaded = defs()
    repository = loaded.get_repository_def()
    assert [job for job in repository.job_names if not job.startswith("__")] == ["good"]
    shown = {
        node.key.to_user_string(): node.description or ""
        for node in repository.asset_graph.asset_nodes
    }
    assert len(shown) == 5 + 2
    assert f"{tmp_path / 'bad.yaml'}, line 7: `model.layers` is 2.5" in shown["bad/bad.yaml"]
    assert (
        f"{tmp_path / 'worse.yaml'}, line 9: `finetuning.tasks[0]`: 'piqua' is not a task. Did you "
        "mean 'piqa'?" in shown["worse/worse.yaml"]
    )
    assert "`model.layers` is 2.5" in caplog.text and "'piqua' is not a task" in caplog.text


@pytest.mark.slow
def test_dg_check_defs_fails_where_a_recipe_has_a_mistake(
    tmp_path: Path, home: Path, downloads: Path
) -> None:
    (tmp_path / "bad.yaml").write_text("name: bad\n")
    (home / "dagster").mkdir()
    environment = {**environment_of(home, downloads), "LINEAGE_RECIPES": str(tmp_path)}
    command = [str(Path(sys.executable).with_name("dg")), "check", "defs"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (
        done.returncode == 1
        and f"{tmp_path / 'bad.yaml'}: `corpus` is missing." in done.stdout + done.stderr
    )


def corpus_fingerprint(corpus: Node, base: Path) -> str:
    return Store.fingerprint(corpus.stage.name, corpus.stage.version, corpus.config(base), {})


class Sensor:
    """The sensor of a recipe's local sources, over an instance whose runs end as a test says."""

    def __init__(self, path: Path, home: Path, instance: dg.DagsterInstance) -> None:
        recipe, self.base, self.instance = load_recipe(str(path)), path.parent, instance
        self.corpus, self.lineage = nodes(recipe)[0], Lineage(home=str(home))
        sensor = grown_source_sensor(recipe, self.corpus, self.base, recipe_job(recipe))
        assert sensor is not None
        self.sensor = sensor

    def tick(self) -> dg.RunRequest | str:
        """What it requests, or why it requests nothing."""
        context = dg.build_sensor_context(instance=self.instance)
        result = self.sensor(context, lineage=self.lineage)
        assert isinstance(result, (dg.RunRequest, dg.SkipReason))
        return result if isinstance(result, dg.RunRequest) else str(result.skip_message)

    def run(self, request: dg.RunRequest | str, status: dg.DagsterRunStatus) -> None:
        """The run requested, which is to end with `status`."""
        assert isinstance(request, dg.RunRequest), request
        run = self.instance.create_run_for_job(_job("local"), tags=request.tags)
        self.instance.report_dagster_event(
            DagsterEvent(EVENT[status].value, "local", message=""), run.run_id
        )
        if status == dg.DagsterRunStatus.SUCCESS:
            fingerprint = corpus_fingerprint(self.corpus, self.base)
            self.lineage.store().set_ref("local", "corpus", fingerprint)


EVENT = {
    dg.DagsterRunStatus.STARTED: dg.DagsterEventType.RUN_START,
    dg.DagsterRunStatus.SUCCESS: dg.DagsterEventType.RUN_SUCCESS,
    dg.DagsterRunStatus.FAILURE: dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterRunStatus.CANCELED: dg.DagsterEventType.RUN_CANCELED,
}


def _job(name: str) -> dg.JobDefinition:
    @dg.op
    def nothing() -> None: ...

    @dg.job(name=name)
    def job() -> None:
        nothing()

    return job


def test_the_sensor_requests_a_text_again_that_came_back_and_a_run_that_failed(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, later, clock = tmp_path / "notes" / "notes0.txt", [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: clock() + sum(later))
    with dg.DagsterInstance.ephemeral() as instance:
        sensor = Sensor(write_local_recipe(tmp_path), home, instance)
        first = notes.read_text()
        for text in (first, f"{first}\nMore of it.\n", first):  # A, B and A again
            notes.write_text(text)
            sensor.run(sensor.tick(), dg.DagsterRunStatus.SUCCESS)
            assert sensor.tick() == "The local sources are what the corpus was built from."

        notes.write_text("Another.\n")
        for minutes in (10, 20, 40):  # the pause after each failure
            sensor.run(sensor.tick(), dg.DagsterRunStatus.FAILURE)
            assert "The run for this text failed; it is requested again at" in str(sensor.tick())
            later.append(minutes * 60 - 30)
            assert "requested again" in str(sensor.tick())
            later.append(60)
            assert isinstance(sensor.tick(), dg.RunRequest)

        notes.write_text("Another still.\n")
        sensor.run(sensor.tick(), dg.DagsterRunStatus.CANCELED)
        assert "ended by hand" in str(sensor.tick())
        notes.write_text("And another.\n")
        sensor.run(sensor.tick(), dg.DagsterRunStatus.STARTED)
        assert sensor.tick() == "A run of this recipe is under way."


def test_a_grown_copy_of_a_hub_data_set_asks_for_a_run_as_a_grown_file_does(
    tmp_path: Path, home: Path
) -> None:
    path = write_local_recipe(tmp_path)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "train.jsonl").write_text('{"text": "one"}\n')
    path.write_text(
        path.read_text().replace('path: "notes/*.txt"', f"hub: ./copy, revision: {'a' * 40}")
    )
    with dg.DagsterInstance.ephemeral() as instance:
        sensor = Sensor(path, home, instance)
        sensor.run(sensor.tick(), dg.DagsterRunStatus.SUCCESS)
        assert sensor.tick() == "The local sources are what the corpus was built from."
        (tmp_path / "copy" / "more.jsonl").write_text('{"text": "two"}\n')
        assert isinstance(sensor.tick(), dg.RunRequest)


def test_two_recipes_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write_local_recipe(tmp_path, "one")
    (tmp_path / "other.yaml").write_text(path.read_text())
    files, (broken,) = recipe_files(tmp_path)
    assert [file.path for file in files] == [path] and broken.path == tmp_path / "other.yaml"
    assert f"{tmp_path / 'other.yaml'} and {path} are both named 'one'" in broken.mistake


def test_a_name_that_dagster_reserves_is_refused(tmp_path: Path) -> None:
    for name in DISALLOWED_NAMES:
        (tmp_path / "mine.yaml").write_text(f"extends: tiny\nname: '{name}'\n")
        with pytest.raises(UserError, match=rf"line 2: `name`: '{name}' is a name"):
            load_recipe(str(tmp_path / "mine.yaml"))


def test_a_key_in_the_wrong_section_is_named_with_its_own(tmp_path: Path) -> None:
    path = write_local_recipe(tmp_path)
    path.write_text(path.read_text().replace("layers:", "vocab_size: 300, layers:"))
    with pytest.raises(
        UserError, match=r"`model\.vocab_size` is not .* It is a key of `tokenizer`"
    ):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("given", "text", "message"),
    [
        ("rows.csv", "note,outcome\n", "is no recipe but data.* gpt-lineage new NAME rows.csv"),
        ("texts", None, "is no recipe but a folder.* gpt-lineage new NAME texts"),
        ("t.yaml", "form: classification\ncolumns: {}\n", "t.yaml is a task and no recipe"),
        ("s.yaml", "doc_to_text: x\noutput_type: y\n", "s.yaml is a suite and no recipe"),
        ("local", "", "A file is given by its path: local.yaml is here"),
    ],
)
def test_what_is_given_for_a_recipe_and_is_none_is_named(
    given: str, text: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_local_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    if text is None:
        Path(given).mkdir(exist_ok=True)
    elif text:
        Path(given).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        checked(given, "cpu")


def test_folder_of_recipes_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        ("name: {{ local }}", "a mapping is no text, as keys are"),
        ("name: again", "'name' stands twice"),
        ("extends: nothing", "local.yaml, line 9: `extends`: There is no recipe 'nothing'"),
        ("extends: ../nothing.yaml", "local.yaml, line 9: `extends`: There is no recipe file"),
        ("extends: local", "local.yaml, line 9: `extends`: It comes back to itself: local → local"),
    ],
)
def test_mistake_in_the_file_is_a_sentence_that_names_it(
    line: str, said: str, tmp_path: Path
) -> None:
    path = write_local_recipe(tmp_path)
    text = path.read_text()
    path.write_text(text.replace("name: local", line) if "{{" in line else f"{text}{line}\n")
    with pytest.raises(UserError) as error:
        load_recipe(str(path))
    assert said in str(error.value)


def test_numbers_are_read_as_a_person_means_them(tmp_path: Path) -> None:
    (tmp_path / "numbers.yaml").write_text(
        "a: 2e-3\nb: 1_500_000\nc: 6.25e-5\nd: 1.2.3\ne: e5\nf: 3.0.0\n"
    )
    assert read_yaml(tmp_path / "numbers.yaml") == {
        "a": 0.002,
        "b": 1_500_000,
        "c": 6.25e-5,
        "d": "1.2.3",
        "e": "e5",
        "f": "3.0.0",
    }


def test_the_recipe_that_is_explained_line_by_line_is_tiny(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "recipe-line-by-line.md").read_text(encoding="utf-8")
    explained = page.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "explained.yaml").write_text(explained, encoding="utf-8")
    assert read_yaml(tmp_path / "explained.yaml") == read_yaml(RECIPES / "tiny.yaml")


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            "imported: {hub: a/b}\ntokenizer: {vocab_size: 300}",
            "line 4: `tokenizer`: an imported model brings its own: leave tokenizer",
        ),
        (
            "imported: {hub: a/b}\ndepth: 3",
            "line 4: `depth`: It is of a model that is trained here, and an imported one has its "
            "own",
        ),
        (
            "imported: {hub: a/b}\npretraining: {seed: 2}",
            "line 4: `pretraining.tokens` is missing.",
        ),
        (
            "imported: {hub: a/b}\nscaling: {rungs: [1, 2, 3, 4, 5]}",
            "line 4: `scaling`: it is about models that are trained here: leave",
        ),
        (
            "lora: {}\nimported: {hub: a/b}\npretraining: {tokens: 9_000, batch_tokens: 100, "
            "learning_rate: 1e-4, snapshots: 2}",
            "line 5: `pretraining.snapshots`: snapshots are of whole weights, and lora trains "
            "adapters",
        ),
        ("finetuning: null\nlora: {}", "line 4: `lora`: it adapts weights that are there already"),
        (
            "pretraining: {optimizer: adamw, muon: {}}",
            "line 3: `pretraining.muon`: they are Muon's settings, and optimizer is adamw: write "
            "optimizer: muon",
        ),
        (
            "pretraining: {optimizer: muon}\nmodel: {family: lstm}\nfinetuning: null\n"
            "evaluation: null",
            "line 3: `pretraining.optimizer`: it steps the matrices of a Transformer's blocks",
        ),
        (
            "lora: {}\nimported: {hub: a/b}\npretraining: {tokens: 9_000, batch_tokens: 100, "
            "learning_rate: 1e-4, optimizer: muon}",
            "line 5: `pretraining.optimizer`: it steps whole matrices, and lora trains thin",
        ),
        (
            "scaling: {rungs: [1, 2], seeds: [1, 2, 3, 4]}",
            "line 3: `scaling.rungs`: a law takes three sizes,",
        ),
        (
            "scaling: {rungs: [1, 2, 3]}",
            "line 3: `scaling.rungs`: an interval takes four models below the largest size: found "
            "2.",
        ),
    ],
)
def test_sections_that_contradict_each_other_are_said_with_file_line_and_field(
    tmp_path: Path, sections: str, said: str
) -> None:
    path = extending(tmp_path, sections)
    with pytest.raises(UserError) as error:
        load_recipe(str(path))
    assert str(error.value).startswith(f"{path}, {said}"), str(error.value)


def test_the_optimizer_is_of_a_section_s_identity_where_it_is_not_adamw(tmp_path: Path) -> None:
    def dumped(pretraining: str) -> dict[str, Any]:
        recipe = load_recipe(str(extending(tmp_path, f"pretraining: {pretraining}", "gpt3-tiny")))
        return recipe.model_and_training[1].model_dump(mode="json")

    plain = dumped("{}")
    assert not {"optimizer", "muon"} & plain.keys()
    assert dumped("{optimizer: adamw}") == plain
    muon = dumped("{optimizer: muon}")
    assert muon == dumped("{optimizer: muon, muon: {momentum: 0.95}}")
    assert {name: muon[name] for name in plain} == plain


def test_an_optimizer_that_replaces_muon_leaves_its_settings_out(tmp_path: Path) -> None:
    def muon(pretraining: str) -> MuonSection | None:
        recipe = load_recipe(str(extending(tmp_path, f"pretraining: {pretraining}")))
        return recipe.model_and_training[1].muon

    assert muon("{optimizer: adamw}") is None
    assert muon("{seed: 2}") == muon("{optimizer: muon}") == MuonSection(learning_rate=4e-3)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            "experiments: {depth: 4}",
            "`experiments.depth` is 4: it should be a mapping with keys of layers, tokens, seeds.",
        ),
        ("model: {layers: true}", "`model.layers` is true: it should be an integer."),
        ("owners: me", "`owners` is 'me': it should be a list, in brackets."),
        ("corpus: {sources: []}", "`corpus.sources` is []: it should not be empty."),
        (
            "corpus: {sources: [{name: a b, path: a.txt}]}",
            "is 'a b': it should be letters, digits and _. Did you mean 'a_b'?",
        ),
        ("pretraining: {betas: [0.9]}", "`pretraining.betas[1]` is missing."),
        (
            "pretraining: {seed: -1}",
            "`pretraining.seed` is -1: it should be at least 0 and below 9,223,372,036,854,775,808 (what torch's generators take).",
        ),
        (
            "finetuning: {files: {boolq: 3}}",
            "is 3: it should be text or a mapping with keys of training, validation, test.",
        ),
        (
            "finetuning: {files: {boolq: {training: 3, test: a}}}",
            "`finetuning.files.boolq.training` is 3: it should be text.",
        ),
        (
            "finetuning: {files: {boolq: {trainin: a, test: a}}}",
            "files.boolq.trainin` is not a key here. Did you mean `training`?",
        ),
        (
            "scaling: {rungs: [1, two, 3, 4, 5]}",
            "`scaling.rungs[1]` is 'two': it should be an integer or a list, in brackets.",
        ),
        (
            "scaling: {rungs: [1, [2, 3, 4], 3, 4, 5]}",
            "`scaling.rungs[1]` is [2, 3, 4]: it should hold no more than 2 values.",
        ),
        (
            "scaling: {rungs: [1], tokens_per_parameter: [x]}",
            "`scaling.rungs` is [1]: it should hold 2 values or more.",
        ),
        ("3: 4", "'3' is no text, as keys are"),
    ],
)
def test_a_value_that_cannot_be_is_said_in_no_librarys_words(
    tmp_path: Path, section: str, said: str
) -> None:
    path = extending(tmp_path, section)
    with pytest.raises(UserError) as error:
        load_recipe(str(path))
    assert (
        str(error.value).startswith(f"{path}, line 3: ")
        and said in str(error.value).splitlines()[0]
    ), str(error.value)
    assert not any(
        word in str(error.value)
        for word in ("a valid", "instance", "nput should", "constrained", "pattern", "Splits")
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is nothing in it. Write `key: value` lines."),
        ("- a\n", "expected `key: value` lines, found a list."),
        ("some words\n", "expected `key: value` lines, found only 'some words'."),
        (
            "extends: tiny\nname: my-model\n",
            "`name` is 'my-model': it should be letters, digits and _. Did you mean 'my_model'?",
        ),
    ],
)
def test_a_file_that_is_no_recipe_is_said_in_a_sentence(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert str(error.value).endswith(f": {said}")


def test_a_file_of_ones_own_that_is_missing_is_named_by_its_own_field(tmp_path: Path) -> None:
    path = extending(
        tmp_path,
        "finetuning:\n  tasks: [cola]\n  files:\n    cola: {training: none.csv, test: none.csv}",
    )
    with pytest.raises(UserError, match=rf"^{path}, line 6: `finetuning.files.cola`: .*'none.csv'"):
        node_named(nodes(load_recipe(str(path))), "finetuned/cola").config(tmp_path)
    path = extending(
        tmp_path,
        "evaluation:\n  suites: [gpt3_lambada]\n  files:\n    gpt3_lambada/lambada: none.jsonl",
    )
    with pytest.raises(
        UserError,
        match=rf"^{path}, line 6: `evaluation.files.gpt3_lambada/lambada`: .*'none.jsonl'",
    ):
        node_named(nodes(load_recipe(str(path))), "zero_shot").config(tmp_path)


@pytest.mark.parametrize("page", ["experiments", "evaluation"])
def test_the_sections_that_the_pages_show_are_read_over_tiny(page: str, tmp_path: Path) -> None:
    shown = [
        part.split("```")[0]
        for part in (ROOT / "docs" / "papers" / f"{page}.md")
        .read_text(encoding="utf-8")
        .split("```yaml\n")[1:]
    ]
    assert shown
    for number, sections in enumerate(shown):
        path = extending(tmp_path, sections)
        names = [
            node.name
            for node in nodes(load_recipe(str(path)))
            if node.settings(tmp_path) is not None
        ]
        assert names[-1] == "scorecard", number


def one_and(folder: Path, name: str, sections: str) -> Path:
    """A recipe beside write_local_recipe's, of 2 layers and a context of 32, that has `sections`
    too.
    """
    path = folder / f"{name}.yaml"
    path.write_text(f"extends: local\nname: {name}\n{sections}\n")
    return path


def test_a_number_that_stands_twice_takes_away_its_own_recipe_and_no_other(tmp_path: Path) -> None:
    write_local_recipe(tmp_path)
    one_and(tmp_path, "twice", "experiments: {depth: {layers: [3, 3]}}")
    files, (broken,) = recipe_files(tmp_path)
    assert (
        broken.mistake
        == f"{tmp_path / 'twice.yaml'}, line 3: `experiments.depth.layers`: 3 stands twice: take "
        "it out."
    )
    shown = {
        key.to_user_string()
        for key in build_defs(files, [broken]).resolve_asset_graph().get_all_asset_keys()
    }
    assert shown == {
        f"local/{name}" for name in ("corpus", "tokenizer", "tokens", "pretrained", "scorecard")
    } | {"twice/twice.yaml"}


def test_two_assets_of_one_name_are_a_mistake_of_their_recipe_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_local_recipe(tmp_path)
    other = one_and(tmp_path, "other", "description: another")
    again = [node for node in nodes(load_recipe(str(other))) if node.name == "corpus"]
    monkeypatch.setattr(
        "assets.graph.scaling_nodes", lambda recipe: again if recipe.name == "other" else []
    )
    files, (broken,) = recipe_files(tmp_path)
    assert [file.path for file in files] == [path]
    assert "`corpus`: Two assets of this recipe are named corpus" in broken.mistake


TASK_OF_LABELS = """
licence: made up
source: {file: rows.jsonl}
form: classification
columns: {text: text, label: label}
labels: [NAMES]
"""


@pytest.mark.parametrize(
    ("sections", "field", "told"),
    [
        (
            "experiments: {depth: {layers: [2]}}",
            "experiments.depth.layers",
            "no other model to set it against: list others beside 2",
        ),
        (
            "experiments: {visible_context: {contexts: [8, 64]}}",
            "experiments.visible_context.contexts",
            "whose context is 32 sees 64",
        ),
        (
            "experiments: {visible_context: {contexts: [8]}}",
            "experiments.visible_context.contexts",
            "2 values or more",
        ),
        (
            "experiments: {visible_context: {contexts: [8, 8]}}",
            "experiments.visible_context.contexts",
            "8 stands twice",
        ),
        (
            "experiments: {layers_transferred: {task: piqa, layers: [2]}}",
            "experiments.layers_transferred.layers",
            "2 values or more",
        ),
        (
            "experiments: {layers_transferred: {task: piqa, layers: [2, 2]}}",
            "experiments.layers_transferred.layers",
            "2 stands twice",
        ),
        (
            "experiments: {ablations: {tasks: [piqa, piqa]}}",
            "experiments.ablations.tasks",
            "'piqa' stands twice",
        ),
        (
            "experiments: {zero_shot_dynamics: {questions: sentiment}}",
            "experiments.zero_shot_dynamics.questions",
            "sentiment is classification of 2 labels, and this heuristic wants multiple_choice",
        ),
        (
            "experiments: {zero_shot_dynamics: {sentiment: piqa}}",
            "experiments.zero_shot_dynamics.sentiment",
            "piqa is multiple_choice, and this heuristic wants classification of 2 labels",
        ),
        (
            "experiments: {zero_shot_dynamics: {acceptability: ./three.yaml}}",
            "experiments.zero_shot_dynamics.acceptability",
            "three.yaml is classification of 3 labels, and this heuristic wants classification of "
            "2 labels",
        ),
        (
            "model: {family: lstm}\nfinetuning: {tasks: [piqa]}",
            "finetuning",
            "an LSTM is only measured against: leave finetuning out",
        ),
        (
            "model: {family: lstm}\nevaluation: {suites: [held_out]}",
            "evaluation",
            "an LSTM is only measured against",
        ),
        (
            "model: {family: lstm}\nexperiments: {visible_context: {}}",
            "experiments",
            "an LSTM is only measured against",
        ),
        (
            "depth: 6\nmodel: {layers: 3}",
            "model.layers",
            "3 layers here and depth 6 contradict each other",
        ),
        (
            "evaluation: {suites: [held_out], known: gpt2-small}",
            "evaluation.known",
            "it is of an imported model as it is",
        ),
    ],
)
def test_what_would_come_to_nothing_after_training_is_refused_before_it(
    sections: str, field: str, told: str, tmp_path: Path
) -> None:
    write_local_recipe(tmp_path)
    (tmp_path / "three.yaml").write_text(TASK_OF_LABELS.replace("NAMES", "bad, fair, good"))
    path = one_and(tmp_path, "vain", f"pretraining: {{snapshots: 3}}\n{sections}")
    with pytest.raises(UserError) as error:
        check(nodes(load_recipe(str(path))), tmp_path, Node.settings)
    said = next(line for line in str(error.value).splitlines() if told in line)
    assert re.match(rf"{re.escape(str(path))}, line \d: `{re.escape(field)}`", said), said


def test_a_depth_that_the_layers_beside_it_repeat_stands(tmp_path: Path) -> None:
    write_local_recipe(tmp_path)
    same, plain = (
        load_recipe(str(one_and(tmp_path, "deep", f"depth: 6{more}"))).model_and_training
        for more in ("\nmodel: {layers: 6}", "")
    )
    assert same == plain
