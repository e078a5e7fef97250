"""Tokenizers: GPT-1's and GPT-2's, behind one interface. Token files on disk are data/shards.py's.

    base.py         `Tokenizer`: what every style does, and the ways to make one
    byte_level.py   style gpt2: byte-level BPE (GPT-2, section 2.2), which GPT-3 uses too
    gpt1.py         style gpt1: BPE with `</w>` over normalised words (GPT-1, section 4.1)
    gpt1_normalisation.py    GPT-1's normalisation: ftfy, standardised punctuation, spaCy's words
    gpt1_normalisation_in_rust.py    the same as far as a tokenizer.json can say it

Importing this loads neither torch nor spaCy; GPT-1's words load spaCy when the first text comes.
"""

from gpt_model.tokenizer.base import LONG_WORD, TOKENIZER_FILES, Encoded, Tokenizer
from gpt_model.tokenizer.byte_level import END_OF_TEXT, ByteLevelTokenizer, pieces
from gpt_model.tokenizer.gpt1 import UNKNOWN, GPT1Tokenizer

__all__ = [
    "END_OF_TEXT",
    "LONG_WORD",
    "TOKENIZER_FILES",
    "UNKNOWN",
    "ByteLevelTokenizer",
    "Encoded",
    "GPT1Tokenizer",
    "Tokenizer",
    "pieces",
]
