"""What tests share: a home of their own, the downloads cache, and one small recipe built once
through the Dagster job.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from workshop import Workshop

from assets.build import Request, build, gather_inputs
from assets.graph import node_named, nodes
from assets.launch.launcher import LocalLauncher
from assets.recipe.profile import load_profile
from assets.recipe.recipe import load_recipe
from assets.store.store import Store
from assets.tracking.tracking import Tracking

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent
CI_RECIPE = ROOT / "tests" / "recipes" / "ci.yaml"
# A shell's own settings (make exports some) are not the tests'; each has a home of its own.
for name in (
    "LINEAGE_HOME",
    "DAGSTER_HOME",
    "LINEAGE_PROFILE",
    "LINEAGE_RECIPES",
    "MLFLOW_TRACKING_URI",
    "LINEAGE_WANDB",
    "LINEAGE_TENSORBOARD",
    "LINEAGE_REMOTE",
    "LINEAGE_DAGSTER_DB",
):
    os.environ.pop(name, None)
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell starts background commands with it ignored, and children inherit that
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def downloads() -> Path:
    """Package files already fetched stay between test runs; each is verified on use."""
    folder = ROOT / ".cache" / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def environment_of(home: Path, downloads: Path) -> dict[str, str]:
    """The environment of a command on the store `home`, with the downloads shared between homes and
    no compiler within reach.
    """
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "downloads").exists():
        (home / "downloads").symlink_to(downloads, target_is_directory=True)
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in ("MLFLOW_TRACKING_URI", "LINEAGE_PROFILE", "LINEAGE_RECIPES")
    }
    no_compiler = {"CC": "/bin/false", "CXX": "/bin/false"}
    return {
        **clean,
        **no_compiler,
        "LINEAGE_HOME": str(home),
        "DAGSTER_HOME": str(home / "dagster"),
    }


@pytest.fixture
def home(tmp_path: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, which this process uses too."""
    home = tmp_path / "lineage"
    for name, value in environment_of(home, downloads).items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_TRACKING_URI", "LINEAGE_PROFILE", "LINEAGE_RECIPES"):
        monkeypatch.delenv(name, raising=False)
    return home


Cli = Callable[..., subprocess.CompletedProcess[str]]


