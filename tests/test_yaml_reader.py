"""YAML that hangs, crashes or surprises whoever reads it is one sentence with file and line."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from conftest import write_local_recipe

from assets.recipe.recipe import Recipe, load_recipe
from assets.recipe.yaml_file import LARGEST, MISTAKES, read_yaml, validate
from gpt_model import yaml_reader
from gpt_model.errors import UserError

LAUGHS = "l0: &l0 [lol, lol]\n" + "".join(
    f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
MERGES = "m0: &m0 {a: 1, b: 2}\n" + "".join(
    f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 50)}]}}\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 0x_", "'0x_' is not an integer: mend it, or put it in quotes"),
        ("a: 1\nb: !!bool foo", "'foo' is not true or false: mend it, or put it in quotes"),
        (f"a: {'9' * 5000}", "is not an integer"),
        (f"a: 0x{'f' * 5000}", "has more digits than any number here"),
        ("a: .inf", "'.inf' is not finite, and every number here is"),
        ("a: 010", '010 is octal in YAML, 8: write 10 or 8, or "010" if it is text'),
        ("a: 1:30", '1:30 is 90 in YAML: write 90, or "1:30"'),
        ("a: " + "[" * 1000, "more than 50 lists and mappings are inside one another"),
        ("a: " + "[" * 100_000 + "]" * 100_000, "more than 50 lists and mappings"),
        ("\n".join(" " * n + f"k{n}:" for n in range(400)), "more than 50 lists and mappings"),
        (LAUGHS, "the aliases stand for more than 100,000 values"),
        (MERGES, "the aliases stand for more than 100,000 values"),
        ("a: &a [*a]", "an alias stands for what it is in"),
        ("a: !!set {b, c}", "is no text, number, list or mapping"),
        ("a: !!python/object/apply:os.getpid []", "is no text, number, list or mapping"),
        ("yes: 1", "'yes' is no text, as keys are: put it in quotes"),
        ("a: 1\na: 2", "'a' stands twice; keep one of them"),
        (
            "x: &x {a: 1}\ny: {<<: *x, <<: *x}",
            "'<<' stands twice; keep one of them, or write one list: <<: [*a, *b]",
        ),
        ("a: b\x00", "this is not valid YAML (control characters are not allowed)"),
    ],
)
def test_what_yaml_would_surprise_with_is_refused_at_once(text: str, sentence: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        yaml_reader.load(text, "mine.yaml")
    assert re.match(r"mine\.yaml(, line \d+)?: ", str(error.value))
    assert sentence in str(error.value) and len(str(error.value)) < 500
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: ._", "._"),
        ("a: 2020-01-01", "2020-01-01"),
        ("a: 2e-3", 0.002),
        ("a: 1_500_000", 1_500_000),
        ("a: '010'", "010"),
        ("x: {b: &b {<<: &c {a: 0, d: 1}, a: 2}}\na: {<<: *b, e: 3}", {"a": 2, "d": 1, "e": 3}),
    ],
)
def test_what_yaml_means_is_read(text: str, value: object) -> None:
    assert yaml_reader.load(text, "mine.yaml")["a"] == value


def test_keys_that_begin_with_x_are_a_home_for_anchors(tmp_path: Path) -> None:
    path = write_local_recipe(tmp_path)
    before = load_recipe(str(path))
    path.write_text(
        "x-rates: &rates {weight_decay: 0.3}\n"
        + path.read_text().replace("pretraining: {", "pretraining: {<<: *rates, ", 1)
    )
    recipe = load_recipe(str(path))
    assert recipe.pretraining and before.pretraining
    assert recipe.pretraining.weight_decay == 0.3
    assert recipe.model_dump().keys() == before.model_dump().keys()


def test_many_mistakes_are_counted_and_the_first_ones_listed(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    path.write_text("".join(f"k{n}: 1\n" for n in range(10_000)))
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        validate(Recipe, read_yaml(path), [path])
    lines = str(error.value).splitlines()
    assert len(lines) == MISTAKES + 1 and "there are more" in lines[-1]
    assert time.monotonic() - began < 5


def test_file_of_settings_has_a_size(tmp_path: Path) -> None:
    (path := tmp_path / "large.yaml").write_text("#" * (LARGEST + 1))
    with pytest.raises(UserError, match=r"has more than 262,144 bytes"):
        read_yaml(path)


@pytest.mark.parametrize("name", [f"{'a' * 5000}.yaml", "a\0.yaml", "~nobody-of-that-name/a.yaml"])
def test_path_that_is_none_is_a_sentence(name: str) -> None:
    with pytest.raises(UserError):
        load_recipe(name)


def test_rows_in_yaml_are_bounded_too() -> None:
    for strings in (False, True):
        with pytest.raises(UserError, match="aliases stand for"):
            yaml_reader.load_rows(LAUGHS, "rows.yaml", strings=strings)
    assert yaml_reader.load_rows("- {1: yes}", "rows.yaml") == [{1: True}]
    assert yaml_reader.load_rows("- {1: yes}", "rows.yaml", strings=True) == [{"1": "yes"}]
