"""Rows of our own for the data sets of GPT-3's few-shot suites, under the adapters' names of the
columns (see public_rows.py).
"""

from __future__ import annotations

from typing import Any

THINGS = ("candle", "basket", "kettle", "ladder", "mirror", "needle", "bottle", "carpet")
PEOPLE = ("Anselm", "Berta", "Conrad", "Dora", "Emil", "Frieda", "Gustav", "Hanna")
BOTH = list(zip(THINGS, PEOPLE, strict=True))

ROWS: dict[str, list[dict[str, Any]]] = {
    "lettered_choices": [
        {
            "question": f"What is a {thing} for?",
            "answer": "ABC"[n % 3],
            "choices": {"text": ["light", "work", "a long walk"], "label": ["A", "B", "C"]},
        }
        for n, thing in enumerate(THINGS)
    ],
    "exam": [
        {
            "article": f"{who} has the {thing}.",
            "question": question,
            "options": [who, "the wall", thing, "no one"],
            "answer": answer,
        }
        for thing, who in BOTH[:4]
        for question, answer in (("Who has it?", "A"), ("It is _ .", "C"))
    ],
    "winogrande": [
        {
            "sentence": f"The {thing} fell on the box so _ broke.",
            "first": f"the {thing}",
            "second": "the box",
            "answer": str(1 + n % 2),
        }
        for n, thing in enumerate(THINGS)
    ],
    "story_cloze": [
        {
            "first": f"{who} was resting.",
            "second": f"The {thing} fell.",
            "third": "It was dark.",
            "fourth": "A door opened.",
            "one_ending": f"{who} was awake.",
            "other_ending": "They sail.",
            "right": 1 + n % 2,
        }
        for n, (thing, who) in enumerate(BOTH)
    ],
    "trivia": [
        {
            "question": f"Who made the {thing}?",
            "answer": {"value": who, "aliases": [f"{who} of Bern", who, "nobody"]},
        }
        for thing, who in BOTH
    ],
    "listed_answers": [
        {"question": f"who made the {thing}", "answers": [who, f"It was {who}"]}
        for thing, who in BOTH
    ],
    "sentence_pairs": [
        {
            "premise": f"{who} says that the {thing} was sold.",
            "hypothesis": f"the {thing} was sold.",
            "label": n % 2,
        }
        for n, (thing, who) in enumerate(BOTH)
    ],
    "causes": [
        {
            "premise": f"{who} took the {thing}.",
            "asked": ("cause", "effect")[n % 2],
            "first": "It was dark.",
            "second": f"The {thing} fell.",
            "label": n % 2,
        }
        for n, (thing, who) in enumerate(BOTH)
    ],
    "word_in_context": [
        {
            "first": f"A {thing} by the bank.",
            "second": f"{who} went to the bank.",
            "start": len(f"A {thing} by the "),
            "end": len(f"A {thing} by the bank"),
            "label": n % 2,
        }
        for n, (thing, who) in enumerate(BOTH)
    ],
    "answers_to_judge": [
        {
            "paragraph": f"{who} has the {thing}.",
            "question": "Who has it?",
            "answer": who if n % 2 else "no one",
            "label": n % 2,
        }
        for n, (thing, who) in enumerate(BOTH)
    ],
    "section_dialogue": [
        {
            "title": f"The {thing}",
            "section": "History",
            "passage": f"{who} made the {thing} in the garden. CANNOTANSWER",
            "questions": ["Who made it?", "When?", "Where?"],
            "answers": {
                "texts": [
                    [who, f"it was {who}"],
                    ["CANNOTANSWER", "CANNOTANSWER", "in the garden"],
                    [who, "garden"],
                ]
            },
            "first_answers": {"texts": [who, "CANNOTANSWER", "the garden"]},
        }
        for thing, who in BOTH
    ],
    "passage_questions": [
        {
            "title": f"The_{thing}",
            "passage": f"{who} made the {thing}.",
            "question": question,
            "answers": {"text": answers},
        }
        for thing, who in BOTH[:4]
        for question, answers in (("Who made it?", [who, f"it was {who}"]), ("Who sold it? ", []))
    ],
    "discrete_reasoning": [
        {
            "passage": f"{who} and Ludwig sold {n + 2} of 9 {thing}s in May.",
            "question": ("How many were left?", "Who sold them?", "When was it?")[n % 3],
            "answer": answer,
            "validated_answers": {key: [value, value] for key, value in answer.items()},
        }
        for n, (thing, who) in enumerate(BOTH)
        for answer in [
            {
                "number": str(7 - n) if n % 3 == 0 else "",
                "spans": [who, "Ludwig"] if n % 3 == 1 else [],
                "date": {"day": "", "month": "May" if n % 3 == 2 else "", "year": ""},
            }
        ]
    ],
    "sentences_to_translate": [
        {
            "translation": {
                "en": f"The {thing} fell.",
                "fr": f"Le {thing} tomba.",
                "de": f"Der {thing} fiel.",
                "ro": f"Un {thing} a căzut.",
            }
        }
        for thing in THINGS
    ],
    "marked_pronouns": [
        {
            "text": f"{who} gave Ludwig the {thing} since he had two .",
            "noun": ("Ludwig", who)[n % 2],
            "pronoun": "he",
            "place": 6,
            "label": n % 2,
        }
        for n, (thing, who) in enumerate(BOTH)
    ],
    "analogies": [
        {
            "stem": [thing, who],
            "choice": [["wood", "fire"], ["hall", "yard"], ["loft", "bed"], ["a", "b"], ["c", "d"]],
            "answer": n % 5,
        }
        for n, (thing, who) in enumerate(BOTH)
    ],
    "record": [
        {
            "passage": f"{who} and Ludwig met.\n@highlight\nThe {thing} was lost",
            "query": "@placeholder lost it.",
            "entities": [who, "Ludwig", who, "Ingo"],
            "answers": [who, "Ludwig"],
        }
        for thing, who in BOTH
    ],
}
