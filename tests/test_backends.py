"""Every suite through our adapter and through lm_eval's own Hugging Face backend on the exported
model: the same scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from public_rows import rows_for
from world import World, make_world

from assets.store.home import downloads_folder
from gpt_model.evaluation.adapters.registry import TaskContext
from gpt_model.evaluation.evaluate import evaluate, write_tasks
from gpt_model.evaluation.lm_eval_adapter import GPTLM
from gpt_model.evaluation.public_data_sets import DataSource, resolved
from gpt_model.evaluation.suites import SUITES, Dataset, SuiteTask, suite_tasks
from gpt_model.evaluation.tasks import TaskRows, in_each_setting, rows_of
from gpt_model.progress import Silent

NAMES = sorted(path.stem for path in SUITES.glob("*.yaml"))
CONTEXT = 256  # room for summaries of 100 tokens
LIMIT = 4
# tokens of an answer at most: whether two backends write the same shows early, and lm_eval's own is
# slow
WRITTEN = 32


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEAGE_DOWNLOADS", str(downloads))
        yield make_world(tmp_path_factory.mktemp("world"), CONTEXT)


def backend_of(world: World) -> Any:
    """lm_eval's own, on the exported model and tokenizer."""
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=str(world.folder / "pretrained" / "model"),
        device="cpu",
        dtype="float32",
        batch_size=16,
    )


@pytest.fixture(scope="module")
def hugging_face(world: World) -> Any:
    return backend_of(world)


def on_own_rows(task: SuiteTask, folder: Path) -> SuiteTask:
    """The task, reading a few rows of our own from a local file where it reads a public data set,
    and writing its likeliest text.
    """
    keys = dict(task.keys)
    if settings := keys.get(
        "generation_kwargs"
    ):  # greedily: two generators of random numbers never draw the same
        keys["generation_kwargs"] = {
            **settings,
            "do_sample": False,
            "max_gen_toks": min(WRITTEN, settings["max_gen_toks"]),
        }
    if isinstance(data := task.metadata.data, Dataset):
        path = folder / f"{task.suite}.{task.name}.rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_for(data)))
        source = resolved(DataSource(path=str(path)), folder, downloads_folder())
        changes: dict[str, Any] = {"source": source}
        if data.demonstrations:
            changes["demonstrations"] = source
        task = task.model_copy(
            update={
                "metadata": task.metadata.model_copy(
                    update={"data": data.model_copy(update=changes)}
                )
            }
        )
    return task.model_copy(update={"keys": keys})


def every_task(suite: str, world: World, folder: Path) -> list[TaskRows]:
    task_context = TaskContext(
        world.inputs["corpus"].path,
        0,
        downloads_folder(),
        world.tokenizer.encode,
        world.model.config.context,
        Silent(),
    )
    tasks = suite_tasks(suite, world.config([suite])["suites"][suite])
    return [
        setting
        for task in tasks
        for rows in rows_of(on_own_rows(task, folder), task_context, LIMIT)
        for setting in in_each_setting(rows, task_context)
    ]


def assert_same_scores(suite: str, world: World, backend: Any, folder: Path) -> None:
    tasks = every_task(suite, world, folder)
    write_tasks(folder / "tasks", tasks)
    names = [task.full_name for task in tasks]
    ours = evaluate(GPTLM(world.model, world.tokenizer), folder / "tasks", names)
    theirs = evaluate(backend, folder / "tasks", names)
    assert names
    for name in names:
        numbers = {
            metric: value
            for metric, value in theirs["results"][name].items()
            if isinstance(value, float)
        }
        assert any(metric.endswith(",none") for metric in numbers)
        assert {metric: ours["results"][name][metric] for metric in numbers} == pytest.approx(
            numbers, rel=1e-4, abs=1e-4
        ), name
        for mine, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            if isinstance(mine["filtered_resps"][0], str):
                written = [
                    [text.rstrip(" ") for text in sample["filtered_resps"]]
                    for sample in (mine, other)
                ]
                assert written[0] == written[1], (
                    name
                    # GPT-1's words end in a space, which `tokenizers`' decoder drops at the end
                )
            else:
                our_scores, their_scores = (
                    np.array(sample["filtered_resps"], dtype=float).ravel()
                    for sample in (mine, other)
                )
                assert our_scores == pytest.approx(their_scores, abs=1e-4, rel=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("suite", NAMES)
def test_a_suites_scores_are_those_of_lm_evals_own_backend(
    suite: str, world: World, hugging_face: Any, tmp_path: Path
) -> None:
    assert_same_scores(suite, world, hugging_face, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt1", "gpt3"])
def test_scores_of_the_other_families_are_those_of_their_transformers_classes(
    family: str, downloads: Path, tmp_path: Path
) -> None:
    other = make_world(tmp_path / "world", 128, family)
    backend = backend_of(other)
    assert (
        type(backend.model).__name__
        == {"gpt1": "OpenAIGPTLMHeadModel", "gpt3": "GPTNeoForCausalLM"}[family]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEAGE_DOWNLOADS", str(downloads))
        for suite in (
            "gpt2_lambada",
            "gpt2_winograd",
            "gpt2_cbt",
            "held_out",
        ):  # each kind of request, written answers among them
            (tmp_path / suite).mkdir()
            assert_same_scores(suite, other, backend, tmp_path / suite)


def test_the_folder_is_all_that_lm_eval_needs(
    world: World, hugging_face: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = every_task("gpt2_language_modelling", world, tmp_path)
    write_tasks(tmp_path / "tasks", tasks)
    monkeypatch.chdir(tmp_path / "tasks")
    manager = TaskManager(include_path=".", include_defaults=False)
    names = [task.full_name for task in tasks]
    theirs: Any = simple_evaluate(
        hugging_face, tasks=list(names), task_manager=manager, bootstrap_iters=0
    )
    ours = evaluate(GPTLM(world.model, world.tokenizer), tmp_path / "tasks", names)
    assert theirs["results"]["gpt2_language_modelling.ptb"][
        "word_perplexity,none"
    ] == pytest.approx(
        ours["results"]["gpt2_language_modelling.ptb"]["word_perplexity,none"], rel=1e-4
    )
