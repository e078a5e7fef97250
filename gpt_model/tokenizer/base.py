"""What every tokenizer does, and the ways to make one. The styles are in byte_level.py and gpt1.py.

Every style has an end-of-text token, which stands after each document, and a length in bytes for
each token. What a style reads of a text is `normalise(text)`: for it, and for nothing else,
decoding gives back what was encoded and the tokens' bytes add up.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tokenizers
from numpy.typing import NDArray

from gpt_model.errors import UserError

END_OF_TEXT = "<|endoftext|>"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER = "tokenizer.json"
# what releases call the vocabulary and the merges
VOCABULARIES = ("vocab.json", "encoder.json", "encoder_bpe_40000.json")
MERGES = ("merges.txt", "vocab.bpe", "vocab_40000.bpe")
TOKENIZER_FILES = (TOKENIZER, *VOCABULARIES, *MERGES)
PIECE = 1 << 16  # characters
LONG_WORD = PIECE  # characters of a word that may be tokenized in parts: memory is bounded
LEARNT_PART = 1 << 10  # … and is learnt from in such parts: the time is the word's length squared
# Characters tokenized at a time; the library needs some 60 bytes for each while it works.
BATCH = 1 << 20

Merges = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Piece:
    """A document, or a part of one that is short enough to be tokenized at once."""

    text: str
    last: bool = True  # the document ends with it
    markup: bool = False  # a "<" stands in the document before it (of interest to style gpt1)
    within_line: bool = False  # the piece before it ends within a line (style gpt1, too)


@dataclass(frozen=True)
class Encoded:
    """The ids of a piece. Those of a document are its pieces' ids, one after another, and so are
    its bytes.
    """

    ids: NDArray[np.uint32]
    bytes: int  # UTF-8, of the normalised text
    read: int  # UTF-8 bytes of the text itself
    last: bool


class Tokenizer(ABC):
    """A trained tokenizer. Make one by `train`, `load`, `from_gpt2_files` or `from_gpt1_files`."""

    style: ClassVar[str]  # the recipe's word for it
    normalises: ClassVar[bool] = False  # whether it reads another text than it is given
    caveat: ClassVar[str] = ""  # about bits per byte of this style's tokens, if there is one
    unknown: int | None = None  # id of the token for what the vocabulary lacks, where there is one
    # Tokens of no text, such as roles in a dialogue, and their ids: the vocabulary's last ones.
    markers: Mapping[str, int]
    _seam: ClassVar[str] = ""  # normalised text between two pieces of a document

    def __init__(self, rust: tokenizers.Tokenizer, end_of_text: int, first_merge: int) -> None:
        self._rust = rust
        self.end_of_text = end_of_text
        self.first_merge = first_merge  # the id: below it are the symbols that merges join
        self.vocab_size: int = rust.get_vocab_size()
        self.markers = {}
        self.chat_template: str | None = (
            None  # Jinja, as `transformers` keeps it beside a tokenizer
        )

    # --- made ---

    @staticmethod
    def of(style: str) -> type[Tokenizer]:
        """The class of a style; raises UserError where there is none of that name."""
        for kind in Tokenizer.__subclasses__():
            if kind.style == style:
                return kind
        raise UserError(
            f"The tokenizer's `style` is {style!r}; there are 'gpt2' (byte-level BPE, of GPT-2 and "
            "GPT-3) and "
            "'gpt1' (BPE of normalised, lower-cased words). Write style: gpt2 or style: gpt1.",
            field="style",
        )

    @staticmethod
    def train(texts: Iterable[str], *, vocab_size: int, style: str = "gpt2") -> Tokenizer:
        """Learn `vocab_size` tokens from `texts`, which are read once and not kept. The same texts
        give the same tokenizer.

        A merge needs a pair that stands twice. Raises UserError where the text has too few of those
        for the vocabulary.
        """
        return Tokenizer.of(style)._learn(texts, vocab_size)

    @staticmethod
    def from_gpt2_files(vocabulary: Path, merges: Path) -> Tokenizer:
        """From GPT-2's own two files, vocab.json (or encoder.json) and merges.txt (or vocab.bpe):
        gives GPT-2's ids.
        """
        return _from_files("gpt2", vocabulary, merges)

    @staticmethod
    def from_gpt1_files(vocabulary: Path, merges: Path) -> Tokenizer:
        """From GPT-1's own two files, encoder_bpe_40000.json and vocab_40000.bpe (or vocab.json and
        merges.txt): gives GPT-1's ids.
        """
        return _from_files("gpt1", vocabulary, merges)

    @staticmethod
    def from_folder(folder: Path, style: str) -> Tokenizer:
        """`load`; where there is no tokenizer.json, from the two files of a release, whose style
        they do not say.
        """
        vocabulary, merges = (
            next((path for name in names if (path := folder / name).is_file()), None)
            for names in (VOCABULARIES, MERGES)
        )
        if (folder / TOKENIZER).is_file() or not (vocabulary and merges):
            return Tokenizer.load(folder)
        return _from_files(style, vocabulary, merges)

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """From a folder that `save` wrote, or any with a tokenizer.json of GPT-2's or of GPT-1's
        kind.
        """
        path = Path(folder) / TOKENIZER
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{path} is missing: {folder} is not a tokenizer's folder. Give the folder of a "
                "tokenizer or a model."
            ) from None
        except ValueError:
            raise UserError(f"{path} is not JSON. Build or export the tokenizer again.") from None
        for kind in Tokenizer.__subclasses__():
            if kind._wrote(saved):
                pairs = [
                    pair.split(" ") if isinstance(pair, str) else pair
                    for pair in saved["model"]["merges"]
                ]
                made = kind._made(saved["model"]["vocab"], [(left, right) for left, right in pairs])
                template = Path(folder) / CHAT_TEMPLATE
                added = [
                    token["content"]
                    for token in saved.get("added_tokens", ())
                    if token["id"] >= made.vocab_size
                ]
                return made.with_markers(
                    added, template.read_text(encoding="utf-8") if template.is_file() else None
                )
        kinds = " nor ".join(f"of {kind._described()}" for kind in Tokenizer.__subclasses__())
        raise UserError(f"{path} is not a tokenizer {kinds}. Use one that is.")

    def with_markers(self, markers: Sequence[str], chat_template: str | None = None) -> Tokenizer:
        """The same tokenizer with a token more for each marker, after all others. Text that spells
        one out stays text.
        """
        model = json.loads(self._rust.to_str())["model"]
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        made = self._made(model["vocab"], [(left, right) for left, right in pairs])
        made.markers = {marker: made.vocab_size + number for number, marker in enumerate(markers)}
        made.chat_template = chat_template
        made.vocab_size += len(markers)
        return made

    @classmethod
    @abstractmethod
    def _made(cls, vocabulary: dict[str, int], merges: Merges) -> Tokenizer: ...

    @classmethod
    @abstractmethod
    def _learn(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer: ...

    @classmethod
    @abstractmethod
    def _wrote(cls, saved: dict[str, Any]) -> bool:
        """Whether a tokenizer.json is of this style."""

    @classmethod
    @abstractmethod
    def _described(cls) -> str: ...

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json, vocab.json and
        merges.txt into `folder`.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        model = json.loads(self._rust.to_str())["model"]
        settings = self._for_transformers()
        special = {
            name: token
            for name, token in settings.items()
            if name in ("bos_token", "eos_token", "unk_token")
        }
        files = {
            TOKENIZER: self._saved_with_markers().to_str(pretty=True),
            "tokenizer_config.json": json.dumps(settings, indent=2, sort_keys=True) + "\n",
            "special_tokens_map.json": json.dumps(special, indent=2, sort_keys=True) + "\n",
            "vocab.json": json.dumps(model["vocab"], ensure_ascii=False, separators=(",", ":")),
            "merges.txt": "\n".join(
                ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
            )
            + "\n",
        }
        if self.chat_template is not None:
            files[CHAT_TEMPLATE] = self.chat_template
        for (
            name,
            content,
        ) in (
            files.items()
        ):  # not by the library: a full disk is then an OSError, like everywhere else
            (folder / name).write_text(content, encoding="utf-8", newline="\n")

    @abstractmethod
    def _for_transformers(self) -> dict[str, Any]:
        """tokenizer_config.json: what `transformers` must know."""

    @abstractmethod
    def _saved(self) -> tokenizers.Tokenizer:
        """tokenizer.json: the library's tokenizer that `transformers` loads."""

    def _saved_with_markers(self) -> tokenizers.Tokenizer:
        if not self.markers:
            return self._saved()
        rust = tokenizers.Tokenizer.from_str(self._saved().to_str())
        rust.add_special_tokens(
            [
                tokenizers.AddedToken(marker, special=True, normalized=False)
                for marker in self.markers
            ]
        )
        return rust

    # --- used ---

    def encode(self, text: str) -> list[int]:
        """Ids of `text`: those that it has as a document. A token that is spelt out in it is text.
        Raises UserError where it cannot be written as UTF-8.
        """
        (ids,) = self.encode_batch([text])
        return ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of each text, on as many threads as there are cores (RAYON_NUM_THREADS)."""
        rows: list[list[int]] = [[]]
        for batch in self._stream(texts):
            encodings = self._rust.encode_batch_fast([text for _, text in batch])
            for (piece, _), encoding in zip(batch, encodings, strict=True):
                rows[-1] += encoding.ids
                if piece.last:
                    rows.append([])
        return rows[:-1]

    def encode_documents(self, documents: Iterable[str]) -> Iterator[list[Encoded]]:
        """The documents' ids, long ones in parts: `BATCH` characters or a little more at a time, on
        as many threads as there are cores.

        Memory is a matter of the batch and neither of the documents nor of their number.
        """
        for batch in self._stream(documents):
            yield self._encoded_pieces(batch)

    def _encoded_pieces(self, pieces: list[tuple[Piece, str]]) -> list[Encoded]:
        encodings = self._rust.encode_batch_fast([text for _, text in pieces])
        return [
            Encoded(
                np.array(encoding.ids, np.uint32),
                len(self._shown(text).encode()),
                len(piece.text.encode()),
                piece.last,
            )
            for (piece, text), encoding in zip(pieces, encodings, strict=True)
        ]

    @classmethod
    def _stream(cls, documents: Iterable[str]) -> Iterator[list[tuple[Piece, str]]]:
        """The documents in pieces, each with its normalised text, a batch at a time."""
        begun = False  # the document has normalised text already
        for batch in _batches(cls._pieces(document) for document in documents):
            texts = []
            for piece, text in zip(batch, cls._normalised(batch), strict=True):
                seam = "" if piece.within_line else cls._seam
                texts.append(seam + text if begun and text else text)
                begun = not piece.last and (begun or bool(text))
            yield list(zip(batch, texts, strict=True))

    @classmethod
    @abstractmethod
    def _pieces(cls, document: str) -> Iterator[Piece]:
        """`document` in pieces of about `PIECE` characters, whose ids, one after another, are the
        ids of the whole.
        """

    @classmethod
    @abstractmethod
    def _normalised(cls, pieces: Sequence[Piece]) -> list[str]:
        """What the library is given of each piece."""

    def normalise(self, text: str) -> str:
        """The text that is encoded in place of `text`, and that decoding gives back."""
        return "".join(self._shown(part) for batch in self._stream([text]) for _, part in batch)

    def _shown(self, normalised: str) -> str:
        """Normalised text as its tokens show it."""
        return normalised

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; those outside the vocabulary have none."""

    def tokens(self) -> list[str]:
        """Every token, by id, as the style spells it."""
        by_id = {index: token for token, index in self._rust.get_vocab().items()}
        return [by_id[index] for index in range(len(by_id))] + list(self.markers)

    @abstractmethod
    def byte_lengths(self) -> NDArray[np.uint32]:
        """Bytes of normalised text that each id stands for: [vocab_size]. Makes bits per byte of
        any tokens exact.
        """


