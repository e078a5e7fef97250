"""The tokenizer and tokens stages: a BPE of the corpus, of bytes as GPT-2's or of words as GPT-1's,
then the corpus as shards of token ids.
"""

from __future__ import annotations

from assets.contract import Check, Stage, deferred

TRAINING, TOKENIZING = "assets.execution.tokenizer", "assets.execution.tokenizer"

TOKENIZER = Stage(
    name="tokenizer",
    version="1",
    run=deferred(TRAINING, "train"),
    description="BPE learnt from the corpus's training documents: byte-level as GPT-2's, or of "
    "normalised words as GPT-1's.",
    kinds=("python", "huggingface"),
    checks=(
        Check(
            "round_trip",
            True,
            "Held-out documents and nasty strings decode to themselves (gpt1: normalised).",
            deferred(TRAINING, "round_trip"),
        ),
        Check(
            "vocabulary_size",
            True,
            "The vocabulary is as large as the recipe says, end-of-text last.",
            deferred(TRAINING, "vocabulary_size"),
        ),
    ),
    show=deferred("assets.report.data", "show_tokenizer"),
)

TOKENS = Stage(
    name="tokens",
    version="1",
    run=deferred(TOKENIZING, "tokenize"),
    description="The corpus as memory-mapped shards of token ids, documents delimited by "
    "end-of-text.",
    checks=(
        Check(
            "decodes_to_documents",
            True,
            "The tokens of sampled documents decode to their text (gpt1: normalised).",
            deferred(TOKENIZING, "decodes_to_documents"),
        ),
        Check(
            "ids_in_vocabulary",
            True,
            "No id is outside the vocabulary.",
            deferred(TOKENIZING, "ids_in_vocabulary"),
        ),
        Check(
            "documents_match",
            True,
            "Documents and bytes, counted from the tokens, are the corpus's (gpt1: normalised).",
            deferred(TOKENIZING, "documents_match"),
        ),
    ),
    show=deferred("assets.report.data", "show_tokens"),
)
