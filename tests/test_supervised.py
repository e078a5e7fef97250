"""The stages `supervised` and `policy_init`: what they learn from, keep and promise; killed and
resumed they end with the same bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_ranks import ROOT, RecordingProgress, make_inputs

from assets.contract import Artifact, Built
from assets.execution import sft
from assets.recipe.sections import PolicyInitSection, SupervisedSection
from assets.report.rlhf import sft_panels
from assets.stages.alignment import POLICY_INIT, SUPERVISED
from gpt_model import GPT, ModelConfig, convert
from gpt_model.errors import UserError
from gpt_model.rlhf.chat_template import ChatTemplate, chat_tokenizer
from gpt_model.rlhf.dialogue import Turn
from gpt_model.rlhf.sft import SFTObjective, encode_dialogues
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.batching import EpochBatches
from gpt_model.training.engine import Execution

ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
SECTION = {"learning_rate": 3e-3, "epochs": 3, "batch": 8, "dropout": 0.1}
STAGES: dict[str, Any] = {
    "supervised": (SUPERVISED, SupervisedSection),
    "policy_init": (POLICY_INIT, PolicyInitSection),
}


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """This process as the only rank, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ALONE.items():
            patch.setenv(name, value)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    tokenizer = Tokenizer.load(folder / "tokenizer")
    shape = ModelConfig(
        layers=2, width=32, heads=2, context=48, vocab_size=tokenizer.vocab_size, dropout=0.0
    )
    convert.save(GPT(shape, seed=1), folder / "pretrained" / "model", tokenizer.end_of_text)
    tokenizer.save(folder / "pretrained" / "model")
    write_demonstrations(
        folder / "demonstrations", [talk(n) for n in range(40)], [talk(n) for n in range(50, 56)]
    )
    return folder


def talk(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"What follows {number}?"},
        {"role": "assistant", "content": f"The number {number + 1}."},
    ]


def write_demonstrations(folder: Path, training: list[Any], held_out: list[Any]) -> None:
    folder.mkdir(parents=True)
    for split, talks in (("training", training), ("held_out", held_out)):
        rows = [{"source": "s", "id": str(n), "messages": entry} for n, entry in enumerate(talks)]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def made(
    inputs: Path, output: Path, stage: str, progress: RecordingProgress, **others: Path
) -> Built:
    run, section = STAGES[stage]
    config = {stage: section.model_validate(SECTION).model_dump(mode="json")}
    indices = {
        name: inputs / name for name in ("pretrained", "tokenizer", "demonstrations", "tokens")
    } | others
    given = {name: Artifact(path, name, "", "", {}, {}) for name, path in indices.items()}
    output.mkdir(parents=True, exist_ok=True)
    metrics = run.run(config, given, output, progress)
    series: dict[str, list[tuple[int, float]]] = {}
    for step, values in sorted(progress.record["metrics"].items()):
        for name, value in values.items():
            series.setdefault(name, []).append((step, value))
    return Built(
        config, given, output, metrics, series, [tuple(text) for text in progress.record["texts"]]
    )


