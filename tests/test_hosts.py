"""Ranks on several machines, by ssh, Slurm, Ray and Kubernetes: the same bytes as on one, nothing left behind
whatever is killed, and sentences about hosts that do not fit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from kube_server import CLAIM, IMAGE
from machines import HEAD, ROOT, Machines, missing, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]
WITHIN = 20.0  # seconds; the promise after a kill is 5
SILENCE = 6.0  # seconds, in place of 45
TRANSPORTS = ("ssh", "slurm")

# As test_guard.py's: a rank with a child in a session of its own, neither of which ends by TERM.
STUBBORN = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
depth, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
if depth:
    subprocess.Popen([sys.executable, "-S", __file__, "0", str(folder)], start_new_session=True)
name = f"{os.environ['RANK']}-{depth}"
(folder / name).write_text(" ".join(os.environ[k] for k in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "OMP_NUM_THREADS")))
time.sleep(600)
"""
STARTER = """
import dataclasses, json, sys
from pathlib import Path
from typing import Any
from assets.launch.hosts import HostsLauncher
from assets.launch.launcher import Ranks
from assets.recipe.profile import Hosts
from gpt_model.errors import UserError
folder, hosts, ranks, silence = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
command = [sys.executable, "-S", str(folder / "rank.py"), "1", str(folder / "up")]
launcher = HostsLauncher(Hosts(**hosts), grace=1.0, silence=silence)
try:
    exit = launcher.run(Ranks(command, ranks, 1, folder / "journal" / "worker.log"))
except UserError as error:
    print(json.dumps({"refused": str(error), "field": error.field}))
else:
    print(json.dumps(dataclasses.asdict(exit) | {"rank": exit.failed_rank, "log": str(exit.log)}))
"""
RECIPE = """
name: hosts
corpus:
  sources: [{name: mine, path: "texts.txt", documents: paragraphs, minimum: 20}]
  held_out: 0.05
tokenizer: {style: gpt2, vocab_size: 320}
model: {family: gpt2, layers: 2, width: 32, heads: 2, context: 64}
pretraining: {tokens: 60_000, batch_tokens: 1024, learning_rate: 2.0e-3, evaluations: 2, evaluation_tokens: 1_024}
evaluation: {suites: [held_out], examples: {held_out: 10}}
"""


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with Machines(tmp_path_factory.mktemp("machines")) as running:
        running.start_ssh()
        # Ray asks for a token where any lies in ~/.ray
        environment = running.start_slurm() | {"RAY_AUTH_MODE": "disabled"}
        if shutil.which("kubectl"):
            environment |= running.start_kubernetes()
        os.environ |= environment
        yield running
        for name in environment:
            del os.environ[name]


