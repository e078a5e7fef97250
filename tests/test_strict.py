"""What is wrong with a file that somebody wrote is said in this project's words, inside gpt_model
too, where no line of a file is known.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gpt_model import published
from gpt_model.convert.dialects import shape_of
from gpt_model.errors import UserError
from gpt_model.evaluation.suites import suite_tasks

PYDANTIC = re.compile(
    r"\b(Input|input_|input should|tag|discriminator|valid (string|integer|number)|Field "
    r"required|type=)"
)
SUITE: dict[str, Any] = {
    "task": "t",
    "output_type": "loglikelihood",
    "doc_to_text": "a",
    "doc_to_target": "b",
    "metric_list": [{"metric": "acc", "aggregation": "mean"}],
}
SHAPE = {"family": "gpt2", "layers": 2, "width": 32, "heads": 2, "context": 64, "vocab_size": 300}
TABLE = {
    "source": "s",
    "sure": "verified",
    "columns": ["T / acc"],
    "rows": [["m", "1"]],
    "generations": ["gpt2"],
    "protocol": "p",
}


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (
            {"data": {"builder": "clozes"}},
            "`metadata.data` is {'builder': 'clozes'}: its builder should be one of passages, "
            "last_word, cloze",
        ),
        ({"data": {}}, "`metadata.data` says no builder."),
        ({}, "`metadata.data` is missing."),
        (
            {"data": {"builder": "cloze", "choices": 1}},
            "`metadata.data.choices` is 1: it should be at least 2 and at most 1,000 (a question has at least two).",
        ),
        (
            {"data": {"builder": "cloze", "choices": "ten"}},
            "`metadata.data.choices` is 'ten': it should be an integer.",
        ),
        ({"data": {"builder": "cloze", "choice": 3}}, "`metadata.data.choice` is not a key here."),
        (
            {"data": {"builder": "cloze"}, "baseline": "luck"},
            "`metadata.baseline` is 'luck': it should be 'chance', 'majority' or 'none'.",
        ),
        (
            {"data": {"builder": "labelled"}},
            "`metadata.data`: name a `task` of the catalogue, or write the `entry` itself.",
        ),
        (
            {"data": {"builder": "cloze"}, "shots": {"numbers": []}},
            "`metadata.shots.numbers` is []: it should not be empty.",
        ),
    ],
)
def test_a_mistake_in_a_suite_is_said_with_its_key_and_what_is_expected(
    metadata: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        suite_tasks("mine", {**SUITE, "metadata": {"version": 1.0, **metadata}})
    assert str(error.value).startswith(
        f"suites/mine.yaml, task 't': {said}"
    ) and not PYDANTIC.search(str(error.value))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": "2"}, "config.json: `layers` is '2': it should be an integer."),
        ({"dropout": float("nan")}, "config.json: `dropout` is nan: it should be a finite number."),
        ({"heads": 3}, "config.json: "),
        (
            {"family": "llama"},
            "config.json: `family` is 'llama': it should be 'gpt1', 'gpt2', 'gpt3' or 'lstm'.",
        ),
    ],
)
def test_a_mistake_in_somebody_elses_config_is_said_with_its_field_and_what_is_expected(
    change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        shape_of({**SHAPE, **change}, "config.json")
    assert str(error.value).startswith(said) and not PYDANTIC.search(str(error.value)), str(
        error.value
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": "m"}, "`tables[0].rows` is 'm': it should be a list, in brackets."),
        ({"columns": []}, "`tables[0].columns` is []: it should not be empty."),
        ({"kind": "guess"}, "`tables[0].kind` is 'guess': it should be 'scores' or 'facts'."),
        ({"sources": "s"}, "`tables[0].sources` is not a key here."),
    ],
)
def test_a_mistake_in_a_published_table_is_said_with_its_key(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    import yaml

    path = tmp_path / "numbers.yaml"
    path.write_text(
        yaml.safe_dump({"paper": "P", "role": "paper", "tables": [{**TABLE, **change}]})
    )
    with pytest.raises(UserError) as error:
        list(published.read(path))
    assert str(error.value) == f"{path}: {said}"
