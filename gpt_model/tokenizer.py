"""Tokenizer: byte-level BPE in GPT-2's manner. Train, save, load, encode in parallel. Token files on disk are data/shards.py's.

* Text becomes bytes, each byte one of 256 printable characters, and merges join them inside GPT-2's pre-tokens (Radford et al. 2019,
  section 2.2): whatever is encoded decodes to itself, and no token is unknown.
* Ids in GPT-2's order: the 256 bytes, the merges in the order they were made, `<|endoftext|>` last.
* Text is text: a document that spells out `<|endoftext|>` gets the ids of those thirteen characters, unless `allow_special` asks
  otherwise. (`transformers` does ask otherwise, for GPT-2's own tokenizer as for ours: there it takes `split_special_tokens=True`.)
* The library is `tokenizers` (Rust); the folder that `save` writes is one that `transformers.AutoTokenizer` loads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from gpt_model.errors import UserError

END_OF_TEXT = "<|endoftext|>"
PIECE = 1 << 16  # characters

# What `transformers` must know to treat text as GPT-2 does: nothing added before it, nothing tidied after it.
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

# A place where GPT-2's pre-tokenizer always ends a token: no alternative of its pattern has white space after anything else. Python's \S
# is within the pattern's, and the two spaces on the right are white space to both.
_CUT = re.compile(r"(?<=\S)[ \n]")


def pieces(text: str, characters: int = PIECE) -> Iterator[str]:
    """`text` in pieces of about `characters`, whose ids, one after another, are the ids of the whole.

    So memory is a matter of the piece and not of the document. A piece is longer where no word ends for so long.
    """
    start = 0
    while len(text) - start > characters and (cut := _CUT.search(text, start + characters)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:] if start else text


class Tokenizer:
    """A trained tokenizer. Make one by `train`, `load` or `from_gpt2_files`."""

    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> None:
        """`vocabulary`: byte-level token -> id, with `<|endoftext|>`; `merges`: pairs of tokens, first made first."""
        self._rust = _byte_level(models.BPE(vocab=vocabulary, merges=list(merges)))
        self._rust.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        self._rust.encode_special_tokens = True  # the library's name for: special tokens in text are text
        self.end_of_text: int = vocabulary[END_OF_TEXT]
        self.vocab_size: int = self._rust.get_vocab_size()

    # -- made --------------------------------------------------------------------------------------------------------------------------

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int, style: str = "gpt2") -> Tokenizer:
        """Learn `vocab_size` tokens from `texts`, which are read once and not kept. The same texts give the same tokenizer.

        A merge needs a pair that stands twice. Raises UserError where the text has too few of those for the vocabulary.
        """
        if style != "gpt2":
            raise UserError(
                f"The tokenizer's `style` is {style!r}; there is only 'gpt2' (byte-level BPE). Write style: gpt2.", field="style"
            )
        rust = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        rust.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
        model = json.loads(rust.to_str())["model"]
        vocabulary, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
        if len(vocabulary) + 1 != vocab_size:
            raise UserError(
                f"The tokenizer's `vocab_size` is {vocab_size}, but the training text supports only {len(vocabulary) + 1}: "
                f"256 bytes, {END_OF_TEXT} and {len(merges)} merges of pairs that stand at least twice. "
                f"Set vocab_size to at most {len(vocabulary) + 1} and at least 257, or add text to the corpus.",
                field="vocab_size",
            )
        return cls(vocabulary | {END_OF_TEXT: len(vocabulary)}, merges)

    @classmethod
    def from_gpt2_files(cls, vocabulary: Path, merges: Path) -> Tokenizer:
        """From GPT-2's own two files, vocab.json (or encoder.json) and merges.txt (or vocab.bpe): gives GPT-2's ids."""
        try:
            ids = json.loads(Path(vocabulary).read_text(encoding="utf-8"))
            lines = Path(merges).read_text(encoding="utf-8").split("\n")
            pairs = [(left, right) for left, right in (line.split(" ") for line in lines if line and not line.startswith("#version"))]
            return cls(ids, pairs)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{vocabulary} and {merges} are not GPT-2's vocabulary (a JSON object, token to id, with {END_OF_TEXT}) "
                f"and merges (two tokens a line): {error!r}."
            ) from None

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """From a folder that `save` wrote, or any with a byte-level BPE tokenizer.json of GPT-2's kind."""
        path = Path(folder) / "tokenizer.json"
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{path} is missing: {folder} is not a tokenizer's folder. Give the folder of a tokenizer or a model."
            ) from None
        except ValueError:
            raise UserError(f"{path} is not JSON. Build or export the tokenizer again.") from None
        model, splitter = saved.get("model", {}), saved.get("pre_tokenizer") or {}
        ours = model.get("type") == "BPE" and splitter.get("type") == "ByteLevel" and not splitter.get("add_prefix_space")
        if not ours or saved.get("normalizer") or END_OF_TEXT not in model.get("vocab", {}):
            raise UserError(f"{path} is not a tokenizer of GPT-2's kind (byte-level BPE with {END_OF_TEXT}). Use one that is.")
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return cls(model["vocab"], [(left, right) for left, right in pairs])

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json, vocab.json and merges.txt into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        model = json.loads(self._rust.to_str())["model"]
        special = {name: token for name, token in _TRANSFORMERS.items() if name in ("bos_token", "eos_token", "unk_token")}
        files = {
            "tokenizer.json": self._rust.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(_TRANSFORMERS, indent=2, sort_keys=True) + "\n",
            "special_tokens_map.json": json.dumps(special, indent=2, sort_keys=True) + "\n",
            "vocab.json": json.dumps(model["vocab"], ensure_ascii=False, separators=(",", ":")),
            "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]) + "\n",
        }
        for name, content in files.items():  # not by the library: a full disk is then an OSError, like everywhere else
            (folder / name).write_text(content, encoding="utf-8", newline="\n")

    # -- used --------------------------------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of `text`. `allow_special`: each `<|endoftext|>` spelt out in it becomes the one token."""
        if not allow_special:
            return self._rust.encode(text).ids
        first, *others = text.split(END_OF_TEXT)
        ids = self._rust.encode(first).ids
        for part in others:
            ids += [self.end_of_text, *self._rust.encode(part).ids]
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, on as many threads as there are cores (RAYON_NUM_THREADS)."""
        return [encoding.ids for encoding in self._rust.encode_batch_fast(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return self._rust.decode(list(ids), skip_special_tokens=False)

    def tokens(self) -> list[str]:
        """Every token, by id, in the byte-level alphabet (`Ġ` is a space)."""
        by_id = {index: token for token, index in self._rust.get_vocab().items()}
        return [by_id[index] for index in range(self.vocab_size)]

    def byte_lengths(self) -> NDArray[np.uint32]:
        """Bytes of text that each id stands for: [vocab_size]; none for `<|endoftext|>`. Makes bits per byte of any tokens exact."""
        lengths = np.array([len(token) for token in self.tokens()], dtype=np.uint32)  # the alphabet has one character a byte
        lengths[self.end_of_text] = 0
        return lengths


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """The library's tokenizer round `model`, with GPT-2's pattern (ByteLevel's own) and nothing else done to the text."""
    rust = tokenizers.Tokenizer(model)
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    rust.decoder = decoders.ByteLevel()
    return rust
