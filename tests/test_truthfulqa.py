"""TruthfulQA: lm_eval's scores on the same rows, and the reason where the data allows none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from world import World, make_world

from gpt_model.data import hub
from gpt_model.evaluation.lm_eval_adapter import GPTLM

ANSWERS = [
    ("Where is the candle?", ["In the garden.", "By the window.", "Nowhere at all."]),
    (
        "Who took the kettle?",
        ["Berta took the kettle.", "Emil.", "I have no comment.", "The table did, and the basket."],
    ),
    ("What was by the mirror?", ["A ladder was by the mirror.", "A wagon."]),
]
HUB_ROWS = [
    {
        "question": question,
        "mc1_targets": {"choices": choices, "labels": [1] + [0] * (len(choices) - 1)},
        "mc2_targets": {
            "choices": choices,
            "labels": [1] + [n % 2 for n in range(len(choices) - 2)] + [0],
        },
    }
    for question, choices in ANSWERS
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEAGE_DOWNLOADS", str(downloads))
        yield make_world(
            tmp_path_factory.mktemp("world"), context=768
        )  # the six questions before each are read whole


def run(world: World, folder: Path, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    path = folder / "truthful.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    built = world.run(
        folder / "out",
        ["truthfulqa"],
        {},
        {f"truthfulqa/{task}": str(path) for task in ("mc1", "mc2")},
    )
    rows: list[dict[str, Any]] = json.loads((built.output / "results.json").read_text())["rows"]
    return {row["task"]: row for row in rows}


class _Reader(yaml.SafeLoader):
    """lm_eval's task files; the only function in these two is MC2's."""


def _mc2(loader: Any, node: Any) -> Any:
    from lm_eval.tasks.truthfulqa.utils import process_results_mc2

    return process_results_mc2


_Reader.add_constructor("!function", _mc2)


def lm_evals_own(name: str) -> dict[str, Any]:
    """The task as lm_eval's own file has it, what it includes filled in."""
    import lm_eval

    path = Path(lm_eval.__file__).parent / "tasks" / "truthfulqa" / f"{name}.yaml"
    keys: dict[str, Any] = yaml.load(path.read_text(), Loader=_Reader)  # noqa: S506 - a SafeLoader
    included = (
        lm_evals_own(str(keys.pop("include")).removesuffix(".yaml")) if "include" in keys else {}
    )
    return {key: value for key, value in {**included, **keys}.items() if key != "tag"}


def test_mc1_and_mc2_are_lm_evals_own_on_the_same_rows(world: World, tmp_path: Path) -> None:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate

    ours = run(world, tmp_path, HUB_ROWS)
    path = str(tmp_path / "truthful.jsonl")
    here = {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": path}, "cache_dir": str(tmp_path)},
    }
    tasks = {
        name: ConfigurableTask(config={**lm_evals_own(name), **here})
        for name in ("truthfulqa_mc1", "truthfulqa_mc2")
    }
    theirs = evaluate(GPTLM(world.model, world.tokenizer), {"tasks": tasks}, bootstrap_iters=0)[
        "results"
    ]  # type: ignore[arg-type]
    assert ours["mc1"]["value"] == pytest.approx(theirs["truthfulqa_mc1"]["acc,none"], abs=1e-4)
    assert ours["mc2"]["value"] == pytest.approx(theirs["truthfulqa_mc2"]["acc,none"], abs=1e-4)
    assert 0 < ours["mc2"]["value"] < 1 and ours["mc1"]["examples"] == 3


def test_a_file_of_true_answers_only_is_not_run_and_the_reason_is_said(
    world: World, tmp_path: Path
) -> None:
    for number, row in enumerate(
        ({"question": "Who?", "answers": ["Berta."]}, {**HUB_ROWS[0], **_all_true(HUB_ROWS[0])})
    ):
        (tmp_path / str(number)).mkdir()
        rows = run(world, tmp_path / str(number), [row])
        assert set(rows) == {"mc1", "mc2"} and all(
            "the data has no false answers" in unavailable["not_run"]
            for unavailable in rows.values()
        )


def _all_true(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {**row[name], "labels": [1] * len(row[name]["labels"])}
        for name in ("mc1_targets", "mc2_targets")
    }


def test_it_is_not_run_where_the_hub_does_not_answer(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "_silent_since", float("-inf"))
    built = world.run(tmp_path / "out", ["truthfulqa"], {})
    rows = json.loads((built.output / "results.json").read_text())["rows"]
    assert len(rows) == 2 and all(
        "did not answer when asked for truthfulqa/truthful_qa" in row["not_run"] for row in rows
    )
