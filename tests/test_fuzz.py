"""A fuzzer of what people write and of what may be damaged: recipes, profiles, tasks, suites,
manifests, rows. Whatever is in them, a command ends within 5 s, in an answer or in sentences.

`make test` tries 500 cases, always the same; `make fuzz` tries 20,000 others in a night.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import write_notes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from assets.contract import Check, Verdict
from assets.recipe.recipe import RECIPES
from assets.recipe.yaml_file import read_yaml
from assets.store.manifest import Facts
from assets.store.provenance import provenance
from assets.store.store import Store
from gpt_model.data.formats import read_rows
from gpt_model.errors import UserError
from gpt_model.evaluation.suites import SUITES
from gpt_model.finetuning.entry import CATALOGUE
from pipelines.cli.main import app

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("FUZZ_CASES", "500"))
SECONDS = 5.0
SHARES = {
    "recipe": 0.4,
    "profile": 0.1,
    "task": 0.12,
    "suite": 0.12,
    "manifest": 0.13,
    "rows": 0.13,
}
# What no accepted recipe or profile holds, whatever their sections say of it
MOST = {
    "layers": 2_000,
    "width": 200_000,
    "context": 2**20,
    "vocab_size": 2**20,
    "tokens": 10**15,
    "learning_rate": 1,
    "weight_decay": 10,
    "held_out": 0.5,
    "dropout": 1,
    "epochs": 10_000,
    "processes": 100_000,
}

Draw = Callable[[st.SearchStrategy[Any]], Any]


def fuzzed(kind: str) -> Callable[[Any], Any]:
    return settings(
        max_examples=max(1, round(CASES * SHARES[kind])),
        deadline=None,
        database=None,
        derandomize="FUZZ_CASES" not in os.environ,  # the same cases in every `make test`
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.integers(-2, 5),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [
            *(
                "",
                " ",
                "~",
                "x" * 5000,
                "../..",
                "/",
                "\0",
                "~nobody-here/x",
                "a/" * 3000,
                "-",
                ".",
            ),
            *("*a" * 60, "/**/*", "**", "[", "{", "a!b!c", "{{ x }}", "%s", "🎭", "é", "\n", "yes"),
            *("./mine.yaml", "tiny", "notes/*.txt", "notes", "/proc/self/environ", "/dev/zero"),
        ]
    ),
    st.lists(st.one_of(st.integers(-1, 9), st.text(max_size=3), st.none()), max_size=4),
    st.dictionaries(st.text(max_size=4), st.one_of(st.integers(), st.none()), max_size=3),
)
SNIPPETS = st.sampled_from(
    [
        *("&a ", "*a", "<<: *a\n", "!!bool ", "!!set ", "!!int ", "{", "}", "[", "]", "- ", ": "),
        *("\t", "? ", "|\n", ">\n", "---\n", "...\n", "%YAML 1.1\n", "'", '"', "#", "0x_", "._"),
        *("1:30", "010", "x-a: ", "\x00", "\u2028", "1e400", "é", "  ", "\n", "~", ",", "!", "@"),
        *("[" * 200, "- " * 200, "9" * 5000),
    ]
)


def locations(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a document."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from locations(value[key])


def mutated(document: Any, draw: Draw) -> Any:
    """A copy with one to three values replaced, removed, moved or repeated."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        found = list(locations(document))
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        change = draw(
            st.sampled_from(["replace", "replace", "replace", "remove", "rename", "copy"])
        )
        if change == "replace":
            container[key] = draw(NASTY)
        elif change == "remove":
            del container[key]
        elif change == "copy":
            source, name = draw(st.sampled_from(found))
            with suppress(KeyError, IndexError):  # one that an earlier change took out
                container[key] = copy.deepcopy(source[name])
        elif isinstance(container, dict):
            container[draw(st.text(max_size=12))] = container.pop(key)
        else:
            container.insert(key, copy.deepcopy(container[key]))
    return document


def written(document: Any, draw: Draw) -> bytes:
    """A mutated document as YAML, or its YAML with a snippet put into it."""
    if draw(st.booleans()):
        text = yaml.safe_dump(mutated(document, draw), sort_keys=False, allow_unicode=True)
    else:
        text = yaml.safe_dump(document, sort_keys=False)
        for _ in range(draw(st.integers(1, 2))):
            at = draw(st.integers(0, len(text)))
            text = text[:at] + draw(SNIPPETS) + text[at + draw(st.integers(0, 3)) :]
    return text.encode("utf-8", "surrogatepass")


