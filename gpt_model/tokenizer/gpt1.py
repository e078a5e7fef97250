"""Style gpt1: BPE over normalised, lower-cased words, the tokenizer of GPT-1 (section 4.1; released
code, text_utils.py).

* Text becomes words (gpt1_normalisation.py), a word its characters, the last of them marked by
  `</w>`, and merges join them within the word.
* Ids in the released order: `<unk>` is 0; the characters, most frequent first; the same characters
  with `</w>`; the merges in the order they were made; `\\n</w>` last. 40,478 in all: 1 + 2 · 238 +
  40,000 + 1.
* A newline is a word of its own, `\\n</w>`. A character outside the vocabulary is `<unk>`, and its
  word's end, if it stood there, is lost.
* That vocabulary has no end-of-text, and the code that packed the books is not public. Documents
  here end with `\\n</w>`: an own token would have been the 40,479th, and the layout (and the
  parameters) no longer GPT-1's. So a document's end reads as a line's end.

Normalised text is what the tokens spell: the words in lower case, each followed by one space, lines
by "\\n ", `<unk>` as U+FFFD, with a newline after each document. Decoding gives that back, and bits
per byte are over that: fewer bytes than the text had, in one case of letters, so they are not
comparable with those of GPT-2's tokenizer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models, pre_tokenizers, trainers

from gpt_model.errors import UserError
from gpt_model.tokenizer import gpt1_normalisation
from gpt_model.tokenizer.base import LEARNT_PART, LONG_WORD, PIECE, Merges, Piece, Tokenizer
from gpt_model.tokenizer.gpt1_normalisation_in_rust import words_in_rust

UNKNOWN, NEWLINE, END_OF_WORD = "<unk>", "\n</w>", "</w>"
REPLACEMENT = "\ufffd"
CHARACTERS = 238  # of the released vocabulary; rarer ones of the training text are unknown
REPEATS = 1000  # of a word in one string given to the trainer
LONG_LINE = 1_000_000  # characters: ftfy, too, mends a longer line in such parts


class GPT1Tokenizer(Tokenizer):
    """GPT-1's tokenizer, with its vocabulary or another."""

    style = "gpt1"
    normalises = True
    caveat = (
        "Bits per byte of GPT-1's normalised text (lower case, one space between words): not "
        "comparable with those of GPT-2's tokenizer."
    )
    _seam = "\n "  # pieces are lines

    def __init__(self, vocabulary: dict[str, int], merges: Merges) -> None:
        """`vocabulary`: token -> id, with `<unk>` and `\\n</w>`; `merges`: pairs of tokens, first
        made first.
        """
        within = {token for token in vocabulary if len(token) == 1}
        ending = {
            token[0]
            for token in vocabulary
            if len(token) == 1 + len(END_OF_WORD) and token.endswith(END_OF_WORD)
        }
        super().__init__(
            _words_apart(_bpe(vocabulary, merges)),
            vocabulary[NEWLINE],
            first_merge=1 + len(within) + len(ending - {"\n"}),
        )
        self.unknown: int = vocabulary[UNKNOWN]
        self._unknown_symbol = re.compile(f"{_none_of(within)}(?! )|{_none_of(ending)} ")
        self._texts = [
            token.removesuffix(END_OF_WORD) + " " * token.endswith(END_OF_WORD)
            for token in self.tokens()
        ]
        self._texts[self.unknown] = REPLACEMENT

    @classmethod
    def _made(cls, vocabulary: dict[str, int], merges: Merges) -> Tokenizer:
        return cls(vocabulary, merges)

    @classmethod
    def _learn(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        counts: Counter[str] = Counter()
        for batch in cls._stream(texts):
            for _, text in batch:
                counts.update(part for word in text.split(" ") for part in _parts(word))
        del counts[""], counts["\n"]
        alphabet = _alphabet(counts)
        symbols = [UNKNOWN, *alphabet, *(character + END_OF_WORD for character in alphabet)]
        trainer = trainers.BpeTrainer(
            vocab_size=max(vocab_size - 1, len(symbols)),
            min_frequency=2,
            special_tokens=symbols,  # the library's name for: these ids first, in this order
            end_of_word_suffix=END_OF_WORD,
            show_progress=False,
        )
        rust = _words_apart(models.BPE(end_of_word_suffix=END_OF_WORD))
        rust.train_from_iterator(_repeated(counts, set(alphabet)), trainer)
        model = json.loads(rust.to_str())["model"]
        vocabulary, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
        if len(vocabulary) + 1 != vocab_size:
            least, most = len(symbols) + 1, len(vocabulary) + 1
            requested = f"needs at least {least}" if vocab_size < least else f"supports only {most}"
            most_hint = (
                "" if vocab_size < least else f" and at most {most}, or add text to the corpus"
            )
            raise UserError(
                f"The tokenizer's `vocab_size` is {vocab_size}, but the training text {requested}: "
                f"{UNKNOWN}, {len(alphabet)} characters twice "
                "(within a word, at its end), the newline, and merges of pairs that stand at "
                "least twice. "
                f"Set vocab_size to at least {least}{most_hint}.",
                field="vocab_size",
            )
        return cls(vocabulary | {NEWLINE: len(vocabulary)}, merges)

    @classmethod
    def _wrote(cls, saved: dict[str, Any]) -> bool:
        model = saved.get("model", {})
        return (
            model.get("type") == "BPE"
            and model.get("end_of_word_suffix") == END_OF_WORD
            and {UNKNOWN, NEWLINE} <= set(model.get("vocab", {}))
        )

    @classmethod
    def _described(cls) -> str:
        return f"GPT-1's kind (BPE with {END_OF_WORD}, {UNKNOWN} and \\n{END_OF_WORD})"

    def _for_transformers(self) -> dict[str, Any]:
        # Not OpenAIGPTTokenizer: in transformers 5 that splits words as BERT does, whatever
        # tokenizer.json says.
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "bos_token": NEWLINE,
            "eos_token": NEWLINE,
            "unk_token": UNKNOWN,
        }

    def _saved(self) -> tokenizers.Tokenizer:
        return words_in_rust(self._rust.model)

    @classmethod
    def _pieces(cls, document: str) -> Iterator[Piece]:
        """Cut at line ends, where each step of the normalisation cuts, too. A line of more than
        `LONG_LINE` characters is cut at a space, or where there is none, within the word.
        """
        start, markup, within_line = 0, False, False
        while len(document) - start > PIECE:
            latest = start + LONG_LINE
            line_end = document.find("\n", start + PIECE, latest) + 1
            end = line_end or max(document.rfind(" ", start + PIECE, latest), 0) or latest
            if not line_end and len(document) <= latest:
                break
            text = document[start:end]
            yield Piece(text, last=False, markup=markup, within_line=within_line)
            start, markup, within_line = end, markup or "<" in text, not line_end
        yield Piece(document[start:], markup=markup, within_line=within_line)

    @classmethod
    def _normalised(cls, pieces: Sequence[Piece]) -> list[str]:
        return gpt1_normalisation.normalised_all(pieces)

    def _shown(self, normalised: str) -> str:
        return self._unknown_symbol.sub(REPLACEMENT, normalised)

    def decode(self, ids: Sequence[int]) -> str:
        """The normalised text of `ids`. What two rows of ids decode to, one after another, is what
        the two rows as one do.
        """
        return "".join(self._texts[index] for index in ids if 0 <= index < len(self._texts))

    def byte_lengths(self) -> NDArray[np.uint32]:
        """Bytes of normalised text that each id stands for: [vocab_size]; `\\n</w>` is "\\n " after
        a document as within it.
        """
        return np.array(
            [len(text.encode()) for text in self._texts] + [0] * len(self.markers), dtype=np.uint32
        )


