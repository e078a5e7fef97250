"""De-tokenizers that lose nothing: text in a data set's tokenized spelling, as people write it, and
back again exactly.

GPT-2 was trained on plain text, so a test set's artefacts (" , ", " 's", " @-@ ") cost it
probability that has nothing to do with language; invertible de-tokenizers gained it 2.5 to 5
perplexity (Radford et al. 2019, section 3.1). These are ours: that its own were never released is
from memory, unverified.

A line is its tokens with spaces between. A token is joined to the one before where a rule says so
*and* dividing what comes out gives those tokens again; a token that would be divided wrongly is
marked by a tab. So `tokenized(plain(line)) == line` for every line whatever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# before a token that is to be taken as it stands; with a space after it, before such a line
MARK = "\t"
_BETWEEN = {
    "-": r"(?<=\w)-(?=\w)",
    ",": r"(?<=\d),(?=\d)",
    ".": r"(?<=\d)\.(?=\d)",
}  # where an infix is one
_ABBREVIATION = re.compile(
    r"(?:[A-Za-z]\.)+|(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|Prof|Gen|Col|Capt|Lt|Sgt|Rev|Gov|Sen|Rep|No|Vol|vs|"
    r"etc|Inc|Co|Corp|Ltd)\."
)


@dataclass(frozen=True)
class Detokenizer:
    """The tokenized spelling of one data set."""

    closing: tuple[str, ...] = ()  # tokens written at the end of the word before
    opening: str = ""  # one-character tokens written at the beginning of the word after
    endings: tuple[str, ...] = ()  # tokens that end the word before: 's, n't
    infix: Mapping[str, str] = field(
        default_factory=dict
    )  # tokens between two words, and how they are written: "@-@" as "-"
    quote: str = '"'  # opens and closes in turn; "" where there is none
    padded: bool = False  # a line has a space before its first and after its last token

    def plain(self, text: str) -> str:
        """`text`, line by line, as people write it."""
        return "\n".join(self._plain_line(line) for line in text.split("\n"))

    def _plain_line(self, line: str) -> str:
        if self.padded:
            if line == " ":
                return ""
            if not (len(line) > 2 and line[0] == line[-1] == " "):
                return f"{MARK} {line}"  # no line of this data set: as it stands
            line = line[1:-1]
        chunks, quoted, tokens, start = [], False, line.split(" "), 0
        while start < len(tokens):
            chunk, end = self._chunk(tokens, start, quoted)
            quoted ^= bool(self.quote) and tokens[start:end].count(self.quote) % 2 == 1
            chunks.append(chunk)
            start = end
        return " ".join(chunks)

    def _chunk(self, tokens: list[str], start: int, quoted: bool) -> tuple[str, int]:
        """The longest run of tokens from `start` that may be written together and divided again,
        and where it ends.
        """
        chunk, end = tokens[start], start + 1
        if chunk.startswith(MARK) or self._divided(chunk, quoted) != [chunk]:
            return MARK + chunk, end
        while end < len(tokens):
            inside = quoted ^ (bool(self.quote) and tokens[start:end].count(self.quote) % 2 == 1)
            longer = self._joined(chunk, tokens, end, inside)
            if longer is None or self._divided(longer[0], quoted) != tokens[start : longer[1]]:
                break
            chunk, end = longer
        return chunk, end

    def _joined(
        self, chunk: str, tokens: list[str], index: int, inside: bool
    ) -> tuple[str, int] | None:
        """`chunk` with the token at `index` (an infix with the next token too) where a rule joins
        them, and the index after it.
        """
        before, token = tokens[index - 1], tokens[index]
        if not before or not token:
            return None
        if token in self.infix and index + 1 < len(tokens):
            return chunk + self.infix[token] + tokens[index + 1], index + 2
        ends = token in self.closing or token in self.endings or (token == self.quote and inside)
        begins = before in self.opening or (before == self.quote and inside)
        return (chunk + token, index + 1) if ends or begins else None

    def tokenized(self, text: str) -> str:
        """The inverse of `plain`: `text` in the data set's tokenized spelling."""
        return "\n".join(self._tokenized_line(line) for line in text.split("\n"))

    def _tokenized_line(self, line: str) -> str:
        if self.padded and not line:
            return " "
        if self.padded and line.startswith(f"{MARK} "):
            return line[2:]
        tokens: list[str] = []
        quoted = False
        for chunk in line.split(" "):
            divided = [chunk[1:]] if chunk.startswith(MARK) else self._divided(chunk, quoted)
            quoted ^= bool(self.quote) and divided.count(self.quote) % 2 == 1
            tokens += divided
        return f" {' '.join(tokens)} " if self.padded else " ".join(tokens)

    def _divided(self, chunk: str, quoted: bool) -> list[str]:
        """The tokens of what stands between two spaces; `quoted`: inside a quotation."""
        if (
            chunk in self.closing
            or chunk in self.endings
            or chunk in self.infix.values()
            or chunk in ("", self.quote)
        ):
            return [chunk]  # alone: as it stands
        front, back, rest = [], [], chunk
        while len(rest) > 1 and (rest[0] in self.opening or rest[0] == self.quote):
            front.append(rest[0])
            rest = rest[1:]
        while (last := self._last(rest)) is not None:
            back.append(last)
            rest = rest.removesuffix(last)
        word, ending = self._ending(rest)
        return [*front, *self._by_infix(word), *ending, *reversed(back)]

    def _last(self, rest: str) -> str | None:
        """The closing token or quote at the end of a longer `rest`; None where there is none, or it
        belongs to an abbreviation.
        """
        if _ABBREVIATION.fullmatch(rest):
            return None
        for token in (*self.closing, self.quote):
            if token and rest.endswith(token) and len(rest) > len(token):
                return token
        return None

    def _ending(self, word: str) -> tuple[str, list[str]]:
        for ending in self.endings:
            if word.endswith(ending) and len(word) > len(ending):
                return word.removesuffix(ending), [ending]
        return word, []

    def _by_infix(self, word: str) -> list[str]:
        tokens = {text: token for token, text in self.infix.items()}
        if not tokens:
            return [word]
        pieces = re.split(f"({'|'.join(_BETWEEN[text] for text in tokens)})", word)
        return [tokens[piece] if index % 2 else piece for index, piece in enumerate(pieces)]


_ENDINGS = ("n't", "'s", "'re", "'ll", "'ve", "'d", "'m")
DETOKENIZERS = {
    "none": Detokenizer(quote=""),
    # Mikolov's Penn Treebank: lower case, no punctuation; unknown words are <unk> and numbers N,
    # which stay as they are
    "ptb": Detokenizer(endings=_ENDINGS, opening="$#", quote=""),
    # WikiText (Merity et al. 2016): Moses-like, with marked hyphens and number separators
    "wikitext": Detokenizer(
        closing=("...", *",.;:!?)]%"),
        opening="([$£€",
        endings=("'s", "'t", "'re", "'ll", "'ve", "'d", "'m"),
        infix={"@-@": "-", "@,@": ",", "@.@": "."},
        padded=True,
    ),
    # One Billion Word (Chelba et al. 2013) and the Children's Book Test: Penn Treebank's
    # conventions with punctuation
    "treebank": Detokenizer(closing=("...", *",.;:!?)]%"), opening="([$£€", endings=_ENDINGS),
}
