"""Parts of a recipe: what `run --select` and `run --dry-run` choose, say and build; and what the
shell completes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment_of, run_cli
from typer.main import get_group
from typer.testing import CliRunner

from assets.recipe.recipe import RECIPES, load_recipe
from assets.stages.finetuning import task_names
from assets.store.store import Store
from gpt_model.errors import UserError
from pipelines.cli.main import MODULES, app
from pipelines.definitions import RecipeFile, build_defs
from pipelines.selection import selected

TINY = ["corpus", "tokenizer", "tokens", "pretrained"]
TASKS = [f"finetuned/{task}" for task in task_names(load_recipe("tiny"))]


@pytest.fixture(scope="module")
def tiny() -> RecipeFile:
    path = RECIPES / "tiny.yaml"
    return RecipeFile(load_recipe(str(path)), path)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("pretrained", ["pretrained"]),
        ("pretrained+", ["pretrained", *TASKS, "zero_shot", "scorecard"]),
        ("+scorecard", [*TINY, *TASKS, "zero_shot", "scorecard"]),
        ("1+zero_shot", [*TINY, "zero_shot"]),
        ("finetuned/*", TASKS),
        (f"tokens, {TASKS[0]}", ["tokens", TASKS[0]]),
        ("tiny/tokens or key:corpus", ["corpus", "tokens"]),
        ("kind:deepspeed and not finetuned/*", ["pretrained"]),
        ("roots(*)", ["corpus"]),
    ],
)
def test_selection_is_in_dagsters_syntax_on_the_recipes_names(
    text: str, names: list[str], tiny: RecipeFile
) -> None:
    chosen = selected(text, tiny.nodes, build_defs([tiny]))
    assert [node.name for node in chosen] == names


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pretraind", "no asset 'pretraind'. Did you mean pretrained?"),
        ("pretrained and", "cannot be read. Dagster's syntax is read"),
        ("kind:snowflake", "selects no asset of tiny. It has: corpus,"),
        ("", "cannot be read"),
    ],
)
def test_a_selection_with_a_mistake_is_a_sentence(
    text: str, sentence: str, tiny: RecipeFile
) -> None:
    with pytest.raises(UserError) as caught:
        selected(text, tiny.nodes, build_defs([tiny]))
    assert sentence in str(caught.value) and "key:" not in str(caught.value)


@pytest.fixture
def changed(small: Path, copy: Path) -> Path:
    """The recipe of the small store with another vocabulary, beside its texts; `copy` is its
    store.
    """
    recipe = small.parent / "changed.yaml"
    text = (small.parent / "local.yaml").read_text()
    recipe.write_text(text.replace("vocab_size: 300", "vocab_size: 310"))
    return recipe


@pytest.mark.slow
def test_dry_run_says_what_is_found_and_built_and_why(changed: Path, copy: Path) -> None:
    on_copy = {"LINEAGE_HOME": str(copy)}
    runner = CliRunner()
    before = sorted(copy.rglob("*"))
    done = runner.invoke(app, ["run", str(changed), "--dry-run", "--json"], env=on_copy)
    facts = json.loads(done.stdout)
    states = {row["asset"]: (row["state"], row["why"]) for row in facts["stages"]}
    assert states["local/corpus"] == ("found", "")
    assert states["local/tokenizer"] == ("build", "changed: vocab_size")
    assert states["local/tokens"] == ("build", "after tokenizer")
    text = runner.invoke(
        app, ["run", str(changed), "-n", "-s", "tokenizer or tokens"], env=on_copy
    ).stdout
    assert "0 found, 2 to build" in text and "Nothing was run" in text
    assert "local/corpus" not in text
    assert sorted(copy.rglob("*")) == before
    # what is selected reads what is neither built nor selected
    done = runner.invoke(app, ["run", str(changed), "-s", "scorecard"], env=on_copy)
    assert done.exit_code == 1 and done.stdout == ""
    assert "reads local/pretrained, not built yet and not selected" in done.stderr
    done = runner.invoke(app, ["run", str(changed), "-s", "tokens", "-n"], env=on_copy)
    assert "local/tokenizer (changed: vocab_size)" in done.stderr


@pytest.mark.slow
def test_run_builds_what_is_selected_and_no_more(
    changed: Path, copy: Path, downloads: Path
) -> None:
    before = dict(Store(copy).refs())
    done = run_cli(copy, downloads, "run", str(changed), "--select", "+tokenizer", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["found"], document["built"]) == (1, 1)
    assert sorted(document["artifacts"]) == ["corpus", "tokenizer"]
    after = Store(copy).refs()
    assert {ref for ref in after if after[ref] != before.get(ref)} == {"local/tokenizer"}


def completed(home: Path, downloads: Path, line: str) -> list[str]:
    """What the shell is given for `line`, whose last word is begun. The process fails where it
    imports something heavy.
    """
    script = (
        "import sys\n"
        "for name in ('torch', 'dagster', 'mlflow', 'pandas', 'transformers'):\n"
        "    sys.modules[name] = None\n"
        "from pipelines.cli.main import main\n"
        "main()"
    )
    words = line.split(" ")
    environment = environment_of(home, downloads) | {
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_GPT_LINEAGE_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.slow
def test_shell_completes_recipes_artifacts_profiles_and_experiments(
    small: Path, tmp_path: Path, downloads: Path
) -> None:
    def complete(line: str) -> list[str]:
        return completed(home, downloads, f"gpt-lineage {line}")

    home = shutil.copytree(small, tmp_path / "copy", symlinks=True)
    tokens = Store(home).resolve("local/tokens").fingerprint
    Store(home).set_ref("local", "experiments/depth", tokens)
    assert set(complete("")) == set(MODULES)
    assert complete("run gpt2-x") == ["gpt2-xl"]
    assert complete("run tiny --profile si") == ["single"]
    assert complete("run tiny --select +fi") == [f"+{name}" for name in TASKS]
    assert complete("show local/tok") == ["local/tokenizer", "local/tokens"]
    assert complete("trace local/exp") == ["local/experiments/depth"]
    assert complete(f"show {tokens[:6]}") == [tokens[:12]]
    assert complete("diff local/tokens other/c") == ["other/corpus"]


@pytest.mark.slow
def test_help_and_version_import_nothing_heavy(small: Path, downloads: Path) -> None:
    for arguments in (["--help"], ["run", "--help"], ["chat", "--help"], ["--version"]):
        script = (
            "import sys; from pipelines.cli.main import app\n"
            f"app({arguments!r}, standalone_mode=False)\n"
            "heavy = {'torch', 'dagster', 'mlflow', 'pandas', 'numpy'}\n"
            "print(sorted(heavy & set(sys.modules)))"
        )
        environment = environment_of(small, downloads)
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "[]", arguments
    assert "gpt-lineage 0." in done.stdout


def test_every_command_argument_and_option_says_what_it_is() -> None:
    group = get_group(app)
    for name in MODULES:
        command = group.commands[name]
        assert command.help and command.help.strip().endswith("."), name
        for parameter in command.params:
            assert getattr(parameter, "help", None), (name, parameter.name)
    text = CliRunner().invoke(app, ["--help"]).stdout
    assert all(f"\n  {name} " in text for name in MODULES)
    assert "\x1b" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colours_are_left_out_of_pipes_and_by_no_color(
    settings: dict[str, str], coloured: bool, small: Path, downloads: Path
) -> None:
    clean = environment_of(small, downloads)
    environment = {k: v for k, v in clean.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "show", "local/tokens"],
        env=environment | settings,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    green = "\x1b[32mpassed"
    assert (green in done.stdout) is coloured and "passed" in done.stdout
