"""The tokenizer and tokens stages: a BPE of the corpus, of bytes as GPT-2's or of words as GPT-1's,
then the corpus as shards of token ids.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from assets.contract import Check, Config, Stage, Table, deferred
from assets.store.home import downloads_folder
from gpt_model.data.vocabularies import ReleasedTokenizer, released_tokenizer
from gpt_model.errors import Unreachable, about
from gpt_model.progress import Silent

TRAINING, TOKENIZING = "assets.execution.tokenizer", "assets.execution.tokenizer"


def pin(config: Config, base: Path) -> Config:
    """The section with a released vocabulary tied to its bytes, which are of its style and size."""
    if "from" not in config:
        return config
    with about("from"):
        released = ReleasedTokenizer.model_validate(config["from"])
        resolved = released.resolved(base, downloads_folder())
    pinned = {**config, "from": resolved.model_dump(mode="json")}
    # Where the hub does not answer now, an artifact may be there all the same.
    with suppress(Unreachable), TemporaryDirectory() as scratch:
        released_tokenizer(pinned, downloads_folder(), Path(scratch), Silent())
    return pinned


TOKENIZER = Stage(
    name="tokenizer",
    version="1",
    run=deferred(TRAINING, "train"),
    description="BPE learnt from the corpus's training documents, or as it was released: "
    "byte-level as GPT-2's, or of normalised words as GPT-1's.",
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
    pin=pin,
)

TOKENS = Stage(
    name="tokens",
    version="1",
    run=deferred(TOKENIZING, "tokenize"),
    description="The corpus as memory-mapped shards of token ids, documents delimited by "
    "end-of-text.",
    kinds=("python", "numpy"),
    table=Table(
        {"token": ("uint16 or uint32", "an id of the tokenizer's vocabulary")}, rows="tokens"
    ),
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
    shared_out="each split's documents, in parts of equal bytes, which the first process joins",
)
