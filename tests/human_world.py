"""Small artifacts for the tests of what is learnt from comparisons: a tokenizer, a model,
demonstrations, comparisons, prompts.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from training_ranks import RecordingProgress

from assets.contract import Artifact, Built, Stage
from gpt_model import convert
from gpt_model.config import ModelConfig
from gpt_model.rlhf.chat_template import ChatTemplate, chat_tokenizer
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.engine import Execution, start
from gpt_model.transformer import GPT, with_rows

GOOD, BAD = ("fine", "lovely", "superb"), ("dull", "awful", "poor")
THINGS = ("film", "play", "plot", "song", "cast", "end", "book", "poem")
TEXTS = [
    f"The {thing} was {word} and the {other} too. user assistant"
    for thing in THINGS
    for other in THINGS
    for word in (*GOOD, *BAD)
]


@contextmanager
def one_rank() -> Iterator[None]:
    """This process as the only rank, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }.items():
            patch.setenv(name, value)
        start(Execution())
        yield
    torch.set_num_threads(threads)


def template() -> ChatTemplate:
    return ChatTemplate(chat_tokenizer(Tokenizer.train(TEXTS * 2, vocab_size=300)))


def tiny(template: ChatTemplate, seed: int = 1, context: int = 64) -> GPT:
    plain = ModelConfig(
        layers=2,
        width=32,
        heads=2,
        context=context,
        vocab_size=template.tokenizer.vocab_size - 3,
        dropout=0.0,
    )
    return with_rows(GPT(plain, seed), 3, 0.0, seed)


def ranking(
    number: int,
    texts: Sequence[str],
    ranks: Sequence[int],
    source: str = "reviews",
    question: str = "How was it?",
) -> dict[str, Any]:
    responses = [{"text": text, "rank": rank} for text, rank in zip(texts, ranks, strict=True)]
    return {
        "source": source,
        "id": str(number),
        "messages": [{"role": "user", "content": question}],
        "responses": responses,
    }


def rankings(count: int, seed: int, k: int = 3) -> list[dict[str, Any]]:
    """Responses with a good word above those with a bad one; of more than two, the others are tied."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        words = [draw.choice(GOOD), *(draw.choice(BAD) for _ in range(k - 1))]
        texts = [
            f"The {draw.choice(THINGS)} was {word}, {draw.choice(THINGS)} {seed}{number}."
            for word in words
        ]
        order = draw.sample(range(k), k)
        rows.append(
            ranking(
                number,
                [texts[at] for at in order],
                [min(at, 1) for at in order],
                source=f"reviews{number % 2}",
            )
        )
    return rows


def write(folder: Path, **splits: Sequence[Mapping[str, Any]]) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Artifact(folder, folder.name, "", "", {}, {})


def demonstrations(count: int) -> list[dict[str, Any]]:
    return [
        {
            "source": "talk",
            "id": str(n),
            "messages": [
                {"role": "user", "content": f"Tell me of the {THINGS[n % 8]}."},
                {"role": "assistant", "content": f"It was {GOOD[n % 3]}."},
            ],
        }
        for n in range(count)
    ]


def prompts(count: int) -> list[dict[str, Any]]:
    return [
        {
            "source": "asked",
            "id": str(n),
            "messages": [{"role": "user", "content": f"And the {THINGS[n % 8]} {n}?"}],
        }
        for n in range(count)
    ]


def model(folder: Path, gpt: GPT, template: ChatTemplate) -> Artifact:
    convert.save(gpt, folder / "model", template.end_of_text)
    template.tokenizer.save(folder / "model")
    return Artifact(folder, folder.name, "", "", {}, {})


class Killed(Exception):
    """What `Interrupted` raises."""


class Interrupted(RecordingProgress):
    """Ends a run in its midst, as a kill would, once so much of it is done."""

    def __init__(self, name: str, after: float) -> None:
        super().__init__(name)
        self.after = after

    def advance(self, done: float, total: float, unit: str) -> None:
        time.sleep(0.02)  # so that a checkpoint is due at the next step
        if done / total > self.after:
            raise Killed


def files(folder: Path) -> dict[str, bytes]:
    """What is published of an output."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".scratch" not in path.parts
    }


def failed(stage: Stage, built: Built) -> dict[str, str]:
    """What the checks that do not pass say."""
    tokens = {check.name: check.verdict(built) for check in stage.checks}
    return {name: verdict.summary for name, verdict in tokens.items() if not verdict.passed}
