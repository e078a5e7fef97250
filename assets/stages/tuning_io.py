"""What the stages that make one model of another share: where it begins, what is written of it, and
what must hold of that.

model/           a folder that `transformers` loads, the tokenizer with the roles' markers and the
template in it shape.json       the whole ModelConfig training.json    what was done and what came
of it, as far as it is the same on every run
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import Artifact, Built, Check, Verdict
from assets.stages import base_model
from gpt_model.errors import UserError

if TYPE_CHECKING:
    from gpt_model.rlhf.chat_template import ChatTemplate
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.transformer import GPT

FACTS = "training.json"
# held-out text of each source that a tuned model is measured on, at most, as are those it is set
# against
TEXT_TOKENS = 16_384


def model_of(artifact: Artifact) -> Path:
    """The model's folder. Raises UserError where the model could not be had here."""
    if reason := artifact.not_run:
        raise UserError(f"There is no model to go on from: {reason}.", field=".imported")
    return artifact.path / "model"


def begin(
    artifact: Artifact, tokenizer: Path | None, dropout: float, seed: int
) -> tuple[GPT, ChatTemplate]:
    """The artifact's model, with rows for the roles' markers and with that dropout; and how
    dialogues are laid out for it.

    `tokenizer`: its folder, where the model has none of its own that knows the markers.
    """
    from gpt_model import convert
    from gpt_model.rlhf.chat_template import ChatTemplate, chat_tokenizer
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.transformer import with_rows

    folder = model_of(artifact)
    known = chat_tokenizer(Tokenizer.load(tokenizer or folder))
    gpt = convert.load(folder)
    missing = known.vocab_size - gpt.config.vocab_size
    if missing < 0:
        raise UserError(
            f"The model has {gpt.config.vocab_size:,} rows for tokens and its tokenizer {known.vocab_size:,} tokens: they are not a pair.",
            field=".imported",
        )
    return with_rows(gpt, missing, dropout, seed), ChatTemplate(known)


def write(output: Path, model: GPT, tokenizer: Tokenizer, facts: Mapping[str, Any]) -> None:
    """The finished model, without dropout, as it is used from here on."""
    from gpt_model import convert

    model.config = model.config.model_copy(update={"dropout": 0.0})
    convert.save(model, output / "model", tokenizer.end_of_text)
    tokenizer.save(output / "model")
    base_model.write_shape(model.config, output)
    (output / FACTS).write_text(
        json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def facts_of(artifact: Artifact) -> dict[str, Any]:
    """Its training.json."""
    found: dict[str, Any] = json.loads((artifact.path / FACTS).read_text(encoding="utf-8"))
    return found


# --- checks ---


def _loss_is_finite(built: Built) -> Verdict:
    losses = [value for _, value in built.series.get("loss", ())]
    finite = sum(math.isfinite(value) for value in losses)
    told = f"{finite} of {len(losses)} reported losses are numbers."
    return Verdict(bool(losses) and finite == len(losses), told, {"reported": len(losses)})


def _loss_falls(built: Built) -> Verdict:
    losses = [value for _, value in built.series.get("nats", ())]
    if len(losses) < 4:
        return Verdict(True, f"{len(losses)} losses were reported: too few to say.")
    third = max(1, len(losses) // 3)
    first, last = sum(losses[:third]) / third, sum(losses[-third:]) / third
    told = f"Mean nats a token of the assistant's: {first:.3f} in the first third, {last:.3f} in the last."
    return Verdict(last < first, told, {"first": first, "last": last})


def _model_loads(built: Built) -> Verdict:
    from gpt_model import convert
    from gpt_model.tokenizer import Tokenizer

    folder = built.output / "model"
    model, tokenizer = convert.load(folder), Tokenizer.load(folder)
    numbers = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    fits = model.config.vocab_size == tokenizer.vocab_size and bool(tokenizer.markers)
    told = f"model/ loads with {model.config.parameters():,} parameters"
    told += "" if numbers else ", some of which are not numbers"
    return Verdict(
        numbers and fits,
        told + ("." if fits else "; its tokenizer does not fit it."),
        {"parameters": model.config.parameters()},
    )


LOSS_IS_FINITE = Check("loss_is_finite", True, "Every reported loss is a number.", _loss_is_finite)
LOSS_FALLS = Check(
    "loss_falls",
    False,
    "Of demonstrations, the loss of the last third of training is below that of the first.",
    _loss_falls,
)
MODEL_LOADS = Check(
    "model_loads",
    True,
    "model/ loads, its weights are numbers, and its tokenizer has the roles' markers.",
    _model_loads,
)


# --- pictures ---

Line = tuple[str, Sequence[tuple[float, float]]]  # label, points
Panel = tuple[str, str, Sequence[Line]]  # title, what x is, lines


def curves(panels: Sequence[Panel], path: Path, columns: int = 2) -> None:
    """A picture of panels."""
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.5 * columns, 3.4 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (title, x_label, lines) in zip(places, panels, strict=False):
        for label, points in lines:
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                label=label,
                marker="." if len(points) < 30 else None,
            )
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    for axes in list(figure.axes)[len(panels) :]:
        axes.remove()
    figure.savefig(path, dpi=90)


def last_texts(built: Built, told: str) -> str:
    """The last samples as Markdown."""
    last = max((step for step, _, _ in built.texts), default=0)
    texts = [
        f"**{name}**\n\n```text\n{text}\n```\n" for step, name, text in built.texts if step == last
    ]
    return told + "\n\n" + "\n".join(texts)
