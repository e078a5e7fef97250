"""Style gpt2: byte-level BPE, the tokenizer of GPT-2 and GPT-3.

* Text becomes bytes, each byte one of 256 printable characters, and merges join them inside GPT-2's
  pre-tokens, so never across character categories (Radford et al. 2019, section 2.2): whatever is
  encoded decodes to itself, and no token is unknown. So normalised text is the text.
* Ids in GPT-2's order: the 256 bytes, the merges in the order they were made, `<|endoftext|>` last.
* Text is text: a document that spells out `<|endoftext|>` gets the ids of those thirteen
  characters. (`transformers` reads the token, in GPT-2's own tokenizer as in ours: there it takes
  `split_special_tokens=True`.)
* The library is `tokenizers` (Rust); the folder that `save` writes is one that
  `transformers.AutoTokenizer` loads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from gpt_model.errors import UserError
from gpt_model.tokenizer.base import END_OF_TEXT, LEARNT_PART, PIECE, Merges, Piece, Tokenizer

# What `transformers` must know to treat text as GPT-2 does: nothing added before it, nothing tidied
# after it.
_TRANSFORMERS = {
    "tokenizer_class": "GPT2Tokenizer",
    "add_bos_token": False,
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
    "errors": "replace",
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "unk_token": END_OF_TEXT,
}

# A place where GPT-2's pre-tokenizer always ends a token: no alternative of its pattern has white
# space after anything else. Python's \S is within the pattern's, and the two spaces on the right
# are white space to both.
_CUT = re.compile(r"(?<=\S)[ \n]")
# Other such places, as text without spaces has: other white space, punctuation after a letter or
# number.
_CUT_WITHOUT_SPACES = re.compile(r"(?<=\S)[\t\r\u3000]|(?<=[^\W_])(?=[^\w\s])")


def pieces(text: str, characters: int = PIECE, most: int = 2 * PIECE) -> Iterator[str]:
    """`text` in pieces of about `characters`, whose ids, one after another, are the ids of the
    whole.

    So memory is a matter of the piece and not of the document. A piece is longer where no word
    ends. After `most` characters it ends within the word: the only cut that changes ids.
    """
    start = 0
    while len(text) - start > characters:
        window = start + characters, start + most
        cut = _CUT.search(text, *window) or _CUT_WITHOUT_SPACES.search(text, *window)
        end = cut.start() if cut else start + most
        if end >= len(text):
            break
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def _learnable(texts: Iterable[str]) -> Iterator[str]:
    """The texts in pieces; one that ends within a word, in many parts."""
    for text in texts:
        for piece in pieces(text):
            step = LEARNT_PART if len(piece) >= 2 * PIECE else len(piece) or 1
            yield from (piece[start : start + step] for start in range(0, len(piece), step))


class ByteLevelTokenizer(Tokenizer):
    """GPT-2's tokenizer, with its vocabulary or another."""

    style = "gpt2"

    def __init__(self, vocabulary: dict[str, int], merges: Merges) -> None:
        """`vocabulary`: byte-level token -> id, with `<|endoftext|>`; `merges`: pairs of tokens,
        first made first.
        """
        rust = _byte_level(models.BPE(vocab=vocabulary, merges=list(merges)))
        rust.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        rust.encode_special_tokens = True  # the library's name for: special tokens in text are text
        super().__init__(rust, vocabulary[END_OF_TEXT], first_merge=256)

    @classmethod
    def _made(cls, vocabulary: dict[str, int], merges: Merges) -> Tokenizer:
        return cls(vocabulary, merges)

    @classmethod
    def _learn(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        rust = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        rust.train_from_iterator(_learnable(texts), trainer)
        model = json.loads(rust.to_str())["model"]
        vocabulary, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
        if len(vocabulary) + 1 != vocab_size:
            raise UserError(
                f"The tokenizer's `vocab_size` is {vocab_size}, but the training text supports "
                f"only {len(vocabulary) + 1}: "
                f"256 bytes, {END_OF_TEXT} and {len(merges)} merges of pairs that stand at least "
                "twice. "
                f"Set vocab_size to at most {len(vocabulary) + 1} and at least 257, or add text to "
                "the corpus.",
                field="vocab_size",
            )
        return cls(vocabulary | {END_OF_TEXT: len(vocabulary)}, merges)

    @classmethod
    def _wrote(cls, saved: dict[str, Any]) -> bool:
        model, splitter = saved.get("model", {}), saved.get("pre_tokenizer") or {}
        ours = (
            model.get("type") == "BPE"
            and splitter.get("type") == "ByteLevel"
            and not splitter.get("add_prefix_space")
        )
        return bool(ours and not saved.get("normalizer") and END_OF_TEXT in model.get("vocab", {}))

    @classmethod
    def _described(cls) -> str:
        return f"GPT-2's kind (byte-level BPE with {END_OF_TEXT})"

    def _for_transformers(self) -> dict[str, Any]:
        return _TRANSFORMERS

    def _saved(self) -> tokenizers.Tokenizer:
        return self._rust

    @classmethod
    def _pieces(cls, document: str) -> Iterator[Piece]:
        held = ""
        for number, text in enumerate(pieces(document)):
            if number:
                yield Piece(held, last=False)
            held = text
        yield Piece(held)

    @classmethod
    def _normalised(cls, pieces: Sequence[Piece]) -> list[str]:
        return [piece.text for piece in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return self._rust.decode(list(ids), skip_special_tokens=False)

    def byte_lengths(self) -> NDArray[np.uint32]:
        """Bytes of text that each id stands for: [vocab_size]; none for `<|endoftext|>` and
        markers. Makes bits per byte exact.
        """
        lengths = np.array(
            [len(token) for token in self.tokens()], dtype=np.uint32
        )  # the alphabet has one character a byte
        lengths[[self.end_of_text, *self.markers.values()]] = 0
        return lengths


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """The library's tokenizer round `model`, with GPT-2's pattern (ByteLevel's own) and nothing
    else done to the text.
    """
    rust = tokenizers.Tokenizer(model)
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    rust.decoder = decoders.ByteLevel()
    return rust