def _batches(documents: Iterable[Iterator[Piece]]) -> Iterator[list[Piece]]:
    """The documents' pieces, `BATCH` characters or a little more at a time."""
    batch: list[Piece] = []
    characters = 0
    for pieces in documents:
        for piece in pieces:
            _require_unicode(piece.text)
            if characters >= BATCH:
                yield batch
                batch, characters = [], 0
            batch.append(piece)
            characters += len(piece.text) + 64  # an empty document costs something, too
    if batch:
        yield batch


def _require_unicode(text: str) -> None:
    """Raises UserError for half of a surrogate pair, which JSON's escapes and a terminal of another
    encoding can give, and no token stands for.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before = text[max(0, error.start - 20) : error.start]
        raise UserError(
            f"The text holds half a character (a lone surrogate) after {before!r}: it is no UTF-8. "
            "Take the character out, or write it whole."
        ) from None


def _from_files(style: str, vocabulary: Path, merges: Path) -> Tokenizer:
    kind = Tokenizer.of(style)
    try:
        ids = json.loads(Path(vocabulary).read_text(encoding="utf-8"))
        lines = Path(merges).read_text(encoding="utf-8").split("\n")
        pairs = [
            (left, right)
            for left, right in (
                line.split(" ") for line in lines if line and not line.startswith("#version")
            )
        ]
        return kind._made(ids, pairs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{vocabulary} and {merges} are not the vocabulary (a JSON object, token to id) and "
            "the merges (two tokens a line) "
            f"of {kind._described()}: {error!r}."
        ) from None
