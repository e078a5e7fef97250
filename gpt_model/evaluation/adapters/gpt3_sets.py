"""Data sets that GPT-3 was evaluated on with demonstrations (Brown et al. 2020, section 3 and the
formats of appendix G), as rows.

A row is a question without a prompt round it: the suite has the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from gpt_model.evaluation.adapters.registry import Row, Rows, TaskContext, adapter


@adapter("question", "choices", "answer")
def lettered_choices(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """ARC and OpenBookQA as the hub has them. Columns: question, options, label."""
    for row in rows:
        yield {
            "question": str(row["question"]),
            "options": list(row["choices"]["text"]),
            "label": list(row["choices"]["label"]).index(str(row["answer"]).strip()),
        }


@adapter("article", "question", "options", "answer", alone={})
def exam(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """RACE. Columns: article, before, question, options, label. `before`: the article's earlier
    questions with their right answers.
    """
    for article, questions in groupby(rows, key=lambda row: row["article"]):
        before = ""
        for row in questions:
            label = "ABCD".index(str(row["answer"]))
            yield {
                "article": article,
                "before": before,
                "question": row["question"],
                "options": list(row["options"]),
                "label": label,
            }
            before += f"Q: {row['question']}\n\nA: {row['options'][label]}\n\n"


@adapter("sentence", "first", "second", "answer")
def winogrande(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """Columns: beginnings (up to the gap, each option in it), rest, label: for partial scoring."""
    for row in rows:
        before, _, rest = str(row["sentence"]).partition("_")
        yield {
            "beginnings": [before + str(row["first"]), before + str(row["second"])],
            "rest": rest,
            "label": int(row["answer"]) - 1,
        }


@adapter("first", "second", "third", "fourth", "one_ending", "other_ending", "right")
def story_cloze(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """Columns: story, endings, label."""
    for row in rows:
        story = " ".join(str(row[name]) for name in ("first", "second", "third", "fourth"))
        yield {
            "story": story,
            "endings": [str(row["one_ending"]), str(row["other_ending"])],
            "label": int(row["right"]) - 1,
        }


@adapter("question", "answer")
def trivia(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """TriviaQA. Columns: question, answers, the first the one its authors chose."""
    for row in rows:
        first = str(row["answer"]["value"])
        yield {
            "question": str(row["question"]),
            "answers": [first, *(alias for alias in row["answer"]["aliases"] if alias != first)],
        }


@adapter("question", "answers")
def listed_answers(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """Natural Questions and WebQuestions. Columns: question (with its mark), answers."""
    for row in rows:
        yield {
            "question": str(row["question"]).strip().rstrip("?") + "?",
            "answers": [str(answer) for answer in row["answers"]],
        }


@adapter("premise", "hypothesis", "label")
def sentence_pairs(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """CommitmentBank, RTE, ANLI. Columns: premise, hypothesis (without its full stop), label.
    Unlabelled pairs (-1) are left out.
    """
    for row in rows:
        if int(row["label"]) >= 0:
            yield {
                "premise": str(row["premise"]),
                "hypothesis": str(row["hypothesis"]).rstrip(". "),
                "label": int(row["label"]),
            }


@adapter("premise", "asked", "first", "second", "label")
def causes(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """COPA. Columns: context (ends in "because" or "so"), options (begin small), label."""
    for row in rows:
        premise = str(row["premise"]).strip().rstrip(".")
        options = [str(row[name]) for name in ("first", "second")]
        yield {
            "context": f"{premise} {'because' if row['asked'] == 'cause' else 'so'}",
            "options": [option[:1].lower() + option[1:] for option in options],
            "label": int(row["label"]),
        }


@adapter("first", "second", "start", "end", "label")
def word_in_context(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """WiC. Columns: first, second, word (as the first sentence has it), label."""
    for row in rows:
        first, second = str(row["first"]), str(row["second"])
        yield {
            "first": first,
            "second": second,
            "word": first[int(row["start"]) : int(row["end"])],
            "label": int(row["label"]),
        }


@adapter("paragraph", "question", "answer", "label")
def answers_to_judge(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """MultiRC. Columns: paragraph, question, answer, label."""
    for row in rows:
        yield {
            "label": int(row["label"]),
            **{name: str(row[name]) for name in ("paragraph", "question", "answer")},
        }


@adapter("passage", "query", "entities", "answers")
def record(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """ReCoRD. Columns: passage (its highlights as a list), options (the query with each of
    entities), label (every right one), answers.
    """
    for row in rows:
        text, *highlights = re.split(r"\n@highlight\n", str(row["passage"]).strip())
        entities = sorted(set(row["entities"]))
        labels = [index for index, entity in enumerate(entities) if entity in row["answers"]]
        if labels:
            yield {
                "passage": "\n\n".join(
                    [text, "\n".join(f"- {highlight}" for highlight in highlights)]
                ).rstrip()
                + "\n",
                "options": [
                    f"- {str(row['query']).replace('@placeholder', entity)}" for entity in entities
                ],
                "label": labels,
                "entities": entities,
                "answers": sorted(set(row["answers"])),
            }


@adapter("text", "noun", "pronoun", "place", "label")
def marked_pronouns(
    rows: Rows, task_context: TaskContext, *, only_right: bool = False
) -> Iterator[Row]:
    """SuperGLUE's WSC. Columns: passage (with the pronoun between asterisks), pronoun, referent,
    label (whether it is the referent).

    `only_right`: a noun that is not the referent is no answer, and so no demonstration.
    """
    # The orchestrator imports the adapters to check a suite, and never lm_eval.
    from lm_eval.utils import general_detokenize

    for row in rows:
        if only_right and int(row["label"]) != 1:
            continue
        text, pronoun = str(row["text"]), str(row["pronoun"])
        before = " ".join(text.split()[: int(row["place"])])  # `place` counts words
        rest = text[len(before) + len(pronoun) + 1 :] if before else text[len(pronoun) :]
        passage = general_detokenize(f"{before} *{pronoun}*{rest}".strip())
        yield {
            "passage": passage,
            "pronoun": pronoun,
            "referent": str(row["noun"]),
            "label": int(row["label"]),
        }


@adapter("stem", "choice", "answer")
def analogies(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """SAT analogies. Columns: context ("lull is to trust as"), options ("cajole is to compliance"),
    label. Pairs are lists of two words.
    """
    for row in rows:
        first_word, second_word = row["stem"]
        options = [f"{first} is to {second}" for first, second in row["choice"]]
        yield {
            "context": f"{first_word} is to {second_word} as",
            "options": options,
            "label": int(row["answer"]),
        }
