"""Words that LAMBADA's stop-word filter forbids as an answer: English function words, of which a
passage's last word is hardly ever one.

The list is OURS. That GPT-2's (Radford et al. 2019, section 3.3) was never published is unverified:
from memory.
"""

from __future__ import annotations

from collections.abc import Callable

_LINES = """
    a an the this that these those some any no every each either neither both all such what
    which whatever whichever
    i me my mine myself you your yours yourself he him his himself she her hers herself it its
    itself we us our ours ourselves they them
    their theirs themselves who whom whose someone somebody something anyone anybody anything
    everyone everybody everything nobody nothing
    and or but nor so yet if because although though while when where why how whether unless
    until since as than then
    of in on at by for with without from to into onto upon over under above below between among
    through during before after about
    against toward towards behind beside besides beyond within along across around near off out
    up down
    am is are was were be been being have has had having do does did doing done will would shall
    should can could may might must
    not n't 's 're 've 'll 'd 'm just only even also too very more most much many few less least
    quite rather almost still already again
    ever never always often here there now
    """
STOP_WORDS = tuple(_LINES.split())


def stop_word_tokens(encode: Callable[[str], list[int]]) -> list[int]:
    """Tokens that are a stop word of their own, with the space before it, in lower case or
    capitalised; sorted.
    """
    spellings = (
        ids for word in STOP_WORDS for ids in (encode(f" {word}"), encode(f" {word.capitalize()}"))
    )
    return sorted({ids[0] for ids in spellings if len(ids) == 1})
