"""What a general compressor makes of held-out text it has been primed for: the bits per byte a
language model has to beat.

`xz -9e` of the training text with the held-out text behind it, less `xz -9e` of the training text
alone.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

# The end of a larger training text. The window is 64 MiB, but one core does about 2 MB/s.
PRIMING_BYTES = 16 << 20
HELD_OUT_BYTES = 4 << 20


def primed_bits_per_byte(training: Iterable[str], held_out: Iterable[str]) -> float:
    """Bits per byte of `held_out` for `xz -9e` that has just read `training`. Documents are joined
    by a newline.
    """
    prime = _tail(training, PRIMING_BYTES)
    text = _head(held_out, HELD_OUT_BYTES)
    with ThreadPoolExecutor(2) as pool:  # liblzma works outside the interpreter's lock
        alone, both = pool.map(_compressed, (prime, prime + text))
    return 8 * (both - alone) / len(text)


def _compressed(data: bytes) -> int:
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def _tail(texts: Iterable[str], limit: int) -> bytes:
    data = bytearray()
    for text in texts:
        data += text.encode() + b"\n"
        if len(data) > 2 * limit:
            del data[:-limit]
    return bytes(data[-limit:])


def _head(texts: Iterable[str], limit: int) -> bytes:
    data = bytearray()
    for text in texts:
        if len(data) >= limit:
            break
        data += text.encode() + b"\n"
    return bytes(data[:limit])