def _bpe(vocabulary: dict[str, int], merges: Merges) -> models.BPE:
    return models.BPE(
        vocab=vocabulary,
        merges=list(merges),
        end_of_word_suffix=END_OF_WORD,
        unk_token=UNKNOWN,
        fuse_unk=False,
    )


def _words_apart(model: models.BPE) -> tokenizers.Tokenizer:
    """The library's tokenizer round `model`, for normalised text: words with one space between,
    already found.
    """
    rust = tokenizers.Tokenizer(model)
    rust.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return rust


def _alphabet(counts: Counter[str]) -> list[str]:
    """The characters of the words, most frequent first."""
    characters: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            characters[character] += count
    twice = (
        character for character, count in characters.items() if count > 1
    )  # as a merge, too, must stand twice
    return sorted(twice, key=lambda character: (-characters[character], character))[:CHARACTERS]


def _parts(word: str) -> Iterator[str]:
    """The word; one so long that learning from it takes for ever, in parts."""
    step = LEARNT_PART if len(word) >= LONG_WORD else len(word) or 1
    return (word[start : start + step] for start in range(0, len(word), step))


def _repeated(counts: Counter[str], alphabet: set[str]) -> Iterator[str]:
    """Each word as often as it stands in the text, for a trainer that counts itself; not those with
    an unknown character.

    Nor those that spell out `<unk>`: a merge that makes that text would have that token's id.
    """
    for word, count in counts.items():
        if alphabet.issuperset(word) and UNKNOWN not in word:
            for start in range(0, count, REPEATS):
                yield f"{word} " * min(REPEATS, count - start)


def _none_of(characters: set[str]) -> str:
    """A pattern for one character that is neither one of these nor a space."""
    return f"[^ {''.join(re.escape(character) for character in sorted(characters))}]"
