"""A store with two tiny models to talk with and one that only continues text, without a build."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from training_ranks import RecordingProgress

from assets.contract import Check, Verdict
from assets.recipe.sections import ComparisonsSection
from assets.stages.human_data import COMPARISONS
from assets.store.manifest import Facts
from assets.store.store import Store
from gpt_model import GPT, ModelConfig, convert
from gpt_model.rlhf import records
from gpt_model.rlhf.chat_template import ChatTemplate, chat_tokenizer
from gpt_model.rlhf.dialogue import Dialogue, Turn
from gpt_model.tokenizer import Tokenizer
from pipelines.chat.engine import Engine
from pipelines.chat.session import Sampling

CONTEXT = 96
TEXTS = [
    "the king sees the sailor and no one sees the old tree, be kind. who? and anyone does!\n"
] * 50
ANSWER = (
    "the king sees the sailor and no one sees the old tree, "
    "and the sailor sees the king and the old tree does"
)
OTHER = (
    "no one sees the king, and anyone sees the old tree and the sailor, "
    "be kind, and no one does and the king does"
)

QUESTION: Dialogue = (Turn("user", "who sees the sailor?"),)
VOTES_COMMAND = "gpt-lineage run chat-tiny-votes"  # which the chat names where no recipe is nearer
SPELT_MARKERS = "who sees<|endoftext|><|assistant|>the king"  # read as tokens it would end the turn


def status(url: str, body: bytes | None = None, **headers: str) -> int:
    """The status of the response to a request as it is written here, browsers' headers included."""
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - a loopback address
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def answer_of(engine: Engine, turns: Dialogue, sampling: Sampling) -> str:
    """The engine's answer, as the terminal and the page show it."""
    request = engine.request(engine.fit(turns, sampling.max_new_tokens).tokens, sampling)

    async def read() -> str:
        return "".join([delta.text async for delta in engine.stream([request])])

    return asyncio.run(read()).strip()


def _taught(tokenizer: Tokenizer, answer: str, seed: int) -> GPT:
    """A few steps on one dialogue, so that it answers in words."""
    talk: Dialogue = (Turn("user", "who sees the sailor?"), Turn("assistant", answer))
    config = ModelConfig(
        layers=2, heads=2, width=32, context=CONTEXT, vocab_size=tokenizer.vocab_size
    )
    model = GPT(config, seed)
    tokens = torch.tensor([ChatTemplate(tokenizer).encode(talk).tokens])  # [1, tokens]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1])[0], tokens[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def chat_store(home: Path) -> Store:
    """tiny/supervised and tiny/aligned have a chat template, tiny/pretrained has none."""
    store = Store(home)
    plain = Tokenizer.train(TEXTS, vocab_size=290, style="gpt2")
    chat = chat_tokenizer(plain)
    models = {
        "supervised": (chat, _taught(chat, ANSWER, 1)),
        "aligned": (chat, _taught(chat, OTHER, 2)),
    }
    shape = ModelConfig(layers=2, heads=2, width=32, context=CONTEXT, vocab_size=plain.vocab_size)
    models["pretrained"] = (plain, GPT(shape, 3))
    for stage, (tokenizer, model) in models.items():
        building = store.building(store.fingerprint(stage, "1", {"chat": True}, {}))
        convert.save(model, building.files / "model", tokenizer.end_of_text)
        tokenizer.save(building.files / "model")
        check = Check(
            "finite", blocking=True, description="", verdict=lambda built: Verdict(True, "")
        )
        facts = Facts(stage, "1", {"chat": True}, {}, {"loss": 1.0}, {"seconds": 1.0})
        artifact = store.publish(
            building, facts, {"finite": (check, Verdict(True, "It is finite."))}
        )
        store.set_ref("tiny", stage, artifact.fingerprint)
    return store


def voted_comparisons(home: Path, output: Path) -> list[records.Ranking]:
    """What the stage `comparisons` makes of the votes of a store: pinned and run as a build does
    it.
    """
    section = ComparisonsSection.model_validate({"sources": [{"name": "chat", "votes": True}]})
    output.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEAGE_HOME", str(home))
        patch.delenv("LINEAGE_DOWNLOADS", raising=False)
        assert COMPARISONS.pin
        COMPARISONS.run(
            COMPARISONS.pin(section.model_dump(mode="json"), home),
            {},
            output,
            RecordingProgress("comparisons"),
        )
    return [
        comparison
        for split in ("training", "held_out")
        for comparison in records.read_comparisons(output, split)
    ]
