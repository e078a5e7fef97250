"""A small made-up corpus, tokenizer and model as the zero-shot stage finds them, for the tests of
evaluation and of its suites.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from assets.contract import Artifact, Built
from assets.execution.zero_shot import run
from assets.recipe.profile import load_profile
from assets.stages.zero_shot import ZERO_SHOT, zero_shot_config
from gpt_model.data import documents
from gpt_model.data.splits import bucket
from gpt_model.evaluation.adapters.registry import TaskContext
from gpt_model.evaluation.suites import suite_tasks
from gpt_model.evaluation.tasks import rows_of
from gpt_model.progress import Silent

CONTEXT = 96
LIMIT = 8
SUITES = ["held_out", "last_word", "cloze", "multiple_choice", "boolq"]


class Alone(Silent):
    rank, world_size = 0, 1
    profile = load_profile("single")


def story(seed: int, sentences: int) -> str:
    """Made-up prose with names and enough different words of each kind."""
    draw = random.Random(seed)
    names = [
        "Anselm",
        "Berta",
        "Conrad",
        "Dora",
        "Emil",
        "Frieda",
        "Gustav",
        "Hanna",
        "Ingo",
        "Jutta",
        "Karla",
        "Ludwig",
    ]
    stems = [
        "mark",
        "turn",
        "walk",
        "call",
        "help",
        "look",
        "rest",
        "sail",
        "talk",
        "work",
        "jump",
        "knock",
        "paint",
        "climb",
    ]
    things = [
        "table",
        "garden",
        "candle",
        "window",
        "basket",
        "hammer",
        "ladder",
        "mirror",
        "needle",
        "bottle",
        "carpet",
        "kettle",
        "wagon",
    ]
    lines = []
    for _ in range(sentences):
        who, other, stem, thing, second = (
            draw.choice(choices) for choices in (names, names, stems, things, things)
        )
        lines.append(
            f"Then {who} {stem}ed the {thing} and {other} was {draw.choice(stems)}ing "
            f"by the {second}."
        )
    return "\n".join(" ".join(lines[n : n + 7]) for n in range(0, len(lines), 7)) + "\n"


@dataclass
class World:
    """A corpus, a tokenizer and a model."""

    folder: Path
    inputs: dict[str, Artifact]
    model: Any
    tokenizer: Any

    def config(
        self,
        suites: list[str],
        examples: dict[str, int] | None = None,
        files: dict[str, str] | None = None,
    ) -> Any:
        limits = {name: LIMIT for name in suites} if examples is None else examples
        section = SimpleNamespace(suites=suites, examples=limits, files=files or {}, known=None)
        recipe: Any = SimpleNamespace(
            name="test", evaluation=section, corpus=SimpleNamespace(seed=0), split_seed=0
        )
        return ZERO_SHOT.pin(zero_shot_config(recipe, self.folder), self.folder)

    def rows(self, suite: str, downloads: Path, limit: int | None = LIMIT) -> list[dict[str, Any]]:
        """The questions of a suite of one task."""
        (task,) = suite_tasks(suite, self.config([suite])["suites"][suite])
        task_context = TaskContext(
            self.inputs["corpus"].path, 0, downloads, self.tokenizer.encode, CONTEXT, Silent()
        )
        return rows_of(task, task_context, limit)[0].rows

    def run(
        self,
        output: Path,
        suites: list[str],
        examples: dict[str, int] | None = None,
        files: dict[str, str] | None = None,
    ) -> Built:
        output.mkdir()
        config = self.config(suites, examples, files)
        return Built(config, self.inputs, output, run(config, self.inputs, output, Alone()), {}, [])


def write_corpus(folder: Path, texts: dict[str, list[str]], share: float) -> None:
    index = {}
    for name, source in texts.items():
        with (
            documents.Writer(folder, name, "training") as training,
            documents.Writer(folder, name, "held_out") as held_out,
        ):
            for text in source:
                (held_out if bucket(text, 0) < share else training).add(text)
        index[name] = {
            "weight": 1.0,
            "held_out_share": share,
            "training": training.counts(),
            "held_out": held_out.counts(),
        }
    documents.write_index(folder, index)


FAMILIES: dict[str, dict[str, Any]] = {
    "gpt1": {"family": "gpt1"},
    "gpt2": {"family": "gpt2"},
    "gpt3": {"family": "gpt3", "band": 17, "attention_bias": False},  # what GPT-Neo's class can be
}


def make_world(folder: Path, context: int = CONTEXT, family: str = "gpt2") -> World:
    from gpt_model import convert
    from gpt_model.config import ModelConfig
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.transformer import GPT

    texts = {
        "first": [story(n, 60) for n in range(12)],
        "second": [story(100 + n, 30) for n in range(12)],
    }
    write_corpus(folder / "corpus", texts, 0.3)
    style, size = ("gpt1", 200) if family == "gpt1" else ("gpt2", 420)
    tokenizer = Tokenizer.train(
        (text for source in texts.values() for text in source), vocab_size=size, style=style
    )
    shape = ModelConfig(
        layers=2,
        width=32,
        heads=2,
        context=context,
        vocab_size=tokenizer.vocab_size,
        **FAMILIES[family],
    )
    model = GPT(shape, seed=3)
    for parameter in model.parameters():  # so that its predictions differ from one another
        parameter.data *= 5 if parameter.dim() > 1 else 1
    convert.export(model, folder / "pretrained" / "model", tokenizer.end_of_text)
    tokenizer.save(folder / "pretrained" / "model")
    inputs = {
        name: Artifact(folder / name, name, "", "", {}, {}) for name in ("corpus", "pretrained")
    }
    return World(folder, inputs, model.eval(), tokenizer)
