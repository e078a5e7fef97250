"""What a person sees of the judge: its accuracy, and the words that speak most for an answer and
against it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from assets.contract import Built
from assets.report.tables import metric, write_markdown
from assets.stages.alignment import JUDGE_FILE
from gpt_model.rlhf.bag_of_words import BagOfWords

SHOWN_WORDS = 12


def show(built: Built, folder: Path) -> None:
    """figures.md."""
    path, m = folder / "figures.md", built.metrics
    facts = json.loads((built.output / JUDGE_FILE).read_text(encoding="utf-8"))
    if "not_run" in facts:
        write_markdown(path, f"There is no judge here: {facts['not_run']}.")
        return
    judge = BagOfWords.load(built.output)
    order = judge.coefficients.argsort(kind="stable")

    def quoted(indices: Iterable[int]) -> str:
        return ", ".join(f"“{judge.words[index]}”" for index in indices)

    write_markdown(
        path,
        f"Logistic regression on {int(m['words']):,} words and pairs of words, from "
        f"{int(m['comparisons']):,} comparisons in {int(m['rankings']):,} rankings that nothing "
        "else is trained or measured on.",
        f"Accuracy on held-out comparisons: {metric(m, 'accuracy')}, bootstrap over rankings.",
        f"For an answer: {quoted(order[::-1][:SHOWN_WORDS])}.",
        f"Against: {quoted(order[:SHOWN_WORDS])}.",
    )