class Started:
    """Ranks that a process on the head started, and what is left of them."""

    def __init__(
        self,
        machines: Machines,
        folder: Path,
        by: str,
        ranks: int = 2,
        silence: float = SILENCE,
        dead: Sequence[str] = (),
    ) -> None:
        """`dead`: names of hosts that do not answer, before those that do."""
        self.machines, self.folder = machines, folder
        (folder / "up").mkdir()
        (folder / "rank.py").write_text(STUBBORN)
        (folder / "starter.py").write_text(STARTER)
        (folder / "journal").mkdir()
        command = [sys.executable, str(folder / "starter.py"), str(folder)]
        settings = hosts(machines, by)
        if dead:
            settings |= {"names": [*dead, *machines.names], "nodes": len(machines.names)}
        arguments = [json.dumps(settings), str(ranks), str(silence)]
        self.process = subprocess.Popen(
            starting(machines, by, [*command, *arguments]),
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.ranks = ranks

    def up(self) -> None:
        until(lambda: len(self.alive()) == 2 * self.ranks, "the ranks did not start")

    def alive(self) -> list[psutil.Process]:
        return processes(lambda words: str(self.folder / "rank.py") in words)

    def gone(self) -> bool:
        return not self.alive()

    def rank(self) -> psutil.Process:
        return next(process for process in self.alive() if process.cmdline()[-2] == "1")

    def starter(self) -> psutil.Process:
        script = str(self.folder / "starter.py")
        [starter] = processes(lambda words: words[:2] == [sys.executable, script])
        return starter

    def outcome(self) -> dict[str, object]:
        output, _ = self.process.communicate(timeout=60)
        result: dict[str, object] = json.loads(output)
        return result


def processes(matches: Callable[[list[str]], bool]) -> list[psutil.Process]:
    """Those whose command line matches, on every machine."""
    running = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and matches(process.cmdline()):
                running.append(process)
        except psutil.Error:
            continue
    return running


def hosts(machines: Machines, by: str) -> dict[str, object]:
    if by == "ssh":
        options = ["-F", str(machines.folder / "ssh_config")]
        return {"by": "ssh", "names": machines.names, "options": options}
    if by == "ray":
        return {"by": "ray", "nodes": len(machines.names), "address": "10.77.0.11:6379"}
    if by == "kubernetes":
        volume = {"image": IMAGE, "claim": CLAIM, "mount": str(machines.folder.parent)}
        return {"by": "kubernetes", "nodes": len(machines.names), **volume}
    return {"by": "slurm", "nodes": len(machines.names), "options": ["--partition=main"]}


def starting(machines: Machines, by: str, command: list[str]) -> list[str]:
    """The command that runs `command` where ranks are started from: the head, or a node of Ray's
    cluster, which this starts.
    """
    if by == "kubernetes" and not shutil.which("kubectl"):
        pytest.skip("no kubectl here: Debian's kubernetes-client")
    if by != "ray":
        return machines.on(HEAD, command)
    pytest.importorskip("ray")
    if any(daemon.poll() is not None for daemon in machines.ray.values()) or not machines.ray:
        machines.start_ray()
    return machines.beside(machines.ray["n1"], command)


@pytest.fixture
def start(machines: Machines, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    started: list[Started] = []

    def begin(by: str, *arguments: Any, **options: Any) -> Started:
        started.append(Started(machines, tmp_path, by, *arguments, **options))
        return started[-1]

    yield begin
    for each in started:  # only where a test failed
        each.process.kill()
        for process in each.alive():
            process.kill()


def allocations(machines: Machines) -> str:
    """Slurm's queue."""
    command = machines.on(HEAD, ["squeue", "--noheader"])
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def kubectl(machines: Machines, *arguments: str) -> str:
    command = machines.on(HEAD, ["kubectl", *arguments])
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def kill(started: Started, what: str, by: str) -> None:
    """kill -9 of one process of those that carry the ranks."""
    rank = started.rank()
    if what == "rank":
        rank.kill()
    elif what in ("guard", "watcher"):
        guards = [parent for parent in rank.parents() if "guard.py" in " ".join(parent.cmdline())]
        guards[("guard", "watcher").index(what)].kill()
    elif what == "actor":
        next(each for each in rank.parents() if each.name().startswith("ray::")).kill()
    elif what == "carrier":
        word = {"ssh": "ssh", "slurm": "srun"}.get(by, f"assets.launch.{by}_carrier")
        carriers = psutil.Process(started.process.pid).children(recursive=True)
        next(process for process in carriers if word in process.cmdline()).kill()
    elif what in ("head", "node") and by == "ray":
        started.machines.ray["n1" if what == "head" else "n2"].kill()
    elif what == "node":
        started.machines.lose("n2", {"ssh": "sshd", "slurm": "slurmd"}[by])
    elif what == "starter":
        started.starter().kill()
    else:
        started.process.kill()  # the head, and with it all its processes


KILLED = ("rank", "guard", "watcher", "carrier", "starter", "head", "node")


@pytest.mark.parametrize(
    ("by", "what"),
    [
        *((by, what) for by in TRANSPORTS for what in KILLED),
        *(("ray", what) for what in ("actor", "guard", "carrier")),
        *(("kubernetes", what) for what in ("rank", "watcher", "carrier", "starter")),
    ],
)
def test_no_rank_outlives_a_kill_of_anything(
    machines: Machines, start: Callable[..., Started], by: str, what: str
) -> None:
    # Silence would tell the head's death too, and too late: it is not to be what does here.
    started = start(by, silence=10 * WITHIN if what == "head" else SILENCE)
    started.up()
    kill(started, what, by)
    seconds = until(lambda: not started.alive(), f"ranks outlived the {what}", WITHIN)
    print(f"{by}, {what} killed: ranks gone after {seconds:.2f} s")
    until(lambda: not allocations(machines), "an allocation was left", 60)
    if by == "kubernetes":
        if what == "carrier":  # the next attempt removes it, or its time to live
            assert "jobset" in kubectl(machines, "delete", "jobsets", "--all", "--wait=false")
        left = ("get", "jobsets,pods", "--output=name")
        until(lambda: not kubectl(machines, *left), "a JobSet was left", 60)
    if what not in ("starter", "head"):
        outcome = started.outcome()
        assert outcome["code"] == -signal.SIGKILL
        assert (what == "rank") == (outcome["rank"] is not None)
        host = "Host lineage-" if by == "kubernetes" else "Host n"
        assert what == "rank" or str(outcome["lost"]).startswith(host)
        if what == "rank":
            assert all(f"Host {name}".startswith(host) for name in outcome["hosts"])
            assert len(set(outcome["hosts"])) == 2


@pytest.mark.parametrize("by", TRANSPORTS)
def test_where_a_cable_is_pulled_both_halves_end(
    machines: Machines, start: Callable[..., Started], by: str
) -> None:
    started = start(by)
    started.up()
    machines.pull_cable("n2")
    try:
        until(lambda: not started.alive(), "ranks outlived their cable", 6 * SILENCE)
        assert "n2" in str(started.outcome()["lost"])
    finally:
        machines.plug_cable("n2")
    until(lambda: not allocations(machines), "an allocation was left", 90)
    if by == "slurm":
        until(machines.slurm_is_idle, "n2 stayed down", 90)


def test_each_rank_has_its_number_on_its_host_and_a_spare_host_stands_in_for_a_dead_one(
    start: Callable[..., Started],
) -> None:
    started = start("ssh", 4, dead=["n9"])
    started.up()
    ranks = [(started.folder / "up" / f"{rank}-1").read_text().split() for rank in range(4)]
    assert [words[:2] for words in ranks] == [["0", "0"], ["1", "1"], ["2", "0"], ["3", "1"]]
    assert {words[2] for words in ranks} == {"10.77.0.11"}
    started.process.kill()
    until(lambda: not started.alive(), "ranks outlived the head", WITHIN)


@pytest.mark.parametrize(
    ("changed", "field", "sentence"),
    [
        ({"names": ["n1", "n9"]}, "hosts.names", "Host n9 does not answer by ssh"),
        (
            {"by": "slurm", "nodes": 2, "options": ["--partition=none"]},
            "hosts.options",
            "partition",
        ),
        (
            {"by": "ray", "nodes": 2, "address": "10.77.0.12:6379"},
            "hosts.address",
            "No Ray cluster at 10.77.0.12:6379",
        ),
        ({"by": "ray", "nodes": 3}, "hosts.nodes", "The Ray cluster has 2 nodes"),
        (
            {"by": "ray", "nodes": 2, "resources": {"GPU": 2}},
            "hosts.resources",
            "No node of the Ray cluster has GPU 2: the most is 0",
        ),
    ],
)
def test_hosts_that_cannot_be_had_are_named(
    machines: Machines, tmp_path: Path, changed: dict[str, object], field: str, sentence: str
) -> None:
    by = str(changed.get("by", "ssh"))
    settings = hosts(machines, by) | changed
    (tmp_path / "starter.py").write_text(STARTER)
    done = subprocess.run(
        starting(
            machines,
            by,
            [
                *(sys.executable, str(tmp_path / "starter.py"), str(tmp_path)),
                *(json.dumps(settings), "6", str(SILENCE)),
            ],
        ),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    outcome = json.loads(done.stdout)
    assert outcome["field"] == field and sentence in outcome["refused"], outcome
    assert not allocations(machines)


FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
LATE = f"LD_PRELOAD={FAKETIME} FAKETIME=+5m"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("mount -t tmpfs none {folder}/journal", "does not see the store's folder"),
        ("mount -t tmpfs -o size=9m none {folder}/small", "has 9 MB free in its temporary folder"),
        pytest.param(
            f'set -- "$@" -o SetEnv="{LATE}"',
            "'s clock is 300 s from this machine's",
            marks=pytest.mark.skipif(not FAKETIME.exists(), reason="apt-get install libfaketime"),
        ),
    ],
)
def test_a_host_that_does_not_fit_is_named_and_nothing_runs(
    machines: Machines, tmp_path: Path, change: str, sentence: str
) -> None:
    """n2 by another sshd, for which `change` has changed the machine."""
    (tmp_path / "journal").mkdir()
    (tmp_path / "small").mkdir()
    (tmp_path / "starter.py").write_text(STARTER)
    settings = tmp_path / "ssh_config"
    settings.write_text(f"Host n2\n  Port 2222\n{(machines.folder / 'ssh_config').read_text()}")
    sshd = f'{change.format(folder=tmp_path)}; exec /usr/sbin/sshd "$@"'
    log = tmp_path / "sshd.log"
    arguments = ["-D", "-E", str(log), "-p", "2222", "-f", str(machines.folder / "sshd_config")]
    daemon = machines.start("n2", ["sh", "-c", sshd, "sh", *arguments])
    try:
        until(lambda: log.exists() and "listening" in log.read_text(), "no sshd on n2")
        profile = hosts(machines, "ssh") | {"options": ["-F", str(settings)]}
        profile["environment"] = {"TMPDIR": str(tmp_path / "small")}
        command = [sys.executable, str(tmp_path / "starter.py"), str(tmp_path)]
        done = subprocess.run(
            machines.on(HEAD, [*command, json.dumps(profile), "2", str(SILENCE)]),
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        outcome = json.loads(done.stdout)
        assert outcome["field"] == "hosts", outcome
        assert outcome["refused"].startswith("Host n2") and sentence in outcome["refused"], outcome
        below = set(psutil.Process(daemon.pid).children(recursive=True))
        guards = below & set(processes(lambda words: "of-several" in words))
        assert not psutil.wait_procs(guards, timeout=WITHIN)[1], "a guard was left"
    finally:
        daemon.kill()


class Recipe:
    """One recipe, built by one profile or another in a store of its own."""

    def __init__(self, machines: Machines, folder: Path) -> None:
        self.machines, self.folder = machines, folder
        words = ["river", "stone", "bread", "light", "north", "seven", "garden", "horse"]
        texts = (" ".join(words[(i * j + i // 7) % 8] for j in range(1, 30)) for i in range(900))
        (folder / "texts.txt").write_text(
            "\n\n".join(f"{text} {i}." for i, text in enumerate(texts))
        )
        (folder / "hosts.yaml").write_text(RECIPE)

    def run(self, by: str, processes: int = 2, **changes: object) -> subprocess.Popen[str]:
        profile = {"name": by, "processes": processes, "threads": 1, "checkpoint_seconds": 1}
        if by != "here":
            profile["hosts"] = hosts(self.machines, by) | changes
        (self.folder / f"{by}.yaml").write_text(yaml.safe_dump(profile))
        return self.run_in(by, by)

    def run_in(self, home: str, profile: str) -> subprocess.Popen[str]:
        run = [sys.executable, "-m", "pipelines.cli", "run", str(self.folder / "hosts.yaml")]
        return subprocess.Popen(
            starting(
                self.machines, home, [*run, "--profile", str(self.folder / f"{profile}.yaml")]
            ),
            env=os.environ | {"PYTHONPATH": str(ROOT), "LINEAGE_HOME": str(self.folder / home)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def copy_up_to_tokens(self, name: str) -> Path:
        """A store, in place of any other of this name, that lacks what is trained, and MLflow's
        records.
        """
        home = self.folder / name
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(self.folder / "here" / "artifacts", home / "artifacts", symlinks=True)
        for manifest in home.glob("artifacts/*/artifact.json"):
            if json.loads(manifest.read_text())["stage"] not in ("corpus", "tokenizer", "tokens"):
                shutil.rmtree(manifest.parent)
        return home

    def digests(self, by: str) -> dict[str, str]:
        """Stage -> digest of what is in the store."""
        manifests = (self.folder / by / "artifacts").glob("*/artifact.json")
        facts = (json.loads(path.read_text()) for path in manifests)
        return {fact["stage"]: fact["digest"] for fact in facts}

    def metrics(self, by: str) -> list[tuple[str, int, int]]:
        """How often MLflow has which score at which step."""
        once = (
            "select key, step, count(*) from metrics where key like 'train/%' or key like 'eval/%' "
            "group by key, step order by key, step"
        )
        with closing(sqlite3.connect(self.folder / by / "mlflow.db")) as database:
            return database.execute(once).fetchall()


@pytest.fixture(scope="module")
def recipe(machines: Machines, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Built on the head alone."""
    built = Recipe(machines, tmp_path_factory.mktemp("recipe"))
    finish(built.run("here"))
    assert len(built.digests("here")) == 6
    return built


def finish(run: subprocess.Popen[str]) -> str:
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def runs(recipe: Recipe) -> dict[str, subprocess.Popen[str]]:
    """The recipe built by each transport, all at the same time: each waits for its hosts."""
    transports = [*TRANSPORTS, *(["ray"] if find_spec("ray") else [])]
    return {by: recipe.run(by) for by in transports}


@pytest.mark.parametrize("by", [*TRANSPORTS, "ray"])
def test_a_recipe_has_the_digests_of_one_machine_on_two(
    recipe: Recipe, runs: dict[str, subprocess.Popen[str]], by: str
) -> None:
    if by not in runs:
        pytest.skip("ray is not installed")
    finish(runs[by])
    assert recipe.digests(by) == recipe.digests("here")


def test_a_stage_in_pods_has_the_digest_of_one_machine(recipe: Recipe) -> None:
    recipe.copy_up_to_tokens("kubernetes")
    finish(recipe.run("kubernetes"))
    assert recipe.digests("kubernetes") == recipe.digests("here")


def test_a_detached_job_is_found_again_when_its_starter_was_killed(
    machines: Machines, recipe: Recipe
) -> None:
    home = recipe.copy_up_to_tokens("slurm")
    first = recipe.run("slurm", detached=True)

    def training() -> list[Path]:
        events = home.glob("building/*/journal/events.jsonl")
        return [path for path in events if '"loss"' in path.read_text()]

    until(lambda: bool(training()), "nothing was trained", 120)
    [starter] = processes(
        lambda words: (
            words[1:4] == ["-m", "pipelines.cli", "run"] and str(recipe.folder) in words[4]
        )
    )
    job = allocations(machines).split()[0]
    starter.kill()
    shutil.copy(recipe.folder / "here.yaml", recipe.folder / "other.yaml")
    output = finish(recipe.run_in("slurm", "other"))  # whatever the profile of the next start is
    first.communicate()
    assert f"Slurm's job {job} goes on from an earlier start" in output
    assert recipe.digests("slurm") == recipe.digests("here")
    assert not allocations(machines)
    assert recipe.metrics("slurm") == recipe.metrics("here")  # each once


def test_terminating_a_detached_run_cancels_its_job(machines: Machines, recipe: Recipe) -> None:
    recipe.copy_up_to_tokens("slurm")
    run = recipe.run("slurm", detached=True)
    until(lambda: bool(allocations(machines)), "no job was submitted", 120)
    [starter] = processes(
        lambda words: (
            words[1:4] == ["-m", "pipelines.cli", "run"] and str(recipe.folder) in words[4]
        )
    )
    starter.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    until(lambda: not allocations(machines), "the job was not cancelled", 60)
