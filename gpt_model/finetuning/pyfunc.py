"""A fine-tuned model as MLflow's python_function: `mlflow.pyfunc.load_model(uri).predict(table)`
gives an answer a row.

Its decoder loads in `transformers`; the layout of a text and the head on top are this project's, so
this loads where the project is installed. Not for the orchestrator: it imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from gpt_model.finetuning.batches import collate
from gpt_model.finetuning.examples import Example
from gpt_model.finetuning.heads import load
from gpt_model.tokenizer import Tokenizer


class TaskAnswers:
    """The model, its labels and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.model, self.labels = load(folder)
        self.tokenizer = Tokenizer.load(folder)

    def predict(self, rows: Any, params: dict[str, Any] | None = None) -> list[str]:
        """`rows`: strings, or a table with a column of them, where the task's form has one text;
        else a table with "segments", the texts of a row, and for multiple choice "options". A
        label, or an option, a row.
        """
        table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame({"text": list(rows)})
        answers = []
        for row in table.to_dict("records"):
            segments, options = _segments(row), tuple(row.get("options", ()))
            tokenized = self.model.input_format.encode(
                self.tokenizer, [Example("", "", segments, options, 0)]
            )
            logits, _ = self.model(collate(tokenized))  # [1, classes]
            answers.append((options or self.labels)[int(logits.argmax())])
        return answers


def _segments(row: dict[Any, Any]) -> tuple[str, ...]:
    """Of the column "segments", or else of the first: one text, or several. A single segment may be
    a plain string.
    """
    cell = row["segments"] if "segments" in row else next(iter(row.values()))
    return (cell,) if isinstance(cell, str) else tuple(cell)


def _load_pyfunc(path: str) -> TaskAnswers:
    """What MLflow calls with the model's folder."""
    return TaskAnswers(Path(path))