@contextmanager
def in_time() -> Iterator[None]:
    """Processor time, as others may be at work; a case that waits for ever ends by pytest's limit."""
    began = time.process_time()
    yield
    assert time.process_time() - began < SECONDS


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if name not in ("examples", "held_back"):  # whose keys are tasks and suites
                yield from numbers(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from numbers(item, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def plan(folder: Path, recipe: str, profile: str = "single") -> dict[str, Any] | None:
    """`gpt-lineage plan` of a file in `folder`: strict JSON, or sentences. Any other exception than
    a person's mistake is raised here.
    """
    with in_time():
        result = CliRunner().invoke(
            app,
            ["plan", str(folder / recipe), "--profile", profile, "--json"],
            env={"LINEAGE_HOME": str(folder / "lineage"), "HF_HUB_OFFLINE": "1"},
            catch_exceptions=False,
        )
    assert result.exit_code in (0, 1)
    if result.exit_code:
        assert result.stderr.strip() and "Traceback" not in result.stderr
        assert len(result.stderr) < 60_000 and result.stdout == ""
        return None
    facts: dict[str, Any] = json.loads(result.stdout, parse_constant=pytest.fail)
    return facts


def require_within_bounds(path: Path) -> None:
    """No number of an accepted file is outside MOST, which is written down apart from the code."""
    for name, number in numbers(read_yaml(path)):
        assert math.isfinite(number) and number <= MOST.get(name, math.inf), (name, number)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_notes(folder / "notes", 40)
    return folder


LOCAL = {
    "name": "local",
    "corpus": {
        "sources": [
            {"name": "notes", "path": "notes/*.txt", "documents": "paragraphs", "weight": 1.0}
        ],
        "held_out": 0.1,
        "seed": 1,
    },
    "tokenizer": {"style": "gpt2", "vocab_size": 300},
    "model": {"family": "gpt3", "layers": 2, "width": 32, "heads": 2, "context": 32, "band": 8},
    "pretraining": {
        "tokens": 20480,
        "batch_tokens": 512,
        "batch_ramp": {"from_tokens": 128, "over_tokens": 4096},
        "learning_rate": 0.003,
        "betas": [0.9, 0.95],
        "weight_decay": 0.1,
        "warmup_tokens": 1024,
        "decay_tokens": 10_000,
        "snapshots": 2,
        "evaluations": 2,
    },
    "finetuning": {
        "tasks": ["./mine.yaml", "sentiment"],
        "epochs": 2,
        "examples": {"sentiment": 20},
        "files": {"mine": "rows.jsonl"},
    },
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
    "evaluation": {"suites": ["cloze", "last_word"], "examples": {"cloze": 8}},
    "experiments": {
        "depth": {"layers": [1, 2]},
        "visible_context": {"contexts": [4, 8]},
        "layers_transferred": {"task": "mine", "seeds": 1},
    },
    "scaling": {"rungs": [1, 2, [3, 64]], "tokens_per_parameter": 1.0, "seeds": [1, 2]},
}
TASK = {
    "licence": "made up",
    "source": {"file": "rows.jsonl"},
    "form": "classification",
    "columns": {"text": "text", "label": "label"},
    "labels": {"bad": {"below": 0.0}, "good": {"above": 0.0}},
    "metric": "accuracy",
    "split": {"validation": 0.2, "test": 0.2},
}
PROFILE = {"name": "mine", "device": "cpu", "processes": 2, "zero_stage": 1, "micro_batch": 4}
SHIPPED = [yaml.safe_load(path.read_text()) for path in sorted(RECIPES.glob("*.yaml"))]
TASKS = [TASK, *(yaml.safe_load(path.read_text()) for path in sorted(CATALOGUE.glob("*.yaml")))]
ALL_SUITES = [yaml.safe_load(path.read_text()) for path in sorted(SUITES.glob("*.yaml"))]


def write_beside(folder: Path) -> None:
    """The files that LOCAL names, as they were before any mutation."""
    (folder / "rows.jsonl").write_text(
        '{"text": "fine", "label": 1}\n{"text": "no", "label": -1}\n'
    )
    (folder / "mine.yaml").write_text(yaml.safe_dump(TASK))


@fuzzed("recipe")
@given(data=st.data())
def test_any_recipe_ends_in_a_plan_or_in_sentences(folder: Path, data: st.DataObject) -> None:
    write_beside(folder)
    document = data.draw(st.sampled_from([LOCAL, LOCAL, *SHIPPED]))
    path = folder / "recipe.yaml"
    path.write_bytes(written(document, data.draw))
    if plan(folder, path.name):
        require_within_bounds(path)


@fuzzed("profile")
@given(data=st.data())
def test_any_profile_ends_in_a_plan_or_in_sentences(folder: Path, data: st.DataObject) -> None:
    write_beside(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(LOCAL))
    (folder / "profile.yaml").write_bytes(written(PROFILE, data.draw))
    if plan(folder, "recipe.yaml", str(folder / "profile.yaml")):
        require_within_bounds(folder / "profile.yaml")


@fuzzed("task")
@given(data=st.data())
def test_any_task_ends_in_a_plan_or_in_sentences(folder: Path, data: st.DataObject) -> None:
    write_beside(folder)
    (folder / "mine.yaml").write_bytes(written(data.draw(st.sampled_from(TASKS)), data.draw))
    recipe = LOCAL | {"finetuning": {"tasks": ["./mine.yaml"]}, "experiments": None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    plan(folder, "recipe.yaml")


@fuzzed("suite")
@given(data=st.data())
def test_any_suite_ends_in_a_plan_or_in_sentences(folder: Path, data: st.DataObject) -> None:
    write_beside(folder)
    (folder / "suite.yaml").write_bytes(written(data.draw(st.sampled_from(ALL_SUITES)), data.draw))
    recipe = LOCAL | {"evaluation": {"suites": ["./suite.yaml"]}, "experiments": None}
    recipe["finetuning"] = recipe["lora"] = None
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    plan(folder, "recipe.yaml")


def test_the_documents_that_are_mutated_are_plans(folder: Path) -> None:
    write_beside(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(LOCAL))
    (folder / "profile.yaml").write_text(yaml.safe_dump(PROFILE))
    assert plan(folder, "recipe.yaml", str(folder / "profile.yaml"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store: one artifact from another, with a gate, and names for both."""
    home = tmp_path_factory.mktemp("stored") / "lineage"
    store = Store(home)
    published: dict[str, Any] = {}
    for name in ("corpus", "tokenizer"):
        inputs = dict(published)
        config = {"seed": 1, "sources": []}
        digests = {key: artifact.digest for key, artifact in inputs.items()}
        building = store.building(store.fingerprint(name, "1", config, digests))
        (building.files / "index.json").write_text("{}")
        made = provenance(
            profile=PROFILE, started=0.0, ended=1.0, seconds=1.0, cores=1, peak_memory_bytes=1
        )
        facts = Facts(name, "1", config, inputs, {"documents": 3.0}, made | {"stage_seconds": 1.0})
        check = Check("fits", True, "It fits.", lambda built: Verdict(True, "It fits."))
        published[name] = store.publish(
            building, facts, {"fits": (check, Verdict(True, "It fits."))}
        )
        store.set_ref("local", name, building.fingerprint)
    return home


def damaged(content: bytes, draw: Draw) -> bytes:
    """Bytes with some removed, repeated, flipped or put in."""
    at = draw(st.integers(0, len(content)))
    length = draw(st.integers(0, 40))
    change = draw(st.sampled_from(["cut", "remove", "repeat", "flip", "insert"]))
    if change == "cut":
        return content[:at]
    if change == "remove":
        return content[:at] + content[at + length :]
    if change == "repeat":
        return content[: at + length] + content[at:]
    if change == "flip" and at < len(content):
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    return content[:at] + draw(st.binary(max_size=40)) + content[at:]


@fuzzed("manifest")
@given(data=st.data())
def test_any_damage_to_a_stores_records_is_named(store: Path, data: st.DataObject) -> None:
    home = store.parent / "copy"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(store, home)
    records = [
        path
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.parent.name != "locks" and path.stat().st_size
    ]
    path = data.draw(st.sampled_from(records))
    content = path.read_bytes()
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if isinstance(document, dict) and document and data.draw(st.booleans()):
        text = json.dumps(mutated(document, data.draw))
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    else:
        path.write_bytes(damaged(content, data.draw))
    for command in (["list", "--json"], ["show", "local/tokenizer"], ["verify"]):
        with in_time():
            result = CliRunner().invoke(
                app, command, env={"LINEAGE_HOME": str(home)}, catch_exceptions=False
            )
        assert result.exit_code in (0, 1) and "Traceback" not in result.stderr
        assert result.exit_code == 0 or result.stderr.strip()


ROWS = [{"text": "A dull film.\n", "label": 1, "n": 0.5}, {"text": "größe", "label": 0, "n": None}]


def encoded(ending: str) -> bytes:
    frame = pd.DataFrame(ROWS)
    if ending == "parquet":
        buffer = io.BytesIO()
        frame.to_parquet(buffer)
        return buffer.getvalue()
    if ending in ("csv", "tsv"):
        return frame.to_csv(index=False, sep="," if ending == "csv" else "\t").encode()
    if ending == "yaml":
        return yaml.safe_dump(ROWS, allow_unicode=True).encode()
    if ending == "json":
        return json.dumps(ROWS, ensure_ascii=False).encode()
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


FILES = {ending: encoded(ending) for ending in ("jsonl", "json", "csv", "tsv", "yaml", "parquet")}


@fuzzed("rows")
@given(data=st.data())
def test_any_file_of_rows_is_read_or_refused_in_a_sentence(data: st.DataObject) -> None:
    ending = data.draw(st.sampled_from(sorted(FILES)))
    content = damaged(FILES[ending], data.draw)
    name = f"rows.{ending}"
    if data.draw(st.booleans()):
        name, content = f"{name}.gz", gzip.compress(content, 1)
        if data.draw(st.booleans()):
            content = damaged(content, data.draw)
    with in_time():
        try:
            for row in read_rows(io.BytesIO(content), name, ["text"]):
                assert "text" in row
        except UserError as error:
            assert str(error)
