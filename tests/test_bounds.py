"""Every number that a person writes has bounds, and a reason for them that is said."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from conftest import write_local_recipe
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from assets.recipe.depth import DepthSection
from assets.recipe.profile import Profile, load_profile
from assets.recipe.recipe import Recipe, load_recipe
from gpt_model.data.location import Location, resolve
from gpt_model.errors import UserError
from gpt_model.evaluation.suites import TaskMetadata, suite_tasks
from gpt_model.finetuning.entry import TaskEntry
from gpt_model.sizing import Rules
from gpt_model.strict import Bounds

# values that a column of data may hold, and what each adapter checks by itself
UNBOUNDED = {
    "Rule.equals",
    "Rule.above",
    "Rule.below",
    "TaskEntry.no_label",
    "Dataset.options",
    "Dataset.demonstration_options",
}


def flattened(metadata: Any) -> Iterator[Any]:
    for item in metadata:
        yield from flattened(item.metadata) if isinstance(item, FieldInfo) else [item]


def numbers(annotation: Any, metadata: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """(int, float or a section, what is said of it) of every alternative of a field."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        yield from numbers(inner, [*flattened(more), *metadata])
    elif annotation in (int, float) or (
        isinstance(annotation, type) and issubclass(annotation, BaseModel)
    ):
        yield annotation, metadata
    else:
        same = get_origin(annotation) in (Union, types.UnionType)
        for argument in get_args(annotation):
            yield from numbers(argument, metadata if same else [])


def fields(model: type[BaseModel], seen: set[Any]) -> Iterator[tuple[str, Any, list[Any]]]:
    seen.add(model)
    for name, field in model.model_fields.items():
        for kind, metadata in numbers(field.annotation, list(flattened(field.metadata))):
            if kind in (int, float):
                yield f"{model.__name__}.{name}", kind, metadata
            elif kind not in seen:
                yield from fields(kind, seen)


FIELDS = {
    name: (kind, metadata)
    for model in (Recipe, Profile, DepthSection, Rules, TaskEntry, TaskMetadata)
    for name, kind, metadata in fields(model, set())
    if name not in UNBOUNDED
}


@pytest.mark.parametrize("name", FIELDS)
def test_number_has_bounds_with_a_reason(name: str) -> None:
    kind, metadata = FIELDS[name]
    (bounds,) = (item for item in metadata if isinstance(item, Bounds))
    assert len(bounds.reason) > 4
    adapter = TypeAdapter(Annotated[kind, bounds])
    for value in (bounds.least - 1, bounds.most * 2 + 1, 10**31, -(10**31)):
        with pytest.raises(ValueError, match="it should be") as error:
            adapter.validate_python(kind(value))
        assert bounds.reason in str(error.value)


def change(recipe: dict[str, Any], field: str, value: Any) -> None:
    *sections, name = field.split(".")
    for section in sections:
        recipe = recipe.setdefault(section, {})
    recipe[name] = value


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("model.layers", 4_000_000, "is 4000000: it should be at least 1 and at most 2,000 (the"),
        ("pretraining.learning_rate", 257, "above 0 and at most 1 (Adam moves a weight by about"),
        ("pretraining.weight_decay", 1e15, "at least 0 and at most 10 (published values are"),
        ("pretraining.tokens", 10**31, "at most 1,000,000,000,000,000 (the largest published run"),
        ("corpus.held_out", 0.999999, "above 0 and at most 0.5 (a share: more would be kept from"),
        (
            "lora",
            {"rank": 33},
            "`lora.rank`: 33 is more than model.width 32, the rank of the whole",
        ),
        ("model.band", 33, "`model.band`: a band of 33 tokens is longer than context 32"),
        ("evaluation.suites", ["cloze", "cloze"], "'cloze' stands twice: take it out"),
        ("tokenizer.vocab_size", 256, "style gpt2 has 256 bytes and <|endoftext|>"),
        (
            "pretraining",
            {
                "tokens": 10**9,
                "batch_tokens": 3_200_000,
                "learning_rate": 1e-3,
                "batch_ramp": {"from_tokens": 32, "over_tokens": 10**8},
            },
            "is more than 10,000 times from_tokens 32",
        ),
    ],
)
def test_senseless_number_is_refused_with_the_reason(
    tmp_path: Path, field: str, value: Any, reason: str
) -> None:
    path = write_local_recipe(tmp_path)
    recipe = yaml.safe_load(path.read_text())
    recipe["model"]["family"] = "gpt3" if field == "model.band" else "gpt2"
    if field == "lora":
        recipe["finetuning"] = {"tasks": ["piqa"]}
    change(recipe, field, value)
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError) as error:
        load_recipe(str(path))
    assert reason in str(error.value) and str(error.value).startswith(f"{path}, line ")


def test_profile_of_more_processes_than_any_cluster_has_is_refused_at_once(tmp_path: Path) -> None:
    (path := tmp_path / "vast.yaml").write_text("name: vast\nprocesses: 1000000000000000000\n")
    with pytest.raises(UserError, match=r"at most 100,000 \(the largest clusters have as many\)"):
        load_profile(str(path))


@pytest.mark.parametrize(
    "pattern", ["*a" * 60, "**/**/**/*.txt", "a/" + "*x" * 5, "b.gz!" + "*" * 9]
)
def test_glob_that_would_keep_a_machine_busy_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UserError, match="too many wildcards to be looked up"):
        resolve(Location(path=pattern), tmp_path, tmp_path)
    package = Location(package="a==1", sha256="0" * 64, files=["docs/**/*_*.md", pattern])
    with pytest.raises(UserError, match="too many wildcards to be looked up"):
        resolve(package, tmp_path, tmp_path)


def test_suite_without_a_metric_is_refused() -> None:
    keys = dict.fromkeys(("task", "output_type", "doc_to_text", "doc_to_target"), "t")
    metadata = {"version": 1.0, "data": {"builder": "cloze"}}
    with pytest.raises(UserError, match=r"`metric_list` is \[\]: it should be a list of one"):
        suite_tasks("mine", {**keys, "metric_list": [], "metadata": metadata})
