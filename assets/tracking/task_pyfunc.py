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

    def predict(self, table: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        """`table`: "segments", the texts a row has by the task's form; for multiple choice
        "options" too. A label, or an option, a row.
        """

        answers = []
        for row in table.to_dict("records"):
            segments, options = tuple(row["segments"]), tuple(row.get("options") or ())
            tokenized = self.model.input_format.encode(
                self.tokenizer, [Example("", "", segments, options, 0)]
            )
            logits, _ = self.model(collate(tokenized))  # [1, classes]
            answers.append((options or self.labels)[int(logits.argmax())])
        return answers


def _load_pyfunc(path: str) -> TaskAnswers:
    """What MLflow calls with the model's folder."""
    return TaskAnswers(Path(path))
