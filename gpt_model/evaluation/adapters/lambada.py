"""LAMBADA (Paperno et al. 2016) as GPT-2 and lm_eval's lambada_openai read it: raw text, the last
word apart. The stop-word filter is `gpt_model.evaluation.lambada_stop_words`.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpt_model.evaluation.adapters.registry import Row, Rows, TaskContext, adapter


@adapter("text")
def lambada(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """Columns: context, target (a space and the last word): divided at the last space, as lm_eval
    does.
    """
    for row in rows:
        context, space, word = str(row["text"]).rpartition(" ")
        if space:
            yield {"context": context, "target": f" {word}"}


@adapter("text")
def lambada_last_token(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """The same, divided before the last BPE token: what OpenAI's own code counted
    (lm-evaluation-harness issue 356).

    The division is at the character whose left side encodes to all tokens but the last; a text
    without one is left out.
    """
    for row in rows:
        text = str(row["text"])
        ids = task_context.encode(text)
        for cut in range(len(text) - 1, text.rfind(" ") - 1, -1):
            if cut > 0 and task_context.encode(text[:cut]) == ids[:-1]:
                yield {"context": text[:cut], "target": text[cut:]}
                break