def run_cli(
    home: Path, downloads: Path, *arguments: str, timeout: float = 900, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """`gpt-lineage` as a person runs it."""
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    return subprocess.run(
        command,
        env={**environment_of(home, downloads), "PYTHONPATH": str(ROOT)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture
def cli(home: Path, downloads: Path) -> Cli:
    """`cli("list", "--json")` on this test's own store."""
    return lambda *arguments, **options: run_cli(home, downloads, *arguments, **options)


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    """Headless Chromium. A machine without one skips what needs it, but not CI."""
    from docs.pictures import browser, chromium  # loads Playwright, which few tests need

    if chromium() is None and "CI" not in os.environ:
        pytest.skip("no Chromium or Chrome on this machine")
    with browser() as started:
        yield started


class BuiltStore:
    """The CI recipe, built once through its job; `printed` is what the command said."""

    def __init__(self, home: Path, downloads: Path) -> None:
        self.home, self.downloads, output = home, downloads, home.parent / "output.txt"
        with FileLock(home.parent / "lock"):  # test processes side by side share one
            if not output.exists():
                first = run_cli(home, downloads, "run", str(CI_RECIPE))
                assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-6000:]
                output.write_text(first.stdout)
        self.printed = output.read_text()

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_cli(self.home, self.downloads, *arguments)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> BuiltStore:
    """A store with the CI recipe in it. Read it; do not write to it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built"
    folder.mkdir(exist_ok=True)
    return BuiltStore(folder / "lineage", downloads)


MAKE_MLFLOW_DATABASE = (
    "import sys; from pathlib import Path; from assets.tracking.server import Server; "
    "Server(Path(sys.argv[1])).experiment('other')"
)


@pytest.fixture(scope="session")
def first_start(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A database of MLflow's made and migrated once, which takes seconds, by two processes at the
    same time; and their exit statuses.
    """
    home = tmp_path_factory.mktemp("template")
    command = [sys.executable, "-c", MAKE_MLFLOW_DATABASE, str(home)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    return home / "mlflow.db", [process.wait() for process in both]


@pytest.fixture
def workshop_home(
    tmp_path: Path, first_start: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A store with nothing in it but MLflow's database."""
    for name in ("MLFLOW_TRACKING_URI", "LINEAGE_MLFLOW_UI", "LINEAGE_DAGSTER_UI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    shutil.copy(first_start[0], tmp_path / "home" / "mlflow.db")
    return tmp_path / "home"


@pytest.fixture
def workshop(workshop_home: Path) -> Workshop:
    return Workshop(workshop_home)


@pytest.fixture
def bfloat16_passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """This CPU evaluates as a GPU does. Of each forward pass of a block: whether in bfloat16."""
    # torch loads in seconds, and many tests need none
    from torch import bfloat16, get_autocast_dtype, is_autocast_enabled, nn
    from torch.nn.modules.module import register_module_forward_pre_hook

    from gpt_model.training import engine
    from gpt_model.transformer import Block

    passes: list[bool] = []

    def record(module: nn.Module, _: object) -> None:
        if isinstance(module, Block):
            passes.append(is_autocast_enabled("cpu") and get_autocast_dtype("cpu") == bfloat16)

    monkeypatch.setattr(engine, "EVALUATED_IN_BFLOAT16", {"cpu"})
    hook = register_module_forward_pre_hook(record)
    yield passes
    hook.remove()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


LOCAL_RECIPE = """\
name: {name}
corpus:
  sources:
    - {{name: notes, path: "notes/*.txt", documents: paragraphs, licence: CC0-1.0}}
  held_out: 0.1
tokenizer: {{style: gpt2, vocab_size: 300}}
model: {{family: gpt2, layers: 2, width: 32, heads: 2, context: 32, dropout: 0.1}}
pretraining: {{tokens: {tokens}, batch_tokens: 512, learning_rate: 3e-3, warmup_tokens: 512, seed: 1, evaluations: 2, samples: 1}}
"""

SUBJECTS = (
    "the king",
    "a sailor",
    "my brother",
    "the old tree",
    "some rain",
    "no one",
    "the baker",
    "her letter",
)
VERBS = ("sees", "carries", "forgets", "follows", "sings to", "waits for", "finds", "answers")


def write_notes(folder: Path, paragraphs: int, start: int = 0) -> None:
    """A file of plain made-up sentences in `folder`, each paragraph another, the same for the same
    numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for n in range(start, start + paragraphs):
        words = [
            f"{SUBJECTS[(n * 7 + k * 3) % 8]} {VERBS[(n * 5 + k) % 8]} "
            f"{SUBJECTS[(n + k * 5 + 1) % 8]}"
            for k in range(6)
        ]
        lines.append(f"In the year {n}, " + ", and ".join(words) + ".")
    (folder / f"notes{start}.txt").write_text("\n\n".join(lines) + "\n")


def write_local_recipe(
    folder: Path, name: str = "local", tokens: int = 20_480, paragraphs: int = 400
) -> Path:
    """A recipe over text files beside it: seconds to build, and its source can grow."""
    write_notes(folder / "notes", paragraphs)
    path = folder / f"{name}.yaml"
    path.write_text(LOCAL_RECIPE.format(name=name, tokens=tokens))
    return path


def extending(folder: Path, sections: str, parent: str = "tiny") -> Path:
    """A recipe that extends `parent` with `sections`, which begin in its line 3."""
    path = folder / "mine.yaml"
    path.write_text(f"extends: {parent}\nname: mine\n{sections}\n")
    return path


STAGES = ("corpus", "tokenizer", "tokens")


def build_stages(recipe: Path, home: Path, stages: tuple[str, ...] = STAGES) -> None:
    """Build the cheap stages as the pipeline does, without Dagster round them."""
    store, graph = Store(home), nodes(load_recipe(str(recipe)))
    profile = load_profile("single")
    for name in stages:
        node = node_named(graph, name)
        request = Request(node, gather_inputs(store, node), node.config(recipe.parent), profile)
        build(request, store, LocalLauncher(), Tracking(home))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Path:
    """The home of a store with the corpus, tokenizer and tokens of two recipes on the same text.
    Read it; do not write to it.
    """
    folder = tmp_path_factory.mktemp("small")
    home = folder / "lineage"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment_of(home, downloads).items():
            patch.setenv(name, value)
        recipe = write_local_recipe(folder)
        build_stages(recipe, home)
        other = folder / "other.yaml"
        other.write_text(
            recipe.read_text()
            .replace("name: local", "name: other")
            .replace("vocab_size: 300", "vocab_size: 320")
        )
        build_stages(other, home)
    return home


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """A copy of the small store, to be damaged."""
    return shutil.copytree(small, tmp_path / "copy", symlinks=True)


LONGEST_FILES = (  # by the seconds of their tests in CI: the one that takes most is the first
    "test_pipeline",
    "test_published_recipes",
    "test_twins",
    "test_alignment_pipeline",
    "test_cli",
    "test_hosts",
    "test_resume",
    "test_imported",
    "test_ladder",
    "test_secrets",
    "test_kills",
    "test_ppo_resume",
    "test_team",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever reads the built store is slow: the recipe takes the better part of a minute. The
    longest files begin first: one that begins last leaves the other cores idle.
    """
    for item in items:
        if "built" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    ranks = {name: rank for rank, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their length: compressed ones may hold the time, and then the workers of
    pytest-xdist would collect different tests.
    """
    return f"{argname}: {len(val)} bytes" if isinstance(val, bytes) else None
