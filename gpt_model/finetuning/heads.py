"""TaskModel: a pre-trained decoder with three new tokens and a linear head on the state at Extract,
and its folder on disk.

Radford et al. 2018, sections 3.2 and 3.3; details the paper leaves open are the released code's
(finetune-transformer-lm, train.py): new token embeddings and the head are drawn from N(0, 0.02),
the head's bias is 0, and what is dropped of a state before the head is the same for all options of
a question.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt_model import convert, lora
from gpt_model.errors import UserError
from gpt_model.finetuning.input_forms import SPECIAL_TOKENS, InputFormat
from gpt_model.io import dump_json
from gpt_model.transformer import GPT, Decoder, with_rows

D = TypeVar("D", bound=Decoder)
HEAD_FILE, LAYOUT_FILE = "head.safetensors", "task_layout.json"


@dataclass(frozen=True)
class Batch:
    """Examples of one form, each `rows_each` rows one after another, padded on the right."""

    tokens: Tensor  # [examples * rows_each, time]
    lengths: Tensor  # [examples * rows_each]; Extract is the last token of each
    labels: Tensor  # [examples] classes, or [examples, classes] the share of each
    rows_each: int


class TaskModel(nn.Module):
    """`model(batch)` -> (class logits [examples, classes], final states [rows, time, width])."""

    def __init__(
        self, gpt: Decoder, input_format: InputFormat, classes: int, dropout: float, seed: int
    ) -> None:
        """`gpt`, or what stands in its place, already has the specials' rows
        (`with_special_tokens`, or a fresh one).

        `classes`: labels, or options of a question.
        """
        super().__init__()
        self.gpt, self.input_format, self.classes, self.dropout = (
            gpt,
            input_format,
            classes,
            dropout,
        )
        self.head = nn.Linear(
            gpt.config.width, 1 if input_format.form == "multiple_choice" else classes
        )
        generator = torch.Generator("cpu").manual_seed(seed)
        with torch.no_grad():
            self.head.weight.copy_(
                torch.normal(0.0, 0.02, self.head.weight.shape, generator=generator)
            )
            self.head.bias.zero_()

    def forward(
        self, batch: Batch, embeddings: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Class logits [examples, classes] and final states [rows, time, width].

        `embeddings`: `GPT.embeddings`' tokens [vocabulary, width] and positions [context, width],
        where the caller needs those of this pass too.
        """
        states = self.gpt.hidden(batch.tokens, embeddings=embeddings)  # [rows, time, width]
        at_extract = states[torch.arange(len(states), device=states.device), batch.lengths - 1]
        at_extract = at_extract.unflatten(0, (-1, batch.rows_each))  # [examples, rows each, width]
        if self.input_format.form == "similarity":
            # Section 3.3: both orders' states, added element-wise
            at_extract = at_extract.sum(1, keepdim=True)
        # [examples, 1, width]: what is dropped is the same for all options of a question
        dropout_mask = F.dropout(
            at_extract.new_ones(len(at_extract), 1, at_extract.shape[2]),
            self.dropout,
            self.training,
        )
        logits = self.head(at_extract * dropout_mask)  # [examples, 1 or options, classes or 1]
        return logits.flatten(1), states


def with_special_tokens(gpt: D, dropout: float, seed: int) -> D:
    """A copy of `gpt` with dropout and one row more in the vocabulary for each of Start, Delim and
    Extract, drawn from N(0, 0.02).
    """
    return with_rows(gpt, len(SPECIAL_TOKENS), dropout, seed)


def save(model: TaskModel, labels: list[str], folder: Path, end_of_text: int) -> None:
    """The decoder as `transformers` loads it, adapters merged, the head, and what is needed to lay
    out a text. The tokenizer is the caller's to add. `model`: a plain one, or within
    `sharded.reading` what a `ShardedModel` shows.
    """
    assert isinstance(model.gpt, GPT)  # what stands in its place is compared with it and not kept
    convert.save(lora.merged(model.gpt), folder, end_of_text)
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in model.head.state_dict().items()},
        folder / HEAD_FILE,
    )
    described = {
        "layout": asdict(model.input_format),
        "classes": model.classes,
        "labels": labels,
        "dropout": model.dropout,
    }
    dump_json(folder / LAYOUT_FILE, described, sort_keys=True, indent=1)


def load(folder: Path) -> tuple[TaskModel, list[str]]:
    """A fine-tuned model that `save` wrote, in evaluation mode, and its labels in class order (none
    for multiple choice).
    """
    path = folder / LAYOUT_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} is not a fine-tuned model: it has no {LAYOUT_FILE}. Give the model folder "
            "of "
            "a finetuned artifact."
        )
    described = json.loads(path.read_text(encoding="utf-8"))
    model = TaskModel(
        convert.load(folder),
        InputFormat(**described["layout"]),
        described["classes"],
        described["dropout"],
        seed=0,
    )
    model.head.load_state_dict(load_file(folder / HEAD_FILE))
    return model.eval(), described["labels"]
