"""GPT-1's normalisation as far as a tokenizer.json can say it, so that `transformers` reads text as
we do (gpt1_normalisation.py) without our code.

The same ids on ordinary prose: of 9,307 lines of Shakespeare, the Bible and Wikipedia, 19 differed.
What differs, since a tokenizer.json knows neither ftfy nor spaCy:

* ftfy: quotes are straightened, line ends and ligatures mapped, accents composed, control
  characters dropped; wrongly decoded text, full-width letters and HTML entities stay as they are.
* Case: all is lower-cased first, so rules for capitals hold for small letters, too ("gen." keeps
  its dot as "Gen." does; of those that are words, such as "miss.", none keeps it), and an end of
  sentence without a space before the next capital ("end.Begin") is not seen.
* A few of spaCy's rules are left out: web addresses, squares and rarer units, emoticons.

`OpenAIGPTTokenizer` of transformers 5 is no alternative: it splits as BERT does ("do n't" is "don '
t" to it) and drops newlines.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from gpt_model.tokenizer.gpt1_normalisation import english

# Of ftfy, what is a mapping of characters; then `words.standardise`, but for runs of punctuation,
# which RUNS sets apart.
_MAPPED = {
    "[ʼ‘’‚‛]": "'",
    "[“”„‟]": '"',
    "—|–|―": "-",
    "…": "...",
    "´": "'",
    "ﬁ": "fi",
    "ﬂ": "fl",
    "ﬀ": "ff",
    "ﬃ": "ffi",
    "ﬄ": "ffl",
}
_LINE_ENDS, _CONTROL = (
    r"\r\n|\r|\x{2028}|\x{2029}|\x{85}",
    r"[\x00-\x08\x0b\x0e-\x1f\x7f\x{feff}\x{fff9}-\x{fffc}]",
)
# Those runs; spaCy takes most of them apart again.
RUNS = r"""-+|~+|[!";?+,)(*\[\]}{_]|\\+|/+|\|+"""

# spaCy's English prefixes and suffixes among what the runs leave: each a word of its own at the
# edge of what stands between spaces.
_EDGE = r"':&#%<>=$£€¥§`«»¿¡·"
_UNITS = "km|m|dm|cm|mm|ha|nm|yd|in|ft|kg|g|mg|t|lb|oz|kmh|mph|mb|kb|gb|tb|k"
# Exceptions of spaCy's (states, March, "Id" for "I'd") that mean something else in small letters
# more often.
_WORDS = {"ark.", "ill.", "mass.", "miss.", "wash.", "ore.", "la.", "pa.", "mar.", "id.", "id"}
_INNER = (
    r"(?<![\p{L}\p{N}.]|[\p{L}\p{N}]')",
    r"(?![\p{L}\p{N}]|'[\p{L}\p{N}])",
)  # around an exception


def words_in_rust(model: models.BPE) -> tokenizers.Tokenizer:
    """The library's tokenizer round `model` that finds GPT-1's words in plain text."""
    rust = tokenizers.Tokenizer(model)
    rust.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(_LINE_ENDS), "\n"),
            normalizers.Replace(Regex(_CONTROL), ""),
            *(
                normalizers.Replace(Regex(pattern), replacement)
                for pattern, replacement in _MAPPED.items()
            ),
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s*\n\s*"), "\n"),
            normalizers.Replace(Regex(r"[^\S\n]+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
        ]
    )
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Split(Regex(RUNS), "isolated"),
            pre_tokenizers.Split(Regex(_splits(english().tokenizer.rules)), "isolated"),
        ]
    )
    rust.decoder = decoders.BPEDecoder(suffix="</w>")
    return rust


def _splits(rules: dict[str, list[dict[Any, Any]]]) -> str:
    """A pattern whose matches are words, and so is what stands between them. `rules`: spaCy's
    exceptions, each with its words.
    """
    whole, heads = _exceptions(rules)
    before, after = _INNER
    return "|".join(
        [
            rf"{before}(?:{_any(whole)})(?![\p{{L}}\p{{N}}])",
            # initials: spaCy leaves the last dot after a capital and a dot
            rf"{before}(?:\p{{L}}\.){{2,}}(?![\p{{L}}\p{{N}}])",
            *(
                rf"{before}(?:{_any(first)})(?={re.escape(rest)}{after})"
                for rest, first in heads.items()
            ),
            r"n't(?='ve)",
            rf"(?<=[^\s'])'s(?=[{_EDGE}.]*\z)",
            r"\.\.+|\p{So}",
            rf"''(?=[{_EDGE}.]*\z)|(?<![^{_EDGE}])''",
            rf"(?<![^{_EDGE}])(?:(?:us|c|a)\$|[{_EDGE}])",
            rf"[{_EDGE}](?=[{_EDGE}.]*\z)",
            rf"(?<=[\p{{L}}\p{{N}}%'])\.(?=[{_EDGE}]*\z)",
            r"(?<=[\p{L}\p{N}])[:<>=](?=\p{L})",
            r"(?<=[0-9])\^(?=[0-9])",
            rf"(?<=[0-9])(?:{_UNITS})(?=[{_EDGE}.]*\z)",
        ]
    )


def _exceptions(rules: dict[str, list[dict[Any, Any]]]) -> tuple[set[str], dict[str, set[str]]]:
    """Of spaCy's exceptions, lower-cased: those that are one word, and the first words of others,
    by what follows.
    """
    # spaCy takes a second to import, and GPT-2's tokenizer is without it.
    from spacy.symbols import ORTH

    whole: set[str] = set()
    heads: dict[str, set[str]] = defaultdict(set)
    for text, parts in rules.items():
        lowered = text.lower().replace("’", "'")
        first = parts[0][ORTH].lower()
        if re.search(RUNS, lowered) or lowered.isspace() or lowered in _WORDS:
            continue
        if len(parts) > 1:
            heads[lowered[len(first) :]].add(first)
        elif not lowered.isalnum():  # a plain word needs no rule
            whole.add(lowered)
    return whole, dict(sorted(heads.items()))


def _any(texts: set[str]) -> str:
    return "|".join(re.escape(text) for text in sorted(texts, key=lambda text: (-len(text), text)))
