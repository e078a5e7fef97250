"""Peak memory of writing token shards: synthetic text, streamed from a generator, so that nothing
but the pipeline itself holds any.

    python benchmarks/tokenize_memory.py --megabytes 2000

`--documents one` puts all of it into one document, and so holds that document; the tokenizer's own
memory must not grow with it.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bars import below, verdict
from gpt_model.data.shards import SourceTexts, TokenData, write
from gpt_model.io import peak_resident_bytes
from gpt_model.tokenizer import Tokenizer

BAR_MEGABYTES = 500
SYLLABLES = [
    a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")
]


def documents(megabytes: int, seed: int) -> Iterator[str]:
    """About `megabytes` MB of made-up words with Zipf's frequencies, in documents of about 60 kB."""
    random_ = random.Random(seed)
    words = [
        "".join(random_.choices(SYLLABLES, k=random_.choice((1, 2, 2, 3, 4))))
        for _ in range(50_000)
    ]
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    left = megabytes * 1_000_000
    while left > 0:
        text = " ".join(random_.choices(words, cum_weights=weights, k=10_000)).replace(" b", ".\nB")
        left -= len(text)
        yield text


def peak() -> float:
    """The most memory this process has had resident so far, MB."""
    return peak_resident_bytes() / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--megabytes", type=int, default=2000, help="of text to tokenize (default 2000)"
    )
    parser.add_argument(
        "--documents",
        choices=("many", "one"),
        default="many",
        help="documents of 60 kB, or one of everything",
    )
    parser.add_argument(
        "--style",
        choices=("gpt2", "gpt1"),
        default="gpt2",
        help="gpt1's helper processes are not counted",
    )
    parser.add_argument(
        "--folder", type=Path, help="where the shards go (default: a temporary folder)"
    )
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    tokenizer = Tokenizer.train(documents(1, seed=1), vocab_size=8192, style=arguments.style)
    peaks: list[float] = []  # when a quarter of the text is read, and each quarter after that

    def watched() -> Iterator[str]:
        read = 0
        for text in documents(arguments.megabytes, seed=2):
            read += len(text)
            if read >= (len(peaks) + 1) * arguments.megabytes * 250_000:
                peaks.append(peak())
            yield text

    text = watched() if arguments.documents == "many" else iter(["\n".join(watched())])
    start = time.perf_counter()
    try:
        write(
            folder, {"synthetic": SourceTexts(1.0, {"training": text, "held_out": []})}, tokenizer
        )
        seconds = time.perf_counter() - start
        data = TokenData(folder)
        count, size = (
            len(data.tokens("synthetic", "training")),
            data.bytes("synthetic", "training") / 1e6,
        )
    finally:
        shutil.rmtree(folder)
    print(f"{size:.0f} MB of text, {count} tokens, {seconds:.0f} s, {size / seconds:.1f} MB/s")
    most = peak()
    held = below("peak memory", most, BAR_MEGABYTES, "MB")
    print(
        f"peak {most:.0f} MB resident {held}; after the first quarter of the text {peaks[0]:.0f} MB"
    )
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