@pytest.fixture(scope="module")
def built(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    folder = tmp_path_factory.mktemp("built")
    return {
        stage: made(inputs, folder / stage, stage, RecordingProgress(stage)) for stage in STAGES
    }


def test_the_loss_is_of_what_the_assistant_says_a_mean_over_the_batchs_tokens(inputs: Path) -> None:
    template = ChatTemplate(chat_tokenizer(Tokenizer.load(inputs / "tokenizer")))
    dialogues = [
        tuple(Turn(entry["role"], entry["content"]) for entry in talk(n)) for n in (1, 22, 1333, 4)
    ]  # type: ignore[arg-type]
    encoded, _ = encode_dialogues(dialogues, template, 48)
    model = GPT(
        ModelConfig(
            layers=2,
            width=32,
            heads=2,
            context=48,
            vocab_size=template.tokenizer.vocab_size,
            dropout=0.0,
        ),
        seed=1,
    )
    losses = []
    for entry in encoded:
        of_all = model.loss_by_token(
            torch.tensor([entry.tokens[:-1]]), torch.tensor([entry.tokens[1:]])
        )[0]
        losses += [
            float(loss)
            for loss, counted in zip(of_all, entry.loss_mask[1:], strict=True)
            if counted
        ]
    objective = SFTObjective(
        encoded,
        EpochBatches([len(entry.tokens) for entry in encoded], 4, 1, 0, sequences=1, context=40),
        0.0,
    )
    parts = objective.micro_batches(0)
    result = sum(float(objective.loss(model, part)[0].detach()) for part in parts) / len(parts)
    assert len(parts) > 1 and result == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("ranks", [1, 2])
def test_pre_training_text_has_its_share_of_the_loss_however_long_its_windows_are(
    inputs: Path, ranks: int
) -> None:
    """(1 - share) of a mean over the assistant's tokens, share of one over the text's; one window,
    so with two ranks beside dialogues.
    """
    template = ChatTemplate(chat_tokenizer(Tokenizer.load(inputs / "tokenizer")))
    dialogues = [
        tuple(Turn(entry["role"], entry["content"]) for entry in talk(n)) for n in (1, 22, 1333, 4)
    ]  # type: ignore[arg-type]
    encoded, _ = encode_dialogues(dialogues, template, 48)
    model = GPT(
        ModelConfig(
            layers=2,
            width=32,
            heads=2,
            context=48,
            vocab_size=template.tokenizer.vocab_size,
            dropout=0.0,
        ),
        seed=1,
    )
    window = [number % 200 for number in range(7, 7 + 48)]
    nats, text = [], model.loss_by_token(torch.tensor([window[:-1]]), torch.tensor([window[1:]]))[0]
    for entry in encoded:
        of_all = model.loss_by_token(
            torch.tensor([entry.tokens[:-1]]), torch.tensor([entry.tokens[1:]])
        )[0]
        nats.append(of_all[torch.tensor(entry.loss_mask[1:])])
    means = {"nats": torch.cat(nats).mean().item(), "text_nats": text.mean().item()}
    result, sums = [], {name: [0.0, 0] for name in means}
    for rank in range(ranks):
        batches = EpochBatches(
            [len(entry.tokens) for entry in encoded], 4, 1, 0, rank, ranks, sequences=1, context=60
        )
        objective = SFTObjective(encoded, batches, 0.0, 1, lambda step, count: [window], share=0.1)
        for part in objective.micro_batches(0):
            loss, scores = objective.loss(model, part)
            result.append(loss.item())
            for name, (total, count) in scores.items():
                sums[name] = [sums[name][0] + float(total), sums[name][1] + count]
    assert len(result) > 1 and sum(result) / len(result) == pytest.approx(
        0.9 * means["nats"] + 0.1 * means["text_nats"], rel=1e-5
    )
    assert {name: total / count for name, (total, count) in sums.items()} == pytest.approx(
        means, rel=1e-5
    )


def test_every_epoch_is_kept_and_measured_and_the_last_is_the_model(
    built: dict[str, Built],
) -> None:
    output = built["supervised"].output
    assert sorted(path.name for path in (output / "epochs").iterdir()) == ["1", "2", "3"]
    weights = [(output / "epochs" / n / "model.safetensors").read_bytes() for n in "123"]
    assert (
        weights[2] == (output / "model" / "model.safetensors").read_bytes()
        and len(set(weights)) == 3
    )
    titles = [
        entry["held_out_loss"]
        for entry in json.loads((output / "training.json").read_text())["epochs"]
    ]
    series = built["supervised"].series["held_out/loss"]
    assert [step for step, _ in series] == [5, 10, 15] and titles == pytest.approx(
        [value for _, value in series], abs=1e-5
    )
    assert titles[-1] < titles[0] and len(built["supervised"].texts) == 9


@pytest.mark.parametrize("stage", STAGES)
def test_its_promises_hold_and_are_shown(
    stage: str, built: dict[str, Built], tmp_path: Path
) -> None:
    for check in STAGES[stage][0].checks:
        verdict = check.verdict(built[stage])
        assert verdict.passed, (check.name, verdict.summary)
    STAGES[stage][0].show(built[stage], tmp_path)
    assert (tmp_path / "tuning.png").stat().st_size > 1000 and "What follows 50?" in (
        tmp_path / "samples.md"
    ).read_text()


def test_of_a_batch_some_sequences_are_windows_of_the_corpus(built: dict[str, Built]) -> None:
    result = built["policy_init"]
    assert result.metrics["pretraining_sequences_a_batch"] == 1  # a tenth of 8, and at least one
    assert json.loads((result.output / "training.json").read_text())["mixed"] == 1
    series, step = result.series, -1
    mixed = 0.9 * series["nats"][step][1] + 0.1 * series["text_nats"][step][1]
    assert series["loss"][step][1] == pytest.approx(mixed, rel=1e-5)
    panel = "nats a token of pre-training text"
    assert panel in [panel.title for panel in sft_panels(series)]
    assert panel not in [panel.title for panel in sft_panels(built["supervised"].series)]


def test_whether_the_loss_falls_is_judged_on_demonstrations_and_not_on_the_text_mixed_in(
    built: dict[str, Built],
) -> None:
    [falls] = [check for check in POLICY_INIT.checks if check.name == "loss_falls"]
    result = built["policy_init"]
    rising = {
        "nats": [(step, 1.0 + step) for step in range(9)],
        "loss": [(step, 9.0 - step) for step in range(9)],
    }
    assert not falls.verdict(replace(result, series=rising)).passed


def test_a_dialogue_too_long_loses_its_oldest_turns_or_is_left_out(inputs: Path) -> None:
    template = ChatTemplate(chat_tokenizer(Tokenizer.load(inputs / "tokenizer")))
    first, last = (
        (Turn("user", "no " * 40), Turn("assistant", "yes")),
        (Turn("user", "And 2?"), Turn("assistant", "3.")),
    )
    encoded, counts = encode_dialogues([(*first, *last), first, last], template, 48)
    assert [entry.tokens for entry in encoded] == [template.encode(last).tokens] * 2 and counts == {
        "shortened": 1,
        "too_long": 1,
    }


def test_held_out_dialogues_are_of_every_source_where_there_are_too_many(
    inputs: Path, tmp_path: Path
) -> None:
    write_demonstrations(
        tmp_path / "many", [talk(1)], [talk(n) for n in range(3 * sft.HELD_OUT_DIALOGUES)]
    )
    template = ChatTemplate(chat_tokenizer(Tokenizer.load(inputs / "tokenizer")))
    result = sft.read(tmp_path / "many", template, 48, Execution(), RecordingProgress("many"))
    whole, _ = encode_dialogues(
        [
            tuple(Turn(entry["role"], entry["content"]) for entry in talk(3 * n))
            for n in range(sft.HELD_OUT_DIALOGUES)
        ],
        template,
        48,
    )  # type: ignore[arg-type]
    assert [entry.tokens for entry in result.held_out] == [entry.tokens for entry in whole]
    assert [entry.id for entry in result.samples] == ["0", "1000", "2000"]


def test_no_dialogue_that_fits_is_told(inputs: Path, tmp_path: Path) -> None:
    long = [{"role": "user", "content": "no " * 60}, {"role": "assistant", "content": "yes"}]
    write_demonstrations(tmp_path / "long", [long], [long])
    with pytest.raises(
        UserError, match="None of the training demonstrations fits the model's context of 48 tokens"
    ):
        made(
            inputs,
            tmp_path / "out",
            "supervised",
            RecordingProgress("long"),
            demonstrations=tmp_path / "long",
        )


def test_a_tokenizer_without_markers_lays_no_dialogue_out(inputs: Path) -> None:
    with pytest.raises(UserError, match=r"has no token <\|system\|>"):
        ChatTemplate(Tokenizer.load(inputs / "tokenizer"))


class Dies(RecordingProgress):
    """Is gone, with no goodbye, after so many dialogues."""

    def __init__(self, after: float) -> None:
        super().__init__("dies")
        self.after = after

    def advance(self, done: float, total: float, unit: str) -> None:
        if done >= self.after:
            os._exit(9)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bytes(
    stage: str, inputs: Path, built: dict[str, Built], tmp_path: Path
) -> None:
    command = [
        sys.executable,
        __file__,
        str(inputs),
        str(tmp_path / "out"),
        stage,
        "88",
    ]  # in the third epoch
    env = {
        **os.environ,
        **ALONE,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    assert subprocess.run(command, env=env, capture_output=True, check=False).returncode == 9
    (tmp_path / "out" / "epochs" / "3.partial").mkdir(
        parents=True
    )  # half an epoch, as if it died while it wrote
    resumed = RecordingProgress("resumed")
    made(inputs, tmp_path / "out", stage, resumed)
    assert any(line.startswith("Goes on from the checkpoint") for line in resumed.record["log"])
    whole = built[stage].output
    files = [
        path.relative_to(whole)
        for path in whole.rglob("*")
        if path.is_file() and ".scratch" not in path.parts
    ]
    assert len(files) > 5
    for path in files:
        assert (tmp_path / "out" / path).read_bytes() == (whole / path).read_bytes(), path


if __name__ == "__main__":
    torch.set_num_threads(1)
    made(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Dies(float(sys.argv[4])))
