"""A few rows of our own for every adapter, under the adapter's names of the columns: what a public
data set has thousands of.
"""

from __future__ import annotations

from typing import Any

import few_shot_rows
from world import story

from gpt_model.evaluation.suites import Dataset

THINGS = ("candle", "basket", "kettle", "ladder", "mirror", "needle")
PEOPLE = ("Anselm", "Berta", "Conrad", "Dora", "Emil", "Frieda", "Gustav", "Hanna", "Ingo", "Jutta")

ROWS: dict[str, list[dict[str, Any]]] = {}
ROWS["lambada"] = ROWS["lambada_last_token"] = [
    {"text": f"Berta took the {thing} from the table. Then Emil asked for the {thing}"}
    for thing in THINGS
]
ROWS["childrens_books"] = [
    {
        "sentences": [f"{n} `` Where is the {thing} ? '' said {PEOPLE[n]} ." for n in range(4)],
        "question": f"21 Then XXXXX did n't help {PEOPLE[index + 1]} with the {thing} .",
        "answer": PEOPLE[index],
        "options": list(PEOPLE),
    }
    for index, thing in enumerate(THINGS)
]
ROWS["true_and_false_answers"] = [
    {
        "question": f"What did {who} take?",
        "targets": {
            "choices": [
                f"The {thing}.",
                f"{who} took it.",
                "The garden and the window.",
                "Nothing.",
            ],
            "labels": [1, 1, 0, 0],
        },
    }
    for who, thing in zip(PEOPLE, THINGS, strict=False)
]
ROWS["beginnings"] = [
    {"prompt": {"text": f"Then {who} asked for the {thing}"}}
    for who, thing in zip(PEOPLE, THINGS, strict=False)
]
ROWS["wikitext"] = ROWS["wikitext_as_lm_eval"] = [
    {
        "page": f" = The {thing} = \n \n A well @-@ known {thing} , first of 1 @,@ 200 , "
        f"was {who} 's ( for 1 @.@ 5 days ) . \n "
    }
    for thing, who in zip(THINGS, PEOPLE, strict=False)
]
ROWS["sentences"] = [
    {"sentence": f"the {thing} did n't help {who} 's <unk> , said N"}
    for thing, who in zip(THINGS, PEOPLE, strict=False)
]
ROWS["stream"] = [{"text": line} for line in story(40, 21).split("\n")]
ROWS["winograd"] = [
    {
        "text": f"The {thing} did not fit into the box because it was too large.",
        "pronoun": "it",
        "pronoun_loc": f"The {thing} did not fit into the box because it".rindex("it"),
        "options": [f"The {thing}", "the box"],
        "label": 0,
    }
    for thing in THINGS
]
ROWS["hellaswag"] = [
    {
        "activity": "Painting a table",
        "first": f"{who} takes the [step] brush.",
        "second": "then the man",
        "endings": [
            f"paints the {thing}.",
            "walks to the garden.",
            "sails.",
            "was resting by the window and looked at it.",
        ],
        "label": "0",
    }
    for who, thing in zip(PEOPLE, THINGS, strict=False)
]
ROWS["conversation"] = [
    {
        "story": story(50 + n, 3),
        "questions": {"input_text": [f"Who has the {thing}?", "Where is it?"]},
        "answers": {"input_text": [PEOPLE[n], "in the garden"]},
        "additional_answers": {
            "0": {"input_text": [f"It is {PEOPLE[n]}", "garden"]},
            "1": {"input_text": [PEOPLE[n], "the garden"]},
        },
    }
    for n, thing in enumerate(THINGS[:4])
]
ROWS["summaries"] = [
    {"article": story(60 + n, 12), "highlights": f"{PEOPLE[n]} walked.\nEmil was resting."}
    for n in range(4)
]
ROWS["translations"] = [
    {
        "translation": {
            "en": f"The {thing} is by the window.",
            "fr": f"Le {thing} est près de la fenêtre.",
        }
    }
    for thing in (*THINGS, *PEOPLE[:4])
]
ROWS["questions"] = [
    {"question": f"who took the {thing}", "answers": [who, f"It was {who}"]}
    for thing, who in zip(THINGS * 2, PEOPLE, strict=False)
]

ROWS |= few_shot_rows.ROWS


PAIRS = list(zip(PEOPLE * 2, THINGS * 3, strict=False))
ROWS["core_choice"] = [
    {
        "query": f"Where does {who} keep the {thing}?",
        "choices": ["in the garden", "in the house", "under a table"],
        "gold": n % 3,
    }
    for n, (who, thing) in enumerate(PAIRS)
]
ROWS["core_schema"] = [
    {
        "context_options": [
            f"{who} saw the {thing} because {subject}" for subject in (who, f"the {thing}")
        ],
        "continuation": "was there.",
        "gold": 0,
    }
    for who, thing in PAIRS
]
ROWS["core_text"] = [
    {"context": f" {who} walked and", "continuation": f"took the {thing}"} for who, thing in PAIRS
]


def rows_for(data: Dataset) -> list[dict[str, Any]]:
    """The adapter's rows, under the columns' names in the data set."""
    return [{data.columns[name]: value for name, value in row.items()} for row in ROWS[data.make]]
